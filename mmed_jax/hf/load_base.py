"""A frozen base onto the devices, quantised on the way: never the whole model in floats, on the host or on a device.

Of a Hugging Face folder one layer's tensor at a time is read, quantised and written into its row of the stacked codes.
Of a run, whose stores hold stacked layers, one leaf at a time lies on the devices as it was saved.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from mmed_jax.checkpoints import tree as by_name
from mmed_jax.checkpoints.restore import read_item, read_params_by
from mmed_jax.common.errors import UserError
from mmed_jax.hf.load import read_leaf, read_tensors
from mmed_jax.hf.mapping import Path as LeafPath
from mmed_jax.hf.mapping import flatten, hf_tensors, unflatten
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import Params, abstract_params
from mmed_jax.model.quantization import LINEAR_MODULES, quantize_leaf, quantized_shapes
from mmed_jax.model.quantized_base import abstract_base, check_base

Box = tuple[slice, slice]  # of a weight [O, I]


def quantize_folder(
    folder: Path,
    cfg: LlamaConfig,
    kind: str,
    dtype: Any,
    shardings: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> Params:
    """A quantised base from a Hugging Face folder; see `ModelSource.load_base`."""
    return _of_folder(folder, cfg, kind, np.dtype(dtype), _places(cfg, kind, shardings), progress)


def quantize_run(
    run_dir: Path, step: int | None, cfg: LlamaConfig, kind: str, dtype: Any, shardings: Any = None
) -> tuple[Params, int]:
    """A quantised base from a checkpoint of a run, and its step; see `ModelSource.load_base`."""
    read = functools.partial(_of_checkpoint, cfg=cfg, kind=kind, dtype=dtype, places=_places(cfg, kind, shardings))
    return read_params_by(run_dir, step, abstract_params(cfg), read)


def _places(cfg: LlamaConfig, kind: str, shardings: Any) -> dict[LeafPath, Sharding]:
    """The sharding of every leaf of a base, checked."""
    mesh = next((s.mesh for s in jax.tree.leaves(shardings) if isinstance(s, NamedSharding)), None)
    wanted = flatten(abstract_base(cfg, kind, jnp.float32))
    check_base(cfg, kind, None if mesh is None else dict(mesh.shape))
    if not isinstance(shardings, dict):
        return dict.fromkeys(wanted, shardings or SingleDeviceSharding(jax.local_devices()[0]))
    places = flatten(shardings)
    if differing := sorted(".".join(path) for path in wanted.keys() ^ places.keys()):
        raise ValueError(f"shardings are not those of a base of kind {kind}: {', '.join(differing)}")
    return places


def _of_folder(
    folder: Path,
    cfg: LlamaConfig,
    kind: str,
    dtype: np.dtype,
    places: dict[LeafPath, Sharding],
    progress: Callable[[int, int], None] | None,
) -> Params:
    stored = read_tensors(folder, cfg)
    total, done = sum(t.end - t.begin for t in stored.values()), 0

    def tick(tensor: Any) -> None:
        nonlocal done
        done += tensor.end - tensor.begin
        if progress:
            progress(done, total)

    names: dict[LeafPath, list[str]] = {}
    for t in hf_tensors(cfg):
        names.setdefault(t.path, []).append(t.name)
    leaves = {}
    for path, leaf in flatten(abstract_params(cfg, dtype)).items():
        tensors = [stored[name] for name in names[path]]
        if not _is_quantised(path):
            leaves[path] = read_leaf(tensors, path[0] == "layers", leaf.shape, dtype, places[path], tick)
            continue

        def read(layer: int, box: Box, tensors: list = tensors) -> np.ndarray:
            part = np.empty([end.stop - end.start for end in box], np.float32)
            tensors[layer].read(box, part)
            tick(tensors[layer])
            return part

        leaves.update(_quantize_stack(path, leaf.shape, kind, read, None, places, f"{folder}: {names[path][0]}"))
    return unflatten(leaves)


def _of_checkpoint(
    folder: Path, saved: by_name.Described, cfg: LlamaConfig, kind: str, dtype: Any, places: dict[LeafPath, Sharding]
) -> Params:
    leaves: dict[LeafPath, jax.Array] = {}
    for path, leaf in flatten(abstract_params(cfg)).items():
        if _is_quantised(path):
            # Codes have the axes of the weight, so that each device decodes what it holds of it.
            place, leaf_dtype = (
                places[(*path[:-1], next(iter(quantized_shapes((64, 64), kind))))],
                saved["/".join(path)][1],
            )
        else:
            place, leaf_dtype = places[path], dtype
        wanted = unflatten({path: jax.ShapeDtypeStruct(leaf.shape, leaf_dtype, sharding=place)})
        array = flatten(read_item(folder, wanted, partial=True))[path]
        if not _is_quantised(path):
            leaves[path] = array
            continue
        largest = functools.partial(_largest, array) if kind == "int8" else None
        read = functools.partial(_read_device, array)
        leaves.update(_quantize_stack(path, leaf.shape, kind, read, largest, places, f"{folder}: {'/'.join(path)}"))
        array.delete()
    return unflatten(leaves)


def _is_quantised(path: LeafPath) -> bool:
    return path[0] == "layers" and path[1] in LINEAR_MODULES and path[2] == "weight"


def _quantize_stack(
    path: LeafPath,
    shape: tuple[int, ...],
    kind: str,
    read: Callable[[int, Box], np.ndarray],
    largest: Callable[[int], np.ndarray] | None,
    places: dict[LeafPath, Sharding],
    what: str,
) -> dict[LeafPath, jax.Array]:
    """One weight of all layers [L, O, I], quantised layer by layer.

    Args:
      read: (layer, box) -> [o, i], the box of the layer's weight that this process's devices hold.
      largest: layer -> [O], for int8 when `read` knows only some inputs of a row; None: `read` is given whole rows.
    """
    stacks = {
        (*path[:-1], leaf): _zeros(stack, dtype, places[(*path[:-1], leaf)])
        for leaf, (stack, dtype) in quantized_shapes(shape, kind).items()
    }
    box = _box(shape[1:], {p[-1]: x for p, x in stacks.items()}, whole_rows=kind == "int8" and largest is None)
    for layer in range(shape[0]):
        part = read(layer, box)
        try:
            rows = quantize_leaf(part, kind, largest(layer)[box[0]] if largest else None)
        except ValueError as e:
            raise UserError(f"{what.replace('.layers.0.', f'.layers.{layer}.')}: {e}") from e
        for leaf, stack in stacks.items():
            row = _place(rows[leaf[-1]], stack, shape[1:], box)
            stacks[leaf] = jax.block_until_ready(_put_row(stack, row, layer))
    return stacks


def _zeros(shape: tuple[int, ...], dtype: Any, place: Sharding) -> jax.Array:
    return _zeros_program(shape, dtype, place)()


@functools.lru_cache(maxsize=64)
def _zeros_program(shape: tuple[int, ...], dtype: Any, place: Sharding) -> Callable[[], jax.Array]:
    """Compiled once for all modules of one shape."""
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=place)


def _index(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]


def _box(shape_oi: tuple[int, ...], stacks: dict[str, jax.Array], whole_rows: bool) -> Box:
    """What this process's devices hold of a weight [O, I], from the places of its codes."""
    ranges: list[tuple[int, int]] = [(n, 0) for n in shape_oi]
    for stack in stacks.values():
        for shard in stack.addressable_shards:
            for d, (begin, end) in enumerate(_index(shard.index, stack.shape)[1:]):
                per = shape_oi[d] // stack.shape[1 + d]
                ranges[d] = (min(ranges[d][0], begin * per), max(ranges[d][1], end * per))
    if whole_rows:
        ranges[1] = (0, shape_oi[1])
    return slice(*ranges[0]), slice(*ranges[1])


def _place(part: np.ndarray, stack: jax.Array, shape_oi: tuple[int, ...], box: Box) -> jax.Array:
    """A layer's codes, of which this process has those of `box`, in the sharding of one row of the stack."""
    lows = [low.start // (n // m) for low, n, m in zip(box, shape_oi, stack.shape[1:], strict=False)]

    def cut(index: tuple[slice, ...]) -> np.ndarray:
        ranges = _index(index, stack.shape[1:])
        return part[tuple(slice(begin - low, end - low) for (begin, end), low in zip(ranges, lows, strict=True))]

    sharding = stack.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return jax.make_array_from_callback(stack.shape[1:], sharding, cut)


@functools.partial(jax.jit, donate_argnums=0)
def _put_row(stack: jax.Array, row: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, row, layer, 0)


def _read_device(array: jax.Array, layer: int, box: Box) -> np.ndarray:
    part = np.zeros([end.stop - end.start for end in box], array.dtype)
    for shard in array.addressable_shards:
        ranges = _index(shard.index, array.shape)[1:]
        part[tuple(slice(b - low.start, e - low.start) for (b, e), low in zip(ranges, box, strict=True))] = np.asarray(
            _row(shard.data, layer)
        )
    return part


@jax.jit
def _row(array: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)


def _largest(array: jax.Array, layer: int) -> np.ndarray:
    """Largest absolute value of each row [O], on every process."""
    sharding = array.sharding
    everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    return np.asarray(_largest_in(everywhere)(array, layer).addressable_data(0))


@functools.lru_cache(maxsize=4)
def _largest_in(place: Sharding | None) -> Any:
    def rows(array: jax.Array, layer: int) -> jax.Array:
        return jnp.abs(_row(array, layer)).max(axis=-1).astype(jnp.float32)

    return jax.jit(rows, out_shardings=place)
