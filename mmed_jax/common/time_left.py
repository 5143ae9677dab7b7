"""How long a run still takes, from what its steps took and what came between them."""

import statistics
from collections import deque

# The median of fewer steps says nothing.
FEWEST_STEPS = 3
_WINDOW = 100  # steps whose median counts
_PAUSES = 5  # of one kind, whose median counts


class TimeLeft:
    """Time left of a run whose steps take about as long each: the median of the last 100, and its pauses besides.

    A pause is what is no step: a validation, a save. Each kind comes again as often as it came until now and takes the
    median of its last five. So neither a slow step nor a validation moves the time left, but for a kind's first one.

    Args:
      total: the last step. start: the step after which the run starts or resumes.
    """

    def __init__(self, total: int, start: int = 0):
        self._total, self._start = total, start
        self._seconds: deque[float] = deque(maxlen=_WINDOW)
        self._last: tuple[float, int] | None = None  # when the newest step was done, and its number
        self._paused = 0.0  # since then
        self._pauses: dict[str, list[tuple[int, float]]] = {}

    def step(self, step: int, now: float) -> None:
        """`step` is done at `now` (seconds of any clock). What came before the first, a compilation, never counts."""
        if self._last is not None and step > self._last[1]:
            self._seconds.append(max(0.0, now - self._last[0] - self._paused) / (step - self._last[1]))
        self._last, self._paused = (now, step), 0.0

    def pause(self, kind: str, seconds: float) -> None:
        """Since the newest step so many seconds went into something else."""
        self._paused += seconds
        self._pauses.setdefault(kind, []).append((self._last[1] if self._last else self._start, seconds))

    def seconds(self) -> float | None:
        """Seconds to the end of the run, None while they are not known."""
        if self._last is None or len(self._seconds) < FEWEST_STEPS:
            return None
        steps = max(0, self._total - self._last[1])
        pauses = sum(
            self._rate([step for step, _ in past]) * statistics.median(s for _, s in past[-_PAUSES:])
            for past in self._pauses.values()
        )
        return steps * (statistics.median(self._seconds) + pauses)

    def _rate(self, steps: list[int]) -> float:
        """Pauses a step of those that came after `steps`. The last of them counts, not how long it is past."""
        first, count = (steps[0], len(steps) - 1) if len(steps) > 1 else (self._start, 1)
        return count / (steps[-1] - first) if steps[-1] > first else 0.0
