"""A model as the parts of the engine use it: weights laid out for decoding, and where its arrays lie."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmed_jax.common.errors import UserError
from mmed_jax.inference import steps
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig


class LoadedModel:
    """One model on one device, or on a mesh.

    Args:
      params: tree of mmed_jax.model.llama; on the mesh's devices when there is one.
      cfg: the model's constants.
      mesh: from mmed_jax.parallel.sharding.make_mesh; rows are split over data and fsdp, heads over tensor.
      compute_dtype: of weights and activations. cache_dtype: of keys and values (default: compute_dtype).
      max_batch: rows that decode together (rounded up to what the mesh divides).
      stop_ids: tokens that end an answer.
      unroll: the layers are compiled one by one instead of as one loop: no layer's weights and cache are copied out of
        the stacked arrays in every step, for a longer compilation. Default: on a CPU, where that copy takes a third of
        a step's time.
      owned: the engine may delete the arrays of `params` when it has copied them.
    """

    def __init__(
        self,
        params: llama.Params,
        cfg: LlamaConfig,
        *,
        mesh: Mesh | None = None,
        compute_dtype: Any = jnp.float32,
        cache_dtype: Any = None,
        max_batch: int = 16,
        stop_ids: Sequence[int] = (),
        unroll: bool | None = None,
        owned: bool = False,
    ):
        if max_batch < 1:
            raise UserError(f"batch_size={max_batch}: must be at least 1")
        self.cfg, self.mesh, self.max_batch = cfg, mesh if mesh is not None and mesh.size > 1 else None, max_batch
        self.dtype = jnp.dtype(compute_dtype)
        self.cache_dtype = jnp.dtype(cache_dtype or compute_dtype)
        self.stop_ids = tuple(stop_ids)
        self.unroll = jax.default_backend() == "cpu" if unroll is None else unroll
        self.params = steps.cast(params, self.dtype)
        if self.unroll:
            self.params["layers"] = steps.unstack(self.params["layers"], cfg.num_layers, owned)
        # Where fresh arrays belong; left open, every program would be compiled for them once more.
        self.place = jax.tree.leaves(params)[0].sharding if self.mesh is None else None

    def rows(self, prompts: int) -> int:
        """Rows used for so many prompts: no more than needed, a multiple of the mesh's row shards."""
        shards = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-min(self.max_batch, prompts) // shards) * shards
