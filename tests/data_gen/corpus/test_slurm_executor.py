"""Stages as Slurm arrays, on a fake cluster: tasks lost are submitted again and named, jobs are found again."""

import signal
import subprocess
import sys
import time

import pytest

from data_gen.corpus.executor import LocalExecutor
from data_gen.corpus.executor_settings import parse_settings
from data_gen.corpus.slurm_executor import SlurmExecutor, SlurmSettings
from data_gen.corpus.stage_folder import Stage, StageFolder
from mmed_jax.common.errors import UserError, WorkError
from tests.support import fake_slurm
from tests.support.corpora import REPO


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name, value in fake_slurm.install(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "bin"


def stage(function="count_up", parts=4, settings=None, **context) -> Stage:
    listed = [{"n": n} for n in range(parts)]
    return Stage("count", f"tests.support.corpus_stages:{function}", listed, settings or {"word": "a"}, context=context)


def executor(tasks=0, says=None, **settings) -> SlurmExecutor:
    say = (lambda text: None) if says is None else says.append
    return SlurmExecutor(SlurmSettings(poll_s=0.05, **settings), tasks, say=say, lag_seconds=2)


def calls(cluster) -> list[str]:
    return (cluster / "calls.txt").read_text().splitlines()


def test_arrays_give_what_processes_give(cluster, tmp_path):
    folders = [StageFolder.make(tmp_path / name, stage(parts=5)) for name in ("local", "slurm")]
    LocalExecutor(workers=2).run(folders[0])
    executor(3, max_array=2, partition="cpu", mem_gb=0.5, max_running=7, extra="--constraint=x").run(folders[1])
    one, other = ({p.name: p.read_bytes() for p in f.path.rglob("parts/*/*")} for f in folders)
    assert one == other and folders[1].pending() == []
    first, second = calls(cluster)
    assert "--array=0-1%7" in first and "--array=0-0%7" in second and "--constraint=x" in first
    assert "--partition=cpu" in first and "--mem=512M" in first and "--qos" not in first and "depend" not in first


def test_what_the_cluster_lost_is_submitted_again(cluster, tmp_path):
    says = []
    for task in (1, 3):
        (cluster / "lost" / str(task)).touch()
    (cluster / "down").touch()
    folder = StageFolder.make(tmp_path, stage())
    executor(says=says).run(folder)
    assert folder.pending() == [] and len(calls(cluster)) == 2 and "--array=0-1" in calls(cluster)[1]
    assert any("Slurm does not answer" in text for text in says)
    assert any("task 1: Slurm ended it (slurmstepd: error: Detected 1 oom-kill event" in text for text in says)


def test_a_task_that_fails_each_time_is_named(cluster, tmp_path):
    folder = StageFolder.make(tmp_path, stage("die", dying=[2], times=9, signal="SIGKILL", marks=str(tmp_path)))
    with pytest.raises(WorkError, match=r"stage count-\w+: task 0 \(parts 2\): .* \(3 tries\); logs: "):
        executor().run(folder)
    assert len(calls(cluster)) == 3 and folder.pending() == [2]


def test_wrong_input_is_not_tried_again(cluster, tmp_path):
    folder = StageFolder.make(tmp_path, stage("fail", settings={"kind": "user"}))
    with pytest.raises(UserError, match="raw/x.parquet: has no text"):
        executor().run(folder)
    assert len(calls(cluster)) == 1
    with pytest.raises(UserError, match="sbatch: sbatch: error: invalid partition specified: nowhere"):
        executor(partition="nowhere").run(StageFolder.make(tmp_path / "b", stage()))


def test_jobs_outlive_a_killed_parent_and_end_with_ctrl_c(cluster, tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from data_gen.corpus.slurm_executor import SlurmExecutor, SlurmSettings\n"
        "from data_gen.corpus.stage_folder import StageFolder\n"
        "SlurmExecutor(SlurmSettings(poll_s=0.05)).run(StageFolder(Path(sys.argv[1])))\n"
    )
    for number in (signal.SIGKILL, signal.SIGINT):
        folder = StageFolder.make(tmp_path / str(number), stage(seconds=0.3))
        before = len(calls(cluster)) if (cluster / "calls.txt").exists() else 0
        process = subprocess.Popen([sys.executable, "-c", program, folder.path], cwd=REPO, stderr=subprocess.DEVNULL)
        while not (folder.path / "slurm.json").exists() or len(folder.pending()) == 4:
            time.sleep(0.02)
        process.send_signal(number)
        process.wait()
        left = len(folder.pending())
        assert left > 0
        executor().run(folder)
        assert folder.pending() == []
        if number == signal.SIGKILL:  # the job went on, and was waited for
            assert len(calls(cluster)) == before + 1 and not (cluster / "cancelled.txt").exists()
        else:
            assert len(calls(cluster)) == before + 2 and (cluster / "cancelled.txt").read_text().strip()


def test_flags():
    assert parse_settings(SlurmSettings, {"partition": "cpu", "cpus": "2", "mem_gb": "1.5"}, "slurm") == SlurmSettings(
        "cpu", cpus=2, mem_gb=1.5
    )
    for given, text in (
        ({"partion": "x"}, "--slurm.partion: no such flag, did you mean 'partition'?"),
        ({"cpus": "two"}, "--slurm.cpus=two: must be a number, for example 4"),
        ({"max_array": "0"}, "--slurm.max_array=0: must be above 0"),
    ):
        with pytest.raises(UserError) as e:
            parse_settings(SlurmSettings, given, "slurm")
        assert str(e.value) == text


def test_no_slurm_here(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="--executor=slurm: sbatch, squeue, scancel: no such command here"):
        executor()
