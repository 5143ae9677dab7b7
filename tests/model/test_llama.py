"""Scan, rematerialisation and the key-value cache: ways of computing that must not change what is computed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.model import kv_cache, llama
from mmed_jax.model.remat import POLICIES, check_remat
from mmed_jax.training.loss import weighted_nll
from tests.support import parity as ph


@pytest.fixture(scope="module")
def model():
    cfg = ph.tiny_config(num_layers=3)
    return cfg, ph.pair(ph.TINY | {"rope_scaling": ph.LLAMA3_ROPE, "num_hidden_layers": 3})[2]


def loss_fn(cfg, tokens, **kwargs):
    def loss(params):
        hidden = llama.forward(params, cfg, tokens, **kwargs)
        return weighted_nll(hidden, llama.head_weight(params, cfg), tokens, jnp.ones(tokens.shape), chunk=20)[0]

    return loss


@pytest.fixture(scope="module")
def without_remat(model):
    cfg, params = model
    tokens = jnp.asarray(ph.random_tokens(cfg, 2, 24))
    return tokens, jax.jit(jax.value_and_grad(loss_fn(cfg, tokens)))(params)


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "none"])
def test_remat_changes_nothing(model, without_remat, policy):
    cfg, params = model
    tokens, (expected, expected_grads) = without_remat
    value, grads = jax.jit(jax.value_and_grad(loss_fn(cfg, tokens, remat=policy)))(params)
    assert float(value) == pytest.approx(float(expected), abs=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        # Of sums up to 12: what is computed again may be rounded otherwise where products are fused otherwise.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-5)


def test_each_policy_keeps_what_its_name_says(model):
    """Matrix products in the gradient: the more is kept, the fewer are done again."""
    cfg, params = model
    tokens = jnp.asarray(ph.random_tokens(cfg, 1, 8))
    counts, texts = {}, {}
    for policy in POLICIES:
        texts[policy] = str(jax.make_jaxpr(jax.grad(loss_fn(cfg, tokens, remat=policy)))(params))
        counts[policy] = texts[policy].count("dot_general")
    again = {policy: count - counts["none"] for policy, count in counts.items()}
    # A layer: q, k, v | scores, context | o | gate, up | down; the last one's output is never needed again.
    assert again["full"] == again["offload"] == 8
    assert again["qkv"] == again["full"] - 3
    assert again["minimal"] == again["qkv"] - 3
    assert again["minimal_ctx"] == again["minimal"] - 2
    assert f"<host>[{cfg.num_layers},1,8,{cfg.hidden_size}]" in texts["offload"]
    assert "<host>" not in texts["full"]


def test_unknown_policy_and_missing_host_memory():
    with pytest.raises(UserError, match="did you mean 'minimal'"):
        check_remat("minimall")
    device = types.SimpleNamespace(platform="metal", addressable_memories=lambda: [])
    with pytest.raises(UserError, match="pinned host memory.*metal.*remat='full'"):
        check_remat("offload", device)
    for policy in POLICIES:
        check_remat(policy, jax.devices()[0])


def test_the_layer_is_traced_once_whatever_the_depth(monkeypatch):
    calls = []
    layer = llama._layer
    monkeypatch.setattr(llama, "_layer", lambda *args: calls.append(1) or layer(*args))
    sizes = {}
    for depth in (2, 40):
        cfg = ph.tiny_config(num_layers=depth)
        calls.clear()
        lowered = jax.jit(lambda p, t, cfg=cfg: llama.forward(p, cfg, t)).lower(
            llama.abstract_params(cfg), jax.ShapeDtypeStruct((1, 8), jnp.int32)
        )
        sizes[depth] = (len(calls), len(lowered.as_text().splitlines()))
    assert sizes[2] == sizes[40]
    assert sizes[2][0] <= 2  # scan may look at its body twice


def test_same_shapes_compile_once(model):
    cfg, params = model
    run = jax.jit(lambda p, t: llama.forward(p, cfg, t))
    for seed in range(3):
        run(params, jnp.asarray(ph.random_tokens(cfg, 1, 8, seed)))
    assert run._cache_size() == 1


def test_cached_decoding_is_the_full_forward(model):
    """Prefill of ragged right-padded rows, then token by token: the same logits as one pass over each row."""
    cfg, params = model
    lengths, steps, slots = [3, 9, 6], 5, 16
    prompt = max(lengths)
    full = ph.random_tokens(cfg, 3, prompt + steps)
    expected = ph.logits(params, cfg, full)

    @jax.jit
    def step(cache, tokens, positions):
        hidden, cache = llama.forward(params, cfg, tokens, positions_bt=positions, cache=cache)
        return llama.unembed(params, cfg, hidden), cache

    cache = kv_cache.init(cfg, 3, slots)
    assert cache["k"].shape == (cfg.num_layers, 3, cfg.num_kv_heads, cfg.head_dim, slots)
    positions = np.broadcast_to(np.arange(prompt), (3, prompt))
    padded = np.where(positions < np.array(lengths)[:, None], full[:, :prompt], cfg.vocab_size - 1)
    got, cache = step(cache, jnp.asarray(padded), jnp.asarray(positions, jnp.int32))
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(got[row, :n], expected[row, :n], atol=5e-5)
    for i in range(steps):
        position = np.array(lengths)[:, None] + i
        token = np.take_along_axis(full, position, axis=1)
        got, cache = step(cache, jnp.asarray(token), jnp.asarray(position, jnp.int32))
        np.testing.assert_allclose(got[:, 0], np.take_along_axis(expected, position[..., None], 1)[:, 0], atol=5e-5)


def test_positions_outside_the_cache_are_dropped(model):
    """Negative and too large positions write nothing; the rest of the cache stays as it was."""
    cfg, params = model
    tokens = jnp.asarray(ph.random_tokens(cfg, 1, 6))
    before = jax.tree.map(lambda x: x + 7, kv_cache.init(cfg, 1, 4))
    positions = jnp.asarray([[-1, 0, 4, 2, -3, 100]])
    _, after = llama.forward(params, cfg, tokens, positions_bt=positions, cache=before)
    for name, axis in kv_cache.SLOT_AXIS.items():
        written = (np.moveaxis(np.asarray(after[name]), axis, 0) != 7).any(axis=(1, 2, 3, 4))
        np.testing.assert_array_equal(written, [True, False, True, False])


def test_cache_of_another_type_keeps_it(model):
    cfg, params = model
    tokens = jnp.asarray(ph.random_tokens(cfg, 1, 6))
    cache = kv_cache.init(cfg, 1, 8, jnp.bfloat16)
    hidden, cache = llama.forward(params, cfg, tokens, cache=cache)
    assert hidden.dtype == jnp.float32 and cache["k"].dtype == jnp.bfloat16
    exact = llama.forward(params, cfg, tokens)
    error = np.abs(hidden - exact)
    assert 0 < error.max() < 0.2


def test_cache_refuses_segments(model):
    cfg, params = model
    with pytest.raises(ValueError, match="segment"):
        llama.forward(
            params,
            cfg,
            jnp.zeros((1, 2), jnp.int32),
            segment_ids_bt=jnp.ones((1, 2), jnp.int32),
            cache=kv_cache.init(cfg, 1, 4),
        )


def test_embedding_gradient_of_a_repeated_token_is_summed_in_float32():
    """One token 4096 times in bfloat16 compute: a bfloat16 sum of ones would stop at 256."""
    tokens = jnp.full((1, 4096), 5)

    def loss(table):
        return llama._embed({"weight": table}, tokens, jnp.bfloat16).sum(dtype=jnp.float32)

    grad = jax.grad(loss)(jnp.ones((7, 2)))
    np.testing.assert_array_equal(grad[5], [4096, 4096])
