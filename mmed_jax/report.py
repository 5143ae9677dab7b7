"""Curves and a page about a run, made from its files alone, at any time, also while it trains.

    python -m mmed_jax.report --run=RUN_DIR

    python -m mmed_jax.report --run=RUN_DIR --profile

Writes RUN_DIR/plots/*.png and RUN_DIR/report.html (one self-contained file). No accelerator, no jax. With --profile it
prints the most expensive operations of the steps that `train --profile=START:STOP` recorded (read by jax; no device).
"""

from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import run_command
from mmed_jax.common.place_flags import InputPlace
from mmed_jax.training.run_page import make_report


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module."""
    parser = Parser(prog="python -m mmed_jax.report", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, type=InputPlace, metavar="RUN_DIR", help="a run directory")
    parser.add_argument("--profile", action="store_true", help="print the ten most expensive operations of its profile")
    args = parser.parse_args(argv)
    if args.profile:
        from mmed_jax.training.profiling import top_operations

        print(top_operations(args.run))
        return
    page = make_report(args.run)
    if goodput := read_metrics(args.run).goodput.describe():
        print(f"goodput    {goodput}")
    print(f"{page}\n{page.parent / 'plots'}/")


if __name__ == "__main__":
    run_command(main)
