"""Continued pretraining, then both instruction stages: each starts from the weights that the one before left."""

import zlib

import numpy as np

from mmed_jax import export
from mmed_jax.checkpoints.run_directory import read_meta, step_folders
from mmed_jax.config.overrides import parse_args
from mmed_jax.data.prepare import prepare
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from mmed_jax.hf.open_model import open_model
from tests.support.training import call, losses, metrics, state_of, train_here

SIZES = {
    "model.hidden_size": 16,
    "model.intermediate_size": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
}
STEPS = 20


def argv(stage, out, **keys):
    shared = {
        "run_dir": out / stage.partition(":")[0],
        "data.cache_dir": out / "packed",
        "data.seq_len": 128,
        "epochs": 0,
        "log_every": 100,
        "tensorboard": False,
        "mesh.devices": 1,
        "xla_flags": "xla_backend_optimization_level=1",
    }
    return [f"--config={stage}", *(f"--config.{k}={v}" for k, v in {**shared, **keys}.items())]


def parameters(run, step):
    return {k: v for k, v in state_of(run, step).items() if k.startswith("params")}


def started_from(run, step, following):
    """Whether a run of one step with hardly any learning rate has the weights of another's `step`."""
    before, after = parameters(run, step), parameters(following, 1)
    return before.keys() == after.keys() and all(np.allclose(before[k], after[k], atol=1e-6) for k in before)


def test_three_stages_in_a_row(tmp_path, repo):
    first = argv("pretrain", tmp_path, steps=STEPS, **SIZES, **{"data.validation_fraction": 0.2})
    done = train_here(*first)
    assert done.code == 0, done.err
    assert f"--config=stage1:demo --config.init_from={tmp_path}/pretrain" in done.out
    run = tmp_path / "pretrain"
    assert losses(run)[-1] < losses(run)[0] - 0.2
    assert any(k.startswith("validation/loss/") for k in metrics(run).evals[-1])
    # What each step read is what the mixture says.
    mixture = prepare(parse_args(first)[0], load_tokenizer(repo / "mmed_jax/assets/demo")).mixture
    rows = mixture.rows(np.arange(2 * STEPS)).reshape(STEPS, 2)
    assert [r["batch"] for r in metrics(run).train] == [f"{zlib.crc32(r.tobytes()):08x}" for r in rows]

    done = train_here(*argv("stage1", tmp_path, steps=1, init_from=run, **{"optim.lr": 1e-12}))
    assert done.code == 0 and f"--config=stage2:demo --config.init_from={tmp_path}/stage1" in done.out
    assert started_from(run, STEPS, tmp_path / "stage1")
    done = train_here(*argv("stage2", tmp_path, steps=2, init_from=tmp_path / "stage1"))
    assert done.code == 0, done.err
    exported = call(export.main, f"--model={tmp_path / 'stage2'}", f"--output={tmp_path / 'export'}", "--dtype=float32")
    assert exported.code == 0, exported.err
    assert open_model(tmp_path / "export").cfg.hidden_size == SIZES["model.hidden_size"]
    # The card knows the way back, and what each stage was trained on.
    card = (tmp_path / "export" / "README.md").read_text()
    way = "trained from random weights: pretrain (all weights), then stage1 (all weights), then stage2 (all weights)."
    assert way in card and "not recorded" not in card and "not at hand" not in card
    for stage in ("stage1", "stage2"):
        counted = read_meta(tmp_path / stage, max(step_folders(tmp_path / stage)))["data_state"]["contents"]
        assert counted and all(f"| {row['source']} | {row['license']} |" in card for row in counted)


def test_the_adapter_of_the_pretraining_is_trained_on(tmp_path):
    rank = {"lora.rank": 4}
    done = train_here(*argv("pretrain:demo-lora", tmp_path, steps=2, **SIZES, **rank))
    assert done.code == 0, done.err
    run = tmp_path / "pretrain"
    assert (
        train_here(*argv("stage1:demo-lora", tmp_path, steps=1, init_from=run, **rank, **{"optim.lr": 1e-12})).code == 0
    )
    assert started_from(run, 2, tmp_path / "stage1")
