"""Which evaluation of a run is the best, by config.checkpoint.best_metric, and which of its checkpoints."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.checkpoints.run_directory import CONFIG_FILE, read_meta, step_folders
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.jsonl import loads
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import Place, parse_place
from mmed_jax.config.defaults import BEST_METRICS

# Of these more is better.
RISING = ("validation/accuracy",)


def cost(metric: str, numbers: Mapping[str, Any] | None) -> float | None:
    """A number that is the lower the better an evaluation is; None where it has none, or none that is finite."""
    value = (numbers or {}).get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return -float(value) if metric in RISING else float(value)


@dataclass(frozen=True, order=True)
class Ranked:
    """An evaluation by its cost: the first of equals comes first."""

    cost: float
    step: int
    value: float


def best_of(metric: str, evaluations: Iterable[tuple[int, Mapping[str, Any]]]) -> Ranked | None:
    """The best of (step, numbers), the first of equals; None where none has the number."""
    ranked = [Ranked(c, step, float(x[metric])) for step, x in evaluations if (c := cost(metric, x)) is not None]
    return min(ranked, default=None)


def best_checkpoint(run_dir: str | Place) -> tuple[int, str, float]:
    """(step, metric, value) of the best checkpoint of a run.

    Raises:
      UserError: not a run, none of its checkpoints was evaluated, or a better one was evaluated and is not kept.
      WorkError: a checkpoint's record cannot be read now.
    """
    place = parse_place(run_dir)
    saved: dict[int, dict[str, Any]] = {}
    for step in step_folders(place):
        try:
            saved[step] = read_meta(place, step)
        except (ValueError, FileNotFoundError):
            continue
        except OSError as e:
            raise WorkError(f"{run_dir}: the record of checkpoint {step} cannot be read ({e.strerror or e})") from e
    if not saved:
        raise UserError(f"--best: {run_dir} has no checkpoint; it is for a run directory")
    metric = _metric(place, saved[max(saved)])
    best = best_of(metric, ((step, _numbers(meta)) for step, meta in saved.items()))
    steps = ", ".join(f"{s:,}" for s in saved)
    if best is None:
        raise UserError(
            f"--best: no checkpoint of {run_dir} was saved with a {metric} (there are {steps}); name one with --step=N"
        )
    # Step 0 is what the run started from, of which it saves nothing.
    evaluated = best_of(metric, ((r["step"], r) for r in read_metrics(place).evals if r["step"]))
    if evaluated is not None and evaluated.cost < best.cost:
        better = f"step {evaluated.step:,} of {run_dir} was the best ({metric} {evaluated.value:.5g})"
        raise UserError(
            f"--best: {better} and is not kept (there are {steps}; config.checkpoint.keep_best); --step={best.step} is "
            f"the best of these ({best.value:.5g})"
        )
    return best.step, metric, best.value


def _numbers(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    numbers = meta.get("metrics")
    return numbers if isinstance(numbers, Mapping) else {}


def _metric(place: Place, meta: Mapping[str, Any]) -> str:
    """The run's checkpoint.best_metric, by its config.json or else by its newest checkpoint's copy."""
    try:
        config: Any = loads(read_bytes(place / CONFIG_FILE), dict)
    except (OSError, ValueError, RecursionError):
        config = meta.get("config")
    checkpoint = config.get("checkpoint") if isinstance(config, Mapping) else None
    name = checkpoint.get("best_metric") if isinstance(checkpoint, Mapping) else None
    return name if name in BEST_METRICS else BEST_METRICS[0]
