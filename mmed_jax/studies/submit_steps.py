"""The steps of a study as Slurm jobs that wait for each other; trainings through scripts/slurm.sh, on as many nodes as
that is given, everything else on one."""

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence

from mmed_jax.common.errors import UserError, WorkError, one_line, warn
from mmed_jax.common.paths import REPO
from mmed_jax.studies.run_here import check_inputs, hold, say_now
from mmed_jax.studies.tasks import SUBMITTED, Plan, Task, changed_settings, is_done, read_state, write_state

# As scripts/slurm.sh finds the interpreter: jobs run in the folder in which they were submitted.
_ON_NODE = 'export PATH="$PWD/.venv/bin:$PATH"; '
# States of a job that has ended and that squeue may still name.
_ENDED = (
    "",
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "BOOT_FAIL",
    "DEADLINE",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "REVOKED",
)
_REPORT_LOG = "report_job.txt"


def submit_tasks(
    plan: Plan,
    report: str,
    flags: Sequence[str] = (),
    train_flags: Sequence[str] = (),
    say: Callable[[str], None] = say_now,
) -> None:
    """Submits what is neither done nor in the queue, each job after those that it needs, and last the report's.

    Args:
      report: the command that writes the report. flags: of sbatch, for all jobs; train_flags: behind them, for
        trainings.

    Raises:
      UserError: no sbatch here; something that is read is not there.
      WorkError: sbatch or squeue fails, in its words; what was submitted stays, and the same call goes on.
    """
    missing = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
    if missing:
        raise UserError(f"--launcher=slurm: {', '.join(missing)}: no such command here; run it where Slurm's are")
    check_inputs(plan)
    with hold(plan.folder):
        _submit_all(plan, report, flags, train_flags, say)


def _submit_all(
    plan: Plan, report: str, flags: Sequence[str], train_flags: Sequence[str], say: Callable[[str], None]
) -> None:
    jobs: dict[str, str] = {}
    for number, task in enumerate(plan.tasks, start=1):
        place = f"[{number}/{len(plan.tasks)}]"
        if is_done(task):
            say(f"{place:<10} {task.label}: done before")
            continue
        job = str(read_state(task.folder).get("job", ""))
        if job and _is_queued(job):
            say(f"{place:<10} {task.label}: in the queue as job {job}")
        else:
            if difference := changed_settings(task, plan.tasks):
                say(f"{place:<10} {task.label}: {difference}")
            job = _submit(task, [jobs[n.key] for n in task.needs if n.key in jobs], flags, train_flags)
            say(f"{place:<10} {task.label}: job {job}, log {task.log}")
        jobs[task.key] = job
    if jobs:
        log = plan.folder / _REPORT_LOG
        last = [*_common(f"{plan.study.settings.name}-report", str(log), list(jobs.values())), *flags, *_ONE_NODE]
        say(f"report     job {_sbatch([*last, f'--wrap={_ON_NODE}{report}'], 'the report')}, log {log}")


def refuse_queued(plan: Plan) -> None:
    """Before steps are run here: none of them may be at work, or wait, as a Slurm job.

    Raises UserError: one is. Where squeue is not there, or fails, a warning says that it may be.
    """
    submitted = [t for t in plan.tasks if read_state(t.folder).get("state") == SUBMITTED and not is_done(t)]
    for task in submitted:
        job = str(read_state(task.folder).get("job", ""))
        if not job:
            continue
        try:
            known = shutil.which("squeue") is not None
            queued = known and _is_queued(job)
        except WorkError:
            queued = known = False
        if not known:
            warn(
                f"step {task.label} was submitted to Slurm as job {job}; no squeue here says whether it is still there"
            )
            return
        if queued:
            raise UserError(
                f"step {task.label}: is in Slurm's queue as job {job}; wait for it, or take out all jobs of this study "
                "with scancel before its steps are run here"
            )


_ONE_NODE = ("--nodes=1", "--ntasks=1")


def _submit(task: Task, after: Sequence[str], flags: Sequence[str], train_flags: Sequence[str]) -> str:
    """The number of the job of a task."""
    write_state(task, SUBMITTED)  # makes the folder, for the log
    command = _common(task.label, str(task.log), after)
    if task.step.command == "train":
        command += [*flags, *train_flags, str(REPO / "scripts" / "slurm.sh"), *shlex.split(task.shell())]
    else:
        clear = f"rm -rf {shlex.quote(str(task.result))}; " if task.step.command in ("export", "merge") else ""
        command += [*flags, *_ONE_NODE, f"--wrap={_ON_NODE}{clear}{task.shell()}"]
    job = _sbatch(command, f"step {task.label}")
    write_state(task, SUBMITTED, job=job)
    return job


def _common(name: str, log: str, after: Sequence[str]) -> list[str]:
    """Flags of every job. One whose predecessor has failed is taken out of the queue."""
    waits = [f"--dependency=afterok:{':'.join(dict.fromkeys(after))}", "--kill-on-invalid-dep=yes"] if after else []
    return ["--parsable", f"--job-name={name}", f"--output={log.replace('%', '%%')}", "--open-mode=append", *waits]


def _sbatch(arguments: Sequence[str], what: str) -> str:
    done = subprocess.run(["sbatch", *arguments], capture_output=True, text=True)
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job.isdecimal():
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise WorkError(f"{what}: sbatch: {one_line(Exception(said))}; what was submitted before stays in the queue")
    return job


def _is_queued(job: str) -> bool:
    """Whether Slurm still has a job to run. Raises WorkError where squeue does not tell."""
    done = subprocess.run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.strip() not in _ENDED
    if "Invalid job id" in done.stderr:
        return False
    raise WorkError(f"squeue: {one_line(Exception(done.stderr.strip() or 'failed'))}; the same command goes on")
