"""Rotary frequencies against transformers, so dense that a boundary between the bands cannot be shifted unseen."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mmed_jax.model.config import from_hf
from mmed_jax.model.rope import inverse_frequencies

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
