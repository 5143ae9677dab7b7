"""Memory, hours and cost of a study's trainings before they run: what `python -m mmed_jax.plan` says of each."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.paths import REPO
from mmed_jax.planning.plan_report import GIB
from mmed_jax.studies.design import Step
from mmed_jax.studies.run_here import last_error
from mmed_jax.studies.step_key import flags_text
from mmed_jax.studies.tasks import Task


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the planner says of a training.

    text: in one line. hours: of the whole run, None where its length is not known. cost: in the currency of the price
    of a chip and hour, None likewise. fits: None where nothing was planned.
    """

    text: str
    hours: float | None = None
    chip_hours: float | None = None
    cost: float | None = None
    fits: bool | None = None


def estimate(task: Task, topology: str, price: float) -> Estimate:
    """The estimate of a task on a slice by its cloud name; of what is no training, that it says nothing."""
    if task.step.command != "train":
        return Estimate("not planned")
    if not topology:
        return Estimate("not planned; --topology=SLICE plans it")
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "plan.json", Path(folder) / "log.txt"
        flags = flags_text({**task.flags, **_first_weights(task)})
        command = [sys.executable, "-m", "mmed_jax.plan", *flags, f"--topology={topology}", f"--json={out}"]
        command += ["--no_verify", *([f"--price={price:g}"] if price else [])]
        path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH", ""))))
        with open(log, "wb") as f:
            subprocess.run(command, stdout=f, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path})
        try:
            return read_plan(loads(out.read_bytes(), dict), price)
        except (OSError, BadJSON):
            return Estimate(f"not planned: {last_error(log)}")


def _first_weights(task: Task) -> dict[str, str]:
    """What a training starts from in the end: weights of the same size that are there before any step has run."""
    step: Any = task.step
    while isinstance(step, Step):
        start = step.flags.get("config.init_from", step.flags.get("model", step.flags.get("models", "")))
        step = start[0] if isinstance(start, tuple) else start
    return {"config.init_from": step} if step else {}


def read_plan(plan: dict[str, Any], price: float) -> Estimate:
    """The estimate of the JSON that plan writes."""
    text = f"{plan['needed_bytes'] / GIB:,.1f} of {plan['capacity_bytes'] / GIB:,.1f} GiB a chip"
    if not plan["fits"]:
        return Estimate(f"does not fit: {text}", fits=False)
    chips, tokens = plan["topology"]["chips"], plan["run_tokens"]
    if not tokens or not plan["schedule_s"]:
        notes = [note for note in plan["notes"] if "length is not known" in note]
        return Estimate(f"{text}; {notes[0] if notes else 'the length of the run is not known'}", fits=True)
    hours = tokens / plan["tokens_per_step"] * plan["schedule_s"] / 3600
    cost = hours * chips * price if price else None
    money = "" if cost is None else f", cost {cost:,.2f}"
    return Estimate(f"{text}; {_time(hours)}, {hours * chips:,.1f} chip hours{money}", hours, hours * chips, cost, True)


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def total(estimates: list[Estimate]) -> str:
    """Hours and cost of all trainings, in one line; "" where none was planned."""
    known = [e for e in estimates if e.hours is not None]
    if not known:
        return ""
    hours, chip_hours = sum(e.hours or 0 for e in known), sum(e.chip_hours or 0 for e in known)
    cost = f", cost {sum(e.cost or 0 for e in known):,.2f}" if any(e.cost for e in known) else ""
    unknown = sum(e.fits is not None and e.hours is None for e in estimates)
    rest = f"; {unknown} trainings of unknown length are not in it" if unknown else ""
    return f"trainings  {_time(hours)} one after the other, {chip_hours:,.1f} chip hours{cost}{rest}"
