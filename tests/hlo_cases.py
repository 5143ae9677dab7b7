"""What the tests of the HLO reader share: small programs compiled for the CPU here or for a TPU that is not there."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclass(frozen=True)
class Chips:
    """The fields of a Topology that the estimate reads; rates of a v5e chip unless said otherwise."""

    kind: str = "tpu"
    slices: int = 1
    shape: tuple[int, ...] = (2, 2)
    wrap: tuple[bool, ...] = (False, False)
    peak_flops: float = 197e12
    hbm_bandwidth: float = 819e9
    link_bandwidth: float = 50e9
    dcn_bandwidth: float = 3.125e9
    clock_hz: float = 1.5e9


def tpu_devices() -> list[jax.Device]:
    """The four chips of a v5e 2x2 slice, which exist for the compiler only; skips where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu (scripts/setup.sh test installs it)")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2", chips_per_host_bounds=(2, 2, 1), num_slices=1
    ).devices


def compiled_text(function: Callable, *shapes: jax.ShapeDtypeStruct, devices: list | None = None) -> str:
    """The optimised HLO text of `function`; an argument without a sharding lies on the first device."""
    devices = devices or jax.devices()
    first = NamedSharding(Mesh(np.asarray(devices[:1]), "one"), PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or first) for s in shapes]
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(devices[0].platform,))
    return lowered.compile().as_text()
