"""How fast a run is and what it uses: tokens a second, MFU, waiting for data, memory, compilations."""

import contextlib
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from mmed_jax.errors import WorkError
from mmed_jax.flops import mfu, peak_flops

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
        """Around the call that gets the next batch."""
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
          compiled: this step's time includes compilation; it is left out of the median and of tokens/s.

        Returns:
          tokens_seen and, unless compiled, step_seconds, step_seconds_median, data_wait_seconds (since the last call),
          tokens_per_second, supervised_tokens_per_second, mfu (0..1; only where the device's peak is known).
        """
        now, self.tokens_seen = time.perf_counter(), self.tokens_seen + int(real_tokens)
        seconds = None if self._last is None else now - self._last
        self._last, waited, self._waited = now, self._waited, 0.0
        if seconds is None or compiled:
            return {"tokens_seen": self.tokens_seen}
        self._seconds.append(seconds)
        rate = real_tokens / max(seconds, 1e-9)
        out = {
            "step_seconds": seconds,
            "step_seconds_median": statistics.median(self._seconds),
            "data_wait_seconds": waited,
            "tokens_per_second": rate,
            "supervised_tokens_per_second": supervised_tokens / max(seconds, 1e-9),
            "tokens_seen": self.tokens_seen,
        }
        used = mfu(rate, self._flops, self._kind, self._devices)
        return out if used is None else out | {"mfu": used}


def memory() -> dict[str, float]:
    """GiB in use: of the fullest local device where the runtime tells (with its peak), and of this process."""
    import jax

    out = {"host_memory_gib": host_memory_bytes() / 2**30}
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


def host_memory_bytes() -> int:
    """Resident memory of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class CompileCounter:
    """Counts XLA compilations by function name, with their seconds, and hits of the persistent cache.

        with CompileCounter() as compiles:
            ...
            compiles.expect_one("train_step")     # after the run, or at any time

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

    def expect_one(self, name: str) -> None:
        """Raises WorkError unless `name` was compiled exactly once; says nothing when jax gives no names."""
        count = self.count(name)
        if count != 1 and (count or not self.by_name[""]):
            raise WorkError(
                f"{name} was compiled {count} times instead of once: shapes, dtypes or shardings of its arguments "
                f"changed between steps (JAX_EXPLAIN_CACHE_MISSES=1 shows which)"
            )


class Profiler:
    """Context that writes a profile of `steps` steps after step `start` to `folder`; of none when `steps` is 0.

    A run that ends before that writes what it has.
    """

    def __init__(self, folder: str | os.PathLike, start: int, steps: int):
        self._folder, self._start, self._steps = str(folder), start, steps
        self._running = False

    def after(self, step: int, state: Any) -> None:
        """Call after every step with its number and its result, on the devices."""
        import jax

        if self._steps and step == self._start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._running and step == self._start + self._steps:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        import jax

        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()
