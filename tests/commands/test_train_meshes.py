"""The same losses on every mesh, from one process or two, and two processes that start, save and stop together."""

import signal

import numpy as np
import pytest

from mmed_jax.common.errors import UNFINISHED
from mmed_jax.training import answers
from tests.support.training import (
    SLOWLY,
    STEPS,
    VALIDATING,
    bench,  # noqa: F401
    files,
    finish,
    last_step,
    losses,
    metrics,
    saved,
    unseen,
    wait_for,
)

# As SLOWLY, but a process that is gone is missed after 15 seconds; with shorter answers, each of whose tokens is a
# forward pass with all its sums between the processes.
TOKENS = 16
FEW_HEARTBEATS = (
    *SLOWLY[:2],
    "import os\nos.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\nfrom mmed_jax.parallel import distributed, peers\n"
    "distributed.HEARTBEAT_SECONDS, peers.INTERVAL_SECONDS = 15, 1\n"
    f"from mmed_jax.training import answers\nanswers.ANSWER_TOKENS = {TOKENS}\n" + SLOWLY[2],
)

MESHES = {
    "fsdp4-tensor2": {"mesh__devices": 8, "mesh__fsdp": 4, "mesh__tensor": 2},
    "context2": {"mesh__devices": 2, "mesh__context": 2, "xla_flags": "none"},  # three quarters are its compiling
}


def assert_same_losses(run_dir, bench):  # noqa: F811
    np.testing.assert_allclose(losses(run_dir), losses(bench.reference), rtol=1e-5)


def test_eight_devices_have_the_losses_of_one(bench):  # noqa: F811
    assert_same_losses(bench.fsdp8, bench)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_every_mesh_has_the_losses_of_one_device(bench, tmp_path, mesh):  # noqa: F811
    outcome = bench.train(tmp_path / "run", **mesh)
    assert outcome.code == 0, outcome.err
    assert_same_losses(tmp_path / "run", bench)
    compiled = [e for e in metrics(tmp_path / "run").events if e["event"] == "compiled"]
    assert [e["compile_count"] for e in compiled] == [1]


@pytest.mark.multidevice
def test_two_processes_stop_resume_and_end_together(bench, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(answers, "ANSWER_TOKENS", TOKENS)
    run, validation = tmp_path / "run", unseen(tmp_path / "validation.jsonl")
    keys = {"data__validation": validation, "checkpoint__keep_best": 0, "checkpoint__every_steps": 0, "eval_answers": 3}
    # SIGTERM to one in the midst of a validation: both abandon it at the same batch, save and leave.
    first, second = bench.start_two(run, command=VALIDATING, eval_every=11, **keys)
    wait_for((run / "validating").exists, first)
    second.send_signal(signal.SIGTERM)
    outcomes = finish(first, second)
    assert [o.code for o in outcomes] == [UNFINISHED] * 2, outcomes
    (stopped,) = saved(run)
    assert stopped == last_step(run) == 11 and not metrics(run).evals
    assert f"stopped    at step {stopped} of {STEPS}" in outcomes[0].out

    # Resumed with the tensors split over both processes, so that each reads the whole batch. One is killed: the other
    # ends with a line of ours that names it, whether a collective fails or jax misses heartbeats.
    keys["eval_every"] = stopped + 1
    first, second = bench.start_two(run, command=FEW_HEARTBEATS, fresh=True, mesh__fsdp=1, mesh__tensor=8, **keys)
    wait_for(lambda: last_step(run) >= stopped + 2, first)
    second.kill()
    lost, _ = finish(first, second)
    assert f"resumed    step {stopped} of" in lost.out
    assert lost.code == 1 and "process 1 on" in lost.err.splitlines()[-1], lost
    assert [line.startswith("error: ") for line in lost.err.splitlines()].count(True) == 1, lost
    seen = {e["step"]: e["validation/loss"] for e in metrics(run).evals}
    assert list(seen) == [stopped + 1]

    # The rest in one process, on a third mesh.
    outcome = bench.train(run, **MESHES["fsdp4-tensor2"], **keys)
    assert outcome.code == 0, outcome.err
    assert [e["devices"] for e in metrics(run).events if e["event"] == "start"] == [8, 8, 8]
    assert_same_losses(run, bench)
    evals = {e["step"]: e["validation/loss"] for e in metrics(run).evals}
    np.testing.assert_allclose([evals[s] for s in seen], list(seen.values()), rtol=1e-5)
    # The prompts were answered by both processes together, and again by the one that took their step anew.
    two, one = (e["answers"] for e in metrics(run).events if e["event"] == "answers" and e["step"] == stopped + 1)
    assert two == one and [a["language"] for a in one] == ["en", "zh", "fr"]


@pytest.mark.multidevice
def test_bad_records_end_both_processes_with_the_same_line(bench, tmp_path):  # noqa: F811
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": \n')
    outcomes = finish(*bench.start_two(tmp_path / "run", data__train=bad))
    assert [o.code for o in outcomes] == [2, 2], outcomes
    assert all(o.error.startswith(f"{bad}:1: ") for o in outcomes)


@pytest.mark.multidevice
def test_a_process_left_alone_says_so(bench, tmp_path):  # noqa: F811
    first, second = bench.start_two(tmp_path / "run", distributed__timeout_seconds=4)
    second.kill()
    outcome, _ = finish(first, second)
    assert outcome.code == 1 and "the other processes did not answer within 4 s" in outcome.error
    assert not files(tmp_path / "run")
