"""Schedules, masks and the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmed_jax.config import load_config
from mmed_jax.errors import UserError
from mmed_jax.optim import decay_mask, make_optimizer, make_schedule

PARAMS = {
    "embed": {"weight": jnp.ones((5, 4))},
    "layers": {
        "attn_norm": {"weight": jnp.ones((2, 4))},
        "q": {"weight": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))},
    },
    "final_norm": {"weight": jnp.ones(4)},
    "head": {"weight": jnp.ones((5, 4))},
}


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


def test_decay_moves_only_the_matrices():
    tx, _ = make_optimizer(optim(weight_decay=0.1, warmup_steps=0, schedule="constant"), 10)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
    assert moved == decay_mask(PARAMS)
    np.testing.assert_allclose(updates["layers"]["q"]["weight"], -0.1, rtol=1e-6)


def test_small_learning_rates_move_float32_weights():
    """lr 1e-6 must not vanish: the reason for float32 master weights."""
    tx, _ = make_optimizer(optim(lr=1e-6, warmup_steps=0, schedule="constant", clip_norm=0.0), 10)
    p, state = jnp.full(3, 0.5), None
    state = tx.init({"q": {"weight": p}})
    params = {"q": {"weight": p}}
    for _ in range(5):
        updates, state = tx.update({"q": {"weight": jnp.ones(3)}}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["q"]["weight"], 0.5 - 5e-6, atol=1e-7)


def test_clipping_bounds_the_global_norm():
    tx, _ = make_optimizer(optim(clip_norm=1.0, warmup_steps=0, schedule="constant", b1=0.0, b2=0.0, eps=1.0), 10)
    params = {"q": {"weight": jnp.zeros(2)}}
    # With b1 = b2 = 0 and eps = 1 the update is g / (|g| + 1): it shows the clipped gradient.
    updates, _ = tx.update({"q": {"weight": jnp.array([30.0, 40.0])}}, tx.init(params), params)
    np.testing.assert_allclose(-updates["q"]["weight"], [0.6 / 1.6, 0.8 / 1.8], rtol=1e-5)


def test_first_moment_dtype():
    tx, _ = make_optimizer(optim(mu_dtype="bfloat16"), 100)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(tx.init(PARAMS)) if x.ndim}
    assert dtypes == {"bfloat16", "float32"}
