"""Gathers of weights over one of several slices, in two steps: along a line of the torus, then over its planes.

In a program for several slices the TPU compiler turns an all-gather over all chips of a slice with three torus axes
into an all-reduce of twice the bytes, in whatever order the chips are (docs/collectives.md, 7); over a line or a plane
of them it stays an all-gather. The line goes first: nearly all bytes then move in the second step, over two axes at
once.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmed_jax.parallel.sharding import GATHERED_RULES, PARAM_RULES, spec

# Chips of the line while a step is traced; 0 = gathers have one step.
_line: ContextVar[int] = ContextVar("line", default=0)


def line_length(mesh: Mesh) -> int:
    """Devices of a line where gathers over `fsdp` should have two steps, else 0.

    They should on several slices where `fsdp` is a whole slice of four or more chips along each of three axes, and its
    devices lie row by row.
    """
    devices = mesh.devices
    slices = {getattr(d, "slice_index", 0) or 0 for d in devices.flat}
    if devices.flat[0].platform != "tpu" or len(slices) == 1 or devices.size != len(slices) * mesh.shape["fsdp"]:
        return 0
    row = devices.reshape(len(slices), -1)[0]
    at = np.array([d.coords for d in row])
    extent = at.max(0) - at.min(0) + 1
    if at.shape[1] != 3 or min(extent) < 4 or prod(extent) != len(row):
        return 0
    (axis,) = np.flatnonzero(at[1] != at[0])[:1]
    line = int(extent[axis])
    lines = at.reshape(-1, line, 3)
    straight = (np.delete(lines, axis, axis=2) == np.delete(lines, axis, axis=2)[:, :1]).all()
    return line if straight and (lines[:, :, axis] == lines[:1, :, axis]).all() else 0


@contextlib.contextmanager
def gathers_along(line: int) -> Iterator[None]:
    """Within it, `gather_weight` and `all_gather` have two steps with lines of so many devices; 0 = one step."""
    token = _line.set(line)
    try:
        yield
    finally:
        _line.reset(token)


def in_two_steps() -> bool:
    """Whether gathers traced now have two steps."""
    return _line.get() > 0


def all_gather(x: jax.Array, axis: int) -> jax.Array:
    """jax.lax.all_gather over `fsdp`, tiled, inside a shard_map over a mesh whose `context` is 1, in two steps."""
    line, size = _line.get(), jax.lax.axis_size("fsdp")
    lines = np.arange(size).reshape(-1, line)
    for groups in (lines, lines.T):
        x = jax.lax.all_gather(x, "fsdp", axis=axis, tiled=True, axis_index_groups=groups.tolist())
    return x


def gather_weight(weight: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A layer's weight whole on every device that multiplies it, gathered in two steps; its gradient is sharded as it.

    Args:
      axes: logical names of the dimensions, of which one is `embed`.
    """

    @jax.custom_vjp
    def gathered(w):
        return gather_constant(w, axes)

    def backward(_: Any, gradient: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(gradient, spec(axes, PARAM_RULES)),)

    gathered.defvjp(lambda w: (gathered(w), None), backward)
    return gathered(weight)


def gather_constant(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """As `gather_weight`, of what has no gradient: codes of a quantised weight."""
    dim = axes.index("embed")
    return jax.shard_map(
        lambda x: all_gather(x, dim),
        in_specs=spec(axes, PARAM_RULES),
        out_specs=spec(axes, GATHERED_RULES),
        check_vma=False,
    )(x)
