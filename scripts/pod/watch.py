"""Keeps a run going until it is done: slices that are gone are asked for again, unfinished attempts repeated.

What it knows it asks the cloud for, so that it may be stopped and started at any moment: the resource, the newest
attempt on the workers, the newest checkpoint. How many attempts a checkpoint has had stands in each attempt's folder
and, for slices that are made anew, in their labels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmed_jax.common.errors import UserError, WorkError, warn
from scripts.pod import attempts
from scripts.pod.attempts import Outcome, Progress
from scripts.pod.checkout import Checkout, install
from scripts.pod.gcloud import Gcloud, GcloudFailed
from scripts.pod.resources import OVER, Order, Pod, Resource, check_type
from scripts.pod.workers import Answer, Worker, Workers, find_workers

STEP_LABEL, TRIES_LABEL = "mmed_jax_step", "mmed_jax_tries"
MOST_TRIES = 3
WRONG_INPUT = 2
NONE = "none"


class GaveUp(WorkError):
    """There is no sense in another attempt."""


@dataclass
class Watch:
    """A run that is looked after.

    order: what is asked for when there is no slice. shown: of so many workers the log is shown.
    """

    pod: Pod
    order: Order
    checkout: Checkout
    command: Sequence[str]
    shown: int
    # The progress of the last attempt that began; None while this watch knows of none.
    _last: Progress | None = field(default=None, init=False)

    def run(self) -> Outcome:
        """Returns when the run is finished, was ended by `stop`, or has said that its input is wrong.

        Raises:
          UserError: wrong input of the launcher; another command is going on there.
          WorkError: three attempts without a new checkpoint; three errors on the way to an attempt.
        """
        run_dir = run_dir_of(self.command)
        self.order.check()
        if not run_dir.startswith("gs://"):
            warn(f"run_dir={run_dir} is a path on the workers: unless it is a mount, a new slice begins at step 0")
        errors = 0
        while True:
            try:
                outcome = self._one_attempt(self._bring_up())
                errors = 0
            except GaveUp:
                raise
            except attempts.Unreachable as e:
                print(f"watch: {e}: the slice is deleted", flush=True)
                self.pod.delete()
                continue
            except WorkError as e:
                errors += not self._was_suspended()
                if errors >= MOST_TRIES:
                    raise
                print(f"watch: {e}; trying again", flush=True)
                self.pod.gcloud.pace.sleep(self.pod.gcloud.pace.retry)
                continue
            attempts.show(outcome)
            if not outcome.lost and (outcome.stopped or outcome.code in (0, WRONG_INPUT)):
                return outcome

    def _was_suspended(self) -> bool:
        """Whether the slice was taken away, which is no error however often it happens."""
        try:
            resource = self.pod.describe()
        except WorkError:
            return False
        return resource is not None and resource.state in ("SUSPENDING", "SUSPENDED")

    def _bring_up(self) -> Workers:
        """The workers of slices that are all there; those that are over are deleted and asked for again."""
        resource = self.pod.describe()
        if resource is not None:
            check_type(resource, self.order, self.pod.name)
            labelled = _progress_in(resource)
            if why := self._why_over(resource):
                self._last = self._last or labelled
                self._next_progress(None)  # gives up before anything is paid for
                print(f"watch: {why}: deleted and asked for again", flush=True)
                self.pod.delete()
                resource = None
            elif self._last is None and labelled is not None:
                # The slice was made for that attempt, which has not begun, or stands on the workers.
                self._last = Progress(labelled.step, labelled.tries - 1)
        if resource is None:
            progress = self._next_progress(None)
            self.pod.create(self.order, {STEP_LABEL: progress.step, TRIES_LABEL: str(progress.tries)})
        resource = self.pod.wait_until_active()
        return Workers(self.pod.gcloud, find_workers(self.pod.nodes(resource)))

    def _why_over(self, resource: Resource) -> str:
        if resource.state in OVER:
            return f"{self.pod.name} is {resource.state}{resource.why}"
        return self.pod.lost() if resource.state == "ACTIVE" else ""

    def _one_attempt(self, workers: Workers) -> Outcome:
        """Follows the attempt that is going on, takes the result of one that finished unseen, or starts one."""
        states = attempts.newest(workers)
        began = [(w, s) for w, s in states.items() if s["status"] != "none"]
        if began:
            _, last = max(began, key=lambda pair: pair[1]["attempt"])
            ours = attempts.command_of(last) == attempts.full_command(self.command, len(workers.all))
            if ours:
                self._last = attempts.progress_of(last)
            if any(s["status"] == "running" for _, s in began):
                return self._join(workers, last, ours)
            if ours and _finished(states):
                return Outcome(0)
        install(workers, self.checkout)
        progress = self._next_progress(workers)
        attempt = attempts.start(workers, self.command, progress)
        self._last = progress
        return attempts.wait(self.pod, workers, attempt, self.shown)

    def _join(self, workers: Workers, state: Answer, ours: bool) -> Outcome:
        if not ours:
            command = attempts.describe_command(attempts.command_of(state))
            raise UserError(f"another command is going on there ({command}); `stop` ends it")
        print(f"watch: attempt {state['attempt']} is going on", flush=True)
        return attempts.wait(self.pod, workers, state["attempt"], self.shown)

    def _next_progress(self, workers: Workers | None) -> Progress:
        """Where the next attempt begins, and which one it is there.

        Raises:
          GaveUp: it would be one too many.
        """
        last = self._last
        run_dir = run_dir_of(self.command)
        step = newest_step(self.pod.gcloud, run_dir, workers)
        if last is None or is_later(step, last.step):
            return Progress(step, 1)
        if last.tries >= MOST_TRIES:
            newest = "no checkpoint at all" if last.step == NONE else f"no checkpoint after step {last.step}"
            raise GaveUp(f"{last.tries} attempts have brought {newest} in {run_dir}: given up")
        return Progress(last.step, last.tries + 1)


def _finished(states: dict[Worker, Answer]) -> bool:
    """Whether the newest attempt is one on all workers and ended with 0 on each."""
    return len({s["attempt"] for s in states.values()}) == 1 and all(
        s["status"] == "ended" and s["code"] == "0" for s in states.values()
    )


def _progress_in(resource: Resource) -> Progress | None:
    """The attempt that a slice was made for, from its labels."""
    labels = resource.labels
    if TRIES_LABEL not in labels:
        return None
    return Progress(labels.get(STEP_LABEL, NONE), int(labels[TRIES_LABEL]))


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
