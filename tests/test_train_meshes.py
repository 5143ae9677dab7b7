"""The same losses on every mesh."""

import numpy as np
import pytest
from train_helpers import bench, losses, metrics  # noqa: F401

MESHES = {
    "fsdp8": {"mesh__devices": 8},
    "fsdp4-tensor2": {"mesh__devices": 8, "mesh__fsdp": 4, "mesh__tensor": 2},
    "context2": {"mesh__devices": 2, "mesh__context": 2},
}


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_a_run_has_the_same_losses_on_every_mesh(bench, tmp_path, mesh):  # noqa: F811
    outcome = bench.train(tmp_path / "run", **mesh)
    assert outcome.code == 0, outcome.err
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(bench.reference), rtol=1e-5)
