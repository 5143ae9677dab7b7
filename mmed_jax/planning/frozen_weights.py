"""Sizes of a run with an adapter (LoRA): the frozen weights as they are stored, and the numbers of the adapter."""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmed_jax.model.config import LlamaConfig

if TYPE_CHECKING:
    from mmed_jax.model.lora import LoraSpec


@dataclass(frozen=True)
class FrozenWeights:
    """On one chip of a mesh.

    weights: bytes of all that is frozen. layer_codes: bytes of one layer's weights as they are stored, where that layer
    is at work (in parts over the tensor axis only); layer_params: their number there. adapter: numbers that are
    trained, with what fills up smaller ranks. gathered_weights, whole_adapter: as weights and adapter, over the tensor
    axis only. values_in, values_out: of a token and all adapted modules of all layers, what they read and give, over
    the tensor axis. quantised: whether weights are decoded before they are multiplied.
    """

    weights: float
    layer_codes: float
    layer_params: float
    adapter: float
    gathered_weights: float
    whole_adapter: float
    values_in: float
    values_out: float
    quantised: bool

    def layer_bytes(self, width: int, split: bool) -> float:
        """Bytes while a layer is at work: its weights and the next one's as they arrive, and one layer's decoded.

        Args:
          width: bytes of a value of the compute dtype. split: whether layers are gathered from parts.
        """
        gathered = 2 * self.layer_codes if split else 0.0
        return gathered + (self.layer_params * width if self.quantised else 0.0)


def frozen_weights(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int]) -> FrozenWeights | None:
    """What is frozen in a run and what is trained instead; None where all weights are trained.

    Args:
      mesh: size of every mesh axis, resolved.

    Raises:
      UserError: config.lora names what the model does not have, or a base that its sizes do not allow.
    """
    from mmed_jax.model.lora import lora_spec

    spec = lora_spec(config.lora, cfg)
    if spec is None:
        return None
    return _sizes(spec, cfg, config.lora.base, config.compute_dtype, tuple(mesh.items()))


@functools.lru_cache(maxsize=256)  # a search asks for the same meshes a thousand times
def _sizes(
    spec: "LoraSpec", cfg: LlamaConfig, kind: str, dtype: str, mesh: tuple[tuple[str, int], ...]
) -> FrozenWeights:
    import jax

    from mmed_jax.model import lora, quantized_base

    base = quantized_base.abstract_base(cfg, kind, jax.numpy.dtype(dtype))
    axes = quantized_base.base_axes(cfg, kind)
    adapter, adapter_axes = lora.abstract_adapter(spec, cfg), lora.logical_axes(spec, cfg)
    plain = quantized_base.abstract_base(cfg, "compute", jax.numpy.dtype(dtype))
    plain_axes = quantized_base.base_axes(cfg, "compute")
    sizes = dict(mesh)
    tensor_only = {a: n if a == "tensor" else 1 for a, n in mesh}
    width = jax.numpy.dtype(dtype).itemsize
    # Of A [.., rank, in] and B [.., out, rank] of the linear modules.
    ranked = adapter["layers"].values()
    return FrozenWeights(
        weights=_bytes_on_a_chip(base, axes, sizes),
        layer_codes=_bytes_on_a_chip(base["layers"], axes["layers"], tensor_only) / cfg.num_layers,
        layer_params=_bytes_on_a_chip(plain["layers"], plain_axes["layers"], tensor_only) / width / cfg.num_layers,
        adapter=_bytes_on_a_chip(adapter, adapter_axes, sizes) / 4,
        gathered_weights=_bytes_on_a_chip(base, axes, tensor_only),
        whole_adapter=_bytes_on_a_chip(adapter, adapter_axes, tensor_only) / 4,
        values_in=sum(m["lora_a"].shape[0] * m["lora_a"].shape[-1] for m in ranked) / sizes["tensor"],
        values_out=sum(m["lora_b"].shape[0] * m["lora_b"].shape[-2] for m in ranked) / sizes["tensor"],
        quantised=kind != "compute",
    )


def _bytes_on_a_chip(tree: Any, axes: Any, mesh: dict[str, int]) -> float:
    """Of arrays with these logical axes, on one chip of the mesh."""
    import jax

    from mmed_jax.parallel.sharding import PARAM_RULES

    def size(x: Any, names: tuple[str | None, ...]) -> float:
        rules = [PARAM_RULES[name] for name in names]
        over = [axis for rule in rules if rule for axis in (rule if isinstance(rule, tuple) else (rule,))]
        return math.prod(x.shape) * x.dtype.itemsize / math.prod(mesh[axis] for axis in over)

    return sum(jax.tree.leaves(jax.tree.map(size, tree, axes)))
