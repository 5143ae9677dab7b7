"""A host that is alive and stuck: no step comes, and jax's heartbeats see nothing, for every process still has some.

Every process says in the coordinator's store how far it is and in which line its main thread stands; when no step has
come for ten times the median, process 0 says who is behind, and where. It ends nothing: a slow disk may answer yet.
In a save, a validation or a compilation it waits for longer.
"""

import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from mmed_jax.common.errors import warn
from mmed_jax.common.jsonl import loads
from mmed_jax.common.paths import REPO
from mmed_jax.parallel import peers
from mmed_jax.parallel.coordinator import Coordinator, describe_processes, to_text

# No step for so many times the median, and at least so many seconds.
MEDIANS, LEAST_SECONDS = 10.0, 120.0
# At least so many where no step is to be expected soon: storage that never answers is named in the end.
PATIENT_SECONDS = 1800.0
_INTERVAL_SECONDS = 5.0
# The median of fewer says nothing; the first step, which compiles, is none of them.
_FEWEST_STEPS = 4
_MOST_GROUPS = 4


class Watchdog:
    """Context around the steps of a run; does nothing in a single process.

    Args:
      coordinator: None in a single process.
      say: for the warning, on process 0.
      least_seconds, patient_seconds, interval: seconds before it barks; before it does so where a pause is expected;
        between two looks.
    """

    def __init__(
        self,
        coordinator: Coordinator | None,
        say: Callable[[str], object] = warn,
        least_seconds: float = LEAST_SECONDS,
        patient_seconds: float = PATIENT_SECONDS,
        interval: float = _INTERVAL_SECONDS,
    ):
        self._coordinator, self._say = coordinator, say
        self._least, self._patient = least_seconds, patient_seconds
        self._limit = least_seconds
        self._interval = interval + (coordinator.count / 16 if coordinator else 0)
        self._thread = threading.get_ident()
        self._step = self._beats = 0
        self._last = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=50)
        self._barked = 0.0  # after so many seconds without a beat; 0 = not in this pause
        self._over = threading.Event()
        self._follower: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        if self._coordinator is not None:
            self._follower = threading.Thread(target=self._follow, daemon=True, name="watchdog")
            self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def beat(self, step: int = 0) -> None:
        """The run goes on: called by all processes equally often. `step`: 0 = the one before, as in a validation."""
        now = time.monotonic()
        if step > self._step:  # batches of a validation are no measure for steps, and do not end its pause
            self._limit = self._least
            if self._beats:
                self._seconds.append(now - self._last)
        self._last, self._beats, self._step = now, self._beats + 1, step or self._step

    def expect_pause(self) -> None:
        """Until the next step more is done than a step: a save, a validation with the compilation of its program."""
        self._limit = max(self._least, self._patient)

    def end(self) -> None:
        """No step follows."""
        self._over.set()
        if self._follower is not None:
            self._follower.join(5)

    def _follow(self) -> None:
        while not self._over.wait(self._interval):
            try:
                self._look()
            except Exception:  # the coordinator is gone: peers.py says so
                return

    def _look(self) -> None:
        assert self._coordinator is not None
        pause, beats = time.monotonic() - self._last, self._beats
        word = to_text([beats, self._step, place_of(self._thread)])
        self._coordinator.state("progress", word, again=True)
        seconds = list(self._seconds)
        if self._coordinator.index or len(seconds) < _FEWEST_STEPS:
            return
        median = statistics.median(seconds)
        if pause < self._barked:  # a beat came
            self._say(f"steps go on, after {self._barked:,.0f} s or more without one")
            self._barked = 0.0
        if pause > max(self._limit, MEDIANS * median, 2 * self._barked):
            self._barked = pause
            hosts = self._coordinator.stated("host")
            who = describe_progress(self._coordinator.stated("progress"), hosts)
            silent = peers.peers.silent() if peers.peers else ""
            self._say(f"no step for {pause:,.0f} s (median {median:.2g} s), {silent or 'all hosts are alive'}: {who}")


def describe_progress(words: Mapping[int, str], hosts: Mapping[int, str]) -> str:
    """Who is how far and where, those behind first; of those equally far the smaller group, the odd ones out.

    Args:
      words: by process [beats, step, place] as JSON. hosts: names by process.
    """
    groups: dict[tuple[int, int, str], list[int]] = {}
    for process, text in words.items():
        beats, step, place = loads(text, list)
        groups.setdefault((beats, step, place), []).append(process)
    most = max(beats for beats, _, _ in groups)
    shown = []
    for (beats, step, place), who in sorted(groups.items(), key=lambda item: (item[0][0], len(item[1]))):
        behind = " is behind," if beats < most and len(who) == 1 else " are behind," if beats < most else ""
        shown.append(f"{describe_processes(who, hosts)}{behind} after step {step:,} in {place}")
    more = f"; {len(shown) - _MOST_GROUPS} other places" if len(shown) > _MOST_GROUPS else ""
    return "; ".join(shown[:_MOST_GROUPS]) + more


def place_of(thread: int) -> str:
    """The innermost line of this program in which a thread stands: "mmed_jax/data/loader.py:88 (read)"."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(REPO) and "site-packages" not in path.relative_to(REPO).parts:
            return f"{path.relative_to(REPO)}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "no line of this program"
