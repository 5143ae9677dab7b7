"""Stages as Ray tasks, on a Ray that is processes of this machine: tasks lost are submitted again and named."""

import sys

import pytest

from data_gen.commands.corpus import main
from data_gen.corpus.executor import LocalExecutor
from data_gen.corpus.executor_settings import parse_settings
from data_gen.corpus.ray_executor import RayExecutor, RaySettings
from data_gen.corpus.stage_folder import Stage, StageFolder
from mmed_jax.common.errors import UserError, WorkError
from tests.support import fake_ray
from tests.support.corpora import REPO


@pytest.fixture
def ray(monkeypatch):
    return fake_ray.install(monkeypatch)


def stage(function="count_up", parts=4, settings=None, **context) -> Stage:
    listed = [{"n": n} for n in range(parts)]
    return Stage("count", f"tests.support.corpus_stages:{function}", listed, settings or {"word": "a"}, context=context)


def executor(tasks=0, says=None, **settings) -> RayExecutor:
    say = (lambda text: None) if says is None else says.append
    return RayExecutor(RaySettings(**settings), tasks, say=say, lag_seconds=2)


def test_tasks_give_what_processes_give_whatever_is_lost(ray, tmp_path):
    says: list[str] = []
    ray.lost = {0, 2}
    folders = [StageFolder.make(tmp_path / name, stage(parts=5)) for name in ("local", "ray")]
    LocalExecutor(workers=1, tasks=1, preload=("data_gen.corpus.run_task",)).run(folders[0])
    executor(3, says, max_running=2, reserve_gb=0.5, cpus=2).run(folders[1])
    one, other = ({p.name: p.read_bytes() for p in f.path.rglob("parts/*/*")} for f in folders)
    assert one == other and folders[1].pending() == [] and not list(folders[1].path.glob("parts/.*"))
    assert len(ray.calls) == 5 and len(says) == 2
    assert "Ray lost it (WorkerCrashedError: The worker died" in says[0] and says[0].endswith("tried again")
    call = ray.calls[0]
    assert (call["num_cpus"], call["memory"], call["max_calls"], call["max_retries"]) == (2, 1 << 29, 1, 0)
    assert call["runtime_env"]["env_vars"]["PYTHONPATH"].split(":")[0] == str(REPO)


def test_a_task_that_fails_each_time_is_named_and_the_rest_is_done(ray, tmp_path):
    folder = StageFolder.make(tmp_path, stage("die", dying=[2], times=9, signal="SIGKILL", marks=str(tmp_path)))
    with pytest.raises(WorkError, match=r"stage count-\w+: task 2 \(parts 2\): Ray lost it .* \(3 tries\); logs: "):
        executor().run(folder)
    assert folder.pending() == [2]
    wrong = StageFolder.make(tmp_path / "b", stage("fail", 1, {"kind": "user"}))
    with pytest.raises(UserError, match="raw/x.parquet: has no text"):
        executor().run(wrong)
    assert "raw/x.parquet" in (wrong.path / "logs" / "task-000000.log").read_text() and len(ray.calls) == 7


def test_ctrl_c_cancels_what_runs_and_the_same_command_goes_on(ray, tmp_path, monkeypatch):
    folder, wait = StageFolder.make(tmp_path, stage(parts=3)), ray.wait
    waits = []

    def stop(refs, num_returns):
        waits.append(1)
        if len(waits) == 2:
            raise KeyboardInterrupt
        return wait(refs, num_returns)

    monkeypatch.setattr(ray, "wait", stop)
    with pytest.raises(KeyboardInterrupt):
        executor().run(folder)
    assert ray.cancelled == 2
    executor().run(folder)
    assert folder.pending() == []


def test_flags_and_what_is_missing(ray, tmp_path, monkeypatch):
    says: list[str] = []
    executor(says=says, cpus=4.0).run(StageFolder.make(tmp_path, stage(parts=0)))
    assert says[0].startswith("Ray: no node has 4 processors and 4 GB for a task (--ray.cpus, --ray.reserve_gb)")
    ray.address = ""
    with pytest.raises(UserError, match="--ray.address=nowhere:6379: no cluster"):
        executor(address="nowhere:6379").run(StageFolder.make(tmp_path, stage(parts=0)))
    assert parse_settings(RaySettings, {"cpus": "0.5", "reserve_gb": "0"}, "ray") == RaySettings("auto", 0.5, 0.0)
    build = ["build", "--recipe=mmedc:demo", f"--output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="--ray.adress: no such flag, did you mean 'address'"):
        main([*build, "--executor=ray", "--ray.adress=x"])
    with pytest.raises(UserError, match="--ray.cpus: is for --executor=ray"):
        main([*build, "--executor=slurm", "--ray.cpus=1"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="--executor=ray: ray not installed; pip install"):
        main([*build, "--executor=ray"])
