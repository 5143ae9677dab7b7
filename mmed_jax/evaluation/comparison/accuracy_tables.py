"""Runs beside each other and beside published rows: a table for each benchmark and way of asking, never one for two.

Differences between runs are over the items that both were asked: paired bootstrap intervals and McNemar's exact test.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.comparison.published_tables import Board, Published, place, published
from mmed_jax.evaluation.comparison.rationale_tables import rationales
from mmed_jax.evaluation.comparison.runs import Run
from mmed_jax.evaluation.comparison.tables import (
    ACCURACY,
    YOURS,
    Difference,
    Line,
    Table,
    Value,
    Way,
    cells,
    ways,
    without_copies,
)
from mmed_jax.evaluation.metrics.intervals import mcnemar, mean_interval, paired, wilson
from mmed_jax.evaluation.metrics.text_similarity import all_metrics

_OFF = 0.02  # per cent: farther from every number of right answers than rounding or cutting two decimals


def compare(runs: Sequence[Run], *, wanted: Sequence[str] | None = None) -> list[Table]:
    """The tables of all benchmarks of the runs, those of the runs first, then published rows that were asked otherwise.

    Args:
      wanted: published rows whose method has one of these in its name, letter case aside; () for none, None for all.
    Raises:
      UserError: two runs that would stand in one table have no item in common, or differ in what an item is.
    """
    out: list[Table] = []
    boards: dict[str, tuple[Board, list[str], list[Run]]] = {}
    for run in map(without_copies, runs):
        for board, column, _ in _cells(run):
            _, columns, there = boards.setdefault(board.name, (board, list(board.columns), []))
            if column not in columns:
                columns.append(column)
            if run not in there:
                there.append(run)
    for board, columns, there in boards.values():
        columns.sort(key=lambda c: LANGUAGES.index(c) if c in LANGUAGES and not board.columns else -1)
        tables = [_accuracy(board, way) for way in ways(board, columns, there)]
        out += _with_published(tables, board, columns, ACCURACY, wanted)
        for metric in all_metrics():
            out += _with_published(rationales(board, metric, columns, there), board, columns, metric, wanted)
    for table in out:
        table.columns = [c for c in table.columns if any(c in line.values for line in table.lines)]
    return out


def _cells(run: Run) -> Iterator[tuple[Board, str, dict[str, Any]]]:
    """(board, column, cell) of everything a run counts."""
    for name in run.results["benchmarks"]:
        yield from cells(run, name)


def _accuracy(board: Board, way: Way) -> Table:
    columns, runs = way.columns, way.runs
    total = "" if len(columns) == 1 else "average" if board.averaged else "all"
    if board.averaged and not set(board.columns) <= set(columns):
        total = ""  # the others were asked in several ways and stand in tables of their own
    table = Table(board.name, ACCURACY, way.asked, list(columns), total)
    for run in runs:
        found = {c: cell for b, c, cell in _cells(run) if b.name == board.name and c in columns}
        values = {c: _value(cell, board.sizes.get(c)) for c, cell in found.items()}
        counts = [(found[c]["correct"], found[c]["count"]) for c in found]
        average = None
        if total == "all":
            right, count = (sum(x) for x in zip(*counts))
            average = Value(right / count, count, wilson(right, count))
        elif total and all(c in found for c in board.columns):
            counts = [(found[c]["correct"], found[c]["count"]) for c in board.columns]
            mark = "*" if any(values[c].mark for c in board.columns) else ""
            average = Value(sum(k / n for k, n in counts) / len(counts), None, mean_interval(counts), None, mark)
        table.lines.append(Line(YOURS, run.name, values, average, _notes(run, board, values, total, average)))
    table.notes = _between(runs)
    for other in runs[1:]:
        found = _differences(runs[0], other, board, columns, way.asked)
        table.differences += found
        common = max(d.count for d in found)
        both = (line for line in table.lines if line.name in (runs[0].name, other.name))
        sizes = [sum(v.count for v in line.values.values()) for line in both]
        if sizes != [common, common]:
            told = f"{sizes[0]:,} and {sizes[1]:,}"
            table.notes.append(f"{runs[0].name}, {other.name}: differences are over {common:,} common items of {told}")
    return table


def _value(cell: dict[str, Any], size: int | None) -> Value:
    mark = "*" if size is not None and cell["count"] != size else ""
    return Value(cell["accuracy"], cell["count"], tuple(cell["interval95"]), size, mark)


def _notes(run: Run, board: Board, values: dict[str, Value], total: str, average: Value | None) -> list[str]:
    off = [f"{c} {v.count:,} of {v.size:,}" for c, v in values.items() if v.mark]
    out = [f"* not the published number of items: {', '.join(off)}"] if off else []
    gone = [c for c in board.columns if c not in values]
    if total == "average" and average is None:
        out.append(f"no average: {', '.join(gone)} not asked")
    return out + list(run.notes.get(board.name, ()))


def _between(runs: Sequence[Run]) -> list[str]:
    """What differs between runs that were asked in the same way by name."""
    out = []
    for key, what in (
        ("rules_version", "answers were read by rules of different versions"),
        ("system_prompt", "the system messages differ"),
        ("dtype", "they were computed in"),
        ("max_new_tokens", "the most new tokens are"),
    ):
        values = {run.name: run.settings.get(key) for run in runs}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name} {value or 'none'}" for name, value in values.items())
            out.append(f"{what}: {shown}")
    return out


# ---- Published rows -------------------------------------------------------------------------------------------------


def _with_published(
    tables: list[Table], board: Board, columns: Sequence[str], metric: str, wanted: Sequence[str] | None
) -> list[Table]:
    """`tables` with published rows where they were asked alike, and tables of their own for the others."""
    if not tables:
        return []
    for row in published(board.name, metric):
        if wanted is not None and not any(w.casefold() in row.method.casefold() for w in wanted):
            continue
        table = next((t for t in tables if t.asked == row.asked), None)
        if table is None:
            table = Table(board.name, metric, row.asked, list(columns), "average")
            tables.append(table)
        table.lines.append(_published(row, board, metric))
    return tables


def _published(row: Published, board: Board, metric: str) -> Line:
    values, notes = {}, row.notes
    for column, percent in row.values.items():
        if percent is None:
            continue
        size = board.sizes.get(column) if metric == ACCURACY else None
        right = round(percent * size / 100) if size else 0
        # One decimal is printed of the English table: only a distance beyond its rounding tells anything.
        off = board.name == "mmedbench" and size and abs(100 * right / size - percent) >= _OFF and percent * 10 % 1
        values[column] = Value(percent / 100, size, wilson(right, size) if size else None, size, "~" if off else "")
    if any(v.mark for v in values.values()):
        notes.append("~ no number of right answers out of the test items gives this figure: some may be left out")
    average = None
    if row.average is not None:
        sized = [(round(v.value * v.size), v.size) for v in values.values() if v.size]
        interval = mean_interval(sized) if len(sized) == len(values) and values else None
        if row.mean is not None and abs(row.average - row.mean) > _OFF:
            interval = None  # it would not be around the printed number
        average = Value(row.average / 100, None, interval)
    return Line(row.group, row.method, values, average, notes)


# ---- Differences ----------------------------------------------------------------------------------------------------


def _differences(a: Run, b: Run, board: Board, columns: Sequence[str], asked: str) -> list[Difference]:
    """`b` minus `a`, column by column, over common items."""
    mine, yours = ({k: v for k, v in _items(r, board).items() if k[0] in columns} for r in (a, b))
    common = [key for key in mine if key in yours]
    if not common:
        raise UserError(
            f"{a.name} and {b.name}: no item of {board.name} in common ({asked}); compare runs over the same items"
        )
    for key in common:
        for field in ("answer", "options"):
            if mine[key][field] != yours[key][field]:
                raise UserError(
                    f"{a.name} and {b.name}: {board.name} item {key[1]} has the {field} {mine[key][field]} in one and "
                    f"{yours[key][field]} in the other; the runs were asked different questions"
                )
    pairs = {c: [(mine[k]["correct"], yours[k]["correct"]) for k in common if k[0] == c] for c in columns}
    pairs = {c: p for c, p in pairs.items() if p}
    out = [_difference(a, b, c, [p]) for c, p in pairs.items()]
    if len(pairs) > 1:
        if board.averaged and all(c in pairs for c in board.columns):
            out.append(_difference(a, b, "average", [pairs[c] for c in board.columns]))
        out.append(_difference(a, b, "all", [[p for group in pairs.values() for p in group]]))
    return out


def _difference(a: Run, b: Run, column: str, groups: list[list[tuple[bool, bool]]]) -> Difference:
    first, other = ([[float(p[k]) for p in g] for g in groups] for k in (0, 1))
    shares = tuple(sum(sum(g) / len(g) for g in x) / len(groups) for x in (first, other))
    difference, low, high = paired(first, other)
    count = sum(map(len, groups))
    if len(groups) > 1:
        return Difference(a.name, b.name, column, count, shares, difference, (low, high))
    lost, won = ((groups[0].count(x)) for x in ((True, False), (False, True)))
    return Difference(a.name, b.name, column, count, shares, difference, (low, high), lost, won, mcnemar(lost, won))


def _items(run: Run, board: Board) -> dict[tuple[str, str], dict[str, Any]]:
    """{(column, id): line} of a board's items."""
    out, places = {}, {}
    for line in run.lines:
        key = name, language, part = line["benchmark"], line["language"], line.get("part")
        if key not in places:
            places[key] = place(name, run.results["data"].get(name, {}), language, part)
        if places[key][0].name == board.name:
            out[places[key][1], line["id"]] = line
    return out
