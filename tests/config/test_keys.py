"""A key is described in one place, mmed_jax/config/defaults.py: every list of keys is derived from it."""

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.config.defaults import KEYS, base
from mmed_jax.config.key_declaration import Key
from mmed_jax.config.recipes import recipe_names
from mmed_jax.config.resume import NOT_COMPARED
from mmed_jax.config.values import MAPPINGS, flatten


def marked(mark: str) -> set[str]:
    return {name for name, key in KEYS.items() if getattr(key, mark)}


def test_what_is_checked():
    """The tables that were kept beside the keys."""
    both = ("float32", "bfloat16")
    choices = {
        "platform": ("any", "accelerator"),
        "compute_dtype": both,
        "param_dtype": both,
        "remat": ("none", "full", "qkv", "minimal", "minimal_ctx", "offload"),
        "attention": ("auto", "reference", "splash", "triton", "cudnn"),
        "data.kind": ("instruction", "mcq", "document", "mixed"),
        "data.overlong": ("drop", "truncate_prompt"),
        "data.modes": ("rationale", "direct"),
        "data.prompt_family": ("llama3", "mmedbench"),
        "optim.name": ("adamw", "adafactor"),
        "optim.schedule": ("cosine", "linear", "wsd", "constant"),
        "optim.mu_dtype": both,
        "lora.targets": ("q", "k", "v", "o", "gate", "up", "down", "head", "embed"),
        "lora.base": ("compute", "int8", "nf4"),
        "lora.start": ("continue", "fresh"),
        "checkpoint.best_metric": ("validation/loss", "validation/accuracy"),
    }
    assert {name: key.choices for name, key in KEYS.items() if key.choices} == choices
    positive = "micro_rows loss_chunk optim.lr optim.eps log_every checkpoint.keep_last data.seq_len lora.b_lr_ratio"
    positive += " checkpoint.mean_hours_between_interruptions data.temperature data.max_repeats"
    assert marked("positive") == {*positive.split(), "distributed.timeout_seconds"}
    not_negative = """
        seed batch_size batch_tokens steps epochs eval_every eval_rows checkpoint.every_steps checkpoint.every_minutes
        eval_questions eval_answers stop_after
        checkpoint.deadline_minutes checkpoint.keep_best grad_accum optim.warmup_steps optim.weight_decay
        optim.clip_norm lora.rank lora.alpha
        mesh.devices"""
    assert marked("not_negative") == set(not_negative.split())
    ratios = "optim.warmup_ratio optim.end_lr_ratio optim.decay_ratio data.validation_fraction optim.b1 optim.b2"
    ratios += " lora.dropout data.replay_share"
    assert marked("ratio") == set(ratios.split())
    adamw_only = {name: KEYS[name].default for name in marked("adamw_only")}
    assert adamw_only == {"optim.b1": 0.9, "optim.eps": 1e-8, "optim.mu_dtype": "float32"}
    assert marked("required") == {"run_dir", "data.cache_dir", "data.train", "lora.targets"}
    assert MAPPINGS == ("source_weights", "language_weights", "rank_pattern", "alpha_pattern")
    assert KEYS["seed"].at_most == 2**32 - 1


def test_what_may_change_when_a_run_is_continued():
    names = """
        run_dir restart platform remat xla_flags attention loss_chunk grad_accum micro_rows data.cache_dir
        data.max_repeats lora.start mesh.
        log_every eval_every eval_rows eval_at_start eval_epochs eval_questions eval_answers stop_after
        checkpoint. tensorboard wandb compile_cache distributed. model.ignore_keys
        profile_start profile_steps"""
    assert set(NOT_COMPARED) == set(names.split()) and len(NOT_COMPARED) == len(set(NOT_COMPARED))


def test_what_decides_the_compiled_step():
    names = """
        compute_dtype param_dtype remat attention loss_chunk data.seq_len data.packing batch_size batch_tokens
        grad_accum mesh.data mesh.fsdp mesh.tensor mesh.context xla_flags optim.name optim.mu_dtype optim.clip_norm
        optim.weight_decay optim.decay_embeddings lora.rank lora.alpha lora.rslora lora.dora lora.dropout lora.targets
        lora.layers lora.rank_pattern lora.alpha_pattern lora.b_lr_ratio lora.base"""
    assert marked("compiled") == set(names.split())


def test_every_key_has_a_meaning_and_a_default_that_is_valid(repo):
    assert set(KEYS) == set(flatten(base()))
    lines = (repo / "mmed_jax/config/defaults.py").read_text(encoding="utf-8").splitlines()
    places = {line.split('"')[1]: i for i, line in enumerate(lines) if line.startswith('    "') and '": Key(' in line}
    assert list(places) == list(KEYS)
    # A comment stands above each, or above the first of neighbours that share it.
    assert not [name for name, i in places.items() if not lines[i - 1].strip().startswith(("#", '"', ")"))]
    for name, key in KEYS.items():
        if not key.required:
            key.check(name, flatten(base())[name])


@pytest.mark.parametrize(
    "key, value, text",
    [
        (Key("", required="name one"), "", "config.x is empty: name one"),
        (Key("a", choices=("a", "bcd")), "bce", "config.x='bce', did you mean 'bcd'?"),
        (Key(("a",), choices=("a", "b")), ("a", "a"), "config.x: 'a' is named twice"),
        (Key(1.0), float("inf"), "config.x=inf: must be a finite number"),
        (Key(1, at_most=3), 4, "config.x=4: must be at most 3"),
        (Key(1, positive=True), 0, "config.x=0: must be greater than 0"),
        (Key(1, not_negative=True), -1, "config.x=-1: must not be negative"),
        (Key(0.5, ratio=True), 1.0, "config.x=1.0: must lie in [0, 1)"),
        (Key({}), {"en": -1.0}, "config.x: en=-1.0 must not be negative"),
    ],
)
def test_a_value_that_is_not_valid(key, value, text):
    with pytest.raises(UserError) as e:
        key.check("x", value)
    assert str(e.value) == text


def test_recipes_are_known_by_what_they_import():
    assert recipe_names() == ["pretrain", "stage1", "stage2"] and recipe_names("corpus") == ["mmedc"]
    assert recipe_names("study") == ["languages", "pretraining", "tuning", "two_stage"]
    assert recipe_names("data") == ["mmed_ift", "mmed_ift_mc", "mmedbench"]


def test_recipes_of_users_import_from_the_config_package():
    from configs.base import base as former
    from mmed_jax.config import base as documented
    from mmed_jax.config import load_config

    assert former is documented is base and load_config("stage1").name == "stage1"
