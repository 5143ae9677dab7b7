"""What to change where memory is short: in what order, and what a run says whose devices have no room."""

import json
import re
from unittest import mock

import jax
import pytest

from mmed_jax.common.errors import WorkError
from mmed_jax.config.checks import validate
from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import with_values
from mmed_jax.model.config import PRESETS
from mmed_jax.parallel import sharding
from mmed_jax.planning import smaller_configs
from mmed_jax.planning.on_device import device_failures
from tests.support.planning import run_plan
from tests.support.training import bench  # noqa: F401


@pytest.mark.parametrize(
    "platform, keys, expected",
    [
        (
            "tpu",
            {"remat": "full"},
            [
                {"loss_chunk": 512},
                {"remat": "offload"},
                {"mesh.tensor": 2},
                {"mesh.context": 2},
                {"optim.mu_dtype": "bfloat16"},
                {"optim.name": "adafactor"},
            ],
        ),
        (
            "gpu",
            {"remat": "full", "mesh.fsdp": 8, "grad_accum": 4, "optim.mu_dtype": "bfloat16"},
            [
                {"grad_accum": 8},
                {"mesh.tensor": 2, "mesh.fsdp": 4},
                {"mesh.context": 2, "mesh.fsdp": 4},
                {"optim.name": "adafactor", "optim.mu_dtype": "float32"},
            ],
        ),
    ],
)
def test_what_keeps_the_mathematics_is_proposed_first(platform, keys, expected):
    config = with_values(load_config("stage1:8b"), keys)
    mesh = {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    found = list(smaller_configs.smaller(config, PRESETS["llama3-8b"], mesh, platform))
    at = [[c.changes for c in found].index(e) for e in expected]
    assert at == sorted(at)
    for c in found:
        validate(c.config)
        assert bool(c.learns) == any(k.startswith("optim.") for k in c.changes)
        assert c.mesh["data"] * c.mesh["fsdp"] * c.mesh["tensor"] * c.mesh["context"] == 8
    learns = [c.learns for c in found if c.learns]
    assert learns[-1] == "adafactor is another optimizer" and found[-len(learns) :] == [c for c in found if c.learns]
    assert (platform == "tpu") == any(c.changes.get("remat") == "offload" for c in found)


def test_another_optimizer_is_proposed_where_nothing_else_fits(tmp_path):
    outcome = run_plan("gpu:8xh200", f"--json={tmp_path}/plan.json", config="stage1:70b")
    assert outcome.code == 1
    found = json.loads((tmp_path / "plan.json").read_text())["advice"]
    assert found["changes"]["optim.name"] == "adafactor" and "grad_accum" in found["changes"]
    assert re.search(r"next +--config\.\S.*optim.name=adafactor.*adafactor is another optimizer\)", outcome.out)
    keys = {k.replace(".", "__"): v for k, v in found["changes"].items()}
    assert run_plan("gpu:8xh200", config="stage1:70b", **keys).code == 0


# ---- A device without room -------------------------------------------------------------------------------------------


def test_out_of_device_memory_is_a_table_and_the_next_thing_to_try(capsys):
    """The table of a plan, by arithmetic, which says so."""
    config, mesh = load_config("stage1:8b"), sharding.make_mesh(devices=jax.devices()[:4])
    config = with_values(config, {"remat": "minimal_ctx"})
    with pytest.raises(WorkError, match=r"out of device memory \(RESOURCE_EXHAUSTED: no room for 1.5GiB\).*above"):
        with device_failures(config, PRESETS["llama3-8b"], mesh):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room for 1.5GiB\nmany more lines")
    out = capsys.readouterr().out
    assert re.search(r"mesh +data=1 fsdp=4 tensor=1 context=1", out) and "remat minimal_ctx" in out
    # Four devices hold 12 bytes a parameter; 32 rows of a device and layer keep most.
    lines = out.splitlines()
    memory_at = next(i for i, line in enumerate(lines) if line.startswith("memory"))
    assert re.search(r"GiB a chip: DOES NOT FIT \(state 22.4\d GiB, while stepping [\d.]+ GiB; arithmetic\)", out)
    assert lines[memory_at + 1].endswith("saved activations (arithmetic)") and "7.48 GiB  weights (arithmetic)" in out
    assert "note       arithmetic: nothing was compiled" in out and "no room for 1.5GiB" in out
    assert re.search(r"next +--config.remat=qkv +\(about [\d.]+ GiB; now remat is minimal_ctx\)", out)


@pytest.mark.parametrize("where", ["random_params", "fresh_state"])
def test_no_room_for_the_state_is_a_table_too(where, bench, tmp_path):  # noqa: F811
    failure = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.")
    with mock.patch(f"mmed_jax.training.state.{where}", side_effect=failure):
        outcome = bench.train(tmp_path / "run")
    assert outcome.code == 1 and outcome.error.startswith("out of device memory"), outcome.err
    assert "Traceback" not in outcome.err and "DOES NOT FIT" in outcome.out and "next  " in outcome.out


def test_no_room_for_a_checkpoint_is_a_table_and_a_full_disk_is_not():
    config, cfg, mesh = load_config("stage1"), PRESETS["demo"], sharding.make_mesh(devices=jax.devices()[:1])
    for text, table in (
        ("cannot be restored: RESOURCE_EXHAUSTED: Out of memory while trying to allocate", True),
        ("was not written: RESOURCE_EXHAUSTED: No space left on device", False),
    ):
        with pytest.raises(WorkError) as e:
            with device_failures(config, cfg, mesh):
                raise WorkError(f"checkpoint of step 3 {text}")
        assert str(e.value).startswith("out of device memory") is table


def test_other_device_errors_pass():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with device_failures(load_config("stage1"), PRESETS["demo"], mesh):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")
