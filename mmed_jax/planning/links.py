"""How long a collective takes on the links of a slice (ICI) and between slices (DCN), by ring arithmetic."""

from math import prod
from typing import Protocol

from mmed_jax.planning.hlo_collectives import Collective

# Share of the published link rate that large transfers reach (rule of thumb, jax-ml.github.io/scaling-book).
ICI_EFFICIENCY = 0.9


class Topology(Protocol):
    """What is read of planning.topology.Topology: sizes of ONE slice, rates of one chip (bytes/s, FLOP/s, Hz)."""

    kind: str
    slices: int
    shape: tuple[int, ...]
    wrap: tuple[bool, ...]
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    clock_hz: float


def link_rate(topology: Topology, group_size: int, axes: int = 0) -> float:
    """Bytes/s that one device sends in a ring collective of `group_size` devices of one slice.

    axes: the torus axes that the compiler says it uses; without, the fewest and longest axes that hold the group. An
    axis that the group fills and that wraps around sends both ways.
    """
    if topology.kind == "gpu":
        return topology.link_bandwidth * ICI_EFFICIENCY
    directions, left = 0, group_size
    order = sorted(zip(topology.shape, topology.wrap), key=lambda a: (-a[0], not a[1]))
    for used, (size, wrap) in enumerate(order):
        if used and (used >= axes if axes else left <= 1):
            break
        directions += 2 if wrap and (left >= size or axes) else 1
        left = -(-left // size)
    return topology.link_bandwidth * directions * ICI_EFFICIENCY


def mean_hops(topology: Topology, group_size: int) -> float:
    """Mean distance in links between two devices of a group, for all-to-all: what it loads the links with."""
    hops, left = 0.0, group_size
    for size, wrap in sorted(zip(topology.shape, topology.wrap), key=lambda a: (-a[0], not a[1])):
        span = min(size, left)
        if span > 1:
            hops += span / 4 if wrap and span == size else (span * span - 1) / (3 * span)
        left = -(-left // size)
    return max(1.0, hops)


def transfer(c: Collective, topology: Topology) -> tuple[float, float, float]:
    """Seconds on ICI, seconds on DCN and bytes that one device sends over DCN, of one execution of a collective.

    A group whose devices lie on several slices (partition numbers count slice after slice) works in two steps: ring
    within the slice, then every device exchanges its share with its like on the other slices.
    """
    if c.dcn:
        return 0.0, c.wire_bytes / topology.dcn_bandwidth, c.wire_bytes
    per_slice = prod(topology.shape)
    spanned = max((len({d // per_slice for d in g}) for g in c.groups), default=1)
    within = max(1, c.group_size // spanned)
    between = 0.0
    if spanned > 1:
        # Reduced before it leaves, gathered after it arrived: only 1/within of the payload crosses per device.
        ratio = (2.0 if c.kind == "all-reduce" else 1.0) * (spanned - 1) / spanned
        between = ratio * c.payload_bytes / within
    dcn = between / topology.dcn_bandwidth
    if within == 1:
        return 0.0, dcn, between
    load = mean_hops(topology, within) if "all-to-all" in c.kind and topology.kind != "gpu" else 1.0
    return c.wire_bytes * load / link_rate(topology, within, c.axes), dcn, between
