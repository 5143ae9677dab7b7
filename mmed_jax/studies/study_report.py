"""The report of a study: report.html (one self-contained page), report.md and report.json, from what is done so far."""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from mmed_jax.common.curves import curves
from mmed_jax.common.errors import UserError
from mmed_jax.common.html_page import Cell, render
from mmed_jax.common.output_files import write_json, write_text
from mmed_jax.common.progress import clock
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.evaluation.comparison import perplexity_tables
from mmed_jax.evaluation.comparison import render as comparison
from mmed_jax.evaluation.comparison.tables import YOURS, Table
from mmed_jax.studies.design import Claim
from mmed_jax.studies.run_facts import StepCost, costs, curve_series, differing_settings
from mmed_jax.studies.tasks import Plan, is_done, name_of
from mmed_jax.studies.verdicts import Findings, SpreadTable, Verdict, find, ruling_of

FILES = ("report.html", "report.md", "report.json")
SCHEMA = 1
NOTE = (
    "A claim is supported where McNemar's exact test over the questions that both arms were asked (of averages over "
    "languages, and of bits per byte: the 95 % interval of the paired difference) tells the arms apart in its favour "
    "at the 5 % level, contradicted where against it. Tests are of one training each and not corrected for their "
    "number; what another seed would give is only seen with --seeds."
)
COST_NOTE = (
    "Time is that of all calls of a step, compiling and what was lost by interruptions included. Device hours are "
    "counted with the devices of a training; every other step counts as one device, however many it had."
)
_VERDICTS = ("claim", "ruling", "where", "items", "claimed better", "claimed worse", "difference", "95 % interval", "p")


def write_report(plan: Plan, price: float = 0.0) -> list[str]:
    """Writes FILES to the study's folder; returns a line for each claim, as of the terminal.

    Args:
      price: of one device and hour, 0 = not known.

    Raises:
      UserError: nothing is evaluated yet, or results that cannot be compared.
    """
    found, spent = find(plan), costs(plan)
    if not found.tables and not found.bits:
        raise UserError(
            f"--output={plan.folder}: no evaluation of this study is done yet, so there is nothing to report"
        )
    write_json(plan.folder / "report.json", as_json(plan, found, spent, price))
    write_text(plan.folder / "report.md", as_markdown(plan, found, spent, price))
    write_text(plan.folder / "report.html", as_page(plan, found, spent, price))
    return [claim_line(row) for row in claim_rows(found.verdicts)]


def claim_line(row: Sequence[str]) -> str:
    """A row of claim_rows in one line."""
    text, ruling, place, _, better, worse, difference, interval, p = row
    tests = "".join([f", 95 % {interval}" if interval else "", f", p {p}" if p else ""])
    return f"{f'{text}: {ruling}; ' if text else ''}{place}: {better} and {worse}, {difference}{tests}"


# ---- Rows -----------------------------------------------------------------------------------------------------------


def claim_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """A row of texts for each claim, table and seed, the ruling of all its seeds in the first."""
    groups: dict[tuple[Claim, str, str], list[Verdict]] = {}
    for v in verdicts:
        groups.setdefault((v.claim, v.board, v.conditions), []).append(v)
    order = list(dict.fromkeys(claim for claim, *_ in groups))
    out = []
    for (claim, *_), of in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        for k, v in enumerate(of):
            out.append([claim.text if k == 0 else "", ruling_of(of) if k == 0 else "", *_verdict_cells(v)])
    return out


def _verdict_cells(v: Verdict) -> list[str]:
    scale, form = (1, ".4f") if v.is_bits else (100, ".2f")
    seed = f", seed {v.seed}" if v.seed is not None else ""
    return [
        f"{v.board}, {LANGUAGE_NAMES.get(v.column, v.column)}{seed}",
        f"{v.count:,}",
        f"{scale * v.better:{form}}",
        f"{scale * v.worse:{form}}",
        f"{scale * v.difference:+{form}}",
        " to ".join(f"{scale * x:+{form}}" for x in v.interval) if v.interval else "",
        "" if v.p is None else f"{v.p:.1e}" if v.p < 0.0005 else f"{v.p:.3f}",
    ]


def spread_rows(table: SpreadTable) -> tuple[list[str], list[list[Cell | str]]]:
    """(head, rows) of an arm's mean over seeds, below it the range and the standard deviation."""
    rows: list[list[Cell | str]] = []
    for arm, by_column in table.lines.items():
        cells: list[Cell | str] = [Cell(arm, f"{max(s.seeds for s in by_column.values())} seed(s)", kind="name")]
        for column in table.columns:
            s = by_column.get(column)
            around = (
                f"{100 * s.least:.2f} to {100 * s.most:.2f}, s {100 * s.deviation:.2f}" if s and s.seeds > 1 else ""
            )
            cells.append(Cell(f"{100 * s.mean:.2f}" if s else "-", around))
        rows.append(cells)
    return ["", *(LANGUAGE_NAMES.get(c, c) for c in table.columns)], rows


def cost_rows(plan: Plan, spent: Sequence[StepCost], price: float) -> list[list[str]]:
    """A row for each step, then one for each arm (steps that it shares count in each) and one for all."""
    money = (lambda hours: [f"{hours * price:,.2f}"]) if price else (lambda hours: [])
    rows = []
    for c in spent:
        where = f"{c.devices} x {c.platform}" if c.platform else ""
        tokens = "" if c.tokens is None else f"{c.tokens:,}"
        if c.seconds is None:
            spent_on = ["not known"] * (3 if price else 2)
        else:
            spent_on = [clock(c.seconds), f"{c.device_hours:.3f}", *money(c.device_hours)]
        rows.append([c.task.label, c.task.step.command, where, tokens, *spent_on])
    for name, of in _sums(plan, spent):
        hours = sum(c.device_hours for c in of)
        rows.append([name, "", "", "", clock(sum(c.seconds or 0.0 for c in of)), f"{hours:.3f}", *money(hours)])
    return rows


def _sums(plan: Plan, spent: Sequence[StepCost]) -> Iterator[tuple[str, list[StepCost]]]:
    for trial in plan.trials:
        mine = {*trial.chain, *trial.evaluations.values()}
        done = [c for c in spent if c.task in mine]
        yield f"arm: {trial.name}" + ("" if len(done) == len(mine) else " (so far)") + _without_unknown(done), done
    rest = "" if len(spent) == len(plan.tasks) else " (so far)"
    yield f"all steps, each once{rest}{_without_unknown(spent)}", list(spent)


def _without_unknown(spent: Sequence[StepCost]) -> str:
    unknown = sum(c.seconds is None for c in spent)
    return f" ({unknown} of unknown time not in it)" if unknown else ""


def _cost_head(price: float) -> list[str]:
    return ["", "command", "devices", "tokens seen", "time", "device hours", *(["cost"] if price else [])]


def arm_rows(plan: Plan) -> list[list[str]]:
    """Of each arm what it is and the steps that make it."""
    return [[t.name, t.arm.text, " → ".join(x.label for x in t.chain) or str(t.arm.model)] for t in plan.trials]


# ---- Page -----------------------------------------------------------------------------------------------------------


def as_page(plan: Plan, found: Findings, spent: Sequence[StepCost], price: float) -> str:
    """report.html."""
    labels, differing = differing_settings(plan)
    seeds = list(dict.fromkeys((*found.tables, *found.bits)))
    sections = []
    for seed in seeds:
        boards = [(b, [comparison.page_table(t) for t in ts]) for b, ts in _by_board(found.tables.get(seed, []))]
        if bits := found.bits.get(seed):
            boards.append(("Bits per byte", [perplexity_tables.page_table(t) for t in bits]))
        sections.append(("" if seed is None else f"seed {seed}", boards))
    return render(
        "study_report.html",
        title=plan.study.question,
        name=name_of(plan),
        expect=plan.study.expect,
        missing=found.missing,
        claims_head=_VERDICTS,
        claims=claim_rows(found.verdicts),
        note=NOTE,
        compared_with=_reference(plan),
        spreads=[(f"{t.board}: {t.conditions}", *spread_rows(t)) for t in found.spreads],
        sections=sections,
        table_note=comparison.NOTE,
        plots=[curves(title, series, unit=unit) for title, unit, series in curve_series(plan)],
        arms=arm_rows(plan),
        settings_head=["", *labels],
        settings=differing,
        cost_head=_cost_head(price),
        costs=cost_rows(plan, spent, price),
        cost_note=COST_NOTE,
        commands=[(t.label, t.shell()) for t in plan.tasks],
    )


def _reference(plan: Plan) -> str:
    """The arm that all are compared with, "" where its evaluation is not there yet."""
    trials = [t for t in plan.trials if t.arm.name == plan.compared_with]
    return plan.compared_with if all(is_done(e) for t in trials for e in t.evaluations.values()) else ""


def _by_board(tables: Sequence[Table]) -> list[tuple[str, list[Table]]]:
    return [(board, list(group)) for board, group in groupby(tables, key=lambda t: t.board)]


# ---- Markdown and JSON ----------------------------------------------------------------------------------------------


def as_markdown(plan: Plan, found: Findings, spent: Sequence[StepCost], price: float) -> str:
    """report.md."""
    out = [f"# {plan.study.question}", f"Study {name_of(plan)}."]
    out += [plan.study.expect] if plan.study.expect else []
    out += [f"Not evaluated yet: {', '.join(found.missing)}."] if found.missing else []
    if found.verdicts:
        out += ["## Claims", _table(_VERDICTS, claim_rows(found.verdicts)), NOTE]
    for spread in found.spreads:
        head, rows = spread_rows(spread)
        out += [
            f"## Over seeds: {spread.board}, {spread.conditions}",
            _table(head, [list(map(_text, r)) for r in rows]),
        ]
    for seed in dict.fromkeys((*found.tables, *found.bits)):
        out.append("## Results" + ("" if seed is None else f", seed {seed}"))
        if tables := found.tables.get(seed):
            out.append(f"```\n{comparison.render_text(tables)}\n```")
        if bits := found.bits.get(seed):
            out.append(f"```\n{perplexity_tables.render_text(bits)}\n```")
    labels, differing = differing_settings(plan)
    out += ["## Arms", _table(("arm", "what", "steps"), arm_rows(plan))]
    if differing:
        out += ["## What differs between the trainings", _table(["", *labels], [list(r) for r in differing])]
    out += ["## Time and cost", _table(_cost_head(price), cost_rows(plan, spent, price)), COST_NOTE]
    return "\n\n".join(out) + "\n"


def _text(cell: Cell | str) -> str:
    return cell if isinstance(cell, str) else f"{cell.text} ({cell.small})" if cell.small else str(cell.text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    texts = ([str(c).replace("|", "\\|").replace("<", "&lt;") for c in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def as_json(plan: Plan, found: Findings, spent: Sequence[StepCost], price: float) -> dict[str, Any]:
    """report.json. Shares are 0..1.

    schema, study, question, settings, arms [{name, seed, text, steps, evaluations: {benchmark: folder}}], claims
    [Verdict's fields], results [{seed, board, metric, conditions, arm, column, value, low, high, count}], differences
    (of every arm with the one they are compared with), spreads, steps [{label, command, folder, seconds, devices,
    device_hours, cost, tokens}], missing. seconds, device_hours, cost: null where nobody measured them.
    """
    return {
        "schema": SCHEMA,
        "study": name_of(plan),
        "question": plan.study.question,
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in plan.study.settings.items()},
        "compared_with": plan.compared_with,
        "arms": [
            {
                "name": t.arm.name,
                "seed": t.seed,
                "text": t.arm.text,
                "steps": [x.label for x in t.chain],
                "evaluations": {k: str(e.result) for k, e in t.evaluations.items() if is_done(e)},
            }
            for t in plan.trials
        ],
        "claims": [dataclasses.asdict(v) for v in found.verdicts],
        "results": [r for seed, tables in found.tables.items() for t in tables for r in _results(t, seed)],
        "differences": [
            {"seed": seed, "board": t.board, "metric": t.metric, "conditions": t.conditions, **dataclasses.asdict(d)}
            for seed, tables in found.tables.items()
            for t in tables
            for d in t.differences
        ],
        "bits_per_byte": [
            {"seed": seed, "arm": run.name, "column": c, **{k: cell[k] for k in ("bits_per_byte", "documents")}}
            for seed, tables in found.bits.items()
            for t in tables
            for run in t.runs
            for c in t.columns
            if (cell := t.cell(run, c))
        ],
        "spreads": [dataclasses.asdict(s) for s in found.spreads],
        "steps": [
            {
                "label": c.task.label,
                "command": c.task.shell(),
                "folder": str(c.task.folder),
                "seconds": c.seconds,
                "devices": c.devices,
                "device_hours": None if c.seconds is None else c.device_hours,
                "cost": c.device_hours * price if price and c.seconds is not None else None,
                "tokens": c.tokens,
            }
            for c in spent
        ],
        "missing": found.missing,
    }


def _results(table: Table, seed: int | None) -> Iterator[dict[str, Any]]:
    for line in table.lines:
        if line.group != YOURS:
            continue
        for column, v in [*line.values.items(), *([(table.total, line.average)] if line.average else [])]:
            low, high = v.interval or (None, None)
            place = {"seed": seed, "board": table.board, "metric": table.metric, "conditions": table.conditions}
            yield {
                **place,
                "arm": line.name,
                "column": column,
                "value": v.value,
                "low": low,
                "high": high,
                "count": v.count,
            }
