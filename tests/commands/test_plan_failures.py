"""Plans where something is missing: weights, a folder for what is kept, the compiler."""

import json
import sys
from unittest import mock

import pytest

from mmed_jax.common.errors import WorkError
from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import with_values
from mmed_jax.data.prepare import prepare
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from tests.support.planning import arithmetic_compiler, run_plan
from tests.support.training import bench  # noqa: F401


def test_a_folder_that_cannot_be_written_costs_no_result(tmp_path):
    """What took minutes to compile is shown all the same, and in a good folder only whole results stay."""
    (tmp_path / "file").touch()
    with arithmetic_compiler() as compiled:
        first = run_plan("v5p-128", cache=tmp_path / "file" / "kept", config="stage1:8b")
        kept = run_plan("v5p-128", cache=tmp_path / "kept", config="stage1:8b")
    assert first.code == kept.code == 0 and len(compiled) == 2, first.err
    assert "warning    this result is not kept: " in first.out and ": fits (" in first.out
    assert "warning" not in kept.out and [p.suffix for p in (tmp_path / "kept").iterdir()] == [".json"]


def test_the_runs_tokens_are_counted_without_its_weights(bench, tmp_path):  # noqa: F811
    """Records and a tokenizer are enough: packed rows x epochs, in whole steps."""
    keys = {
        "tokenizer": bench.tokenizer,
        "data__train": bench.records,
        "data__cache_dir": tmp_path,
        "data__seq_len": 128,
        "data__validation_fraction": 0.0,
        "batch_size": 64,
        "epochs": 100.0,
    }
    with arithmetic_compiler():
        outcome = run_plan("v5p-128", "--price=2", config="stage1:8b", **keys)
    assert outcome.code == 0, outcome.err
    own = {"data.train": (str(bench.records),), "data.cache_dir": str(tmp_path / "again"), "tokenizer": ""}
    config = with_values(load_config("stage1:8b"), {k.replace("__", "."): v for k, v in keys.items()} | own)
    rows = len(prepare(config, load_tokenizer(bench.tokenizer)).train)
    steps = -(-100 * rows // 64)
    assert f"run        {steps * 64 * 128:,} tokens: " in outcome.out and "cost" in outcome.out
    with arithmetic_compiler():
        unknown = run_plan("v5p-128", config="stage1:8b", **keys | {"tokenizer": ""})
    assert unknown.code == 0 and "a billion tokens (how many the run has is not known: give --tokens)" in unknown.out
    assert "note       the run's length is not known: no tokenizer" in unknown.out
    with arithmetic_compiler():
        missing = run_plan("v5p-128", config="stage1:8b")
        steps = run_plan("v5p-128", "--tokens=5e9", config="stage1:8b", steps=10, epochs=0)
        given = run_plan("v5p-128", "--tokens=1e9", config="stage1:8b")
    gone = "config.data.train: records/stage1.jsonl is not there"
    assert f"note       the run's length is not known: {gone}" in missing.out
    assert f"run        {10 * 128 * 2048:,} tokens: " in steps.out and "--tokens is not used" in steps.out
    assert "run        3,000,000,000 tokens: " in given.out and "length" not in given.out


def test_an_architecture_that_is_assumed_is_said(tmp_path):
    with arithmetic_compiler():
        outcome = run_plan("v5p-128", f"--json={tmp_path}/plan.json", config="stage1:8b", init_from=tmp_path / "gone")
        searched = run_plan("v5p-128", "--search", "--max_compiles=1", config="stage1:8b", init_from=tmp_path / "gone")
        random = run_plan("v5e-1", config="stage1")
    note = f"config.init_from={tmp_path}/gone is not there: the architecture of llama3-8b is assumed"
    assert f"note       {note}" in outcome.out and f"note       {note}" in searched.out and "assumed" not in random.out
    assert note in json.loads((tmp_path / "plan.json").read_text())["notes"]


@pytest.mark.parametrize(
    "failure, said",
    [
        (KeyboardInterrupt(), "stopped by Ctrl-C before it was found"),
        (WorkError("the compiler failed: vmem"), "nothing was found: the compiler failed: vmem"),
        (ValueError("what nobody thought of"), "nothing was found: what nobody thought of"),
    ],
)
def test_that_it_does_not_fit_is_said_whatever_becomes_of_the_advice(failure, said, tmp_path):
    path = tmp_path / "plan.json"

    def advise(*args, **kwargs):
        assert json.loads(path.read_text())["fits"] is False
        raise failure

    with arithmetic_compiler(), mock.patch("mmed_jax.planning.advice.advise", advise):
        outcome = run_plan("v5e-4", f"--json={path}", config="stage1:8b")
    assert outcome.code == 1 and outcome.error.startswith("stage1:8b does not fit on v5e-4: most goes to")
    assert f"next       {said}" in outcome.out and json.loads(path.read_text())["advice"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--json=/proc/x"], "--json=/proc/x: can't be written"),
        (["--json=/dev/full"], "--json=/dev/full: is not a regular file"),
        (["--search", "--output={}/folder.py"], "folder.py: is a folder; name a file"),
        (["--search", "--output=/proc/found.py"], "--output=/proc/found.py: can't be written"),
    ],
)
def test_places_that_cannot_be_written_are_said_before_the_work(flags, message, tmp_path):
    (tmp_path / "folder.py").mkdir()
    with arithmetic_compiler() as compiled:
        outcome = run_plan("v5p-128", *(f.format(tmp_path) for f in flags), config="stage1:8b")
    assert outcome.code == 2 and message in outcome.error and not compiled


def test_without_libtpu_gpus_are_planned_and_tpus_say_what_to_install(monkeypatch):
    # This name alone: what else is imported meanwhile stays imported.
    monkeypatch.setitem(sys.modules, "libtpu", None)
    tpu = run_plan("v5p-128", config="stage1:8b")
    gpu = run_plan("gpu:8xh100-80g", config="stage1:8b")
    assert tpu.code == 2 and 'pip install -c constraints.txt -e ".[plan]"' in tpu.error
    assert gpu.code == 0 and ": fits (" in gpu.out
