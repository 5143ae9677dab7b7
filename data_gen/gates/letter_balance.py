"""Where the right answers stand, over a whole set: sixty in a hundred at "B" teach a model to say B."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Balance(NamedTuple):
    """Right letters of one source, language and number of options. `share` is the largest letter's; `skewed` whether it
    is above the limit and more than chance would do (chi-square over the letters, p < 0.001)."""

    source: str
    language: str
    options: int
    counts: dict[str, int]
    letter: str
    share: float
    skewed: bool


class LetterBalance:
    """Counts single right answers with `add`; `table` tells which parts of the set lean to one letter."""

    def __init__(self, excess: float = 0.15) -> None:
        """`excess`: how far above 1 / options a letter's share may be."""
        self.excess = excess
        self._counts: dict[tuple[str, str, int], Counter] = {}

    def add(self, record: dict) -> None:
        """Takes a record; other kinds and several right answers are left out."""
        if "options" in record and "," not in record["answer_idx"]:
            place = record["source"], record["language"], len(record["options"])
            self._counts.setdefault(place, Counter())[record["answer_idx"]] += 1

    def table(self) -> list[Balance]:
        """One entry per source, language and number of options, sorted."""
        return [_balance(*place, counts, self.excess) for place, counts in sorted(self._counts.items())]


def _balance(source: str, language: str, size: int, counts: Counter, excess: float) -> Balance:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:size]
    observed = np.array([counts[letter] for letter in letters], float)
    expected = observed.sum() / size
    statistic = float(((observed - expected) ** 2 / expected).sum())
    best = int(observed.argmax())
    share = float(observed[best] / observed.sum())
    skewed = share > 1 / size + excess and statistic > _critical(size - 1)
    return Balance(source, language, size, {c: counts[c] for c in letters}, letters[best], share, skewed)


def _critical(freedom: int) -> float:
    """Chi-square value of p = 0.001, by Wilson and Hilferty's approximation (3.0902 is the normal quantile)."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + 3.0902 * a**0.5) ** 3


def skewed(table: Iterable[Balance]) -> list[Balance]:
    """The parts that lean to one letter."""
    return [b for b in table if b.skewed]
