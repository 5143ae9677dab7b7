"""The model against `transformers` (torch, eager, float32) on tiny random Llamas with odd constants.

Every constant is mutated in our config alone and must break the agreement: a constant that is not read, or hard-coded,
can't pass.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmed_jax.model import llama
from mmed_jax.model.config import RopeScaling
from mmed_jax.training.loss import weighted_nll
from tests.support import parity as ph

TOLERANCE = 1e-4
SCALED = ph.TINY | {"rope_scaling": ph.LLAMA3_ROPE}
BIASED = SCALED | {"attention_bias": True, "mlp_bias": True}
VARIANTS = {
    "default rope, untied": ph.TINY,
    "llama3 rope, untied": SCALED,
    "llama3 rope, tied": SCALED | {"tie_word_embeddings": True},
    "one query head a kv head": SCALED | {"num_key_value_heads": 4},
    "one kv head": SCALED | {"num_key_value_heads": 1},
    "biases": BIASED,
    "attention bias alone": SCALED | {"attention_bias": True},
    "head_dim wider than hidden / heads": SCALED | {"head_dim": 20},
    "head_dim left out": {k: v for k, v in SCALED.items() if k != "head_dim"},
    "transformers 5 schema": {k: v for k, v in ph.TINY.items() if k != "rope_theta"}
    | {"rope_parameters": ph.LLAMA3_ROPE | {"rope_theta": 98765.0}},
}
LENGTH = 320  # five times the original window of LLAMA3_ROPE


@pytest.mark.parametrize("name", VARIANTS)
def test_logits(name):
    model, cfg, params = ph.pair(VARIANTS[name])
    tokens = ph.random_tokens(cfg, 2, LENGTH)
    theirs, ours = ph.torch_logits(model, tokens), ph.logits(params, cfg, tokens)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("name", ["llama3 rope, tied", "biases", "one kv head"])
def test_gradients(name):
    """Gradients of the mean loss, every leaf, with the chunked loss on our side."""
    model, cfg, params = ph.pair(VARIANTS[name])
    tokens = ph.random_tokens(cfg, 2, 97)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    out = model(torch.tensor(inputs)).logits
    loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(targets).flatten().long())
    loss.backward()
    # The tied head's gradient arrives in the embedding on both sides.
    theirs = ph.to_tree(cfg, {n: p.grad for n, p in model.named_parameters()})

    def ours(params):
        hidden = llama.forward(params, cfg, jnp.asarray(inputs))
        weights = jnp.full(targets.shape, 1 / targets.size)
        return weighted_nll(hidden, llama.head_weight(params, cfg), jnp.asarray(targets), weights, chunk=50)[0]

    value, grads = jax.jit(jax.value_and_grad(ours))(params)
    assert float(value) == pytest.approx(loss.item(), abs=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(theirs), strict=True):
        assert np.abs(b).max() > 1e-4, path
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4, err_msg=str(path))


def scaling(**changes):
    return dataclasses.replace(ph.tiny_config().rope_scaling, **changes)


MUTATIONS = {
    "rope_theta hard-coded 500000": {"rope_theta": 500000.0},
    "rope_theta off by 1 %": {"rope_theta": 123456.0 * 1.01},
    "rms_norm_eps 1e-5": {"rms_norm_eps": 1e-5},
    "rms_norm_eps 2.9e-4": {"rms_norm_eps": 2.9e-4},
    "rope_scaling ignored": {"rope_scaling": None},
    "Llama-3.1's scaling": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)},
    "factor": {"rope_scaling": scaling(factor=7.1)},
    "low_freq_factor": {"rope_scaling": scaling(low_freq_factor=1.4)},
    "high_freq_factor": {"rope_scaling": scaling(high_freq_factor=4.8)},
    "original_max_position_embeddings": {"rope_scaling": scaling(original_max_position_embeddings=68)},
    "head_dim": {"head_dim": 8, "num_heads": 8, "num_kv_heads": 4},
    "kv heads": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 32},
    "tie_word_embeddings": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module")
def scaled():
    model, cfg, params = ph.pair(SCALED)
    tokens = ph.random_tokens(cfg, 2, LENGTH)
    theirs = ph.torch_logits(model, tokens)
    assert np.abs(ph.logits(params, cfg, tokens) - theirs).max() <= TOLERANCE
    return cfg, params, tokens, theirs


@pytest.mark.parametrize("name", MUTATIONS)
def test_one_wrong_constant_breaks_parity(scaled, name):
    cfg, params, tokens, theirs = scaled
    wrong = dataclasses.replace(cfg, **MUTATIONS[name])
    assert wrong != cfg
    # A wrong constant that changes shapes would fail by itself; these all run.
    error = np.abs(ph.logits(params, wrong, tokens) - theirs).max()
    assert error > 3 * TOLERANCE, f"{name} goes unnoticed: {error}"


@pytest.mark.parametrize("linear", ["q", "k", "v", "o", "gate", "up", "down"])
def test_a_forgotten_bias_breaks_parity(linear):
    model, cfg, params = ph.pair(BIASED)
    tokens = ph.random_tokens(cfg, 1, 80)
    params["layers"][linear].pop("bias")
    assert np.abs(ph.logits(params, cfg, tokens) - ph.torch_logits(model, tokens)).max() > 3 * TOLERANCE


def test_norm_weights_and_final_norm_are_used(scaled):
    cfg, params, tokens, theirs = scaled
    for group in ("attn_norm", "mlp_norm", "final_norm"):
        changed = jax.tree.map(lambda x: x, params)
        target = changed["final_norm"] if group == "final_norm" else changed["layers"][group]
        target["weight"] = target["weight"] * 1.01
        assert np.abs(ph.logits(changed, cfg, tokens) - theirs).max() > 3 * TOLERANCE, group


def test_positions_past_the_original_window_without_the_start(scaled):
    """Positions 250.. handed in explicitly, as a decoder would, agree with transformers' position_ids."""
    cfg, params, tokens, _ = scaled
    model = ph.torch_llama(SCALED)
    positions = np.broadcast_to(np.arange(250, 250 + 40), (2, 40))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens[:, :40]), position_ids=torch.tensor(positions)).logits.numpy()
    ours = ph.logits(params, cfg, tokens[:, :40], positions_bt=jnp.asarray(positions, jnp.int32))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def test_bfloat16_compute_stays_near_float32(scaled):
    """bfloat16 matmuls over float32 weights: the error of 8 bits of mantissa, not of a wrong cast."""
    cfg, params, tokens, theirs = scaled
    ours = ph.logits(params, cfg, tokens, compute_dtype=jnp.bfloat16)
    assert ours.dtype == np.float32
    error = np.abs(ours - theirs).mean() / np.abs(theirs).mean()
    assert 1e-4 < error < 0.02


def test_token_outside_the_vocabulary_is_loud(scaled):
    cfg, params, tokens, _ = scaled
    bad = tokens.copy()
    bad[0, 5] = cfg.vocab_size
    assert np.isnan(ph.logits(params, cfg, bad)[0, 5]).all()
