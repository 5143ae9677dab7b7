"""What a run settles before its first step."""

import json

import pytest

from mmed_jax import start
from mmed_jax.config import load_config
from mmed_jax.errors import UserError
from mmed_jax.hf.source import ModelSource
from mmed_jax.model.config import PRESETS


@pytest.mark.parametrize(("step", "warned"), [(4, True), (10, False)])
def test_weights_of_an_unfinished_run_are_said(tmp_path, step, warned):
    event = {"kind": "event", "step": 0, "time": 0.0, "event": "start", "steps": 10}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    text = start.describe_source(ModelSource(tmp_path, "run", PRESETS["demo"], step))
    assert f"step {step}" in text
    assert ("stopped at step 4 of 10" in text) is warned


def test_steps_follow_epochs_rounded_up():
    config = load_config("stage1")
    with config.unlocked():
        config.epochs, config.batch_size = 1.5, 4
    assert start.total_steps(config, 10) == 4
    with config.unlocked():
        config.batch_size = 10
        counts = []
        for config.epochs in (0.01, 1.0, 2.0, 10.0, 100.0, 0.51):
            counts.append(start.total_steps(config, 23))
    assert counts == [1, 3, 5, 23, 230, 2]
    with config.unlocked():
        config.steps, config.epochs = 7, 0.0
    assert start.total_steps(config, 10) == 7


def test_large_variants_refuse_a_cpu():
    start.check_platform(load_config("stage1"), "cpu")
    start.check_platform(load_config("stage1:8b"), "tpu")
    with pytest.raises(UserError, match="meant for a TPU or GPU.*platform=any"):
        start.check_platform(load_config("stage1:8b"), "cpu")
