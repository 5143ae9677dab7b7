"""The one table of chips: memory, rates, names and slices. Planning, XLA's flags and MFU look up here.

A new TPU is one row of TPUS, a new GPU one row of GPUS.
"""

from dataclasses import dataclass, field

GIB = 2**30
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Chip:
    """One jax device: a chip, or a part of one.

    hbm_bytes, peak_flops (dense bfloat16, per second), hbm_bandwidth (bytes/s), link_bandwidth (bytes/s of one link in
    one direction), dcn_bandwidth (bytes/s of a chip to other slices or nodes), clock_hz (0 = not used).
    kinds: jax.Device.device_kind in lower case; of a GPU its beginning.
    shapes: {number in a slice's name: chips along each axis}; of TPUs. compiler_name: what libtpu calls the chip.
    devices_a_chip: jax devices that share a chip, its links and its network; every rate is one device's share.
    variants: {beginning of device_kind: FLOP/s} of boards with the same chip that run it slower.
    note: what a plan says of the figures, where they are weaker than the others'.
    """

    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    clock_hz: float
    kinds: tuple[str, ...]
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    compiler_name: str = ""
    devices_a_chip: int = 1
    variants: dict[str, float] = field(default_factory=dict)
    note: str = ""


RATES = ("hbm_bytes", "peak_flops", "hbm_bandwidth", "link_bandwidth", "dcn_bandwidth", "clock_hz")

# Chips of one slice by the number in its name; the usual shapes of the cloud.
_CUBES: dict[int, tuple[int, ...]] = {
    8: (2, 2, 1),
    16: (2, 2, 2),
    32: (2, 2, 4),
    64: (2, 4, 4),
    128: (4, 4, 4),
    256: (4, 4, 8),
    512: (4, 8, 8),
    1024: (8, 8, 8),
    2048: (8, 8, 16),
}
_SQUARES: dict[int, tuple[int, ...]] = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}

# Each TensorCore is a device of its own there.
_CORES = {2: (1, 1, 1), **_CUBES}

# HBM, its bandwidth, FLOP/s and the interconnect of a chip: cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e; a link
# is that divided by both directions of the links of a chip (6 in a 3-D torus, 4 in a 2-D one). Clock: FLOP/s divided by
# the multiply-adds of the matrix units. DCN of a chip: jax-ml.github.io/scaling-book (its host's network cards,
# shared). TPU7x: page tpu7x has all of it (7,380 GB/s of HBM, 1,200 GB/s of links, 100 Gb/s of network a chip), halved,
# for a chip has two devices; but how many matrix units a chip has is not said there: its clock takes them to be eight
# of 256 x 256.
TPUS: dict[str, Chip] = {
    "v4": Chip(32 * GIB, 275e12, 1228e9, 50e9, 6.25e9, 1.05e9, ("tpu v4",), _CUBES, "v4"),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 100e9, 6.25e9, 1.75e9, ("tpu v5", "tpu v5p"), _CUBES, "v5"),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 50e9, 3.125e9, 1.5e9, ("tpu v5 lite", "tpu v5e"), _SQUARES, "v5e"),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 100e9, 12.5e9, 1.75e9, ("tpu v6 lite", "tpu v6e"), _SQUARES, "v6e"),
    "tpu7x": Chip(
        96 * GIB,
        1153.5e12,
        3690e9,
        50e9,
        6.25e9,
        2.2e9,
        ("tpu7x",),
        _CORES,
        "tpu7x",
        devices_a_chip=2,
        note="seconds on tpu7x are rough: its clock is an assumption, and it has no compiler flags of its own yet",
    ),
}
# NVIDIA data sheets, without sparsity: memory, FLOP/s, memory bandwidth, NVLink one way; one 400 Gb/s network card a
# GPU between nodes (200 Gb/s for A100).
GPUS: dict[str, Chip] = {
    "a100-40g": Chip(40 * 10**9, 312e12, 1555e9, 300e9, 25e9, 0.0, ("nvidia a100",)),
    "a100-80g": Chip(80 * 10**9, 312e12, 2039e9, 300e9, 25e9, 0.0, ("nvidia a100",)),
    "h100-80g": Chip(
        80 * 10**9,
        989e12,
        3350e9,
        450e9,
        50e9,
        0.0,
        ("nvidia h100",),
        variants={"nvidia h100 pcie": 756e12, "nvidia h100 nvl": 835e12},
    ),
    "h200": Chip(141 * 10**9, 989e12, 4800e9, 450e9, 50e9, 0.0, ("nvidia h200",), variants={"nvidia h200 nvl": 835e12}),
}


def tpu_of(device_kind: str) -> str:
    """The name in TPUS of a jax.Device.device_kind; "" for anything else."""
    return next((name for name, chip in TPUS.items() if device_kind.lower() in chip.kinds), "")


def chip_notes(name: str) -> list[str]:
    """What has to be said of the figures of a TPU by its name in TPUS; nothing of most, and of other devices."""
    return [TPUS[name].note] if name in TPUS and TPUS[name].note else []


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device (jax.Device.device_kind), or None where no figure is known (CPUs)."""
    if tpu := tpu_of(device_kind):
        return TPUS[tpu].peak_flops
    peaks = {
        beginning: peak
        for chip in GPUS.values()
        for beginning, peak in (*((kind, chip.peak_flops) for kind in chip.kinds), *chip.variants.items())
        if device_kind.lower().startswith(beginning)
    }
    return peaks[max(peaks, key=len)] if peaks else None  # the longest says most
