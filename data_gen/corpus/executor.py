"""Runs the parts of a stage in processes of their own on this machine; a process that dies is seen, retried and named.

datatrove's LocalPipelineExecutor waits for ever for a worker that was killed (by the kernel, for memory), and stops all
tasks where one fails. Here a task is a process; its end is what the parent waits for, and what counts is which parts
are there afterwards. Workers end with their parent, however it ends.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_gen.corpus.stage_folder import Stage, StageFolder
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.progress import counting_bar

RETRIES = 2
# Imported once, in the process that workers are forked from.
PRELOAD = ("data_gen.corpus.preloaded",)


class Executor(Protocol):
    """What makes the parts of a stage that are not there yet."""

    def run(self, folder: StageFolder) -> None:
        """Raises WorkError, naming tasks and their parts, where some cannot be made; UserError where input is wrong."""


@dataclass(frozen=True)
class Failure:
    """A task that did not make all its parts. `user`: its input is wrong, no second try would help."""

    task: int
    parts: tuple[int, ...]
    problem: str
    tries: int
    user: bool = False


def split_tasks(pending: Sequence[int], tasks: int) -> list[list[int]]:
    """Parts in `tasks` shares (fewer where there are fewer parts; 0: one part each), neighbours together."""
    count = min(tasks or len(pending), len(pending))
    bounds = [round(i * len(pending) / count) for i in range(count + 1)] if count else [0]
    return [list(pending[a:b]) for a, b in zip(bounds, bounds[1:])]


def complete_stage(work: Path, stage: Stage, store: str, executor: Executor, say: Callable[[str], None]) -> StageFolder:
    """The folder of a stage with all its parts: those that are not there yet are made.

    Args:
      work: where the folders of stages lie. store: where parts are kept in a bucket, "" for nowhere.
    """
    folder = StageFolder.make(work, stage, store)
    folder.sync()
    pending = len(folder.pending())
    say(f"{folder.path.name}: {len(folder.parts):,} parts, {pending:,} to make")
    if pending:
        executor.run(folder)
        folder.sync()
    folder.check()
    return folder


class TaskQueue:
    """The tasks of a stage that wait to be run, and the failures of those for which no try is left.

    Attributes:
      waiting: (number, parts, which try it is), in order. failures: see raise_failures.
    """

    def __init__(self, folder: StageFolder, tasks: int, retries: int, say: Callable[[str], None]) -> None:
        self._name, self._retries, self._say = folder.path.name, retries, say
        shares = split_tasks(folder.pending(), tasks)
        self.waiting = deque((number, parts, 1) for number, parts in enumerate(shares))
        self.failures: list[Failure] = []

    def settle(self, failure: Failure | None, number: int, parts: list[int], attempt: int) -> bool:
        """Whether a task that ended has made its parts; one that has not waits for its next try, where it has one."""
        if failure is None:
            return True
        if failure.user or attempt > self._retries:
            self.failures.append(failure)
        else:
            self._say(f"{self._name}: task {number}: {failure.problem}; tried again")
            self.waiting.append((number, parts, attempt + 1))
        return False


def last_line(log: Path) -> str:
    """The last line of a log that says something, without "error: "; "" where there is none."""
    try:
        with open(log, "rb") as f:
            f.seek(max(0, log.stat().st_size - 4000))
            lines = f.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip().removeprefix("error: ") for line in reversed(lines) if line.strip()), "")


def raise_failures(folder: StageFolder, failures: Sequence[Failure]) -> None:
    """Raises the error that names them, or returns where there are none."""
    if not failures:
        return
    for failure in failures:
        if failure.user:
            raise UserError(failure.problem)
    failures = sorted(failures, key=lambda f: f.task)
    texts = [
        f"task {f.task} (parts {_span(f.parts)}): {f.problem} ({f.tries} {'try' if f.tries == 1 else 'tries'})"
        for f in failures[:5]
    ]
    more = f" and {len(failures) - 5} more tasks" if len(failures) > 5 else ""
    raise WorkError(
        f"stage {folder.path.name}: {'; '.join(texts)}{more}; logs: {folder.path / 'logs'}; the same command goes on"
    )


def _span(parts: Sequence[int]) -> str:
    return str(parts[0]) if len(parts) == 1 else f"{parts[0]}-{parts[-1]}"


class LocalExecutor:
    """Processes on this machine.

    Args:
      workers: processes at a time; 0 = one a core.
      tasks: into how many tasks the parts of a stage are divided; 0 = one each.
      memory_gb: private memory that a worker may take; 0 = no limit.
      retries: further tries of a task that failed. preload: modules that workers have at their start.
    """

    def __init__(
        self,
        workers: int = 0,
        tasks: int = 0,
        memory_gb: float = 0,
        retries: int = RETRIES,
        say: Callable[[str], None] = lambda text: None,
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self.tasks, self.memory_gb, self.retries, self.say = tasks, memory_gb, retries, say
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def run(self, folder: StageFolder) -> None:
        folder.clean()
        queue = TaskQueue(folder, self.tasks, self.retries, self.say)
        running: dict[Any, tuple[Any, int, list[int], int]] = {}
        try:
            with counting_bar(folder.path.name, len(folder.pending()), unit=" parts", in_logs=False) as bar:
                while queue.waiting or running:
                    while queue.waiting and len(running) < self.workers:
                        number, parts, attempt = queue.waiting.popleft()
                        process = self._start(folder, number, parts)
                        running[process.sentinel] = (process, number, parts, attempt)
                    for sentinel in multiprocessing.connection.wait(list(running)):
                        process, number, parts, attempt = running.pop(sentinel)
                        process.join()
                        failure = self._judge(folder, process.exitcode, number, parts, attempt)
                        if queue.settle(failure, number, parts, attempt):
                            bar.update(len(parts))
        finally:
            for process, *_ in running.values():
                process.kill()
            for process, *_ in running.values():
                process.join()
            folder.clean()
        raise_failures(folder, queue.failures)

    def _start(self, folder: StageFolder, number: int, parts: list[int]) -> Any:
        log = folder.path / "logs" / f"task-{number:06d}.log"
        arguments = str(folder.path), parts, str(log), int(self.memory_gb * 2**30)
        for attempt in range(self.retries + 1):
            process = self._context.Process(target=_work, args=arguments, daemon=True)
            try:
                process.start()
                return process
            except (EOFError, ConnectionError) as e:  # the process that workers are forked from was killed just now
                problem = e
                time.sleep(0.2 * attempt)
        raise WorkError(f"{folder.path.name}: no process can be started ({one_line(problem)})")

    def _judge(self, folder: StageFolder, code: int, number: int, parts: list[int], attempt: int) -> Failure | None:
        """Why a task that ended so has not made its parts; None where it has."""
        missing = tuple(n for n in parts if not folder.part(n).exists())
        if not missing:
            return None
        problem = last_line(folder.path / "logs" / f"task-{number:06d}.log")
        if code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
                problem = f"its process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
        return Failure(number, missing, problem or f"its process ended with exit code {code}", attempt, code == 2)


def _work(stage: str, parts: list[int], log: str, memory_bytes: int) -> None:
    """Of a worker process: runs the parts and ends."""
    from data_gen.corpus.run_task import run_reporting

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    code = run_reporting(Path(stage), parts)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
