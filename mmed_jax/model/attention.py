"""Causal grouped-query attention within segments: one function, several backends.

A query sees a key when both have the same segment id and the key's position is not after the query's.
"""

import functools
import math

import jax
import jax.numpy as jnp

from mmed_jax.errors import UserError, nearest

BACKENDS = ("auto", "reference", "splash", "cudnn")
# Longer query rows are worked through in blocks, so that memory grows with block x keys, not queries x keys.
QUERY_BLOCK = 1024
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def resolve_backend(name: str, platform: str, packed: bool) -> str:
    """The backend that `name` means on `platform` ("cpu", "gpu", "tpu"), for packed (segmented) rows or not.

    Raises:
      UserError: unknown name, a backend that the platform lacks, or one that can't keep packed documents apart.
    """
    if name not in BACKENDS:
        raise UserError(f"attention='{name}': no such backend{nearest(name, BACKENDS)}")
    if name == "auto":
        return "reference"
    if name == "cudnn" and platform not in ("gpu", "cuda", "rocm"):
        raise UserError(f"attention='cudnn' runs on GPUs only, this is {platform}; use attention='auto'")
    if name == "cudnn" and packed:
        raise UserError(
            "attention='cudnn' has no segment ids and would let packed documents see each other; "
            "use attention='auto' or data.packing=False"
        )
    return name


def attention(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    *,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Softmax attention, scale 1/sqrt(H), softmax in float32.

    Args:
      q_btnh: queries [B, T, N, H].
      k_bskh, v_bskh: keys and values [B, S, K, H]; K divides N, query head n uses kv head n // (N / K).
      q_positions, kv_positions: int32 [B, T] and [B, S].
      q_segments, kv_segments: int32 [B, T] and [B, S], or None = one segment.

    Returns:
      [B, T, N, H] in the dtype of q. A query that sees no key gets a finite value without meaning.

    Raises:
      UserError: see resolve_backend.
    """
    if (q_segments is None) != (kv_segments is None):
        raise ValueError("q_segments and kv_segments go together")
    backend = resolve_backend(backend, jax.default_backend(), q_segments is not None)
    if backend != "reference":
        raise UserError(f"attention='{backend}' is not available here; use attention='reference'")
    return reference(q_btnh, k_bskh, v_bskh, q_positions, kv_positions, q_segments, kv_segments)


def reference(q, k, v, q_pos, kv_pos, q_seg=None, kv_seg=None, block: int = QUERY_BLOCK) -> jax.Array:
    """The einsum form: exact on every platform. Shapes as in `attention`."""
    b, t, n, h = q.shape
    if q_seg is None:
        q_seg = jnp.zeros_like(q_pos)
        kv_seg = jnp.zeros_like(kv_pos)
    part = functools.partial(_block, k=k, v=v, kv_pos=kv_pos, kv_seg=kv_seg)
    if t <= block:
        return part(q, q_pos, q_seg)
    # The last block is padded; padded queries are cut off again.
    blocks = -(-t // block)
    pad = blocks * block - t

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, blocks, block, *x.shape[2:]), 1, 0)

    # checkpoint: the backward pass computes a block's probabilities again and never holds those of all blocks.
    step = jax.checkpoint(lambda _, xs: (None, part(*xs)), prevent_cse=False)
    _, out = jax.lax.scan(step, None, (split(q), split(q_pos), split(q_seg)))
    return jnp.moveaxis(out, 0, 1).reshape(b, blocks * block, n, h)[:, :t]


def _block(q, q_pos, q_seg, *, k, v, kv_pos, kv_seg) -> jax.Array:
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    q = q.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, precision=precision, preferred_element_type=jnp.float32)
    visible = (kv_pos[:, None, :] <= q_pos[:, :, None]) & (kv_seg[:, None, :] == q_seg[:, :, None])
    scores = jnp.where(visible[:, None, None], scores / math.sqrt(h), MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", probs, v, precision=precision)
    return out.reshape(b, t, n, h)
