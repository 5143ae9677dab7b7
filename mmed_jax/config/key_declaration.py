"""What is known of one key of a config; mmed_jax/config/defaults.py declares every key with it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.place_flags import check_text


@dataclass(frozen=True)
class Key:
    """A key's neutral value, the values that are valid, and what another value changes.

    default: its value and so its type; a mapping ({}) takes names of the user's own.
    required: it may not be empty; how to name it, for the error.
    choices: the valid values; of a list, the valid members, each at most once.
    positive, not_negative, ratio (0 <= value < 1), at_most: bounds of a number. No number may be infinite.
    adamw_only: adafactor does not read it; with adafactor it must have its default.
    may_change: a run can be continued with another value: it changes nothing that is trained beyond rounding.
    compiled: another value compiles another step.
    words: of a number, what may stand in its place.
    place: of a path or a list of them, what is done there (mmed_jax.common.place_flags); str: no bucket will do.
    per_host: a place or a number of one host; every other key has one value on all hosts of a run.
    """

    default: Any
    required: str = ""
    choices: tuple[str, ...] = ()
    positive: bool = False
    not_negative: bool = False
    ratio: bool = False
    at_most: float = math.inf
    adamw_only: bool = False
    may_change: bool = False
    compiled: bool = False
    words: tuple[str, ...] = ()
    place: type | None = None
    per_host: bool = False

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping, and not a group of keys."""
        return isinstance(self.default, Mapping)

    def check(self, name: str, value: Any) -> None:
        """Raises UserError for a value that is not valid, with the key and what is."""
        if self.required and not value:
            raise UserError(f"config.{name} is empty: {self.required}")
        if isinstance(value, str) and value in self.words:
            return
        if self.place is not None:
            for text in value if isinstance(value, tuple | list) else [value]:
                check_text(text, f"config.{name}", self.place)
        if self.choices and isinstance(value, tuple | list):
            self._check_members(name, value)
        elif self.choices and value not in self.choices:
            raise UserError(f"config.{name}={value!r}{nearest(value, self.choices)}")
        if isinstance(value, float) and math.isinf(value):
            raise UserError(f"config.{name}={value}: must be a finite number")
        if self.at_most < math.inf and value > self.at_most:
            raise UserError(f"config.{name}={value}: must be at most {self.at_most}")
        if self.positive and not value > 0:
            raise UserError(f"config.{name}={value}: must be greater than 0")
        if self.not_negative and not value >= 0:
            raise UserError(f"config.{name}={value}: must not be negative")
        if self.ratio and not 0 <= value < 1:
            raise UserError(f"config.{name}={value}: must lie in [0, 1)")
        if self.is_mapping:
            for item, weight in value.items():
                if weight < 0:
                    raise UserError(f"config.{name}: {item}={weight} must not be negative")

    def _check_members(self, name: str, values: tuple | list) -> None:
        for value in values:
            if value not in self.choices:
                raise UserError(f"config.{name}: '{value}'{nearest(value, self.choices)}")
            if list(values).count(value) > 1:
                raise UserError(f"config.{name}: '{value}' is named twice")


def neutral(keys: Mapping[str, Key]) -> ConfigDict:
    """The config of {"optim.lr": Key, ...} in which every key has its default."""
    config = ConfigDict()
    for name, key in keys.items():
        *groups, leaf = name.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        # Names in a mapping may have dots (layers.3.q); those of keys have none.
        node[leaf] = ConfigDict(key.default, allow_dotted_keys=True) if key.is_mapping else key.default
    return config
