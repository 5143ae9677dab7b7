"""Causal grouped-query attention within segments: one function, several backends.

A query sees a key when both have the same segment id and the key's position is not after the query's.

  reference  einsum, any platform           model/attention_reference.py
  splash     TPU; packed rows               model/attention_splash.py
  triton     NVIDIA GPU; packed rows        model/attention_triton.py
  cudnn      NVIDIA GPU; one document a row, through jax.nn.dot_product_attention
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.model.attention_reference import reference
from mmed_jax.model.attention_splash import LANES, splash_attention
from mmed_jax.parallel.sharding import ACTIVATION_RULES, spec

BACKENDS = ("auto", "reference", "splash", "triton", "cudnn")
# What Triton and cuDNN multiply: float32 would be rounded to TF32, or is refused.
HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


def resolve_backend(
    name: str, platform: str, packed: bool, *, seq_len: int = 0, context: int = 1, head_dim: int = 0, dtype: Any = None
) -> str:
    """The backend that `name` means, never "auto"; what a run prints and passes on.

    "auto" is the fastest that can do this: on a TPU splash, on a GPU triton for packed rows and cudnn for others, and
    reference where those can't, or where it is not known whether they can.

    Args:
      platform: "cpu", "gpu" or "tpu", where it will run. On a CPU splash and triton are interpreted, slowly, for tests.
      packed: rows hold several documents (segment ids are given).
      seq_len: tokens in a row; 0 = not known; context: size of the mesh axis `context`.
      head_dim, dtype: of queries, keys and values; 0 and None = not known.

    Raises:
      UserError: unknown name, a backend that the platform lacks, or one that can't do this.
    """
    if name not in BACKENDS:
        raise UserError(f"attention='{name}': no such backend{nearest(name, BACKENDS)}")
    gpu = platform in ("gpu", "cuda", "rocm")
    if name == "auto":
        if platform == "tpu":
            return "splash" if context == 1 and seq_len >= LANES else "reference"
        kernel = "triton" if packed else "cudnn"
        known = seq_len and head_dim and dtype is not None
        can = gpu and known and not _obstacle(kernel, packed, seq_len, head_dim, dtype, context)
        return kernel if can else "reference"
    if name == "splash" and gpu:
        raise UserError("attention='splash' is a TPU kernel and this is a GPU; use attention='auto'")
    if name == "triton" and platform == "tpu":
        raise UserError("attention='triton' is a GPU kernel and this is a TPU; use attention='auto'")
    if name == "cudnn" and not gpu:
        raise UserError(f"attention='cudnn' runs on GPUs only and this is {platform}; use attention='auto'")
    # Interpreted on a CPU, float32 is float32.
    obstacle = _obstacle(name, packed, seq_len, head_dim, None if platform == "cpu" else dtype, context)
    if obstacle:
        raise UserError(f"attention='{name}' {obstacle}")
    return name


def _obstacle(name: str, packed: bool, seq_len: int, head_dim: int, dtype: Any, context: int) -> str:
    """Why this backend can't do this, in words that follow its name; "" when nothing known speaks against it."""
    if name == "reference":
        return ""
    if context > 1:
        return "can't split a row over mesh.context; use attention='reference'"
    if name == "splash":
        return ""
    if name == "cudnn" and packed:
        return "has no segment ids: packed documents would see each other; use attention='auto' or data.packing=False"
    if dtype is not None and jnp.dtype(dtype) not in HALF:
        return f"needs compute_dtype='bfloat16', got '{jnp.dtype(dtype)}'; use attention='reference' or bfloat16"
    if name == "cudnn":
        if seq_len % 2:
            return f"needs rows of an even number of tokens, got {seq_len}; nearest: {[seq_len - 1, seq_len + 1]}"
        if head_dim % 8 or head_dim > 128:
            return f"needs a head_dim that is a multiple of 8 up to 128, got {head_dim}; use attention='reference'"
        return ""
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return "needs Pallas for Triton, which this version of jax does not have; use attention='reference'"
    from mmed_jax.model.attention_triton import BLOCK, HEAD_DIMS

    if seq_len % BLOCK:
        near = sorted({max(BLOCK, seq_len // BLOCK * BLOCK), -(-seq_len // BLOCK) * BLOCK})
        return f"needs rows of a multiple of {BLOCK} tokens, got {seq_len}; nearest: {near}"
    if head_dim and head_dim not in HEAD_DIMS:
        return f"needs a head_dim of {HEAD_DIMS}, got {head_dim}; use attention='reference'"
    return ""


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
    packed = q_segments is not None
    backend = resolve_backend(
        backend,
        platform,
        packed,
        seq_len=q_btnh.shape[1],
        context=context,
        head_dim=q_btnh.shape[3],
        dtype=q_btnh.dtype,
    )
    if backend == "reference":
        out = reference(q_btnh, k_bskh, v_bskh, q_positions, kv_positions, q_segments, kv_segments, parts=context)
        return checkpoint_name(out, "context")
    if not same_rows:
        raise ValueError(f"attention='{backend}' is for whole rows: as many queries as keys")
    if backend == "cudnn":
        return checkpoint_name(cudnn(q_btnh, k_bskh, v_bskh), "context")
    # These name their own residuals: naming the output again would keep it twice.
    if backend == "triton":
        from mmed_jax.model.attention_triton import flash_attention as kernel
    else:
        kernel = splash_attention
    return _on_each_device(functools.partial(kernel, interpret=platform == "cpu"), q_btnh, k_bskh, v_bskh, q_segments)


def _platform(mesh: jax.sharding.AbstractMesh) -> str:
    """Where the traced program will run: on the mesh's devices, which need not be here when a program is compiled."""
    device = None if mesh.empty else getattr(mesh, "abstract_device", None)
    if device is not None and device.device_kind.startswith("TPU"):
        return "tpu"
    return "gpu" if device is not None and device.device_kind.startswith("NVIDIA") else jax.default_backend()


def _on_each_device(kernel: Callable[..., jax.Array], q, k, v, segments) -> jax.Array:
    """kernel(q, k, v, segments) on the rows and heads of each device: the compiler does not split a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q, k, v, segments)
    rows = spec(("batch", None), ACTIVATION_RULES)
    heads = spec(("batch", None, "act_heads", None), ACTIVATION_RULES)
    kv_heads = spec(("batch", None, "act_kv_heads", None), ACTIVATION_RULES)
    mapped = jax.shard_map(kernel, in_specs=(heads, kv_heads, kv_heads, rows), out_specs=heads, check_vma=False)
    return mapped(q, k, v, segments)


def cudnn(q, k, v, implementation: str = "cudnn") -> jax.Array:
    """NVIDIA's fused attention, causal, one document a row, bfloat16 or float16. Shapes as in `attention`."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
