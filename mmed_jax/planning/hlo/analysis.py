"""Facts of an optimised HLO module, as text from `compiled.as_text()`: FLOPs, collectives, loops. Needs no jax.

    module = parse_module(text)         # Module: computations, instructions in schedule order, loop trip counts, notes
    flops(module).total                 # FLOPs of one execution on one device; .matmul, .kernels, .by_scope, .unknown
    collectives(module)                 # [Collective]: kind, wire_bytes, executions, asynchronous, group_size, scope...
    module.executed(fused=False)        # (Instruction, times it runs) of all that runs, loops included

Seconds are estimated by mmed_jax.planning.schedule_time. A summary of a file:

    python -m mmed_jax.planning.hlo.analysis FILE.txt [--topology v5p-128]
"""

from collections import Counter
from pathlib import Path

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.planning.hlo.collectives import Collective, Collectives
from mmed_jax.planning.hlo.flops import Flops, KernelFlops, Scope, count_flops, scope_of, splash_flops
from mmed_jax.planning.hlo.loops import find_trip_counts
from mmed_jax.planning.hlo.text import Computation, Instruction, Module, Shape, parse_text

__all__ = [
    "Collective",
    "Computation",
    "Flops",
    "Instruction",
    "KernelFlops",
    "Module",
    "Scope",
    "Shape",
    "collectives",
    "flops",
    "parse_module",
    "scope_of",
    "splash_flops",
]

GIB = 2**30


def parse_module(text: str) -> Module:
    """The module of an HLO text with the trip counts of its loops.

    Loops whose count can't be known count once and are named in `module.notes`.

    Raises:
      UserError: the text is no HLO module.
    """
    module = parse_text(text)
    find_trip_counts(module)
    return module


def flops(module: Module, kernel_flops: KernelFlops | None = None) -> Flops:
    """FLOPs of one execution on one device; kernel_flops: callback for custom calls beyond splash attention."""
    return count_flops(module, kernel_flops)


def collectives(module: Module) -> list[Collective]:
    """The collectives that run, each once with the number of its executions."""
    return Collectives(module).all()


def main(argv: list[str] | None = None) -> None:
    """Prints what a file of HLO text says: FLOPs, collective bytes, and seconds for a topology."""
    parser = Parser(prog="python -m mmed_jax.planning.hlo.analysis", description=main.__doc__)
    parser.add_argument("file", type=Path, help="optimised HLO text")
    parser.add_argument("--topology", help="cloud name of the slice, such as v5p-128: adds the estimate of seconds")
    args = parser.parse_args(argv)
    if not args.file.is_file():
        raise UserError(f"{args.file}: no such file")
    module = parse_module(args.file.read_text())
    counted = flops(module)
    print(f"{module.name}: {module.num_devices} devices")
    print(f"FLOPs a device: {counted.total:.4e} (products {counted.matmul:.4e}, kernels {counted.kernels:.4e})")
    rows: Counter[tuple[str, str]] = Counter()
    for c in collectives(module):
        when = ("asynchronous" if c.asynchronous else "blocking") + (", between slices" if c.dcn else "")
        rows[c.kind, when] += c.total_bytes * (1 - c.disguised)
        rows["all-reduce in place of all-gather", when] += c.total_bytes * c.disguised
    for (kind, when), sent in rows.most_common():
        if sent:
            print(f"  {kind}, {when}: {sent / GIB:.2f} GiB a device")
    if args.topology:
        from mmed_jax.planning import schedule_time, topology

        print(schedule_time.estimate(module, topology.parse(args.topology)).summary())
    for note in module.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    run_command(main)
