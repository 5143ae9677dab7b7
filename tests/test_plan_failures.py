"""Plans where something is missing: weights, a folder for what is kept, the compiler."""

import sys
from unittest import mock

from plan_helpers import arithmetic_compiler, run_plan
from train_helpers import bench  # noqa: F401

from mmed_jax.config import load_config
from mmed_jax.data.prepare import prepare
from mmed_jax.data.tokenizer import load_tokenizer
from mmed_jax.planning.settings import changed


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
        "tokenizer": bench.tokenizer, "data__train": bench.records, "data__cache_dir": tmp_path, "data__seq_len": 128,
        "data__validation_fraction": 0.0, "batch_size": 64, "epochs": 100.0,
    }  # fmt: skip
    with arithmetic_compiler():
        outcome = run_plan("v5p-128", "--price=2", config="stage1:8b", **keys)
    assert outcome.code == 0, outcome.err
    own = {"data.train": (str(bench.records),), "data.cache_dir": str(tmp_path / "again"), "tokenizer": ""}
    config = changed(load_config("stage1:8b"), {k.replace("__", "."): v for k, v in keys.items()} | own)
    rows = len(prepare(config, load_tokenizer(bench.tokenizer)).train)
    steps = -(-100 * rows // 64)
    assert f"run        {steps * 64 * 128:,} tokens: " in outcome.out and "cost" in outcome.out
    with arithmetic_compiler():
        unknown = run_plan("v5p-128", config="stage1:8b", **keys | {"tokenizer": ""})
    assert unknown.code == 0 and "the run's length is not known" in unknown.out


def test_without_libtpu_gpus_are_planned_and_tpus_say_what_to_install():
    with mock.patch.dict(sys.modules, {"libtpu": None}):
        tpu = run_plan("v5p-128", config="stage1:8b")
        gpu = run_plan("gpu:8xh100-80g", config="stage1:8b")
    assert tpu.code == 2 and 'pip install -c constraints.txt -e ".[plan]"' in tpu.error
    assert gpu.code == 0 and ": fits (" in gpu.out
