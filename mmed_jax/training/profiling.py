"""Profiles of training steps: written in xprof's format, and read without xprof.

    python -m mmed_jax.train ... --profile=START:STOP    steps START to STOP, to <run_dir>/profile
    python -m mmed_jax.report --run=RUN_DIR --profile    its ten most expensive operations

The whole timeline: `xprof --logdir=RUN_DIR/profile` (pip install xprof), or TensorBoard with that plugin.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmed_jax.common.errors import UserError
from mmed_jax.common.places import is_bucket, parse_place

FOLDER = "profile"  # below the run directory
# These contain the operations that stand beside them in the profile.
_CONTAINERS = re.compile(r"(while|conditional|call)(\.\d+)?")


def parse_steps(text: str) -> tuple[int, int] | None:
    """`10:12` -> (10, 12), both included; None when empty.

    Raises:
      UserError: anything else, steps below 1, or the last before the first.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile={text}: must be START:STOP, two steps from 1 on, for example 10:12 for three steps")
    return first, last


class Profiler:
    """Context that writes a profile of the steps `first` to `last` to `folder`; of none when `steps` is None.

    A run that ends before that writes what it has; one that begins within them profiles the rest. The devices are
    waited for before and after, so that whole steps are in it. Python calls are left out: they slow the host.
    """

    def __init__(self, folder: str | os.PathLike, steps: tuple[int, int] | None):
        self._folder, self._steps = str(folder), steps
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Call before every step with its number and the state it starts from."""
        if self._steps is None or self._running or not self._steps[0] <= step <= self._steps[1]:
            return
        import jax

        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        # All processes of a run, and a second run of the same steps, write to one folder.
        options.session_id = f"steps_{step}-{self._steps[1]}"
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._running = True

    def after(self, step: int, state: Any) -> bool:
        """Call after every step with its number and its result, on the devices; True when a profile was written."""
        if not self._running or step < self._steps[1]:
            return False
        import jax

        jax.block_until_ready(state)
        self._stop()
        return True

    def _stop(self) -> None:
        import jax

        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()


class Operation(NamedTuple):
    """One compiled operation: its seconds and calls in the profile, summed over devices, and its place in the model."""

    name: str
    where: str
    seconds: float
    calls: int


def operations(files: list[Path]) -> list[Operation]:
    """The operations in xplane.pb files, most expensive first. Raises what jax says of a file that is no profile."""
    from jax.profiler import ProfileData

    seconds: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    for file in files:
        for name, where, duration in _events(ProfileData.from_file(str(file))):
            if not _CONTAINERS.fullmatch(name):
                seconds[name, where] += duration
                calls[name, where] += 1
    found = [Operation(*key, seconds[key], calls[key]) for key in seconds]
    return sorted(found, key=lambda o: -o.seconds)


def _events(profile: Any) -> Iterator[tuple[str, str, float]]:
    """(operation or kernel, name stack of the traced function, seconds) of everything that ran on a device."""
    for plane in profile.planes:
        device = plane.name.startswith("/device:")
        for line in plane.lines:
            # TPU: one line of operations among summaries of them. GPU: a line a stream. CPU: threads of the host,
            # where operations are the events that name one.
            if device and line.name != "XLA Ops" and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = dict(event.stats)
                if not device and "hlo_op" not in stats:
                    continue
                # A TPU's name is the whole instruction, "%fusion.1 = f32[8] fusion(...)".
                name = event.name.split(" = ")[0].lstrip("%")
                path = next((v for k in ("tf_op", "name") if "/" in (v := str(stats.get(k, "")))), "")
                yield name, path.rstrip(":"), event.duration_ns / 1e9


def _profile_folder(run_dir: str | Path) -> Path:
    """The profiles of a run, of one in a bucket a copy; a path that is not there where it has none."""
    folder = parse_place(run_dir, "--run") / FOLDER
    if not is_bucket(folder):
        return folder
    from mmed_jax.common.buckets.download import NotThere, open_input

    try:
        return open_input(str(folder), "--run")
    except NotThere:
        return Path(FOLDER, "none")


def top_operations(run_dir: str | Path, count: int = 10) -> str:
    """A table of the most expensive operations in the newest profile of a run.

    Raises:
      UserError: the run has no profile, or it cannot be read.
    """
    files = sorted(_profile_folder(run_dir).glob("plugins/profile/*/*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    if not files:
        raise UserError(f"--run={run_dir}: no profile there; train with --profile=START:STOP, for example 10:12")
    session = files[-1].parent
    try:
        found = operations(sorted(session.glob("*.xplane.pb")))
    except Exception as e:
        raise UserError(f"{session}: the profile cannot be read ({type(e).__name__}: {e})") from e
    total = sum(o.seconds for o in found)
    if not total:
        raise UserError(f"{session}: no operation of a device is in this profile")
    lines = [f"{session}: {len(found)} operations, {total * 1e3:,.1f} ms in all, summed over devices and threads"]
    lines.append(f"{'share':>6s} {'ms':>10s} {'calls':>7s}  operation")
    for o in found[:count]:
        where = o.where if len(o.where) <= 80 else "..." + o.where[-77:]
        row = f"{o.seconds / total:6.1%} {o.seconds * 1e3:10,.2f} {o.calls:7,d}  {o.name[:60]}  {where}"
        lines.append(row.rstrip())
    rest = sum(o.seconds for o in found[count:])
    return "\n".join([*lines, f"{rest / total:6.1%} {rest * 1e3:10,.2f}          all others"])
