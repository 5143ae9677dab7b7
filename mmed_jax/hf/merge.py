"""An adapter put into its base's weights: each matrix is the float32 sum, rounded once.

Row blocks of one matrix of one layer are worked on at a time, while the base is read, so that the model is never there
twice. How much of the change survives the rounding is measured on the way: a trained change is often smaller than
half a unit in the last place of bfloat16, and then a merged weight is the base's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmed_jax.hf.mapping import Path as LeafPath
from mmed_jax.model.lora import LINEAR_TARGETS, LoraSpec, merge_leaf, scales
from mmed_jax.model.quantization import LINEAR_MODULES, dequantize, quantize_leaf

ReadRows = Callable[[int, int], np.ndarray]
BLOCK = 1 << 24  # weights that are worked on at a time


class Merger:
    """Changes the weights of a base into those with the adapter.

    Args:
      adapter: tree of `spec` as numpy arrays.
      quantization: how the base was held in training, of model.quantization.KINDS; its linear layers become what they
        were decoded to. dtype: of compute, then.

    Attributes:
      lost: {target: [sum of squares of what rounding took from the change, sum of squares of the change]}.
    """

    def __init__(
        self,
        adapter: Mapping[str, Any],
        spec: LoraSpec,
        *,
        quantization: str = "compute",
        dtype: Any = jnp.float32,
    ):
        self._adapter, self._spec, self._scales = adapter, spec, scales(spec)
        self._quantization, self._dtype = quantization, jnp.dtype(dtype)
        self.lost: dict[str, list[float]] = {target: [0.0, 0.0] for target in self._scales}

    def changes(self, leaf: LeafPath) -> bool:
        """Whether a leaf of the parameters is another one afterwards."""
        target = leaf[-2]
        return leaf[-1] == "weight" and (target in self._scales or self._is_quantised(target))

    def needs_all_rows(self, leaf: LeafPath) -> bool:
        """Whether one row can't be changed without the others: DoRA's norms of an embedding go over the vocabulary."""
        return leaf[-2] == "embed" and self._spec.dora

    def merged(self, leaf: LeafPath, layer: int, first: int, weight_oi: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Whole rows of a matrix with the adapter in them.

        Args:
          leaf, layer: which matrix; layer 0 for embedding and head. first: of its rows, the first in `weight_oi`.
          weight_oi: float32 [rows, in] as the base's files hold them. dtype: of the result.
        """
        target = leaf[-2]
        if self._is_quantised(target):
            codes = {k: jnp.asarray(v) for k, v in quantize_leaf(weight_oi, self._quantization).items()}
            weight_oi = np.asarray(dequantize(codes, self._dtype)).astype(np.float32)
        scale = float(self._scales[target][layer]) if target in self._scales else 0.0
        if not scale:
            return weight_oi.astype(dtype)
        sum_oi = self._sum(target, layer, slice(first, first + len(weight_oi)), weight_oi, scale)
        rounded = sum_oi.astype(dtype)
        lost = self.lost[target]
        lost[0] += float(np.square(rounded.astype(np.float32) - sum_oi, dtype=np.float64).sum())
        lost[1] += float(np.square(sum_oi - weight_oi, dtype=np.float64).sum())
        return rounded

    def merge_into(
        self,
        leaf: LeafPath,
        layer: int,
        read: ReadRows,
        shape: tuple[int, ...],
        box: list[tuple[int, int]],
        out: Any,
    ) -> None:
        """Fills a part of a merged matrix, block of rows by block of rows.

        Args:
          leaf, layer: which matrix. shape: (rows, width) of the whole of it.
          read: read(first row, last row) gives those rows as float32 [rows, in].
          box: [(begin, end)] of rows and columns that are wanted. out: array of that size, of the result's dtype.
        """
        rows, width = shape
        (first, last), columns = box[0], slice(*box[1])
        if self.needs_all_rows(leaf):
            out[...] = self.merged(leaf, layer, 0, read(0, rows), out.dtype)[first:last, columns]
            return
        step = max(1, BLOCK // width)
        for begin in range(first, last, step):
            end = min(last, begin + step)
            merged = self.merged(leaf, layer, begin, read(begin, end), out.dtype)
            out[begin - first : end - first] = merged[:, columns]

    def _sum(self, target: str, layer: int, rows: slice, weight_oi: np.ndarray, scale: float) -> np.ndarray:
        if target in LINEAR_TARGETS:
            leaves = {name: leaf[layer] for name, leaf in self._adapter["layers"][target].items()}
        else:
            leaves = self._adapter[target]
        magnitude = leaves.get("magnitude")
        if target == "embed":  # its rows are inputs
            return merge_leaf(weight_oi.T, leaves["lora_a"][:, rows], leaves["lora_b"], scale, magnitude).T
        magnitude = None if magnitude is None else magnitude[rows]
        return merge_leaf(weight_oi, leaves["lora_a"], leaves["lora_b"][rows], scale, magnitude)

    def _is_quantised(self, target: str) -> bool:
        return self._quantization != "compute" and target in LINEAR_MODULES

    def release(self) -> None:
        """Gives the adapter up when all is merged; `error` stays."""
        self._adapter = {}

    def error(self, target: str | None = None) -> float:
        """||round(W + D) - (W + D)|| / ||D|| of one target, or of all; 0 where nothing is changed."""
        sums = [self.lost[target]] if target else list(self.lost.values())
        lost, change = (sum(s[i] for s in sums) for i in (0, 1))
        return float(np.sqrt(lost / change)) if change else 0.0
