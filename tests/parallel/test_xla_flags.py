"""The table of XLA flags: the compiler takes them, and they do what the table says they are for."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import with_values
from mmed_jax.model.config import PRESETS, num_params
from mmed_jax.parallel.xla_flags import FLAGS, compiler_options
from mmed_jax.planning import schedule_time, step_time, topology
from mmed_jax.planning.hlo import analysis
from mmed_jax.training import program
from tests.support.hlo_cases import tpu_devices
from tests.support.planning import run_plan, small
from tests.support.training import bench, train_here  # noqa: F401

WIDTH = 2048


def fsdp_module(name: str, flags: dict[str, str]) -> analysis.Module:
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
    return analysis.parse_module(lowered.compile(compiler_options=flags).as_text())


def large(module: analysis.Module) -> list[analysis.Collective]:
    return [c for c in analysis.collectives(module) if c.payload_bytes >= WIDTH * WIDTH]


@pytest.mark.parametrize("name", ["v5p-128", "v6e-16"])
def test_sparse_cores_gather_weights_and_reduce_scatter_gradients(name):
    """Over a whole torus of 4x4x4 and of 4x4 chips: half the bytes of an all-reduce, and nothing waits."""
    chip = topology.parse(name).chip
    with_flags = large(fsdp_module(name, compiler_options(chip)))
    assert sorted((c.kind, c.asynchronous) for c in with_flags) == [("all-gather", True), ("reduce-scatter", True)]
    chips = topology.parse(name).chips
    assert {c.wire_bytes for c in with_flags} == {2 * WIDTH * WIDTH * (chips - 1) / chips}


def test_gathers_run_beside_the_work_on_a_v4():
    gathers = [
        [c.asynchronous for c in large(fsdp_module("v4-16", flags)) if c.kind == "all-gather"]
        for flags in ({}, compiler_options("v4"))
    ]
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
        analysis.parse_module(lowered.compile(compiler_options=flags).as_text())
        for flags in ({}, compiler_options(t.chip))
    )
    assert {c.kind for c in analysis.collectives(cut)} == {"collective-permute"}
    assert [c.kind for c in analysis.collectives(whole)] == ["all-gather"]
    assert schedule_time.estimate(whole, t).compute_s < 0.8 * schedule_time.estimate(cut, t).compute_s


def test_without_flags_the_gradient_is_all_reduced():
    """Why the table is needed; when this fails the compiler has learnt it, and the table may shrink."""
    (reduce,) = [c for c in large(fsdp_module("v6e-16", {})) if "reduce" in c.kind]
    assert (reduce.kind, reduce.asynchronous) == ("all-reduce", False)


@pytest.mark.parametrize("name", ["v4-16", "v5e-16", "v5p-8", "v6e-1"])
def test_the_compiler_takes_the_flags_of_every_chip(name):
    t = topology.parse(name)
    module = fsdp_module(name, compiler_options(t.chip))
    assert schedule_time.estimate(module, t).schedule_s > 0


def test_every_flag_has_a_reason_and_other_devices_have_none():
    assert all(value and len(reason) > 10 for flags in FLAGS.values() for value, reason in flags.values())
    assert set(FLAGS) == {"v4", "v5p", "v5e", "v6e"}
    assert compiler_options("h100") == compiler_options("") == {}


# ---- Flags by name: config.xla_flags=flag=value,... ------------------------------------------------------------------

GOOD = "--xla_cpu_enable_fast_math=False, xla_backend_optimization_level=2"


def test_flags_by_name_replace_the_table():
    found = {"xla_cpu_enable_fast_math": False, "xla_backend_optimization_level": "2"}
    assert compiler_options("v5p", GOOD) == compiler_options("", GOOD) == found
    assert compiler_options("v5p", "none") == {} != compiler_options("v5p")


@pytest.mark.parametrize(
    "text, message",
    [
        ("all", "'all' is not flag=value; valid: auto, none, flag=value"),
        ("", "'' is not flag=value"),
        ("xla_a=1,,xla_b=2", "'' is not flag=value"),
        ("xla_a=", "'xla_a=' is not flag=value"),
        ("xla a=1", "'xla a=1' is not flag=value"),
        ("xla_a=1,xla_a=2", "xla_a is given twice"),
    ],
)
def test_flags_of_another_form_are_refused(text, message):
    outcome = run_plan("v5e-1", **small(xla_flags=text))
    assert outcome.code == 2 and message in outcome.error


def test_train_takes_flags_by_name(bench, tmp_path):  # noqa: F811
    keys = {"steps": 1, "xla_flags": GOOD, "mesh__devices": 1}
    seen = []
    build = program.train_program

    def spied(*args, **kwargs):
        seen.append(build(*args, **kwargs))
        return seen[-1]

    with mock.patch.object(program, "train_program", spied):
        assert bench.train(tmp_path / "run", **keys).code == 0
    assert seen[0].compiler_options == compiler_options("", GOOD)


@pytest.mark.parametrize(
    "flag, said",
    [
        ("xla_no_such_flag=1", "No such compile option: 'xla_no_such_flag'"),
        ("xla_backend_optimization_level=x", "'x' is not a valid int32 value"),
    ],
)
def test_what_the_compiler_refuses_is_one_line(flag, said, bench, tmp_path):  # noqa: F811
    keys = {"steps": 1, "xla_flags": flag, "mesh__devices": 1}
    trained = bench.train(tmp_path / "run", **keys)
    only = train_here(*bench.argv(tmp_path / "only", **keys), "--plan_only")
    for outcome in (trained, only):
        assert outcome.code == 2 and outcome.error.startswith(f"config.xla_flags={flag}: the compiler refuses it")
        assert said in outcome.error and len(outcome.err.splitlines()) == 1


def test_what_the_compiler_for_tpus_refuses_is_one_line():
    tpu_devices("v5e-1")
    for flag in ("xla_no_such_flag=1", "xla_tpu_scoped_vmem_limit_kib=x"):
        outcome = run_plan("v5e-1", **small(xla_flags=flag))
        assert outcome.code == 2 and outcome.error.startswith(f"config.xla_flags={flag}: the compiler refuses it")


# ---- Arithmetic follows the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, flags, kind, factor",
    [
        ("v5p-128", "auto", "reduce-scatter", 1),
        ("v6e-64", "auto", "reduce-scatter", 1),
        ("v5p-128", "none", "all-reduce", 2),
        ("v4-128", "auto", "all-reduce", 2),
        ("v5e-64", "auto", "all-reduce", 2),
        ("gpu:64xh200", "auto", "reduce-scatter", 1),
        ("gpu:64xh200", "none", "reduce-scatter", 1),
    ],
)
def test_gradients_are_charged_as_the_chip_sums_them(name, flags, kind, factor):
    config, cfg = with_values(load_config("stage1:8b"), {"xla_flags": flags}), PRESETS["llama3-8b"]
    mesh = {"data": 1, "fsdp": 64, "tensor": 1, "context": 1}
    sent = step_time.speed(config, cfg, topology.parse(name), mesh).collective_bytes
    each = 2 * num_params(cfg) * 63 / 64
    assert sent == {"all-gather": pytest.approx(2 * each), kind: pytest.approx(factor * each)}
