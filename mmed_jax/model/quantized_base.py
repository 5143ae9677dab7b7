"""The frozen base of a LoRA run as a whole tree: what `quantization` says of one weight, for all of a model.

The seven linear modules of the layers are quantised. Norms, biases, embedding and head stay in the compute dtype, as in
bitsandbytes, which skips them too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmed_jax.common.errors import UserError
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import Params, abstract_params, logical_axes
from mmed_jax.model.quantization import (
    BLOCK,
    LINEAR_MODULES,
    check_kind,
    dequantize,
    kind_of,
    quantize_leaf,
    quantized_axes,
    quantized_shapes,
)
from mmed_jax.parallel.sharding import param_shardings


def _replace_weights(tree: Params, kind: str, replace: Callable[[str, Any], dict[str, Any]]) -> Params:
    """The tree with every linear module's "weight" replaced by `replace(module name, weight)`."""
    if kind == "compute":
        return tree

    def module(name: str, p: dict[str, Any]) -> dict[str, Any]:
        others = {leaf: value for leaf, value in p.items() if leaf != "weight"}
        return {**others, **replace(name, p["weight"])} if name in LINEAR_MODULES else p

    return {**tree, "layers": {name: module(name, p) for name, p in tree["layers"].items()}}


def base_axes(cfg: LlamaConfig, kind: str) -> Any:
    """Logical axis names of every leaf of a base, a tree like `abstract_base`."""
    check_kind(kind)
    return _replace_weights(logical_axes(cfg), kind, lambda name, axes: quantized_axes(axes, kind))


def base_shardings(mesh: Mesh, cfg: LlamaConfig, kind: str) -> Any:
    """NamedShardings of every leaf of a base."""
    return param_shardings(mesh, base_axes(cfg, kind))


def abstract_base(cfg: LlamaConfig, kind: str, dtype: Any, mesh: Mesh | None = None) -> Params:
    """A base as jax.ShapeDtypeStruct leaves, with shardings when a mesh is given.

    Args:
      kind: of KINDS. dtype: of everything that is not quantised.

    Raises:
      UserError: an unknown kind, or sizes of the model that can't be stored so.
    """
    check_base(cfg, kind)

    def replace(name: str, weight: jax.ShapeDtypeStruct) -> dict[str, Any]:
        shapes = quantized_shapes(weight.shape, kind)
        return {leaf: jax.ShapeDtypeStruct(shape, dtype) for leaf, (shape, dtype) in shapes.items()}

    tree = _replace_weights(abstract_params(cfg, dtype), kind, replace)
    if mesh is None:
        return tree

    def place(x: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree, base_shardings(mesh, cfg, kind))


def quantize_base(params: Params, kind: str, dtype: Any) -> Params:
    """A base from parameters that fit the host; `ModelSource.load_base` makes the same from files, piece by piece.

    Args:
      params: tree of mmed_jax.model.llama, quantised from the dtype that it has.
      dtype: of everything that is not quantised.
    """
    check_kind(kind)
    quantized = {}
    if kind != "compute":
        quantized = {n: quantize_leaf(np.asarray(params["layers"][n]["weight"]), kind) for n in LINEAR_MODULES}
    plain = jax.tree.map(lambda x: jnp.asarray(x, dtype), _replace_weights(params, kind, lambda name, weight: {}))
    layers = {name: {**p, **jax.tree.map(jnp.asarray, quantized.get(name, {}))} for name, p in plain["layers"].items()}
    return {**plain, "layers": layers}


def decoded(base: Params, dtype: Any = jnp.float32) -> Params:
    """The base as trained with: plain parameters in float32, quantised weights decoded and rounded to `dtype` first.

    Args:
      dtype: the compute dtype of the run.
    """

    def module(p: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if (kind := kind_of(p)) == "compute":
            return p
        codes = quantized_shapes((2, BLOCK), kind)
        return {**{k: v for k, v in p.items() if k not in codes}, "weight": dequantize(p, dtype)}

    tree = {**base, "layers": {name: module(p) for name, p in base["layers"].items()}}
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def check_base(cfg: LlamaConfig, kind: str, mesh_sizes: dict[str, int] | None = None, remat: str = "full") -> None:
    """Refuses a base that the model's sizes, the mesh or the remat policy don't allow.

    Args:
      mesh_sizes: resolved size of every mesh axis; None = one device.
      remat: policy of mmed_jax.model.remat.

    Raises:
      UserError: an unknown kind; "nf4" with rows that are no multiple of 64, or whose blocks the mesh doesn't divide;
        a quantised base with remat="none".
    """
    check_kind(kind)
    if kind == "compute":
        return
    if remat == "none":
        raise UserError(
            f"config.lora.base='{kind}' with config.remat='none': every decoded weight would be kept for the backward "
            "pass, the whole model in the compute dtype; use remat='minimal' or 'full'"
        )
    if kind != "nf4":
        return
    mesh = mesh_sizes or {}
    shards, tensor = mesh.get("fsdp", 1) * mesh.get("context", 1), mesh.get("tensor", 1)
    inputs = {
        "hidden_size": (cfg.hidden_size, shards, "mesh.fsdp x mesh.context"),
        "num_heads x head_dim": (cfg.num_heads * cfg.head_dim, tensor, "mesh.tensor"),
        "intermediate_size": (cfg.intermediate_size, tensor, "mesh.tensor"),
    }
    problems = []
    for name, (size, by, axis) in inputs.items():
        if size % BLOCK:
            problems.append(f"{name}={size} is no multiple of {BLOCK} (base='int8' takes any)")
        elif (blocks := size // BLOCK) % by:
            good = [n for n in range(1, blocks + 1) if blocks % n == 0]
            near = sorted(sorted(good, key=lambda n: abs(n - by))[:3])
            problems.append(
                f"{name}={size} has {blocks} blocks of {BLOCK}, not divisible by {axis}={by} "
                f"(nearest that divide: {near})"
            )
    if problems:
        raise UserError(f"config.lora.base='nf4': {'; '.join(problems)}")
