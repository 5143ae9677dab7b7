"""The newest finished checkpoint of a run, seen from outside: in its bucket, or on a worker's disk."""

import re
from collections.abc import Sequence

from mmed_jax.common.errors import UserError, WorkError
from scripts.pod.gcloud import Gcloud, GcloudFailed
from scripts.pod.workers import Workers

NONE = "none"


def run_dir_of(command: Sequence[str]) -> str:
    """The run directory that a command of train names.

    Raises:
      UserError: none; a run that has to survive its machines needs one.
    """
    for before, word in zip(["", *command], command):
        if word.startswith("--config.run_dir="):
            return word.partition("=")[2].rstrip("/")
        if before == "--config.run_dir":
            return word.rstrip("/")
    raise UserError("watch: the command has no --config.run_dir=gs://BUCKET/FOLDER, so no checkpoint can be looked for")


def newest_step(gcloud: Gcloud, run_dir: str, workers: Workers | None) -> str:
    """The step of the newest finished checkpoint; "none" where there is none yet.

    Raises:
      WorkError: the place cannot be read, which says nothing about checkpoints.
    """
    if run_dir.startswith("gs://"):
        return _in_bucket(gcloud, run_dir)
    if workers is None:
        return NONE
    answer = workers.ask_one(workers.all[0], "steps", run_dir)
    if answer.problem:
        raise WorkError(f"{workers.all[0]}: {answer.problem}")
    return answer["step"]


def _in_bucket(gcloud: Gcloud, run_dir: str) -> str:
    # The file that is written last; a step without it is unfinished.
    pattern = f"{run_dir}/checkpoints/*/commit_success.txt"
    for left in reversed(range(gcloud.pace.tries)):
        try:
            listed = gcloud.call(["storage", "ls", pattern], gcloud.pace.command)
            break
        except GcloudFailed as e:
            if e.not_found:
                return NONE
            if not left:
                raise
            gcloud.pace.sleep(gcloud.pace.retry)
    steps = [int(n) for n in re.findall(r"/checkpoints/(\d+)/commit_success\.txt", listed)]
    return str(max(steps)) if steps else NONE


def is_later(step: str, other: str) -> bool:
    """Whether a step lies behind another; "none" is before all."""
    return step != NONE and (other == NONE or int(step) > int(other))
