"""Planning from the command line: numbers of the compiler, arithmetic beside them, advice, wrong input."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from unittest import mock

import jax
import pytest

from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import with_values
from mmed_jax.model.config import PRESETS, num_params
from mmed_jax.planning import memory, planner, smaller_configs
from mmed_jax.training import program, setup
from tests.support.hlo_cases import tpu_devices
from tests.support.planning import LEAST_EFFORT, arithmetic_compiler, least_effort, run_plan, small
from tests.support.training import REPO, bench, train_here  # noqa: F401

GIB, MIB = 2**30, 2**20


def total(terms: list[dict], kind: str | None = None) -> float:
    return memory.total([memory.Term(**t) for t in terms], kind)


# ---- The devices here ------------------------------------------------------------------------------------------------


def test_plan_only_says_what_train_compiles(bench, tmp_path):  # noqa: F811
    """The printed memory is within 10 % of memory_analysis of the step as training calls it."""
    changes = {"steps": 2, "mesh__devices": 4}
    outcome = train_here(*bench.argv(tmp_path / "run", **changes), "--plan_only")
    assert outcome.code == 0 and not (tmp_path / "run").exists(), outcome.err
    assert re.search(r"mesh +data=1 fsdp=4 tensor=1 context=1", outcome.out)
    assert re.search(r"FLOPs +\S+ a device, 1\.\d+ x the model's", outcome.out)

    called = []
    build = program.train_program

    def spied(*args, **kwargs):
        built = build(*args, **kwargs)

        def step(state, batch, base):
            shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
            called.append((built, jax.tree.map(shape, (state, batch, base))))
            return built.train_step(state, batch, base)

        return dataclasses.replace(built, train_step=step)

    with mock.patch.object(program, "train_program", spied):
        assert bench.train(tmp_path / "run", **changes).code == 0
    built, arguments = called[0]
    assert len(called) == 2
    with jax.set_mesh(built.mesh):
        m = built.train_step.lower(*arguments).compile().memory_analysis()
    needed = m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    printed, state = re.search(r"memory +([\d.]+) MiB a chip: .*\(state ([\d.]+) MiB", outcome.out).groups()
    assert float(printed) * MIB == pytest.approx(needed, rel=0.1)
    assert float(state) * MIB == pytest.approx(m.argument_size_in_bytes, abs=0.06 * MIB)


def test_plan_only_exits_1_where_the_step_does_not_fit(bench, tmp_path):  # noqa: F811
    failure = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory. Used 2.5M of 2.0M hbm.\nmore")
    with mock.patch.object(jax.stages.Lowered, "compile", side_effect=failure):
        outcome = train_here(*bench.argv(tmp_path / "run"), "--plan_only")
    assert outcome.code == 1 and "the step does not fit on the devices here" in outcome.error
    assert "2.5 MiB of 2.0 MiB a chip: DOES NOT FIT" in outcome.out
    assert re.search(r"next +--config.remat=\w+", outcome.out)


# ---- Slices that are not here ----------------------------------------------------------------------------------------


def test_a_small_step_for_a_slice_and_the_kept_result(tmp_path):
    """Compiled once; the second call is instant and says so."""
    tpu_devices()
    flags = ("--price=2", "--tokens=1e6", f"--json={tmp_path}/plan.json")
    first = run_plan("v5e-4", *flags, cache=tmp_path / "kept", **small())
    assert first.code == 0, first.err
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["schema"], found["method"], found["fits"], found["cached"]) == (1, "compiled", True, False)
    assert found["settings"]["attention"] == "splash" and found["mesh"]["fsdp"] == 4
    # Weights and two moments a quarter each; norms whole; the batch: six arrays of a row of 128.
    cfg = setup.preset_config("demo", load_config("stage1").model)
    cfg = dataclasses.replace(
        cfg,
        hidden_size=128,
        intermediate_size=256,
        num_heads=1,
        num_kv_heads=1,
        head_dim=128,
        vocab_size=512,
        num_layers=2,
    )
    assert found["parameters"] == num_params(cfg)
    norms = 5 * 128
    # And what the attention kernel knows of its blocks.
    assert found["argument_bytes"] == pytest.approx(
        12 * ((num_params(cfg) - norms) / 4 + norms) + 6 * 128 * 4, abs=8192
    )
    assert 1.0 <= found["hlo_over_model_flops"] < 1.6
    assert 0 < found["low_s"] <= found["schedule_s"] <= found["high_s"] <= found["compute_s"] + found["ici_s"] + 1e-9
    assert found["collective_bytes"]["all-gather"] > 0
    # 17 epochs of a million tokens, as scheduled, on 4 chips at 2 an hour.
    hours = 17e6 / found["tokens_per_step"] * found["schedule_s"] / 3600
    run = re.search(r"run +17,000,000 tokens: ([\d.]+) h .*cost ([\d.]+) ", first.out)
    assert float(run[1]) == pytest.approx(hours, abs=0.006) and float(run[2]) == pytest.approx(8 * hours, abs=0.006)

    with mock.patch.object(jax.stages.Lowered, "compile", side_effect=AssertionError("compiled again")):
        second = run_plan("v5e-4", *flags, cache=tmp_path / "kept", **small())
    assert second.code == 0 and "cached" in second.out and "(at an earlier call)" in second.out
    again = json.loads((tmp_path / "plan.json").read_text())
    assert again == found | {"cached": True}


def test_what_does_not_fit_exits_1_with_a_change_that_does(tmp_path):
    """512 layers that keep everything: 29 GiB wanted of 16; the advice was compiled and fits."""
    tpu_devices()
    # Products in small tiles are less code, compiled in half the time.
    keys = small(model__num_layers=512, data__seq_len=256, batch_size=32)
    keys["xla_flags"] = "xla_tpu_scoped_vmem_limit_kib=4096"
    with least_effort():
        outcome = run_plan("v5e-1", f"--json={tmp_path}/plan.json", **keys)
    assert outcome.code == 1 and "DOES NOT FIT" in outcome.out
    assert outcome.error.startswith("stage1:demo does not fit on v5e-1: most goes to saved activations")
    found = json.loads((tmp_path / "plan.json").read_text())
    assert not found["fits"] and found["needed_bytes"] > found["capacity_bytes"] and "exceeds" in found["failure"]
    assert total(found["terms"]) == pytest.approx(found["needed_bytes"], rel=0.2)
    advice = found["advice"]
    assert advice["changes"] == {"remat": "minimal_ctx"} and advice["checked"]
    assert advice["needed_bytes"] < found["capacity_bytes"]
    assert "next       --config.remat=minimal_ctx" in outcome.out
    assert advice["slice"] == "v5e-4" and "--topology=v5e-4" in outcome.out
    config = with_values(load_config("stage1"), {k.replace("__", "."): v for k, v in keys.items()} | advice["changes"])
    cfg = setup.preset_config("demo", config.model)
    estimated = memory.total(memory.memory_terms(config, cfg, found["mesh"]))
    assert estimated == pytest.approx(advice["needed_bytes"], rel=0.2)


def test_what_lies_in_host_memory_is_not_counted_to_the_chip(tmp_path):
    """remat=offload: the inputs of 64 layers, 1 GiB."""
    tpu_devices()
    keys = small(batch_size=32, data__seq_len=2048, model__num_layers=64)
    with least_effort():
        assert run_plan("v5e-1", f"--json={tmp_path}/plan.json", **keys, remat="offload").code == 0
    assert json.loads((tmp_path / "plan.json").read_text())["needed_bytes"] < GIB


@pytest.mark.compile8b
def test_an_8b_step_for_a_v5p_slice(tmp_path):
    """The command line, from the config to the table, for 64 chips: full size, the compiler's own flags.

    With the least effort memory, products and what is sent are near those of a run. The schedule is not: that its
    seconds are near the chip's peak, tests/planning/test_schedule_time.py shows of one large product.
    """
    tpu_devices()
    command = [
        sys.executable,
        "-m",
        "mmed_jax.plan",
        "--config=stage1:8b",
        "--topology=v5p-128",
        "--config.remat=minimal_ctx",
        "--config.xla_flags=none",
        "--no_cache",
        f"--json={tmp_path}/plan.json",
    ]
    env = os.environ | {f"JAX_{name.upper()}": str(value) for name, value in LEAST_EFFORT.items()}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "64 chips v5p, 4x4x4 (torus)" in done.stdout and ": fits (" in done.stdout
    found = json.loads((tmp_path / "plan.json").read_text())
    weights = 8_030_261_248
    # float32 weights and both moments over 64 chips.
    assert found["argument_bytes"] == pytest.approx(12 * weights / 64, rel=0.01)
    assert 12 * GIB < found["needed_bytes"] < 26 * GIB
    assert total(found["terms"]) == pytest.approx(found["needed_bytes"], rel=0.25)
    # Norms and the gated product are computed again, no product of weights; the loss has its logits once.
    assert 1.0 < found["hlo_over_model_flops"] < 1.1
    # Weights of the layers are gathered in bfloat16 twice, the head once: 26.6 GiB; gradients reduced at once or in
    # rings of half the bytes.
    layers = weights - 2 * 128256 * 4096
    gathered = (2 * layers + 128256 * 4096) * 2 * 63 / 64
    sent = found["collective_bytes"]
    assert sent["all-gather"] == pytest.approx(gathered, rel=0.1)
    assert 0.45 * gathered < sum(sent.values()) - sent["all-gather"] < 1.15 * gathered
    assert 0 < found["mfu"]["high"] <= found["mfu"]["schedule"] <= found["mfu"]["low"] < 0.8


def test_the_compilers_ways_to_say_that_memory_is_short():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.5G of 15.75G hbm."
    assert planner.no_room(used) == (24.5 * GIB, 15.75 * GIB)
    temporaries = "the total memory required for HLO temporaries (900.00M) exceeds available HBM (15.75G)."
    assert planner.no_room(temporaries) == (900 * MIB, 15.75 * GIB)
    assert planner.no_room("Ran out of memory in memory space vmem. Used 79.9M of 63.9M vmem.") is None


def test_a_compiler_that_fails_otherwise_is_one_line(tmp_path):
    tpu_devices()
    failure = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.\nmore")
    with mock.patch.object(jax.stages.Lowered, "compile", side_effect=failure):
        outcome = run_plan("v5e-1", **small())
    assert outcome.code == 1 and "the compiler failed" in outcome.error and "vmem" in outcome.error


# ---- Meshes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, name, keys, mesh",
    [
        ("stage1:8b", "2xv5p-128", {"batch_size": 256}, (2, 64, 1, 1)),
        ("stage2:8b", "v6e-64", {}, (1, 64, 1, 1)),
        ("pretrain:8b", "v5p-128", {}, (1, 64, 1, 1)),
        ("stage1:70b", "v5p-256", {}, (1, 128, 1, 1)),
        ("stage1:70b", "v5p-256", {"mesh__tensor": 4}, (1, 32, 4, 1)),
        ("stage2:70b", "2xv5p-128", {"mesh__data": 4, "mesh__tensor": 2}, (4, 16, 2, 1)),
        ("stage1:1b", "v5e-16", {"grad_accum": 4}, (1, 16, 1, 1)),
        ("stage2:3b", "v5p-8", {"mesh__context": 4}, (1, 1, 1, 4)),
        ("stage1", "v5e-1", {}, (1, 1, 1, 1)),
        ("stage2", "v4-8", {"mesh__devices": 4, "batch_size": 8}, (1, 4, 1, 1)),
    ],
)
def test_every_recipe_is_planned_without_its_weights(config, name, keys, mesh, tmp_path):
    with arithmetic_compiler() as compiled:
        outcome = run_plan(name, "--tokens=1e8", f"--json={tmp_path}/plan.json", config=config, **keys)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "plan.json").read_text())
    assert tuple(found["mesh"].values()) == mesh and len(compiled) == 1
    expected = "reference" if mesh[3] > 1 else "splash"
    assert found["settings"]["attention"] == expected
    assert not any("config.mesh" in n for n in found["notes"]), "train runs on the same mesh by itself"
    # Every chip holds its part of the state; the batch is not counted.
    state = total(found["terms"], "state")
    assert state == pytest.approx(12 * found["parameters"] / (mesh[1] * mesh[2] * mesh[3]))


def test_memory_by_arithmetic_follows_the_settings():
    config, cfg = load_config("stage1:8b"), PRESETS["llama3-8b"]
    mesh = {"data": 1, "fsdp": 64, "tensor": 1, "context": 1}

    def needed(**changes: object) -> float:
        new = with_values(config, {k.replace("__", "."): v for k, v in changes.items()})
        return memory.total(memory.memory_terms(new, cfg, mesh))

    by_policy = [needed(remat=p) for p in ("none", "minimal_ctx", "minimal", "qkv", "full")]
    assert by_policy == sorted(by_policy, reverse=True) and len(set(by_policy)) == 5
    assert needed(grad_accum=2) < needed()
    assert needed(optim__mu_dtype="bfloat16") == pytest.approx(needed() - 2 * num_params(cfg) / 64)
    assert needed(optim__name="adafactor") < needed() - 7 * num_params(cfg) / 64
    assert needed(loss_chunk=512) < needed()
    assert needed(data__seq_len=8192) < needed(data__seq_len=8192, attention="reference")
    # All advice on the same mesh needs less than what it starts from.
    large = {"remat": "none", "loss_chunk": 4096}
    for change in smaller_configs.smaller(with_values(config, large), cfg, mesh, "gpu"):
        assert change.mesh != mesh or needed(**(large | change.changes)) < needed(**large), change.changes


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def test_gpus_by_arithmetic(tmp_path):
    outcome = run_plan("gpu:8xh100-80g", "--tokens=1e9", f"--json={tmp_path}/plan.json", config="stage1:8b")
    assert outcome.code == 0, outcome.err
    assert "arithmetic, no compiler" in outcome.out and "as scheduled" not in outcome.out
    assert "attention triton" in outcome.out and "between nodes" in outcome.out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["method"] == "arithmetic" and found["argument_bytes"] == 12 * found["parameters"] / 8
    assert found["hlo_over_model_flops"] == pytest.approx(4 / 3)  # remat full
    # Weights gathered twice, gradients reduced once, in bfloat16 (arXiv 1910.02054).
    assert sum(found["collective_bytes"].values()) == pytest.approx(3 * 2 * found["parameters"] * 7 / 8)
    assert 0.25 < found["mfu"]["high"] < found["mfu"]["low"] < 0.65
    assert found["run_tokens"] == 3e9 and found["price"] is None


def test_more_nodes_take_less_memory_and_their_network_more_time(tmp_path):
    found = {}
    for name in ("gpu:8xh100-80g", "gpu:64xh100-80g"):
        assert run_plan(name, f"--json={tmp_path}/plan.json", config="stage1:8b").code == 0
        found[name] = json.loads((tmp_path / "plan.json").read_text())
    one, eight = found.values()
    assert eight["needed_bytes"] < one["needed_bytes"]
    # Eight network cards of a node carry what its links carry within: 400 against 405 GB/s, both at what they reach.
    assert one["ici_s"] < eight["ici_s"] < 1.3 * one["ici_s"]


def test_a_gpu_without_room_gets_advice():
    outcome = run_plan("gpu:2xh100-80g", config="stage1:8b")
    assert outcome.code == 1 and "by arithmetic)" in outcome.out and "a larger slice: --topology=gpu:4x" in outcome.out
    nothing = run_plan("gpu:1xh200", config="stage1:70b")
    assert "nothing that was tried fits on this slice: remat, loss_chunk" in nothing.out and "adafactor" in nothing.out


# ---- Wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, flags, keys, message",
    [
        ("v5p-127", (), {}, "nearest: v5p-64, v5p-128"),
        ("v5e-4", ("--output=found.py",), {}, "--output goes with --search"),
        ("v5e-4", ("--batches=8",), {}, "--batches goes with --search"),
        ("v5e-4", ("--search", "--batches=8,x"), {}, "--batches=8,x: whole numbers"),
        ("v5e-4", ("--search", "--output=found.json"), {}, "must end with .py"),
        ("v5e-4", ("--search", "--output=missing/found.py"), {}, "there is no folder"),
        ("v5e-4", ("--search", "--max_compiles=0"), {}, "at least 1"),
        ("v5e-4", ("--price=-1",), {}, "--price=-1.0: must be a number of at least 0"),
        ("v5e-4", ("--price=nan",), {}, "--price=nan: must be"),
        ("v5e-4", ("--price=much",), {}, "invalid float value: 'much'"),
        ("v5e-4", ("--json=missing/plan.json",), {}, "there is no folder"),
        ("v5e-4", ("--json=.",), {}, "is a folder"),
        ("v5e-4", (), {"mesh__fsdp": 3}, "asks for 3 devices but there are 4"),
        ("v5e-4", (), {"batch_size": 6}, "a micro-batch of 6 rows does not divide"),
        ("v5e-4", (), {"mesh__devices": 1}, "mesh.devices=1 but v5e-4 has 4 chips"),
        ("2xv5e-4", (), {"mesh__data": 3, "mesh__fsdp": 1}, "asks for 3 devices but there are 8"),
        ("v5e-4", (), {"data__seq_len": 8192}, "longer than the model's max_position_embeddings=4096"),
        ("v5e-4", (), {"attention": "triton"}, "a GPU kernel and this is a TPU"),
        ("gpu:8xh200", (), {"attention": "splash", "batch_size": 8}, "a TPU kernel and this is a GPU"),
    ],
)
def test_wrong_input_is_one_line(name, flags, keys, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with arithmetic_compiler() as compiled:
        outcome = run_plan(name, *flags, **small(**keys))
    assert outcome.code == 2 and message in outcome.error and not compiled


def test_the_topology_must_be_named():
    outcome = run_plan("", config="stage1:8b")
    assert outcome.code == 2 and "--topology is missing" in outcome.error and "v5" in outcome.error
