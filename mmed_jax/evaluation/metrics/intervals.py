"""How sure a number is: Wilson's interval, that of a mean of proportions, bootstrap over items, McNemar's exact test.

The bootstrap draws the items of every group (a language, an exam) with replacement, takes the mean of each group and
the mean of those, as the papers average. Drawing n of n items is drawing how often each different value comes up, a
multinomial, so that is what is drawn: the result depends on the seed and on how many items have which value, never on
their order. Groups are drawn independently: parallel translations of one question count as different questions.
Intervals are percentiles of the draws (Efron 1979, Ann. Stat. 7:1); where all items of a group are right or all wrong,
that group adds no spread, and a handful of items give one that is too narrow.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # numbers held at once


@functools.lru_cache(maxsize=4096)  # of published rows the same again and again; scipy makes a test's p-value for each
def wilson(correct: int, count: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209); (0, 1) for no items."""
    if not count:
        return 0.0, 1.0
    low, high = _binomial(correct, count).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def mean_of_groups(groups: Sequence[Sequence[float]]) -> float:
    """The unweighted mean of the groups' means; every group holds at least one value."""
    return float(np.mean([np.mean(np.asarray(g, np.float64)) for g in groups]))


def bootstrap(groups: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean_of_groups by resampling items within each group.

    Args:
      groups: values per item (0 or 1 for accuracy), a sequence for each group, none of them empty.
    """
    columns = [np.asarray(group, np.float64)[:, None] for group in groups]
    low, high = bootstrap_columns(columns, resamples=resamples, seed=seed)[1][:, 0]
    return float(low), float(high)


def bootstrap_columns(
    groups: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """95 % intervals of several scores of the same items; an item is drawn with all of its scores.

    Args:
      groups: float64 [items, scores] for each group, none of them without items, all with the same scores.

    Returns:
      (of every group's means, float64 [2, scores] each: low and high; of the mean of the groups' means, the same).
    """
    rng = np.random.Generator(np.random.Philox(seed))
    total, of_groups = 0.0, []
    for group in groups:
        values, counts = np.unique(group, axis=0, return_counts=True)
        n = int(counts.sum())
        means = np.empty((resamples, values.shape[1]))
        rows = max(1, _AT_ONCE // len(values))
        for start in range(0, resamples, rows):
            part = slice(start, min(start + rows, resamples))
            means[part] = rng.multinomial(n, counts / n, size=part.stop - part.start) @ values / n
        total = total + means
        of_groups.append(np.quantile(means, [0.025, 0.975], axis=0))
    return of_groups, np.quantile(total / len(groups), [0.025, 0.975], axis=0)


def mean_interval(cells: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % interval of the unweighted mean of proportions, each (correct, count); Wilson's where there is one.

    Wilson's intervals (l, u) of the proportions p are combined by the method of variance estimates recovery (MOVER;
    Newcombe 1998, Stat. Med. 17:873; Zou and Donner 2008, Stat. Med. 27:1693): the mean of p, less the square root of
    the sum of (p - l)^2 over the number of cells, and more that of (u - p)^2. It has a width where all cells have all
    right or none, and never leaves 0 to 1.
    """
    bounds = [wilson(k, n) for k, n in cells]
    shares = [k / n for k, n in cells]
    mean = math.fsum(shares) / len(cells)
    below = math.hypot(*(p - low for p, (low, _) in zip(shares, bounds))) / len(cells)
    above = math.hypot(*(high - p for p, (_, high) in zip(shares, bounds))) / len(cells)
    return bounds[0] if len(cells) == 1 else (mean - below, mean + above)


def paired_difference(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(difference, low, high) of mean_of_groups(b) - mean_of_groups(a), 95 % by paired bootstrap.

    Args:
      a, b: scores of two runs on the same items: equal groups, and a[g][i] and b[g][i] belong to one item. An item is
        drawn with both of its scores, so what makes it hard or easy for both does not widen the interval.
    """
    differences = [np.asarray(y, np.float64) - np.asarray(x, np.float64) for x, y in zip(a, b, strict=True)]
    return mean_of_groups(differences), *bootstrap(differences, resamples=resamples, seed=seed)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test (McNemar 1947, Psychometrika 12:153).

    Args:
      only_a, only_b: items that only the one or only the other run answered rightly. If the runs were equally good,
        each such item would be a fair coin's toss: p is twice the smaller tail of Binomial(only_a + only_b, 1/2), at
        most 1.
    """
    count = only_a + only_b
    return float(_binomial(min(only_a, only_b), count).pvalue) if count else 1.0


def _binomial(hits: int, count: int) -> Any:
    from scipy.stats import binomtest  # a second of import, which only who computes intervals pays

    return binomtest(hits, count)


def short(interval: Sequence[float] | None) -> str:
    """An interval of shares in per cent, as "41.2-43.9"; "" for None."""
    return "" if interval is None else "{:.1f}-{:.1f}".format(*(100 * x for x in interval))


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of sum(numerators) / sum(denominators) over items that were drawn with both; None for one item.

    The variance of a ratio of means by linearisation (Cochran 1977, Sampling Techniques, 3rd ed., 6.5), with Student's
    t of n - 1 degrees of freedom: bits per byte are such a ratio, over documents of very different lengths.
    """
    y, x = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    n = len(y)
    if n < 2:
        return None
    from scipy.stats import t

    ratio = y.sum() / x.sum()
    residuals = y - ratio * x
    error = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(x.sum())
    width = float(t.ppf(0.975, n - 1)) * error
    return float(ratio) - width, float(ratio) + width
