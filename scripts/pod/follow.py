"""Logs of workers as they grow, each line behind its worker's label; for the eye only: states are asked for."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from mmed_jax.common.errors import printable
from scripts.pod.workers import Worker, Workers

# How long lines that are on their way are waited for after the run has ended.
_LAST_LINES_SECONDS = 3.0


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
    sys.stdout.flush()
