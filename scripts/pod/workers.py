"""The workers of all slices: one command on each at the same time, files to each, their answers, their logs."""

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmed_jax.common.errors import UserError, WorkError, printable
from scripts.pod.gcloud import Gcloud
from scripts.pod.resources import Node

SCRIPT = Path(__file__).with_name("on_worker.sh")
ANSWER = "@mmed_jax_pod "
# So many processes of gcloud at a time; each takes a second of processor time and some 80 MB.
AT_A_TIME = 32
# How long lines that are on their way are waited for after the run has ended.
_LAST_LINES_SECONDS = 3.0
SSH_FLAGS = (
    "--ssh-flag=-oServerAliveInterval=15",
    "--ssh-flag=-oServerAliveCountMax=4",
    "--ssh-flag=-oConnectTimeout=30",
)


@dataclass(frozen=True, order=True)
class Worker:
    """A virtual machine: `index` within its slice, `node` the slice's name. `label` stands before its lines."""

    slice: int
    index: int
    node: str = field(compare=False)
    label: str = field(compare=False)

    def __str__(self) -> str:
        return f"worker {self.label}"


@dataclass(frozen=True)
class Answer:
    """What came from a worker: its words KEY=VALUE, the lines before them, or why there are none.

    reached: False where ssh itself failed, so that nothing is known.
    """

    words: dict[str, str]
    lines: list[str]
    problem: str = ""
    reached: bool = True

    def __getitem__(self, key: str) -> str:
        return self.words.get(key, "")


def find_workers(nodes: Sequence[Node]) -> list[Worker]:
    """Every worker of the slices.

    Raises:
      WorkError: a slice is not READY.
      UserError: the cloud names no workers of a slice.
    """
    bad = [f"{n.name} is {n.state or 'in no state'}" for n in nodes if n.state != "READY"]
    if bad:
        raise WorkError(f"not all slices are there: {', '.join(bad)}")
    empty = [n.name for n in nodes if not n.workers]
    if empty or not nodes:
        raise UserError(f"the cloud names no workers (networkEndpoints) of {', '.join(empty) or 'the queued resource'}")
    several = len(nodes) > 1
    return [
        Worker(s, i, node.name, f"{s}/{i}" if several else str(i))
        for s, node in enumerate(nodes)
        for i in range(node.workers)
    ]


class Workers:
    """All workers of a pod, and gcloud to reach them by."""

    def __init__(self, gcloud: Gcloud, workers: Sequence[Worker]):
        self.gcloud, self.all = gcloud, list(workers)

    def ssh_arguments(self, worker: Worker, action: str, *arguments: str) -> list[str]:
        """The words of the gcloud command that runs an action of on_worker.sh on a worker."""
        script = SCRIPT.read_text(encoding="utf-8")
        command = shlex.join(["bash", "-c", script, "on_worker", action, *arguments])
        return self.gcloud.tpu(
            "tpu-vm", "ssh", worker.node, f"--worker={worker.index}", f"--command={command}", *SSH_FLAGS
        )

    def ask_one(self, worker: Worker, action: str, *arguments: str, timeout: float | None = None) -> Answer:
        """Runs an action of on_worker.sh and reads its answer; never raises for what goes wrong there."""
        call = self.ssh_arguments(worker, action, *arguments)
        code, out, err = self.gcloud.attempt(call, timeout or self.gcloud.pace.command)
        *lines, last = [printable(line) for line in out.splitlines()] or [""]
        if last.startswith(ANSWER):
            text = last.removeprefix(ANSWER)
            if text.startswith("error "):
                return Answer({}, lines, text.removeprefix("error "))
            return Answer(dict(word.partition("=")[::2] for word in text.split()), lines)
        reason = ([line.strip() for line in err.splitlines() if line.strip()] or [f"exit code {code}"])[-1]
        return Answer({}, lines, f"ssh: {reason}", reached=False)

    def ask(
        self, action: str, *arguments: str, only: Iterable[Worker] | None = None, timeout: float | None = None
    ) -> dict[Worker, Answer]:
        """`ask_one` of all workers (or of `only` some) at the same time."""
        return self.each(lambda w: self.ask_one(w, action, *arguments, timeout=timeout), only)

    def each(self, work: Callable[[Worker], Answer], only: Iterable[Worker] | None = None) -> dict[Worker, Answer]:
        """The answer of each worker, in threads."""
        workers = sorted(self.all if only is None else only)
        if not workers:
            return {}
        with ThreadPoolExecutor(min(AT_A_TIME, len(workers))) as pool:
            return dict(zip(workers, pool.map(work, workers)))

    def copy_one(self, worker: Worker, file: Path) -> Answer:
        """Copies a file into the worker's home folder."""
        target = self.gcloud.tpu("tpu-vm", "scp", str(file), f"{worker.node}:", f"--worker={worker.index}")
        code, _, err = self.gcloud.attempt(target, self.gcloud.pace.install)
        if code:
            return Answer({}, [], f"scp: {(err.strip().splitlines() or [f'exit code {code}'])[-1]}", reached=False)
        return Answer({}, [])


def first_problem(answers: dict[Worker, Answer]) -> str:
    """ "worker 3: why" of the first worker with a problem, and how many others have one; "" when none has."""
    bad = [(w, a.problem) for w, a in sorted(answers.items()) if a.problem]
    if not bad:
        return ""
    more = f" (and {len(bad) - 1} more: {', '.join(w.label for w, _ in bad[1:6])})" if len(bad) > 1 else ""
    return f"{bad[0][0]}: {bad[0][1]}{more}"


class Follower:
    """While it is entered, a thread for each of `shown` copies the log here; lost connections are made anew."""

    def __init__(self, workers: Workers, attempt: str, shown: Sequence[Worker]):
        self._workers, self._attempt = workers, attempt
        self._over = threading.Event()
        self._processes: dict[Worker, subprocess.Popen] = {}
        self._threads = [threading.Thread(target=self._follow, args=(w,), daemon=True) for w in shown]

    def __enter__(self) -> "Follower":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._over.set()
        patience = 0.0 if kind else _LAST_LINES_SECONDS
        for thread in self._threads:
            thread.join(patience)
        while any(thread.is_alive() for thread in self._threads):
            for process in list(self._processes.values()):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            for thread in self._threads:
                thread.join(0.2)

    def _follow(self, worker: Worker) -> None:
        seen, pause = 0, self._workers.gcloud.pace.retry
        while not self._over.is_set():
            call = self._workers.ssh_arguments(worker, "follow", self._attempt, str(seen))
            process = self._processes[worker] = self._workers.gcloud.stream(call)
            assert process.stdout is not None
            before = seen
            for line in process.stdout:
                seen += len(line)
                text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
                print(f"[{worker.label}] {printable(text)}", flush=True)
            process.wait()
            # A log whose run has ended here, while others still run, is asked for ever more rarely.
            pause = self._workers.gcloud.pace.retry if seen > before else pause * 2
            self._over.wait(pause)


def show_tail(workers: Workers, attempt: str, lines: int, shown: Sequence[Worker]) -> None:
    """Prints the last lines of each log once."""
    for worker, answer in workers.ask("tail", attempt, str(lines), only=shown).items():
        for line in answer.lines or [answer.problem]:
            print(f"[{worker.label}] {line}", flush=True)
