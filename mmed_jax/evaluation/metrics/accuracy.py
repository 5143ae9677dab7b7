"""Numbers from predictions: accuracy with interval, parse rate and chance, per language and benchmark."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.metrics.intervals import mean_interval, wilson
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.llm_api.finish_reasons import was_cut

# How `confusion` calls an answer of several letters, and one that can't be read.
SEVERAL, UNPARSED = "several", "unparsed"


def chance(item: Item) -> float:
    """The probability that one option picked blindly is right: 1 / options, 0 where several letters are asked for."""
    if not item.options or "," in item.answer:
        return 0.0
    return 1 / len(item.options)


def cell(pairs: Sequence[tuple[Item, dict]]) -> dict[str, Any]:
    """Counts and rates over (item, prediction) pairs; unparsed answers are wrong and stay in the count."""
    count, correct = len(pairs), sum(p["correct"] for _, p in pairs)
    low, high = wilson(correct, count)
    out = {
        "count": count,
        "correct": correct,
        "accuracy": correct / count,
        "interval95": [low, high],
        "cut": sum(was_cut(p) for _, p in pairs),
    }
    if pairs[0][0].options:
        parsed = sum(p["extracted"] is not None for _, p in pairs)
        out |= {"parsed": parsed, "parse_rate": parsed / count, "chance": sum(chance(i) for i, _ in pairs) / count}
    return out


def by_language(pairs: Sequence[tuple[Item, dict]]) -> dict[str, dict[str, Any]]:
    """One cell per language, in the order of schema.LANGUAGES."""
    groups = {lang: [p for p in pairs if p[0].language == lang] for lang in LANGUAGES}
    return {lang: cell(group) for lang, group in groups.items() if group}


def confusion(predictions: Sequence[dict]) -> dict[str, dict[str, int]] | None:
    """{right letter: {answered letter: items}}; None where there are no letters.

    Questions with several right letters are the row "several", answers of several letters the column "several",
    whether they are the right ones or not; "unparsed" is the column of answers that can't be read. Letters are those
    shown, in order; every row has every column.
    """
    letters = sorted({k for p in predictions for k in p.get("options") or ()})
    if not letters:
        return None
    pairs = Counter((_label(p["answer"]), _label(p["extracted"])) for p in predictions)
    keys = [k for k in (*letters, SEVERAL) if any(key == k for key, _ in pairs)]
    columns = [k for k in (*letters, SEVERAL) if k in letters or any(got == k for _, got in pairs)]
    return {key: {got: pairs[key, got] for got in (*columns, UNPARSED)} for key in keys}


def _label(letters: str | None) -> str:
    return UNPARSED if letters is None else SEVERAL if "," in letters else letters


def summarise(items: Sequence[Item], predictions: Sequence[dict]) -> dict[str, Any]:
    """The result part of results.json: {"overall", "languages", "mean_over_languages", "mean_interval95", "benchmarks",
    "rules"}.

    "overall" pools all items; "mean_over_languages" is the unweighted mean that the MMedBench tables print, its
    interval intervals.mean_interval's. Benchmarks have "confusion" besides.
    """
    pairs = list(zip(items, predictions, strict=True))
    names = list(dict.fromkeys(i.benchmark for i in items))
    benchmarks = {}
    for name in names:
        mine = [p for p in pairs if p[0].benchmark == name]
        benchmarks[name] = {**_block(mine), "confusion": confusion([p for _, p in mine])}
    rules = Counter(p["rule"] for p in predictions)
    return {**_block(pairs), "benchmarks": benchmarks, "rules": dict(rules.most_common())}


def _block(pairs: Sequence[tuple[Item, dict]]) -> dict[str, Any]:
    languages = by_language(pairs)
    mean = sum(c["accuracy"] for c in languages.values()) / len(languages)
    interval = mean_interval([(c["correct"], c["count"]) for c in languages.values()])
    return {
        "overall": cell(pairs),
        "languages": languages,
        "mean_over_languages": mean,
        "mean_interval95": list(interval),
    }
