"""Interrupted runs: killed, stopped or damaged, they end as if nothing had happened, bit for bit on the same mesh."""

import fcntl
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.common.errors import UNFINISHED
from mmed_jax.training import setup
from tests.support.training import (  # noqa: F401
    SLOWLY,
    STEPS,
    VALIDATING,
    WAIT,
    assert_same_state,
    bench,
    cut_back,
    damage,
    files,
    finish,
    last_step,
    losses,
    metrics,
    reproduced,
    saved,
    state_of,
    unseen,
    wait_for,
)


def assert_as_uninterrupted(bench, run_dir):  # noqa: F811
    assert reproduced(run_dir) == reproduced(bench.reference)
    assert_same_state(state_of(run_dir, STEPS), state_of(bench.reference, STEPS))


def starts_of(run_dir) -> list[int]:
    """The steps from which the run was started or resumed."""
    return [e["step"] for e in read_metrics(run_dir).events if e["event"] == "start"]


def assert_time_is_accounted_for(run_dir, seconds: float, starts: int) -> None:
    """The goodput's parts sum to the time of the run, which took no more than `seconds`; killed steps are redone."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    first, goodput = lines[0], read_metrics(run_dir).goodput
    assert goodput.wall == pytest.approx(lines[-1]["time"] - first["time"] + first["startup_seconds"], abs=0.01)
    assert goodput.wall < seconds and goodput.starts == starts
    taken = [line["step"] for line in lines if line["kind"] == "train"]
    assert len(taken) > len(set(taken)) and all(goodput.seconds[part] > 0 for part in ("redone", "between", "save"))
    told = sum(line.get("step_seconds", 0.0) for line in lines)
    assert goodput.seconds["productive"] + goodput.seconds["redone"] <= told + goodput.seconds["compile"]


def unlocked(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Without the lock file, which every start writes."""
    return {name: data for name, data in contents.items() if name != ".lock"}


def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(bench, tmp_path):  # noqa: F811
    run = cut_back(bench.reference, tmp_path / "run", 12)
    outcome = bench.train(run)
    assert outcome.code == 0, outcome.err
    assert f"resumed    step 12 of {STEPS}" in outcome.out
    assert starts_of(run) == [0, 12]
    assert_as_uninterrupted(bench, run)


def test_a_complete_run_says_so_and_changes_nothing(bench, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(bench.reference, run)
    before = files(run)
    outcome = bench.train(run)
    assert outcome.code == 0, outcome.err
    assert f"complete   step {STEPS} of {STEPS}" in outcome.out
    assert unlocked(files(run)) == unlocked(before)


def lose_all(run: Path) -> None:
    shutil.rmtree(run / "hf_assets")


def lose_some(run: Path) -> None:
    (run / "hf_assets/config.json").unlink()
    os.truncate(run / "hf_assets/tokenizer.json", 1000)
    (run / "config.json").unlink()
    (run / ".hf_assets.1.partial").mkdir()  # of a process that was killed


@pytest.mark.parametrize("lose", [lose_all, lose_some])
def test_a_complete_runs_own_command_mends_its_files(bench, tmp_path, lose):  # noqa: F811
    run = tmp_path / "run"
    assert bench.train(run, steps=2).code == 0
    before = files(run)
    lose(run)
    assert bench.train(run, steps=2).code == 0
    assert unlocked(files(run)) == unlocked(before)


def test_a_run_whose_checkpoints_are_gone_stops_or_begins_again(bench, tmp_path):  # noqa: F811
    """In a folder whose name libraries would take for a pattern."""
    run = tmp_path / "lr=[1e-5]"
    assert bench.train(run, steps=4, checkpoint__every_steps=2, tensorboard=True).code == 0
    assert bench.train(run, steps=4).code == 0 and len(metrics(run).events) == 5
    records = metrics(run).train
    assert [r.get("checkpoint_step") for r in records[:2]] == [None, None]
    assert all(0 < r["host_memory_gib"] <= r["host_memory_peak_gib"] + 0.01 for r in records)
    shutil.rmtree(run / "checkpoints")
    outcome = bench.train(run, steps=4)
    assert outcome.code == 2 and "says that step 4 was reached" in outcome.error and "restart=true" in outcome.error
    begun = bench.train(run, steps=4, restart=True, checkpoint__every_steps=2)
    assert begun.code == 0 and "resumed" not in begun.out and "memory     about " in begun.out
    assert saved(run) == [2, 4] and [e["step"] for e in metrics(run).events if e["event"] == "start"] == [0, 0]
    assert [r["loss"] for r in metrics(run).train] == [r["loss"] for r in records]
    assert bench.train(run, steps=4, restart=True).out.count("complete   step 4 of 4") == 1


def test_a_complete_run_without_its_report_gets_it(bench, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(bench.reference, run, ignore=shutil.ignore_patterns("report.html"))
    assert bench.train(run).code == 0
    assert '<figure class="curves"' in (run / "report.html").read_text()


def test_a_report_that_cannot_be_written_fails_no_run(bench, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(bench.reference, run, ignore=shutil.ignore_patterns("report.html", str(STEPS)))
    (run / "report.html").mkdir()
    again = bench.train(run)
    assert again.code == 0 and f"done       {STEPS} steps" in again.out
    assert again.err.count("warning: no report: ") == 1 and "mmed_jax.report --run=" in again.err


def test_killed_at_random_moments_and_in_the_middle_of_a_save(bench, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    # Killed with all arrays of step 6 written and the checkpoint not yet whole.
    began = time.time()
    held = tmp_path / "held"
    code = (
        "import time, pathlib\n"
        "from mmed_jax import train\n"
        "from mmed_jax.checkpoints import checkpointer\n"
        "def hold(self):\n"
        f"    pathlib.Path({str(held)!r}).touch(); time.sleep(600)\n"
        "checkpointer.Checkpointer._seal = hold\n"
        "train.main()\n"
    )
    p = bench.start(run, command=(sys.executable, "-c", code))
    wait_for(held.exists, p)
    wait_for(lambda: last_step(run) > 6, p)
    p.kill()
    finish(p)
    assert saved(run) == [] and list((run / "checkpoints").glob("6.*tmp*"))

    rng = random.Random(0)
    for starts in (2, 3):
        p, step = bench.start(run, command=SLOWLY), rng.randint(2, STEPS - 2)
        wait_for(lambda n=starts, step=step: len(starts_of(run)) == n and last_step(run) >= step, p)
        p.kill()
        finish(p)
    outcome = bench.train(run)
    assert outcome.code == 0, outcome.err
    assert starts_of(run)[:2] == [0, 0] and len(starts_of(run)) == 4
    assert_as_uninterrupted(bench, run)
    assert not list((run / "checkpoints").glob("*tmp*"))
    assert_time_is_accounted_for(run, time.time() - began, starts=4)


def test_a_signal_saves_and_leaves_and_the_next_call_goes_on(bench, tmp_path):  # noqa: F811
    """SIGTERM; of Ctrl-C and of a terminal that is closed, see below."""
    run = tmp_path / "run"
    assert bench.reference.is_dir()
    p = bench.start(run, command=SLOWLY, checkpoint__every_steps=0)
    wait_for(lambda: last_step(run) >= 2, p)
    p.send_signal(signal.SIGTERM)
    (outcome,) = finish(p)
    assert outcome.code == UNFINISHED, outcome.err
    (stopped,) = saved(run)
    assert 2 <= stopped < STEPS
    assert f"stopped    at step {stopped} of {STEPS}" in outcome.out
    assert [e["signal"] for e in metrics(run).events if e["event"] == "stopped"] == ["SIGTERM"]
    # A process of its own, it found the programs that the reference run had compiled.
    (compiled,) = (e for e in metrics(run).events if e["event"] == "compiled")
    assert compiled["compile_count"] == 1 and compiled["compile_cache_hits"] >= 1
    outcome = bench.train(run)
    assert outcome.code == 0 and f"resumed    step {stopped} of" in outcome.out, outcome.err
    assert_as_uninterrupted(bench, run)


def test_a_run_stopped_in_its_last_step_is_finished(bench, tmp_path, monkeypatch):  # noqa: F811
    run, check = cut_back(bench.reference, tmp_path / "run", STEPS - 6), setup.check_finite

    def check_and_stop(step, *rest):
        check(step, *rest)
        if step == STEPS - 1:  # its numbers are looked at while the next step runs
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(setup, "check_finite", check_and_stop)
    assert bench.train(run).code == 0 and saved(run)[-1] == STEPS


def test_sigterm_in_a_validation_saves_at_once_and_gives_no_number(bench, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    keys = {"data__validation": unseen(tmp_path / "validation.jsonl"), "eval_every": 3, "checkpoint__every_steps": 0}
    p = bench.start(run, command=VALIDATING, **keys)
    wait_for((run / "validating").exists, p)
    p.send_signal(signal.SIGTERM)
    (outcome,) = finish(p)
    assert outcome.code == UNFINISHED and "step 3: not validated" in outcome.err, outcome
    assert saved(run) == [3] and last_step(run) == 3 and not metrics(run).evals
    assert [e["step"] for e in metrics(run).events if e["event"] == "stopped"] == [3]


def test_ctrl_c_that_also_ends_the_reader_of_the_output_saves(bench, tmp_path):  # noqa: F811
    """As with `2>&1 | tee log`: tee gets the same signal and is gone before a word of ours is written. It goes on."""
    run = tmp_path / "run"
    p = bench.start(run, command=SLOWLY, checkpoint__every_steps=0)
    wait_for(lambda: last_step(run) >= 2, p)
    p.stdout.close(), p.stderr.close()
    p.send_signal(signal.SIGINT)
    assert p.wait(WAIT) == UNFINISHED
    (stopped,) = saved(run)
    events = metrics(run).events
    assert [(e["step"], e["signal"]) for e in events if e["event"] == "stopped"] == [(stopped, "SIGINT")]
    assert {e["reason"] for e in events if e["event"] == "output_lost"} == {"Broken pipe"}
    outcome = bench.train(run)
    assert outcome.code == 0 and f"resumed    step {stopped} of" in outcome.out, outcome.err
    assert_as_uninterrupted(bench, run)


def test_a_terminal_that_is_closed_loses_nothing(bench, tmp_path):  # noqa: F811
    """The process leads a session of its own on a terminal; when that hangs up, the kernel sends SIGHUP."""
    run, hang_up = tmp_path / "run", tmp_path / "hang_up"
    on_terminal = (
        "import fcntl, os, pathlib, pty, signal, termios, threading, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # also where the tests run under nohup
        "os.setsid()\n"
        "ours, theirs = pty.openpty()\n"
        "fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)\n"
        "os.dup2(theirs, 1), os.dup2(theirs, 2), os.close(theirs)\n"
        f"hang_up = pathlib.Path({str(hang_up)!r})\n"
        "def read():\n"
        "    os.set_blocking(ours, False)\n"
        "    while not hang_up.exists():\n"
        "        time.sleep(0.01)\n"
        "        try: os.read(ours, 100_000)\n"
        "        except BlockingIOError: pass\n"
        "    os.close(ours)\n"
        "threading.Thread(target=read, daemon=True).start()\n"
    )
    p = bench.start(run, command=(*SLOWLY[:2], on_terminal + SLOWLY[2]), checkpoint__every_steps=0)
    wait_for(lambda: last_step(run) >= 2, p)
    hang_up.touch()
    (outcome,) = finish(p)
    assert outcome.code == UNFINISHED, outcome.err
    (stopped,) = saved(run)
    assert 2 <= stopped < STEPS
    assert [e["signal"] for e in metrics(run).events if e["event"] == "stopped"] == ["SIGHUP"]


def test_resumed_on_other_meshes_the_losses_agree(bench, tmp_path):  # noqa: F811
    """8 devices, then 1, then 4 x 2 with the tensors split."""
    one = cut_back(bench.fsdp8, tmp_path / "one", 6)
    assert bench.train(one).code == 0
    split = cut_back(one, tmp_path / "split", 12)
    assert bench.train(split, mesh__devices=8, mesh__fsdp=4, mesh__tensor=2).code == 0
    for run in (one, split):
        np.testing.assert_allclose(losses(run), losses(bench.reference), rtol=1e-5)
    assert [e["devices"] for e in metrics(split).events if e["event"] == "start"] == [8, 1, 8]


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(bench, tmp_path):  # noqa: F811
    run = cut_back(bench.reference, tmp_path / "run", 12)
    damage(run, 12)
    outcome = bench.train(run)
    assert outcome.code == 0, outcome.err
    assert "checkpoints/12 is damaged" in outcome.err and "resumed    step 6 of" in outcome.out
    assert (run / "checkpoints" / "12.corrupt").is_dir() and saved(run) == [6, 12, 18, 24]
    assert_as_uninterrupted(bench, run)


def test_with_every_checkpoint_damaged_the_run_stops_and_changes_nothing(bench, tmp_path):  # noqa: F811
    run = cut_back(bench.reference, tmp_path / "run", 12)
    for step in saved(run):
        damage(run, step)
    before = files(run)
    for _ in range(2):
        outcome = bench.train(run)
        assert outcome.code == 1
        last = outcome.err.splitlines()[-1]
        assert last.startswith("error: no checkpoint in") and "not starting again at step 0" in last
        assert unlocked(files(run)) == unlocked(before)


def test_changed_data_is_refused_on_resume(bench, tmp_path):  # noqa: F811
    data = tmp_path / "stage1.jsonl"
    shutil.copy(bench.records, data)
    assert bench.train(tmp_path / "whole", data__train=data).code == 0
    run = cut_back(tmp_path / "whole", tmp_path / "run", 12)
    before = files(run)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    outcome = bench.train(run, data__train=data)
    assert outcome.code == 2 and "its training data has changed since step 12" in outcome.error
    assert unlocked(files(run)) == unlocked(before)


def test_a_second_process_leaves_everything_to_the_first(bench, tmp_path):  # noqa: F811
    run = cut_back(bench.reference, tmp_path / "run", 12)
    before = files(run)
    with open(run / ".lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = bench.train(run, log_every=7)
    assert outcome.code == 2 and "in use by another training process" in outcome.error
    assert unlocked(files(run)) == unlocked(before)
