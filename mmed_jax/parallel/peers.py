"""The other processes of a run: which of them is gone, said in one line instead of jax's abort.

jax notices that a process is gone by its heartbeats (about a minute), or at once when it was the coordinator, and then
ends the others by SIGABRT with a C++ stack. It would call a function of ours instead, but cannot hand Python the
argument, so that C++ terminates; `watch` gives C++ what to do then: one line, exit code 1. Who it was is known from
counters that every process writes beside jax's own heartbeats; they only name, they decide nothing.
"""

import atexit
import ctypes
import importlib.util
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from mmed_jax.common import errors

_KEY = "mmed_jax/peer"
# How often a process writes and reads; less often where there are many.
INTERVAL_SECONDS = 2.0
# A process counts as silent when it was not heard of for so many of its own intervals.
SILENT_INTERVALS = 3
_TERMINATE = ctypes.CFUNCTYPE(None)


class Peers:
    """What is known of the processes of a run, from the coordinator's store.

    Args:
      client: jax's connection to the coordinator. index, count: of this process, of all. coordinator: host:port.
    """

    def __init__(self, client: Any, index: int, count: int, coordinator: str):
        self._client, self.index, self.count, self._coordinator = client, index, count, coordinator
        self.interval = INTERVAL_SECONDS + count / 16
        self._heard: dict[int, tuple[str, float]] = {}  # the last word of each process, and when it was new
        self._looked = 0.0
        self._over = threading.Event()

    def start(self) -> None:
        """Begins to write and to read, in a thread of its own."""
        thread = threading.Thread(target=self._follow, daemon=True, name="peers")
        thread.start()
        # A thread inside of C++ at the interpreter's end would be torn out of it.
        atexit.register(self._finish, thread)

    def _finish(self, thread: threading.Thread) -> None:
        self._over.set()
        thread.join(5)

    def _follow(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                word = f"{number} {socket.gethostname()}"
                self._client.key_value_set(f"{_KEY}/{self.index}", word, allow_overwrite=True)
                words = self._client.key_value_dir_get(f"{_KEY}/")
            except Exception:  # the coordinator is gone, or the run is at its end
                return
            self._looked = time.monotonic()
            for key, word in words:
                peer = int(key.rpartition("/")[2])
                if self._heard.get(peer, ("",))[0] != word:
                    self._heard[peer] = (word, self._looked)
            self._over.wait(self.interval)

    def name(self, peer: int) -> str:
        """ "process 3 on HOST"."""
        word = self._heard.get(peer, ("", 0.0))[0]
        return f"process {peer}" + (f" on {word.partition(' ')[2]}" if word else "")

    def silent(self, wait: float = 0.0) -> str:
        """The processes that are not there or were not heard of lately, "" when all were; looks for `wait` seconds."""
        end = time.monotonic() + wait
        while True:
            # By the clock of the last look: without a coordinator nobody is heard of.
            last = {p: self._looked - heard for p, (_, heard) in dict(self._heard).items() if p != self.index}
            gone = {p: s for p, s in last.items() if s > SILENT_INTERVALS * self.interval}
            if gone:
                return ", ".join(f"{self.name(p)} was last heard of {s:.0f} s ago" for p, s in sorted(gone.items()))
            # Asked second: it may have ended because another is gone.
            if self.index and not self._coordinator_there():
                return f"{self.name(0)} is gone"
            if time.monotonic() >= end:
                return ""
            time.sleep(0.2)

    def _coordinator_there(self) -> bool:
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError):
            return False
        return True


peers: Peers | None = None  # of this run; None with a single process


def follow(client: Any, index: int, count: int, coordinator: str) -> None:
    """Begins to follow the other processes of the run that was joined."""
    global peers
    peers = Peers(client, index, count, coordinator)
    peers.start()


# What collectives say when a peer has died: gloo on CPUs, NCCL; and the coordination service.
COLLECTIVE_LOST = ("Gloo", "NCCL", "Connection reset", "Connection closed")
PROCESS_LOST = (*COLLECTIVE_LOST, "UNAVAILABLE", "coordination service", "heartbeat")
# A process that is there can be late as well: it still compiles, or its host has no time for it.
_LATE = re.compile("timed out|timeout|DEADLINE_EXCEEDED", re.IGNORECASE)


def lost_process(message: str) -> errors.WorkError:
    """Names the process that is gone; of one that did not answer in time nothing else is claimed."""
    if peers is None:
        return errors.WorkError(f"another process of the run is gone ({message[:200]}); its own message says why")
    who = peers.silent(wait=2 * peers.interval * SILENT_INTERVALS)
    if not who and _LATE.search(message):
        who = "another process of the run did not answer in time, though all are there"
    who = who or "another process of the run has left it; its own message says why"
    again = "start all of them again to continue from the newest checkpoint"
    return errors.WorkError(f"process {peers.index}: {who} ({message[:200]}); {again}")


def lost_line() -> str:
    """One line for a run that has lost a process."""
    # A coordinator that dies may still take a connection for a moment.
    who = (peers.silent(wait=5) if peers else "") or "another process of the run is gone"
    index = f"process {peers.index}: " if peers else ""
    return f"{index}{who}; start all of them again to continue from the newest checkpoint"


@contextmanager
def own_end() -> Iterator[None]:
    """Around jax.distributed.initialize: the loss of a process then ends this one with a line of ours.

    Does nothing where jax or the C++ library are not as expected: jax then ends the process in its own way.
    """
    from jax._src import distributed

    library = getattr(distributed, "_jax", None)
    make: Callable[..., Any] | None = getattr(library, "get_distributed_runtime_client", None)
    if make is None or not _replace_terminate():
        yield
        return

    def with_callback(*args: Any, **keys: Any) -> Any:
        try:
            return make(*args, missed_heartbeat_callback=_end, **keys)
        except TypeError:  # another jax
            return make(*args, **keys)

    class Library:
        get_distributed_runtime_client = staticmethod(with_callback)

        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

    with mock.patch.object(distributed, "_jax", Library()):
        yield


def _end(*_: object) -> None:
    """In a thread of C++ that would abort this process; with its status, where jax can hand that over."""
    errors.end_process(lost_line)


_standard: Any = None  # what C++ did before


@_TERMINATE
def _on_terminate() -> None:
    try:
        if "bad_cast" in _exception_type():
            _end()
    except BaseException:
        os._exit(1)
    _TERMINATE(_standard)()  # something else, a fault: as ever


def _exception_type() -> str:
    """The C++ name of the exception that nobody caught: of a type_info the second field."""
    current = ctypes.CDLL("libstdc++.so.6").__cxa_current_exception_type
    current.restype = ctypes.c_void_p
    info = current()
    name = ctypes.c_char_p.from_address(info + ctypes.sizeof(ctypes.c_void_p)).value if info else None
    return name.decode() if name else ""


def _replace_terminate() -> bool:
    """Sets what C++ does when an exception cannot be passed on. False where that is not possible."""
    global _standard
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        setter, _ = library._ZSt13set_terminatePFvvE, library.__cxa_current_exception_type
    except (OSError, AttributeError):
        return False
    setter.argtypes, setter.restype = [_TERMINATE], ctypes.c_void_p
    _standard = setter(_on_terminate)
    return True


def several_processes(config: Any) -> bool:
    """The config or the environment (Slurm, Open MPI, a TPU pod) says that there may be several."""
    env = os.environ
    slurm = int(env.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_STEP_ID" in env
    open_mpi = int(env.get("OMPI_COMM_WORLD_SIZE", "1") or 1) > 1
    return bool(config.distributed.coordinator) or slurm or open_mpi or _on_tpu_vm()


def _on_tpu_vm() -> bool:
    """TPU chips are attached and will be used; jax then finds the other workers of the pod, possibly none."""
    chips = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    wanted = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu")
    return chips and wanted and importlib.util.find_spec("libtpu") is not None


def hush(config: Any) -> None:
    """Before jax is imported: what C++ logs of a lost process is left out, for there will be a line of ours."""
    level = "TF_CPP_MIN_LOG_LEVEL"
    if os.environ.get(level) == "2" and several_processes(config):
        os.environ[level] = "3"
