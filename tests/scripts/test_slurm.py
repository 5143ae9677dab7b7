"""scripts/slurm.sh under Debian's Slurm, on this machine: what ends, what goes on, what is refused."""

import os
import re
import subprocess
import time

import pytest

from tests.support import slurm_cluster
from tests.support.slurm_cluster import output_of
from tests.support.training import (  # noqa: F401
    REPO,
    SLOWLY,
    STEPS,
    bench,
    finish,
    metrics,
    read_metrics,
    reproduced,
)

NODES = ("127.0.0.1", "127.0.0.2", "no-such-host")
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1")
SECONDS = 240

pytestmark = pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not() or "-")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    # munged wants every folder above its socket to be one that others cannot write to, and to look into.
    folder = tmp_path_factory.mktemp("cluster")
    for above in (folder, *folder.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(0o755)
    with slurm_cluster.cluster(folder, NODES):
        yield folder


class Job:
    """A job of scripts/slurm.sh."""

    def __init__(self, folder, *command, flags=()):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        env = os.environ | {
            "PYTHONPATH": str(REPO),
            "XLA_FLAGS": re.sub(r"(?<=device_count=)\d+", "1", os.environ["XLA_FLAGS"]),
        }
        line = ["sbatch", "--parsable", f"--output={folder}/output.txt", *SMALL, *flags, f"{REPO}/scripts/slurm.sh"]
        done = subprocess.run([*line, *map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    def fact(self, name: str) -> str:
        """One of what `scontrol show job` says."""
        return re.search(rf"\b{name}=(\S*)", output_of("scontrol", "show", "job", "-o", self.number))[1]

    def output(self) -> str:
        path = self.folder / "output.txt"
        return path.read_text() if path.exists() else ""

    def wait(self, what, name: str) -> None:
        end = time.monotonic() + SECONDS
        over = False
        while not what():
            assert not over and time.monotonic() < end, (name, self.fact("JobState"), self.output())
            over = self.fact("JobState") in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
            time.sleep(0.2)

    def wait_for_state(self, *states: str) -> None:
        self.wait(lambda: self.fact("JobState") in states, f"{states}")

    def start_now(self) -> None:
        """Slurm lets a job that it took back wait for two minutes, so that its last start is surely over."""
        time.sleep(2)
        subprocess.run(["scontrol", "update", f"JobId={self.number}", "StartTime=now"], check=True)


def test_a_training_goes_on_by_itself_after_its_time_limit(cluster, bench, tmp_path):  # noqa: F811
    run, slow = tmp_path / "run", tmp_path / "slow"
    keys = {"mesh__devices": 0, "checkpoint__every_steps": 0}
    pace = f"time.sleep(2 * pathlib.Path({str(slow)!r}).exists())"
    command = (*SLOWLY[:2], SLOWLY[2].replace("import time", "import pathlib, time").replace("time.sleep(0.1)", pace))
    slow.touch()
    argv = [*command, *bench.argv(run, **keys)]
    # Slurm looks every half minute: the signal comes within that after the first quarter of a minute.
    job = Job(tmp_path / "job", *argv, flags=["--time=1", "--signal=B:TERM@45"])

    def stopped() -> bool:
        if job.fact("JobState") == "PENDING" and job.fact("Restarts") != "0":
            if any(e["event"] == "stopped" for e in read_metrics(run).events):
                return True
            job.start_now()  # it was too early for a step
        return False

    job.wait(stopped, "stopped and in the queue again")
    slow.unlink()
    subprocess.run(["scontrol", "update", f"JobId={job.number}", "TimeLimit=UNLIMITED"], check=True)
    job.start_now()
    job.wait_for_state("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
    output = job.output()
    assert job.fact("JobState") == "COMPLETED" and job.fact("ExitCode") == "0:0", output
    assert "0: stopped    at step" in output and "unfinished (exit code 75): back into the queue" in output
    assert not list(job.folder.glob("*.stops")) and "1: stopped" not in output

    undisturbed = bench.start_two(tmp_path / "undisturbed", devices=1, **keys)
    assert [o.code for o in finish(*undisturbed)] == [0, 0]
    assert reproduced(run) == reproduced(tmp_path / "undisturbed") and len(metrics(run).train) == STEPS


def test_ends_are_passed_on_and_only_an_unfinished_job_is_put_back(cluster, tmp_path):
    began = time.monotonic()
    refused = Job(tmp_path / "refused", "true", flags=["--nodes=1", "--nodelist=no-such-host"])
    refused.wait_for_state("FAILED")
    assert refused.fact("ExitCode") == "2:0" and time.monotonic() - began < 60
    assert "do not resolve" in refused.output() and refused.output().rstrip().endswith(": no-such-host")

    failed = Job(tmp_path / "failed", "bash", "-c", "exit 3")
    failed.wait_for_state("FAILED")
    assert failed.fact("ExitCode") == "3:0" and failed.fact("Restarts") == "0", failed.output()

    # One process ends at once, the other takes longer than KillWait to save: it is left to it.
    pause = "sleep $((SLURM_RESTART_COUNT ? 0 : SLURM_PROCID * 6))"
    save = f"trap '{pause}; echo saved; exit 75' TERM; echo started; while :; do sleep 0.1; done"
    job = Job(tmp_path / "saves", "bash", "-c", save)
    job.wait(lambda: job.output().count("started") == 2, "started")
    subprocess.run(["scancel", "--signal=TERM", job.number], check=True)  # as --signal=TERM@120 and a preemption do
    job.wait_for_state("PENDING")
    assert "0: saved" in job.output() and "1: saved" in job.output() and "expect_processes" not in job.output()
    job.start_now()
    job.wait(lambda: job.output().count("started") == 4, "started again")
    subprocess.run(["scancel", job.number], check=True)  # its user's
    job.wait(lambda: "not put back" in job.output(), "not put back")
    job.wait_for_state("CANCELLED")
    assert job.output().count("1: saved") == 2 and job.fact("Restarts") == "1"

    # For good, with all the time that it takes to save.
    last = Job(tmp_path / "last", "bash", "-c", save)
    last.wait(lambda: last.output().count("started") == 2, "started")
    subprocess.run(["scontrol", "update", f"JobId={last.number}", "Requeue=0"], check=True)
    subprocess.run(["scancel", "--signal=TERM", last.number], check=True)
    last.wait_for_state("FAILED")
    assert last.fact("ExitCode") == "75:0" and "1: saved" in last.output() and "submit it again" in last.output()

    # The signal comes before the first step each time.
    early = Job(tmp_path / "early", "bash", "-c", "echo started; while :; do sleep 0.1; done")
    for starts in (1, 2, 3):
        early.wait(lambda n=starts: early.output().count("started") == 2 * n, "started")
        subprocess.run(["scancel", "--signal=TERM", early.number], check=True)
        early.wait_for_state(*(["PENDING"] if starts < 3 else ["FAILED"]))
        if starts < 3:
            early.start_now()
    assert "three times before its first step" in early.output() and not list(early.folder.glob("*.stops"))
