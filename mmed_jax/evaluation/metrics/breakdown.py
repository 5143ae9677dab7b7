"""What results.json says beside accuracy by language: parts, order bias, normalisations, response language, metrics."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.comparison.runs import SCORES
from mmed_jax.evaluation.metrics.accuracy import cell
from mmed_jax.evaluation.metrics.intervals import short
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.scoring import NORMALISE, pick

Pairs = Sequence[tuple[Item, dict]]


def add(results: dict[str, Any], items: Sequence[Item], predictions: Sequence[dict], infos: dict[str, dict]) -> None:
    """Puts into `results`, as results.summarise made it, what follows from the pairs; `infos` is what load told.

    Every benchmark gets "benchmark_info", "published_average" (which of its numbers is the published one), "parts"
    ({part: cell}), "order_bias" and, for log-likelihoods of texts, "normalised" ({normalisation: accuracy}); every cell
    "response_language", the share of outputs in the language of the question among those whose language can be told,
    or None.
    """
    pairs = list(zip(items, predictions, strict=True))
    _response_language(results, pairs)
    results["order_bias"] = order_bias(pairs)
    for name, block in results["benchmarks"].items():
        mine = [p for p in pairs if p[0].benchmark == name]
        _response_language(block, mine)
        parts = {part: [p for p in mine if p[0].part == part] for part in dict.fromkeys(i.part for i, _ in mine)}
        block["parts"] = {
            part: {**cell(group), "response_language": _share(group)} for part, group in parts.items() if part
        }
        block["order_bias"] = order_bias(mine)
        if results["settings"]["score"] == "option":
            block["normalised"] = normalised(mine)
        block["benchmark_info"] = infos[name]
        whole = infos[name].get("published_average", "overall")
        block["published_average"] = whole


def _response_language(block: dict[str, Any], pairs: Pairs) -> None:
    block["overall"]["response_language"] = _share(pairs)
    for language, c in block["languages"].items():
        c["response_language"] = _share([p for p in pairs if p[0].language == language])


def _share(pairs: Pairs) -> float | None:
    told = [p["response_language"] == i.language for i, p in pairs if p["response_language"] is not None]
    return sum(told) / len(told) if told else None


def order_bias(pairs: Pairs) -> dict[str, Any] | None:
    """How much the place of an option matters, over the questions with one right letter; None when there are none.

    Returns:
      "letters": {letter: {"right", "correct", "accuracy" (of questions whose right letter it is), "answered",
      "answer_share" (of answers that are one letter)}}, "recall_std": the standard deviation of those accuracies (RStd
      of Zheng et al. 2023, arXiv:2309.03882), "share_distance": half the sum of |answer share - right share|, and
      "shuffled": only then is it the order, and not what the authors put where.
    """
    single = [(i, p) for i, p in pairs if i.options and "," not in i.answer]
    if not single:
        return None
    answered = [p["extracted"] for _, p in single if p["extracted"] and "," not in p["extracted"]]
    letters = {}
    for letter in sorted({k for i, _ in single for k in i.options}):
        mine = [p["correct"] for i, p in single if i.answer == letter]
        letters[letter] = {
            "right": len(mine),
            "correct": sum(mine),
            "accuracy": sum(mine) / len(mine) if mine else None,
            "answered": answered.count(letter),
            "answer_share": answered.count(letter) / len(answered) if answered else 0.0,
        }
    recalls = [c["accuracy"] for c in letters.values() if c["accuracy"] is not None]
    distance = sum(abs(c["answer_share"] - c["right"] / len(single)) for c in letters.values()) / 2
    return {
        "letters": letters,
        "count": len(single),
        "recall_std": statistics.pstdev(recalls),
        "share_distance": distance if answered else None,
        "shuffled": bool(single[0][0].order),
    }


def normalised(pairs: Pairs) -> dict[str, float]:
    """Accuracy of log-likelihoods under every normalisation; see modes.NORMALISE."""
    right = {n: sum(pick(i, p["loglikelihoods"], n) == i.answer for i, p in pairs) for n in NORMALISE}
    return {n: k / len(pairs) for n, k in right.items()}


def check_metrics(metrics: Sequence[str], bertscore_model: str | None) -> None:
    """Raises UserError, before anything is asked, for metrics that could not be computed afterwards."""
    from mmed_jax.evaluation.metrics.text_similarity import score_rationales

    if bertscore_model and not Path(bertscore_model).is_dir():
        raise UserError(f"--bertscore_model={bertscore_model}: no such folder")
    score_rationales([], [m for m in metrics if m != "bertscore" or not bertscore_model])
    score_rationales([("en", "a b", "b c")], [m for m in metrics if m != "bertscore"])


def rationales(
    results: dict[str, Any],
    predictions: Sequence[dict],
    metrics: Sequence[str],
    checked: bool,
    model: str | None,
    folder: Path | None = None,
) -> None:
    """Adds "rationale" to every benchmark, rationale.average's {metric: {language: cell, .., "average": cell}},
    "rationales_empty" (how many of them were), and the settings.

    `checked`: only items whose reference was checked and passed by people. `folder`: gets the scores of each item
    (rationale_scores.jsonl), by which runs are compared. Raises UserError (evaluation.rationale).
    """
    from mmed_jax.evaluation.metrics.text_similarity import average, pairs_of, score_rationales, with_both

    lines = []
    for name, block in results["benchmarks"].items():
        mine = with_both((p for p in predictions if p["benchmark"] == name), checked)
        rows = score_rationales(pairs_of(mine), metrics, bertscore_model=model)
        block["rationale"] = average(rows)
        block["rationales_empty"] = sum(not p["generated_rationale"].strip() for p in mine)
        for p, row in zip(mine, rows, strict=True):
            scores = {m: row[m] for m in metrics}
            lines.append({"benchmark": name, "id": p["id"], "language": p["language"], "scores": scores})
    results["rationale_settings"] = {"metrics": list(metrics), "checked": checked, "bertscore_model": model}
    if folder:
        jsonl.write_lines(folder / SCORES, map(jsonl.dump_line, lines))


def table(results: dict[str, Any]) -> str:
    """Lines of text: parts, normalisations, order bias and rationale metrics, where there are any."""
    lines = []
    for name, block in results["benchmarks"].items():
        for part, c in block["parts"].items():
            low, high = c["interval95"]
            lines.append(f"{name}/{part}: {c['accuracy']:.1%} of {c['count']:,} ({low:.1%} to {high:.1%})")
        if "normalised" in block:
            shown = ", ".join(f"{n} {v:.1%}" for n, v in block["normalised"].items())
            lines.append(f"{name}: log-likelihoods divided by {shown}")
        bias = block["order_bias"]
        if bias and bias["shuffled"]:
            shown = ", ".join(
                f"{k} {'-' if c['accuracy'] is None else format(c['accuracy'], '.1%')} ({c['answer_share']:.1%})"
                for k, c in bias["letters"].items()
            )
            spread = f"spread {bias['recall_std']:.3f}"
            lines.append(f"{name}: right where the answer is (share of answers) {shown}; {spread}")
        if block.get("rationale"):
            lines += ["", f"{name}: rationales, times 100, with 95 % intervals", *_metrics(block["rationale"])]
    return "\n".join(lines).strip("\n")


def _metrics(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Lines of a table of rationale.average's cells, the interval below each mean."""
    columns = columns_of(found)
    rows = [["", *columns]]
    for metric, by in found.items():
        cells = [by.get(c) for c in columns]
        rows.append([metric, *("-" if c is None else f"{100 * c['mean']:.2f}" for c in cells)])
        between = ["" if c is None else short(c["interval95"]) for c in cells]
        rows += [["", *between]] if any(between) else []
    rows.append(["items", *(f"{max(by[c]['count'] for by in found.values() if c in by):,}" for c in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(v.rjust(w) if i else v.ljust(w) for i, (v, w) in enumerate(zip(row, widths))).rstrip() for row in rows
    ]


def columns_of(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Languages of rationale.average's cells in their order, and "average" where there are several."""
    languages = [c for c in LANGUAGES if any(c in by for by in found.values())]
    return [*languages, "average"] if len(languages) > 1 else languages
