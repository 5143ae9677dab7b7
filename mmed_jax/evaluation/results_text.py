"""What `evaluate` prints of its results: tables and notes as lines of text."""

from collections.abc import Sequence
from typing import Any

from mmed_jax.evaluation.metrics.intervals import short
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.results_json import has_parse_rate, rationale_columns, rows, sample_note


def accuracy_table(results: dict[str, Any]) -> str:
    """The results as lines of text."""
    chances, read = "chance" in results["overall"], has_parse_rate(results)
    written = results.get("mode") != "loglikelihood"
    head = ["benchmark", "language", "items", "accuracy", "95 % interval"]
    head += [*(["chance"] if chances else []), *(["parsed"] if read else []), *(["cut"] if written else [])]
    lines = [head]
    for name, language, c in rows(results):
        low, high = c["interval95"]
        line = [name, language, str(c["count"]), f"{c['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
        line += [f"{c['chance']:.1%}"] if chances else []
        line += [f"{c['parse_rate']:.1%}"] if read else []
        lines.append([*line, str(c["cut"])] if written else line)
    for name, block in results["benchmarks"].items():
        if len(block["languages"]) > 1:
            low, high = block["mean_interval95"]
            mean = [name, "mean", "", f"{block['mean_over_languages']:.1%}", f"{low:.1%} to {high:.1%}"]
            at = max(i for i, line in enumerate(lines) if line[0] == name)
            lines.insert(at + 1, mean + [""] * (len(head) - len(mean)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = (0, 1)
    shown = [
        "  ".join(v.ljust(w) if i in left else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    ]
    return "\n".join([*([limit] if (limit := sample_note(results)) else []), *shown])


def breakdown_table(results: dict[str, Any]) -> str:
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
            lines += ["", f"{name}: rationales, times 100, with 95 % intervals", *_rationale_table(block["rationale"])]
    return "\n".join(lines).strip("\n")


def _rationale_table(metrics: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Lines of a table of text_similarity.average's cells, the interval below each mean."""
    columns = rationale_columns(metrics)
    rows = [["", *columns]]
    for metric, by in metrics.items():
        cells = [by.get(c) for c in columns]
        rows.append([metric, *("-" if c is None else f"{100 * c['mean']:.2f}" for c in cells)])
        between = ["" if c is None else short(c["interval95"]) for c in cells]
        rows += [["", *between]] if any(between) else []
    rows.append(["items", *(f"{max(by[c]['count'] for by in metrics.values() if c in by):,}" for c in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(v.rjust(w) if i else v.ljust(w) for i, (v, w) in enumerate(zip(row, widths))).rstrip() for row in rows
    ]


def notes(results: dict[str, Any], items: Sequence[Item], usage: Sequence[str] = ()) -> list[str]:
    """What a reader of the tables should know, a line each; `usage` are the lines of a paid model."""
    lines = []
    for name, info in results["data"].items():
        if info["needs_image"]:
            lines.append(f"left out   {info['needs_image']:,} of {name}: they need an image")
        if n := info["duplicates"]:
            lines.append(
                f"note       {n:,} question{'s' if n > 1 else ''} of {name} {'are' if n > 1 else 'is'} there twice"
            )
        several = sum("," in i.answer for i in items if i.benchmark == name)
        if results["settings"]["score"] and several:
            lines.append(f"note       {several:,} of {name} have several right answers, which one pick never is: wrong")
    lines += usage
    for name, block in results["benchmarks"].items():
        if n := block.get("rationales_empty"):
            what, are = ("rationales", "are empty and score 0") if n > 1 else ("rationale", "is empty and scores 0")
            lines.append(f"note       {n:,} {what} of {name} {are}")
    return lines
