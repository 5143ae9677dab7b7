"""What the steps of a study took and how its trainings differ, read from their folders."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mmed_jax.checkpoints.metrics_file import Records, read_metrics
from mmed_jax.checkpoints.run_directory import saved_config
from mmed_jax.common.curves import Series
from mmed_jax.common.errors import UserError
from mmed_jax.common.places import parse_place
from mmed_jax.config.recipes import OWN_MODEL
from mmed_jax.config.resume import training_keys
from mmed_jax.studies.tasks import Plan, Task, is_done, read_state

# Settings of a training that are no difference worth a row: they name the run, or identify contents.
_NAMES = ("name", "variant", "seed")
_CURVES = {
    "loss": ("Training loss", "nats per supervised token"),
    "validation/loss": ("Validation loss", "nats per supervised token"),
    "validation/accuracy": ("Accuracy on validation questions", "share"),
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What a step has taken, over all of its calls.

    seconds: None where nobody measured it. devices: that a training ran on, else 1. tokens: that it has seen.
    """

    task: Task
    seconds: float | None
    devices: int
    platform: str
    tokens: int | None

    @property
    def device_hours(self) -> float:
        return (self.seconds or 0.0) * self.devices / 3600


def costs(plan: Plan) -> list[StepCost]:
    """Of all steps that are done, in order."""
    return [_cost(task) for task in plan.tasks if is_done(task)]


def _cost(task: Task) -> StepCost:
    seconds = read_state(task.folder).get("seconds")
    measured = float(seconds) if isinstance(seconds, int | float) else None
    if task.step.command != "train":
        return StepCost(task, measured, 1, "", None)
    records = read_metrics(task.result)
    start: dict[str, Any] = next((e for e in reversed(records.events) if e["event"] == "start"), {})
    devices, tokens = start.get("devices"), records.train[-1].get("tokens_seen") if records.train else None
    return StepCost(
        task,
        measured if measured is not None else records.goodput.wall or None,
        devices if isinstance(devices, int) else 1,
        str(start.get("platform", "")),
        tokens if isinstance(tokens, int) else None,
    )


def differing_settings(plan: Plan) -> tuple[list[str], list[tuple[str, ...]]]:
    """(labels of the trainings, rows of a key and its value in each) of the keys that are not equal in all.

    Of several seeds the first stands for all.
    """
    tasks = _trainings(plan, first_seed=True)
    labels = {t.key: t.label for t in plan.tasks}
    keys = dict.fromkeys(k for t in tasks for k in t.settings if not k.startswith("contents of ") and k not in _NAMES)
    rows = []
    for key in keys:
        values = [chosen.get(key, t.settings.get(key)) for t, chosen in zip(tasks, map(_chosen, tasks))]
        shown = tuple(_value(key, labels.get(v, v) if isinstance(v, str) else v) for v in values)
        if len(set(shown)) > 1:
            rows.append((key, *shown))
    return [t.label for t in tasks], rows


def _chosen(task: Task) -> dict[str, Any]:
    """What a training of one's own model has chosen where it ran (configs/custom.py); {} before, and of others."""
    if task.settings.get("variant") not in OWN_MODEL:
        return {}
    try:
        config = saved_config(parse_place(str(task.result), "run_dir"))
    except UserError:
        return {}
    given = {k.removeprefix("config.") for k in task.step.flags}
    return {k: v for k, v in training_keys(config or {}).items() if k not in given}


def _value(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if value == "":
        return {"init_from": "random weights", "tokenizer": "that of its weights"}.get(key, "none")
    return str(value)


def curve_series(plan: Plan) -> list[tuple[str, str, list[Series]]]:
    """[(title, unit, series)]: the numbers of all trainings over each other, a plot for each recipe and number.

    A training has a colour; its seeds differ by dashes.
    """
    groups: dict[tuple[str, str], list[Series]] = {}
    for task in _trainings(plan):
        records: Records = read_metrics(task.result)
        recipe = str(task.step.flags.get("config", "")).partition(":")[0]
        for name in _CURVES:
            steps, values = records.series(name)
            if steps:
                groups.setdefault((name, recipe), []).append(Series(task.label, steps, values, colour=task.step.name))
    order = list(_CURVES)
    out = []
    for (name, recipe), series in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        title, unit = _CURVES[name]
        out.append((f"{title}: {recipe}", unit, series))
    return out


def _trainings(plan: Plan, first_seed: bool = False) -> list[Task]:
    tasks: Sequence[Task] = [t for t in plan.tasks if t.step.command == "train"]
    seeds = [t.step.seed for t in tasks if t.step.seed is not None]
    return [t for t in tasks if not first_seed or t.step.seed in (None, *seeds[:1])]
