"""What the evaluations of a study say: tables of its arms, their spread over seeds, and whether each claim holds."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.evaluation.comparison.compare_runs import compare_runs
from mmed_jax.evaluation.comparison.perplexity_tables import ALL, BitsTable, compare_bits, is_perplexity
from mmed_jax.evaluation.comparison.runs import Run, read_runs
from mmed_jax.evaluation.comparison.tables import ACCURACY, YOURS, Table
from mmed_jax.studies.design import Claim
from mmed_jax.studies.tasks import Plan, Trial, is_done

LEVEL = 0.05  # of a test
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "not decided"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim in one column of one table, with one seed (None: the arms have none).

    better, worse: of the arms, shares (0..1) or bits per byte. difference: better minus worse, with its 95 % interval
    (None where there is none); p: of McNemar's exact test, None where there is none. ruling: SUPPORTED where the
    test's p (else the interval) tells the arms apart in the claim's favour, CONTRADICTED where against it.
    """

    claim: Claim
    seed: int | None
    board: str
    conditions: str
    column: str
    count: int
    better: float
    worse: float
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    ruling: str

    @property
    def is_bits(self) -> bool:
        """Whether the numbers are bits per byte, of which fewer are better."""
        return self.board == BITS


BITS = "bits per byte"


@dataclasses.dataclass(frozen=True)
class Spread:
    """An arm's number in a column over its seeds: mean, least, most and standard deviation (0 of a single one)."""

    mean: float
    least: float
    most: float
    deviation: float
    seeds: int


@dataclasses.dataclass(frozen=True)
class SpreadTable:
    """{arm: {column: spread}} of a benchmark asked in one way."""

    board: str
    conditions: str
    columns: list[str]
    lines: dict[str, dict[str, Spread]]


@dataclasses.dataclass
class Findings:
    """Of a study what is evaluated so far.

    tables, bits: {seed: tables}, in each the arm first that all are compared with; a study of one seed has one.
    missing: names of evaluations that are not done.
    """

    tables: dict[int | None, list[Table]]
    bits: dict[int | None, list[BitsTable]]
    spreads: list[SpreadTable]
    verdicts: list[Verdict]
    missing: list[str]


def find(plan: Plan) -> Findings:
    """Reads and compares the evaluations that are done.

    Raises UserError: an evaluation's files are damaged, or two of them cannot be compared.
    """
    missing = [t.label for trial in plan.trials for t in trial.evaluations.values() if not is_done(t)]
    read: dict[Path, Run] = {}

    def runs_of(trials: Sequence[Trial], texts: bool) -> list[Run]:
        out = []
        for trial in trials:
            for task in trial.evaluations.values():
                if not is_done(task):
                    continue
                if task.result not in read:
                    read[task.result] = read_runs([f"run={task.result}"], texts=True)[0]
                if is_perplexity(read[task.result]) == texts:
                    out.append(dataclasses.replace(read[task.result], name=trial.arm.name))
        return out

    found = Findings({}, {}, [], [], list(dict.fromkeys(missing)))
    seeds: list[int | None] = list(dict.fromkeys(t.seed for t in plan.trials if t.seed is not None)) or [None]
    for seed in seeds:
        trials = [t for t in plan.trials if t.seed in (seed, None)]
        trials.sort(key=lambda t: t.arm.name != plan.compared_with)
        if runs := runs_of(trials, texts=False):
            found.tables[seed] = compare_runs(runs)
        if runs := runs_of(trials, texts=True):
            found.bits[seed] = compare_bits(runs)
        for claim in plan.claims:
            found.verdicts += _verdicts(claim, seed, trials, runs_of)
    if len(found.tables) > 1:
        found.spreads = spread_over_seeds(plan, list(found.tables.values()))
    return found


def _verdicts(
    claim: Claim, seed: int | None, trials: Sequence[Trial], runs_of: Callable[[Sequence[Trial], bool], list[Run]]
) -> list[Verdict]:
    pair = [next(t for t in trials if t.arm.name == name) for name in (claim.worse, claim.better)]
    out = []
    questions, texts = (runs_of(pair, kind) for kind in (False, True))
    if len({run.name for run in questions}) == 2:
        for table in accuracy_of(compare_runs(questions, methods=())):
            columns = {d.column: d for d in table.differences}
            if d := columns.get(claim.column or ("average" if "average" in columns else "all"), _only(columns, claim)):
                ruling = _ruling(d.difference, d.interval, d.p)
                of = (claim, seed, table.board, table.conditions, d.column, d.count)
                out.append(Verdict(*of, d.shares[1], d.shares[0], d.difference, d.interval, d.p, ruling))
    if len({run.name for run in texts}) == 2:
        for bits in compare_bits(texts):
            by_language = {b.language: b for b in bits.differences}
            if b := by_language.get(claim.column or ALL, _only(by_language, claim)):
                flipped = None if b.interval is None else (-b.interval[1], -b.interval[0])
                ruling = _ruling(-b.difference, flipped, None)
                of = (claim, seed, BITS, bits.conditions, b.language, b.documents)
                out.append(Verdict(*of, b.bits[1], b.bits[0], b.difference, b.interval, None, ruling))
    return out


def _only(differences: dict[str, Any], claim: Claim) -> Any:
    """The difference of a table that has one column, for a claim about all of them; else None."""
    return next(iter(differences.values())) if len(differences) == 1 and not claim.column else None


def _ruling(difference: float, interval: tuple[float, float] | None, p: float | None) -> str:
    apart = p < LEVEL if p is not None else interval is not None and not interval[0] <= 0 <= interval[1]
    if not apart:
        return UNDECIDED
    return SUPPORTED if difference > 0 else CONTRADICTED


def ruling_of(verdicts: Sequence[Verdict]) -> str:
    """Of one claim in one table what its seeds say together, in words."""
    rulings = [v.ruling for v in verdicts]
    if len(set(rulings)) == 1:
        return rulings[0] + (f" with each of {len(rulings)} seeds" if len(rulings) > 1 else "")
    counts = {r: rulings.count(r) for r in (SUPPORTED, CONTRADICTED, UNDECIDED) if r in rulings}
    return ", ".join(f"{ruling} with {n}" for ruling, n in counts.items()) + f" of {len(rulings)} seeds"


def accuracy_of(tables: Sequence[Table]) -> list[Table]:
    """The tables of accuracies: those of rationale metrics have other numbers and no test."""
    return [t for t in tables if t.metric == ACCURACY]


def spread_over_seeds(plan: Plan, tables_by_seed: Sequence[Sequence[Table]]) -> list[SpreadTable]:
    """The accuracies of each arm over its seeds."""
    out = []
    tables = [t for ts in tables_by_seed for t in accuracy_of(ts)]
    firsts = {(t.board, t.conditions): t for t in reversed(tables)}
    for first in reversed(firsts.values()):
        same = [t for t in tables if (t.board, t.conditions) == (first.board, first.conditions)]
        columns = [*first.columns, *([first.total] if first.total else [])]
        lines: dict[str, dict[str, Spread]] = {}
        for arm in dict.fromkeys(t.arm.name for t in plan.trials):
            varies = any(t.seed is not None for t in plan.trials if t.arm.name == arm)
            here = [line for t in same for line in t.lines if line.group == YOURS and line.name == arm]
            here = here if varies else here[:1]
            values = {c: [v.value for line in here if (v := line.values.get(c))] for c in columns}
            if first.total:
                values[first.total] = [line.average.value for line in here if line.average]
            if here:
                lines[arm] = {c: _spread(v) for c, v in values.items() if v}
        if lines:
            out.append(SpreadTable(first.board, first.conditions, columns, lines))
    return out


def _spread(values: Sequence[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), min(values), max(values), deviation, len(values))
