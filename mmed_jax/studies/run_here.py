"""The steps of a study on this machine, one after the other, each in a process of its own with its log."""

import contextlib
import ctypes
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mmed_jax.common import errors
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.paths import REPO
from mmed_jax.common.progress import clock
from mmed_jax.studies.step_key import benchmark_files, missing_inputs
from mmed_jax.studies.tasks import (
    DONE,
    FAILED,
    RUNNING,
    UNFINISHED,
    Plan,
    Task,
    changed_settings,
    is_done,
    read_state,
    write_state,
)

# Before "-m mmed_jax.COMMAND": the interpreter of this process.
PYTHON = (sys.executable,)
_TAIL = 1 << 16  # bytes of a log that are looked through for its last error
_CALL = "$ python -m mmed_jax."  # how the log of a call begins
_PR_SET_PDEATHSIG = 1
# Looked up here: between fork and exec nothing may be loaded.
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


say_now = functools.partial(print, flush=True)  # hours lie between the lines, and they may go to a file


def run_tasks(plan: Plan, say: Callable[[str], None] = say_now) -> int:
    """Runs what is not done yet, in order; what is done is skipped.

    Returns:
      0, or errors.UNFINISHED where a signal stopped it, or one step: the same call goes on.

    Raises:
      UserError: something that is read is not there, before anything is run; another process runs this study.
      WorkError: a step failed, with its name, its last error and its log.
    """
    check_inputs(plan)
    with _one_runner(plan.folder) as processes:
        count = len(plan.tasks)
        for number, task in enumerate(plan.tasks, start=1):
            place = f"[{number}/{count}]"
            if is_done(task):
                if read_state(task.folder).get("state") != DONE:
                    write_state(task, DONE)
                say(f"{place:<10} {task.label}: done before")
                continue
            if difference := changed_settings(task, plan.tasks):
                say(f"{place:<10} {task.label}: {difference}")
            say(f"{place:<10} {task.label}: {task.step.command}, log {task.log}")
            code, seconds = _run(task, processes)
            if processes.stopped or code == errors.UNFINISHED:
                why = f"{processes.stopped}: " if processes.stopped else ""
                ended = f"{why}stopped after {clock(seconds)}"
                say(f"{place:<10} {task.label}: {ended}; the same command goes on with it")
                return errors.UNFINISHED
            if code:
                ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
                raise WorkError(f"step {task.label} {ended}: {last_error(task.log)}; its log: {task.log}")
            say(f"{place:<10} {task.label}: done in {clock(seconds)}")
    return 0


def check_inputs(plan: Plan) -> None:
    """Raises UserError for the first thing that a step which is not done would look for in vain."""
    for task in plan.tasks:
        if is_done(task):
            continue
        if missing := missing_inputs(task.step):
            raise UserError(f"step {task.label}: {missing[0]} is not there")
        try:
            benchmark_files(task.step)
        except UserError as e:
            raise e.at(f"step {task.label}") from None


def last_error(log: Path) -> str:
    """The last line of the last call's log that begins with "error:", else its last line."""
    try:
        with open(log, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - _TAIL))
            lines = [line.strip() for line in f.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError as e:
        return f"no log ({e.strerror or e})"
    calls = [k for k, line in enumerate(lines) if line.startswith(_CALL)]
    lines = lines[calls[-1] + 1 :] if calls else lines  # an earlier call may have ended otherwise
    found = [line for line in lines if line.startswith("error:")]
    return one_line(Exception((found or lines or ["it has written nothing"])[-1].removeprefix("error: ")))


def _run(task: Task, processes: "_Processes") -> tuple[int, float]:
    """(exit code, seconds) of a task, with its state before and after."""
    if task.step.command in ("export", "merge") and task.result.exists():
        shutil.rmtree(task.result)  # not whole, else it would be done
    before = read_state(task.folder)
    calls = int(before.get("calls", 0)) + 1
    started = time.monotonic()
    write_state(task, RUNNING, calls=calls)
    code = processes(task)
    seconds = time.monotonic() - started
    state = DONE if code == 0 else UNFINISHED if code == errors.UNFINISHED else FAILED
    write_state(task, state, exit_code=code, calls=calls, seconds=float(before.get("seconds", 0.0)) + seconds)
    return code, seconds


# ---- Processes ------------------------------------------------------------------------------------------------------


class _Processes:
    """Runs tasks as processes. A signal to this one reaches the step as SIGTERM, so that a training saves.

    stopped: the name of the signal that came, "" before. A second Ctrl-C kills the step.
    """

    def __init__(self, lock: int) -> None:
        self.stopped = ""
        self._lock = lock
        self._process: subprocess.Popen | None = None

    def __call__(self, task: Task) -> int:
        """Runs a task to its end; the exit code, negative: the signal that ended it."""
        if self.stopped:
            return errors.UNFINISHED
        path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH", ""))))
        with open(task.log, "ab") as log:
            log.write(f"$ {task.shell()}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [*PYTHON, "-m", f"mmed_jax.{task.step.command}", *task.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path},
                pass_fds=(self._lock,),  # held as long as the step lives, whatever becomes of this process
                start_new_session=True,  # a Ctrl-C in the terminal reaches it through this process alone, once
                preexec_fn=_end_with_parent,
            )
        if self.stopped:  # a signal that came while it was started
            self._process.terminate()
        try:
            return self._process.wait()
        finally:
            self._process = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.stopped)
        self.stopped = self.stopped or signal.Signals(number).name
        if self._process is not None:
            if again and number == signal.SIGINT:
                self._process.kill()
            elif not again:
                self._process.terminate()


def _end_with_parent() -> None:
    """The process that calls this gets SIGTERM when its parent is gone: a killed study leaves no step (Linux)."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """One process at a time runs or submits a study. Raises UserError: another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".study.lock", "ab") as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--output={folder}: another process runs this study") from None
        yield


@contextlib.contextmanager
def _one_runner(folder: Path) -> Iterator[_Processes]:
    """One process runs a study; what is left of one that was killed is waited for.

    Raises UserError: another process runs it.
    """
    with hold(folder), open(folder / ".step.lock", "ab") as step:
        try:
            fcntl.flock(step, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting    a step of an earlier call is still at work here", flush=True)
            fcntl.flock(step, fcntl.LOCK_EX)
        processes = _Processes(step.fileno())
        before: dict[int, Any] = {}
        here = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if here else ():
            if signal.getsignal(number) != signal.SIG_IGN:  # under nohup it outlives its terminal
                before[number] = signal.signal(number, processes.on_signal)
        try:
            yield processes
        finally:
            for restored, handler in before.items():
                signal.signal(restored, signal.SIG_DFL if handler is None else handler)
