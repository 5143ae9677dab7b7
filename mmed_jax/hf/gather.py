"""Brings one tensor of a (sharded) parameter leaf to the host."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def leaf_dtype(leaf: Any) -> np.dtype:
    """The dtype of a jax or numpy array."""
    return np.dtype(leaf.dtype)


def is_finite(array: np.ndarray, block: int = 1 << 22) -> bool:
    """Whether all values are, found in blocks: numpy would make an array of as many truth values first."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[i : i + block]).all()) for i in range(0, flat.size, block))


def gather(leaf: Any, layer: int | None, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """`leaf[layer]`, or the whole leaf when `layer` is None, on the host in `dtype`, and whether all of it is finite.

    Rows are cut and cast on the devices, so no more than one tensor is moved. When other processes hold part of the
    leaf, every process calls this in the same order and gets the tensor.
    """
    if isinstance(leaf, np.ndarray):
        array = (leaf if layer is None else leaf[layer]).astype(dtype, copy=False)
        return array, is_finite(array)
    if not leaf.is_fully_addressable:
        whole, finite = _replicated(leaf.sharding.mesh, layer is not None, dtype)(leaf, layer or 0)
        return np.asarray(whole.addressable_data(0)), bool(np.asarray(finite.addressable_data(0)))
    shape = leaf.shape if layer is None else leaf.shape[1:]
    array, finite = np.empty(shape, dtype), True
    for shard in leaf.addressable_shards:
        if shard.replica_id != 0:
            continue
        index = shard.index
        if layer is None:
            part, ok = _cut(shard.data, 0, False, dtype)
        else:
            first, last, _ = index[0].indices(leaf.shape[0])
            if not first <= layer < last:
                continue
            index = index[1:]
            part, ok = _cut(shard.data, layer - first, True, dtype)
        array[index] = np.asarray(part)
        finite = finite and bool(ok)
    return array, finite


def _row(x: jax.Array, layer: jax.Array, stacked: bool, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    if stacked:
        x = jax.lax.dynamic_index_in_dim(x, layer, 0, keepdims=False)
    x = x.astype(dtype)
    return x, jnp.isfinite(x).all()


_cut = jax.jit(_row, static_argnums=(2, 3))


@functools.lru_cache(maxsize=16)
def _replicated(mesh: jax.sharding.Mesh, stacked: bool, dtype: np.dtype) -> Any:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(functools.partial(_row, stacked=stacked, dtype=dtype), out_shardings=(everywhere, everywhere))
