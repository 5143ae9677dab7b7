"""How far two raters agree who say yes or no to the same items."""

from collections.abc import Sequence
from typing import NamedTuple


class Agreement(NamedTuple):
    """`items` both rated; `share` of them judged alike; Cohen's `kappa` (1960, Educ. Psychol. Meas. 20:37), None where
    chance alone would make both judge alike (each said only yes, or only no)."""

    items: int
    share: float
    kappa: float | None


def agreement(first: Sequence[bool], second: Sequence[bool]) -> Agreement:
    """Agreement of two raters over the same items, in the same order.

    Raises ValueError where one of the two rated more items.
    """
    n = len(first)
    alike = sum(a == b for a, b in zip(first, second, strict=True))
    if not n:
        return Agreement(0, 0.0, None)
    yes = sum(first) * sum(second)
    no = (n - sum(first)) * (n - sum(second))
    # kappa = (share - chance) / (1 - chance), in whole numbers.
    rest = n * n - yes - no
    return Agreement(n, alike / n, (n * alike - yes - no) / rest if rest else None)
