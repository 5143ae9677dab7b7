"""One device mesh, one table from logical axes to mesh axes.

Mesh axes
  data     copies of the parameters, different rows (across TPU slices: the slow network)
  fsdp     different rows, parameters and optimizer state sharded ("fully sharded data parallel")
  tensor   heads, feed-forward and vocabulary split (Megatron style)
  context  positions of one row split (long rows)

FSDP is the default. With it every parameter is sharded on its `embed` dimension and gathered layer by layer.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmed_jax.common.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor", "context")

# Parameters. `embed` also takes `context`, which would otherwise hold idle copies.
PARAM_RULES: dict[str | None, Any] = {
    "layers": None,
    "norm": None,
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    None: None,
}

# A layer's weights where they are multiplied: whole rows, gathered over the axes that only store parts.
GATHERED_RULES: dict[str | None, Any] = {**PARAM_RULES, "embed": None}

# Activations.
ACTIVATION_RULES: dict[str | None, Any] = {
    "batch": ("data", "fsdp"),
    "length": "context",
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
    # Stages of the embedding look-up (model.llama), where parts of the hidden axis are swapped for rows.
    "outer_batch": "data",
    "embed_parts": ("fsdp", "context"),
    "embed_context": "context",
    None: None,
}


def spec(axes: tuple[str | None, ...], rules: dict[str | None, Any]) -> P:
    """The PartitionSpec of an array whose dimensions carry the logical names `axes`.

    Raises:
      ValueError: two dimensions would be split over the same mesh axis.
    """
    entries = [rules[a] for a in axes]
    used = [m for e in entries if e is not None for m in (e if isinstance(e, tuple) else (e,))]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {axes} collide on mesh axes {used}")
    return P(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of an activation by logical names, one a dimension; does nothing outside a mesh."""
    return _constrain(x, axes, ACTIVATION_RULES)


def constrain_gathered(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins a parameter to the layout in which a layer uses it (GATHERED_RULES); does nothing outside a mesh."""
    return _constrain(x, axes, GATHERED_RULES)


def _constrain(x: jax.Array, axes: tuple[str | None, ...], rules: dict[str | None, Any]) -> jax.Array:
    if len(axes) != x.ndim:
        raise ValueError(f"{len(axes)} axis names for an array of rank {x.ndim}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, rules))


def mesh_shape(sizes: dict[str, int], device_count: int) -> tuple[int, ...]:
    """Resolves mesh sizes, at most one of them -1 ("what is left"), for `device_count` devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    shape = [int(sizes.get(a, 1)) for a in MESH_AXES]
    shown = " ".join(f"{a}={s}" for a, s in zip(MESH_AXES, shape, strict=True))
    for a, s in zip(MESH_AXES, shape, strict=True):
        if s == 0 or s < -1:
            raise UserError(f"config.mesh.{a}={s}: a mesh axis is a positive number, or -1 for the devices left over")
    if shape.count(-1) > 1:
        raise UserError(f"config.mesh ({shown}): at most one axis may be -1")
    fixed = math.prod(s for s in shape if s != -1)
    if -1 in shape:
        if device_count % fixed:
            valid = [d for d in range(1, device_count + 1) if device_count % d == 0]
            raise UserError(
                f"config.mesh ({shown}): {fixed} does not divide the {device_count} devices; products that do: {valid}"
            )
        shape[shape.index(-1)] = device_count // fixed
    elif fixed != device_count:
        raise UserError(
            f"config.mesh ({shown}) asks for {fixed} devices but there are {device_count}; set one axis to -1"
        )
    return tuple(shape)


def over_slices(data: int, slices: int) -> int:
    """The mesh axis `data` on several TPU slices: their number where it was left at 1."""
    return slices if data == 1 else data


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, context: int = 1, devices: list[jax.Device] | None = None
) -> Mesh:
    """The mesh over `devices` (all by default), automatic axis types, best order for the interconnect.

    On several TPU slices the `data` axis runs over the slices first, so that only gradients cross the slow network;
    left at 1, it becomes their number.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or `data` does not cover the slices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    slices = len({getattr(d, "slice_index", 0) or 0 for d in devices}) if devices[0].platform == "tpu" else 1
    data = over_slices(data, slices)
    shape = mesh_shape({"data": data, "fsdp": fsdp, "tensor": tensor, "context": context}, len(devices))
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    if slices > 1:
        from jax.experimental import mesh_utils

        if shape[0] % slices:
            raise UserError(
                f"config.mesh.data={shape[0]} must be a multiple of the {slices} TPU slices: fsdp, tensor and context "
                "would run over the slow network between them"
            )
        grid = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
        )
        return Mesh(grid, MESH_AXES, axis_types=axis_types)
    if set(devices) < set(jax.devices()):
        return Mesh(np.asarray(devices).reshape(shape), MESH_AXES, axis_types=axis_types)
    # Along the torus, also when the devices are only a compiler's target: in list order the TPU compiler makes
    # all-gathers into all-reduces of twice the bytes (docs/collectives.md).
    return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=axis_types)


def param_shardings(mesh: Mesh, logical_axes: Any) -> Any:
    """NamedShardings for a tree whose leaves are tuples of logical names (model.llama.logical_axes)."""
    return jax.tree.map(
        lambda axes: NamedSharding(mesh, spec(axes, PARAM_RULES)), logical_axes, is_leaf=lambda x: isinstance(x, tuple)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a [batch, length] array."""
    return NamedSharding(mesh, spec(("batch", "length"), ACTIVATION_RULES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def check_divisible(mesh_sizes: dict[str, int], dims: dict[str, int], batch: int, seq_len: int) -> None:
    """Refuses a mesh that does not divide the model or the batch, naming values that do.

    Args:
      mesh_sizes: resolved size of every mesh axis.
      dims: num_heads, num_kv_heads, intermediate_size, vocab_size, hidden_size.
      batch: sequences in one micro-batch.
      seq_len: tokens in a row.

    Raises:
      UserError: one line that names every axis that does not divide and the values that would.
    """
    problems = []

    def need(value: int, by: int, what: str, knob: str) -> None:
        if value % by:
            divisors = [d for d in range(1, value + 1) if value % d == 0]
            near = sorted(divisors, key=lambda d: abs(d - by))[:3]
            problems.append(f"{what} {value} is not divisible by {knob}={by} (nearest that divide: {sorted(near)})")

    t, shards = mesh_sizes["tensor"], mesh_sizes["fsdp"] * mesh_sizes["context"]
    for name in ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size"):
        need(dims[name], t, name, "mesh.tensor")
    need(dims["hidden_size"], shards, "hidden_size", "mesh.fsdp x mesh.context")
    need(seq_len, mesh_sizes["context"], "data.seq_len", "mesh.context")
    rows = mesh_sizes["data"] * mesh_sizes["fsdp"]
    if batch % rows:
        lower, upper = batch // rows * rows, -(-batch // rows) * rows
        near = f"{lower} or {upper}" if lower else str(upper)
        problems.append(
            f"a micro-batch of {batch} rows does not divide over mesh.data x mesh.fsdp={rows}; nearest that do: {near}"
            "; its rows are config.batch_size / config.grad_accum"
        )
    if problems:
        raise UserError("config.mesh: " + "; ".join(problems))
