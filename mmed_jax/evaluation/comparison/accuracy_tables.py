"""Accuracies of runs beside each other, and their differences over the items that both were asked.

Differences have paired bootstrap intervals and the p of McNemar's exact test.
"""

from collections.abc import Sequence
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.evaluation.comparison.published_tables import Board, place
from mmed_jax.evaluation.comparison.runs import Run
from mmed_jax.evaluation.comparison.tables import ACCURACY, YOURS, Difference, Line, RunGroup, Table, Value, run_cells
from mmed_jax.evaluation.metrics.intervals import mcnemar, mean_interval, paired_difference, wilson


def accuracy_table(board: Board, group: RunGroup) -> Table:
    """The table of a board and a way of asking, the differences of its first run and every other with it.

    Raises UserError when two runs have no item in common, or differ in what an item is.
    """
    columns, runs = group.columns, group.runs
    total = "" if len(columns) == 1 else "average" if board.averaged else "all"
    if board.averaged and not set(board.columns) <= set(columns):
        total = ""  # the others were asked in several ways and stand in tables of their own
    table = Table(board.name, ACCURACY, group.conditions, list(columns), total)
    for run in runs:
        by_column = {c: cell for b, c, cell in run_cells(run) if b.name == board.name and c in columns}
        values = {c: _value(cell, board.sizes.get(c)) for c, cell in by_column.items()}
        counts = [(cell["correct"], cell["count"]) for cell in by_column.values()]
        average = None
        if total == "all":
            right, count = (sum(x) for x in zip(*counts))
            average = Value(right / count, count, wilson(right, count))
        elif total and all(c in by_column for c in board.columns):
            counts = [(by_column[c]["correct"], by_column[c]["count"]) for c in board.columns]
            mark = "*" if any(values[c].mark for c in board.columns) else ""
            average = Value(sum(k / n for k, n in counts) / len(counts), None, mean_interval(counts), None, mark)
        notes = _notes(run, board, values, total, average)
        table.lines.append(Line(YOURS, run.name, values, average, notes, run.tuning))
    table.notes = _between(runs)
    for other in runs[1:]:
        differences = _differences(runs[0], other, board, columns, group.conditions)
        table.differences += differences
        common = max(d.count for d in differences)
        both = (line for line in table.lines if line.name in (runs[0].name, other.name))
        sizes = [sum(v.count for v in line.values.values()) for line in both]
        if sizes != [common, common]:
            each = f"{sizes[0]:,} and {sizes[1]:,}"
            table.notes.append(f"{runs[0].name}, {other.name}: differences are over {common:,} common items of {each}")
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


# ---- Differences ----------------------------------------------------------------------------------------------------


def _differences(a: Run, b: Run, board: Board, columns: Sequence[str], conditions: str) -> list[Difference]:
    """`b` minus `a`, column by column, over common items."""
    mine, yours = ({k: v for k, v in _items(r, board).items() if k[0] in columns} for r in (a, b))
    common = [key for key in mine if key in yours]
    if not common:
        raise UserError(
            f"{a.name} and {b.name}: no item of {board.name} in common ({conditions}); compare runs over the same items"
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
    difference, low, high = paired_difference(first, other)
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
