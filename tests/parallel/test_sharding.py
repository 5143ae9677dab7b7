"""The mesh, the sharding table and its refusals."""

import math

import jax
import pytest
from jax.sharding import PartitionSpec as P

from mmed_jax.common.errors import UserError
from mmed_jax.parallel import sharding


def test_left_over_devices_go_to_the_open_axis():
    assert sharding.mesh_shape({"fsdp": -1, "tensor": 2}, 8) == (1, 4, 2, 1)
    assert sharding.mesh_shape({"data": 2, "fsdp": 2, "tensor": 1, "context": 2}, 8) == (2, 2, 1, 2)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2, "context": 1}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"fsdp": -1, "tensor": 3}, "does not divide the 8 devices"),
        ({"fsdp": 3}, "asks for 3 devices but there are 8"),
        ({"fsdp": -1, "data": -1}, "at most one axis"),
        ({"fsdp": 0}, "positive number"),
    ],
)
def test_meshes_that_cannot_be(sizes, words):
    with pytest.raises(UserError, match=words):
        sharding.mesh_shape(sizes, 8)


DIMS = {"num_heads": 32, "num_kv_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "hidden_size": 4096}


def test_what_does_not_divide_is_named_with_values_that_do():
    sizes = {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    sharding.check_divisible(sizes, DIMS, 16, 2048)
    with pytest.raises(
        UserError, match=r"micro-batch of 12 rows.*nearest that do: 8 or 16; .*batch_size / config.grad_accum"
    ):
        sharding.check_divisible(sizes, DIMS, 12, 2048)
    with pytest.raises(UserError, match=r"num_kv_heads 8 is not divisible by mesh.tensor=16.*8"):
        sharding.check_divisible({**sizes, "fsdp": 1, "tensor": 16}, DIMS, 12, 2048)
    with pytest.raises(UserError, match="data.seq_len 2047.*mesh.context=2"):
        sharding.check_divisible({**sizes, "fsdp": 4, "context": 2}, DIMS, 8, 2047)


def test_two_dimensions_on_one_mesh_axis_collide():
    with pytest.raises(ValueError, match="collide"):
        sharding.spec(("heads", "mlp"), sharding.PARAM_RULES)
    assert sharding.spec(("heads", "embed"), sharding.PARAM_RULES) == P("tensor", ("fsdp", "context"))


def test_every_large_parameter_of_the_8b_is_sharded_over_all_devices():
    from mmed_jax.model import llama
    from mmed_jax.model.config import PRESETS

    cfg = PRESETS["llama3.1-8b"]
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    shardings = sharding.param_shardings(mesh, llama.logical_axes(cfg))
    abstract = llama.abstract_params(cfg, "float32")
    total = unsharded = 0
    for leaf, s in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True):
        total += leaf.size
        if s.shard_shape(leaf.shape) == leaf.shape:
            unsharded += leaf.size
        elif leaf.ndim > 1 and "norm" not in str(s.spec):
            assert s.num_devices == 8 and leaf.size == 8 * math.prod(s.shard_shape(leaf.shape))
    assert unsharded / total < 0.001


def test_constrain_checks_the_rank_and_is_free_without_a_mesh():
    x = jax.numpy.ones((2, 3))
    assert sharding.constrain(x, "batch", "length") is x
    with pytest.raises(ValueError, match="2"):
        sharding.constrain(x, "batch", "length", None)


def test_data_runs_over_tpu_slices_unless_it_is_set():
    from tests.support.hlo_cases import tpu_devices

    devices = tpu_devices("2xv5p-8")
    mesh = sharding.make_mesh(devices=devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    assert [{d.slice_index for d in copy.flat} for copy in mesh.devices] == [{0}, {1}]
    # One copy over both slices would gather weights over the slow network.
    with pytest.raises(UserError, match="config.mesh.data=1 must be a multiple of the 2 TPU slices"):
        sharding.make_mesh(data=-1, fsdp=8, devices=devices)
