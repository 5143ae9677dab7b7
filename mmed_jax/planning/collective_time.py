"""How long a collective takes on the links of a slice (ICI) and between slices (DCN), by ring arithmetic."""

from dataclasses import dataclass

from mmed_jax.planning.hlo.collectives import Collective, ring_bytes
from mmed_jax.planning.topology import Topology

# Share of the published link rate that large transfers reach (rule of thumb, jax-ml.github.io/scaling-book).
ICI_EFFICIENCY = 0.9


def link_rate(topology: Topology, group_size: int, axes: int = 0) -> float:
    """Bytes/s that one device sends in a ring collective of `group_size` devices of one slice.

    axes: the torus axes that the compiler says it uses; without, the fewest and longest axes that hold the group. An
    axis that the group fills and that wraps around sends both ways.
    """
    if topology.kind == "gpu":
        return topology.link_bandwidth * ICI_EFFICIENCY
    # The devices of a chip send over the same links, each its share.
    directions, left = 0, -(-group_size // topology.devices_a_chip)
    for used, (size, wrap) in enumerate(_axes(topology)):
        if used and (used >= axes if axes else left <= 1):
            break
        directions += 2 if wrap and (left >= size or axes) else 1
        left = -(-left // size)
    return topology.link_bandwidth * max(1, directions) * ICI_EFFICIENCY


def mean_hops(topology: Topology, group_size: int) -> float:
    """Mean distance in links between two devices of a group, for all-to-all: what it loads the links with."""
    hops, left = 0.0, -(-group_size // topology.devices_a_chip)
    for size, wrap in _axes(topology):
        span = min(size, left)
        if span > 1:
            hops += span / 4 if wrap and span == size else (span * span - 1) / (3 * span)
        left = -(-left // size)
    return max(1.0, hops)


def _axes(topology: Topology) -> list[tuple[int, bool]]:
    """(chips, wraps around) of the axes of a slice, the longest first."""
    axes = [(size, wrap) for size, wrap in zip(topology.shape, topology.wrap) if size > 1]
    return sorted(axes, key=lambda axis: (-axis[0], not axis[1]))


@dataclass(frozen=True)
class Transfer:
    """One execution of a collective: seconds and bytes that one device sends, within the slice and between slices."""

    ici_s: float = 0.0
    dcn_s: float = 0.0
    ici_bytes: float = 0.0
    dcn_bytes: float = 0.0


def transfer(c: Collective, topology: Topology) -> Transfer:
    """What a collective costs on the links.

    A group whose devices lie on several slices (partition numbers count slice after slice) works in two steps: ring
    within the slice, then every device exchanges its share with its like on the other slices.
    """
    if c.dcn:
        return Transfer(dcn_s=c.wire_bytes / topology.dcn_bandwidth, dcn_bytes=c.wire_bytes)
    per_slice = topology.devices_a_slice
    spanned = max((len({d // per_slice for d in g}) for g in c.groups), default=1)
    within = max(1, c.group_size // spanned)
    between = 0.0
    if spanned > 1:
        # What is reduced before it leaves, or gathered after it arrived, crosses once for all devices of the slice.
        shared = within if c.kind in ("all-reduce", "reduce-scatter", "all-gather") else 1
        between = ring_bytes(c.kind, c.payload_bytes, spanned) / shared
    sent = ring_bytes(c.kind, c.payload_bytes, within) if within > 1 else 0.0
    load = mean_hops(topology, within) if "all-to-all" in c.kind and topology.kind != "gpu" else 1.0
    ici_s = sent * load / link_rate(topology, within, c.axes) if sent else 0.0
    return Transfer(ici_s, between / topology.dcn_bandwidth if between else 0.0, sent, between)
