"""Cloud names of slices, their sizes, and the devices the compiler makes of them."""

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.planning import topology


@pytest.mark.parametrize(
    "name, chip, chips, shape, wrap",
    [
        ("v4-32", "v4", 16, (2, 2, 4), (False,) * 3),
        ("v5p-128", "v5p", 64, (4, 4, 4), (True,) * 3),
        ("v5p-256", "v5p", 128, (4, 4, 8), (True,) * 3),
        ("v5e-1", "v5e", 1, (1, 1), (False,) * 2),
        ("v5e-64", "v5e", 64, (8, 8), (False,) * 2),
        ("v6e-128", "v6e", 128, (8, 16), (False, True)),
        ("V6E-256", "v6e", 256, (16, 16), (True,) * 2),
        ("v5litepod-16", "v5e", 16, (4, 4), (False,) * 2),
        ("2xv5litepod-256", "v5e", 512, (16, 16), (True,) * 2),
        ("2xv5p-128", "v5p", 128, (4, 4, 4), (True,) * 3),
        ("tpu7x-128", "tpu7x", 64, (4, 4, 4), (True,) * 3),
        ("2xTPU7x-2", "tpu7x", 2, (1, 1, 1), (False,) * 3),
        ("gpu:8xh100-80g", "h100-80g", 8, (8,), (False,)),
        ("gpu:16xh200", "h200", 16, (8,), (False,)),
        ("gpu:h200", "h200", 1, (1,), (False,)),
        ("8xh200", "h200", 8, (8,), (False,)),
    ],
)
def test_names(name, chip, chips, shape, wrap):
    t = topology.parse(name)
    assert (t.chip, t.chips, t.shape, t.wrap) == (chip, chips, shape, wrap)
    assert t.kind == ("gpu" if "h200" in chip or "h100" in chip else "tpu")
    assert topology.parse(t.name) == t


def test_one_is_not_several():
    assert topology.parse("v5e-1").describe() == "v5e-1: 1 chip v5e, 1x1 (no wrap)"
    assert topology.parse("gpu:h200").describe() == "gpu:h200: 1 GPU h200, 1 node; arithmetic, no compiler"
    assert topology.parse("16xh200").describe() == "gpu:16xh200: 16 GPUs h200, 2 nodes; arithmetic, no compiler"


@pytest.mark.parametrize(
    "name, message",
    [
        ("v5p-127", "no such slice; nearest: v5p-64, v5p-128"),
        ("v5-128", "did you mean 'v5"),
        ("v7x-8", "no such slice"),
        ("0xv5p-128", "the number of slices must be at least 1, for example 2xv5p-128"),
        ("0xv5p-127", "nearest: v5p-64, v5p-128"),
        ("gpu:8xh100", "did you mean 'h100-80g'"),
        ("gpu:8xb200", "Known: a100-40g, a100-80g, h100-80g, h200; for example gpu:8xh100-80g"),
        ("gpu:", "Known: a100-40g"),
        ("gpu:8", "Known: a100-40g"),
        ("gpu:0xh200", "the number of GPUs must be at least 1"),
        ("gpu:12xh200", "nearest: gpu:8xh200"),
        ("h100", "did you mean 'h100-80g'. Known: a100-40g"),
        ("8xa100", "did you mean 'a100-80g'. Known: a100-40g"),
        ("", "no such slice"),
    ],
)
def test_wrong_names_say_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        topology.parse(name)


@pytest.mark.parametrize("name", ["v4-8", "v5p-128", "2xv5p-16", "v5e-1", "v5e-8", "v6e-128", "2xv6e-16", "tpu7x-16"])
def test_the_compiler_knows_the_devices(name):
    t = topology.parse(name)
    found = topology.devices(t)
    assert len(found) == t.device_count
    coords = {(getattr(d, "slice_index", 0) or 0, *d.coords) for d in found}
    assert len(coords) == t.chips
    for axis, size in enumerate(t.shape):
        assert {c[1 + axis] for c in coords} == set(range(size))
    assert {c[0] for c in coords} == set(range(t.slices))


def test_gpus_have_no_compiler_target():
    with pytest.raises(UserError, match="arithmetic"):
        topology.devices(topology.parse("gpu:8xh200"))
