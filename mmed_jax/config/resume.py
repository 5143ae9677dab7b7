"""What may change when a run is continued: the keys that decide what is trained must stay as they are."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mmed_jax.common.hashes import json_hash
from mmed_jax.config.defaults import KEYS, base
from mmed_jax.config.values import MAPPINGS

# Keys of earlier versions that changed nothing either.
_FORMER = ("profile_start", "profile_steps")


def _may_change() -> tuple[str, ...]:
    groups: dict[str, list[str]] = {}
    for name in KEYS:
        head, dot, _ = name.partition(".")
        groups.setdefault(head + dot, []).append(name)
    allowed: list[str] = []
    for group, names in groups.items():
        free = [name for name in names if KEYS[name].may_change]
        allowed += [group] if len(free) == len(names) else free
    return (*allowed, *_FORMER)


# Keys that do not change what is trained beyond rounding: where things lie, what is logged and saved, and how the work
# is spread over devices. Everything else is part of the run. A name ending in "." stands for the whole group, so that
# a key which another version has in it does not count either.
NOT_COMPARED = _may_change()


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ConfigDict or a mapping as JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else dict(config), default=list))


def training_keys(config: Mapping[str, Any], not_compared: Iterable[str] = NOT_COMPARED) -> dict[str, Any]:
    """{"optim.lr": 1e-5, ...}: the keys of a (nested) config that decide what is trained, as JSON values."""

    def walk(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        flat = {}
        for key, value in node.items():
            if isinstance(value, dict) and key not in MAPPINGS:
                flat.update(walk(value, f"{prefix}{key}."))
            else:
                flat[prefix + key] = value
        return flat

    def skipped(key: str) -> bool:
        return any(key == n or (n.endswith(".") and key.startswith(n)) for n in not_compared)

    return {k: v for k, v in walk(plain_config(config), "").items() if not skipped(k)}


def training_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits over `training_keys`; equal hashes mean the same training."""
    return json_hash(training_keys(config), 16)


def training_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """[(key, value saved, value now)] of what decides the training and is set otherwise; values as JSON text.

    A key that a run of an earlier version does not have counts as having had its default.
    """
    missing = object()

    def show(value: Any) -> str:
        return "not set" if value is missing else json.dumps(value, ensure_ascii=False)

    before, after, defaults = training_keys(saved), training_keys(now), training_keys(base())
    keys = [*after, *(k for k in before if k not in after)]
    pairs = [(k, before.get(k, defaults.get(k, missing)), after.get(k, missing)) for k in keys]
    return [(k, show(a), show(b)) for k, a, b in pairs if a != b]
