"""The lora.* keys of a config: what is valid without a model, and values that follow from others."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.config.defaults import KEYS, LORA_TARGETS

_LAYER_NAME = re.compile(r"layers\.(\d+)\.(\w+)")


def write_out(config: ConfigDict) -> None:
    """Sets lora.alpha to 2 x rank where it is 0, and lora.layers to whole numbers, so that the config says them."""
    lora = config.lora
    with lora.unlocked():
        if lora.rank > 0 and not lora.alpha:
            lora.alpha = 2.0 * lora.rank
        if all(str(n).isdecimal() for n in lora.layers):
            lora.layers = tuple(int(n) for n in lora.layers)


def check_lora(flat: Mapping[str, Any]) -> None:
    """Checks what the keys say together; what depends on the model is checked by mmed_jax.model.lora.lora_spec.

    Args:
      flat: every key of a config with its value.

    Raises:
      UserError: the first thing wrong, with the key, the value and what is valid.
    """
    if not flat["lora.rank"]:
        _check_unused(flat)
        return
    if flat["param_dtype"] != "float32":
        raise UserError(
            f"config.param_dtype={flat['param_dtype']}: with lora.rank={flat['lora.rank']} what is trained is the "
            "adapter, in float32; the frozen weights are stored as lora.base says"
        )
    if flat["lora.base"] != "compute" and flat["remat"] == "none":
        raise UserError(
            f"config.lora.base={flat['lora.base']} with remat=none: the backward pass would keep every weight decoded, "
            "as large as without quantisation; set --config.remat=full or another policy"
        )
    for name in ("head", "embed"):
        if flat["lora.layers"] and name in flat["lora.targets"]:
            raise UserError(f"config.lora.layers={_listed(flat['lora.layers'])}: '{name}' of targets is in no layer")
    layers = _layers(flat["lora.layers"])
    for key in ("lora.rank_pattern", "lora.alpha_pattern"):
        for name, value in flat[key].items():
            _check_name(key, name, flat["lora.targets"], layers)
            if key == "lora.rank_pattern" and value != int(value):
                raise UserError(f"config.{key}: {name}={value} must be a whole number")
            if not value > 0:
                raise UserError(f"config.{key}: {name}={value} must be greater than 0")


def _check_unused(flat: Mapping[str, Any]) -> None:
    for name, key in KEYS.items():
        if name.startswith("lora.") and name != "lora.rank":
            value = flat[name]
            if (tuple(value) if isinstance(value, list) else value) != key.default:
                raise UserError(
                    f"config.{name}={_listed(value)}: lora.rank is 0, so that all weights are trained and nothing "
                    "reads it; set --config.lora.rank=16, or leave it at its default"
                )


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _layers(value: tuple | list) -> list[int]:
    for n in value:
        if not str(n).isdecimal():
            raise UserError(f"config.lora.layers: '{n}' is not the number of a layer; for example 0,1,2")
        if [str(m) for m in value].count(str(n)) > 1:
            raise UserError(f"config.lora.layers: {n} is named twice")
    return [int(n) for n in value]


def _check_name(key: str, name: str, targets: tuple | list, layers: list[int]) -> None:
    """A name in a pattern: a module, or layers.N.MODULE; of those that get an adapter."""
    in_layer = _LAYER_NAME.fullmatch(name)
    module = in_layer[2] if in_layer else name
    modules = [t for t in LORA_TARGETS if not in_layer or t not in ("head", "embed")]
    if module not in modules:
        prefix = f"layers.{in_layer[1]}." if in_layer else ""
        hint = nearest(name, [prefix + m for m in modules])
        raise UserError(f"config.{key}: '{name}' is neither a module nor layers.N.MODULE{hint}")
    if module not in targets:
        raise UserError(f"config.{key}: '{name}' gets no adapter: lora.targets is {_listed(targets)}")
    if in_layer and layers and int(in_layer[1]) not in layers:
        raise UserError(f"config.{key}: '{name}' gets no adapter: lora.layers is {_listed(layers)}")
