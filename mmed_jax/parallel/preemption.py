"""SIGTERM, Ctrl-C, a closed terminal: finish the step, save, leave. Every process leaves after the same step."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import numpy as np

from mmed_jax.common import console


class PreemptionGuard:
    """Context in which SIGTERM, SIGHUP and the first Ctrl-C only set a flag.

        with PreemptionGuard() as guard:
            for step in ...:
                state, metrics = train_step(state, batch)
                stop = guard.should_stop(step)
                checkpointer.maybe_save(step, state, ..., force=stop)
                if stop:
                    break                              # then exit with UNFINISHED

    One process: `should_stop` is the flag. Several processes: a signal reaches them at different times, and a process
    that left alone would hang the others in the next collective. jax's preemption service (started by
    jax.distributed.initialize, which handles SIGTERM itself) then agrees on one call of `should_stop`, counted by every
    process alike, without touching the devices; the others are handed to it as a SIGTERM. Where the service is
    switched off the flags are gathered every `sync_every` calls, because gathering waits for the devices. A second
    Ctrl-C interrupts at once.

    Args:
      beat: called with the step whenever `should_stop` is asked.
    """

    def __init__(self, sync_every: int = 10, beat: Callable[[int], object] = lambda step: None):
        self.sync_every, self._beat = sync_every, beat
        self.signal_name = ""  # the signal that came, "" before
        self._flag = threading.Event()
        self._calls, self._agreed = 0, False
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
        console.write_now(f"\n{self.signal_name}: saving after this step, then leaving\n")
        if self._service:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop(self, step: int = 0) -> bool:
        """Whether to leave now, with the same answer on every process; once True it stays True.

        Asked after every step and between the batches of a validation: by all processes equally often and in the same
        order.

        Args:
          step: for `beat` only; what counts is the number of calls.
        """
        self._beat(step)
        if not self._several:
            return self._flag.is_set()
        from jax.experimental import multihost_utils

        self._calls += 1
        if self._agreed:
            return True
        if self._service:
            self._agreed = multihost_utils.reached_preemption_sync_point(self._calls)
        elif self._calls % self.sync_every == 0:
            self._agreed = bool(multihost_utils.process_allgather(np.int32(self._flag.is_set())).any())
        return self._agreed
