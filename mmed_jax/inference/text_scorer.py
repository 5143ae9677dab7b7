"""The negative log-likelihood of every token of given rows: packed as in training, one program for all of them."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmed_jax.data.batch import Batch
from mmed_jax.inference.scheduler import check_nan
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel.device_memory import OutOfDeviceMemory, describe_rows, device_memory, fewer_rows
from mmed_jax.training.loss import weighted_nll
from mmed_jax.training.state import BatchPlacer

_Label = TypeVar("_Label")


@partial(jax.jit, static_argnames=("cfg", "dtype"))
def _nll(params: llama.Params, batch: dict[str, jax.Array], *, cfg: LlamaConfig, dtype: Any) -> jax.Array:
    hidden_btd = llama.forward(
        params,
        cfg,
        batch["tokens"],
        positions_bt=batch["positions"],
        segment_ids_bt=batch["segment_ids"],
        compute_dtype=dtype,
    )
    _, nll_bt = weighted_nll(
        hidden_btd,
        llama.head_weight(params, cfg),
        batch["targets"],
        batch["loss_mask"],
        compute_dtype=dtype,
        train_head=False,
    )
    return nll_bt


class TextScorer:
    """Scores rows with one model, on one device or a mesh.

    Args:
      params: tree of mmed_jax.model.llama, on the mesh's devices when there is one.
      cfg: the model's constants. mesh: from mmed_jax.parallel.sharding.make_mesh; None = one device.
      dtype: of compute; logits and their logarithms are float32. max_batch: rows at a time, at most.
    """

    def __init__(
        self,
        params: llama.Params,
        cfg: LlamaConfig,
        *,
        mesh: Mesh | None = None,
        dtype: Any = jnp.float32,
        max_batch: int = 16,
    ):
        self.params, self.cfg, self.dtype = params, cfg, jnp.dtype(dtype)
        self.mesh, self.max_batch = mesh if mesh is not None and mesh.size > 1 else None, max_batch

    def rows(self, wanted: int) -> int:
        """Rows of a batch where `wanted` are to be scored: no more than needed, a multiple of the mesh's row shards."""
        shards = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-min(self.max_batch, max(1, wanted)) // shards) * shards

    def score(self, batches: Iterable[tuple[_Label, Batch]]) -> Iterator[tuple[_Label, Batch, np.ndarray]]:
        """(label, batch, float32 [B, T]: nats of each target, 0 where loss_mask is 0) of every batch, in order.

        Batches have one shape each for which a program is compiled; a batch is made while the one before is computed.

        Raises:
          WorkError: the model gives NaN. OutOfDeviceMemory: of a batch; those before it were given.
        """
        held: tuple[_Label, Batch, jax.Array] | None = None
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            for label, batch in batches:
                try:
                    with self._device_memory(batch):
                        nll_bt = _nll(self.params, self._place(batch), cfg=self.cfg, dtype=self.dtype)
                except OutOfDeviceMemory:
                    if held is not None:
                        yield self._fetch(*held)
                    raise
                if held is not None:
                    yield self._fetch(*held)
                held = label, batch, nll_bt
            if held is not None:
                yield self._fetch(*held)

    def _place(self, batch: Batch) -> dict[str, Any]:
        arrays = {k: v for k, v in batch.items() if v.ndim == 2}
        return arrays if self.mesh is None else BatchPlacer(self.mesh, *batch["tokens"].shape)(arrays)

    def _device_memory(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        rows, length = batch["tokens"].shape
        return device_memory(lambda: describe_rows(rows, length), fewer_rows(rows, self.rows(1)))

    def _fetch(self, label: _Label, batch: Batch, nll_bt: jax.Array) -> tuple[_Label, Batch, np.ndarray]:
        with self._device_memory(batch):
            values = np.where(batch["loss_mask"] > 0, jax.device_get(nll_bt), np.float32(0))
        check_nan(bool(np.isnan(values).any()))
        return label, batch, values
