"""The key-value cache of generation: its layout, writing into it, attention over it.

Shape suffixes as in llama.py. Keys lie [L, B, K, H, S] and values [L, B, K, S, H]: both products of a decoding step
then read along the last axis of what is stored, and nothing is transposed. On two CPU cores that made the attention of
decoding steps 2.5 to 4 times as fast as [L, B, S, K, H] for both. Instead of the axis L there may be a list of layers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mmed_jax.model.attention_reference import MASKED
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.precision import precision

# {"k", "v"}: arrays [L, ...], or lists of L arrays without that axis.
Cache = dict[str, jax.Array | list[jax.Array]]

ROW_AXIS = -4
SLOT_AXIS = {"k": -1, "v": -2}


def init(cfg: LlamaConfig, rows: int, slots: int, dtype: Any = jnp.float32, unstacked: bool = False) -> Cache:
    """An empty cache; `unstacked`: as lists of layers."""
    shapes = {"k": (rows, cfg.num_kv_heads, cfg.head_dim, slots), "v": (rows, cfg.num_kv_heads, slots, cfg.head_dim)}
    if unstacked:
        return {name: [jnp.zeros(s, dtype) for _ in range(cfg.num_layers)] for name, s in shapes.items()}
    return {name: jnp.zeros((cfg.num_layers, *s), dtype) for name, s in shapes.items()}


def slots(cache: Cache) -> int:
    """How many slots a row has."""
    return jax.tree.leaves(cache["k"])[0].shape[SLOT_AXIS["k"]]


def grow(cache: Cache, length: int) -> Cache:
    """The cache with `length` slots a row; the new ones are zero and unseen until written."""

    def wider(x: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(x, [(0, length - n if a == x.ndim + axis else 0) for a, n in enumerate(x.shape)])

    return {name: jax.tree.map(lambda x, a=SLOT_AXIS[name]: wider(x, a), layers) for name, layers in cache.items()}


def take_rows(cache: Cache, rows_g: jax.Array) -> Cache:
    """The rows rows_g; numbers past the end give the last row."""
    return jax.tree.map(lambda x: jnp.take(x, rows_g, axis=ROW_AXIS, mode="clip"), cache)


def put_rows(cache: Cache, rows_g: jax.Array, part: Cache) -> Cache:
    """The cache with `part` [.., G, ..] as its rows rows_g; numbers past the end are dropped."""

    def put(x: jax.Array, y: jax.Array) -> jax.Array:
        return x.at[(slice(None),) * (x.ndim + ROW_AXIS) + (rows_g,)].set(y, mode="drop")

    return jax.tree.map(put, cache, part)


def write(cache: Cache, layer: jax.Array | int, slots_bt: jax.Array, k_btkh: jax.Array, v_btkh: jax.Array) -> Cache:
    """The cache with one layer's new keys and values at slots_bt; slots outside 0 .. S - 1 are dropped."""
    # A negative index would count from the end; send it past the end, where scatter drops it.
    at = jnp.where(slots_bt < 0, slots(cache), slots_bt)
    rows, every = jnp.arange(at.shape[0])[:, None], slice(None)

    def put(x: Any, index: tuple, value: jax.Array) -> Any:
        if isinstance(x, list):
            return [*x[:layer], x[layer].at[index].set(value.astype(x[layer].dtype), mode="drop"), *x[layer + 1 :]]
        return x.at[(layer, *index)].set(value.astype(x.dtype), mode="drop")

    return {"k": put(cache["k"], (rows, every, every, at), k_btkh), "v": put(cache["v"], (rows, every, at), v_btkh)}


def attention(cache: Cache, layer: jax.Array | int, q_btnh: jax.Array, visible_bts: jax.Array) -> jax.Array:
    """Grouped-query attention of new tokens over one layer's slots, softmax in float32.

    Args:
      q_btnh: queries [B, T, N, H]; query head n uses kv head n // (N / K).
      visible_bts: bool [B, T, S], the slots that a query sees.

    Returns:
      [B, T, N, H] in the dtype of q. A query that sees no slot gets a finite value without meaning.
    """
    b, t, n, h = q_btnh.shape
    k, v = cache["k"][layer].astype(q_btnh.dtype), cache["v"][layer].astype(q_btnh.dtype)
    kv_heads, s = v.shape[1], v.shape[2]
    # The query heads of a kv head stand beside its queries: plain batched products, nothing of k or v transposed.
    q = q_btnh.reshape(b, t, kv_heads, -1, h).transpose(0, 2, 3, 1, 4).reshape(b, kv_heads, -1, h)
    how = {"precision": precision(q.dtype)}
    scores = jnp.einsum("bkqh,bkhs->bkqs", q, k, preferred_element_type=jnp.float32, **how) / math.sqrt(h)
    scores = jnp.where(visible_bts[:, None, None], scores.reshape(b, kv_heads, -1, t, s), MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype).reshape(b, kv_heads, -1, s)
    out = jnp.einsum("bkqs,bksh->bkqh", probs, v, **how).reshape(b, kv_heads, -1, t, h)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
