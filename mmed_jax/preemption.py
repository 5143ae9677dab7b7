"""SIGTERM, Ctrl-C, a closed terminal: finish the step, save, leave. Every process leaves after the same step."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np


class PreemptionGuard:
    """Context in which SIGTERM, SIGHUP and the first Ctrl-C only set a flag.

        with PreemptionGuard() as guard:
            for step in ...:
                state, metrics = train_step(state, batch)
                stop = guard.should_stop(step)
                checkpointer.maybe_save(step, state, ..., force=stop)
                if stop:
                    break                              # then exit 0

    One process: the flag is looked at after every step. Several processes: a signal reaches them at different times,
    and a process that left alone would hang the others in the next collective. jax's preemption service (started by
    jax.distributed.initialize, which handles SIGTERM itself) then agrees on one step without touching the devices;
    the others are handed to it as a SIGTERM. Where the service is switched off the flags are gathered every
    `sync_every` steps, because gathering waits for the devices. A second Ctrl-C interrupts at once.
    """

    def __init__(self, sync_every: int = 10):
        self.sync_every = sync_every
        self.signal_name = ""  # the signal that came, "" before
        self._flag = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "PreemptionGuard":
        self._several = jax.process_count() > 1
        self._service = self._several and bool(getattr(jax.config, "jax_enable_preemption_service", False))
        if threading.current_thread() is threading.main_thread():
            # With the service, SIGTERM keeps the handler that the service installed.
            numbers = [signal.SIGINT] if self._service else [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup the run outlives its terminal
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: the handler had not been installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        self._flag.set()
        if number == signal.SIGHUP:
            _leave_terminal()
        # os.write: a handler must not wait for a lock that the interrupted code holds.
        os.write(2, f"\n{self.signal_name}: saving after this step, then leaving\n".encode())
        if self._service:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def requested(self) -> bool:
        """This process was asked to stop (the others may not know yet)."""
        return self._flag.is_set()

    def should_stop(self, step: int) -> bool:
        """True when the run ends after `step`, the same on every process. Call once after every step, ascending."""
        if not self._several:
            return self._flag.is_set()
        from jax.experimental import multihost_utils

        if self._service:
            return multihost_utils.reached_preemption_sync_point(step)
        if step % self.sync_every:
            return False
        return bool(multihost_utils.process_allgather(np.int32(self._flag.is_set())).any())


def _leave_terminal() -> None:
    """Output to a terminal that is gone would be an error in the midst of saving."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if os.isatty(stream) or not _writable(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)


def _writable(stream: int) -> bool:
    try:
        return os.write(stream, b"") == 0
    except OSError:
        return False
