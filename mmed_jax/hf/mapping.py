"""The one table between Hugging Face tensor names and leaves of the parameter tree.

Both sides keep the same orientation ([out, in]) and the same RoPE layout (rotate halves), so a tensor moves without any
change of its bytes. The only difference is that our layers are stacked: HF's `model.layers.7.mlp.up_proj.weight` is
row 7 of the leaf ("layers", "up", "weight").
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import abstract_params

# Our name -> HF's, as in transformers' modeling_llama.py; "weight" and "bias" are the same in both.
MODULES = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}
LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
# Buffers that old releases stored; they follow from config.json and are not read.
HARMLESS = re.compile(r"(.*\.)?rotary_emb\.inv_freq")

MOST_NAMES = 24  # that one message shows

Path = tuple[str, ...]


class HFTensor(NamedTuple):
    """One tensor of a Hugging Face folder and where it lives in the tree."""

    name: str
    path: Path  # leaf, e.g. ("layers", "q", "weight")
    layer: int | None  # row of a stacked leaf; None when the leaf is the tensor
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def leaf_shapes(cfg: LlamaConfig) -> dict[Path, tuple[int, ...]]:
    """Shape of every leaf of the parameter tree of `cfg`, by path."""
    return {path: leaf.shape for path, leaf in flatten(abstract_params(cfg, jnp.float32)).items()}


def hf_tensors(cfg: LlamaConfig) -> list[HFTensor]:
    """Every tensor of the HF folder of `cfg`, in the order of the forward pass (embedding, layers, norm, head)."""
    stacked, first, last = [], [], []
    for path, shape in leaf_shapes(cfg).items():
        if path[0] == "layers":
            stacked.append((path, shape))
        else:
            name = f"{MODULES[path[0]]}.{path[1]}"
            (first if path[0] == "embed" else last).append(HFTensor(name, path, None, shape))
    order = list(LAYER_MODULES)
    stacked.sort(key=lambda item: order.index(item[0][1]))
    layers = [
        HFTensor(f"model.layers.{i}.{LAYER_MODULES[path[1]]}.{path[2]}", path, i, shape[1:])
        for i in range(cfg.num_layers)
        for path, shape in stacked
    ]
    last.sort(key=lambda t: list(MODULES).index(t.path[0]))
    return first + layers + last


def flatten(tree: dict[str, Any]) -> dict[Path, Any]:
    """Nested dict -> {path: leaf}."""
    flat: dict[Path, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update({(key, *rest): leaf for rest, leaf in flatten(value).items()})
        else:
            flat[(key,)] = value
    return flat


def unflatten(flat: dict[Path, Any]) -> dict[str, Any]:
    """{path: leaf} -> nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def group_names(names: Iterable[str]) -> str:
    """Names on one line, with layer numbers drawn together: `model.layers.{0-31}.mlp.up_proj.bias`; of many some."""
    groups: dict[str, list[int]] = {}
    for name in sorted(names):
        found = re.search(r"\.layers\.(\d+)\.", name)
        groups.setdefault(re.sub(r"\.layers\.\d+\.", ".layers.{}.", name, count=1), []).extend(
            [int(found[1])] if found else []
        )
    return some([key.replace("{}", _ranges(numbers)) if numbers else key for key, numbers in sorted(groups.items())])


def some(names: Sequence[str], separator: str = ", ", longest: int = 120) -> str:
    """The first MOST_NAMES on one line, none longer than `longest`, and how many more there are."""
    cut = [n if len(n) <= longest else n[: longest - 3] + "..." for n in names[:MOST_NAMES]]
    more = len(names) - len(cut)
    return separator.join(cut) + (f" and {more:,} more" if more else "")


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:MOST_NAMES])
    text += ",..." if len(runs) > MOST_NAMES else ""
    return text if len(numbers) == 1 else "{" + text + "}"
