"""How fast a run is and what it uses: tokens a second, MFU, waiting for data, memory, compilations."""

import contextlib
import os
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from mmed_jax.parallel.chips import peak_flops
from mmed_jax.training.flops import mfu

MFU_FORMULA = (
    "MFU = real tokens/s x train FLOPs a token / (devices x peak dense bfloat16 FLOP/s of the device's data sheet); "
    "padding counts as no work"
)


class SpeedMeter:
    """Times steps by the arrival of their metrics, which is when the devices finished them.

    Single intervals jump, because the host runs ahead of the devices; `step_seconds_median` over the last `window`
    steps is the number to compare.

    Args:
      flops_per_token: flops.train_flops_per_token of the run. device_kind, num_devices: for the peak.
      window: steps of the rolling median.
    """

    def __init__(self, *, flops_per_token: float, device_kind: str, num_devices: int, window: int = 50):
        self._flops, self._kind, self._devices = flops_per_token, device_kind, num_devices
        self._seconds: deque[float] = deque(maxlen=window)
        self._last: float | None = None
        self._waited = 0.0
        self._total_seconds = self._total_waited = 0.0
        self.tokens_seen = 0

    def describe(self) -> dict[str, Any]:
        """How MFU is computed here, for the first lines of a run and its first record."""
        peak = peak_flops(self._kind)
        return {
            "mfu_formula": MFU_FORMULA,
            "flops_per_token": self._flops,
            "peak_flops_per_device": peak,
            "peak_device": f"{self._devices} x {self._kind}" + ("" if peak else " (no known peak: no MFU)"),
        }

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Around the call that gets the next batch.

        All of it counts, also what the devices do not notice because they are still at an earlier step. (Copying the
        batch to the devices is no waiting: it happens beside that step.)
        """
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def restart(self) -> None:
        """Starts the clock: before the first step, and after an evaluation or anything else that is not training."""
        self._last = time.perf_counter()
        self._waited = 0.0

    def step(self, *, real_tokens: float, supervised_tokens: float, compiled: bool = False) -> dict[str, float]:
        """Call when the metrics of a step have arrived.

        Args:
          real_tokens: tokens that are not padding. supervised_tokens: those with a loss.
          compiled: this step's time includes compilation; it is left out of the median, of tokens/s and of totals.

        Returns:
          tokens_seen and, unless compiled, step_seconds, step_seconds_median, data_wait_seconds (since the last call)
          and data_wait_share (of step_seconds), tokens_per_second, supervised_tokens_per_second, mfu (0..1; only where
          the device's peak is known).
        """
        now, self.tokens_seen = time.perf_counter(), self.tokens_seen + int(real_tokens)
        seconds = None if self._last is None else now - self._last
        self._last, waited, self._waited = now, self._waited, 0.0
        if seconds is None or compiled:
            return {"tokens_seen": self.tokens_seen}
        self._seconds.append(seconds)
        self._total_seconds += seconds
        self._total_waited += waited
        rate = real_tokens / max(seconds, 1e-9)
        out = {
            "step_seconds": seconds,
            "step_seconds_median": statistics.median(self._seconds),
            "data_wait_seconds": waited,
            "data_wait_share": waited / max(seconds, 1e-9),
            "tokens_per_second": rate,
            "supervised_tokens_per_second": supervised_tokens / max(seconds, 1e-9),
            "tokens_seen": self.tokens_seen,
        }
        used = mfu(rate, self._flops, self._kind, self._devices)
        return out if used is None else out | {"mfu": used}

    def totals(self) -> dict[str, float]:
        """Of all steps so far but those that compiled: their seconds, and the share of these spent on getting data."""
        seconds = self._total_seconds
        return {"train_seconds": seconds, "data_wait_share": self._total_waited / seconds if seconds else 0.0}


def memory() -> dict[str, float]:
    """GiB in use: of this process, and of the fullest local device where the runtime tells; both with their peaks.

    host_memory_gib is the resident memory at this moment; host_memory_peak_gib is the most it ever was, as the kernel
    counts it, in the middle of a save or a compilation too.
    """
    import jax

    out = {"host_memory_gib": host_memory_bytes() / 2**30, "host_memory_peak_gib": host_memory_peak_bytes() / 2**30}
    stats = [s for d in jax.local_devices() if (s := _memory_stats(d))]
    if stats:
        out["device_memory_gib"] = max(s.get("bytes_in_use", 0) for s in stats) / 2**30
        out["device_memory_peak_gib"] = max(s.get("peak_bytes_in_use", 0) for s in stats) / 2**30
    return out


def _memory_stats(device: Any) -> dict[str, int] | None:
    try:
        return device.memory_stats()
    except Exception:  # some runtimes raise instead of returning None
        return None


_IMPORTED = time.monotonic()


def process_seconds() -> float:
    """Seconds since this process was started; where there is no /proc, since this module was imported."""
    try:
        with open("/proc/self/stat", encoding="ascii") as f:
            ticks = int(f.read().rpartition(")")[2].split()[19])  # field 22 of proc(5), since the machine was booted
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED


def host_memory_bytes() -> int:
    """Resident memory of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return host_memory_peak_bytes()


def host_memory_peak_bytes() -> int:
    """The most resident memory that this process ever had."""
    # Not getrusage where there is another way: Linux starts its count at what the process had before it was exec'ed,
    # which is what whoever started it held.
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    import resource

    # KiB, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class CompileCounter:
    """Counts XLA compilations by function name, with their seconds, and hits of the persistent cache.

        with CompileCounter() as compiles:
            ...
            compiles.count("train_step")     # after the run, or at any time

    An executable that comes from the persistent cache counts as a compilation and as a hit. Listens to jax.monitoring;
    an event without a function name (a later jax) is counted under "".
    """

    _COMPILED = "/jax/core/compile/backend_compile_duration"
    _HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"

    def __init__(self) -> None:
        self.by_name: Counter[str] = Counter()
        self.seconds_by_name: Counter[str] = Counter()
        self.cache_hits = self.cache_misses = 0

    def __enter__(self) -> "CompileCounter":
        import jax.monitoring as monitoring

        monitoring.register_event_duration_secs_listener(self._on_duration)
        monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        import jax.monitoring as monitoring

        # Without these (an older jax) the listener stays and counts on, which harms nobody.
        for name, listener in [
            ("unregister_event_duration_listener", self._on_duration),
            ("unregister_event_listener", self._on_event),
        ]:
            if hasattr(monitoring, name):
                getattr(monitoring, name)(listener)

    def _on_duration(self, event: str, seconds: float, **info: Any) -> None:
        if event == self._COMPILED:
            name = str(info.get("fun_name", "")).removeprefix("jit(").removesuffix(")").removeprefix("jit_")
            self.by_name[name] += 1
            self.seconds_by_name[name] += seconds

    def _on_event(self, event: str, **_: Any) -> None:
        self.cache_hits += event == self._HIT
        self.cache_misses += event == self._MISS

    @property
    def seconds(self) -> float:
        """Seconds spent compiling or reading compiled programs, all functions."""
        return float(sum(self.seconds_by_name.values()))

    def count(self, name: str) -> int:
        """Compilations of the jitted function `name`."""
        return self.by_name[name]

    def summary(self, name: str) -> dict[str, Any]:
        """Values for a record: of `name` and of everything together."""
        return {
            "compile_count": self.count(name),
            "compile_seconds": round(self.seconds_by_name[name], 3),
            "compile_count_all": sum(self.by_name.values()),
            "compile_seconds_all": round(self.seconds, 3),
            "compile_cache_hits": self.cache_hits,
            "compile_cache_misses": self.cache_misses,
        }


class CompileWatch:
    """A jitted function that says after a call, in `changed`, why it had to be compiled again.

    `changed` is empty after a call that compiled nothing, and after the first. Else it tells how the arguments differ
    from those of the last compilation, "batch/tokens: int32[8,128] -> int32[8,256]", one string for each change of a
    leaf's shape and dtype or of its sharding; or it says that these are as they were.

    Costs a comparison of two numbers while nothing is compiled. Arguments may be donated.

    Args:
      compiles: counts the compilations of the function under `name`. argument_names: of its positional arguments.
    """

    def __init__(
        self, compiles: CompileCounter, name: str, function: Callable[..., Any], argument_names: tuple[str, ...]
    ):
        self._compiles, self._name, self._function, self._names = compiles, name, function, argument_names
        self._count = compiles.count(name)
        self._known: dict[str, tuple[str, str]] = {}
        self.changed: list[str] = []

    def __call__(self, *arguments: Any) -> Any:
        out = self._function(*arguments)
        count = self._compiles.count(self._name)
        self.changed = self._differences(arguments) if count != self._count else []
        self._count = count
        return out

    def _differences(self, arguments: tuple) -> list[str]:
        import jax

        leaves = jax.tree_util.tree_leaves_with_path(dict(zip(self._names, arguments, strict=True)))
        now = {jax.tree_util.keystr(p, simple=True, separator="/"): _signature(x) for p, x in leaves}
        before, self._known = self._known, now
        if not before:
            return []
        absent = ("absent", "")
        lines = []
        for path in dict.fromkeys([*before, *now]):
            pairs = zip(before.get(path, absent), now.get(path, absent), strict=True)
            lines += [f"{path}: {old} -> {new}" for old, new in pairs if old != new and old and new]
        return lines or [f"{self._name}: the same shapes, dtypes and shardings (JAX_EXPLAIN_CACHE_MISSES=1 says why)"]


def _signature(x: Any) -> tuple[str, str]:
    shape = f"{getattr(x, 'dtype', type(x).__name__)}[{','.join(map(str, getattr(x, 'shape', ())))}]"
    weak = " (weak type)" if getattr(x, "weak_type", False) else ""
    return shape + weak, str(getattr(x, "sharding", "on the host"))
