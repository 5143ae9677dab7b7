"""Commands in processes of their own whose imports were done beforehand: a process that has imported what a training
needs, and has touched no device, forks them. Half of what a short training takes from a new interpreter is imports.

    process = start([sys.executable, "-m", "mmed_jax.train", "--config=..."], cwd=folder, env=os.environ)

Between its first line and the end of its interpreter such a process is like any other: arguments, environment, folder,
signals, threads, exit code. What is read from the environment while a library is imported (TF_CPP_MIN_LOG_LEVEL) stays
as it is here. Linux alone has the sockets, and libraries that outlive a fork.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Mapping
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_LARGEST = 100_000  # bytes of a request
# What a training imports; what is missing here, each imports for itself.
_MODULES = (
    "transformers",
    "grain",
    "mmed_jax.train",
    "mmed_jax.checkpoints.checkpointer",
    "mmed_jax.parallel.distributed",
    "mmed_jax.parallel.watchdog",
    "mmed_jax.planning.on_device",
    "mmed_jax.training.host_agreement",
    "mmed_jax.training.metric_log",
    "mmed_jax.training.program",
    "mmed_jax.training.run_page",
    "mmed_jax.training.validation",
)


class Forked:
    """A process that was started here, with the part of subprocess.Popen that tests use; output is text."""

    def __init__(self, pid: int, status: socket.socket, stdout: int, stderr: int):
        self.pid, self.returncode, self._status = pid, None, status
        self.stdout, self.stderr = os.fdopen(stdout, encoding="utf-8"), os.fdopen(stderr, encoding="utf-8")
        self._read: list[tuple[threading.Thread, list[str]]] = []

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            said = self._status.recv(100)
            assert said, "the process that forks is gone"
            self.returncode = int(said)
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; what it wrote to stdout and stderr. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        if not self._read:
            for stream in (self.stdout, self.stderr):
                parts: list[str] = []
                thread = threading.Thread(target=_drain, args=(stream, parts), daemon=True)
                thread.start()
                self._read.append((thread, parts))
        for thread, _ in self._read:
            thread.join(None if end is None else max(0, end - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
        self.wait(None if end is None else max(0, end - time.monotonic()))
        out, err = ("".join(parts) for _, parts in self._read)
        return out, err


def start(command: list[str], *, cwd: Path, env: Mapping[str, str], apart: int = 0) -> Forked:
    """Runs `[sys.executable, "-m", MODULE, ...]` or `[sys.executable, "-c", CODE, ...]`.

    Args:
      apart: 0 or 1, which process forks it. Python's order of sets differs between the two, as between hosts.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out, err = os.pipe(), os.pipe()
    request = json.dumps({"command": [str(a) for a in command[1:]], "cwd": str(cwd), "env": dict(env)}).encode()
    assert command[0] == sys.executable and len(request) < _LARGEST
    socket.send_fds(_forker(apart), [request], [theirs.fileno(), out[1], err[1]])
    theirs.close()
    for end in (out[1], err[1]):
        os.close(end)
    pid = ours.recv(100)
    assert pid, "the process that forks is gone"
    return Forked(int(pid), ours, out[0], err[0])


def prepare(*apart: int) -> None:
    """Begins with the imports, where they are not done: those of several processes at once."""
    for which in apart:
        _forker(which)


@functools.cache
def _forker(which: int) -> socket.socket:
    """The connection to a process that forks; it ends when this is closed, at the end of this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", __name__, str(theirs.fileno())]
    env = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, cwd=REPO, env=env, pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(_end, process, ours)
    return ours


def _end(process: subprocess.Popen, connection: socket.socket) -> None:
    connection.close()
    process.wait(60)


def _drain(stream, parts: list[str]) -> None:
    with contextlib.suppress(ValueError):  # closed already
        parts.append(stream.read())
        stream.close()


def _serve(control: socket.socket) -> dict | None:
    """Forks at each request. Returns the request in the child, None in this process when the tests are over."""
    children: dict[int, socket.socket] = {}
    ended, wake = os.pipe()
    for end in (ended, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([control, ended], [], [])
        if ended in ready:
            os.read(ended, 1000)
            _tell_ends(children)
        if control in ready:
            data, fds, _, _ = socket.recv_fds(control, _LARGEST, 3)
            if not data:
                return None
            status = socket.socket(fileno=fds[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a thread of numpy's, which outlives a fork
                pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (control, status, *children.values()):
                    other.close()
                for source, target in ((fds[1], 1), (fds[2], 2)):
                    os.dup2(source, target)
                for end in (ended, wake, *fds[1:]):
                    os.close(end)
                return json.loads(data)
            for end in fds[1:]:
                os.close(end)
            children[pid] = status
            status.send(str(pid).encode())


def _tell_ends(children: dict[int, socket.socket]) -> None:
    """Sends the exit codes of the processes that have ended, and forgets these."""
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            connection = children.pop(pid)
            with contextlib.suppress(OSError):  # nobody waits for it any more
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            connection.close()


def _main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in _MODULES:
        importlib.import_module(name)
    importlib.import_module("transformers").PreTrainedTokenizerFast  # noqa: B018, is imported when it is asked for
    importlib.import_module("mmed_jax.data.packed_cache").table_code()  # reads some dozens of sources
    # What is here stays, and is no matter of the collector in a process that is forked.
    gc.collect()
    gc.freeze()
    if request := _serve(control):
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        how, what, *arguments = request["command"]
        sys.argv = [how, *arguments]
        if how == "-m":
            sys.modules.pop(what, None)  # it may have been imported, and runs anew
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))


if __name__ == "__main__":
    _main()
