"""Rotary position embeddings in the half-rotation layout of Hugging Face Llama, with Llama-3.1 frequency scaling."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.precision import precision


def inverse_frequencies(cfg: LlamaConfig) -> np.ndarray:
    """float32 [H/2]: radians per position of each rotated pair.

    Computed in float32 in the order of transformers (modeling_rope_utils), so that angles agree at long positions.
    Scaling "llama3": Llama 3.1 reference code (meta-llama/llama-models, apply_scaling).
    """
    exponent = np.arange(0, cfg.head_dim, 2, dtype=np.float32) / np.float32(cfg.head_dim)
    freq = (np.float32(1.0) / np.power(np.float32(cfg.rope_theta), exponent)).astype(np.float32)
    s = cfg.rope_scaling
    if s is None:
        return freq
    wavelength = np.float32(2 * math.pi) / freq
    long_from = s.original_max_position_embeddings / s.low_freq_factor
    short_to = s.original_max_position_embeddings / s.high_freq_factor
    smooth = (s.original_max_position_embeddings / wavelength - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    between = (1 - smooth) * freq / s.factor + smooth * freq
    scaled = np.where(wavelength > long_from, freq / s.factor, np.where(wavelength < short_to, freq, between))
    return scaled.astype(np.float32)


def rope_tables(cfg: LlamaConfig, positions_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 cos and sin of shape [B, T, H/2] for int32 positions [B, T]."""
    angles = positions_bt.astype(jnp.float32)[..., None] * inverse_frequencies(cfg)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_btnh: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + H/2) of every head; float32 inside, dtype of `x` out. No gradient flows to the angles."""
    return _rotate(x_btnh, cos[:, :, None], sin[:, :, None])


@jax.custom_vjp
def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    if x.dtype != jnp.bfloat16:
        return by_halves(x, cos, sin)
    # On a TPU halves of a head are half a vector register: each is written for itself, and both once more together.
    return jax.lax.platform_dependent(x, cos, sin, tpu=by_product, default=by_halves)


def _backward(angles: tuple[jax.Array, jax.Array], ct: jax.Array) -> tuple[jax.Array, None, None]:
    cos, sin = angles
    return _rotate(ct, cos, -sin), None, None


_rotate.defvjp(lambda x, cos, sin: (_rotate(x, cos, sin), (cos, sin)), _backward)


def by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The rotation of x [..., H] by angles that broadcast with [..., H/2]."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def by_product(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`by_halves` with the halves exchanged by a product with a matrix of 0, 1 and -1, which is exact."""
    half = x.shape[-1] // 2
    exchange = np.zeros((2 * half, 2 * half), np.float32)
    exchange[np.arange(half) + half, np.arange(half)] = -1
    exchange[np.arange(half), np.arange(half) + half] = 1
    other = jnp.einsum(
        "...h,hi->...i", x, exchange.astype(x.dtype), precision=precision(x.dtype), preferred_element_type=jnp.float32
    )
    cos, sin = (jnp.concatenate([a, a], axis=-1) for a in (cos, sin))
    return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)
