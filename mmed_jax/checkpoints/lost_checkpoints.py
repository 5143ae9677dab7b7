"""Checkpoints that a run had and that are not there: an unmounted volume, a clean-up script, a link to nothing."""

from mmed_jax.checkpoints.metrics_file import METRICS_FILE, Records, read_metrics
from mmed_jax.checkpoints.restore import available_steps, say
from mmed_jax.checkpoints.run_directory import CHECKPOINTS, CONFIG_FILE, odd_steps
from mmed_jax.common.errors import UserError
from mmed_jax.common.jsonl import loads
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import Place

# In every record of a training step: the newest checkpoint that was whole by then.
SAVED_KEY = "checkpoint_step"


def check_lost(run_dir: Place) -> None:
    """Refuses to start at step 0 where the run's own numbers say that a checkpoint had been saved.

    A run that was killed before its first checkpoint has nothing to lose and starts again.

    Raises:
      UserError: with the step and what to do.
    """
    records = read_metrics(run_dir)
    saved = _last_saved(records, _every_steps(run_dir))
    if saved is not None:
        reached = max([r["step"] for r in records.train] + [saved])
        raise UserError(
            f"run_dir={run_dir}: {METRICS_FILE} says that step {reached:,} was reached and checkpoints were saved, but "
            f"{run_dir / CHECKPOINTS} holds none: mount or restore it to go on from there, or begin again at step 0 "
            "with --config.restart=true"
        )


def say_older(run_dir: Place, step: int) -> None:
    """Says that the newest checkpoint, of `step`, is older than one that the run's own numbers know of."""
    saved = _last_saved(read_metrics(run_dir), 0)
    if saved is not None and saved > step:
        say(
            f"warning: {METRICS_FILE} says that a checkpoint of step {saved:,} was saved, the newest in "
            f"{run_dir / CHECKPOINTS} is of step {step:,}: going on from there, what came after it is trained again"
        )


def _last_saved(records: Records, every_steps: int) -> int | None:
    """A step of which a checkpoint was saved since the run last began at step 0; None when nothing says so."""
    begun, steps = False, []
    for event in records.events:
        if event["event"] == "start" and event["step"] == 0:
            begun, steps = True, []
        # "stopped" is written before its checkpoint is whole; of step 0 there is none.
        elif event["event"] in ("start", "end") and event["step"]:
            steps.append(int(event["step"]))
    # (Records beyond the last start at step 0 are left out by the reader.)
    steps += [r[SAVED_KEY] for r in records.train if isinstance(r.get(SAVED_KEY), int)]
    reached = max((r["step"] for r in records.train), default=0)
    if reached and not (begun or records.events):
        steps.append(reached)  # numbers without a beginning: nothing says that there was nothing to lose
    if every_steps and reached > 2 * every_steps:  # of an earlier version; the second save waits for the first
        steps.append(every_steps)
    return max(steps, default=None)


def _every_steps(run_dir: Place) -> int:
    try:
        value = loads(read_bytes(run_dir / CONFIG_FILE), dict)["checkpoint"]["every_steps"]
        return value if isinstance(value, int) and value > 0 else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def say_odd_steps(run_dir: Place) -> None:
    """Says what has a checkpoint's name and is no folder; stops where it is the newest.

    Raises:
      UserError: nothing newer is a folder. A link may lead to storage that is not mounted now.
    """
    newest = max(available_steps(run_dir), default=-1)
    for step, what in odd_steps(run_dir).items():
        line = f"checkpoint {run_dir / CHECKPOINTS / str(step)} is {what}"
        if step > newest:
            raise UserError(f"{line}: mount or restore what belongs there, or remove it to use older ones")
        say(f"warning: {line}; it is not used")
