"""Strict configuration: every mistake is one line that names the key, before any device is touched."""

import json
import subprocess
import sys

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.config.overrides import parse_args
from mmed_jax.config.recipes import load_config
from mmed_jax.config.resume import training_keys
from mmed_jax.config.values import batch_rows, config_hash, flatten, to_json, with_grad_accum, with_values

DEMO = ["--config=stage1"]
LORA = [*DEMO, "--config.lora.rank=4"]
VARIANTS = (
    "demo",
    "demo-lora",
    *(f"{size}{kind}" for size in ("1b", "3b", "8b", "70b") for kind in ("", "-lora", "-qlora")),
)


@pytest.mark.parametrize("stage", ["pretrain", "stage1", "stage2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_shipped_variant_is_valid_and_states_its_run(stage, variant):
    config, _ = parse_args([f"--config={stage}:{variant}"])
    assert (config.name, config.variant) == (stage, variant)
    assert config.run_dir == f"runs/{stage}-{variant}"
    assert config.data.kind == {"pretrain": "document", "stage1": "instruction", "stage2": "mcq"}[stage]
    assert batch_rows(config) > 0
    json.loads(to_json(config))


def test_variants_with_adapters_say_what_they_are():
    config, _ = parse_args(["--config=stage2:8b-qlora"])
    assert (config.lora.rank, config.lora.alpha, config.lora.base) == (16, 32.0, "nf4")
    assert config.init_from == "runs/stage1-8b-qlora" and config.remat == "minimal_ctx"
    assert config.optim.lr == pytest.approx(10 * parse_args(["--config=stage2:8b"])[0].optim.lr)
    paper, _ = parse_args(["--config=stage2:8b-lora-paper"])
    published = {"rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": ("q", "v"), "base": "compute"}
    assert {k: paper.lora[k] for k in published} == published
    assert (paper.batch_size, paper.epochs, paper.optim.lr) == (128, 3.0, 2e-5)


def test_continued_pretraining_has_the_published_settings():
    config, _ = parse_args(["--config=pretrain:8b"])
    optim = {k: config.optim[k] for k in ("lr", "schedule", "warmup_ratio", "weight_decay", "clip_norm")}
    assert optim == {"lr": 2e-5, "schedule": "cosine", "warmup_ratio": 0.01, "weight_decay": 0.01, "clip_norm": 1.0}
    assert config.steps * config.batch_size * config.data.seq_len == 15_000 * 512 * 2048
    assert config.batch_size // config.grad_accum == parse_args(["--config=stage1:8b"])[0].batch_size
    adapter, _ = parse_args(["--config=pretrain:8b-lora"])
    assert (adapter.lora.rank, adapter.lora.alpha, adapter.lora.base) == (64, 128.0, "compute")


def test_stage_two_takes_the_weights_of_stage_one_and_big_models_refuse_a_cpu():
    assert parse_args(["--config=stage2:8b"])[0].init_from == "runs/stage1-8b"
    assert parse_args(["--config=stage1:8b"])[0].platform == "accelerator"
    assert parse_args(["--config=stage1"])[0].platform == "any"


def test_overrides_take_the_type_of_the_default():
    config, flags = parse_args(
        [
            *DEMO,
            "--config.optim.lr=3e-4",
            "--config.batch_size",
            "16",
            "--config.data.languages=zh,en",
            "--config.data.packing=false",
            "--config.data.language_weights=zh=2,en=0.5",
            "--rows=3",
        ],
        extra={"rows": (8, "rows to show"), "color": (False, "a switch")},
    )
    assert config.optim.lr == 3e-4 and config.batch_size == 16
    assert tuple(config.data.languages) == ("zh", "en") and config.data.packing is False
    assert flatten(config)["data.language_weights"] == {"zh": 2.0, "en": 0.5}
    assert flags.rows == 3 and flags.color is False


def test_a_config_is_also_a_path(tmp_path):
    path = tmp_path / "mine.py"
    body = "  c = stage1.get_config()\n  c.seed = 7\n  return c\n"
    path.write_text("from configs import stage1\n\ndef get_config():\n" + body)
    assert load_config(str(path)).seed == 7


GIVEN = "c = stage1.get_config()\n    "
CONFIG_FILES = {
    "misspelt key": (GIVEN + "c.optim.learning_rate = 1.0\n    return c", ["optim.learning_rate: no such key"]),
    "wrong type": (GIVEN + "c.batch_size = 'many'\n    return c", ["line 5: TypeError", "batch_size", "many"]),
    "text for a list": (GIVEN + "c.data.train = 'a.jsonl'\n    return c", ["train", "a.jsonl"]),
    "nothing returned": ("stage1.get_config()", ["get_config", "NoneType"]),
    "broken code": ("return stage1.get_config(", ["line 4", "SyntaxError"]),
    "removed key": (GIVEN + "del c.optim.lr\n    return c", ["optim.lr", "missing"]),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_mistake_in_a_config_file_is_one_line_too(tmp_path, name):
    body, words = CONFIG_FILES[name]
    path = tmp_path / "mine.py"
    path.write_text(f"from configs import stage1\n\ndef get_config(variant=''):\n    {body}\n")
    with pytest.raises(UserError) as e:
        parse_args([f"--config={path}"])
    message = " ".join(str(e.value).split())
    assert message.startswith(f"--config={path}: ")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ["base", "hardware"])
def test_the_parts_of_configs_are_no_recipes(name):
    with pytest.raises(UserError, match="no get_config.*pretrain, stage1, stage2"):
        load_config(name)


def test_a_variant_for_a_config_file_without_variants(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from configs import stage1\n\ndef get_config():\n    return stage1.get_config()\n")
    with pytest.raises(UserError, match="mine.py:8b: mine.py has no variants"):
        load_config(f"{path}:8b")


def test_parts_of_a_batch_follow_from_the_devices():
    """The fewest parts that leave a device at most micro_rows rows and divide its rows."""
    config = with_values(load_config("stage1:8b-lora"), {"batch_size": 96})

    def parts(groups, **values):
        return with_grad_accum(with_values(config, values), groups).grad_accum

    assert [parts(n) for n in (1, 4, 8, 32, 96)] == [96, 24, 12, 3, 1]
    assert [parts(4, micro_rows=n) for n in (5, 6, 12, 100)] == [6, 4, 2, 1]
    assert parts(4, grad_accum=3) == 3
    assert parts(7) == 1 and parts(192) == 1  # which check_divisible then refuses, naming what divides


def test_hash_follows_every_value():
    config = load_config("stage1").to_dict()
    changed = load_config("stage1").to_dict()
    changed["optim"]["b2"] = 0.96
    assert config_hash(config) == config_hash(load_config("stage1").to_dict()) != config_hash(changed)


MISTAKES = {
    "unknown config": (["--config=stage3"], ["stage3", "did you mean 'stage"]),
    "unknown variant": (["--config=stage1:7b"], ["7b", "did you mean"]),
    "missing config": ([], ["--config"]),
    "unknown key": ([*DEMO, "--config.optim.learning_rate=1"], ["optim.learning_rate", "did you mean"]),
    "misplaced key": ([*DEMO, "--config.lr=1"], ["config.lr", "optim.lr"]),
    "group": ([*DEMO, "--config.optim=1"], ["group of keys"]),
    "unknown flag": ([*DEMO, "--confg=2"], ["--confg", "did you mean '--config'?"]),
    "no value": ([*DEMO, "--config.seed"], ["config.seed", "needs a value"]),
    "int": ([*DEMO, "--config.batch_size=8.5"], ["batch_size=8.5", "whole number"]),
    "float": ([*DEMO, "--config.optim.lr=fast"], ["optim.lr=fast", "a number"]),
    "bool": ([*DEMO, "--config.data.packing=maybe"], ["packing=maybe", "true or false"]),
    "mapping": ([*DEMO, "--config.data.language_weights=zh"], ["language_weights=zh", "zh=2,en=0.5"]),
    "choice": ([*DEMO, "--config.optim.schedule=cosin"], ["cosin", "did you mean 'cosine'?"]),
    "mode": ([*DEMO, "--config.data.modes=direkt"], ["direkt", "direct"]),
    "negative": ([*DEMO, "--config.optim.weight_decay=-1"], ["weight_decay", "negative"]),
    "zero": ([*DEMO, "--config.micro_rows=0"], ["micro_rows", "greater than 0"]),
    "ratio": ([*DEMO, "--config.optim.b2=1.5"], ["optim.b2", "[0, 1)"]),
    "no data": ([*DEMO, "--config.data.train="], ["data.train is empty"]),
    "two lengths": ([*DEMO, "--config.steps=5"], ["config.steps", "config.epochs", "both are set"]),
    "no length": ([*DEMO, "--config.epochs=0"], ["neither is set"]),
    "packed data in a bucket": ([*DEMO, "--config.data.cache_dir=gs:/bkt"], ["data.cache_dir=gs:/bkt", "two slashes"]),
    "compiled programs in a bucket": (
        [*DEMO, "--config.compile_cache=gs://bkt/x"],
        ["compile_cache=gs://bkt/x", "path of this machine"],
    ),
    "two batches": ([*DEMO, "--config.batch_tokens=4096"], ["batch_size", "batch_tokens", "both are set"]),
    "batch tokens": ([*DEMO, "--config.batch_size=0", "--config.batch_tokens=1000"], ["multiple of data.seq_len"]),
    "accumulation": ([*DEMO, "--config.grad_accum=3"], ["does not divide by grad_accum=3"]),
    "two warm-ups": ([*DEMO, "--config.optim.warmup_steps=5"], ["warmup_steps", "warmup_ratio"]),
    "infinite": ([*DEMO, "--config.optim.lr=inf"], ["optim.lr=inf", "finite"]),
    "endless": ([*DEMO, "--config.epochs=inf"], ["epochs=inf", "finite"]),
    "replay of records": (
        [*DEMO, "--config.data.replay=a,b"],
        ["data.replay=a,b", "read only with data.kind=document"],
    ),
    "temperature of records": ([*DEMO, "--config.data.temperature=2"], ["data.temperature=2.0", "this is instruction"]),
    "documents with a system message": (
        ["--config=pretrain", "--config.data.system_prompt=Be brief."],
        ["data.system_prompt=Be brief.", "not read with data.kind=document"],
    ),
    "replay without a share": (
        ["--config=pretrain", "--config.data.replay=a", "--config.data.replay_share=0"],
        ["data.replay_share=0", "nothing of data.replay"],
    ),
    "all replay": (["--config=pretrain", "--config.data.replay_share=1"], ["data.replay_share=1.0", "[0, 1)"]),
    "cold": (["--config=pretrain", "--config.data.temperature=0"], ["data.temperature=0.0", "greater than 0"]),
    "negative devices": ([*DEMO, "--config.mesh.devices=-1"], ["mesh.devices=-1", "negative"]),
    "no time": ([*DEMO, "--config.distributed.timeout_seconds=0"], ["timeout_seconds=0", "greater than 0"]),
    # jax would take the lower 32 bits: the weights of seed 0.
    "seed": ([*DEMO, "--config.seed=4294967296"], ["config.seed=4294967296", "4294967295"]),
    "mode twice": ([*DEMO, "--config.data.modes=direct,direct"], ["data.modes", "'direct' is named twice"]),
    "rank": ([*DEMO, "--config.lora.rank=-1"], ["lora.rank=-1", "negative"]),
    "dropout": ([*LORA, "--config.lora.dropout=1"], ["lora.dropout=1.0", "[0, 1)"]),
    "target": ([*LORA, "--config.lora.targets=q_proj,v"], ["'q_proj'", "valid: q, k, v, o, gate, up, down"]),
    "target twice": ([*LORA, "--config.lora.targets=q,q"], ["lora.targets", "'q' is named twice"]),
    "no target": ([*LORA, "--config.lora.targets="], ["lora.targets is empty", "q,v"]),
    "layer": ([*LORA, "--config.lora.layers=0,one"], ["lora.layers: 'one'", "for example 0,1,2"]),
    "layer twice": ([*LORA, "--config.lora.layers=0,1,0"], ["lora.layers: 0 is named twice"]),
    "head in layers": (
        [*LORA, "--config.lora.targets=q,head", "--config.lora.layers=0"],
        ["lora.layers=0", "'head' of targets is in no layer"],
    ),
    "pattern": ([*LORA, "--config.lora.rank_pattern=dwn=4"], ["rank_pattern: 'dwn'", "did you mean 'down'?"]),
    "pattern in a layer": (
        [*LORA, "--config.lora.alpha_pattern=layers.1.gte=4"],
        ["alpha_pattern: 'layers.1.gte'", "did you mean 'layers.1.gate'?"],
    ),
    "pattern of no target": (
        [*LORA, "--config.lora.targets=q,v", "--config.lora.rank_pattern=down=4"],
        ["rank_pattern: 'down' gets no adapter", "lora.targets is q,v"],
    ),
    "pattern of no layer": (
        [*LORA, "--config.lora.layers=0,1", "--config.lora.rank_pattern=layers.2.q=4"],
        ["rank_pattern: 'layers.2.q' gets no adapter", "lora.layers is 0,1"],
    ),
    "half a rank": ([*LORA, "--config.lora.rank_pattern=q=1.5"], ["rank_pattern: q=1.5", "whole number"]),
    "no rank": ([*LORA, "--config.lora.rank_pattern=q=0"], ["rank_pattern: q=0.0", "greater than 0"]),
    "alpha without effect": ([*LORA, "--config.lora.alpha_pattern=q=0"], ["alpha_pattern: q=0.0", "greater than 0"]),
    "no learning rate of B": ([*LORA, "--config.lora.b_lr_ratio=0"], ["lora.b_lr_ratio=0.0", "greater than 0"]),
    "unused adapter": ([*DEMO, "--config.lora.targets=q,v"], ["lora.targets=q,v", "lora.rank is 0", "lora.rank=16"]),
    "unused base": ([*DEMO, "--config.lora.base=nf4"], ["lora.base=nf4", "lora.rank is 0"]),
    "base": ([*LORA, "--config.lora.base=int4"], ["lora.base='int4'", "did you mean 'int8'?"]),
    "decoded weights kept": ([*LORA, "--config.lora.base=nf4"], ["lora.base=nf4", "remat=none", "--config.remat=full"]),
    "bfloat16 adapter": ([*LORA, "--config.param_dtype=bfloat16"], ["param_dtype=bfloat16", "adapter, in float32"]),
    "preset of a given model": (
        ["--config=stage1:8b", "--config.model.preset=llama3-70b"],
        ["init_from brings its own"],
    ),
    "sizes of a given model": (
        ["--config=stage1:8b", "--config.model.num_layers=2"],
        ["init_from brings its own"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_clear_line(name):
    argv, words = MISTAKES[name]
    with pytest.raises(UserError) as e:
        parse_args(argv)
    message = str(e.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_alpha_is_written_out_and_names_with_dots_stay_whole(capsys):
    argv = [*LORA, "--config.lora.layers=1,0", "--config.lora.rank_pattern=down=64,layers.1.q=8"]
    config, _ = parse_args(argv)
    said = json.loads(to_json(config))["lora"]
    assert said["alpha"] == 8.0 and said["layers"] == [1, 0]
    assert said["rank_pattern"] == {"down": 64.0, "layers.1.q": 8.0} == flatten(config)["lora.rank_pattern"]
    assert flatten(with_values(config, {"lora.rank": 8}))["lora.rank_pattern"] == said["rank_pattern"]
    assert training_keys(config)["lora.rank_pattern"] == said["rank_pattern"]
    with pytest.raises(SystemExit):
        parse_args([*argv, "--print_config"])
    assert json.loads(capsys.readouterr().out)["lora"] == said
    assert parse_args([*LORA, "--config.lora.alpha=3"])[0].lora.alpha == 3.0
    assert parse_args(DEMO)[0].lora.alpha == 0.0


def test_exit_code_is_two_and_no_device_is_touched(repo):
    code = (
        "import sys; from mmed_jax.config.overrides import parse_args; from mmed_jax.common.errors import run_command\n"
        "try: run_command(lambda: parse_args(['--config=stage1', '--config.sed=1']))\n"
        "finally: print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert done.stderr.strip() == "error: --config.sed: no such key, did you mean 'seed'?"


def test_choices_named_here_are_those_of_the_model():
    from mmed_jax.config.defaults import KEYS
    from mmed_jax.model.attention import BACKENDS
    from mmed_jax.model.remat import POLICIES

    assert set(KEYS["remat"].choices) == set(POLICIES)
    assert set(KEYS["attention"].choices) == set(BACKENDS)
