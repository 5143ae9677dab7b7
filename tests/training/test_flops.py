"""FLOPs by formula against published counts and against XLA's own count; peaks by device name."""

import jax
import jax.numpy as jnp
import pytest

from mmed_jax.model import llama
from mmed_jax.model.config import PRESETS, LlamaConfig
from mmed_jax.parallel.chips import peak_flops
from mmed_jax.training import flops
from mmed_jax.training.loss import weighted_nll


@pytest.mark.parametrize("seq_len, giga", [(2048, 46.64), (4096, 48.25), (8192, 51.47)])
def test_llama3_8b(seq_len, giga):
    assert flops.train_flops_per_token(PRESETS["llama3-8b"], seq_len) / 1e9 == pytest.approx(giga, abs=0.005)


def test_matmul_params_of_8b():
    assert flops.matmul_params(PRESETS["llama3-8b"]) / 1e9 == pytest.approx(7.505, abs=0.0005)


@pytest.mark.parametrize("tied", [False, True])
def test_agrees_with_the_compiler(tied):
    """XLA counts the products of a compiled loss and gradient: one layer, one chunk, so that no loop hides any."""
    cfg = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        tie_word_embeddings=tied,
    )
    batch, length = 2, 256

    def loss(params, tokens):
        hidden = llama.forward(params, cfg, tokens)
        logits = llama.unembed(params, cfg, hidden)
        return jnp.mean(logits * logits)

    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(llama.abstract_params(cfg), tokens).compile()
    counted = compiled.cost_analysis()["flops"] / (batch * length)
    # The reference attention works on all pairs, twice the causal count.
    extra = 6 * cfg.num_heads * cfg.head_dim * length
    expected = flops.train_flops_per_token(cfg, length) + extra
    assert expected < counted < 1.06 * expected  # elementwise work on top


def test_chunked_loss_is_counted():
    """The head costs what the formula counts, 6 * V * D, and little beside: no product is computed again."""
    vocab, hidden, tokens = 512, 128, 256

    def loss(h, w, y):
        return weighted_nll(h, w, y, jnp.ones(y.shape), chunk=tokens)[0]

    args = (
        jax.ShapeDtypeStruct((1, tokens, hidden), jnp.float32),
        jax.ShapeDtypeStruct((vocab, hidden), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    )
    counted = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*args).compile().cost_analysis()["flops"] / tokens
    assert 6 * vocab * hidden < counted < 1.1 * 6 * vocab * hidden


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
    ],
)
def test_peaks(kind, tera):
    assert peak_flops(kind) == tera * 1e12


@pytest.mark.parametrize("kind", ["cpu", "TPU v4 lite", "TPU v9", "NVIDIA GeForce RTX 4090", ""])
def test_unknown_peak_is_none(kind):
    assert peak_flops(kind) is None
    assert flops.mfu(1e4, 1e10, kind, 8) is None


def test_mfu_of_a_published_run():
    """MaxText, Llama-3.1-8B, 256 TPU v6e, 8192: 7,207 tokens/s/chip, 40.4 % by the causal count."""
    per_token = flops.train_flops_per_token(PRESETS["llama3.1-8b"], 8192)
    assert flops.mfu(7207 * 256, per_token, "TPU v6 lite", 256) == pytest.approx(0.404, abs=0.001)
