"""A benchmark built here beside a copy of MMedBench: which questions both have, and where the answers differ.

python -m data_gen compare-mmedbench --ours=benchmarks/mmedbench --theirs=MMedBench.zip --output=difference.json
"""

import sys
from typing import Any

from data_gen.sets.compare_questions import OUTCOMES, compare_questions, read_copy
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.output_files import check_file, write_json
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import InputPlace, OutputPlace

SUMMARY = "a built benchmark beside a copy of MMedBench"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError."""
    parser = Parser(
        names_itself=True, prog="python -m data_gen compare-mmedbench", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--ours", type=InputPlace, metavar="DIR", help="what `data_gen build --recipe=mmedbench` wrote")
    parser.add_argument(
        "--theirs", type=InputPlace, metavar="ZIP_OR_DIR", help="MMedBench.zip, or a folder with Train/ and Test/"
    )
    parser.add_argument("--output", type=OutputPlace, metavar="FILE", default="", help="counts and examples, as JSON")
    with local_places(parser.parse_args(sys.argv[1:] if argv is None else argv)) as args:
        for name in ("ours", "theirs"):
            if not getattr(args, name):
                raise UserError(f"compare-mmedbench: --{name} is missing (--help shows the flags)")
        if args.output:
            check_file(args.output, "--output")
        ours, our_drops = read_copy(expand_home(args.ours), "--ours")
        theirs, their_drops = read_copy(expand_home(args.theirs), "--theirs")
        found = compare_questions(ours, theirs) | {"unreadable": {"ours": our_drops, "theirs": their_drops}}
        _print_table(found["counts"])
        for side, drops in found["unreadable"].items():
            for reason, n in drops.items():
                print(f"{side}: {n:,} rows are no usable question: {reason}")
        if args.output:
            write_json(expand_home(args.output), found)
            print(f"written: {args.output}")


def _print_table(counts: list[dict[str, Any]]) -> None:
    head = ("language", "split", "ours", "theirs", *OUTCOMES, "other options")
    lines = [head, *(tuple(f"{row[n]:,}" if isinstance(row[n], int) else row[n] for n in head) for row in counts)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        print("  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))))


if __name__ == "__main__":
    run_command(main)
