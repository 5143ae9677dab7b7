"""What the tests of the HLO reader share: small programs compiled for the CPU here or for a TPU that is not there."""

import importlib.util
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmed_jax.planning import topology


def tpu_devices(name: str = "v5e-4") -> list[jax.Device]:
    """The chips of a topology, by default a v5e 2x2 slice, which exist for the compiler only; skips without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu (scripts/setup.sh test installs it)")
    return topology.devices(topology.parse(name))


def compiled_text(function: Callable, *shapes: jax.ShapeDtypeStruct, devices: list | None = None) -> str:
    """The optimised HLO text of `function`; an argument without a sharding lies on the first device."""
    devices = devices or jax.devices()
    first = NamedSharding(Mesh(np.asarray(devices[:1]), "one"), PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or first) for s in shapes]
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(devices[0].platform,))
    return lowered.compile().as_text()
