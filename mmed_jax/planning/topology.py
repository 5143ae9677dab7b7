"""Slices by their cloud names: shape, rates from the data sheets, and the compiler's devices for them.

    parse("v5p-128")        64 chips as 4 x 4 x 4
    parse("2xv5e-256")      two slices of 16 x 16
    parse("gpu:8xh100-80g") by arithmetic only: no compiler target exists without the card

v4-N, v5p-N and tpu7x-N count TensorCores (two a chip), v5e-N (also v5litepod-N) and v6e-N count chips.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.parallel.chips import GPUS, GPUS_A_NODE, RATES, TPUS, Chip, tpu_of

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class Topology:
    """One or more equal slices (nodes of GPUs).

    `shape` (in chips) and `wrap` are those of one slice, rates those of one jax device, of which a chip has
    `devices_a_chip`.
    """

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
    devices_a_chip: int = 1

    @property
    def device_count(self) -> int:
        """jax devices of all slices."""
        return self.chips * self.devices_a_chip

    @property
    def devices_a_slice(self) -> int:
        """jax devices of one slice (node)."""
        return prod(self.shape) * self.devices_a_chip

    def describe(self) -> str:
        """The topology in a line."""
        shape = "x".join(map(str, self.shape))
        if self.kind == "gpu":
            nodes = count(self.slices, "node")
            return f"{self.name}: {count(self.chips, 'GPU')} {self.chip}, {nodes}; arithmetic, no compiler"
        wrap = "torus" if all(self.wrap) else "wraps on some axes" if any(self.wrap) else "no wrap"
        each = f"{self.slices} slices of " if self.slices > 1 else ""
        devices = f" of {self.devices_a_chip} devices each" if self.devices_a_chip > 1 else ""
        return f"{self.name}: {count(self.chips, 'chip')} {self.chip}{devices}, {each}{shape} ({wrap})"


def count(number: int, what: str) -> str:
    """1 chip, 2 chips."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def names() -> list[str]:
    """Every name of one slice; gpu names have any count in front."""
    tpus = [f"{name}-{n}" for name, chip in TPUS.items() for n in chip.shapes]
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
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)-(\d+)", text)
    if not match or match[2] not in TPUS:
        raise UserError(f"--topology={name}: no such slice{nearest(text, names())}")
    slices, chip, size = int(match[1] or 1), match[2], int(match[3])
    shapes = TPUS[chip].shapes
    if size not in shapes:
        near = sorted(sorted(shapes, key=lambda n: abs(n - size))[:2])
        raise UserError(f"--topology={name}: no such slice; nearest: {', '.join(f'{chip}-{n}' for n in near)}")
    if slices < 1:
        raise UserError(f"--topology={name}: the number of slices must be at least 1, for example 2x{chip}-{size}")
    return _topology(text, "tpu", chip, TPUS[chip], slices, shapes[size], torus_axes(shapes[size]))


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
    figures = {name: getattr(rates, name) for name in (*RATES, "devices_a_chip")}
    return Topology(name, kind, chip, prod(shape) * slices, slices, shape, wrap, **figures)


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
    # The two cores of a chip are one device on v4 and v5p.
    joined = len(topology.shape) == 3 and topology.devices_a_chip == 1
    extra: dict[str, Any] = {"chip_config_name": "megacore"} if joined else {}
    with quiet_stderr():
        return list(
            topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{TPUS[topology.chip].compiler_name}:{'x'.join(map(str, topology.shape))}",
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


def of_devices(here: "list[jax.Device]") -> Topology | None:
    """The topology of devices that are here; None for CPUs and for chips without figures."""
    first, slices = here[0], len({getattr(d, "slice_index", 0) or 0 for d in here})
    tpu = tpu_of(first.device_kind)
    if tpu and first.platform == "tpu":
        coords = [d.coords for d in here]
        axes = len(next(iter(TPUS[tpu].shapes.values())))
        shape = tuple(max(c[i] for c in coords) - min(c[i] for c in coords) + 1 for i in range(axes))
        chips = len(here) // TPUS[tpu].devices_a_chip
        return _topology(f"{tpu}, {chips} chips here", "tpu", tpu, TPUS[tpu], slices, shape, torus_axes(shape))
    kind = first.device_kind.lower()
    gpu = next((g for g in sorted(GPUS, reverse=True) if first.platform == "gpu" and g.split("-")[0] in kind), None)
    if gpu is None:
        return None
    nodes = len({d.process_index for d in here})
    return _topology(f"{len(here)} GPUs here", "gpu", gpu, GPUS[gpu], nodes, (max(1, len(here) // nodes),), (False,))
