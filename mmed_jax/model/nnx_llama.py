"""Llama-3 as a Flax NNX module, for who holds a model in Python; training and planning do without, and start sooner."""

from typing import Any

import jax
from flax import nnx

from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import Params, forward, init_params, logical_axes, unembed


class _Group(nnx.Module):
    """Named parameters or named groups of them."""

    def __init__(self, tree: dict, axes: dict):
        for name, value in tree.items():
            if isinstance(value, dict):
                setattr(self, name, _Group(value, axes[name]))
            else:
                setattr(self, name, nnx.Param(value, sharding_names=axes[name], eager_sharding=False))


class Llama(_Group):
    """The parameters as a Flax NNX module: `nnx.to_pure_dict(nnx.state(model))` is the plain tree used everywhere.

    Each nnx.Param carries its logical axis names as metadata (`sharding_names`).
    """

    def __init__(self, cfg: LlamaConfig, rngs: nnx.Rngs | None = None, *, params: Params | None = None):
        if params is None:
            params = init_params(cfg, rngs.params())
        super().__init__(params, logical_axes(cfg))
        self.cfg = cfg

    def __call__(self, tokens_bt: jax.Array, **kwargs: Any) -> jax.Array:
        """float32 logits [B, T, V]; keyword arguments of `forward` except cache."""
        params = nnx.to_pure_dict(nnx.state(self))
        return unembed(params, self.cfg, forward(params, self.cfg, tokens_bt, **kwargs))
