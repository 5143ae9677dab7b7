"""What a run settles before its first step."""

import json
import pwd

import jax
import pytest

from mmed_jax.checkpoints.run_directory import guard_run_dir
from mmed_jax.common.errors import UserError
from mmed_jax.common.output_files import check_folder
from mmed_jax.common.paths import resolve_path
from mmed_jax.config.defaults import base
from mmed_jax.config.recipes import load_config
from mmed_jax.hf.open_model import ModelSource
from mmed_jax.model.config import PRESETS
from mmed_jax.parallel import devices
from mmed_jax.training import setup


@pytest.mark.parametrize(("step", "warned"), [(4, True), (10, False)])
def test_weights_of_an_unfinished_run_are_said(tmp_path, step, warned):
    event = {"kind": "event", "step": 0, "time": 0.0, "event": "start", "steps": 10}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    text = setup.describe_source(ModelSource(tmp_path, "run", PRESETS["demo"], step))
    assert f"step {step}" in text
    assert ("stopped at step 4 of 10" in text) is warned


def test_steps_follow_epochs_rounded_up():
    config = load_config("stage1")
    with config.unlocked():
        config.epochs, config.batch_size = 1.5, 4
    assert setup.total_steps(config, 10) == 4
    with config.unlocked():
        config.batch_size = 10
        counts = []
        for config.epochs in (0.01, 1.0, 2.0, 10.0, 100.0, 0.51):
            counts.append(setup.total_steps(config, 23))
    assert counts == [1, 3, 5, 23, 230, 2]
    with config.unlocked():
        config.steps, config.epochs = 7, 0.0
    assert setup.total_steps(config, 10) == 7


def test_large_variants_refuse_a_cpu():
    devices.check_platform(load_config("stage1"), "cpu")
    devices.check_platform(load_config("stage1:8b"), "tpu")
    with pytest.raises(UserError, match="meant for a TPU or GPU.*platform=any"):
        devices.check_platform(load_config("stage1:8b"), "cpu")
    own = load_config("stage1:custom")
    with own.unlocked():
        own.platform = "accelerator"
    with pytest.raises(UserError, match="meant for a TPU or GPU.*JAX_PLATFORMS=cpu"):
        devices.check_platform(own, "cpu")


@pytest.fixture(params=["no home", "/proc/x"])
def without_home(request, monkeypatch):
    """A container's user without an entry and without HOME, and a home that cannot be written."""
    if request.param != "no home":
        monkeypatch.setenv("HOME", request.param)
        return

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_the_compile_cache_that_nobody_asked_for_stops_nobody(without_home, capsys, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert base().compile_cache == devices.COMPILE_CACHE
    devices.enable_compile_cache(devices.COMPILE_CACHE)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith(f"warning: compile cache {devices.COMPILE_CACHE}: ")
    with pytest.raises(UserError, match="config.compile_cache=~/other: .*; set another or ''"):
        devices.enable_compile_cache("~/other")
    assert jax.config.jax_compilation_cache_dir == before


def test_paths_below_a_home_that_is_not_known(monkeypatch):
    monkeypatch.setattr("pathlib.Path.expanduser", _no_home)
    for use in (resolve_path, lambda p: guard_run_dir(p, {}), lambda p: check_folder(p, "--output")):
        with pytest.raises(UserError, match="^~/some: no home directory is known; set HOME or write the path out"):
            use("~/some")


def _no_home(path):
    raise RuntimeError("Could not determine home directory.")


def test_several_processes_on_cpus_have_no_compile_cache(capsys, tmp_path):
    devices.enable_compile_cache(str(tmp_path / "cache"), processes=2)
    assert not (tmp_path / "cache").exists()
    assert capsys.readouterr().err.endswith("cache: not used by several processes on CPUs\n")
