"""Curves and a page about a run, made from its files alone, at any time, also while it trains.

    python -m mmed_jax.report --run=RUN_DIR
    python -m mmed_jax.report --run=RUN_DIR --watch
    python -m mmed_jax.report --run=small=RUN_DIR,large=RUN_DIR --output=FILE.html
    python -m mmed_jax.report --run=RUN_DIR --profile

Writes RUN_DIR/report.html (one self-contained file). Several runs, with or without names, are
drawn over each other in FILE.html (without --output: report_runs.html in the first). --watch writes nothing: it serves
the page on this machine, at an address that it prints, and the page is made new as the runs go on; Ctrl-C ends it. No
accelerator, no jax. With --profile it prints the most expensive operations of the steps that
`train --profile=START:STOP` recorded (read by jax; no device).
"""

import argparse
import contextlib
import time
from collections.abc import Sequence

from mmed_jax.checkpoints.metrics_file import metrics_version, read_metrics
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.page_server import PageServer
from mmed_jax.common.place_flags import InputPlace, OutputPlace
from mmed_jax.common.places import Place
from mmed_jax.training.run_files import named_places, read_run
from mmed_jax.training.run_page import make_page, make_report, make_runs_report


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module."""
    args = parse_arguments(argv)
    if args.profile:
        from mmed_jax.training.profiling import top_operations

        print(top_operations(args.run))
        return
    named = named_places(args.run)
    if args.watch:
        watch(named, args.port or 0)
    elif len(named) == 1:
        if args.output:
            raise UserError(f"--output={args.output}: is for several runs; the page of one stands in its folder")
        print_report(named[0][1])
    else:
        print(make_runs_report([read_run(place, name) for name, place in named], args.output))


def print_report(run_dir: Place) -> None:
    """Writes the page of one run, and prints where."""
    page = make_report(run_dir)
    if goodput := read_metrics(run_dir).goodput.describe():
        print(f"goodput    {goodput}")
    print(page)


def watch(named: Sequence[tuple[str, Place]], port: int) -> None:
    """Serves the page about these runs on this machine until Ctrl-C. Raises UserError where a run is none."""
    for name, place in named:
        read_run(place, name)

    def version() -> str:
        # Now and then also without a change: "running" becomes silence by nothing being written.
        return " ".join([*(metrics_version(place) for _, place in named), str(int(time.time() // 300))])

    server = PageServer(version, lambda v: make_page([read_run(place, name) for name, place in named], v), port)
    print(f"watching   {server.address}   (on this machine alone; Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    print("ended")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed_jax.report", description=__doc__)
    add = parser.add_argument
    add("--run", required=True, type=InputPlace, metavar="RUN_DIR", help="a run directory; several: A,B or NAME=A,..")
    add("--output", type=OutputPlace, metavar="FILE.html", help="where the page about several runs goes")
    add("--watch", action="store_true", help="serve the page on this machine and follow the runs; nothing is written")
    add("--port", type=int, metavar="N", help="of --watch (default: a free one)")
    add("--profile", action="store_true", help="print the ten most expensive operations of its profile")
    args = parser.parse_args(argv)
    if args.output and not str(args.output).endswith(".html"):  # else a slip puts the page in place of a run's file
        raise UserError(f"--output={args.output}: is for a page; name a file that ends in .html")
    if args.watch and args.output:
        raise UserError("--output: --watch writes nothing; leave one of them out")
    if args.profile and args.output:
        raise UserError("--output: --profile prints and writes no page; leave one of them out")
    if args.watch and args.profile:
        raise UserError("--profile: prints and ends; leave --watch out")
    if args.port is not None and not args.watch:
        raise UserError(f"--port={args.port}: goes with --watch")
    if args.port is not None and not 0 <= args.port < 2**16:
        raise UserError(f"--port={args.port}: must be 0 to 65535")
    return args


if __name__ == "__main__":
    run_command(main)
