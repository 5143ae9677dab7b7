"""Rotary frequencies against transformers, so dense that a boundary between the bands cannot be shifted unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mmed_jax.model.config import from_hf
from mmed_jax.model.rope import apply_rope, by_halves, by_product, inverse_frequencies

# Neighbouring frequencies differ by 0.3 %.
DENSE = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "head_dim": 8192,
    "rope_theta": 123456.0,
    "max_position_embeddings": 131072,
}


@pytest.mark.parametrize("low, high, original", [(1.0, 4.0, 8192), (1.7, 3.1, 5000)])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaled_frequencies(low, high, original, factor):
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    hf = DENSE | {"rope_scaling": scaling}
    ours = inverse_frequencies(from_hf(hf))
    plain = inverse_frequencies(from_hf(DENSE))
    theirs, attention_scale = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**hf), torch.device("cpu"))
    assert attention_scale == 1.0
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    # All three bands are there: kept, stretched, in between.
    kept, stretched = np.isclose(ours, plain, rtol=1e-6), np.isclose(ours, plain / factor, rtol=1e-6)
    assert kept.sum() > 100 and stretched.sum() > 100 and (~kept & ~stretched).sum() > 100


def test_the_rotation_by_a_product_is_the_rotation_by_halves_bit_for_bit():
    """As is its gradient, which is the rotation back."""
    key = jax.random.key(0)
    x, ct = (jax.random.normal(k, (2, 5, 3, 16), jnp.bfloat16) for k in jax.random.split(key))
    angles = jax.random.uniform(key, (2, 5, 1, 8), maxval=100.0)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    halves, vjp = jax.vjp(lambda x: by_halves(x, cos, sin), x)
    np.testing.assert_array_equal(by_product(x, cos, sin), halves)
    np.testing.assert_array_equal(by_product(ct, cos, -sin), vjp(ct)[0])
    taken, vjp_of_taken = jax.vjp(lambda x: apply_rope(x, cos[:, :, 0], sin[:, :, 0]), x)
    np.testing.assert_array_equal(taken, halves)
    np.testing.assert_array_equal(vjp_of_taken(ct)[0], vjp(ct)[0])


@pytest.mark.parametrize("backward", [False, True])
def test_a_tpu_rotates_bfloat16_by_a_product_and_nothing_else_does(backward):
    def rotation(x, cos, sin):
        return jax.vjp(lambda x: apply_rope(x, cos, sin), x)[1](x)[0] if backward else apply_rope(x, cos, sin)

    def has_a_product(platform, dtype):
        angles = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
        traced = jax.jit(rotation).trace(jax.ShapeDtypeStruct((2, 5, 3, 16), dtype), angles, angles)
        return "dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()

    assert has_a_product("tpu", jnp.bfloat16)
    assert not has_a_product("tpu", jnp.float32)
    assert not has_a_product("cuda", jnp.bfloat16)
    assert not has_a_product("cpu", jnp.bfloat16)
