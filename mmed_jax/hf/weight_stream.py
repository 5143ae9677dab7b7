"""A model's weights as a stream of Hugging Face tensors, one in memory at a time: what an export writes.

A tree that is held already, a Hugging Face folder, or a checkpoint of a run; with an adapter put into them on the way.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mmed_jax.checkpoints.tree import Described
from mmed_jax.common.errors import UserError
from mmed_jax.hf.gather import gather, is_finite, leaf_dtype
from mmed_jax.hf.load import leaf_kinds, read_rows, read_tensors
from mmed_jax.hf.mapping import HFTensor, flatten, group_names, hf_tensors, leaf_shapes, unflatten
from mmed_jax.hf.mapping import Path as LeafPath
from mmed_jax.hf.merge import Merger
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import abstract_params


class Weight(NamedTuple):
    """One tensor with its values; `finite`: whether all of them are, in their dtype."""

    tensor: HFTensor
    array: np.ndarray
    finite: bool


Kinds = dict[LeafPath, np.dtype]


class WeightStream(Protocol):
    """Weights that can be read once, tensor by tensor.

    Attributes:
      cfg: the model's constants. in_order: tensors come in the order of the forward pass, else leaf by leaf.
    """

    cfg: LlamaConfig
    in_order: bool

    def read(self, consume: Callable[[Kinds, Iterator[Weight]], Any]) -> Any:
        """What `consume` makes of the dtype of each leaf and of its tensors; every process calls this.

        Where a checkpoint turns out to be damaged while it is read, `consume` is called again with the one before. An
        error of its own must not be raised in it, since it could not be told from that.

        Raises:
          UserError, WorkError: the weights cannot be read or do not fit `cfg`.
        """
        ...


class TreeStream:
    """Weights held in memory, with any sharding. dtype: of the tensors; None keeps each leaf's own."""

    def __init__(self, params: dict[str, Any], cfg: LlamaConfig, dtype: Any = None):
        self.cfg, self.in_order = cfg, True
        self._flat = flatten(params)
        self._kinds = {p: leaf_dtype(x) if dtype is None else np.dtype(dtype) for p, x in self._flat.items()}
        shapes, flat = leaf_shapes(cfg), self._flat
        wrong = [".".join(p) for p in shapes.keys() | flat.keys() if p not in flat or flat[p].shape != shapes.get(p)]
        if wrong:
            raise UserError(f"parameters do not fit the config: {group_names(wrong)}")

    def read(self, consume: Callable[[Kinds, Iterator[Weight]], Any]) -> Any:
        """See WeightStream."""
        return consume(self._kinds, self._weights())

    def _weights(self) -> Iterator[Weight]:
        for t in hf_tensors(self.cfg):
            yield Weight(t, *gather(self._flat[t.path], t.layer, self._kinds[t.path]))


class FolderStream:
    """A Hugging Face folder. dtype: of the tensors; None keeps what is stored. merger: puts an adapter into them."""

    def __init__(self, folder: Path, cfg: LlamaConfig, dtype: Any = None, merger: Merger | None = None):
        self.cfg, self.in_order = cfg, True
        self._folder, self._dtype, self._merger = folder, dtype, merger

    def read(self, consume: Callable[[Kinds, Iterator[Weight]], Any]) -> Any:
        """See WeightStream."""
        stored = read_tensors(self._folder, self.cfg)
        kinds = leaf_kinds(self._folder, self.cfg, stored, self._dtype)

        def weights() -> Iterator[Weight]:
            for t in hf_tensors(self.cfg):
                array, source = np.empty(t.shape, kinds[t.path]), stored[t.name]
                if self._merger and self._merger.changes(t.path):
                    rows = functools.partial(read_rows, source)
                    self._merger.merge_into(t.path, t.layer or 0, rows, t.shape, _whole(t.shape), array)
                else:
                    source.read(tuple(slice(0, n) for n in t.shape), array)
                yield Weight(t, array, is_finite(array))

        return consume(kinds, weights())


class RunStream:
    """A checkpoint of a run, whose stores hold stacked layers: one of them at a time is in memory, as it was saved.

    Args:
      step: None = the newest good one. dtype: of the tensors; None keeps what is stored.
      was_read: called with the step of the checkpoint that was read.
      new_merger: makes what puts an adapter into the weights, for each checkpoint that is tried.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int | None,
        cfg: LlamaConfig,
        dtype: Any = None,
        *,
        was_read: Callable[[int], None],
        new_merger: Callable[[], Merger] | None = None,
    ):
        self.cfg, self.in_order = cfg, False
        self._run_dir, self._step, self._dtype = run_dir, step, dtype
        self._was_read, self._new_merger = was_read, new_merger

    def read(self, consume: Callable[[Kinds, Iterator[Weight]], Any]) -> Any:
        """See WeightStream."""
        from mmed_jax.checkpoints.restore import read_params_by

        def read(folder: Path, saved: Described) -> Any:
            merger = self._new_merger() if self._new_merger else None
            kinds = {p: np.dtype(self._dtype or saved["/".join(p)][1]) for p in leaf_shapes(self.cfg)}
            return consume(kinds, self._weights(folder, saved, kinds, merger))

        result, step = read_params_by(self._run_dir, self._step, abstract_params(self.cfg), read)
        self._was_read(step)
        return result

    def _weights(self, folder: Path, saved: Described, kinds: Kinds, merger: Merger | None) -> Iterator[Weight]:
        from mmed_jax.checkpoints.restore import read_item

        place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        by_leaf: dict[LeafPath, list[HFTensor]] = {}
        for t in hf_tensors(self.cfg):
            by_leaf.setdefault(t.path, []).append(t)
        for path, tensors in by_leaf.items():
            changes = merger is not None and merger.changes(path)
            shape, stored = saved["/".join(path)]
            wanted = jax.ShapeDtypeStruct(tuple(shape), stored if changes else kinds[path], sharding=place)
            leaf = flatten(read_item(folder, unflatten({path: wanted}), partial=True))[path]
            for t in tensors:
                if merger is None or not changes:
                    yield Weight(t, *gather(leaf, t.layer, kinds[path]))
                    continue
                matrix_oi, _ = gather(leaf, t.layer, np.dtype(np.float32))
                array = np.empty(t.shape, kinds[path])
                rows = functools.partial(_rows_of, matrix_oi)
                merger.merge_into(path, t.layer or 0, rows, t.shape, _whole(t.shape), array)
                yield Weight(t, array, is_finite(array))
            leaf.delete()


def _rows_of(matrix_oi: np.ndarray, first: int, last: int) -> np.ndarray:
    return matrix_oi[first:last]


def _whole(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(0, n) for n in shape]
