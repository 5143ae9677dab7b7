"""Schedules, masks and the optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.config.recipes import load_config
from mmed_jax.model import llama
from mmed_jax.model.config import PRESETS, num_params
from mmed_jax.parallel import sharding
from mmed_jax.training import state as placement
from mmed_jax.training import step
from mmed_jax.training.adafactor import scale_by_adafactor
from mmed_jax.training.optim import decay_mask, make_optimizer, make_schedule
from tests.support.training import (
    STEPS,
    assert_same_state,
    bench,  # noqa: F401
    cut_back,
    losses,
    reproduced,
    state_of,
)

ones = functools.partial(np.ones, dtype=np.float32)

PARAMS = {
    "embed": {"weight": ones((5, 4))},
    "layers": {
        "attn_norm": {"weight": ones((2, 4))},
        "q": {"weight": ones((2, 4, 4)), "bias": ones((2, 4))},
    },
    "final_norm": {"weight": ones(4)},
    "head": {"weight": ones((5, 4))},
}


NAMES = ("adamw", "adafactor")


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def optim(**values):
    config = load_config("stage1").optim
    with config.unlocked():
        config.update({"lr": 1.0, "warmup_ratio": 0.0, "warmup_steps": 10, "end_lr_ratio": 0.1, **values})
    return config


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_schedules_warm_up_from_the_first_step_and_end_where_they_should(name):
    lr = make_schedule(optim(schedule=name, decay_ratio=0.2), 100)
    values = np.array([float(lr(i)) for i in range(101)])
    np.testing.assert_allclose(values[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert values.max() <= 1.0 + 1e-6
    end = 1.0 if name == "constant" else 0.1
    np.testing.assert_allclose(values[100], end, rtol=1e-5)
    if name == "wsd":
        np.testing.assert_allclose(values[10:81], 1.0)
        assert values[81] < 1.0
    if name == "cosine":
        np.testing.assert_allclose(values[55], 0.55, atol=1e-6)
    assert np.all(np.diff(values[10:]) <= 1e-7)


def test_warm_up_by_ratio_and_warm_up_too_long():
    lr = make_schedule(optim(warmup_steps=0, warmup_ratio=0.05), 100)
    np.testing.assert_allclose([float(lr(i)) for i in range(5)], np.arange(1, 6) / 5, rtol=1e-6)
    with pytest.raises(UserError, match="does not end within the run of 8"):
        make_schedule(optim(), 8)


def test_decay_leaves_out_norms_biases_and_embeddings():
    mask = decay_mask(PARAMS)
    assert mask == {
        "embed": {"weight": False},
        "layers": {"attn_norm": {"weight": False}, "q": {"weight": True, "bias": False}},
        "final_norm": {"weight": False},
        "head": {"weight": True},
    }
    assert decay_mask(PARAMS, embeddings=True)["embed"]["weight"] is True


@pytest.mark.parametrize("name", NAMES)
def test_decay_moves_only_the_matrices_and_follows_the_schedule(name):
    tx, lr = make_optimizer(optim(name=name, weight_decay=0.1, warmup_steps=0, lr=0.5, schedule="linear"), 10)
    zero = jax.tree.map(np.zeros_like, PARAMS)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for i in range(3):
        updates, state = update(zero, state, PARAMS)
        moved = jax.tree.map(lambda u: bool(np.any(np.asarray(u) != 0)), updates)
        assert moved == decay_mask(PARAMS)
        np.testing.assert_allclose(updates["layers"]["q"]["weight"], -0.1 * lr(i), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_small_learning_rates_move_float32_weights(name):
    """lr 1e-6 must not vanish: the reason for float32 master weights."""
    tx, _ = make_optimizer(optim(name=name, lr=1e-6, warmup_steps=0, schedule="constant", clip_norm=0.0), 10)
    p, state = jnp.full(3, 0.5), None
    state = tx.init({"q": {"weight": p}})
    params = {"q": {"weight": p}}
    for _ in range(5):
        updates, state = tx.update({"q": {"weight": jnp.ones(3)}}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["q"]["weight"], 0.5 - 5e-6, atol=1e-7)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_the_states_paths_are_those_of_optax_adamw(clip_norm):
    """Checkpoints are read by path."""
    params = {"q": {"weight": jnp.ones((2, 3))}}
    clip = [optax.clip_by_global_norm(1.0)] if clip_norm else []
    theirs = optax.chain(*clip, optax.adamw(optax.constant_schedule(1e-3))).init(params)
    ours = make_optimizer(optim(clip_norm=clip_norm), 100)[0].init(params)
    paths = [[jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)] for state in (ours, theirs)]
    assert paths[0] == paths[1]


def test_clipping_bounds_the_global_norm():
    tx, _ = make_optimizer(optim(clip_norm=1.0, warmup_steps=0, schedule="constant", b1=0.0, b2=0.0, eps=1.0), 10)
    params = {"q": {"weight": jnp.zeros(2)}}
    # With b1 = b2 = 0 and eps = 1 the update is g / (|g| + 1): it shows the clipped gradient.
    updates, _ = tx.update({"q": {"weight": jnp.array([30.0, 40.0])}}, tx.init(params), params)
    np.testing.assert_allclose(-updates["q"]["weight"], [0.6 / 1.6, 0.8 / 1.8], rtol=1e-5)


@pytest.mark.parametrize("mu_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_only_the_first_moment_may_be_bfloat16(mu_dtype, param_dtype):
    tx, _ = make_optimizer(optim(mu_dtype=mu_dtype), 100)
    params = optax.tree.cast(PARAMS, param_dtype)
    state = tx.init(params)
    for _ in range(2):  # the same before and after an update: else the step would be compiled again
        (adam,) = (s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s))
        assert {str(x.dtype) for x in jax.tree.leaves(adam.mu)} == {mu_dtype}
        assert {str(x.dtype) for x in jax.tree.leaves(adam.nu)} == {"float32"}
        _, state = tx.update(jax.tree.map(lambda p: jnp.ones(p.shape), params), state, params)


def test_gradients_are_summed_in_float32():
    """With bfloat16 weights the micro-batches' gradients are bfloat16; their sum is not."""
    cfg = dataclasses.replace(PRESETS["demo"], vocab_size=64, num_layers=2, hidden_size=32, intermediate_size=32)
    cfg = dataclasses.replace(cfg, num_heads=2, num_kv_heads=2, head_dim=16)
    params = llama.init_params(cfg, jax.random.key(0), jnp.bfloat16)
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (32, 16), 0, 64))
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(16, dtype=np.int32), (32, 1)),
        "language": np.ones_like(tokens),
        "loss_mask": np.ones(tokens.shape, np.float32),
    }
    # An optimizer that keeps the gradients as its state and moves nothing.
    keep = optax.GradientTransformation(
        lambda p: jax.tree.map(lambda x: jnp.zeros(x.shape), p),
        lambda g, s, p: (jax.tree.map(jnp.zeros_like, p), g),
    )

    def gradient_of(grad_accum):
        options = step.StepOptions(grad_accum=grad_accum, compute_dtype="float32")
        fn = jax.jit(step.make_train_step(cfg, keep, lambda _: 0.0, options))
        begin = step.init_state(params, keep)
        return lambda rows: fn(begin, {k: v[rows] for k, v in batch.items()})[0]["opt_state"]["embed"]["weight"]

    summed, one = gradient_of(32)(slice(None)), gradient_of(1)
    assert summed.dtype == jnp.float32
    exact = np.mean([np.asarray(one(slice(i, i + 1)), np.float64) for i in range(32)], axis=0)
    # A few micro-gradients round to the other side; a bfloat16 sum would be off by some 1e-3.
    assert np.abs(summed - exact).mean() < 1e-5 * np.abs(exact).mean()


def optax_adafactor(b2):
    """The same by optax, whose transformations take every leaf for one parameter."""
    decay = lambda i, exponent: jnp.minimum(1 - (i + 1.0) ** -exponent, b2)  # noqa: E731
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1, decay_rate_fn=decay), optax.clip_by_block_rms(1.0)
    )


@pytest.mark.parametrize("b2", [0.999, 0.5])
def test_adafactor_is_optax_on_unstacked_layers(b2):
    layers = {"up": {"weight": (3, 6, 4), "bias": (3, 6)}, "down": {"weight": (3, 4, 6)}, "norm": {"weight": (3, 4)}}
    shapes = {"embed": {"weight": (7, 4)}, "final_norm": {"weight": (4,)}, "layers": layers}
    shapes = jax.tree.map(lambda s: jnp.zeros(s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    rng = np.random.default_rng(0)

    def unstack(tree):
        stacked = tree["layers"]
        layers = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(3)]
        return {**{k: v for k, v in tree.items() if k != "layers"}, "layers": layers}

    ours, theirs = scale_by_adafactor(b2), optax_adafactor(b2)
    state, expected_state = ours.init(shapes), theirs.init(unstack(shapes))
    for i in range(6):
        # Of rising size, and once very large in one layer, so that clipping sets in and not everywhere.
        grads = jax.tree.map(lambda x, size=3.0**i: np.float32(rng.standard_normal(x.shape) * size), shapes)
        grads["layers"]["up"]["weight"][1] *= 30.0 ** (i == 4)
        updates, state = jax.jit(ours.update)(grads, state, shapes)
        expected, expected_state = jax.jit(theirs.update)(unstack(grads), expected_state, unstack(shapes))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), unstack(updates), expected)


def test_an_adafactor_update_is_at_most_the_learning_rate():
    tx, _ = make_optimizer(optim(name="adafactor", lr=1e-3, warmup_steps=0, schedule="constant", clip_norm=0.0), 10)
    state = tx.init(PARAMS)
    for size in (1e-9, 1.0, 1e6):
        grads = jax.tree.map(lambda p, s=size: s * jax.random.normal(jax.random.key(3), p.shape), PARAMS)
        updates, state = tx.update(grads, state, PARAMS)
        for u in jax.tree.leaves(updates):
            assert 2e-4 < float(jnp.sqrt((u * u).mean())) <= 1e-3 * 1.4  # by layer: a stack may have some more


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (2, 4)])
def test_moments_take_the_shards_and_bytes_they_should(fsdp, tensor):
    cfg = dataclasses.replace(PRESETS["demo"], num_heads=8, num_kv_heads=8)
    mesh = sharding.make_mesh(fsdp=fsdp, tensor=tensor)
    weights = num_params(cfg)

    def bytes_of(leaves):
        return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(leaves))

    by_name = {}
    for name, changes in {"adamw": {}, "bf16": {"mu_dtype": "bfloat16"}, "adafactor": {"name": "adafactor"}}.items():
        tx, _ = make_optimizer(optim(**changes), 100)
        state = placement.abstract_state(cfg, tx, mesh, "float32")
        shapes = jax.eval_shape(tx.init, state["params"])
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state["opt_state"]) == jax.tree.map(
            lambda x: (x.shape, x.dtype), shapes
        )
        by_name[name] = bytes_of(state["opt_state"])
    assert by_name["adamw"] == pytest.approx(8 * weights / 8, rel=0.01)
    assert by_name["bf16"] == pytest.approx(6 * weights / 8, rel=0.01)
    assert by_name["adafactor"] < 0.1 * by_name["bf16"]

    row, col = state["opt_state"][1][0].row["layers"], state["opt_state"][1][0].col["layers"]
    assert row["up"]["weight"].shape == (4, 384, 1) and col["up"]["weight"].shape == (4, 1, 128)
    for axis, moment in ((1, row["up"]), (2, col["up"]), (1, row["down"]), (2, col["down"])):
        whole, part = moment["weight"].shape, moment["weight"].sharding.shard_shape(moment["weight"].shape)
        split = tensor if whole[axis] == 384 else fsdp
        assert part[axis] == whole[axis] // split and part[0] == whole[0]


ADAFACTOR = {"optim__name": "adafactor", "optim__weight_decay": 0.1}


@pytest.fixture(scope="module")
def adafactor_run(bench):  # noqa: F811
    run = bench.folder / "adafactor"
    assert bench.train(run, **ADAFACTOR).code == 0
    return run


def test_adafactor_trains_and_resumes_bit_for_bit(bench, adafactor_run, tmp_path):  # noqa: F811
    assert losses(adafactor_run)[-1] < 0.8 * losses(adafactor_run)[0]
    run = cut_back(adafactor_run, tmp_path / "run", 12)
    outcome = bench.train(run, **ADAFACTOR)
    assert outcome.code == 0 and f"resumed    step 12 of {STEPS}" in outcome.out, outcome.err
    assert reproduced(run) == reproduced(adafactor_run)
    assert_same_state(state_of(run, STEPS), state_of(adafactor_run, STEPS))


def test_adafactor_resumes_on_another_mesh(bench, adafactor_run, tmp_path):  # noqa: F811
    run = cut_back(adafactor_run, tmp_path / "run", 12)
    outcome = bench.train(run, mesh__devices=8, mesh__fsdp=4, mesh__tensor=2, **ADAFACTOR)
    assert outcome.code == 0, outcome.err
    np.testing.assert_allclose(losses(run), losses(adafactor_run), rtol=1e-5)
    ours, theirs = state_of(run, STEPS), state_of(adafactor_run, STEPS)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_the_other_optimizers_checkpoint_is_refused(bench, adafactor_run):  # noqa: F811
    assert "optim.name" in bench.train(adafactor_run).error


@pytest.mark.parametrize("key", ["b1=0.8", "eps=0.1", "mu_dtype=bfloat16"])
def test_adafactor_refuses_what_it_has_not(key, bench, tmp_path):  # noqa: F811
    name, value = key.split("=")
    outcome = bench.train(tmp_path / "run", **{"optim__name": "adafactor", f"optim__{name}": value})
    assert outcome.code == 2 and outcome.error.startswith(f"config.optim.{name}={value}: adafactor has none")
