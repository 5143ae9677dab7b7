"""Agreement of ratings: Kendall's tau-b with bootstrap intervals, and what each rating says of the runs."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmed_jax.evaluation.rated import Key

Scores = Mapping[Key, float]  # of one rating
RESAMPLES = 1000


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


def correlate(ratings: Mapping[str, Scores], *, resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """One row a pair of ratings, over the explanations that both rated.

    Each row: {"a", "b", "count": explanations, "items": questions, "tau", "interval95": [low, high]}; tau and interval
    are None where they are not defined.
    """
    rows = []
    for a, b in itertools.combinations(ratings, 2):
        keys = sorted(set(ratings[a]) & set(ratings[b]))
        x, y = [ratings[a][k] for k in keys], [ratings[b][k] for k in keys]
        groups = [k[1:] for k in keys]
        tau = kendall(x, y)
        found = interval(x, y, groups, resamples=resamples, seed=seed) if tau is not None else None
        rows.append({
            "a": a, "b": b, "count": len(keys), "items": len(set(groups)), "tau": tau,
            "interval95": list(found) if found else None,
        })  # fmt: skip
    return rows


def means(ratings: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """{run: {rating: mean over its explanations}}."""
    out: dict[str, dict[str, float]] = {}
    for name, scores in ratings.items():
        for run in dict.fromkeys(k[0] for k in scores):
            values = [v for k, v in scores.items() if k[0] == run]
            out.setdefault(run, {})[name] = sum(values) / len(values)
    return out


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = [["rating", "with", "explanations", "questions", "tau-b", "95 % interval"]]
    for r in rows:
        tau = "-" if r["tau"] is None else f"{r['tau']:.3f}"
        between = "-" if r["interval95"] is None else "{:.3f} to {:.3f}".format(*r["interval95"])
        lines.append([r["b"], r["a"], str(r["count"]), str(r["items"]), tau, between])
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return "\n".join(
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )
