"""Rationale metrics of runs beside each other: means with intervals, differences by paired bootstrap over items."""

from collections.abc import Sequence
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.evaluation.comparison.published_tables import Board, place
from mmed_jax.evaluation.comparison.runs import Run, read_scores
from mmed_jax.evaluation.comparison.tables import YOURS, Difference, Line, Table, Value, group_runs
from mmed_jax.evaluation.metrics.intervals import paired_difference
from mmed_jax.evaluation.metrics.text_similarity import AVERAGE
from mmed_jax.evaluation.results_json import SCORES


def rationale_tables(board: Board, metric: str, columns: Sequence[str], runs: Sequence[Run]) -> list[Table]:
    """Tables of one metric, one for each way of asking; means and intervals are those of results.json.

    The first run of a table is compared with the others where both have the scores of each item.

    Raises:
      UserError: scores that do not belong to their results, or two runs with different references.
    """
    tables: dict[str, tuple[Table, list[Run]]] = {}
    for group, run in ((g, r) for g in group_runs(board, columns, runs) for r in g.runs):
        means, average = _means(run, board, metric)
        values = {c: v for c, v in means.items() if c in group.columns}
        average = average if len(values) == len(means) else None
        if not values:
            continue
        settings = run.results.get("rationale_settings", {})
        references = "human-checked references" if settings.get("checked") else "all references"
        conditions = f"{group.conditions}, {references}"
        table, there = tables.setdefault(conditions, (Table(board.name, metric, conditions, [], ""), []))
        table.columns += [c for c in dict.fromkeys((*board.columns, *values)) if c not in table.columns]
        gone = [c for c in board.columns if c not in values] if board.averaged else []
        notes = [f"no average: no rationale in {', '.join(gone)}"] if gone else []
        if not gone and len(values) > 1:
            shares = [values[c].value for c in (board.columns if board.averaged else values)]
            average = average or Value(sum(shares) / len(shares))
        table.total = "average" if average or gone else table.total
        table.lines.append(Line(YOURS, run.name, values, average, notes, run.tuning))
        there.append(run)
    for table, there in tables.values():
        _compare(table, there, board)
    return [table for table, _ in tables.values()]


def _means(run: Run, board: Board, metric: str) -> tuple[dict[str, Value], Value | None]:
    """({column: mean}, their average where one benchmark has all of them, with its interval)."""
    values: dict[str, Value] = {}
    average = None
    for name, block in run.results["benchmarks"].items():
        by_language = block.get("rationale", {}).get(metric, {})
        mine = {}
        for language, cell in by_language.items():
            if language != AVERAGE:
                b, column = place(name, run.results["data"].get(name, {}), language, None)
                if b.name == board.name:
                    mine[column] = _value(cell)
        whole = not values and len(mine) > 1 and (not board.averaged or set(mine) == set(board.columns))
        average = _value(by_language[AVERAGE]) if whole else None
        values |= mine
    return values, average


def _value(cell: dict[str, Any]) -> Value:
    interval = cell.get("interval95")
    return Value(cell["mean"], cell["count"], tuple(interval) if interval else None)


# ---- Differences ----------------------------------------------------------------------------------------------------


def _compare(table: Table, runs: Sequence[Run], board: Board) -> None:
    """Adds the differences of the first run and every other, and says where there are none."""
    if len(runs) < 2:
        return
    without = [run.name for run in runs if read_scores(run) is None]
    if without:
        table.notes.append(
            f"{', '.join(without)}: no {SCORES} and so no differences; the command of the evaluation, given again, "
            "writes it without asking anything again"
        )
    models = {run.name: run.results.get("rationale_settings", {}).get("bertscore_model") for run in runs}
    if table.metric == "bertscore" and len(set(models.values())) > 1:
        table.notes.append(f"the models differ: {', '.join(f'{k} {v}' for k, v in models.items())}")
    if runs[0].name in without:
        return
    mine = _scores(runs[0], board, table.metric)
    for other in (run for run in runs[1:] if run.name not in without):
        yours = _scores(other, board, table.metric)
        common = [key for key in mine if key in yours]
        for column, id_ in common:
            if mine[column, id_][1] != yours[column, id_][1]:
                raise UserError(
                    f"{runs[0].name} and {other.name}: {board.name} item {id_} has another reference in each; the runs "
                    "were asked different questions"
                )
        if not common:
            table.notes.append(f"{runs[0].name}, {other.name}: no rationale in common, so no differences")
            continue
        pairs = {c: [(mine[k][0], yours[k][0]) for k in common if k[0] == c] for c in table.columns}
        pairs = {c: p for c, p in pairs.items() if p}
        table.differences += [_difference(runs[0], other, c, [p]) for c, p in pairs.items()]
        if len(pairs) > 1 and (not board.averaged or all(c in pairs for c in board.columns)):
            averaged = [pairs[c] for c in (board.columns if board.averaged else pairs)]
            table.differences.append(_difference(runs[0], other, "average", averaged))
        if {len(mine), len(yours)} != {len(common)}:
            each = f"{len(mine):,} and {len(yours):,}"
            table.notes.append(
                f"{runs[0].name}, {other.name}: differences are over {len(common):,} common rationales of {each}"
            )


def _difference(a: Run, b: Run, column: str, groups: list[list[tuple[float, float]]]) -> Difference:
    first, other = ([[p[k] for p in g] for g in groups] for k in (0, 1))
    means = tuple(sum(sum(g) / len(g) for g in x) / len(groups) for x in (first, other))
    difference, low, high = paired_difference(first, other)
    return Difference(a.name, b.name, column, sum(map(len, groups)), means, difference, (low, high))


def _scores(run: Run, board: Board, metric: str) -> dict[tuple[str, str], tuple[float, str]]:
    """{(column, id): (score, reference)} of a board's rationales."""
    scores, out, places = read_scores(run) or {}, {}, {}
    for line in run.lines:
        key = name, language = line["benchmark"], line["language"]
        if key not in places:
            places[key] = place(name, run.results["data"].get(name, {}), language, None)
        score = scores.get((name, line["id"]), {}).get(metric)
        if places[key][0].name == board.name and score is not None:
            out[places[key][1], line["id"]] = score, line.get("rationale") or ""
    return out
