"""How long a run goes on between two saves by the clock: a fixed time, or the one that costs least."""

import math
import statistics
from collections import deque

_FIRST_SAVE_SECONDS = 1.0  # taken before a save has been measured: early, so that it soon is


class SaveInterval:
    """Seconds between two saves.

    "auto" is T = sqrt(2 C M) of Young (1974, doi 10.1145/361147.361115; the first order of Daly, 2006): with C seconds
    for which a save holds the steps up and M seconds between two interruptions of the whole run, the time for saves
    and that for steps taken again are least together. C is the median of the last five saves of this start.

    Args:
      every_minutes: 0 = no saves by the clock, or "auto".
      mean_hours_between_interruptions: M, read with "auto" alone.
    """

    def __init__(self, every_minutes: float | str, mean_hours_between_interruptions: float):
        self._fixed = None if isinstance(every_minutes, str) else every_minutes * 60
        self._mean_seconds = mean_hours_between_interruptions * 3600
        self._measured: deque[float] = deque(maxlen=5)

    def add(self, blocked_seconds: float) -> None:
        """Counts a save that held the steps up for so long."""
        self._measured.append(blocked_seconds)

    @property
    def seconds(self) -> float:
        """The time from a save to the next; 0 = none by the clock."""
        if self._fixed is not None:
            return self._fixed
        cost = statistics.median(self._measured) if self._measured else _FIRST_SAVE_SECONDS
        return math.sqrt(2 * cost * self._mean_seconds)
