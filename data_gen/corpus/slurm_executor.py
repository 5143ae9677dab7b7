"""Runs the parts of a stage as Slurm array jobs, and waits for them; what is missing afterwards is submitted again.

One stage at a time and no dependencies between jobs, so none waits for ever for one that failed
(DependencyNeverSatisfied). A task is `python -m data_gen.corpus.run_task` on a node: it imports this program from the
folder that it lies in here, which nodes must see under the same name, as they must see the inputs and --output. Nothing
is pickled. This process may end in any way: the jobs go on, and the same command finds them and waits.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_gen.corpus.executor import RETRIES, Failure, last_line, raise_failures, split_tasks
from data_gen.corpus.stage_folder import StageFolder
from mmed_jax.common.errors import UserError
from mmed_jax.common.output_files import write_json
from mmed_jax.common.paths import REPO

# A file that a node has put may be seen here so much later (NFS keeps attributes for a minute).
LAG_SECONDS = 60.0


@dataclass(frozen=True)
class SlurmSettings:
    """Flags --slurm.NAME=VALUE.

    partition, account, qos, time: as sbatch takes them; "" = the cluster's default. cpus, mem_gb: of a task.
    max_running: tasks at a time, 0 = any number. max_array: tasks of one job (scontrol show config: MaxArraySize).
    setup: a shell line before the task ("module load python"). extra: further flags of sbatch. poll_s: between looks.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    cpus: int = 1
    mem_gb: float = 4.0
    max_running: int = 0
    max_array: int = 1000
    setup: str = ""
    extra: str = ""
    poll_s: float = 10.0


class SlurmExecutor:
    """Array jobs. tasks: into how many tasks the parts of a stage are divided, 0 = one each."""

    def __init__(
        self,
        settings: SlurmSettings,
        tasks: int = 0,
        retries: int = RETRIES,
        say: Callable[[str], None] = lambda text: None,
        lag_seconds: float = LAG_SECONDS,
    ) -> None:
        """Raises UserError where sbatch, squeue or scancel is not there."""
        missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            raise UserError(f"--executor=slurm: {', '.join(missing)}: no such command here; run it where Slurm's are")
        self.settings, self.tasks, self.retries, self.say, self.lag = settings, tasks, retries, say, lag_seconds

    def run(self, folder: StageFolder) -> None:
        """As Executor.run."""
        record = folder.path / "slurm.json"
        self._wait(folder, _read_jobs(record))  # of a process like this one that was killed
        folder.clean()
        failures: list[Failure] = []
        for attempt in range(1, self.retries + 2):
            pending = folder.pending()
            if not pending:
                break
            tasks = split_tasks(pending, self.tasks)
            jobs: list[tuple[str, int]] = []
            try:
                for start in range(0, len(tasks), self.settings.max_array):
                    count = min(self.settings.max_array, len(tasks) - start)
                    jobs.append((self._submit(folder, tasks, start, count, attempt), start))
                    write_json(record, [job for job, _ in jobs])
                self.say(f"{folder.path.name}: {len(tasks):,} tasks in job {', '.join(job for job, _ in jobs)}")
                self._wait(folder, [job for job, _ in jobs])
            except BaseException:
                if jobs:
                    subprocess.run(["scancel", *(job for job, _ in jobs)], check=False, capture_output=True)
                raise
            failures = self._failures(folder, tasks, jobs, attempt)
            if not failures or any(f.user for f in failures):
                break
            if attempt <= self.retries:
                for failure in failures[:5]:
                    self.say(f"{folder.path.name}: task {failure.task}: {failure.problem}; tried again")
        folder.clean()
        raise_failures(folder, failures)

    def _submit(self, folder: StageFolder, tasks: list[list[int]], start: int, count: int, attempt: int) -> str:
        """Submits tasks [start, start + count) as one array; the id of the job. Raises UserError as sbatch says."""
        s, logs = self.settings, folder.path / "logs"
        listed = folder.path / f"tasks-{attempt}.json"
        write_json(listed, tasks)
        script = folder.path / f"array-{attempt}-{start}.sh"
        script.write_text(_script(folder, listed, start, s), encoding="utf-8")
        limit = f"%{s.max_running}" if s.max_running else ""
        flags = {
            "job-name": f"corpus-{folder.path.name}",
            "array": f"0-{count - 1}{limit}",
            "output": logs / "slurm-%A_%a.log",
            "ntasks": 1,
            "cpus-per-task": s.cpus,
            "mem": f"{max(1, round(s.mem_gb * 1024))}M",
            "partition": s.partition,
            "account": s.account,
            "qos": s.qos,
            "time": s.time,
        }
        given = [f"--{name}={value}" for name, value in flags.items() if value != ""]
        done = subprocess.run(
            ["sbatch", "--parsable", *given, *shlex.split(s.extra), str(script)], capture_output=True, text=True
        )
        job = done.stdout.strip().split(";")[0]
        if done.returncode or not re.fullmatch(r"\d+", job):
            raise UserError(f"sbatch: {' '.join((done.stderr or done.stdout).split()) or 'gave no job id'}")
        return job

    def _wait(self, folder: StageFolder, jobs: Sequence[str]) -> None:
        """Returns when none of the jobs waits or runs; says how many do whenever that changes."""
        before = ""
        while jobs:
            states: Counter[str] = Counter()
            active = []
            for job in jobs:
                rows = _states(job)
                if rows is None or rows:
                    active.append(job)
                states.update(rows or ())
            jobs = active
            counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
            text = counts or "Slurm does not answer; it is asked again"
            if jobs and text != before:
                self.say(f"{folder.path.name}: {text}")
                before = text
            if jobs:
                time.sleep(self.settings.poll_s)

    def _failures(
        self, folder: StageFolder, tasks: list[list[int]], jobs: list[tuple[str, int]], attempt: int
    ) -> list[Failure]:
        """Tasks whose parts are not all there, a while after their jobs have ended."""
        end = time.monotonic() + self.lag
        missing = set(folder.pending())
        codes = _codes(folder, jobs)
        # A task that ended with 0 has put its parts: they are only not seen yet.
        while missing and any(code == 0 for code in codes.values()) and time.monotonic() < end:
            late = [n for n, code in codes.items() if code == 0 and missing & set(tasks[n])]
            if not late:
                break
            time.sleep(min(1.0, self.settings.poll_s))
            missing = set(folder.pending())
        failures = []
        for number, parts in enumerate(tasks):
            lost = tuple(p for p in parts if p in missing)
            if lost:
                job, start = next((j, s) for j, s in reversed(jobs) if s <= number)
                log = folder.path / "logs" / f"slurm-{job}_{number - start}.log"
                code = codes.get(number)
                problem = last_line(log) or "no log"
                if code is None:
                    problem = f"Slurm ended it ({problem}; memory or time limit, or its node)"
                failures.append(Failure(number, lost, problem, attempt, code == 2))
        return failures


def _script(folder: StageFolder, tasks: Path, start: int, settings: SlurmSettings) -> str:
    """What a node runs."""
    logs = shlex.quote(str(folder.path / "logs"))
    command = [sys.executable, "-m", "data_gen.corpus.run_task", f"--stage={folder.path}", f"--tasks={tasks}"]
    return "\n".join(
        [
            "#!/bin/bash",
            settings.setup,
            f"export PYTHONPATH={shlex.quote(str(REPO))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export OMP_NUM_THREADS={settings.cpus} PYTHONUNBUFFERED=1",
            f"{shlex.join(command)} --task=$((SLURM_ARRAY_TASK_ID + {start}))",
            "code=$?",
            f"echo $code > {logs}/slurm-${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}.code",
            "exit $code",
            "",
        ]
    )


def _read_jobs(record: Path) -> list[str]:
    try:
        return [str(job) for job in json.loads(record.read_bytes())]
    except (OSError, ValueError):
        return []


def _states(job: str) -> list[str] | None:
    """States of the tasks of a job that wait or run, with the reason of the waiting ones; None where Slurm does not
    answer, which is no sign that the job has ended."""
    command = ["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%T %r"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return [] if "invalid job id" in done.stderr.lower() else None
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip()]
    return [
        f"{state.lower()} ({rest[0]})" if state == "PENDING" and rest and rest[0] != "None" else state.lower()
        for state, *rest in rows
    ]


def _codes(folder: StageFolder, jobs: list[tuple[str, int]]) -> dict[int, int]:
    """{task: exit code} of the tasks that came to their end."""
    codes = {}
    for job, start in jobs:
        for path in (folder.path / "logs").glob(f"slurm-{job}_*.code"):
            text = path.read_text(encoding="utf-8").strip() if os.access(path, os.R_OK) else ""
            if text.isdigit():
                codes[start + int(path.stem.rpartition("_")[2])] = int(text)
    return codes
