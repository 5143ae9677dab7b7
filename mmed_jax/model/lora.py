"""Low-rank adapters (LoRA, arXiv 2106.09685; rsLoRA, 2312.03732; DoRA, 2402.09353) of a frozen Llama.

An adapter is a tree of its own, the only thing that is trained and saved:
{"layers": {"q": {"lora_a": [L, r, in], "lora_b": [L, out, r]}, ...}, "head": ..., "embed": ...}, float32. r is the
largest rank of a target; layers of a smaller rank have zero rows of A and zero columns of B behind theirs, whose
gradients are 0, so that they stay 0. `join` puts it beside the weights it belongs to.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.quantization import weight_of

LINEAR_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
TARGETS = (*LINEAR_TARGETS, "head", "embed")
Tree = dict[str, Any]


@dataclass(frozen=True)
class LoraSpec:
    """What adapters a model has.

    rank, alpha: the defaults, as an adapter_config.json has them.
    modules: (target, rank by layer, alpha by layer) in the order of TARGETS; head and embed have one entry. A layer of
      rank 0 has no adapter.
    """

    rank: int
    alpha: float
    modules: tuple[tuple[str, tuple[int, ...], tuple[float, ...]], ...]
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A dict for JSON; `from_json` gives an equal spec back."""
        modules = {name: {"rank": list(ranks), "alpha": list(alphas)} for name, ranks, alphas in self.modules}
        own = {k: getattr(self, k) for k in ("rank", "alpha", "rslora", "dora", "dropout")}
        return own | {"modules": modules}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LoraSpec":
        """The spec of `to_json`."""
        modules = tuple(
            (name, tuple(int(r) for r in m["rank"]), tuple(float(a) for a in m["alpha"]))
            for name, m in sorted(data["modules"].items(), key=lambda item: TARGETS.index(item[0]))
        )
        own = {k: data[k] for k in ("rslora", "dora")}
        return cls(int(data["rank"]), float(data["alpha"]), modules, **own, dropout=float(data["dropout"]))


def lora_spec(lora: ConfigDict, cfg: LlamaConfig) -> LoraSpec | None:
    """The spec of config.lora (see mmed_jax/config/defaults.py) for a model; None where lora.rank is 0.

    Raises:
      UserError: a target, layer or pattern that matches nothing or can't be had, or a number that is none.
    """
    if not lora.rank:
        return None
    targets = _targets(lora, cfg)
    layers = _layers(lora, cfg)
    alpha = float(lora.alpha) or 2.0 * lora.rank
    ranks = _by_layer("rank_pattern", dict(lora.rank_pattern), lora.rank, targets, layers, cfg)
    alphas = _by_layer("alpha_pattern", dict(lora.alpha_pattern), alpha, targets, layers, cfg)
    for key, rank in lora.rank_pattern.items():
        if int(rank) != rank:
            raise UserError(f"config.lora.rank_pattern: {key}={rank}: a rank is a whole number")
    modules = tuple((t, tuple(int(r) for r in ranks[t]), tuple(float(a) for a in alphas[t])) for t in targets)
    return LoraSpec(int(lora.rank), alpha, modules, bool(lora.rslora), bool(lora.dora), float(lora.dropout))


def _targets(lora: ConfigDict, cfg: LlamaConfig) -> list[str]:
    if not lora.targets:
        raise UserError(f"config.lora.targets is empty: name at least one of {', '.join(TARGETS)}")
    for name in lora.targets:
        if name not in TARGETS:
            raise UserError(f"config.lora.targets: no module is called '{name}'{nearest(name, TARGETS)}")
        if name in ("head", "embed") and cfg.tie_word_embeddings:
            raise UserError(
                f"config.lora.targets: '{name}' is one matrix with the {'embedding' if name == 'head' else 'head'} in "
                "this model (tie_word_embeddings), an adapter of one would change the other when merged; leave it out"
            )
    return [t for t in TARGETS if t in lora.targets]


def _layers(lora: ConfigDict, cfg: LlamaConfig) -> set[int]:
    for layer in lora.layers:
        if not 0 <= int(layer) < cfg.num_layers:
            raise UserError(
                f"config.lora.layers: there is no layer {layer}; the model has 0 to {cfg.num_layers - 1}, and () is all"
            )
    return {int(layer) for layer in lora.layers} or set(range(cfg.num_layers))


def _by_layer(key: str, pattern: dict, default: float, targets: list[str], layers: set[int], cfg: LlamaConfig) -> dict:
    """{target: values by layer}: of layers.N.target, else of target, else the default; 0 in layers without adapter."""
    for name, value in pattern.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or math.isinf(value):
            raise UserError(f"config.lora.{key}: {name}={value}: must be a number above 0")
        layer, target = _pattern_parts(name)
        if target not in targets or (layer is not None and (target not in LINEAR_TARGETS or layer not in layers)):
            valid = [*targets, *(f"layers.{i}.{t}" for t in targets if t in LINEAR_TARGETS for i in sorted(layers))]
            raise UserError(f"config.lora.{key}: '{name}' is no module with an adapter{nearest(name, valid)}")

    def values(target: str) -> list:
        general = pattern.get(target, default)
        if target not in LINEAR_TARGETS:
            return [general]
        return [pattern.get(f"layers.{i}.{target}", general) if i in layers else 0 for i in range(cfg.num_layers)]

    return {t: values(t) for t in targets}


def _pattern_parts(name: str) -> tuple[int | None, str]:
    match = re.fullmatch(r"layers\.(0|[1-9]\d*)\.(\w+)", name)
    return (int(match[1]), match[2]) if match else (None, name)


def max_rank(spec: LoraSpec, target: str) -> int:
    """The largest rank of a target: the size of its leaves."""
    return max(next(ranks for name, ranks, _ in spec.modules if name == target))


def scales(spec: LoraSpec) -> dict[str, np.ndarray]:
    """float32 [L] of each target (head, embed: [1]): alpha / r, rsLoRA alpha / sqrt(r); 0 where there is no adapter."""

    def scale(rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if spec.rslora else rank) if rank else 0.0

    return {
        name: np.array([scale(r, a) for r, a in zip(ranks, alphas, strict=True)], np.float32)
        for name, ranks, alphas in spec.modules
    }


def _map_modules(spec: LoraSpec, module: Any) -> Tree:
    """The adapter tree with module(target, layers or ()) for each target."""
    tree: Tree = {"layers": {}}
    for name, _, _ in spec.modules:
        tree["layers" if name in LINEAR_TARGETS else name] = (
            tree["layers"] | {name: module(name)} if name in LINEAR_TARGETS else module(name)
        )
    return tree


def _base_leaf(tree: Tree, target: str) -> Any:
    return (tree["layers"] if target in LINEAR_TARGETS else tree)[target]["weight"]


def _layout(spec: LoraSpec, cfg: LlamaConfig) -> Tree:
    """(shape, logical axes) of every leaf of the adapter."""
    shapes, names = llama.abstract_params(cfg), llama.logical_axes(cfg)

    def module(target: str) -> Tree:
        *stack, out, inp = _base_leaf(shapes, target).shape
        *stack_axes, out_axis, in_axis = _base_leaf(names, target)
        if target == "embed":  # its input is the vocabulary
            out, inp, out_axis, in_axis = inp, out, in_axis, out_axis
        rank = max_rank(spec, target)
        leaves = {
            "lora_a": ((*stack, rank, inp), (*stack_axes, None, in_axis)),
            "lora_b": ((*stack, out, rank), (*stack_axes, out_axis, None)),
        }
        if spec.dora:
            leaves["magnitude"] = ((*stack, out), (*stack_axes, "norm" if out_axis == "embed" else out_axis))
        return leaves

    return _map_modules(spec, module)


def _is_leaf(x: Any) -> bool:
    return isinstance(x, tuple)


def abstract_adapter(spec: LoraSpec, cfg: LlamaConfig, dtype: Any = jnp.float32) -> Tree:
    """The adapter tree as jax.ShapeDtypeStruct leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf[0], dtype), _layout(spec, cfg), is_leaf=_is_leaf)


def logical_axes(spec: LoraSpec, cfg: LlamaConfig) -> Tree:
    """The adapter tree with a tuple of logical axis names per leaf: those of the weight, and None for the rank."""
    return jax.tree.map(lambda leaf: leaf[1], _layout(spec, cfg), is_leaf=_is_leaf)


def num_adapter_params(spec: LoraSpec, cfg: LlamaConfig) -> int:
    """Trained numbers, without those that fill up smaller ranks."""
    shapes = llama.abstract_params(cfg)
    total = 0
    for name, ranks, _ in spec.modules:
        out, inp = _base_leaf(shapes, name).shape[-2:]
        magnitude = (inp if name == "embed" else out) if spec.dora else 0
        total += sum(r * (out + inp) + magnitude for r in ranks if r)
    return total


def init_adapter(spec: LoraSpec, cfg: LlamaConfig, key: jax.Array, base: Tree | None = None) -> Tree:
    """A fresh float32 adapter, which changes nothing yet: A uniform within 1 / sqrt(in), B zero, as PEFT.

    The embedding has A zero and B normal(0, 1). Values depend on the key, target and layer alone, not on the mesh.

    Args:
      base: the frozen parameters; needed for DoRA, whose magnitudes are the norms of their rows.
    """

    def module(target: str) -> Tree:
        leaves = _layout(spec, cfg)["layers" if target in LINEAR_TARGETS else target]
        leaves = leaves[target] if target in LINEAR_TARGETS else leaves
        (*_, rank, inp), _ = leaves["lora_a"]
        own = jax.random.fold_in(key, TARGETS.index(target))
        kept = rank_mask(spec, target)
        extra = {"magnitude": _row_norms(base, target, kept)} if spec.dora else {}
        if target == "embed":
            normal = jax.random.normal(own, leaves["lora_b"][0], jnp.float32)
            return {"lora_a": jnp.zeros(leaves["lora_a"][0]), "lora_b": normal, **extra}
        bound = 1 / math.sqrt(inp)
        uniform = jax.random.uniform(own, leaves["lora_a"][0], jnp.float32, -bound, bound)
        return {"lora_a": uniform * kept[..., :, None], "lora_b": jnp.zeros(leaves["lora_b"][0]), **extra}

    return _map_modules(spec, module)


def _row_norms(base: Tree | None, target: str, kept: np.ndarray) -> jax.Array:
    """float32 [.., out]: the norms of a weight's rows (embed: of its columns); 0 in layers without adapter."""
    if base is None:
        raise ValueError("an adapter of DoRA needs the base for its magnitudes")
    weight = weight_of((base["layers"] if target in LINEAR_TARGETS else base)[target], jnp.float32)
    norms = jnp.sqrt((weight * weight).sum(axis=0 if target == "embed" else -1))
    return norms * kept[..., :1]


def rank_mask(spec: LoraSpec, target: str) -> np.ndarray:
    """float32 [L, r] (head, embed: [r]): 1 for the ranks that a layer has."""
    ranks = next(ranks for name, ranks, _ in spec.modules if name == target)
    mask = (np.arange(max(ranks)) < np.array(ranks)[:, None]).astype(np.float32)
    return mask if target in LINEAR_TARGETS else mask[0]


def join(base: Tree, adapter: Tree, spec: LoraSpec, cfg: LlamaConfig, *, dropout_key: jax.Array | None = None) -> Tree:
    """The tree that llama.forward, head_weight and unembed take: adapters and their scales beside the weights.

    Args:
      base: the frozen parameters. adapter: of `spec`; gradients flow to it.
      dropout_key: of this step and micro-batch, while training; None = no dropout.
    """
    joined = {**base, "layers": dict(base["layers"])}
    for name, scale in scales(spec).items():
        own: Tree = {"lora_scale": jnp.asarray(scale)}
        if dropout_key is not None and spec.dropout and name != "embed":
            layer_keys = jax.random.split(jax.random.fold_in(dropout_key, TARGETS.index(name)), len(scale))
            own["lora_dropout"] = {"key": layer_keys, "rate": jnp.full(len(scale), spec.dropout, jnp.float32)}
        if name in LINEAR_TARGETS:
            joined["layers"][name] = {**base["layers"][name], **adapter["layers"][name], **own}
        else:
            joined[name] = {**base[name], **adapter[name], **jax.tree.map(lambda x: x[0], own)}
    return joined


def merge_leaf(
    weight_oi: np.ndarray, a_ri: np.ndarray, b_or: np.ndarray, scale: float, magnitude: np.ndarray | None = None
) -> np.ndarray:
    """W + s B A of one layer in float32, float32 [out, in]; DoRA: its rows brought to the length `magnitude` [out].

    An embedding's weight is given and returned as [d, V], with its A [r, V] and B [d, r]. A layer without adapter
    (scale 0) comes back unchanged.
    """
    weight = np.asarray(weight_oi, np.float32)
    if not scale:
        return weight
    delta = (np.asarray(b_or, np.float32) @ np.asarray(a_ri, np.float32)) * np.float32(scale)
    merged = weight + delta
    if magnitude is None:
        return merged
    norm = np.linalg.norm(merged, axis=1)
    return (np.asarray(magnitude, np.float32) / norm)[:, None] * merged
