"""The best evaluation of a run so far: when to stop early, and what to say of it at the end."""

from collections.abc import Mapping
from typing import Any

from mmed_jax.checkpoints.best import cost


def changed_sample(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A warning where a run goes on with another sample to be evaluated on than its checkpoint's config says; else "".

    Args:
      saved, now: configs, as mappings.
    """
    key = "eval_questions" if now["checkpoint"]["best_metric"] == "validation/accuracy" else "eval_rows"
    if saved.get(key, now[key]) == now[key]:
        return ""
    return (
        f"warning    {key} was {saved[key]} and is {now[key]}: evaluations from here on are of another sample, and are "
        "compared with those before all the same"
    )


class BestEvaluation:
    """Counts evaluations by one number of them; that of the untrained model, at step 0, is one of them.

    Args:
      metric: config.checkpoint.best_metric. record: of an earlier start, from its checkpoint; one of another metric is
        begun anew.
      rows_per_epoch, rows: of the training data and of a step's batch.

    Attributes:
      record: JSON values that go into every checkpoint and bring this back: {"metric", "step" and "value" of the best,
        "last_step", "last_value", "since": evaluations after the best}.
    """

    def __init__(self, metric: str, record: Mapping[str, Any] | None, *, rows_per_epoch: int, rows: int):
        fresh = dict.fromkeys(("step", "value", "last_step", "last_value")) | {"metric": metric, "since": 0}
        self.record: dict[str, Any] = dict(record) if record and record.get("metric") == metric else fresh
        self.metric, self._rows_per_epoch, self._rows = metric, rows_per_epoch, rows

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """An evaluation after `step` updates; one that has no such number, or NaN, is no improvement."""
        r, new = self.record, cost(self.metric, numbers)
        r["last_step"], r["last_value"] = step, numbers.get(self.metric) if new is not None else None
        best = cost(self.metric, {self.metric: r["value"]})
        if new is not None and (best is None or new < best):
            r["step"], r["value"], r["since"] = step, float(numbers[self.metric]), 0
        else:
            r["since"] += 1

    def is_over(self, stop_after: int) -> bool:
        """Whether a run with config.stop_after = `stop_after` ends here."""
        return bool(stop_after) and self.record["since"] >= stop_after

    def has_ended(self, step: int, stop_after: int) -> bool:
        """Whether a run that is brought back after `step` updates ended there. One that was stopped elsewhere and is to
        go on with a smaller config.stop_after may only end at its next evaluation."""
        return self.is_over(stop_after) and self.record["last_step"] == step

    def reason(self) -> str:
        """Why a run that is over ended early."""
        since = f"{self.metric} has not become better in {self.record['since']} evaluations"
        return since if self.record["step"] is None else f"{since} since {self._best()}"

    def describe(self) -> dict[str, Any]:
        """{"best_metric", "best_step", "best_value", "best_epoch"} for metrics.jsonl; {} before an evaluation."""
        if self.record["step"] is None:
            return {}
        names = {"best_step": self.record["step"], "best_value": self.record["value"]}
        return {"best_metric": self.metric, **names, "best_epoch": self._epoch(self.record["step"])}

    def lines(self, run: str, *, kept: bool) -> str:
        """The closing lines of a run: its best evaluation, and a warning where that is not the last; "" without one.

        Args:
          kept: whether the checkpoints of best evaluations are kept.
        """
        r = self.record
        if r["step"] is None:
            return ""
        line = f"best       {self._best()}"
        if r["step"] == r["last_step"]:
            return f"{line}, the last evaluation"
        last = f"the last, at {self._place(r['last_step'])}, has {_shown(r['last_value'])}"
        if r["step"] == 0:
            return f"{line}\nwarning    no evaluation was better than that of the untrained model: {last}"
        if r["last_value"] == r["value"]:
            return f"{line}, and no better since"
        take = f"python -m mmed_jax.export --model={run} --best --output=DIR takes that step"
        if not kept:
            take = "its checkpoint is not kept (config.checkpoint.keep_best=0)"
        return f"{line}\nwarning    the best evaluation is not the last: {last}; {take}"

    def _best(self) -> str:
        return f"{self.metric} {_shown(self.record['value'])} at {self._place(self.record['step'])}"

    def _epoch(self, step: int) -> float:
        return round(step * self._rows / self._rows_per_epoch, 2)

    def _place(self, step: int) -> str:
        return f"step {step:,} (epoch {self._epoch(step):g})" if step else "step 0 (untrained)"


def _shown(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4f}"
