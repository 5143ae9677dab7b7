"""Flags of the executors of clusters, --slurm.NAME=VALUE and --ray.NAME=VALUE, out of the fields of a dataclass."""

import dataclasses
from typing import Any, TypeVar

from mmed_jax.common.errors import UserError, nearest

S = TypeVar("S")
# Numbers that may be 0, which then says "any" or "none".
_MAY_BE_ZERO = ("max_running", "reserve_gb")


def parse_settings(kind: type[S], given: dict[str, str], flag: str) -> S:
    """Settings of a dataclass whose fields all have defaults.

    Args:
      given: {NAME: VALUE}. flag: what stands before the dot, for messages.

    Raises UserError for an unknown name or a value of another type.
    """
    known: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise UserError(f"--{flag}.{name}: no such flag{nearest(name, known)}")
        make: type = type(known[name])
        try:
            values[name] = make(text)
        except ValueError:
            raise UserError(f"--{flag}.{name}={text}: must be a number, for example {make(4)}") from None
        if make is not str and (values[name] < 0 or name not in _MAY_BE_ZERO and not values[name]):
            raise UserError(f"--{flag}.{name}={text}: must be above 0")
    return kind(**values)
