"""Runs with an adapter by their command lines: what is saved, resumed, handed over, refused; the base stays whole."""

import json
import os
import shutil
import signal
from unittest import mock

import numpy as np
import pytest

from mmed_jax import export
from mmed_jax.checkpoints.run_directory import read_meta
from mmed_jax.common.checksums import MANIFEST
from mmed_jax.common.errors import UNFINISHED
from mmed_jax.planning import planner
from mmed_jax.training import setup
from tests.support.training import (
    MODEL,
    SLOWLY,
    STEPS,
    assert_same_state,
    bench,  # noqa: F401
    call,
    cut_back,
    files,
    finish,
    last_step,
    losses,
    metrics,
    reproduced,
    saved,
    state_of,
    train_here,
    unseen,
    wait_for,
)

LORA = {"lora__rank": 4, "lora__rank_pattern": "down=2,layers.1.q=3"}
# On a folder or a run, which bring their own sizes and tokenizer.
GIVEN = {k.replace(".", "__"): None for k in MODEL} | {"tokenizer": ""}
# Stage 2 with hardly any learning rate: one program for all tests that look where a run starts from.
STAGE2 = LORA | {"steps": 3, "data__seq_len": 256, "optim__lr": 1e-9, "checkpoint__every_steps": 1}


@pytest.fixture(scope="module")
def base(bench, tmp_path_factory):  # noqa: F811
    """A Hugging Face folder: what 24 steps of full fine-tuning made, in float32."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    outcome = call(export.main, f"--model={bench.reference}", f"--output={folder}", "--dtype=float32")
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def trained(bench, base, tmp_path_factory):  # noqa: F811
    """24 undisturbed steps with dropout on that folder, and its bytes before."""
    run, before = tmp_path_factory.mktemp("lora") / "run", files(base)
    outcome = bench.train(run, **GIVEN, **LORA, init_from=base, lora__dropout=0.3)
    assert outcome.code == 0, outcome.err
    assert files(base) == before
    return run, outcome


def argv_of(bench, run, base, **changes):  # noqa: F811
    return bench.argv(run, **GIVEN | LORA | {"init_from": base, "lora__dropout": 0.3} | changes)


def test_checkpoints_hold_the_adapter_alone_and_whose_it_is(bench, trained, base):  # noqa: F811
    run, outcome = trained
    meta = read_meta(run, STEPS)
    leaves = meta["leaves"]["params"]
    assert set(leaves) == {f"layers/{m}/lora_{x}" for m in ("q", "k", "v", "o", "gate", "up", "down") for x in "ab"}
    assert leaves["layers/q/lora_a"] == [[2, 4, 32], "float32"]
    assert leaves["layers/down/lora_b"] == [[2, 32, 2], "float32"]
    assert meta["lora"]["spec"]["modules"]["q"]["rank"] == [4, 3] and meta["lora"]["spec"]["dropout"] == 0.3
    assert meta["lora"]["base"]["path"] == str(base.resolve()) and len(meta["lora"]["base"]["fingerprint"]) == 16
    assert json.loads((run / "config.json").read_text())["lora"]["alpha"] == 8.0
    sizes = [
        sum(p.stat().st_size for p in (of / "checkpoints" / str(STEPS) / "params").rglob("*") if p.is_file())
        for of in (run, bench.reference)
    ]
    assert sizes[0] < 0.5 * sizes[1]
    for words in ("adapter    rank 4, alpha 8, dropout 0.3, on q,k,v,o,gate,up,down", "trained, ", "base       frozen"):
        assert words in outcome.out
    assert losses(run)[-1] < losses(run)[0]
    start = next(e for e in metrics(run).events if e["event"] == "start")
    assert start["flops_per_token"] > 0


def test_killed_and_stopped_it_goes_on_bit_for_bit(bench, trained, base, tmp_path, monkeypatch):  # noqa: F811
    """SIGTERM in the midst, then a kill: adapter, moments, dropout masks and numbers are those of no interruption."""
    run, undisturbed = tmp_path / "run", trained[0]
    changes = GIVEN | LORA | {"init_from": base, "lora__dropout": 0.3, "checkpoint__every_steps": 5}
    check, steps = setup.check_finite, []

    def stopped_in_the_third(*args):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        check(*args)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "check_finite", stopped_in_the_third)
        outcome = bench.train(run, **changes)
    assert outcome.code == UNFINISHED and "stopped    at step" in outcome.out, outcome
    stopped_at = saved(run)[-1]
    process = bench.start(run, command=SLOWLY, **changes)
    wait_for(lambda: last_step(run) >= stopped_at + 7, process)
    process.kill()
    finish(process)
    outcome = bench.train(run, **changes)
    assert outcome.code == 0, outcome.err
    assert_same_state(state_of(run, STEPS), state_of(undisturbed, STEPS))
    assert [r["loss"] for r in reproduced(run)][-1] == losses(undisturbed)[-1]


@pytest.mark.parametrize("mesh", [{"mesh__devices": 4, "mesh__fsdp": 2, "mesh__tensor": 2}], ids=["2x2"])
def test_resumed_on_another_mesh_it_has_the_losses_of_one_device(bench, trained, base, tmp_path, mesh):  # noqa: F811
    run = cut_back(trained[0], tmp_path / "run", 12)
    outcome = train_here(*argv_of(bench, run, base, **mesh, xla_flags="xla_backend_optimization_level=0"))
    assert outcome.code == 0 and "resumed    step 12" in outcome.out, outcome.err
    np.testing.assert_allclose(losses(run), losses(trained[0]), rtol=1e-5)


def test_a_base_that_moved_is_named_and_another_is_refused(bench, trained, base, tmp_path):  # noqa: F811
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    run = cut_back(trained[0], tmp_path / "run", 18)
    meta = run / "checkpoints" / "18" / "meta" / "meta.json"
    meta.write_text(meta.read_text().replace(str(base.resolve()), str(tmp_path / "gone")))
    (run / "checkpoints" / "18" / MANIFEST).unlink()  # it is not what was written any more
    missing = train_here(*argv_of(bench, run, base))
    assert (
        missing.code == 2
        and "which is not there any more; say where" in missing.error
        and "--base=DIR" in missing.error
    )
    weights = moved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    other = train_here(*argv_of(bench, run, base), f"--base={moved}")
    assert other.code == 2 and "holds other weights than those the adapter was trained on" in other.error
    weights.write_bytes(whole)
    outcome = train_here(*argv_of(bench, run, base), f"--base={moved}")
    assert outcome.code == 0 and f"base       {moved}" in outcome.out, outcome.err
    assert_same_state(state_of(run, STEPS), state_of(trained[0], STEPS))
    assert read_meta(run, STEPS)["lora"]["base"]["path"] == str(moved)


def test_random_weights_are_written_down_beneath_the_adapter(bench, tmp_path):  # noqa: F811
    """Stage 1 without init_from: its base is a folder in the run, which may be moved with it; stage 2 goes on."""
    run = tmp_path / "stage1"
    outcome = bench.train(run, **LORA, lora__dropout=0.3)
    assert outcome.code == 0, outcome.err
    assert (run / "base" / "model.safetensors").is_file()
    assert read_meta(run, STEPS)["lora"]["base"]["path"] == str(run / "base")
    outcome = bench.train(tmp_path / "stage2", "stage2", **STAGE2, init_from=run)
    assert outcome.code == 0 and f"base       {run / 'base'}" in outcome.out, outcome.err
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    again = bench.train(moved, **LORA, lora__dropout=0.3)
    assert again.code == 0 and "complete" in again.out, again.err


def test_stage_2_trains_the_same_adapter_on(bench, trained, base, tmp_path):  # noqa: F811
    """Its first loss is that of the adapter; base and spec are the same; optimizer and schedule are fresh."""
    run = tmp_path / "stage2"
    outcome = bench.train(run, "stage2", **STAGE2, init_from=trained[0])
    assert outcome.code == 0, outcome.err
    before, after = state_of(trained[0], STEPS), state_of(run, 1)
    for name in (n for n in before if n.startswith("params/")):
        np.testing.assert_allclose(after[name], before[name], atol=1e-7)
    assert after["opt_state/step"] == 1
    assert (
        read_meta(run, 1)["lora"]["base"]["fingerprint"] == read_meta(trained[0], STEPS)["lora"]["base"]["fingerprint"]
    )
    assert "warning" not in outcome.err
    # Held otherwise than it was, the base is not quite the one that the adapter was trained on.
    changes = STAGE2 | {"init_from": trained[0], "lora__base": "int8", "remat": "full"}
    with mock.patch.object(planner, "_compile"):
        planned = train_here(*bench.argv(tmp_path / "int8", "stage2", **changes), "--plan_only")
    assert planned.code == 0 and "was trained on its base held as 'compute'" in planned.err, planned.err
    # Of a run whose weights were all trained, the newest checkpoint is the base.
    on_full = bench.train(tmp_path / "on_full", "stage2", **STAGE2, init_from=bench.reference)
    assert on_full.code == 0, on_full.err
    record = read_meta(tmp_path / "on_full", 1)["lora"]["base"]
    assert (record["kind"], record["step"], record["path"]) == ("run", STEPS, str(bench.reference.resolve()))


def test_an_adapter_of_peft_is_trained_on(bench, trained, base, tmp_path):  # noqa: F811
    """A PEFT folder as init_from: its base is the folder that it names, or --base."""
    folder = tmp_path / "peft"
    assert call(export.main, f"--model={trained[0]}", "--adapter", f"--output={folder}").code == 0
    outcome = train_here(*bench.argv(tmp_path / "run", "stage2", **STAGE2, init_from=folder), f"--base={base}")
    assert outcome.code == 0 and f"base       {base}" in outcome.out, outcome.err
    assert f"weights    {folder}\n" in outcome.out
    np.testing.assert_allclose(
        state_of(tmp_path / "run", 3)["params/layers/q/lora_a"],
        state_of(trained[0], STEPS)["params/layers/q/lora_a"],
        atol=1e-6,
    )


REFUSED = {
    "all weights from an adapter": ({"lora__rank": None}, ["lora.rank=0 trains all weights", "mmed_jax.export"]),
    "a new adapter on one": (
        LORA | {"lora__start": "fresh"},
        ["lora.start=fresh", "mmed_jax.export", "lora.start=continue"],
    ),
    "another rank": ({"lora__rank": 8}, ["lora.rank is 4 there, 8 here", "lora.alpha is 8.0 there, 16.0 here"]),
    "other targets": (
        {"lora__rank": 4, "lora__targets": "q,v"},
        ["lora.targets is q,k,v,o,gate,up,down there, q,v here", "mmed_jax.export"],
    ),
    "another pattern": ({"lora__rank": 4}, ["the rank of q is 4, 3 there, 4 in all layers here"]),
    "no such layer": (LORA | {"lora__rank_pattern": None, "lora__layers": "7"}, ["there is no layer 7", "0 to 1"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_on_is_refused_with_what_to_do(bench, trained, tmp_path, name):  # noqa: F811
    changes, words = REFUSED[name]
    outcome = bench.train(tmp_path / "run", "stage2", **{"init_from": trained[0], "steps": 2} | changes)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.error, outcome.error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_is_continued_with_its_own_adapter_only(bench, trained, base, tmp_path):  # noqa: F811
    run = cut_back(trained[0], tmp_path / "run", 12)
    for changes, words in (
        ({"lora__dropout": 0.1}, "lora.dropout: 0.3 in the run, 0.1 now"),
        ({"lora__alpha": 16}, "lora.alpha: 8.0 in the run, 16.0 now"),
        ({"lora__rank": None, "lora__rank_pattern": None, "lora__dropout": None}, "lora.rank: 4 in the run, 0 now"),
    ):
        outcome = train_here(*argv_of(bench, run, base, **changes))
        assert outcome.code == 2 and words in outcome.error, outcome
    nothing = train_here(*bench.argv(tmp_path / "full"), f"--base={base}")
    assert nothing.code == 2 and "no weights beneath an adapter" in nothing.error


def test_a_base_in_4_bits_trains_and_resumes(bench, tmp_path):  # noqa: F811
    """Sizes that blocks of 64 divide; the frozen weights are quantised anew from their folder, to the same bits."""
    sizes = {"model__hidden_size": 64, "model__intermediate_size": 128, "model__head_dim": 8}
    changes = sizes | {"lora__rank": 4, "lora__base": "nf4", "remat": "full", "steps": 8, "checkpoint__every_steps": 4}
    changes |= {"batch_size": 4, "xla_flags": "xla_backend_optimization_level=0"}  # of few steps and small ones
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    held_out = unseen(tmp_path / "validation.jsonl")
    outcome = bench.train(whole, **changes, data__validation=held_out, eval_at_start=True, eval_answers=2)
    assert outcome.code == 0 and "base       frozen, nf4" in outcome.out, outcome.err
    assert losses(whole)[-1] < losses(whole)[0]
    cut_back(whole, cut, 4)
    assert bench.train(cut, **changes, data__validation=held_out).code == 0
    assert_same_state(state_of(cut, 8), state_of(whole, 8))
    written = {e["step"]: e["answers"] for e in metrics(whole).events if e["event"] == "answers"}
    assert list(written) == [0, 8] and [a["language"] for a in written[8]] == ["en", "zh"]
    assert read_meta(whole, 8)["lora"]["base"]["quantization"] == "nf4"
