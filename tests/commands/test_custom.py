"""The variants custom, custom-lora and custom-qlora: values for one's own model, from its size and the machine."""

import dataclasses
import json

import pytest

from configs import custom, hardware, stage1
from mmed_jax import plan, train
from mmed_jax.common.errors import UserError
from mmed_jax.config.checks import validate
from mmed_jax.config.defaults import KEYS, base
from mmed_jax.config.overrides import parse_args
from mmed_jax.config.resume import training_differences, training_keys
from mmed_jax.config.values import flatten
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.save import save_pretrained
from mmed_jax.model.config import PRESETS, LlamaConfig, num_params
from mmed_jax.parallel import devices
from mmed_jax.training import setup
from tests.support.hf_folders import random_params
from tests.support.training import bench, call, losses, train_here  # noqa: F401

STAGES, VARIANTS = ("pretrain", "stage1", "stage2"), ("custom", "custom-lora", "custom-qlora")
CFG = LlamaConfig(
    vocab_size=400,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=192,
)


@pytest.fixture(scope="module")
def folder(bench, tmp_path_factory):  # noqa: F811
    """A Hugging Face folder of a small model with 192 positions."""
    tok = setup.load_tokenizer(bench.tokenizer)
    cfg = dataclasses.replace(CFG, bos_token_id=tok.bos_token_id, eos_token_id=setup.stop_ids(tok), pad_token_id=None)
    return save_pretrained(tmp_path_factory.mktemp("custom") / "model", random_params(cfg), cfg, tok, dtype="float32")


def parse(stage, variant, folder, *more, **keys):
    return parse_args([f"--config={stage}:{variant}", f"--config.init_from={folder}", *more], **keys)


@pytest.mark.parametrize("stage", STAGES)
def test_rates_are_those_of_the_recipes_and_between_them(stage):
    rates = custom.RATES[stage]
    sizes = {size: num_params(PRESETS[hardware.PRESETS[size]]) for size in stage1.SIZES}
    for size, params in sizes.items():
        shipped = parse_args([f"--config={stage}:{size}"])[0].optim.lr
        assert custom.learning_rate(rates, params)[0] == shipped
        assert custom.BATCH[stage] == parse_args([f"--config={stage}:{size}"])[0].batch_size
    grid = [int(1e5 * 1.3**n) for n in range(60)]
    found = [custom.learning_rate(rates, params)[0] for params in grid]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(5 * rates["1b"]) and found[-1] == rates["70b"]
    assert custom.learning_rate(rates, sizes["1b"] // 4)[0] == pytest.approx(2 * rates["1b"], rel=0.05)
    middle = custom.learning_rate(rates, int((sizes["8b"] * sizes["70b"]) ** 0.5))[0]
    assert middle == pytest.approx((rates["8b"] * rates["70b"]) ** 0.5, rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_has_values_for_ones_own_model(stage, variant, folder):
    """Valid on both kinds of machine; each value that was chosen is said once, with what it was chosen from."""
    for accelerator in (True, False):
        config, flags = parse(stage, variant, folder, accelerator=accelerator)
        factor = 1 if variant == "custom" else 10
        assert config.optim.lr == pytest.approx(5 * custom.RATES[stage]["1b"] * factor)
        assert config.data.seq_len == 192  # the model has no more positions
        assert config.batch_size == (custom.BATCH[stage] if accelerator else 16)
        assert config.compute_dtype == ("bfloat16" if accelerator else "float32")
        assert config.platform == ("accelerator" if accelerator else "any") and config.grad_accum == 0
        assert bool(config.lora.rank) == (variant != "custom")
        assert config.run_dir == f"runs/{stage}-{variant}"
        named = [line.partition("=")[0] for line in flags.chosen]
        assert len(set(named)) == len(named) >= 8 and all(", chosen from " in line for line in flags.chosen)
        shipped = parse_args([f"--config={stage}:1b"])[0] if accelerator else base()  # evaluations take long on a CPU
        for evaluations in (config.eval_answers, shipped.eval_answers), (config.eval_questions, shipped.eval_questions):
            assert evaluations[0] == evaluations[1]
        assert config.checkpoint.best_metric == shipped.checkpoint.best_metric
        assert f"optim.lr={config.optim.lr:g}, chosen from {num_params(CFG):,} parameters" in flags.chosen[0]


def test_what_the_command_line_says_wins(folder):
    given = ["--config.optim.lr=3e-6", "--config.batch_tokens=1536", "--config.remat=full", "--config.micro_rows=3"]
    config, flags = parse("stage1", "custom", folder, *given, accelerator=True)
    assert (config.optim.lr, config.batch_size, config.batch_tokens) == (3e-6, 0, 1536)
    assert (config.remat, config.micro_rows) == ("full", 3)
    named = [line.partition("=")[0] for line in flags.chosen]
    assert named == ["data.seq_len", "compute_dtype", "grad_accum", "platform", "eval_answers"]


def test_a_recipe_made_from_it_keeps_whatever_it_sets(folder, tmp_path):
    """Also what the chosen values are elsewhere, or those of base(): settings that a search found train as planned."""
    path = tmp_path / "mine.py"
    found = {"grad_accum": 1, "micro_rows": 1, "remat": "full", "eval_answers": 0, "platform": "any"}
    path.write_text(
        "from mmed_jax.config import load_config\n\ndef get_config():\n    c = load_config('stage2:custom-lora')\n"
        f"    c.unlock()\n    c.init_from = {str(folder)!r}\n"
        + "".join(f"    c.{key} = {value!r}\n" for key, value in found.items())
        + "    return c\n"
    )
    config, flags = parse_args([f"--config={path}"], accelerator=True)
    assert {key: config[key] for key in found} == found
    assert not {line.partition("=")[0] for line in flags.chosen} & found.keys()
    path.write_text(
        "from mmed_jax.config import load_config\n\ndef get_config():\n    c = load_config('stage1:custom')\n"
        f"    c.unlock()\n    c.init_from = {str(folder)!r}\n    c.optim.lr = 7e-6\n    c.remat = 'qkv'\n    return c\n"
    )
    config, _ = parse_args([f"--config={path}"], accelerator=True)
    assert (config.optim.lr, config.remat, config.batch_size, config.data.seq_len) == (7e-6, "qkv", 128, 192)
    path.write_text(path.read_text().replace("c.unlock()", "c.unlock(); c.name = 'mine'"))
    with pytest.raises(UserError, match="config.name=mine: has no variant custom; valid: pretrain, stage1, stage2"):
        parse_args([f"--config={path}"])


@pytest.mark.parametrize(
    ("flags", "questions", "metric"),
    [
        ([], 500, "validation/accuracy"),
        (["--config.eval_questions=0"], 0, "validation/loss"),
        (["--config.eval_questions=40"], 40, "validation/accuracy"),
        (["--config.data.kind=instruction"], 0, "validation/loss"),  # no question in it has options
        (["--config.checkpoint.best_metric=validation/loss"], 500, "validation/loss"),
    ],
)
def test_the_best_is_chosen_by_what_is_measured(folder, flags, questions, metric):
    config, _ = parse("stage2", "custom", folder, *flags, accelerator=True)
    assert (config.eval_questions, config.checkpoint.best_metric) == (questions, metric)


@pytest.mark.parametrize("main", [train.main, plan.main])
def test_without_a_model_it_is_one_line(main, tmp_path):
    flags = ["--topology=gpu:1xh100-80g"] if main is plan.main else []
    outcome = call(main, "--config=stage1:custom-lora", *flags)
    assert outcome.code == 2 and outcome.error.startswith("--config=stage1:custom-lora: name your model, --config.init")
    outcome = call(main, "--config=stage1:custom", f"--config.init_from={tmp_path}/none", *flags)
    assert outcome.code == 2 and "config.init_from" in outcome.error and "does not exist" in outcome.error


@pytest.mark.parametrize(
    ("platforms", "files", "attached"),
    [("", [], False), ("", ["/dev/nvidia0"], True), ("cpu", ["/dev/nvidia0"], False), ("tpu,cpu", [], True)],
)
def test_an_accelerator_is_seen_without_touching_it(monkeypatch, platforms, files, attached):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(devices.glob, "glob", lambda pattern: [f for f in files if "nvidia" in pattern])
    assert devices.accelerator_attached() is attached


def test_plan_plans_for_an_accelerator_and_says_what_was_chosen(folder, tmp_path):
    out = tmp_path / "plan.json"
    keys = [f"--config.init_from={folder}", f"--config.data.train={tmp_path}/none.jsonl"]
    outcome = call(plan.main, "--config=stage1:custom", "--topology=gpu:1xh100-80g", f"--json={out}", *keys)
    assert outcome.code == 0, outcome.err
    assert (
        "chosen     batch_size=128, chosen from" in outcome.out and "chosen     compute_dtype=bfloat16" in outcome.out
    )
    settings = json.loads(out.read_text())["settings"]
    assert (settings["batch_size"], settings["data.seq_len"], settings["grad_accum"]) == (128, 192, 8)


def test_a_run_goes_on_elsewhere_with_what_it_began_with(bench, folder, tmp_path, monkeypatch):  # noqa: F811
    """Chosen for a CPU; continued where an accelerator would choose otherwise: the same batch, rate and precision."""
    run = tmp_path / "run"

    def go(*more):
        keys = {"init_from": folder, "data.train": bench.records, "run_dir": run, "steps": 2, "epochs": 0}
        keys |= {"data.cache_dir": tmp_path / "packed", "tensorboard": False, "mesh.devices": 1}
        return train_here("--config=stage1:custom", *(f"--config.{k}={v}" for k, v in keys.items()), *more)

    outcome = go("--config.batch_size=2")
    assert outcome.code == 0, outcome.err
    assert "chosen     optim.lr=0.0001, chosen from" in outcome.out
    assert "\n           data.seq_len=192, chosen from 192 positions" in outcome.out
    assert len(losses(run)) == 2 and "--config=stage2:custom" in outcome.out
    began = json.loads((run / "config.json").read_text())
    assert (began["optim"]["lr"], began["compute_dtype"], began["batch_size"]) == (1e-4, "float32", 2)

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    outcome = go("--config.platform=any")
    assert outcome.code == 0 and "step 2 of 2 was reached before" in outcome.out, outcome.err
    for line in ("batch_size=2", "compute_dtype=float32", "optim.lr=0.0001"):
        assert f"{line}, chosen from what the run in {run} began with" in outcome.out
    assert training_keys(json.loads((run / "config.json").read_text())) == training_keys(began)

    # One that began with a batch in tokens is not continued with one in rows.
    in_tokens = {**began, "batch_size": 0, "batch_tokens": 384}
    (run / "config.json").write_text(json.dumps(in_tokens))
    keys = [f"--config.init_from={folder}", f"--config.run_dir={run}"]
    config, _ = parse_args(["--config=stage1:custom", *keys], accelerator=False)
    assert (config.batch_size, config.batch_tokens) == (16, 0)
    differing = [key for key, *_ in training_differences(in_tokens, config)]
    assert {"batch_size", "batch_tokens"} <= set(differing)


@pytest.mark.parametrize("variant", ["demo", "demo-lora"])
def test_the_demos_rate_is_for_demos_only(folder, tmp_path, variant):
    cfg = dataclasses.replace(CFG, hidden_size=256, num_heads=16, intermediate_size=1536)
    tok = open_model(folder).tokenizer
    large = save_pretrained(tmp_path / "large", random_params(cfg), cfg, tok, dtype="float32")
    argv = [f"--config=stage1:{variant}", f"--config.init_from={large}"]
    outcome = call(train.main, *argv)
    custom_variant = variant.replace("demo", "custom")
    assert outcome.code == 2 and f"--config=stage1:{custom_variant} chooses one by the size" in outcome.error
    assert f"{num_params(cfg):,} parameters" in outcome.error
    named, flags = parse_args([*argv, "--config.optim.lr=1e-5"])
    setup.check_rate(named, open_model(large), flags.given)
    config, flags = parse_args([f"--config=stage1:{variant}", f"--config.init_from={folder}"])
    setup.check_rate(config, open_model(folder), flags.given)  # as large as the demo's own, say of a stage before


def test_nothing_trains_with_what_was_left_open(folder):
    """Each value that is left open is one that no run can have."""
    for stage in STAGES:
        config, _ = parse(stage, "custom", folder, complete=False)
        with pytest.raises(UserError, match="config.platform="):
            validate(config)
        values = flatten(config)
        for choice in custom.choices(config, CFG, True):
            if choice.key != "batch_size":  # 0 where batch_tokens is set, and exactly one must be
                with pytest.raises(UserError, match=f"config.{choice.key}="):
                    KEYS[choice.key].check(choice.key, values[choice.key])
