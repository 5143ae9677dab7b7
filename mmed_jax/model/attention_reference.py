"""Causal attention within segments by einsum: exact on every platform, memory bounded by blocks of queries."""

import math

import jax
import jax.numpy as jnp

from mmed_jax.model.precision import einsum_f32, precision

# Longer query rows are worked through in blocks, so that memory grows with block x keys, not queries x keys.
QUERY_BLOCK = 1024
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def reference(q, k, v, q_pos, kv_pos, q_seg=None, kv_seg=None, block: int = QUERY_BLOCK, parts: int = 1) -> jax.Array:
    """The einsum form: exact on every platform. Shapes as in `attention`.

    Args:
      block: queries worked on at a time (in each part).
      parts: the mesh splits a row's queries into this many parts; each works through its own blocks.
    """
    b, t, n, h = q.shape
    if q_seg is None:
        q_seg = jnp.zeros_like(q_pos)
        kv_seg = jnp.zeros_like(kv_pos)
    # The backward pass computes probabilities again: [T, S] arrays kept for every layer cost more than that, in memory
    # and on a CPU in time.
    if t <= block * parts:
        return jax.checkpoint(_block)(q, q_pos, q_seg, k, v, kv_pos, kv_seg)
    # The last block is padded; padded queries are cut off again.
    blocks = -(-t // (block * parts))
    pad = blocks * block * parts - t

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(b, parts, blocks, block, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0).reshape(blocks, b, parts * block, *x.shape[4:])

    step = jax.checkpoint(lambda _, xs: (None, _block(*xs, k, v, kv_pos, kv_seg)), prevent_cse=False)
    _, out = jax.lax.scan(step, None, (split(q), split(q_pos), split(q_seg)))
    out = jnp.moveaxis(out.reshape(blocks, b, parts, block, n, h), 0, 2)
    return out.reshape(b, parts * blocks * block, n, h)[:, :t]


def _block(q, q_pos, q_seg, k, v, kv_pos, kv_seg) -> jax.Array:
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    # The query heads of a kv head stand beside its queries, [B, K, G, T, H]: one plain batched product each way, no
    # copy of K/V per query head, and no transposed [T, S] array, which is what costs time on a CPU.
    q = q.reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = einsum_f32("bkgth,bksh->bkgts", q, k) / math.sqrt(h)
    visible = (kv_pos[:, None, :] <= q_pos[:, :, None]) & (kv_seg[:, None, :] == q_seg[:, :, None])
    probs = jax.nn.softmax(jnp.where(visible[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bksh->bkgth", probs, v, precision=precision(v.dtype))
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
