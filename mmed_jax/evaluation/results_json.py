"""results.json: accuracy, its breakdowns and the metrics of rationales, from the lines of predictions.jsonl."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.metrics.accuracy import cell
from mmed_jax.evaluation.metrics.accuracy import summarise as summarise_accuracy
from mmed_jax.evaluation.metrics.order_bias import order_bias
from mmed_jax.evaluation.metrics.text_similarity import average, pairs_of, score_rationales, with_both
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.scoring import NORMALISE, pick

SCHEMA = 2
SCORES = "rationale_scores.jsonl"  # beside results.json: the metrics of each rationale
DESCRIPTIONS = {
    "mcq": "Accuracy: the letters read from the generated answer are exactly the right ones",
    "instruction": "Exact match: the generated answer equals the reference text (NFKC, case and spaces aside)",
    "letter": "Accuracy: the right letter has the largest log-likelihood",
    "option": "Accuracy: the right option's text has the largest log-likelihood",
}

Pairs = Sequence[tuple[Item, dict]]


def summarise(
    items: Sequence[Item],
    predictions: Sequence[dict],
    *,
    settings: dict[str, Any],
    model: dict[str, Any],
    data: dict[str, dict],
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All of results.json but the metrics of rationales.

    Args:
      predictions: lines of predictions.jsonl, one for each item.
      settings: of the evaluation. model: which one it was. data: {benchmark: what is known of its data}.
      usage: further fields, as of a paid model.
    """
    pairs = list(zip(items, predictions, strict=True))
    results = {
        "schema": SCHEMA,
        "metric": DESCRIPTIONS[settings["score"] or settings["kind"]],
        **{k: settings[k] for k in ("mode", "prompt_family", "few_shot", "shuffle_seed", "book")},
        "model": model,
        **(usage or {}),
        "settings": settings,
        "prompts_sha256": settings["prompts_sha256"],
        "data": data,
        **summarise_accuracy(items, predictions),
    }
    _add_breakdowns(results, pairs, data)
    return results


def _add_breakdowns(results: dict[str, Any], pairs: Pairs, data: dict[str, dict]) -> None:
    """Puts into `results` what else follows from the pairs; `data`: what results.json says of each benchmark's data.

    Every benchmark gets "benchmark_info", "published_average" (which of its numbers is the published one), "parts"
    ({part: cell}), "order_bias" and, for log-likelihoods of texts, "normalised" ({normalisation: accuracy}); every cell
    "response_language", the share of outputs in the language of the question among those whose language can be told,
    or None.
    """
    _response_language(results, pairs)
    results["order_bias"] = order_bias(pairs)
    for name, block in results["benchmarks"].items():
        mine = [p for p in pairs if p[0].benchmark == name]
        _response_language(block, mine)
        parts = {part: [p for p in mine if p[0].part == part] for part in dict.fromkeys(i.part for i, _ in mine)}
        block["parts"] = {
            part: {**cell(group), "response_language": _share_in_its_language(group)}
            for part, group in parts.items()
            if part
        }
        block["order_bias"] = order_bias(mine)
        if results["settings"]["score"] == "option":
            block["normalised"] = _accuracy_by_normalisation(mine)
        block["benchmark_info"] = data[name]
        block["published_average"] = data[name].get("published_average", "overall")


def _response_language(block: dict[str, Any], pairs: Pairs) -> None:
    block["overall"]["response_language"] = _share_in_its_language(pairs)
    for language, c in block["languages"].items():
        c["response_language"] = _share_in_its_language([p for p in pairs if p[0].language == language])


def _share_in_its_language(pairs: Pairs) -> float | None:
    matches = [p["response_language"] == i.language for i, p in pairs if p["response_language"] is not None]
    return sum(matches) / len(matches) if matches else None


def _accuracy_by_normalisation(pairs: Pairs) -> dict[str, float]:
    """Accuracy of log-likelihoods under every normalisation; see scoring.NORMALISE."""
    right = {n: sum(pick(i, p["loglikelihoods"], n) == i.answer for i, p in pairs) for n in NORMALISE}
    return {n: k / len(pairs) for n, k in right.items()}


def add_rationale_metrics(
    results: dict[str, Any],
    predictions: Sequence[dict],
    metrics: Sequence[str],
    checked: bool,
    model: str | None,
    folder: Path | None = None,
) -> None:
    """Adds "rationale" to every benchmark, text_similarity.average's {metric: {language: cell, .., "average": cell}},
    "rationales_empty" (how many of them were), and the settings.

    `checked`: only items whose reference was checked and passed by people. `folder`: gets the scores of each item
    (rationale_scores.jsonl), by which runs are compared. Raises UserError (text_similarity.score_rationales).
    """
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


# ---- Read by the tables and the page --------------------------------------------------------------------------------


def rows(results: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(benchmark, language, cell) lines of a table: every benchmark's languages, its total, and the total of all."""
    out = []
    for name, block in results["benchmarks"].items():
        out += [(name, lang, c) for lang, c in block["languages"].items()]
        if len(block["languages"]) > 1:
            out.append((name, "all", block["overall"]))
    if len(results["benchmarks"]) > 1:
        out.append(("all", "all", results["overall"]))
    return out


def has_parse_rate(results: dict[str, Any]) -> bool:
    """Whether answers are read from text: not when log-likelihoods are compared, nor for exact match."""
    return "parse_rate" in results["overall"] and results.get("mode") != "loglikelihood"


def sample_note(results: dict[str, Any]) -> str:
    """What has to be said of a run with --limit; "" of others."""
    limit = results.get("settings", {}).get("limit")
    return f"a sample (--limit={limit}): the first {limit} of each language and part, no test set" if limit else ""


def rationale_columns(metrics: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Languages of text_similarity.average's cells in their order, and "average" where there are several."""
    languages = [c for c in LANGUAGES if any(c in by for by in metrics.values())]
    return [*languages, "average"] if len(languages) > 1 else languages
