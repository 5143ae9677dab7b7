"""The tables of a comparison as text, as CSV and as a page."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from mmed_jax.common.html_page import Cell, Row, render
from mmed_jax.common.output_files import csv_text
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.comparison.runs import Tuning
from mmed_jax.evaluation.comparison.tables import ACCURACY, YOURS, Difference, Line, Table, Value
from mmed_jax.evaluation.metrics.intervals import short

NOTE = (
    "Per cent; rationale metrics times 100. Intervals are 95 %: Wilson's for the accuracy of one column, those "
    "combined (MOVER) for averages of columns, a seeded bootstrap over items for rationale metrics. Published rows "
    "come without items: intervals of their accuracies follow from the figure and the size of the test set. "
    "Differences are second minus first over common items, with paired bootstrap intervals and, for accuracies, the "
    "p of McNemar's exact test, not corrected for the number of comparisons. Tables of different ways of asking are "
    "not to be read as one."
)
_HEAD = (
    "",
    "items",
    "first",
    "second",
    "second - first",
    "95 % interval",
    "only first right",
    "only second right",
    "p",
)
_CSV = (
    "board",
    "metric",
    "asked",
    "group",
    "name",
    "column",
    "percent",
    "low",
    "high",
    "count",
    "published_count",
    "mark",
    "notes",
    "tuning",
    "trained_parameters",
    "base",
)
MODELS = ("run", "tuning", "trained parameters", "base")
_DIFFERENCES = (
    "board",
    "metric",
    "asked",
    "first",
    "other",
    "column",
    "items",
    "first_percent",
    "other_percent",
    "difference",
    "low",
    "high",
    "only_first_right",
    "only_other_right",
    "mcnemar_p",
)


# ---- Text -----------------------------------------------------------------------------------------------------------


def render_text(tables: Sequence[Table]) -> str:
    """All tables as lines of text, the models of the runs first; intervals stand below the numbers of runs."""
    models = align([MODELS, *_models(tables)], left=len(MODELS))
    return "\n\n".join([models, *(_text(t) for t in tables)])


def _models(tables: Sequence[Table]) -> list[list[str]]:
    """How the model of each run was tuned."""
    tunings = {line.name: line.tuning for t in tables for line in t.lines if line.tuning}
    return [describe_run(name, t) for name, t in tunings.items()]


def describe_run(name: str, t: Tuning) -> list[str]:
    """The cells of MODELS for a run."""
    return [name, t.text, _trained(t), t.base or "not known"]


def _trained(t: Tuning) -> str:
    if t.trained is None or t.share is None:
        return "not known"
    return f"{t.trained:,} ({t.share:.2%})" if t.trained else "0"


def _text(table: Table) -> str:
    columns = [*table.columns, *([table.total] if table.total else [])]
    rows: list[list[str]] = [["", *columns]]
    for group, lines in groupby(table.lines, key=lambda line: line.group):
        rows.append([group])
        for line in lines:
            shown = [_value_of(line, c, table) for c in columns]
            rows.append([f"  {line.name}", *(_number(v) for v in shown)])
            if group == YOURS:
                rows.append([f"    {line.tuning.text if line.tuning else ''}", *(_short_interval(v) for v in shown)])
    out = [f"{table.board}, {table.metric}: {table.conditions}", align(rows)]
    out += [f"  {note}" for note in _notes(table)]
    if table.differences:
        out += ["", align([_head(table), *_group_differences(table, lambda name: [name], _difference)])]
    return "\n".join(out)


def _value_of(line: Line, column: str, table: Table) -> Value | None:
    return line.average if table.total and column == table.total else line.values.get(column)


def _number(v: Value | None) -> str:
    return "-" if v is None else f"{100 * v.value:.2f}{v.mark}"


def _short_interval(v: Value | None) -> str:
    return short(v.interval) if v else ""


def _notes(table: Table) -> list[str]:
    names_by_note: dict[str, list[str]] = {}
    for line in table.lines:
        for note in line.notes:
            names_by_note.setdefault(note, []).append(line.name)
    return [f"{', '.join(names)}: {note}" for note, names in names_by_note.items()] + table.notes


def _head(table: Table) -> tuple[str, ...]:
    return _HEAD if table.metric == ACCURACY else _HEAD[:6]


def _difference(table: Table, d: Difference) -> list[str]:
    low, high = (100 * x for x in d.interval)
    counts = ["", "", ""] if d.p is None else [f"{d.only_first:,}", f"{d.only_other:,}", _p(d.p)]
    first, second = (f"{100 * s:.2f}" for s in d.shares)
    return [
        d.column,
        f"{d.count:,}",
        first,
        second,
        f"{100 * d.difference:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        *counts,
    ][: len(_head(table))]


def _group_differences(
    table: Table, heading: Callable[[str], Any], row: Callable[[Table, Difference], Any]
) -> list[Any]:
    """The differences, those of each pair of runs under a heading."""
    out = []
    for (first, other), there in groupby(table.differences, key=lambda d: (d.first, d.other)):
        out += [heading(f"first {first}, second {other}"), *(row(table, d) for d in there)]
    return out


def _p(p: float) -> str:
    return f"{p:.1e}" if p < 0.0005 else f"{p:.3f}"


def align(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns of equal width; a row of one cell is a heading and may be as long as it is."""
    wide = [r for r in rows if len(r) > 1]
    widths = [max(len(r[i]) for r in wide) for i in range(len(wide[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))).rstrip()
        if len(r) > 1
        else r[0]
        for r in rows
    )


# ---- CSV ------------------------------------------------------------------------------------------------------------


def render_csv(tables: Sequence[Table]) -> str:
    """A line for each number."""
    return csv_text(_CSV, _numbers(tables))


def _numbers(tables: Sequence[Table]) -> Iterator[list[Any]]:
    for t in tables:
        for line in t.lines:
            for column, v in [*line.values.items(), *([(t.total, line.average)] if line.average else [])]:
                low, high = (f"{100 * x:.4f}" for x in v.interval) if v.interval else ("", "")
                yield [
                    t.board,
                    t.metric,
                    t.conditions,
                    line.group,
                    line.name,
                    column,
                    f"{100 * v.value:.4f}",
                    low,
                    high,
                    "" if v.count is None else v.count,
                    "" if v.size is None else v.size,
                    v.mark,
                    "; ".join(line.notes),
                    *_tuning_cells(line.tuning),
                ]


def _tuning_cells(t: Tuning | None) -> list[Any]:
    return ["", "", ""] if t is None else [t.text, "" if t.trained is None else t.trained, t.base]


def render_differences_csv(tables: Sequence[Table]) -> str:
    """A line for each difference."""
    rows = (
        [
            t.board,
            t.metric,
            t.conditions,
            d.first,
            d.other,
            d.column,
            d.count,
            *(f"{100 * x:.4f}" for x in (*d.shares, d.difference, *d.interval)),
            *(("", "", "") if d.p is None else (d.only_first, d.only_other, f"{d.p:.6g}")),
        ]
        for t in tables
        for d in t.differences
    )
    return csv_text(_DIFFERENCES, rows)


# ---- Page -----------------------------------------------------------------------------------------------------------


def render_html(tables: Sequence[Table]) -> str:
    """compare.html: self-contained, as report.html is."""
    by_board = groupby(tables, key=lambda t: t.board)
    return render(
        "comparison.html",
        title=f"Evaluations compared: {', '.join(dict.fromkeys(t.board for t in tables))}",
        note=NOTE,
        models_head=MODELS,
        models=_models(tables),
        boards=[(board, [page_table(t) for t in group]) for board, group in by_board],
    )


def _name_cell(line: Line) -> Cell:
    return Cell(line.name, line.tuning.text if line.tuning else "", kind="name")


def page_table(table: Table) -> dict[str, Any]:
    """A table as templates show it (assets/templates/comparison.html): title, head, rows, notes, differences."""
    columns = [*table.columns, *([table.total] if table.total else [])]
    names = [LANGUAGE_NAMES.get(c, c.removeprefix("mmlu_").replace("_", " ")) for c in columns]
    rows: list[Row] = []
    for group, lines in groupby(table.lines, key=lambda line: line.group):
        rows.append(Row("head", [Cell(group, span=len(columns) + 1)]))
        for line in lines:
            cells = [Cell(_number(v), _short_interval(v)) for v in (_value_of(line, c, table) for c in columns)]
            rows.append(
                Row(
                    "run" if group == YOURS else "",
                    [_name_cell(line), *cells],
                )
            )
    head = _head(table)
    return {
        "title": ("" if table.metric == ACCURACY else f"{table.metric}: ") + table.conditions,
        "head": ["", *names],
        "rows": rows,
        "notes": _notes(table),
        "differences_head": head,
        "differences": _group_differences(table, lambda name: Row("head", [Cell(name, span=len(head))]), _difference),
    }
