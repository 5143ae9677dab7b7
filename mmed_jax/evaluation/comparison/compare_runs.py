"""Runs beside each other and beside published rows: a table for each benchmark and way of asking, never one for two."""

from collections.abc import Sequence

from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.comparison.accuracy_tables import accuracy_table
from mmed_jax.evaluation.comparison.published_tables import Board, Published, published_rows
from mmed_jax.evaluation.comparison.rationale_tables import rationale_tables
from mmed_jax.evaluation.comparison.runs import Run
from mmed_jax.evaluation.comparison.tables import ACCURACY, Line, Table, Value, group_runs, run_cells, without_copies
from mmed_jax.evaluation.metrics.intervals import mean_interval, wilson
from mmed_jax.evaluation.metrics.text_similarity import all_metrics

_OFF = 0.02  # per cent: farther from every number of right answers than rounding or cutting two decimals


def compare_runs(runs: Sequence[Run], *, methods: Sequence[str] | None = None) -> list[Table]:
    """The tables of all benchmarks of the runs, those of the runs first, then published rows that were asked otherwise.

    Args:
      methods: published rows whose method has one of these in its name, letter case aside; () for none, None for all.
    Raises:
      UserError: two runs that would stand in one table have no item in common, or differ in what an item is.
    """
    out: list[Table] = []
    boards: dict[str, tuple[Board, list[str], list[Run]]] = {}
    for run in map(without_copies, runs):
        for board, column, _ in run_cells(run):
            _, columns, there = boards.setdefault(board.name, (board, list(board.columns), []))
            if column not in columns:
                columns.append(column)
            if run not in there:
                there.append(run)
    for board, columns, there in boards.values():
        columns.sort(key=lambda c: LANGUAGES.index(c) if c in LANGUAGES and not board.columns else -1)
        tables = [accuracy_table(board, group) for group in group_runs(board, columns, there)]
        out += _add_published(tables, board, columns, ACCURACY, methods)
        for metric in all_metrics():
            out += _add_published(rationale_tables(board, metric, columns, there), board, columns, metric, methods)
    for table in out:
        table.columns = [c for c in table.columns if any(c in line.values for line in table.lines)]
    return out


# ---- Published rows -------------------------------------------------------------------------------------------------


def _add_published(
    tables: list[Table], board: Board, columns: Sequence[str], metric: str, methods: Sequence[str] | None
) -> list[Table]:
    """`tables` with published rows where they were asked alike, and tables of their own for the others."""
    if not tables:
        return []
    for row in published_rows(board.name, metric):
        if methods is not None and not any(w.casefold() in row.method.casefold() for w in methods):
            continue
        table = next((t for t in tables if t.conditions == row.conditions), None)
        if table is None:
            table = Table(board.name, metric, row.conditions, list(columns), "average")
            tables.append(table)
        table.lines.append(_published_line(row, board, metric))
    return tables


def _published_line(row: Published, board: Board, metric: str) -> Line:
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
