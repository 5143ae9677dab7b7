"""Evaluations beside each other and beside the published tables, and files for the MMedBench leaderboard.

    python -m mmed_jax.compare RUN [RUN ..] [--output=DIR] [--published=all|none|GPT,Llama]
    python -m mmed_jax.compare --submission=DIR RUN_DIRECT [RUN_RATIONALE]

RUN is a folder of `python -m mmed_jax.evaluate`, or NAME=FOLDER. There is a table for each benchmark and way of asking
(mode, prompt family, examples, shuffling, passages): what was asked in different ways never stands in one table. Runs
in one table are compared with the first of them over the items they share. Runs of --perplexity give bits per byte by
language, and their difference over the documents that both have scored. DIR gets compare.txt, compare.csv,
differences.csv and compare.html.

--submission writes what MMedBench's SubmissionTutorial.md asks for: multi_choice_results.csv and accuracy_metric.csv of
an evaluation in mode direct, rationale_results.csv and rationale_similarity_metric.csv of one in mode rationale.
"""

import argparse
from types import ModuleType
from typing import Any

from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest, run_command
from mmed_jax.common.output_files import check_folder, write_text
from mmed_jax.common.place_flags import InputPlace, OutputPlace
from mmed_jax.evaluation.comparison import perplexity_tables, render
from mmed_jax.evaluation.comparison.compare_runs import compare_runs
from mmed_jax.evaluation.comparison.mmedbench_submission import write_submission
from mmed_jax.evaluation.comparison.published_tables import published_methods
from mmed_jax.evaluation.comparison.runs import read_runs


def main(argv: list[str] | None = None) -> None:
    """The compare command; see the module's docstring and `--help`."""
    with local_places(parse_arguments(argv)) as args:
        if args.submission:
            print_submission(args)
        else:
            print_comparison(args)


def print_submission(args: argparse.Namespace) -> None:
    """Writes the files of a submission and prints what was written. Raises UserError."""
    if args.output or args.published:
        raise UserError("--submission: writes its own files; leave out --output and --published")
    if len(args.runs) > 2:
        raise UserError(f"--submission: takes RUN_DIRECT and RUN_RATIONALE, not {len(args.runs)} runs")
    runs = read_runs(args.runs)
    folder = check_folder(args.submission, "--submission")
    for line in write_submission(folder, *runs, count_mismatch=args.allow_count_mismatch):
        print(line)


def print_comparison(args: argparse.Namespace) -> None:
    """Compares the runs, prints the tables and writes them to --output. Raises UserError."""
    if args.allow_count_mismatch:
        raise UserError("--allow_count_mismatch: goes with --submission; comparisons mark what is off")
    methods = choose_published(args.published or "all")
    runs = read_runs(args.runs, texts=True)
    folder = check_folder(args.output, "--output") if args.output else None
    shown: ModuleType = render
    tables: Any
    if any(map(perplexity_tables.is_perplexity, runs)):
        shown, tables = perplexity_tables, perplexity_tables.compare_bits(runs)
    else:
        tables = compare_runs(runs, methods=methods)
    text = f"{shown.render_text(tables)}\n\n{shown.NOTE}\n"
    print(text, end="")
    if folder:
        write_text(folder / "compare.txt", text)
        write_text(folder / "compare.csv", shown.render_csv(tables))
        write_text(folder / "differences.csv", shown.render_differences_csv(tables))
        write_text(folder / "compare.html", shown.render_html(tables))
        print(f"\nwritten    {folder}/compare.txt, compare.csv, differences.csv, compare.html")


def choose_published(text: str) -> tuple[str, ...] | None:
    """The parts of names that --published gives; () for none, None for all. Raises UserError."""
    if text in ("all", "none"):
        return None if text == "all" else ()
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise UserError(f"--published={text}: names nothing; all, none, or parts of names as GPT,Llama")
    methods = published_methods()
    for name in names:
        if not any(name.casefold() in method.casefold() for method in methods):
            raise UserError(f"--published={name}: no published row has it in its name{nearest(name, methods)}")
    return names


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m mmed_jax.compare", description=__doc__)
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=InputPlace,
        metavar="RUN",
        help="folders of evaluations, or NAME=FOLDER; the first is compared with",
    )
    add("--output", type=OutputPlace, metavar="DIR", help="where the tables are written as well")
    add("--published", metavar="all|none|NAME,..", help="published rows (default: all); NAME: whose names hold it")
    add("--submission", type=OutputPlace, metavar="DIR", help="write the files of a submission to MMedBench instead")
    add("--allow_count_mismatch", action="store_true", help="--submission: also when the test set is not whole")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
