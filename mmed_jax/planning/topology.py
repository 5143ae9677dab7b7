"""Slices by their cloud names: shape, rates from the data sheets, and the compiler's devices for them.

    parse("v5p-128")        64 chips as 4 x 4 x 4
    parse("2xv5e-256")      two slices of 16 x 16
    parse("gpu:8xh100-80g") by arithmetic only: no compiler target exists without the card

v4-N and v5p-N count TensorCores (two a chip), v5e-N (also v5litepod-N) and v6e-N count chips.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from mmed_jax.common.errors import UserError, nearest

if TYPE_CHECKING:
    import jax

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Rates of one chip; bytes/s of one link in one direction, FLOP/s dense bfloat16."""

    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    clock_hz: float


# TPUs. HBM, its bandwidth, FLOP/s and the interconnect of a chip: cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e; a
# link is that divided by both directions of the links of a chip (6 in a 3-D torus, 4 in a 2-D one). Clock: FLOP/s
# divided by the multiply-adds of the matrix units. DCN of a chip: jax-ml.github.io/scaling-book (its host's network
# cards, shared).
CHIPS: dict[str, Chip] = {
    "v4": Chip(32 * GIB, 275e12, 1228e9, 50e9, 6.25e9, 1.05e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 100e9, 6.25e9, 1.75e9),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 50e9, 3.125e9, 1.5e9),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 100e9, 12.5e9, 1.75e9),
}
# GPUs, NVIDIA data sheets, without sparsity: memory, FLOP/s, memory bandwidth, NVLink one way; one 400 Gb/s network
# card a GPU between nodes (200 Gb/s for A100). A clock is not used.
GPUS: dict[str, Chip] = {
    "a100-40g": Chip(40 * 10**9, 312e12, 1555e9, 300e9, 25e9, 0.0),
    "a100-80g": Chip(80 * 10**9, 312e12, 2039e9, 300e9, 25e9, 0.0),
    "h100-80g": Chip(80 * 10**9, 989e12, 3350e9, 450e9, 50e9, 0.0),
    "h200": Chip(141 * 10**9, 989e12, 4800e9, 450e9, 50e9, 0.0),
}
GPUS_A_NODE = 8

# Chips of one slice by the number in its name; the usual shapes of the cloud.
_CUBES = {
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
_SQUARES = {
    1: (1, 1),
    4: (2, 2),
    8: (2, 4),
    16: (4, 4),
    32: (4, 8),
    64: (8, 8),
    128: (8, 16),
    256: (16, 16),
}
SHAPES = {"v4": _CUBES, "v5p": _CUBES, "v5e": _SQUARES, "v6e": _SQUARES}
# What the compiler calls them.
_COMPILER_NAME = {"v4": "v4", "v5p": "v5", "v5e": "v5e", "v6e": "v6e"}


@dataclass(frozen=True)
class Topology:
    """One or more equal slices (nodes of GPUs). `shape` and `wrap` are those of one slice, rates those of one chip."""

    name: str
    kind: str  # "tpu" or "gpu"
    chip: str
    chips: int
    slices: int
    shape: tuple[int, ...]
    wrap: tuple[bool, ...]
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    clock_hz: float

    def describe(self) -> str:
        """The topology in a line."""
        shape = "x".join(map(str, self.shape))
        if self.kind == "gpu":
            nodes = count(self.slices, "node")
            return f"{self.name}: {count(self.chips, 'GPU')} {self.chip}, {nodes}; arithmetic, no compiler"
        wrap = "torus" if all(self.wrap) else "wraps on some axes" if any(self.wrap) else "no wrap"
        each = f"{self.slices} slices of " if self.slices > 1 else ""
        return f"{self.name}: {count(self.chips, 'chip')} {self.chip}, {each}{shape} ({wrap})"


def count(number: int, what: str) -> str:
    """1 chip, 2 chips."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def names() -> list[str]:
    """Every name of one slice; gpu names have any count in front."""
    tpus = [f"{chip}-{n}" for chip, shapes in SHAPES.items() for n in shapes]
    return tpus + [f"gpu:8x{gpu}" for gpu in GPUS]


def parse(name: str) -> Topology:
    """The topology of a cloud name.

    Raises:
      UserError: no such name, with the nearest.
    """
    text = name.strip().lower()
    # "8xh200" can mean nothing else.
    match = re.fullmatch(r"(gpu:)?(?:(\d+)x)?([a-z].*)?", text)
    if match and (match[1] or match[3] and any(g.startswith(match[3]) for g in GPUS)):
        return _gpus(name, int(match[2] or 1), match[3] or "")
    if text.startswith("gpu:"):
        return _gpus(name, 1, "")
    text = text.replace("v5litepod-", "v5e-")
    match = re.fullmatch(r"(?:(\d+)x)?(v\d[a-z]?)-(\d+)", text)
    if not match or match[2] not in SHAPES:
        raise UserError(f"--topology={name}: no such slice{nearest(text, names())}")
    slices, chip, size = int(match[1] or 1), match[2], int(match[3])
    if size not in SHAPES[chip]:
        near = sorted(sorted(SHAPES[chip], key=lambda n: abs(n - size))[:2])
        raise UserError(f"--topology={name}: no such slice; nearest: {', '.join(f'{chip}-{n}' for n in near)}")
    if slices < 1:
        raise UserError(f"--topology={name}: the number of slices must be at least 1, for example 2x{chip}-{size}")
    shape = SHAPES[chip][size]
    return _topology(text, "tpu", chip, CHIPS[chip], slices, shape, torus_axes(shape))


def _gpus(name: str, number: int, kind: str) -> Topology:
    if kind not in GPUS:
        longer = [g for g in GPUS if g.startswith(f"{kind}-")]
        near = f", did you mean '{longer[-1]}'?" if longer else "."
        raise UserError(
            f"--topology={name}: no such GPU{near} Known: {', '.join(GPUS)}; for example gpu:{GPUS_A_NODE}xh100-80g"
        )
    if number < 1:
        raise UserError(f"--topology={name}: the number of GPUs must be at least 1, for example gpu:8x{kind}")
    if number > GPUS_A_NODE and number % GPUS_A_NODE:
        raise UserError(
            f"--topology={name}: more than {GPUS_A_NODE} GPUs come in nodes of {GPUS_A_NODE}; nearest: "
            f"gpu:{number // GPUS_A_NODE * GPUS_A_NODE}x{kind}"
        )
    nodes = max(1, number // GPUS_A_NODE)
    text = f"gpu:{name.strip().lower().removeprefix('gpu:')}"
    return _topology(text, "gpu", kind, GPUS[kind], nodes, (number // nodes,), (False,))


def torus_axes(shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Which axes of a slice wrap around.

    Cubes of 4 x 4 x 4 are joined by optical switches into a torus, smaller slices are open on every axis; flat slices
    wrap on axes of 16.
    """
    if len(shape) == 3:
        return (all(n % 4 == 0 for n in shape),) * 3
    return tuple(n == 16 for n in shape)


def _topology(
    name: str, kind: str, chip: str, rates: Chip, slices: int, shape: tuple[int, ...], wrap: tuple[bool, ...]
) -> Topology:
    return Topology(name, kind, chip, prod(shape) * slices, slices, shape, wrap, **vars(rates))


def devices(topology: Topology) -> "list[jax.Device]":
    """The compiler's devices of a TPU topology; no TPU is needed or touched.

    Raises:
      UserError: a GPU topology, or libtpu is not installed.
    """
    if topology.kind != "tpu":
        raise UserError(f"{topology.name}: programs are compiled for TPUs only; GPUs are planned by arithmetic")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError('libtpu is not installed: pip install -c constraints.txt -e ".[plan]" (Linux x86-64)') from None
    # Nothing is asked of a metadata server, and several processes may compile at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # Always three axes; one chip is a host of its own, larger slices have four chips a host.
    single = prod(topology.shape) == 1
    extra: dict[str, Any] = {"chip_config_name": "megacore"} if len(topology.shape) == 3 else {}
    with quiet_stderr():
        return list(
            topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{_COMPILER_NAME[topology.chip]}:{'x'.join(map(str, topology.shape))}",
                chips_per_host_bounds=(1, 1, 1) if single else (2, 2, 1),
                num_slices=topology.slices,
                wrap=(*topology.wrap, False)[:3],
                **extra,
            ).devices
        )


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what libtpu writes to the process's stderr; shown after all when the block raises."""
    import sys
    import tempfile

    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def chip_of(device_kind: str) -> str:
    """The chip ("v4", "v5p", "v5e", "v6e") of a jax.Device.device_kind; "" for anything else."""
    kind = device_kind.lower()
    known = {"tpu v4": "v4", "tpu v5": "v5p", "tpu v5p": "v5p", "tpu v5 lite": "v5e", "tpu v5e": "v5e"}
    return (known | {"tpu v6 lite": "v6e", "tpu v6e": "v6e"}).get(kind, "")


def of_devices(found: "list[jax.Device]") -> Topology | None:
    """The topology of devices that are here; None for CPUs and for chips without figures."""
    first, slices = found[0], len({getattr(d, "slice_index", 0) or 0 for d in found})
    chip = chip_of(first.device_kind)
    if chip and first.platform == "tpu":
        coords = [d.coords for d in found]
        extent = tuple(max(c[i] for c in coords) - min(c[i] for c in coords) + 1 for i in range(3))
        shape = extent if chip in ("v4", "v5p") else extent[:2]
        return _topology(f"{chip}, {len(found)} chips here", "tpu", chip, CHIPS[chip], slices, shape, torus_axes(shape))
    kind = first.device_kind.lower()
    gpu = next((g for g in sorted(GPUS, reverse=True) if first.platform == "gpu" and g.split("-")[0] in kind), None)
    if gpu is None:
        return None
    nodes = len({d.process_index for d in found})
    return _topology(f"{len(found)} GPUs here", "gpu", gpu, GPUS[gpu], nodes, (max(1, len(found) // nodes),), (False,))
