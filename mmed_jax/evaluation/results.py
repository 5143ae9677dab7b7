"""Numbers from predictions: accuracy with interval, parse rate and chance, per language and benchmark."""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmed_jax.data.schema import LANGUAGES
from mmed_jax.evaluation.answers import extract, is_correct
from mmed_jax.evaluation.benchmarks import Item

Z95 = 1.959963984540054


def wilson(correct: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22:209); (0, 1) for no items."""
    if not count:
        return 0.0, 1.0
    p, zz = correct / count, z * z
    centre = (p + zz / (2 * count)) / (1 + zz / count)
    half = z / (1 + zz / count) * math.sqrt(p * (1 - p) / count + zz / (4 * count * count))
    # At 0 and n of n the bound is exactly 0 or 1; rounding would give 1e-17.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == count else centre + half)


def fold(text: str) -> str:
    """For exact match of answers: NFKC, casefolded, whitespace squeezed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def judge(item: Item, output: str) -> dict[str, Any]:
    """{"extracted", "rule", "correct"} of one output: letters for multiple choice, exact match for instructions."""
    if not item.options:
        return {"extracted": None, "rule": "exact_match", "correct": fold(output) == fold(item.answer)}
    letters, rule = extract(output, item.options, item.language)
    return {"extracted": letters, "rule": rule, "correct": is_correct(letters, item.answer)}


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
        "cut": sum(p["finish_reason"] == "length" for _, p in pairs),
    }
    if pairs[0][0].options:
        parsed = sum(p["extracted"] is not None for _, p in pairs)
        out |= {"parsed": parsed, "parse_rate": parsed / count, "chance": sum(chance(i) for i, _ in pairs) / count}
    return out


def by_language(pairs: Sequence[tuple[Item, dict]]) -> dict[str, dict[str, Any]]:
    """One cell per language, in the order of schema.LANGUAGES."""
    groups = {lang: [p for p in pairs if p[0].language == lang] for lang in LANGUAGES}
    return {lang: cell(group) for lang, group in groups.items() if group}


def summarise(items: Sequence[Item], predictions: Sequence[dict]) -> dict[str, Any]:
    """The result part of results.json: {"overall", "languages", "mean_over_languages", "benchmarks", "rules"}.

    "overall" pools all items; "mean_over_languages" is the unweighted mean that the MMedBench tables print.
    """
    pairs = list(zip(items, predictions, strict=True))
    names = list(dict.fromkeys(i.benchmark for i in items))
    benchmarks = {n: _block([p for p in pairs if p[0].benchmark == n]) for n in names}
    rules = Counter(p["rule"] for p in predictions)
    return {**_block(pairs), "benchmarks": benchmarks, "rules": dict(rules.most_common())}


def _block(pairs: Sequence[tuple[Item, dict]]) -> dict[str, Any]:
    languages = by_language(pairs)
    mean = sum(c["accuracy"] for c in languages.values()) / len(languages)
    return {"overall": cell(pairs), "languages": languages, "mean_over_languages": mean}


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


def table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    parsed = "parse_rate" in results["overall"]
    head = ["benchmark", "language", "items", "accuracy", "95 % interval"]
    head += [*(["chance", "parsed"] if parsed else []), "cut"]
    lines = [head]
    for name, language, c in rows(results):
        low, high = c["interval95"]
        line = [name, language, str(c["count"]), f"{c['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
        line += [f"{c['chance']:.1%}", f"{c['parse_rate']:.1%}"] if parsed else []
        lines.append([*line, str(c["cut"])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = (0, 1)
    return "\n".join(
        "  ".join(v.ljust(w) if i in left else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )
