"""Weights of one of several slices are gathered along lines, then over planes."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mmed_jax.parallel.two_step_gather import line_length
from tests.support.planning import run_plan, small


def mesh_of(slices, shape, order=(0, 1, 2), fsdp=0, platform="tpu"):
    """What line_length reads of a mesh whose rows run over the coordinates, the last of `order` fastest."""
    found = []
    for number in range(slices):
        for at in itertools.product(*(range(shape[axis]) for axis in order)):
            coords = [at[order.index(axis)] for axis in range(3)]
            found.append(SimpleNamespace(platform=platform, slice_index=number, coords=coords))
    fsdp = fsdp or len(found) // slices
    grid = np.empty(len(found), object)
    grid[:] = found
    return SimpleNamespace(devices=grid.reshape(-1, fsdp, 1, 1), shape={"fsdp": fsdp})


@pytest.mark.parametrize(
    ("mesh", "line"),
    [
        (mesh_of(2, (4, 4, 4)), 4),
        (mesh_of(2, (4, 4, 8)), 8),
        (mesh_of(2, (4, 4, 8), order=(2, 1, 0)), 4),
        (mesh_of(1, (4, 4, 4)), 0),
        (mesh_of(2, (4, 4, 4), fsdp=16), 0),
        (mesh_of(2, (8, 8, 1)), 0),
        (mesh_of(2, (2, 2, 4)), 0),
        (mesh_of(2, (4, 4, 4), platform="gpu"), 0),
    ],
)
def test_only_whole_slices_of_a_3d_torus(mesh, line):
    assert line_length(mesh) == line


def test_devices_out_of_rows_are_left_alone():
    mesh = mesh_of(2, (4, 4, 4))
    mesh.devices[:, 4:8] = mesh.devices[:, 4:8][:, ::-1]
    assert line_length(mesh) == 0


def test_a_step_for_two_slices_gathers_its_weights(tmp_path):
    """The whole training step, forward and backward, with the chip's own flags."""
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_heads": 4, "num_kv_heads": 4, "vocab_size": 512}
    model = {f"model__{k}": v for k, v in shape.items()}
    settings = small(batch_size=128, xla_flags="auto", remat="minimal_ctx", **model)
    outcome = run_plan("2xv5p-128", f"--json={tmp_path / 'plan.json'}", **settings)
    assert outcome.code == 0, outcome.err
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["mesh"]["data"] == 2 and plan["mesh"]["fsdp"] == 64
    # Every layer twice, forward and backward, and the head once; a device receives 63 parts of 64.
    layer = 4 * 512 * 512 + 3 * 512 * 1024
    gathered = 2 * 63 / 64 * (2 * 2 * layer + 512 * 512)
    sent = plan["collective_bytes"]
    assert sent["all-gather"] == pytest.approx(gathered, rel=0.1) and sent["all-reduce"] < 0.01 * gathered
