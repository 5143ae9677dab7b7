"""The table of XLA flags: the compiler takes them, and they do what the table says they are for."""

import jax
import jax.numpy as jnp
import pytest
from hlo_cases import tpu_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmed_jax.planning import hlo, schedule, topology
from mmed_jax.planning.flags import FLAGS, compiler_options

WIDTH = 2048


def fsdp_module(name: str, flags: dict[str, str]) -> hlo.Module:
    """The gradient of a product whose weight is split over all chips of the topology `name`, compiled for it."""
    devices = tpu_devices(name)
    mesh = jax.make_mesh((len(devices),), ("fsdp",), devices=devices, axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def loss(w, x):
        w = jax.lax.with_sharding_constraint(w.astype(jnp.bfloat16), NamedSharding(mesh, PartitionSpec()))
        return jnp.sum((x @ w).astype(jnp.float32) ** 2)

    w = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((64 * len(devices), WIDTH), jnp.bfloat16, sharding=split)
    lowered = jax.jit(jax.grad(loss), out_shardings=split).trace(w, x).lower(lowering_platforms=("tpu",))
    return hlo.parse_module(lowered.compile(compiler_options=flags).as_text())


def large(module: hlo.Module) -> list[hlo.Collective]:
    return [c for c in hlo.collectives(module) if c.payload_bytes >= WIDTH * WIDTH]


@pytest.mark.parametrize("name", ["v5p-128", "v6e-16"])
def test_sparse_cores_gather_weights_and_reduce_scatter_gradients(name):
    """Over a whole torus of 4x4x4 and of 4x4 chips: half the bytes of an all-reduce, and nothing waits."""
    chip = topology.parse(name).chip
    with_flags = large(fsdp_module(name, compiler_options(chip)))
    assert sorted((c.kind, c.asynchronous) for c in with_flags) == [("all-gather", True), ("reduce-scatter", True)]
    chips = topology.parse(name).chips
    assert {c.wire_bytes for c in with_flags} == {2 * WIDTH * WIDTH * (chips - 1) / chips}


def test_gathers_run_beside_the_work_on_a_v4():
    gathers = [[c.asynchronous for c in large(fsdp_module("v4-16", flags)) if c.kind == "all-gather"]
               for flags in ({}, compiler_options("v4"))]  # fmt: skip
    assert gathers == [[False], [True]]


def test_products_are_not_cut_into_one_piece_a_chip():
    """On few chips the partitioner's default passes weights round between small products; whole ones take less time."""
    t = topology.parse("v5e-8")
    devices = tpu_devices(t.name)
    mesh = jax.make_mesh((len(devices),), ("fsdp",), devices=devices, axis_types=(AxisType.Auto,))
    rows, inputs = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), (None, "fsdp")))
    w = jax.ShapeDtypeStruct((4 * WIDTH, WIDTH), jnp.bfloat16, sharding=inputs)
    x = jax.ShapeDtypeStruct((1024 * len(devices), WIDTH), jnp.bfloat16, sharding=rows)
    lowered = jax.jit(lambda w, x: x @ w.T, out_shardings=rows).trace(w, x).lower(lowering_platforms=("tpu",))
    cut, whole = (
        hlo.parse_module(lowered.compile(compiler_options=flags).as_text()) for flags in ({}, compiler_options(t.chip))
    )
    assert {c.kind for c in hlo.collectives(cut)} == {"collective-permute"}
    assert [c.kind for c in hlo.collectives(whole)] == ["all-gather"]
    assert schedule.estimate(whole, t).compute_s < 0.8 * schedule.estimate(cut, t).compute_s


def test_without_flags_the_gradient_is_all_reduced():
    """Why the table is needed; when this fails the compiler has learnt it, and the table may shrink."""
    (reduce,) = [c for c in large(fsdp_module("v6e-16", {})) if "reduce" in c.kind]
    assert (reduce.kind, reduce.asynchronous) == ("all-reduce", False)


@pytest.mark.parametrize("name", ["v4-16", "v5e-16", "v5p-8", "v6e-1"])
def test_the_compiler_takes_the_flags_of_every_chip(name):
    t = topology.parse(name)
    module = fsdp_module(name, compiler_options(t.chip))
    assert schedule.estimate(module, t).schedule_s > 0


def test_every_flag_has_a_reason_and_other_devices_have_none():
    assert all(value and len(reason) > 10 for flags in FLAGS.values() for value, reason in flags.values())
    assert set(FLAGS) == {"v4", "v5p", "v5e", "v6e"}
    assert compiler_options("h100") == compiler_options("") == {}
