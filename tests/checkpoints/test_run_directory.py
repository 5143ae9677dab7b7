"""The run directory belongs to one config, and signals only set a flag."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.checkpoints.run_directory import guard_run_dir
from mmed_jax.common.errors import UserError
from mmed_jax.parallel.preemption import PreemptionGuard
from tests.support.checkpoints import CONFIG, checkpointer, save


def test_guard_run_dir(tmp_path):
    run = tmp_path / "run"
    assert guard_run_dir(run, CONFIG) == run and json.loads((run / "config.json").read_text()) == CONFIG
    changed = CONFIG | {"optim": {"lr": 1.0}}
    guard_run_dir(run, changed)  # no checkpoint yet: nothing to lose
    guard_run_dir(run, CONFIG)
    with checkpointer(run) as c:
        save(c, 4)
    guard_run_dir(run, CONFIG | {"log_every": 1, "run_dir": "elsewhere", "mesh": {"fsdp": 2}})
    with pytest.raises(UserError) as e:
        guard_run_dir(run, changed | {"steps": 200})
    for text in ("step 4", "optim.lr: 0.001 in the run, 1.0 now", "steps: 100 in the run, 200 now", "--config.run_dir"):
        assert text in str(e.value)
    (run / "config.json").write_text("{torn")  # the checkpoint knows as well
    with pytest.raises(UserError, match="optim.lr"):
        guard_run_dir(run, changed)
    guard_run_dir(run, CONFIG)
    assert json.loads((run / "config.json").read_text()) == CONFIG


def test_a_key_that_is_newer_than_the_run_counts_as_its_neutral_value(tmp_path):
    from mmed_jax.config.defaults import base

    now = base().to_dict()
    old = {k: v for k, v in now.items() if k != "optim"} | {"profile_start": 10, "profile_steps": 0}
    old["optim"] = {k: v for k, v in now["optim"].items() if k != "name"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "checkpoints/3").mkdir(parents=True)
    guard_run_dir(tmp_path, now)  # optim.name is new, and adamw is what every run before it had
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match='optim.name: "adamw" in the run, "adafactor" now'):
        guard_run_dir(tmp_path, now | {"optim": now["optim"] | {"name": "adafactor"}})
    (tmp_path / "config.json").write_text(json.dumps(old | {"unknown": 1}))
    with pytest.raises(UserError, match="unknown: 1 in the run, not set now"):
        guard_run_dir(tmp_path, now)


@pytest.mark.parametrize(
    "where, text",
    [("file", "is a file"), ("file/in", "cannot be"), ("s3://b/run", "places of s3:// are not")],
)
def test_guard_run_dir_refuses(tmp_path, monkeypatch, where, text):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(UserError, match=text):
        guard_run_dir(where, CONFIG)
    with pytest.raises(UserError, match="cannot be written"):
        guard_run_dir("/proc/no_such_place", CONFIG)  # read-only even for root


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", ".lock"])
def test_a_pipe_in_the_run_directory_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{re.escape(name)}: is a named pipe"):
        guard_run_dir(tmp_path, CONFIG)
    if name == "metrics.jsonl":
        assert "is a named pipe" in read_metrics(tmp_path).notes[0]


@pytest.fixture
def hang_up_is_heard():
    """Also where the tests run under nohup, which the guard respects."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_up_is_heard")
def test_signals_set_a_flag():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionGuard() as guard:
        assert not guard.should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.should_stop(2) and guard.signal_name == "SIGTERM"
    with PreemptionGuard() as guard:
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.should_stop(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) == before
    with PreemptionGuard() as guard:
        os.kill(os.getpid(), signal.SIGHUP)
        assert guard.should_stop(1) and guard.signal_name == "SIGHUP"


def test_under_nohup_a_closed_terminal_is_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with PreemptionGuard() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not guard.should_stop(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
