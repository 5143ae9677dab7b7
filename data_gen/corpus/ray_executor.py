"""Runs the parts of a stage as Ray tasks; what is missing afterwards is submitted again.

A task is a process of its own on some node (max_calls=1), which runs parts just as a local worker does and puts them
into the folder of the stage, so nodes must see this checkout, the inputs and --output under the same names. No document
goes through Ray's object store: a task is given paths and gives its exit code. What counts is which parts are there;
Ray is not asked to repeat tasks by itself. Tasks end with this process, however it ends; the same command goes on.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.corpus.executor import RETRIES, Failure, TaskQueue, last_line, raise_failures
from data_gen.corpus.stage_folder import StageFolder
from mmed_jax.common.errors import UserError, one_line
from mmed_jax.common.paths import REPO
from mmed_jax.common.progress import counting_bar

# A file that a node has put may be seen here so much later (NFS keeps attributes for a minute).
LAG_SECONDS = 60.0
_WINDOW = 1000  # tasks that Ray is given at a time, where max_running says nothing
_STORE_BYTES = 100_000_000  # of a local cluster's object store, which nothing is put into


@dataclass(frozen=True)
class RaySettings:
    """Flags --ray.NAME=VALUE.

    address: of the cluster, "auto" for the one that runs here or that RAY_ADDRESS names, "local" to start one on this
    machine for the build. cpus: of a task. reserve_gb: memory that Ray sets aside for one, 0 = none. max_running: tasks
    that Ray has at a time, 0 = 1000.
    """

    address: str = "auto"
    cpus: float = 1.0
    reserve_gb: float = 4.0
    max_running: int = 0


class RayExecutor:
    """Ray tasks. tasks: into how many tasks the parts of a stage are divided, 0 = one each."""

    def __init__(
        self,
        settings: RaySettings,
        tasks: int = 0,
        retries: int = RETRIES,
        say: Callable[[str], None] = lambda text: None,
        lag_seconds: float = LAG_SECONDS,
    ) -> None:
        """Raises UserError where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise UserError("--executor=ray: ray not installed", hint='; pip install "mmed_jax[ray]"')
        self.settings, self.tasks, self.retries, self.say, self.lag = settings, tasks, retries, say, lag_seconds

    def run(self, folder: StageFolder) -> None:
        """As Executor.run. Raises UserError where there is no cluster."""
        import ray

        self._connect(ray)
        folder.clean()
        queue = TaskQueue(folder, self.tasks, self.retries, self.say)
        running: dict[Any, tuple[int, list[int], int]] = {}
        function = self._function(ray)
        try:
            with counting_bar(folder.path.name, len(folder.pending()), unit=" parts", in_logs=False) as bar:
                while queue.waiting or running:
                    while queue.waiting and len(running) < (self.settings.max_running or _WINDOW):
                        number, parts, attempt = queue.waiting.popleft()
                        log = folder.path / "logs" / f"task-{number:06d}.log"
                        log.unlink(missing_ok=True)
                        running[function.remote(str(folder.path), parts, str(log))] = number, parts, attempt
                    for ref in ray.wait(list(running), num_returns=1)[0]:
                        number, parts, attempt = running.pop(ref)
                        failure = self._judge(ray, ref, folder, number, parts, attempt)
                        if queue.settle(failure, number, parts, attempt):
                            bar.update(len(parts))
        finally:
            for ref in running:
                ray.cancel(ref, force=True)
            if not running:  # else one of them may write yet
                folder.clean()
        raise_failures(folder, queue.failures)

    def _connect(self, ray: Any) -> None:
        if ray.is_initialized():
            return
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self.settings.address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
            options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            ray.init(address=self.settings.address, **options)
        except (ConnectionError, ValueError, OSError) as e:
            hint = "; --ray.address=local starts one on this machine" if self.settings.address == "auto" else ""
            raise UserError(f"--ray.address={self.settings.address}: no cluster ({one_line(e)})", hint=hint) from e
        nodes = [node["Resources"] for node in ray.nodes() if node.get("Alive", True)]
        if not any(n.get("CPU", 0) >= self.settings.cpus and n.get("memory", 0) >= self._memory for n in nodes):
            self.say(
                f"Ray: no node has {self.settings.cpus:g} processors and {self.settings.reserve_gb:g} GB for a task "
                "(--ray.cpus, --ray.reserve_gb); tasks wait until one comes"
            )

    @property
    def _memory(self) -> int:
        return int(self.settings.reserve_gb * 2**30)

    def _function(self, ray: Any) -> Any:
        path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH", "")]))
        threads = str(max(1, int(self.settings.cpus)))
        options: dict[str, Any] = {
            "num_cpus": self.settings.cpus,
            "max_calls": 1,
            "max_retries": 0,
            "runtime_env": {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": threads}},
        }
        if self._memory:
            options["memory"] = self._memory
        return ray.remote(**options)(run_in_worker)

    def _judge(
        self, ray: Any, ref: Any, folder: StageFolder, number: int, parts: list[int], attempt: int
    ) -> Failure | None:
        """Why a task that ended has not made its parts; None where it has."""
        try:
            code, problem = ray.get(ref), ""
        except ray.exceptions.RayError as e:  # its process or its node has gone, or the function could not be loaded
            code, problem = 1, f"Ray lost it ({type(e).__name__}: {one_line(e)[:200]}; memory, or its node)"
        end = time.monotonic() + self.lag
        while (missing := tuple(n for n in parts if not folder.part(n).exists())) and code == 0:
            if time.monotonic() > end:
                break
            time.sleep(0.2)
            os.listdir(folder.path / "parts")  # asks a network file system anew
        if not missing:
            return None
        line = last_line(folder.path / "logs" / f"task-{number:06d}.log")
        return Failure(number, missing, problem or line or "no log", attempt, code == 2)


def run_in_worker(stage: str, parts: list[int], log: str) -> int:
    """Of a worker of Ray: runs the parts of a stage, with its output in a log; the exit code as of run_reporting."""
    from data_gen.corpus.run_task import run_reporting

    kept = [os.dup(stream) for stream in (1, 2)]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    try:
        return run_reporting(Path(stage), parts)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, before in zip((1, 2), kept):  # for what Ray has to say when the process ends
            os.dup2(before, stream)
            os.close(before)
        os.close(descriptor)
