"""Causal grouped-query attention within segments: one function, several backends.

A query sees a key when both have the same segment id and the key's position is not after the query's.
"""

import math

import jax
import jax.numpy as jnp

from mmed_jax.errors import UserError, nearest
from mmed_jax.model.precision import einsum_f32, precision
from mmed_jax.sharding import ACTIVATION_RULES, spec

BACKENDS = ("auto", "reference", "splash", "cudnn")
# Width of a TPU vector register: splash works on blocks of a multiple of it.
LANES = 128
# Longer query rows are worked through in blocks, so that memory grows with block x keys, not queries x keys.
QUERY_BLOCK = 1024
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def resolve_backend(name: str, platform: str, packed: bool, *, seq_len: int = 0, context: int = 1) -> str:
    """The backend that `name` means, never "auto"; what a run prints and passes on.

    Args:
      platform: "cpu", "gpu" or "tpu", where it will run.
      packed: rows hold several documents (segment ids are given).
      seq_len: tokens in a row; 0 = not known; context: size of the mesh axis `context`.

    Raises:
      UserError: unknown name, a backend that the platform lacks, or one that can't do this.
    """
    if name not in BACKENDS:
        raise UserError(f"attention='{name}': no such backend{nearest(name, BACKENDS)}")
    gpu = platform in ("gpu", "cuda", "rocm")
    if name == "auto":
        return "splash" if platform == "tpu" and context == 1 and seq_len and seq_len % LANES == 0 else "reference"
    if name == "splash":
        if gpu:
            raise UserError("attention='splash' is a TPU kernel and this is a GPU; use attention='auto'")
        if context > 1:
            raise UserError("attention='splash' can't split a row over mesh.context; use attention='reference'")
        if seq_len % LANES:
            near = sorted({max(LANES, seq_len // LANES * LANES), -(-seq_len // LANES) * LANES})
            raise UserError(
                f"attention='splash' needs rows of a multiple of {LANES} tokens, got {seq_len}; nearest: {near}"
            )
    if name == "cudnn":
        if not gpu:
            raise UserError(f"attention='cudnn' runs on GPUs only and this is {platform}; use attention='auto'")
        if packed:
            raise UserError(
                "attention='cudnn' has no segment ids: packed documents would see each other; "
                "use attention='auto' or data.packing=False"
            )
        if context > 1:
            raise UserError("attention='cudnn' can't split a row over mesh.context; use attention='reference'")
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

    "reference" compares positions. The kernels compare places in the row, which is the same when positions rise along
    the row within each segment, as they do in every training row.

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
    same_rows = q_btnh.shape[1] == k_bskh.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    context = 1 if mesh.empty else mesh.shape.get("context", 1)
    platform = _platform(mesh)
    if backend == "auto" and not same_rows:
        backend = "reference"
    packed, seq_len = q_segments is not None, q_btnh.shape[1]
    backend = resolve_backend(backend, platform, packed, seq_len=seq_len, context=context)
    if backend == "reference":
        return reference(q_btnh, k_bskh, v_bskh, q_positions, kv_positions, q_segments, kv_segments, parts=context)
    if not same_rows:
        raise ValueError(f"attention='{backend}' is for whole rows: as many queries as keys")
    if backend == "cudnn":
        return cudnn(q_btnh, k_bskh, v_bskh)
    return splash(q_btnh, k_bskh, v_bskh, q_segments, kv_segments, interpret=platform == "cpu")


def _platform(mesh: jax.sharding.AbstractMesh) -> str:
    """Where the traced program will run: on the mesh's devices, which need not be here when a program is compiled."""
    device = None if mesh.empty else getattr(mesh, "abstract_device", None)
    return "tpu" if device is not None and device.device_kind.startswith("TPU") else jax.default_backend()


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


def splash(q, k, v, q_seg=None, kv_seg=None, *, interpret: bool = False) -> jax.Array:
    """JAX's TPU flash attention that skips blocks above the diagonal. Shapes as in `attention`, T = S = 128 * i.

    The kernel's own residuals carry the name "context", so that a remat policy can keep them.
    `interpret` runs it without a TPU, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha,
    )

    t, h = q.shape[1], q.shape[3]
    block = next(size for size in (1024, 512, 256, LANES) if t % size == 0)
    sizes = BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
    )  # fmt: skip
    q = (q.astype(jnp.float32) / math.sqrt(h)).astype(q.dtype)

    def local(q, k, v, *segments):
        heads = q.shape[2]
        kernel = make_splash_mha(
            mask=MultiHeadMask([CausalMask((t, t))] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
            residual_checkpoint_name="context", interpret=interpret,
        )  # fmt: skip
        ids = SegmentIds(*segments) if segments else None
        out = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in (q, k, v)), ids)
        return out.swapaxes(1, 2)

    segments = () if q_seg is None else (q_seg, kv_seg)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return local(q, k, v, *segments)
    # A kernel is not split by the compiler: every device runs it on its own rows and heads.
    rows = spec(("batch", None), ACTIVATION_RULES)
    heads = spec(("batch", None, "act_heads", None), ACTIVATION_RULES)
    kv_heads = spec(("batch", None, "act_kv_heads", None), ACTIVATION_RULES)
    mapped = jax.shard_map(
        local, in_specs=(heads, kv_heads, kv_heads, *[rows] * len(segments)), out_specs=heads, check_vma=False
    )
    return mapped(q, k, v, *segments)


def cudnn(q, k, v, implementation: str = "cudnn") -> jax.Array:
    """NVIDIA's fused attention, causal, one document a row, bfloat16 or float16. Shapes as in `attention`."""
    if implementation == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
        raise UserError(f"attention='cudnn' needs compute_dtype='bfloat16', got '{q.dtype}'")
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
