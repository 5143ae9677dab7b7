"""Frozen weights in 4 or 8 bits: NF4 (QLoRA, arXiv 2305.14314) and int8 by output row.

Quantising is numpy on the host, so that a base is the same bits on every machine and can be made again from its source.
Decoding is arithmetic inside the layer, forward and once more backward; a decoded weight is neither kept nor sent to
another device.

A quantised module holds, instead of "weight" [.., O, I]:
  nf4   "nf4" uint8 [.., O, I/2], two codes a byte; "absmax" bfloat16 [.., O, I/64]. 4.25 bits a weight. Codes, and
        absmax before it is rounded, are those of bitsandbytes 0.50 (blocksize 64). Of a block's 32 bytes, byte j has
        code j in its high half and code j + 32 in its low half; bitsandbytes puts 2j and 2j + 1 there. Halves are laid
        side by side when they are unpacked, neighbours would have to be shuffled into each other: by the TPU
        compiler's schedule for a v5e, decoding [14336, 4096] takes 1.8 instead of 6.7 million cycles, and 112 instead
        of 448 MiB of temporary memory.
  int8  "int8" int8 [.., O, I]; "scale" float32 [.., O]. 8 bits and 32 a row. A weight is off by at most scale / 2.
Shape suffixes: o output, i input, n = I/64 blocks.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.parallel import two_step_gather
from mmed_jax.parallel.sharding import constrain_gathered

KINDS = ("compute", "int8", "nf4")
BLOCK = 64  # weights of an input row that share an absmax
LINEAR_MODULES = ("q", "k", "v", "o", "gate", "up", "down")

# Appendix E of the paper: quantiles of a normal distribution, scaled to [-1, 1], with an exact zero.
NF4_VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
_BOUNDS = (NF4_VALUES[:-1] + NF4_VALUES[1:]) / np.float32(2)
_LEAST = np.float32(1e-38)  # absmax of a block of zeros, for the division only
_CHUNK = 1 << 16  # weights quantised at a time: what fits a core's cache
_THREADS = 16

# kind -> leaf -> (axes of the weight [O, I] that it has, weights of the last axis per value, dtype)
_LEAVES: dict[str, dict[str, tuple[int, int, Any]]] = {
    "nf4": {"nf4": (2, 2, np.uint8), "absmax": (2, BLOCK, ml_dtypes.bfloat16)},
    "int8": {"int8": (2, 1, np.int8), "scale": (1, 1, np.float32)},
}


def check_kind(kind: str) -> None:
    """Raises UserError with the nearest kind for one that is not in KINDS."""
    if kind not in KINDS:
        raise UserError(f"config.lora.base='{kind}': no such kind of base{nearest(kind, KINDS)}")


def kind_of(p: dict[str, Any]) -> str:
    """Kind of a module's weight: "compute" when it is a plain array."""
    return next((kind for kind in _LEAVES if kind in p), "compute")


def quantize_leaf(weight: np.ndarray, kind: str, largest: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Quantises a weight on the host.

    Args:
      weight: [.., O, I], float32, bfloat16 or float16; I a multiple of 64 for "nf4".
      kind: "nf4" or "int8".
      largest: [.., O], the largest absolute values of rows of which `weight` has a part only; for "int8".

    Returns:
      The leaves of the module text: {"nf4", "absmax"} or {"int8", "scale"}.

    Raises:
      ValueError: I does not divide into blocks, or a weight is not finite.
    """
    size = weight.shape[-1]
    check_blocks(size, kind)
    rows = np.ascontiguousarray(weight).reshape(-1, size)
    shapes = quantized_shapes(rows.shape, kind)
    leaves = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    if kind == "int8":
        whole = _largest(rows) if largest is None else _check_finite(largest.reshape(-1))
        leaves["scale"][...] = whole / np.float32(127)
    quantize = {"nf4": _quantize_nf4, "int8": _quantize_int8}[kind]
    step = max(1, _CHUNK // size)

    def work(begin: int) -> None:
        part = slice(begin, begin + step)
        quantize(rows[part].astype(np.float32), *(leaf[part] for leaf in leaves.values()))

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:  # numpy computes outside Python's lock
        list(pool.map(work, range(0, len(rows), step)))
    return {name: leaf.reshape(*weight.shape[:-1], *leaf.shape[1:]) for name, leaf in leaves.items()}


def check_blocks(size: int, kind: str, what: str = "a row of weights") -> None:
    """Raises ValueError when rows of `size` weights can't be stored as `kind`."""
    if kind == "nf4" and size % BLOCK:
        raise ValueError(f"{what} has {size} values: nf4 needs a multiple of {BLOCK}; int8 takes any")


def _largest(values: np.ndarray) -> np.ndarray:
    return _check_finite(np.maximum(values.max(axis=-1), -values.min(axis=-1)).astype(np.float32))


def _check_finite(largest: np.ndarray) -> np.ndarray:
    if not np.isfinite(largest).all():
        raise ValueError("holds values that are not finite; it cannot be quantised")
    return largest


def _quantize_nf4(rows_oi: np.ndarray, codes: np.ndarray, absmax: np.ndarray) -> None:
    blocks = rows_oi.reshape(-1, BLOCK)
    largest = _largest(blocks)
    absmax[...] = largest.reshape(absmax.shape)
    # Times the reciprocal, and a value on a bound goes down: both as bitsandbytes, or codes differ at ties.
    blocks = np.clip(blocks * (np.float32(1) / np.maximum(largest, _LEAST))[:, None], -1, 1)
    nearest_code = np.zeros(blocks.shape, np.uint8)
    for bound in _BOUNDS:
        nearest_code += blocks > bound
    codes[...] = (nearest_code[:, : BLOCK // 2] << 4 | nearest_code[:, BLOCK // 2 :]).reshape(codes.shape)


def _quantize_int8(rows_oi: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> None:
    safe = np.where(scale > 0, scale, np.float32(1))
    codes[...] = np.clip(np.rint(rows_oi / safe[:, None]), -127, 127)


def dequantize(p: dict[str, jax.Array], dtype: Any = jnp.float32) -> jax.Array:
    """The weight [.., O, I] of a quantised module: computed in float32, rounded once to `dtype`."""
    if "int8" in p:
        return (p["int8"].astype(jnp.float32) * p["scale"][..., None]).astype(dtype)
    codes, absmax = p["nf4"], p["absmax"].astype(jnp.float32)
    halves = codes.reshape(*absmax.shape, BLOCK // 2)

    def codes_first(halves: jax.Array, scale: jax.Array) -> jax.Array:
        return _look_up(jnp.concatenate([halves >> 4, halves & 15], axis=-1)) * scale

    def values_first(halves: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.concatenate([_look_up(halves >> 4) * scale, _look_up(halves & 15) * scale], axis=-1)

    # The same values. A CPU is twice as fast when it lays values side by side, a TPU when it lays codes.
    blocks = jax.lax.platform_dependent(halves, absmax[..., None], cpu=values_first, default=codes_first)
    return blocks.reshape(*codes.shape[:-1], -1).astype(dtype)


def _look_up(codes: jax.Array) -> jax.Array:
    """NF4_VALUES[codes] by 15 selects, a tree over the four bits.

    TPUs have no vector gather from a table: jnp.take would go value by value. Selects run in the vector unit and are
    fused with the unpacking and the scaling; the tree asks four questions instead of fifteen.
    """
    values: list[Any] = [jnp.float32(v) for v in NF4_VALUES]
    for bit in range(4):
        is_set = (codes & (1 << bit)) != 0
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def weight_of(p: dict[str, jax.Array], dtype: Any) -> jax.Array:
    """A module's weight [.., O, I] in `dtype`, decoded where it is quantised; inside a layer, see `gather_codes`."""
    return p["weight"].astype(dtype) if "weight" in p else dequantize(p, dtype)


def gather_codes(layer: dict[str, Any], axes: dict[str, Any]) -> dict[str, Any]:
    """Brings the codes and scales of a layer's quantised modules to where they are decoded.

    Parameters lie in parts on the devices. Left alone, the compiler decodes the parts and then gathers float32 weights,
    7.5 times the bytes of codes.

    Args:
      layer: parameters of one layer, by module.
      axes: logical axes of the stacked layers' plain parameters (llama.logical_axes(cfg)["layers"]).
    """
    gathered = dict(layer)
    for name in LINEAR_MODULES:
        p = layer[name]
        if (kind := kind_of(p)) != "compute":
            weight_axes = axes[name]["weight"][1:]
            codes = {leaf: _gathered(p[leaf], weight_axes[:count]) for leaf, (count, _, _) in _LEAVES[kind].items()}
            gathered[name] = {**p, **codes}
    return gathered


def _gathered(codes: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    in_two_steps = two_step_gather.in_two_steps() and "embed" in axes
    return two_step_gather.gather_constant(codes, axes) if in_two_steps else constrain_gathered(codes, *axes)


def quantized_shapes(shape: tuple[int, ...], kind: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """{leaf: (shape, dtype)} that a weight of `shape` [.., O, I] becomes."""
    return {
        leaf: ((*shape[:-1], shape[-1] // per) if count == 2 else shape[:-1], dtype)
        for leaf, (count, per, dtype) in _LEAVES[kind].items()
    }


def quantized_axes(axes: tuple[str | None, ...], kind: str) -> dict[str, tuple[str | None, ...]]:
    """{leaf: logical axes} of a weight whose own are `axes` [.., O, I]."""
    return {leaf: axes if count == 2 else axes[:-1] for leaf, (count, _, _) in _LEAVES[kind].items()}
