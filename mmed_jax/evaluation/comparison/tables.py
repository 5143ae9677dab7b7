"""Tables of a comparison: their lines, values and differences, and which runs may stand in one of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mmed_jax.evaluation.comparison.published_tables import Board, passages, place
from mmed_jax.evaluation.comparison.runs import Run, Tuning, describe

ACCURACY = "accuracy"
YOURS = "your runs"


@dataclasses.dataclass(frozen=True)
class Value:
    """A number of a table. value: share (0 to 1). count: items, None where unknown. size: items as published.

    interval: 95 %, or None. mark: "*" not over the published items, "~" no number of right answers gives this figure.
    """

    value: float
    count: int | None = None
    interval: tuple[float, float] | None = None
    size: int | None = None
    mark: str = ""


@dataclasses.dataclass
class Line:
    """A row: a run (group YOURS) or a published one. tuning: of a run's model; published groups say it themselves."""

    group: str
    name: str
    values: dict[str, Value]
    average: Value | None
    notes: list[str] = dataclasses.field(default_factory=list)
    tuning: Tuning | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """`other` minus `first` in one column ("average", "all" items together): shares of the `count` common items.

    only_first, only_other, p: McNemar's counts and exact two-sided p; None for averages of columns.
    """

    first: str
    other: str
    column: str
    count: int
    shares: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    only_first: int | None = None
    only_other: int | None = None
    p: float | None = None


@dataclasses.dataclass
class Table:
    """Everything about one benchmark that was asked in one way. total: the name of the last column, "" for none."""

    board: str
    metric: str
    conditions: str
    columns: list[str]
    total: str
    lines: list[Line] = dataclasses.field(default_factory=list)
    differences: list[Difference] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def cells(run: Run, name: str) -> Iterator[tuple[Board, str, dict[str, Any]]]:
    """(board, column, cell) of everything a run counts of benchmark `name`."""
    block, info = run.results["benchmarks"][name], run.results["data"].get(name, {})
    if parts := block.get("parts"):
        for part, cell in parts.items():
            yield *place(name, info, next(iter(block["languages"])), part), cell
    else:
        for language, cell in block["languages"].items():
            yield *place(name, info, language, None), cell


def run_cells(run: Run) -> Iterator[tuple[Board, str, dict[str, Any]]]:
    """(board, column, cell) of everything a run counts."""
    for name in run.results["benchmarks"]:
        yield from cells(run, name)


def without_copies(run: Run) -> Run:
    """The run with every question once; what is left out is said in its notes.

    Results may hold questions under two names ("headqa:dev", "headqa:validation", or a part beside its whole).
    """
    places = {name: [(b.name, c) for b, c, _ in cells(run, name)] for name in run.results["benchmarks"]}
    held: dict[tuple[str, str], str] = {}
    notes: dict[str, list[str]] = {}
    for name in sorted(places, key=lambda n: -len(places[n])):  # the whole before its parts
        if first := next((held[key] for key in places[name] if key in held), None):
            board = places[name][0][0]
            notes.setdefault(board, []).append(f"{name} are questions of {first}, asked twice: left out")
            continue
        held |= dict.fromkeys(places[name], name)
    kept = {name: block for name, block in run.results["benchmarks"].items() if name in held.values()}
    if len(kept) == len(places):
        return run
    lines = [line for line in run.lines if line["benchmark"] in kept]
    return dataclasses.replace(run, results={**run.results, "benchmarks": kept}, lines=lines, notes=notes)


@dataclasses.dataclass
class RunGroup:
    """Runs that were asked in one way, which `conditions` says, over the columns of a board that belong to it."""

    conditions: str
    columns: list[str]
    runs: list[Run]


def group_runs(board: Board, columns: Sequence[str], runs: Sequence[Run]) -> list[RunGroup]:
    """The runs by way of asking. Only benchmarks that have passages can differ in whether they were shown.

    Where both is the case, each way has what was asked in it, and the columns without passages stand for all runs
    together besides.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(describe(run.settings), []).append(run)
    out = []
    for there in alike.values():
        states = {run: _passages(run, board) for run in there}
        of = {state: [r for r in there if state in states[r].values()] for state in ("shown", "hidden")}
        having = [c for c in columns if any(states[r].get(c) for r in there)]
        few = f"{', '.join(having)} " if len(having) < len(columns) else ""
        phrases = {"shown": f"{few}with passages", "hidden": f"{few}without passages"}
        present = [state for state, some in of.items() if some]
        both = len(present) > 1
        for state in present:
            conditions = describe(there[0].settings, passages=phrases[state])
            out.append(RunGroup(conditions, list(columns), of[state] if both else there))
        plain = [c for c in columns if c not in having]
        rest = [r for r in there if any(c in states[r] for c in plain)]
        if not present or (both and (len(rest) > 1 or any(not any(states[r].values()) for r in rest))):
            out.append(RunGroup(describe(there[0].settings), plain, rest))
    return out


def _passages(run: Run, board: Board) -> dict[str, str | None]:
    """{column: "shown", "hidden" or None} of what a run has on a board."""
    seen = {line["benchmark"] for line in run.lines if line.get("context")}
    return {
        column: passages(name, run.results["data"].get(name, {}), run.settings.get("book"), name in seen)
        for name in run.results["benchmarks"]
        for b, column, _ in cells(run, name)
        if b.name == board.name
    }
