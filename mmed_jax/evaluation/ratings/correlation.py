"""Agreement of ratings: Kendall's tau-b and the slope of the runs' line, with bootstrap intervals.

The papers' figure prints both, "tau" and "k", for each metric beside human ratings; `slope` says what k is taken to be.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmed_jax.common.output_files import csv_text
from mmed_jax.evaluation.ratings.explanations import Key

Scores = Mapping[Key, float]  # of one rating
RESAMPLES = 1000
_CSV = (
    "rating",
    "with",
    "explanations",
    "questions",
    "tau_b",
    "low95",
    "high95",
    "slope",
    "slope_low95",
    "slope_high95",
    "slope_questions",
)


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b (Kendall 1945, Biometrika 33:239) of equally long ratings, ties allowed: -1 to 1.

    None where it is not defined: fewer than two, or all equal in one of them.
    """
    from scipy.stats import kendalltau

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if len(a) < 2 or np.all(a == a[0]) or np.all(b == b[0]):
        return None
    return float(kendalltau(a, b, variant="b").statistic)


def interval(
    a: Sequence[float], b: Sequence[float], groups: Sequence[object], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap of kendall(a, b), drawing whole groups: explanations of one question go together.

    Args:
      groups: of each rating, equal for those that belong together.
    Returns None where fewer than two groups leave a tau, or half of the draws have none.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    numbers = {group: n for n, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        return None
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=resamples)
    taus = _weighted(a, b, drawn[:, [numbers[g] for g in groups]].astype(np.float64))
    taus = taus[~np.isnan(taus)]
    if len(taus) * 2 < resamples:
        return None
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(low), float(high)


def _weighted(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """tau-b [R] of n ratings a, b [n], each counted weights[r, i] times (float64 [R, n]); nan where not defined.

    The sums over pairs are quadratic forms in the weights, a few rows of the pairs' matrix at a time.
    """
    sums = np.zeros((3, len(weights)))
    for start in range(0, len(a), 256):
        rows = slice(start, start + 256)
        x, y = np.sign(a[rows, None] - a), np.sign(b[rows, None] - b)  # [256, n]
        for k, form in enumerate((x * y, x * x, y * y)):
            sums[k] += np.einsum("rm,rm->r", weights[:, rows], weights @ form.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0] / np.sqrt(sums[1] * sums[2])


def rank_runs(values_gn: np.ndarray) -> np.ndarray:
    """Places of n runs within each of g questions: float64 [g, n], 1 for the lowest, n for the highest; equals share
    the mean of theirs."""
    below = (values_gn[:, :, None] > values_gn[:, None, :]).sum(-1)
    same = (values_gn[:, :, None] == values_gn[:, None, :]).sum(-1)
    return below + (same + 1) / 2


def slope(
    a_gn: np.ndarray, b_gn: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float | None, tuple[float, float] | None]:
    """(k, 95 % interval): the slope of the line through the runs, the rating a along x and b along y.

    The papers print k beside tau and do not say of what line. Taken here: within a question the runs are put in places
    from 1 to n by either rating, a run's point is the mean of its places, and a line is fitted through the runs' points
    by least squares. Two things speak for it: the figure has both ratings on such a relative scale of 1 to 6 for six
    models, and through the points read off its bars the line of GPT-4 on people has slope 1.04 (printed: 1.01), that of
    BERTScore 0.91 (0.82). A line through the places of single explanations could not have BLEU-1's 1.33, as both axes
    then spread alike and the slope is at most 1. Above 1, b separates the runs more clearly than a does.

    Args:
      a_gn, b_gn: ratings [questions, runs]. The interval is a percentile bootstrap over questions.

    Returns None for what is not defined: fewer than two runs, all alike in a; for the interval also one question only,
    or half of the draws without a slope.
    """
    if a_gn.shape[0] == 0 or a_gn.shape[1] < 2:
        return None, None
    x, y = rank_runs(a_gn), rank_runs(b_gn)
    (k,) = _slopes(x.mean(0, keepdims=True), y.mean(0, keepdims=True))
    if np.isnan(k) or len(x) < 2:
        return (None if np.isnan(k) else float(k)), None
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=resamples) / len(x)
    slopes = _slopes(drawn @ x, drawn @ y)
    slopes = slopes[~np.isnan(slopes)]
    if len(slopes) * 2 < resamples:
        return float(k), None
    low, high = np.quantile(slopes, [0.025, 0.975])
    return float(k), (float(low), float(high))


def _slopes(x_rn: np.ndarray, y_rn: np.ndarray) -> np.ndarray:
    """Least squares slopes [r] of y on x, row by row; nan where all x of a row are the same."""
    x, y = x_rn - x_rn.mean(1, keepdims=True), y_rn - y_rn.mean(1, keepdims=True)
    spread = (x * x).sum(1)
    spread[spread < 1e-12] = np.nan  # rounding of equal means
    return (x * y).sum(1) / spread


def _matrices(a: Scores, b: Scores, keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
    """Both ratings [questions, runs] of the questions of which all the runs of `keys` are rated twice."""
    runs = sorted({k[0] for k in keys})
    whole = [q for q, n in Counter(k[1:] for k in keys).items() if n == len(runs)]
    shape = len(whole), len(runs)
    return tuple(np.array([[r[run, *q] for run in runs] for q in whole], np.float64).reshape(shape) for r in (a, b))


def correlate(ratings: Mapping[str, Scores], *, resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """One row a pair of ratings, over the explanations that both rated.

    Each row: {"a", "b", "count": explanations, "items": questions, "tau", "interval95": [low, high], "slope",
    "slope_interval95", "slope_items": questions of which all these runs are rated}; None where not defined.
    """
    rows = []
    for a, b in itertools.combinations(ratings, 2):
        keys = sorted(set(ratings[a]) & set(ratings[b]))
        x, y = [ratings[a][k] for k in keys], [ratings[b][k] for k in keys]
        groups = [k[1:] for k in keys]
        tau = kendall(x, y)
        tau_interval = interval(x, y, groups, resamples=resamples, seed=seed) if tau is not None else None
        x_gn, y_gn = _matrices(ratings[a], ratings[b], keys)
        k, around = slope(x_gn, y_gn, resamples=resamples, seed=seed)
        rows.append(
            {
                "a": a,
                "b": b,
                "count": len(keys),
                "items": len(set(groups)),
                "tau": tau,
                "interval95": list(tau_interval) if tau_interval else None,
                "slope": k,
                "slope_interval95": list(around) if around else None,
                "slope_items": len(x_gn),
            }
        )
    return rows


def mean_ratings(ratings: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """{run: {rating: mean over its explanations}}."""
    out: dict[str, dict[str, float]] = {}
    for name, scores in ratings.items():
        for run in dict.fromkeys(k[0] for k in scores):
            values = [v for k, v in scores.items() if k[0] == run]
            out.setdefault(run, {})[name] = sum(values) / len(values)
    return out


def correlation_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV."""
    lines = []
    for r in rows:
        tau = (r["tau"], *(r["interval95"] or ("", "")))
        slope = (r["slope"], *(r["slope_interval95"] or ("", "")))
        lines.append((r["b"], r["a"], r["count"], r["items"], *tau, *slope, r["slope_items"]))
    return csv_text(_CSV, lines)


def correlation_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = [["rating", "with", "explanations", "questions", "tau-b", "95 % interval", "slope k", "95 % interval"]]
    for r in rows:
        cells = [_format(r[x]) for x in ("tau", "interval95", "slope", "slope_interval95")]
        lines.append([r["b"], r["a"], str(r["count"]), str(r["items"]), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


def _format(value: float | Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else "{:.3f} to {:.3f}".format(*value)
