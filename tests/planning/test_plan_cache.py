"""Results of compiling that are kept: found by all that decides them, made again where a file is damaged."""

import ast
import dataclasses
import json
from unittest import mock

import pytest

from mmed_jax.common.code_hash import dump
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import compile_settings, with_values
from mmed_jax.model.config import PRESETS
from mmed_jax.planning import plan_cache, topology
from tests.support.planning import arithmetic_compiler, run_plan


def test_what_is_kept_is_found_by_all_that_decides_it():
    config, cfg, slice_ = load_config("stage1:8b"), PRESETS["llama3-8b"], topology.parse("v5p-128")
    key = plan_cache.cache_key(config, cfg, slice_)
    others = {"str": "other", "int": 7, "float": 0.5, "tuple": ("q",), "dict": {"q": 3.0}}
    keys = [key]
    compiled = [name for name, declared in KEYS.items() if declared.compiled]
    for name in compiled:
        old = compile_settings(config)[name]
        other = not old if isinstance(old, bool) else others[type(old).__name__]
        keys.append(plan_cache.cache_key(with_values(config, {name: other}), cfg, slice_))
    keys.append(plan_cache.cache_key(config, dataclasses.replace(cfg, num_layers=33), slice_))
    keys.append(plan_cache.cache_key(config, cfg, topology.parse("2xv5p-128")))
    assert len(set(keys)) == len(keys) == len(compiled) + 3
    same = with_values(config, {"run_dir": "elsewhere", "optim.lr": 0.5, "seed": 3, "data.train": ("x.jsonl",)})
    assert plan_cache.cache_key(same, cfg, slice_) == key


def test_other_words_are_no_reason_to_compile_again():
    code = '"""What it does."""\n\n\ndef f(x):\n    """Adds one."""\n    return x + 1  # one\n'
    same = '"""Else."""\ndef f(x):\n    return x + 1\n'
    assert dump(ast.parse(code)) == dump(ast.parse(same)) != dump(ast.parse(same.replace("1", "2")))


def damaged(found: dict) -> dict[str, object]:
    """Files as they should not be, by what is wrong with them."""
    deep: list = []
    for _ in range(400):
        deep = [deep]
    return {
        "half": '{"half": ',
        "no object": [1],
        "nothing": {},
        "text for a number": found | {"needed_bytes": "many"},
        "not finite": found | {"schedule_s": float("nan")},
        "a number for a list": found | {"notes": 3},
        "a list for a mapping": found | {"flags": ["x"]},
        "wrong inside": found | {"collective_bytes": {"x": "x"}},
        "another slice": found | {"topology": {}},
        "no terms": found | {"terms": [{}]},
        "unknown": found | {"more": 1},
        "deep inside": found | {"scopes": [{"scope": deep}]},
        "too deep": "[" * 100_000,
        "key missing": {k: v for k, v in found.items() if k != "needed_bytes"},
    }


def test_a_damaged_kept_result_is_made_again(tmp_path):
    with arithmetic_compiler() as compiled:
        first = run_plan("v5p-128", cache=tmp_path, config="stage1:8b")
        (path,) = tmp_path.glob("*.json")
        for number, (what, content) in enumerate(damaged(json.loads(path.read_text())).items()):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            again = run_plan("v5p-128", cache=tmp_path, config="stage1:8b")
            assert again.code == 0 and again.out == first.out and len(compiled) == number + 2, (what, again.err)
        third = run_plan("v5p-128", cache=tmp_path, config="stage1:8b")
    assert third.code == 0 and len(compiled) == number + 2 and "cached" in third.out


@pytest.mark.parametrize("failure, code", [(OSError(28, "No space left on device"), 0), (KeyboardInterrupt(), 130)])
def test_a_result_that_could_not_be_kept_leaves_nothing(failure, code, tmp_path):
    with arithmetic_compiler(), mock.patch("pathlib.Path.replace", side_effect=failure):
        outcome = run_plan("v5p-128", cache=tmp_path / "kept", config="stage1:8b")
    assert outcome.code == code and not list((tmp_path / "kept").iterdir())
    assert code or "this result is not kept" in outcome.out


def test_data_over_the_slices_is_one_plan_named_or_not(tmp_path):
    """train and plan choose the same mesh where it is left out: the same program, and nothing is to be named."""
    with arithmetic_compiler() as compiled:
        unnamed = run_plan("2xv5p-128", cache=tmp_path, config="stage1:8b", batch_size=256)
        named = run_plan("2xv5p-128", cache=tmp_path, config="stage1:8b", batch_size=256, mesh__data=2)
    assert unnamed.code == named.code == 0 and len(compiled) == 1 and "cached" in named.out
    assert "train needs" not in unnamed.out
