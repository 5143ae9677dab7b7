"""Configs with other values: which keys decide what is compiled, copies with changes, and how they are written."""

import copy
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.config.defaults import KEYS
from mmed_jax.config.values import flatten

# Keys of a config that decide what is compiled.
RELEVANT = tuple(name for name, key in KEYS.items() if key.compiled)


def relevant(config: ConfigDict) -> dict[str, Any]:
    """The keys of a config that decide what is compiled, with their values."""
    flat = flatten(config)
    return {key: flat[key] for key in RELEVANT}


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy of the config with other values: {"optim.lr": 1e-5}."""
    out = ConfigDict(copy.deepcopy(config.to_dict()))
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = out
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return out


def as_flags(changes: dict[str, Any]) -> str:
    """Changes as command-line flags."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
