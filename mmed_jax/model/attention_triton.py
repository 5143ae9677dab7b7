"""Flash attention for packed rows on NVIDIA GPUs: causal, within segments, grouped heads, in Pallas for Triton.

Forward and backward follow FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2). Three things are particular:
blocks of keys that no query of a block may see are skipped, so that a packed row costs what its documents cost; a kv
head's gradients are summed over its query heads inside the kernel, so that K and V are never repeated; and the
residuals carry the name "context", so that a remat policy can keep them.

Shapes: q [B, T, N, H], k and v [B, T, K, H], ids int32 [B, T]; G = N / K query heads a kv head.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# Queries a forward program holds, and rows of every other block. Compiled for sm_90 at head_dim 128 and 64 these need
# at most 107 KiB of shared memory and the fewest spilled registers of the sizes from 32 to 128.
BLOCK_Q = 128
BLOCK = 64
# Powers of two that a Triton dot takes and that stay within shared memory.
HEAD_DIMS = (16, 32, 64, 128)
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def flash_attention(q, k, v, ids=None, *, interpret: bool = False) -> jax.Array:
    """Attention of every query to the keys not after it in its row that have its id; scale 1/sqrt(H).

    Args:
      q, k, v: [B, T, N, H] and [B, T, K, H]; T a multiple of BLOCK, H one of HEAD_DIMS, K divides N. On a GPU bfloat16
        or float16 (a float32 product would be rounded to TF32).
      ids: int32 [B, T], not negative, 0 = padding, or None = one segment. Any order is right; rows cost least when ids
        rise along the row and padding comes last.
      interpret: runs without a GPU, slowly, for tests.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    if ids is None:
        ids = jnp.ones(q.shape[:2], jnp.int32)
    # As the largest id padding keeps the order, and the span of ids in its block small.
    ids = jnp.where(ids == 0, jnp.iinfo(jnp.int32).max, ids)
    return _attention(q, k, v, ids, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, ids, interpret):
    return _forward(q, k, v, ids, interpret)[0]


def _spans_meet(ids_bt: jax.Array, rows: int, columns: int) -> jax.Array:
    """bool [B, T / rows, T / columns]: could a query of this block see a key of that one, by their spans of ids?"""
    b, t = ids_bt.shape
    q_ids, k_ids = ids_bt.reshape(b, -1, rows), ids_bt.reshape(b, -1, columns)
    equal = (q_ids.min(2)[:, :, None] <= k_ids.max(2)[:, None]) & (k_ids.min(2)[:, None] <= q_ids.max(2)[:, :, None])
    last_row = jnp.arange(1, t // rows + 1) * rows - 1
    return equal & (last_row[:, None] >= jnp.arange(t // columns) * columns)


def _first_keys(ids_bt: jax.Array, rows: int) -> jax.Array:
    """int32 [B, T / rows]: the first block of keys that a block of queries looks at."""
    return jnp.argmax(_spans_meet(ids_bt, rows, BLOCK), axis=2).astype(jnp.int32)


def _end_queries(ids_bt: jax.Array) -> jax.Array:
    """int32 [B, T / BLOCK]: the block of queries after the last one that looks at a block of keys."""
    blocks = ids_bt.shape[1] // BLOCK
    return blocks - jnp.argmax(_spans_meet(ids_bt, BLOCK, BLOCK)[:, ::-1], axis=1).astype(jnp.int32)


def _rows(length: int) -> int:
    """Queries that a program of the forward and of the dq kernel holds."""
    return BLOCK_Q if length % BLOCK_Q == 0 else BLOCK


def _sizes(q, k):
    b, t, n, h = q.shape
    # exp2 is the hardware's exponential: scores are scaled by log2(e) as well.
    return b, t, n, h, k.shape[2], n // k.shape[2], math.log2(math.e) / math.sqrt(h)


def _call(kernel, grid, in_specs, out_specs, out_shape, head_dim, interpret):
    params = triton.CompilerParams(num_warps=8 if head_dim > 64 else 4, num_stages=2)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        interpret=interpret,
        compiler_params=None if interpret else params,
        name=kernel.func.__name__.strip("_"),
    )


def _visible(q_block, k_block, q_ids, k_ids, q_axis: int):
    """Mask of one block pair; queries lie on axis `q_axis`, keys on the other one."""
    q_row = q_block * q_ids.shape[0] + jax.lax.iota(jnp.int32, q_ids.shape[0])
    k_row = k_block * k_ids.shape[0] + jax.lax.iota(jnp.int32, k_ids.shape[0])
    if q_axis == 0:
        return (q_row[:, None] >= k_row[None]) & (q_ids[:, None] == k_ids[None])
    return (q_row[None] >= k_row[:, None]) & (q_ids[None] == k_ids[:, None])


def _forward_kernel(q_ref, k_ref, v_ref, ids_ref, first_ref, o_ref, lse_ref, *, scale):
    i, (rows, h) = pl.program_id(0), q_ref.shape
    q, q_ids = q_ref[...], ids_ref[pl.ds(i * rows, rows)]

    def body(j, carry):
        o, top, total = carry
        at = pl.ds(j * BLOCK, BLOCK)
        s = triton.dot(q, k_ref[at, :].T) * scale
        s = jnp.where(_visible(i, j, q_ids, ids_ref[at], 0), s, MASKED)
        # A query whose block begins before its document sums keys it must not see: `shrink` is exactly 0 at the first
        # key that it sees, which clears them.
        new_top = jnp.maximum(top, s.max(axis=1))
        shrink, p = jnp.exp2(top - new_top), jnp.exp2(s - new_top[:, None])
        v = v_ref[at, :]
        return o * shrink[:, None] + triton.dot(p.astype(v.dtype), v), new_top, total * shrink + p.sum(axis=1)

    start = (jnp.zeros((rows, h), jnp.float32), jnp.full(rows, -jnp.inf, jnp.float32), jnp.zeros(rows, jnp.float32))
    end = (i + 1) * (rows // BLOCK)
    o, top, total = jax.lax.fori_loop(first_ref[i], end, body, start)
    o_ref[...] = (o / total[:, None]).astype(o_ref.dtype)
    lse_ref[...] = top + jnp.log2(total)


def _forward(q, k, v, ids, interpret):
    b, t, n, h, _, group, scale = _sizes(q, k)
    rows = _rows(t)
    queries = pl.BlockSpec((None, rows, None, h), lambda i, n, b: (b, i, n, 0))
    keys = pl.BlockSpec((None, t, None, h), lambda i, n, b: (b, 0, jax.lax.div(n, group), 0))
    out, lse = _call(
        functools.partial(_forward_kernel, scale=scale),
        grid=(t // rows, n, b),
        in_specs=[queries, keys, keys, *_per_row(t, t // rows)],
        out_specs=[queries, pl.BlockSpec((None, None, rows), lambda i, n, b: (b, n, i))],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, n, t), jnp.float32)],
        head_dim=h,
        interpret=interpret,
    )(q, k, v, ids, _first_keys(ids, rows))
    out, lse = checkpoint_name(out, "context"), checkpoint_name(lse, "context")
    return out, (q, k, v, ids, out, lse)


def _per_row(*lengths):
    return [pl.BlockSpec((None, length), lambda i, n, b: (b, 0)) for length in lengths]


def _dq_kernel(q_ref, k_ref, v_ref, ids_ref, first_ref, do_ref, lse_ref, delta_ref, dq_ref, *, scale):
    i, rows = pl.program_id(0), q_ref.shape[0]
    q, do, lse, delta = q_ref[...], do_ref[...], lse_ref[...], delta_ref[...]
    q_ids = ids_ref[pl.ds(i * rows, rows)]

    def body(j, dq):
        at = pl.ds(j * BLOCK, BLOCK)
        k = k_ref[at, :]
        s = jnp.where(_visible(i, j, q_ids, ids_ref[at], 0), triton.dot(q, k.T) * scale, MASKED)
        ds = jnp.exp2(s - lse[:, None]) * (triton.dot(do, v_ref[at, :].T) - delta[:, None])
        return dq + triton.dot(ds.astype(k.dtype), k)

    dq = jax.lax.fori_loop(first_ref[i], (i + 1) * (rows // BLOCK), body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = (dq * (scale / math.log2(math.e))).astype(dq_ref.dtype)


def _dkv_kernel(q_ref, k_ref, v_ref, ids_ref, end_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref, *, scale, group):
    j = pl.program_id(0)
    k, v, k_ids = k_ref[...], v_ref[...], ids_ref[pl.ds(j * BLOCK, BLOCK)]
    first, end = j, end_ref[j]

    def body(i, carry, g):
        dk, dv = carry
        at = pl.ds(i * BLOCK, BLOCK)
        q, do = q_ref[at, g, :], do_ref[at, g, :]
        # Keys x queries: no computed block is transposed.
        s = jnp.where(_visible(i, j, ids_ref[at], k_ids, 1), triton.dot(k, q.T) * scale, MASKED)
        p = jnp.exp2(s - lse_ref[g, at][None])
        ds = p * (triton.dot(v, do.T) - delta_ref[g, at][None])
        return dk + triton.dot(ds.astype(q.dtype), q), dv + triton.dot(p.astype(do.dtype), do)

    def head(g, carry):
        return jax.lax.fori_loop(first, end, functools.partial(body, g=g), carry)

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(0, group, head, (zeros, zeros))
    dk_ref[...] = (dk * (scale / math.log2(math.e))).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)


def _backward(interpret, residuals, do):
    q, k, v, ids, out, lse = residuals
    b, t, n, h, kv_heads, group, scale = _sizes(q, k)
    delta = jnp.einsum("btnh,btnh->bnt", out.astype(jnp.float32), do.astype(jnp.float32))
    blocks, rows = t // BLOCK, _rows(t)

    queries = pl.BlockSpec((None, rows, None, h), lambda i, n, b: (b, i, n, 0))
    keys = pl.BlockSpec((None, t, None, h), lambda i, n, b: (b, 0, jax.lax.div(n, group), 0))
    number = pl.BlockSpec((None, None, rows), lambda i, n, b: (b, n, i))
    dq = _call(
        functools.partial(_dq_kernel, scale=scale),
        grid=(t // rows, n, b),
        in_specs=[queries, keys, keys, *_per_row(t, t // rows), queries, number, number],
        out_specs=queries,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        head_dim=h,
        interpret=interpret,
    )(q, k, v, ids, _first_keys(ids, rows), do, lse, delta)

    queries = pl.BlockSpec((None, t, group, h), lambda j, n, b: (b, 0, n, 0))
    keys = pl.BlockSpec((None, BLOCK, None, h), lambda j, n, b: (b, j, n, 0))
    number = pl.BlockSpec((None, group, t), lambda j, n, b: (b, n, 0))
    dk, dv = _call(
        functools.partial(_dkv_kernel, scale=scale, group=group),
        grid=(blocks, kv_heads, b),
        in_specs=[queries, keys, keys, *_per_row(t, blocks), queries, number, number],
        out_specs=[keys, keys],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        head_dim=h,
        interpret=interpret,
    )(q, k, v, ids, _end_queries(ids), do, lse, delta)
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)
