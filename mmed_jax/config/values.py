"""The values of a config: as one flat mapping, copies with others, as flags and JSON, and what follows from them."""

import copy
import json
import math
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import nearest
from mmed_jax.common.hashes import json_hash
from mmed_jax.config.defaults import KEYS

# Last parts of the keys whose value is a mapping, not a group of keys.
MAPPINGS = tuple(name.rpartition(".")[2] for name, key in KEYS.items() if key.is_mapping)


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 1e-5, ...}; mappings meant as values (source_weights, language_weights) stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict) and key not in MAPPINGS:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = dict(value) if isinstance(value, ConfigDict) else value
    return flat


def nearest_key(key: str, flat: dict[str, Any]) -> str:
    """As errors.nearest: the key that has the same last part, else the most similar one."""
    same_leaf = [k for k in flat if k.split(".")[-1] == key.split(".")[-1]]
    return nearest(key, flat) if not same_leaf else f", did you mean '{same_leaf[0]}'?"


def with_values(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy of the config with other values: {"optim.lr": 1e-5}. It is unlocked."""
    out = _copy(config)
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = out
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return out


def _copy(config: ConfigDict) -> ConfigDict:
    """A copy, unlocked. ConfigDict's constructor takes three times as long, and a search copies thousands."""
    out = ConfigDict(allow_dotted_keys=True)
    for key, value in config.items():
        out[key] = _copy(value) if isinstance(value, ConfigDict) else copy.deepcopy(value)
    return out


def as_flags(changes: dict[str, Any]) -> str:
    """Changes as command-line flags."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def compile_settings(config: ConfigDict) -> dict[str, Any]:
    """The keys of a config that decide what is compiled, with their values."""
    flat = flatten(config)
    return {name: flat[name] for name, key in KEYS.items() if key.compiled}


def batch_rows(config: ConfigDict) -> int:
    """Sequences in the global batch."""
    return config.batch_size or config.batch_tokens // config.data.seq_len


def planned_steps(config: ConfigDict, rows: int) -> int:
    """Optimizer steps: config.steps, or as many as show every one of `rows` at least config.epochs times."""
    return config.steps or max(1, math.ceil(config.epochs * rows / batch_rows(config) - 1e-9))


def with_grad_accum(config: ConfigDict, row_groups: int) -> ConfigDict:
    """The config with a number where grad_accum is 0: the fewest parts that leave a group of devices at most
    config.micro_rows rows at a time.

    Args:
      row_groups: groups of devices that have rows of their own: mesh.data x mesh.fsdp. Where the batch does not divide
        over them the number is 1, and whoever checks the mesh says so.
    """
    if config.grad_accum:
        return config
    rows, rest = divmod(batch_rows(config), row_groups)
    fewest = next((n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= config.micro_rows), 1)
    return with_values(config, {"grad_accum": 1 if rest else fewest})


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2, ensure_ascii=False, default=list)


def config_hash(config: dict[str, Any]) -> str:
    """A short hash of a resolved config."""
    return json_hash(config, 16, default=list)
