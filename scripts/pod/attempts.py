"""One start of a command on all workers: begun together, waited for, ended; which worker failed first, and how."""

import base64
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mmed_jax.common.errors import UNFINISHED, UserError, WorkError, warn
from scripts.pod.gcloud import GcloudFailed
from scripts.pod.resources import Pod
from scripts.pod.workers import Answer, Follower, Worker, Workers, first_problem

LAST_LINES = 20
# Where no worker at all is reached, so many times longer is waited before that is an error.
ALL_SILENT = 6


class Unreachable(WorkError):
    """Some workers are not reached for long, others are: the cloud says nothing, and the run cannot go on."""


@dataclass(frozen=True)
class Progress:
    """How far a run had come when an attempt began: the newest checkpoint ("none"), and which attempt at it this is."""

    step: str = "none"
    tries: int = 1


@dataclass
class Outcome:
    """How an attempt ended.

    code: 0 finished; 75 (UNFINISHED) stopped and to be started again; else that of the first worker that failed.
    lost: why workers are gone, in words; "" when all were there to the end.
    lines: the last ones of the first worker that failed.
    stopped: somebody has asked for its end by `stop`.
    """

    code: int
    worker: Worker | None = None
    lines: list[str] = field(default_factory=list)
    lost: str = ""
    stopped: bool = False

    def describe(self) -> str:
        """In a line."""
        if self.lost:
            return f"workers are gone: {self.lost}"
        if self.code == 0:
            return "finished: exit code 0 on all workers"
        if self.code == UNFINISHED:
            return f"stopped before its end, saved: exit code {UNFINISHED}; the same command goes on"
        return f"{self.worker} failed first, with exit code {self.code}"


def name_attempt() -> str:
    """A name of an attempt; names sort by time."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")


def full_command(command: Sequence[str], workers: int) -> list[str]:
    """The command as it is started: train is told how many processes there have to be."""
    if "mmed_jax.train" in command and not any("distributed.expect_processes" in c for c in command):
        return [*command, f"--config.distributed.expect_processes={workers}"]
    return list(command)


# NAME=VALUE and //USER:PASSWORD@, wherever a name ends so: HF_TOKEN, --api_key; not --tokenizer.
_SECRET_NAME = r"(?:^|[^a-zA-Z])(?:api|access)?(?:key|token|secret|password|passwd)"
_SECRETS = (
    (re.compile(rf"(?i)({_SECRET_NAME}=)[^\s;&'\"]+"), r"\1***"),
    (re.compile(r"(//)[^/\s@]*:[^/\s@]*(?=@)"), r"\1***"),
)
_SECRET_FLAG = re.compile(rf"(?i)-.*{_SECRET_NAME}")


def describe_command(words: Sequence[str]) -> str:
    """A command for a terminal or an error, with *** in place of passwords, keys and tokens."""
    shown = []
    for before, word in zip(["", *words], words):
        for pattern, replacement in _SECRETS:
            word = pattern.sub(replacement, word)
        shown.append("***" if _SECRET_FLAG.fullmatch(before) else word)
    return shlex.join(shown)


def start(workers: Workers, command: Sequence[str], progress: Progress) -> str:
    """Starts the command on all workers and returns the attempt's name. All run it, or none does.

    Raises:
      WorkError: it did not start on a worker, which is named; it was ended where it had started.
    """
    attempt = name_attempt()
    words = full_command(command, len(workers.all))
    arguments = (attempt, progress.step, str(progress.tries), shlex.join(words), *words)
    print(f"attempt {attempt} on {len(workers.all)} workers: {describe_command(words)}", flush=True)
    try:
        answers = workers.ask("start", *arguments)
    except BaseException:  # Ctrl-C: what has started would wait for the others
        end(workers, attempt, workers.all)
        raise
    if problem := first_problem(answers):
        # One that was not reached may have started all the same.
        begun = [w for w, a in answers.items() if not a.problem or not a.reached]
        end(workers, attempt, begun)
        raise WorkError(f"not started: {problem}; ended on the {sum(not a.problem for a in answers.values())} others")
    return attempt


def end(workers: Workers, attempt: str, where: Sequence[Worker]) -> list[Worker]:
    """SIGTERM, and SIGKILL where that does not help within the grace; returns the workers where it still runs."""
    pace = workers.gcloud.pace
    for signal in ("TERM", "KILL"):
        workers.ask("signal", attempt, signal, only=where)
        since = time.monotonic()
        while time.monotonic() - since < pace.grace:
            states = workers.ask("state", attempt, only=where)
            where = [w for w, a in states.items() if a["status"] == "running"]
            if not where:
                return []
            pace.sleep(min(pace.poll, 5))
    return list(where)


def stop(workers: Workers, attempt: str) -> int:
    """SIGTERM to the run on every worker, then waits until it has saved and ended there.

    Prints each worker's exit code and last line. Returns 0 when all ended with 0 or 75, 1 when one did not, or still
    runs after `pace.stop` seconds.
    """
    if problem := first_problem(workers.ask("signal", attempt, "TERM", "stop")):
        raise WorkError(problem)
    pace, since, running = workers.gcloud.pace, time.monotonic(), workers.all
    while time.monotonic() - since < pace.stop:
        states = workers.ask("state", attempt)
        running = [w for w, a in states.items() if a["status"] == "running" or not a.reached]
        if not running:
            for worker, answer in workers.ask("tail", attempt, "5").items():
                code = states[worker]["code"] or "none: it was killed"
                last = [line for line in answer.lines if line.strip()][-1:]
                print(f"[{worker.label}] exit code {code}: {' '.join(last)}", flush=True)
            return int(any(a["code"] not in ("0", str(UNFINISHED)) for a in states.values()))
        pace.sleep(min(pace.poll, 5))
    print(f"still running after {pace.stop:.0f} s on: {', '.join(str(w) for w in running)}", flush=True)
    return 1


def newest(workers: Workers) -> dict[Worker, Answer]:
    """The newest attempt's state on every worker.

    Raises:
      WorkError: a worker is not reached.
    """
    states = workers.ask("state")
    if problem := first_problem(states):
        raise WorkError(problem)
    return states


def command_of(state: Answer) -> list[str]:
    """The command of an attempt's state."""
    return shlex.split(base64.b64decode(state["command"]).decode())


def progress_of(state: Answer) -> Progress:
    """The progress with which an attempt began."""
    return Progress(state["step"] or "none", int(state["tries"] or 1))


def refuse_second(states: dict[Worker, Answer]) -> None:
    """Raises a UserError where a run is going on."""
    for worker, state in states.items():
        if state["status"] == "running":
            raise UserError(
                f"{worker}: attempt {state['attempt']} is going on ({describe_command(command_of(state))}); "
                "`logs` follows it, `stop` ends it"
            )


def wait(pod: Pod, workers: Workers, attempt: str, shown: int) -> Outcome:
    """Shows the logs of the first `shown` workers until the attempt has ended on all, or workers are gone."""
    with Follower(workers, attempt, workers.all[:shown]):
        states, failed, lost = _wait_for_end(pod, workers, attempt)
    if lost:
        return Outcome(1, lost=lost)
    return _outcome(workers, attempt, states, failed)


def _wait_for_end(pod: Pod, workers: Workers, attempt: str) -> tuple[dict[Worker, Answer], list[Worker], str]:
    """The last state of each worker, those that had failed when the first failure was seen, why workers are gone."""
    pace = workers.gcloud.pace
    reached = dict.fromkeys(workers.all, time.monotonic())
    failed: list[Worker] = []
    failed_at = 0.0
    while True:
        began = time.monotonic()
        states = workers.ask("state", attempt)
        now = time.monotonic()
        reached.update({w: now for w, a in states.items() if a.reached})
        if silent := [w for w, a in states.items() if not a.reached]:
            longest = now - min(reached[w] for w in silent)
            if lost := _why_lost(pod, last_try=longest > pace.unreachable):
                return states, failed, lost
            about = f"for {longest:.0f} s, though the cloud does not call it gone: {states[silent[0]].problem}"
            if len(silent) < len(workers.all) and longest > pace.unreachable:
                raise Unreachable(f"{silent[0]} is not reached {about}")
            if longest > ALL_SILENT * pace.unreachable:  # more likely our own ssh than all of them
                raise WorkError(f"no worker is reached {about}")
        vanished = [w for w, a in states.items() if a.reached and a["status"] == "none"]
        if vanished:  # the disk is another: the machine was made anew
            return states, failed, f"{vanished[0]} knows nothing of attempt {attempt}"
        running = [w for w, a in states.items() if a["status"] == "running"]
        if not failed:
            failed, failed_at = [w for w, a in states.items() if _failed(a)], now
        if not running and not silent:
            return states, failed, ""
        if failed and now - failed_at > pace.grace:
            print(f"{failed[0]} has failed and {len(running)} others still run: they are ended", flush=True)
            end(workers, attempt, running)
        # With many workers a look takes long and costs processor time here: look half of the time at most.
        pace.sleep(max(pace.poll, time.monotonic() - began))


def _why_lost(pod: Pod, last_try: bool) -> str:
    try:
        return pod.lost()
    except GcloudFailed as e:  # the network here, perhaps: the run needs neither it nor us
        if last_try:
            raise
        warn(str(e))
        return ""


def _failed(state: Answer) -> bool:
    return state["status"] == "killed" or (state["status"] == "ended" and int(state["code"]) not in (0, UNFINISHED))


def _outcome(workers: Workers, attempt: str, states: dict[Worker, Answer], failed: Sequence[Worker]) -> Outcome:
    stopped = any(a["stopped"] for a in states.values())
    if not failed:
        codes = {a["code"] for a in states.values()}
        return Outcome(UNFINISHED if str(UNFINISHED) in codes else 0, stopped=stopped)
    # One that was killed with its machine left no time; the others failed for want of it.
    first = min(failed, key=lambda w: (int(states[w]["at"] or 0), w))
    lines = workers.ask_one(first, "tail", attempt, str(LAST_LINES)).lines
    return Outcome(int(states[first]["code"] or 1), first, lines, stopped=stopped)


def show(outcome: Outcome) -> None:
    """Prints how it ended, with the last lines of the worker that failed first."""
    if outcome.worker is not None:
        print(f"---- the last lines of {outcome.worker}", flush=True)
        print("\n".join(outcome.lines).rstrip(), flush=True)
        print("----", flush=True)
    print(outcome.describe(), flush=True)
