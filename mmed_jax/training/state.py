"""Where the state and the batches of a run live: on one mesh, over any number of processes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mmed_jax.hf.lora_model import LoraModel
from mmed_jax.model import llama, lora
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel import sharding
from mmed_jax.training.step import init_state

if TYPE_CHECKING:
    from mmed_jax.hf.open_model import ModelSource


# What the seed's key is folded with, so that an adapter's numbers are not those of random weights.
_ADAPTER = 0xA0


def abstract_state(
    cfg: LlamaConfig, tx: optax.GradientTransformation, mesh: Mesh, dtype: str, spec: lora.LoraSpec | None = None
) -> dict[str, Any]:
    """The training state as jax.ShapeDtypeStruct leaves that carry their sharding; with `spec` that of the adapter.

    Optimizer moments are sharded as the parameter at the same tree path, along the dimensions they share with it (a
    factored moment has some of size 1); counters are replicated.
    """
    if spec is None:
        params, axes = llama.abstract_params(cfg, jnp.dtype(dtype)), llama.logical_axes(cfg)
    else:
        params, axes = lora.abstract_adapter(spec, cfg, jnp.dtype(dtype)), lora.logical_axes(spec, cfg)
    param_shardings = sharding.param_shardings(mesh, axes)
    state = jax.eval_shape(lambda p: init_state(p, tx), params)
    everywhere = sharding.replicated(mesh)

    def like_param(moment: jax.ShapeDtypeStruct, param: jax.ShapeDtypeStruct, s: NamedSharding) -> NamedSharding:
        axes = s.spec + (None,) * (param.ndim - len(s.spec))
        kept = (a if n == m else None for a, n, m in zip(axes, moment.shape, param.shape, strict=True))
        return NamedSharding(mesh, PartitionSpec(*kept))

    opt_shardings = optax.tree_map_params(
        tx, like_param, state["opt_state"], params, param_shardings, transform_non_params=lambda _: everywhere
    )
    shardings = {"params": param_shardings, "opt_state": opt_shardings, "step": everywhere}
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def random_params(cfg: LlamaConfig, seed: int, abstract: dict[str, Any]) -> Any:
    """Random parameters made in place, the same values on every mesh.

    Args:
      abstract: {"params": tree of what says dtype and sharding}, as of a state.
    """
    out = jax.tree.map(lambda x: x.sharding, abstract["params"])
    dtype = jax.tree.leaves(abstract["params"])[0].dtype
    return jax.jit(lambda: llama.init_params(cfg, jax.random.key(seed), dtype), out_shardings=out)()


def fresh_adapter(spec: lora.LoraSpec, cfg: LlamaConfig, seed: int, abstract: dict[str, Any], base: Any) -> Any:
    """A new adapter made in place, the same values on every mesh; the model with it is the base.

    Args:
      base: the frozen weights, placed.
    """
    out = jax.tree.map(lambda x: x.sharding, abstract["params"])
    key = jax.random.fold_in(jax.random.key(seed), _ADAPTER)
    return jax.jit(lambda frozen: lora.init_adapter(spec, cfg, key, frozen), out_shardings=out)(base)


def first_params(
    config: ConfigDict,
    cfg: LlamaConfig,
    source: "ModelSource | None",
    abstract: dict[str, Any],
    spec: lora.LoraSpec | None = None,
    base: Any = None,
) -> Any:
    """What is trained, as it is before the first step: weights or an adapter, of `source` or new ones.

    Args:
      source: what config.init_from names, None = nothing. abstract: the state. spec: of the adapter, None = all weights
        are trained. base: the frozen weights beneath it, placed.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract["params"])
    if spec is not None:
        if isinstance(source, LoraModel):
            return source.load_adapter(shardings)
        return fresh_adapter(spec, cfg, config.seed, abstract, base)
    if source is None:
        return random_params(cfg, config.seed, abstract)
    return source.load_params(shardings=shardings, dtype=config.param_dtype)


def fresh_state(params: Any, tx: optax.GradientTransformation, abstract: dict[str, Any]) -> dict[str, Any]:
    """Step 0 with these parameters and new optimizer moments; `params` is used, not copied."""
    out = jax.tree.map(lambda x: x.sharding, {k: abstract[k] for k in ("opt_state", "step")})
    rest = jax.jit(lambda p: {k: v for k, v in init_state(p, tx).items() if k != "params"}, out_shardings=out)(params)
    return {"params": params, **rest}


class BatchPlacer:
    """Puts the rows that this process reads onto its devices as a part of the global batch.

    `rows` are the indices within the global batch that this process has to read: every row of which one of its devices
    holds a part (with tensor or context axes over several hosts, hosts share rows).
    """

    def __init__(self, mesh: Mesh, batch: int, length: int):
        self._sharding = sharding.batch_sharding(mesh)
        self.batch_size, self.length = batch, length
        self._shape = (batch, length)
        parts = self._sharding.addressable_devices_indices_map(self._shape).values()
        spans = {index[0].indices(batch)[:2] for index in parts}
        self.rows = np.unique(np.concatenate([np.arange(a, b) for a, b in spans]))
        self._where = {int(r): i for i, r in enumerate(self.rows)}

    def __call__(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Places a host batch whose arrays are [len(rows), length]; `row_ids` and other vectors stay behind."""

        def place(x: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, slice]) -> np.ndarray:
                start, stop, _ = index[0].indices(self._shape[0])
                first = self._where[start]
                return x[first : first + stop - start, index[1]]

            return jax.make_array_from_callback(self._shape, self._sharding, part)

        return {k: place(v) for k, v in local.items() if v.ndim == 2}
