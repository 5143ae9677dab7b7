"""Plans of adapters and quantised frozen weights: memory against the compiler, FLOPs, transfers, advice, bad input."""

import json
import re

import jax
import pytest

from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import with_values
from mmed_jax.model.config import PRESETS, num_params
from mmed_jax.model.lora import lora_spec
from mmed_jax.parallel import sharding
from mmed_jax.planning import advice, host_memory, memory, planner, search, smaller_configs, step_time, topology
from mmed_jax.training import flops, program
from tests.support.hlo_cases import tpu_devices
from tests.support.planning import arithmetic_compiler, least_effort, run_plan, small

GIB = 2**30
CFG = PRESETS["llama3-8b"]
ONE = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
# Numbers of an adapter of rank 16 on all linear modules of a layer of the 8B: rank x (inputs + outputs).
LAYER_8B = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))


def recipe(name, **keys):
    """A variant that takes its batch in one part, and with other values."""
    return with_values(load_config(name), {"grad_accum": 1} | {k.replace("__", "."): v for k, v in keys.items()})


def sizes(config, cfg=CFG, mesh=ONE):
    return {t.name: t.bytes for t in memory.memory_terms(config, cfg, mesh)}


def planned(tmp_path, name, *flags, **keys):
    with arithmetic_compiler() as compiled:
        outcome = run_plan(name, *flags, f"--json={tmp_path}/plan.json", **keys)
    file = tmp_path / "plan.json"
    return outcome, json.loads(file.read_text()) if file.is_file() else None, compiled


# ---- Memory ----------------------------------------------------------------------------------------------------------


def test_only_the_adapter_has_a_gradient_and_moments():
    config = recipe("stage1:8b-lora")
    found = sizes(config)
    numbers = 32 * LAYER_8B
    assert numbers == 41_943_040
    assert found["frozen weights"] == 2 * num_params(CFG)
    assert {found[n] for n in ("adapter", "gradients", "first moment", "second moment")} == {4.0 * numbers}
    # The head is multiplied with as it is: no cast of it and no gradient is held.
    assert found["output head"] == 0 and found["gathered layers"] == 0
    assert "weights" not in found and "output head and its gradient" not in found
    layers = num_params(CFG) - 2 * 128256 * 4096 - 4096
    norms = 2 * 32 * 4096
    by_kind = {k: sizes(with_values(config, {"lora.base": k}))["frozen weights"] for k in ("compute", "int8", "nf4")}
    rows = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    assert by_kind["int8"] == by_kind["compute"] - (layers - norms) + 4 * rows
    # Half a byte, and a bfloat16 for each block of 64.
    assert by_kind["nf4"] == by_kind["compute"] - (layers - norms) * (2 - 0.5 - 2 / 64)
    assert by_kind["nf4"] / GIB == pytest.approx(5.41, abs=0.01)


def test_parts_of_a_mesh():
    """Weights and codes in parts; of the adapter what has the hidden size in it. Codes are gathered."""
    config, mesh = recipe("stage1:8b-qlora"), {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    found, alone = sizes(config, mesh=mesh), sizes(config)
    norms = 2 * 4096 * (2 * 32 + 1)
    assert found["frozen weights"] == (alone["frozen weights"] - norms) / 8 + norms
    # A of q, k, v, gate and up; B of o and down.
    split = 16 * (5 * 4096 + 2 * 4096)
    assert found["adapter"] == 4 * 32 * (split / 8 + LAYER_8B - split)
    compute = sizes(with_values(config, {"lora.base": "compute"}), mesh=mesh)
    decoded = compute["gathered layers"] / 2
    assert found["gathered layers"] == pytest.approx(decoded + 2 * decoded * 4.25 / 16, rel=0.01)


def test_arithmetic_agrees_with_the_compiler(tmp_path):
    """State to the byte but for how small arrays are laid out; all of it within what full fine-tuning is held to."""
    tpu_devices()
    keys = small(
        model__hidden_size=512,
        model__intermediate_size=1536,
        model__num_heads=4,
        model__num_layers=48,
        data__seq_len=512,
        batch_size=8,
        remat="minimal_ctx",
        lora__rank=16,
        lora__base="nf4",
    )
    with least_effort():
        outcome = run_plan("v5e-4", f"--json={tmp_path}/plan.json", **keys)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "plan.json").read_text())
    terms = [memory.Term(**t) for t in found["terms"]]
    chips = found["topology"]["chips"]
    batch = 6 * 4 * 8 * 512 / chips
    assert found["argument_bytes"] == pytest.approx(memory.total(terms, "state") + batch, rel=0.02)
    assert memory.total(terms) == pytest.approx(found["needed_bytes"], rel=0.2)
    # No second copy of what is frozen, decoded or not, and no gradient of it.
    assert found["method"] == "compiled" and found["trained_parameters"] < 0.1 * found["parameters"]
    # Nothing heavy twice and no product of a frozen weight's gradient, which would be 2N more. The attention kernel
    # computes whole blocks, not the half that is seen, and scores again for the backward pass: 7 products, not 6.
    attention = 6 * 48 * 512 * 512 * 8 * 512 / chips
    assert found["hlo_flops"] == pytest.approx(found["model_flops"] + (2 * 7 / 6 - 1) * attention, rel=0.03)
    assert "frozen in nf4, bfloat16 compute" in outcome.out


@pytest.mark.parametrize("fsdp, kind, policy", [(1, "compute", "none"), (4, "int8", "full")])
def test_arithmetic_agrees_with_the_step_compiled_here(fsdp, kind, policy):
    """State, what a step takes and FLOPs, for one device and a mesh of four: nothing frozen is there twice."""
    keys = {"lora.rank": 16, "lora.base": kind, "remat": policy, "batch_size": 2 * fsdp, "mesh.devices": fsdp}
    config, cfg = with_values(load_config("stage1:demo-lora"), keys), PRESETS["demo"]
    mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:fsdp])
    built = program.train_program(config, cfg, mesh, steps=10, attention="reference")
    found = planner.plan_devices(built, config, cfg)
    terms = [memory.Term(**t) for t in found.terms]
    batch = 6 * 4 * 2 * 256
    assert found.argument_bytes == pytest.approx(memory.total(terms, "state") + batch, rel=0.01)
    assert found.needed_bytes == pytest.approx(memory.total(terms), rel=0.2)
    # The reference attention works on all pairs, twice the causal count; remat computes the forward pass again, but for
    # what no gradient needs. A frozen weight's gradient would add 2N.
    tokens, attention = 2 * 256, 6 * cfg.num_layers * cfg.num_heads * cfg.head_dim * 256
    least = found.model_flops + attention * tokens
    again = (2 * flops.matmul_params(cfg) + 2 / 3 * attention) * tokens if policy == "full" else 0
    assert 0.99 * least < found.hlo_flops < 1.04 * (least + again)
    assert found.hlo_flops < found.model_flops + attention * tokens + again + 1.2 * flops.matmul_params(cfg) * tokens


def test_host_memory_of_a_run_on_cpus():
    """The frozen weights are held, and not saved."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = with_values(load_config("stage1"), {"lora.rank": 4})
    full, lora = (host_memory.estimate(c, PRESETS["demo"], mesh) for c in (load_config("stage1"), config))
    trained = 4 * sum(
        4 * (i + o) * PRESETS["demo"].num_layers
        for i, o in _linear_sizes(PRESETS["demo"])  # rank 4
    )
    weights = 4 * num_params(PRESETS["demo"])
    assert lora["state"] == weights + 3 * trained
    assert lora["a save"] == host_memory.SAVE_SHARE * 3 * trained
    assert full["state"] == 3 * weights and full["a save"] == host_memory.SAVE_SHARE * full["state"]
    assert sum(lora.values()) < sum(full.values()) - 1.9 * weights


def _linear_sizes(cfg):
    d, f, h, kv = cfg.hidden_size, cfg.intermediate_size, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    return [(d, h), (d, kv), (d, kv), (h, d), (d, f), (d, f), (f, d)]


# ---- FLOPs, seconds, transfers ---------------------------------------------------------------------------------------


def test_flops_are_those_of_the_formula(tmp_path):
    outcome, found, _ = planned(tmp_path, "gpu:1xh100-80g", config="stage1:8b-lora", grad_accum=16, remat="full")
    assert outcome.code == 0 and "x the model's (4N + causal attention + 6 x adapter)" in outcome.out
    config = load_config("stage1:8b-lora")
    per_token = 4 * flops.matmul_params(CFG) + 6 * 32 * 32 * 128 * 2048 + 6 * 41_943_040
    assert found["model_flops"] == per_token * 128 * 2048
    # Remat full computes the forward pass again, of which 2N are frozen.
    again = (6 * flops.matmul_params(CFG) + 6 * 32 * 32 * 128 * 2048 + 6 * 41_943_040) / 3
    assert found["hlo_over_model_flops"] == pytest.approx(1 + again / per_token)
    full = flops.train_flops_per_token(CFG, 2048)
    assert flops.train_flops_per_token(CFG, 2048, lora_spec(config.lora, CFG)) / full == pytest.approx(0.684, abs=0.001)


def test_nothing_of_the_frozen_weights_is_reduced():
    sent, seconds = {}, {}
    for name in ("8b", "8b-lora", "8b-qlora"):
        config = recipe(f"stage1:{name}")
        speed = step_time.speed(config, CFG, topology.parse("gpu:8xh100-80g"), {**ONE, "fsdp": 8})
        sent[name], seconds[name] = speed.collective_bytes, speed.schedule_s
    assert sent["8b-lora"]["all-gather"] == sent["8b"]["all-gather"]
    assert sent["8b-qlora"]["all-gather"] < 0.4 * sent["8b"]["all-gather"]
    assert "reduce-scatter" not in sent["8b-lora"]
    # Of the adapter, in bfloat16: twice 7/8 of it.
    assert sent["8b-lora"]["all-reduce"] == 2 * 7 / 8 * 2 * 41_943_040
    assert max(seconds["8b-lora"], seconds["8b-qlora"]) < seconds["8b"]
    # Where nothing is gathered, decoding is time on top.
    alone = [
        step_time.speed(recipe(f"stage1:{name}"), CFG, topology.parse("gpu:1xh200"), ONE).schedule_s
        for name in ("8b-lora", "8b-qlora", "8b")
    ]
    assert alone == sorted(alone)


# ---- By command line, without weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("name", ["1b-lora", "3b-lora", "8b-lora", "70b-lora", "8b-qlora", "70b-qlora"])
def test_every_variant_is_planned_without_its_weights(stage, name, tmp_path):
    outcome, found, compiled = planned(tmp_path, "v5p-16", config=f"{stage}:{name}")
    assert outcome.code == 0 and len(compiled) == 1, outcome.err
    config = load_config(f"{stage}:{name}")
    held = "nf4" if "qlora" in name else "bfloat16"
    assert f"parameters, frozen in {held}, bfloat16 compute" in outcome.out
    line = re.search(r"adapter +rank 16 on (\S+): ([\d,]+) numbers are trained, 0\.\d+% of the model's", outcome.out)
    assert line[1] == ",".join(config.lora.targets) and int(line[2].replace(",", "")) == found["trained_parameters"]
    assert re.search(r"frozen weights \(arithmetic\)", outcome.out)
    assert re.search(r"[GM]iB +adapter \(arithmetic\)", outcome.out)
    assert found["settings"]["grad_accum"] == 16 and "grad_accum 16" in outcome.out  # 128 rows, one a chip at a time
    assert found["settings"]["lora.base"] == config.lora.base and found["settings"]["lora.rank"] == 16


def test_one_gpu_and_eight_small_chips_hold_an_8b_and_a_70b(tmp_path):
    """The variants as they are, and one row a device at a time."""
    for name, config, least in (
        ("v5e-8", "stage1:8b-lora", 11),
        ("gpu:1xh100-80g", "stage1:8b-lora", 23),
        ("v5e-8", "stage1:70b-qlora", 13),
        ("gpu:1xh100-80g", "stage1:70b-qlora", 48),
    ):
        outcome, found, _ = planned(tmp_path, name, config=config)
        assert outcome.code == 0, (name, config, outcome.error)
        rows = found["topology"]["chips"]
        outcome, found, _ = planned(tmp_path, name, config=config, batch_size=rows, grad_accum=1)
        state, step = (total(found, kind) for kind in ("state", "step"))
        assert state + step < least * GIB, (name, config, (state + step) / GIB)


def total(found, kind):
    return memory.total([memory.Term(**t) for t in found["terms"]], kind)


def test_a_kept_result_is_of_its_adapter(tmp_path):
    """Another rank, base, target or layer is compiled anew, the same is not; a mapping is kept as well."""
    given = dict(lora__rank=8, lora__rank_pattern="down=4,layers.1.q=2", cache=tmp_path / "kept")
    with arithmetic_compiler() as compiled:
        others = ({"lora__rank": 4}, {"lora__base": "int8", "remat": "full"}, {"lora__targets": "q,down"})
        for changes in ({}, {}, *others, {"lora__alpha_pattern": "q=3"}, {}):
            assert run_plan("v5e-1", **small(**given | changes)).code == 0, changes
    assert len(compiled) == 5


# ---- Advice and search -----------------------------------------------------------------------------------------------


def test_advice_never_changes_what_is_trained_unasked(tmp_path):
    """Where full fine-tuning does not fit, an adapter that does is named besides, and works as it is named."""
    outcome, found, _ = planned(tmp_path, "gpu:1xh100-80g", config="stage1:8b")
    change = found["advice"]
    assert outcome.code == 1 and not any(k.startswith("lora.") for k in change["changes"])
    assert change["adapter"]["lora.rank"] == 16
    assert re.search(r"or +--config\.lora\.rank=16 .*an adapter of rank 16 is trained, not all weights", outcome.out)
    keys = {k.replace(".", "__"): v for k, v in change["adapter"].items()}
    assert planned(tmp_path, "gpu:1xh100-80g", config="stage1:8b", **keys)[0].code == 0
    # A 70B: in four bits alone.
    _, found, _ = planned(tmp_path, "gpu:1xh100-80g", config="stage1:70b")
    assert found["advice"]["changes"] == {} and found["advice"]["adapter"]["lora.base"] == "nf4"
    # What fits without is not told to be something else.
    slice_ = topology.parse("gpu:8xh200")
    config = planner.with_parts(load_config("stage1:8b-lora"), slice_)
    assert not list(smaller_configs.adapters(config, CFG, planner.mesh_sizes(config, CFG, slice_), "gpu"))


def test_frozen_weights_in_fewer_bits_are_advised_with_what_they_cost(tmp_path):
    outcome, found, _ = planned(tmp_path, "gpu:1xh100-80g", config="stage1:70b-lora", grad_accum=128)
    assert outcome.code == 1 and found["advice"]["changes"]["lora.base"] == "nf4" and not found["advice"]["adapter"]
    assert "the frozen weights are rounded to 4 bits)" in outcome.out
    keys = {k.replace(".", "__"): v for k, v in found["advice"]["changes"].items()}
    assert planned(tmp_path, "gpu:1xh100-80g", config="stage1:70b-lora", **{"grad_accum": 128} | keys)[0].code == 0
    # On a device that ran out of memory: the same, in a line.
    config, cfg = with_values(load_config("stage1:70b-lora"), {"grad_accum": 128}), PRESETS["llama3-70b"]
    line = advice.next_line(config, cfg, ONE, "gpu", 80e9)
    assert "--config.lora.base=nf4" in line and "now lora.base is compute" in line
    # All weights of a 70B on one card: nothing else is left, and what it means is said.
    line = advice.next_line(load_config("stage1:70b"), cfg, ONE, "gpu", 80e9)
    assert "--config.lora.rank=16 --config.lora.base=nf4" in line and "is trained, not all weights" in line


def test_a_search_keeps_the_adapter_and_tries_bases_that_are_named():
    config, slice_ = load_config("stage1:8b-lora"), topology.parse("v5e-8")
    plain = list(search.proposals(config, CFG, slice_))
    assert {c.config.lora.base for c in plain} == {"compute"} and {c.config.lora.rank for c in plain} == {16}
    both = list(search.proposals(config, CFG, slice_, bases=("nf4", "compute")))
    assert {c.config.lora.base for c in both} == {"compute", "nf4"}
    # Every decoded weight would be kept.
    assert not any(c.config.remat == "none" for c in both if c.config.lora.base == "nf4")
    assert any(c.config.remat == "none" for c in both if c.config.lora.base == "compute")


def test_a_searched_setting_is_a_config_of_the_same_adapter(tmp_path):
    output = tmp_path / "found.py"
    flags = ("--search", "--bases=nf4", "--max_compiles=3", f"--output={output}")
    with arithmetic_compiler() as compiled:
        outcome = run_plan("v5e-8", *flags, config="stage1:8b-lora")
    assert outcome.code == 0 and len(compiled) == 3, outcome.err
    assert {(s["lora.rank"], s["lora.dropout"]) for s in compiled} == {(16, 0.0)}
    assert load_config(str(output)).lora.rank == 16


# ---- Wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, flags, keys, message",
    [
        ("v5e-4", ("--bases=nf4",), {"lora__rank": 4}, "--bases goes with --search"),
        ("v5e-4", ("--search", "--bases=nf5"), {"lora__rank": 4}, "there is no 'nf5', did you mean 'nf4'?"),
        ("v5e-4", ("--search", "--bases=nf4"), {}, "lora.rank is 0"),
        ("v5e-4", (), {"lora__base": "nf4"}, "lora.rank is 0"),
        (
            "v5e-4",
            (),
            {"lora__rank": 4, "lora__base": "nf4", "remat": "full"},
            "by mesh.fsdp x mesh.context=4",
        ),
        ("v5e-4", (), {"lora__rank": 4, "lora__base": "int8", "remat": "none"}, "with remat=none"),
        ("v5e-4", (), {"lora__rank": 4, "lora__layers": "2"}, "there is no layer 2; the model has 0 to 1"),
        ("gpu:1xh200", (), {"lora__rank": 4, "lora__targets": "query"}, "lora.targets"),
        ("gpu:1xh200", (), {"lora__rank": 4, "lora__layers": "7"}, "there is no layer 7"),
        ("v5e-4", (), {"lora__rank": 4, "param_dtype": "bfloat16"}, "the adapter, in float32"),
    ],
)
def test_wrong_input_is_one_line(name, flags, keys, message):
    with arithmetic_compiler() as compiled:
        outcome = run_plan(name, *flags, **small(**keys))
    assert outcome.code == 2 and message in outcome.error and not compiled, outcome.error
