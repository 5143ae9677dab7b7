"""The training step: one loss, whatever the accumulation and the mesh."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmed_jax.model import llama
from mmed_jax.model.config import from_hf
from mmed_jax.parallel import sharding
from mmed_jax.parallel.gradient_order import order_of_gradients
from mmed_jax.planning.hlo.analysis import parse_module
from mmed_jax.training import step

CFG = from_hf(
    {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 1000.0,
        "rms_norm_eps": 3e-4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
)
ROWS, LENGTH = 16, 32


@pytest.fixture(scope="module")
def params():
    """In numpy: what lies on a device is cut for a mesh by a program that is compiled for each shape."""
    return jax.device_get(llama.init_params(CFG, jax.random.key(0), jnp.float32))


@pytest.fixture(scope="module")
def batch():
    """Packed rows with very different numbers of supervised tokens, one row with none, padding at the end."""
    rng = np.random.default_rng(0)
    segments = np.zeros((ROWS, LENGTH), np.int32)
    positions = np.zeros((ROWS, LENGTH), np.int32)
    for row in range(ROWS):
        cuts = [0, *sorted(rng.choice(np.arange(4, 26), 2, replace=False)), 28]
        for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)):
            segments[row, a:b] = i + 1
            positions[row, a:b] = np.arange(b - a)
    mask = (rng.random((ROWS, LENGTH)) < np.linspace(0, 1, ROWS)[:, None]) & (segments > 0)
    return {
        "tokens": rng.integers(0, 96, (ROWS, LENGTH)).astype(np.int32),
        "targets": rng.integers(0, 96, (ROWS, LENGTH)).astype(np.int32),
        "segment_ids": segments,
        "positions": positions,
        "language": np.where(segments > 0, 1 + rng.integers(0, 7, (ROWS, 1)), 0).astype(np.int32),
        "loss_mask": mask.astype(np.float32),
    }


TX = optax.sgd(1.0)


@functools.cache
def train_step(**options):
    """The step with these options, one function for all tests, so that each of its programs is compiled once."""
    options = step.StepOptions(loss_chunk=64, **options)
    return jax.jit(step.make_train_step(CFG, TX, lambda _: jnp.float32(1.0), options))


def gradient_of(params, batch, *, mesh=None, **options):
    """The gradient as the optimizer sees it (SGD with lr 1 returns it as the difference), with the metrics."""
    fn, tx = train_step(**options), TX
    if mesh is None:
        state, metrics = fn(step.init_state(params, tx), batch)
    else:
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, sharding.param_shardings(mesh, llama.logical_axes(CFG)))
            rows = {k: jax.device_put(v, sharding.batch_sharding(mesh)) for k, v in batch.items()}
            state, metrics = fn(step.init_state(placed, tx), rows)
    grads = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, state["params"])
    return grads, jax.device_get(metrics)


def assert_same(a, b):
    grads_a, metrics_a = a
    grads_b, metrics_b = b
    np.testing.assert_allclose(metrics_a["loss"], metrics_b["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics_a["language_nll"], metrics_b["language_nll"], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), grads_a, grads_b)


@pytest.mark.parametrize("grad_accum", [2, 8])
def test_micro_batches_give_the_gradient_of_one_batch(params, batch, grad_accum):
    assert_same(gradient_of(params, batch), gradient_of(params, batch, grad_accum=grad_accum))


@pytest.mark.parametrize(
    "axes",
    [
        {"fsdp": 8},
        {"fsdp": 4, "tensor": 2},
        {"fsdp": 4, "context": 2},
        {"data": 2, "fsdp": 2, "context": 2},
        {"fsdp": 2, "tensor": 2, "context": 2},
    ],
    ids=lambda a: "-".join(f"{k}{v}" for k, v in a.items()),
)
def test_every_mesh_gives_the_gradient_of_one_device(params, batch, axes):
    assert_same(gradient_of(params, batch), gradient_of(params, batch, mesh=sharding.make_mesh(**axes)))


def test_mesh_and_accumulation_together_with_remat(params, batch):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    assert_same(gradient_of(params, batch), gradient_of(params, batch, mesh=mesh, grad_accum=4, remat="full"))


def test_gathers_in_two_steps_give_the_gradient_of_one_device(params, batch):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    assert_same(gradient_of(params, batch), gradient_of(params, batch, mesh=mesh, gather_line=2, remat="full"))


@pytest.mark.parametrize(
    "axes, options",
    [
        ({"fsdp": 4, "context": 2}, {}),
        ({"data": 2, "fsdp": 4}, {}),
        ({"data": 2, "fsdp": 4}, {"gather_line": 2}),
        ({"fsdp": 4, "tensor": 2}, {}),
    ],
    ids=["context", "data", "two_steps", "tensor"],
)
def test_an_order_of_gradients_changes_none(params, batch, axes, options):
    options = {"mesh": sharding.make_mesh(**axes), "remat": "minimal_ctx", "ordered_gradients": True, **options}
    assert_same(gradient_of(params, batch), gradient_of(params, batch, **options))


def lowered_step(params, batch, mesh, **options):
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.param_shardings(mesh, llama.logical_axes(CFG)))
        rows = {k: jax.device_put(v, sharding.batch_sharding(mesh)) for k, v in batch.items()}
        return train_step(**options).lower(step.init_state(placed, TX), rows)


def test_gradients_of_the_mlp_are_made_before_attention_s_backward_pass(params, batch):
    lowered = lowered_step(params, batch, sharding.make_mesh(fsdp=8), ordered_gradients=True, remat="minimal_ctx")
    barriers = re.findall(r"optimization_barrier.*: (.*)", lowered.as_text())
    shapes = [sorted(re.findall(r"tensor<([\dx]+)xf32>", line)) for line in barriers]
    assert sorted(["16x32x32", "64x32", "64x32", "32x64"]) in shapes


def test_the_gradient_of_attention_s_output_weights_is_made_before_attention_s_backward_pass(params, batch):
    lowered = lowered_step(params, batch, sharding.make_mesh(fsdp=8), ordered_gradients=True, remat="minimal_ctx")
    barriers = re.findall(r"optimization_barrier.*: (.*)", lowered.as_text())
    heads = f"16x32x{CFG.num_heads}x{CFG.head_dim}"
    assert [heads, "32x32"] in [re.findall(r"tensor<([\dx]+)xf32>", line) for line in barriers]


def test_the_gradient_of_the_down_projection_is_made_first_in_the_backward_pass(params, batch):
    """On each device, behind a barrier with its own rows of the output's gradient, and then scattered by name."""

    def program(**options):
        return lowered_step(params, batch, sharding.make_mesh(fsdp=8), remat="minimal_ctx", **options).as_text()

    text = program(ordered_gradients=True)
    barriers = re.findall(r"optimization_barrier.*: (.*)", text)
    assert ["2x32x32", "32x64"] in [re.findall(r"tensor<([\dx]+)xf32>", line) for line in barriers]
    scattered = r"\(tensor<32x64xf32>\) -> tensor<4x64xf32>"
    assert len(re.findall(scattered, text)) == len(re.findall(scattered, program())) + 1


def test_an_order_of_gradients_changes_none_of_biases():
    cfg = dataclasses.replace(CFG, attention_bias=True, mlp_bias=True)
    drawn = llama.init_params(cfg, jax.random.key(0))["layers"]
    # One layer, its biases not zero.
    layer = jax.tree.map(lambda x: x[0] + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape[1:]), drawn)
    x = jax.random.normal(jax.random.key(1), (ROWS, LENGTH, CFG.hidden_size))

    def gradient(said):
        def loss(layer, x):
            with order_of_gradients(said):
                return (llama.run_layer(x, layer, cfg) ** 2).mean()

        with jax.set_mesh(sharding.make_mesh(fsdp=4, context=2)):
            return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(layer, x)

    plain, ordered = gradient(False), gradient(True)
    assert all(np.abs(g).max() > 1e-5 for g in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), ordered, plain)


def test_no_layer_waits_for_a_sum_of_its_norms_gradients(params, batch):
    """They are summed over the devices once, behind the layers."""
    text = lowered_step(params, batch, sharding.make_mesh(data=2, fsdp=4)).compile().as_text()
    sums = [(i, n) for i, n in parse_module(text).executed(fused=False) if i.opcode.startswith("all-reduce")]
    assert any(n == CFG.num_layers for _, n in sums)  # of weights
    of_norms = [n for i, n in sums if any(s.elements in (32, 2 * 32) for s in i.shapes)]
    assert of_norms and set(of_norms) == {1.0}


def test_gathered_weights_are_kept_for_no_layer(params, batch):
    """In two steps the program takes the memory of one, whatever is kept for the backward pass."""
    mesh = sharding.make_mesh(data=2, fsdp=4)

    def temporary(**options):
        return lowered_step(params, batch, mesh, **options).compile().memory_analysis().temp_size_in_bytes

    whole = sum(x.nbytes for name, p in params["layers"].items() if "norm" not in name for x in p.values())
    for remat in ("none", "minimal_ctx"):
        assert temporary(remat=remat, gather_line=2) < temporary(remat=remat) + whole / 4


def test_loss_is_the_mean_over_supervised_tokens_and_counts_are_right(params, batch):
    _, metrics = gradient_of(params, batch)
    hidden = llama.forward(
        params, CFG, batch["tokens"], positions_bt=batch["positions"], segment_ids_bt=batch["segment_ids"]
    )
    logits = np.asarray(llama.unembed(params, CFG, hidden), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    supervised = batch["loss_mask"] > 0
    np.testing.assert_allclose(metrics["loss"], nll[supervised].mean(), rtol=1e-5)
    assert metrics["supervised_tokens"] == supervised.sum()
    assert metrics["real_tokens"] == (batch["segment_ids"] > 0).sum()
    for slot in range(step.LANGUAGE_SLOTS):
        chosen = supervised & (batch["language"] == slot)
        assert metrics["language_count"][slot] == chosen.sum()
        np.testing.assert_allclose(metrics["language_nll"][slot], nll[chosen].sum(), rtol=1e-4, atol=1e-4)


def test_unsupervised_tokens_change_nothing(params, batch):
    other = dict(batch, targets=np.where(batch["loss_mask"] > 0, batch["targets"], 5).astype(np.int32))
    assert_same(gradient_of(params, batch), gradient_of(params, other))


def test_a_batch_without_supervised_tokens_gives_zero_and_no_nan(params, batch):
    grads, metrics = gradient_of(params, dict(batch, loss_mask=np.zeros_like(batch["loss_mask"])))
    assert metrics["loss"] == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads))


def test_bfloat16_compute_keeps_float32_weights_and_gradients(params, batch):
    grads, metrics = gradient_of(params, batch, compute_dtype="bfloat16")
    exact, exact_metrics = gradient_of(params, batch)
    np.testing.assert_allclose(metrics["loss"], exact_metrics["loss"], rtol=2e-2)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        assert a.dtype == np.float32
        assert np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(b)


def test_evaluation_step_sums_what_the_training_step_reports(params, batch):
    sums = jax.jit(step.make_eval_step(CFG, step.StepOptions(loss_chunk=64)))(params, batch)
    _, metrics = gradient_of(params, batch)
    np.testing.assert_allclose(sums["nll"], metrics["language_nll"], rtol=1e-6)
    np.testing.assert_allclose(sums["count"], metrics["language_count"])


def test_language_slots_cover_the_schema():
    from mmed_jax.data.records.schema import LANGUAGES

    assert step.LANGUAGE_SLOTS == len(LANGUAGES) + 1


def test_unpacked_rows_need_no_segment_ids(params, batch):
    """One example a row, padding on the right: the same numbers with and without segment ids."""
    rows = dict(batch, segment_ids=(np.arange(LENGTH) < 20).astype(np.int32)[None].repeat(ROWS, 0))
    rows["positions"] = np.where(rows["segment_ids"] > 0, np.arange(LENGTH, dtype=np.int32), 0)
    rows["loss_mask"] = batch["loss_mask"] * rows["segment_ids"]
    assert_same(gradient_of(params, rows), gradient_of(params, rows, packing=False))
