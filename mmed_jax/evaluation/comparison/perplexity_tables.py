"""Bits per byte of runs beside each other, by language, and their differences over the documents that both have scored.

Runs stand in one table when their windows were alike. A document's difference is of its nats, over the bytes of the
text: models of other tokenizers are compared too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.common.html_page import Cell, Row
from mmed_jax.common.html_page import render as render_page
from mmed_jax.common.output_files import csv_text
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.comparison.render import MODELS, align, describe_run
from mmed_jax.evaluation.comparison.runs import Run
from mmed_jax.evaluation.metrics.intervals import ratio_interval
from mmed_jax.evaluation.perplexity.summary import KIND, ordered_languages

ALL = "all"
NOTE = (
    "Bits per byte of text, lower is better; below them 95 % intervals over documents. Differences are second minus "
    "first over the documents that both have scored, with intervals of the paired difference."
)
_HEAD = ("", "documents", "first", "second", "second - first", "95 % interval")
_CSV = (
    "scored,name,language,bits_per_byte,low,high,loss,perplexity,documents,tokens,bytes,tuning,trained_parameters,base"
)
_DIFFERENCES = "scored,first,other,language,documents,first_bits_per_byte,other_bits_per_byte,difference,low,high"


@dataclass(frozen=True)
class BitsDifference:
    """`other` minus `first` in a language or ALL, in bits per byte; `bits` are those of both. interval: of several."""

    first: str
    other: str
    language: str
    documents: int
    bits: tuple[float, float]
    difference: float
    interval: tuple[float, float] | None


@dataclass
class BitsTable:
    """Runs whose windows were alike; columns are languages, and ALL where there are several."""

    conditions: str
    runs: list[Run]
    columns: list[str]
    differences: list[BitsDifference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cell(self, run: Run, column: str) -> dict[str, Any] | None:
        """What results.json counts, None where the run has none of that language or no bytes are known."""
        c = run.results["overall"] if column == ALL else run.results["languages"].get(column)
        return c if c and c["bits_per_byte"] is not None else None


def is_perplexity(run: Run) -> bool:
    """Whether an evaluation scored texts."""
    return run.results.get("kind") == KIND


def compare_bits(runs: Sequence[Run]) -> list[BitsTable]:
    """The tables of runs of --perplexity.

    Raises:
      UserError: a run of another kind; two runs of one table have no document in common, or one with other bytes.
    """
    if others := [run.name for run in runs if not is_perplexity(run)]:
        texts = next(run.name for run in runs if is_perplexity(run))
        raise UserError(f"{texts} has scored texts and {others[0]} was asked questions; compare runs of one kind")
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(run.results["data"]["rule"], []).append(run)
    return [_table(conditions, there) for conditions, there in alike.items()]


def _table(conditions: str, runs: list[Run]) -> BitsTable:
    columns = ordered_languages([k for run in runs for k in run.results["languages"]])
    table = BitsTable(conditions, runs, [*columns, *([ALL] if len(columns) > 1 else [])])
    for other in runs[1:]:
        table.differences += _differences(runs[0], other, columns)
        common = sum(d.documents for d in table.differences if d.other == other.name and d.language != ALL)
        sizes = [len(run.lines) for run in (runs[0], other)]
        if sizes != [common, common]:
            over = f"{common:,} common documents of {sizes[0]:,} and {sizes[1]:,}"
            table.notes.append(f"{runs[0].name}, {other.name}: differences are over {over}")
    if len({run.settings.get("dtype") for run in runs}) > 1:
        shown = ", ".join(f"{run.name} {run.settings.get('dtype')}" for run in runs)
        table.notes.append(f"they were computed in: {shown}")
    return table


def _differences(a: Run, b: Run, columns: Sequence[str]) -> list[BitsDifference]:
    of_b = {line["id"]: line for line in b.lines}
    pairs = [(line, of_b[line["id"]]) for line in a.lines if line["id"] in of_b]
    if not pairs:
        raise UserError(f"{a.name} and {b.name}: no document in common; compare runs over the same texts")
    for mine, yours in pairs:
        for what in ("bytes", "language"):
            if mine[what] != yours[what]:
                raise UserError(
                    f"{a.name} and {b.name}: document {mine['id']} has the {what} {mine[what]} in one and "
                    f"{yours[what]} in the other; the runs have scored different texts"
                )
    groups = {k: [p for p in pairs if p[0]["language"] == k] for k in columns}
    groups = {k: p for k, p in groups.items() if sum(mine["bytes"] for mine, _ in p)}
    if len(groups) > 1:
        groups[ALL] = [p for group in groups.values() for p in group]
    return [_difference(a.name, b.name, language, group) for language, group in groups.items()]


def _difference(first: str, other: str, language: str, pairs: list[tuple[dict, dict]]) -> BitsDifference:
    size = [math.log(2) * mine["bytes"] for mine, _ in pairs]
    bits = tuple(math.fsum(p[k]["nll"] for p in pairs) / sum(size) for k in (0, 1))
    interval = ratio_interval([yours["nll"] - mine["nll"] for mine, yours in pairs], size)
    return BitsDifference(first, other, language, len(pairs), (bits[0], bits[1]), bits[1] - bits[0], interval)


# ---- Text -----------------------------------------------------------------------------------------------------------


def render_text(tables: Sequence[BitsTable]) -> str:
    """All tables as lines of text, the models of the runs first; intervals stand below the numbers."""
    models = align([MODELS, *(describe_run(run.name, run.tuning) for t in tables for run in t.runs)], left=len(MODELS))
    return "\n\n".join([models, *map(_text, tables)])


def _text(table: BitsTable) -> str:
    rows = [["", *table.columns]]
    for run in table.runs:
        cells = [table.cell(run, c) for c in table.columns]
        rows += [[run.name, *map(_number, cells)], ["", *map(_interval, cells)]]
    out = [f"bits per byte: {table.conditions}", align(rows), *(f"  {note}" for note in table.notes)]
    if table.differences:
        out += ["", align([_HEAD, *_difference_rows(table, lambda name: [name])])]
    return "\n".join(out)


def _number(c: dict[str, Any] | None) -> str:
    return "-" if c is None else f"{c['bits_per_byte']:.4f}"


def _interval(c: dict[str, Any] | None) -> str:
    return "{:.4f}-{:.4f}".format(*c["interval95"]) if c and c["interval95"] else ""


def _difference_rows(table: BitsTable, heading: Any) -> list[Any]:
    out, pair = [], None
    for d in table.differences:
        if pair != (pair := (d.first, d.other)):
            out.append(heading(f"first {d.first}, second {d.other}"))
        between = "{:+.4f} to {:+.4f}".format(*d.interval) if d.interval else "-"
        bits = [f"{x:.4f}" for x in d.bits]
        out.append([d.language, f"{d.documents:,}", *bits, f"{d.difference:+.4f}", between])
    return out


# ---- CSV and page ---------------------------------------------------------------------------------------------------


def render_csv(tables: Sequence[BitsTable]) -> str:
    """A line for each run and language."""
    rows = []
    for t in tables:
        for run in t.runs:
            for column in t.columns:
                if c := t.cell(run, column):
                    counts = [c[k] for k in ("loss", "perplexity", "documents", "tokens", "bytes")]
                    about = [run.tuning.text, "" if run.tuning.trained is None else run.tuning.trained, run.tuning.base]
                    bits = [c["bits_per_byte"], *(c["interval95"] or ("", ""))]
                    rows.append([t.conditions, run.name, column, *bits, *counts, *about])
    return csv_text(_CSV.split(","), rows)


def render_differences_csv(tables: Sequence[BitsTable]) -> str:
    """A line for each difference."""
    rows = (
        [t.conditions, d.first, d.other, d.language, d.documents, *d.bits, d.difference, *(d.interval or ("", ""))]
        for t in tables
        for d in t.differences
    )
    return csv_text(_DIFFERENCES.split(","), rows)


def render_html(tables: Sequence[BitsTable]) -> str:
    """compare.html: self-contained, as report.html is."""
    return render_page(
        "comparison.html",
        title="Bits per byte compared",
        note=NOTE,
        models_head=MODELS,
        models=[describe_run(run.name, run.tuning) for t in tables for run in t.runs],
        boards=[("Bits per byte", [page_table(t) for t in tables])],
    )


def page_table(table: BitsTable) -> dict[str, Any]:
    """As render.page_table."""
    rows = []
    for run in table.runs:
        cells = [table.cell(run, c) for c in table.columns]
        name = Cell(run.name, run.tuning.text, kind="name")
        rows.append(Row("run", [name, *(Cell(_number(c), _interval(c)) for c in cells)]))
    return {
        "title": table.conditions,
        "head": ["", *(LANGUAGE_NAMES.get(c, c) for c in table.columns)],
        "rows": rows,
        "notes": table.notes,
        "differences_head": _HEAD,
        "differences": _difference_rows(table, lambda name: Row("head", [Cell(name, span=len(_HEAD))])),
    }
