"""Causal attention within segments on a TPU: JAX's splash kernel, with grouped heads and blocks to suit the row."""

import functools
import math
import operator

import jax
import jax.numpy as jnp

from mmed_jax.common.errors import warn

# Width of a TPU vector register: blocks are a multiple of it.
LANES = 128
# Larger blocks do not fit the 16 MiB of VMEM that a kernel gets by default on v5e and v5p, where the scores of a
# 2048 x 2048 block alone are that much.
LARGEST_BLOCK = 1024
# Keys worked on at one time in the forward kernel: 512 of a 1024 block take 4 to 8 % fewer instructions than all
# (v5e, v5p, v6e). In the backward kernel that gains nothing, and needs another buffer.
COMPUTE_BLOCK = 512
# Instruction bundles, forward and backward, as compiled for v5e and v5p at head_dim 128: of one 128 x 128 tile in a
# block of 512 or 1024, and of a step from block to block (with its share of the empty steps above the diagonal, which
# the backward kernel takes too).
TILE_COST = 220
STEP_COST = 1200


def block_size(length: int) -> tuple[int, int]:
    """The block that takes least time for rows of `length` tokens, and the length to which rows are padded for it.

    Blocks on and below the diagonal are worked through whole: large blocks waste more at the diagonal, small ones spend
    more on steps (2048 rows: 1024; 1024: 512), and what does not divide the length is padded (640: 640; 1664: 2 x 896).

    Returns:
      (block, padded length), both multiples of 128, block at most LARGEST_BLOCK.
    """

    def cost(blocks: int) -> tuple[float, int]:
        tiles = -(-length // (blocks * LANES))
        # Equal costs: fewer blocks, since the backward kernel writes a dq for every block of keys.
        return blocks * (blocks + 1) / 2 * (tiles * tiles * TILE_COST + STEP_COST), blocks

    fewest = -(-length // LARGEST_BLOCK)
    blocks = min(range(fewest, -(-length // LANES) + 1), key=cost)
    block = -(-length // (blocks * LANES)) * LANES
    return block, block * -(-length // block)


def splash_attention(q, k, v, segments=None, *, interpret: bool = False) -> jax.Array:
    """Attention of every query to the keys not after it in its row with its segment id; scale 1/sqrt(H).

    Grouped heads are the kernel's own: its grid runs over query heads and picks their kv head, and in the fused
    backward kernel the query heads of a kv head are summed in float32. The kernel's residuals carry the name "context",
    so that a remat policy can keep them.

    Args:
      q, k, v: [B, T, N, H] and [B, T, K, H]; K divides N.
      segments: int32 [B, T] not negative, or None = one segment.
      interpret: runs without a TPU, slowly, for tests.

    Returns:
      [B, T, N, H] in the dtype of q.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha,
    )

    t, heads, h = q.shape[1:]
    block, padded = block_size(t)
    compute = COMPUTE_BLOCK if block % COMPUTE_BLOCK == 0 else block
    sizes = BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    q = (q.astype(jnp.float32) / math.sqrt(h)).astype(q.dtype)
    # Padding comes last: no query that is kept sees it.
    q, k, v = (jnp.pad(x, ((0, 0), (0, padded - t), (0, 0), (0, 0))) for x in (q, k, v))
    ids = None
    if segments is not None:
        segments = jnp.pad(segments, ((0, 0), (0, padded - t)), constant_values=-1)
        ids = SegmentIds(segments, segments)
    kernel = make_splash_mha(
        mask=MultiHeadMask([CausalMask((padded, padded))] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="context",
        interpret=interpret,
    )
    out = _sum_of_dq_by_adds(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)), ids)
    return out.swapaxes(1, 2)[:, :t]


def _sum_of_dq_by_adds(kernel):
    """The kernel over a batch, whose backward pass sums the dq of the blocks of keys by adds, not by one reduction.

    The fused backward kernel writes a bfloat16 dq for every block of keys, [B, blocks, N, T, H], and JAX sums them over
    an axis that is neither first nor last, for which the TPU compiler takes ten times as long as the memory needs
    (v6e, 3 rows of 2048: 1.8 ms a layer; as adds in float32 of slices 0.2). JAX's rule is traced as it is, and that sum
    alone exchanged. Where jax cannot be asked so (jax.extend is no stable interface) the kernel is as JAX made it.

    Args:
      kernel: of make_splash_mha: (q, k, v, segment ids or None) -> out, [heads, T, H] each.

    Returns:
      the same with [B, heads, T, H] each.
    """
    if not _can_evaluate():
        return jax.vmap(kernel)

    # The kernel holds arrays, which may belong to the program that is being traced: a custom_vjp may not close over it.
    @jax.custom_vjp
    def attend(kernel, q, k, v, ids):
        return jax.vmap(kernel)(q, k, v, ids)

    def forward(kernel, q, k, v, ids):
        return jax.vjp(lambda q, k, v: jax.vmap(kernel)(q, k, v, ids), q, k, v)

    def backward(vjp, dout):
        traced = jax.make_jaxpr(vjp)(dout)
        return None, *_evaluate(traced.jaxpr, traced.consts, [dout]), None

    attend.defvjp(forward, backward)
    return functools.partial(attend, kernel)


@functools.cache
def _can_evaluate() -> bool:
    try:
        from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun  # noqa: F401
    except ImportError as e:
        warn(f"jax {jax.__version__}: the backward pass of splash attention is JAX's own, and slower ({e})")
        return False
    return True


def _evaluate(jaxpr, consts, arguments):
    """Outputs of a jaxpr for these arguments, sums of partial results over one of the leading axes made by adds."""
    from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments]))
    uncast = {}  # of what was cast, what it was
    for eqn in jaxpr.eqns:
        operands = [x.val if isinstance(x, Literal) else values[x] for x in eqn.invars]
        # By name: primitives have moved more often than they were renamed.
        name = eqn.primitive.name
        if name == "reduce_sum" and _is_leading(eqn.params["axes"], operands[0].ndim):
            (axis,) = eqn.params["axes"]
            (total,) = eqn.outvars
            # Cut before they are cast: else all parts are written a second time, in float32.
            source = operands[0] if isinstance(eqn.invars[0], Literal) else uncast.get(eqn.invars[0], operands[0])
            parts = [jax.lax.index_in_dim(source, i, axis, keepdims=False) for i in range(source.shape[axis])]
            results = [functools.reduce(operator.add, (part.astype(total.aval.dtype) for part in parts))]
        elif name in ("jit", "pjit"):
            results = _evaluate(eqn.params["jaxpr"].jaxpr, eqn.params["jaxpr"].consts, operands)
        else:
            inputs = list(dict.fromkeys(x for x in eqn.invars if not isinstance(x, Literal)))
            one = jaxpr.replace(constvars=[], invars=inputs, outvars=eqn.outvars, eqns=[eqn])
            results = jaxpr_as_fun(ClosedJaxpr(one, []))(*(values[x] for x in inputs))
        values.update(zip(eqn.outvars, results))
        if name == "convert_element_type":
            uncast[eqn.outvars[0]] = operands[0]
    return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars]


def _is_leading(axes: tuple[int, ...], rank: int) -> bool:
    """Whether a sum is over one axis before the last two, which alone lie together in a TPU's memory."""
    return len(axes) == 1 and axes[0] < rank - 2
