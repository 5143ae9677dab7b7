"""The key-value cache of generation: its layout, writing into it, attention over it.

Shape suffixes as in llama.py. Keys lie [L, B, K, H, S] and values [L, B, K, S, H]: both products of a decoding step
then read along the last axis of what is stored, and nothing is transposed. On two CPU cores that made the attention of
decoding steps 2.5 to 4 times as fast as [L, B, S, K, H] for both.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mmed_jax.model.attention_reference import MASKED
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.precision import precision

Cache = dict[str, jax.Array]

# Where the slots are: k [L, B, K, H, S], v [L, B, K, S, H].
SLOT_AXIS = {"k": 4, "v": 3}


def init(cfg: LlamaConfig, rows: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache."""
    lead = (cfg.num_layers, rows, cfg.num_kv_heads)
    return {"k": jnp.zeros((*lead, cfg.head_dim, slots), dtype), "v": jnp.zeros((*lead, slots, cfg.head_dim), dtype)}


def slots(cache: Cache) -> int:
    """How many slots a row has."""
    return cache["k"].shape[SLOT_AXIS["k"]]


def grow(cache: Cache, length: int) -> Cache:
    """The cache with `length` slots a row; the new ones are zero and unseen until written."""

    def wider(x: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(x, [(0, length - n if a == axis else 0) for a, n in enumerate(x.shape)])

    return {name: wider(x, SLOT_AXIS[name]) for name, x in cache.items()}


def write(cache: Cache, layer: jax.Array, slots_bt: jax.Array, k_btkh: jax.Array, v_btkh: jax.Array) -> Cache:
    """The cache with one layer's new keys and values at slots_bt; slots outside 0 .. S - 1 are dropped."""
    # A negative index would count from the end; send it past the end, where scatter drops it.
    at = jnp.where(slots_bt < 0, slots(cache), slots_bt)
    rows = jnp.arange(at.shape[0])[:, None]
    return {
        "k": cache["k"].at[layer, rows, :, :, at].set(k_btkh.astype(cache["k"].dtype), mode="drop"),
        "v": cache["v"].at[layer, rows, :, at].set(v_btkh.astype(cache["v"].dtype), mode="drop"),
    }


def attention(cache: Cache, layer: jax.Array, q_btnh: jax.Array, visible_bts: jax.Array) -> jax.Array:
    """Grouped-query attention of new tokens over one layer's slots, softmax in float32.

    Args:
      q_btnh: queries [B, T, N, H]; query head n uses kv head n // (N / K).
      visible_bts: bool [B, T, S], the slots that a query sees.

    Returns:
      [B, T, N, H] in the dtype of q. A query that sees no slot gets a finite value without meaning.
    """
    b, t, n, h = q_btnh.shape
    k, v = cache["k"][layer].astype(q_btnh.dtype), cache["v"][layer].astype(q_btnh.dtype)
    q = q_btnh.reshape(b, t, k.shape[1], n // k.shape[1], h)
    how = {"precision": precision(q.dtype)}
    scores = jnp.einsum("btkgh,bkhs->bkgts", q, k, preferred_element_type=jnp.float32, **how) / math.sqrt(h)
    probs = jax.nn.softmax(jnp.where(visible_bts[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", probs, v, **how).reshape(b, t, n, h)
