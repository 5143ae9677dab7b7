"""People check the rationales of a built benchmark: sheets out, and read back into its two booleans.

    python -m data_gen check sheet --input=benchmarks/mmedbench --items=200 --seed=0 --output=sheets
    python -m data_gen check read --input=benchmarks/mmedbench --sheets=sheets

`sheet` draws rationales by language and writes a sheet for each of two raters, with yes or no for logical consistency,
factual accuracy and sound reasoning. `read` sets human_checked where all raters have rated a rationale and
human_check_passed where all said yes to everything, in Train/, Test/ and records/; checks.ndjson keeps it, so that
building again does, and check.json says how far the raters agree.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from data_gen.sets import mmedbench_format
from data_gen.sets.check_sheets import (
    checks_of,
    draw_rationales,
    read_draw,
    read_verdicts,
    summarise_checks,
    write_sheets,
)
from data_gen.sets.mmedbench_format import SPLITS
from mmed_jax.common import jsonl
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest, run_command
from mmed_jax.common.output_files import check_folder, write_json
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import InputPlace, OutputPlace, UpdatedOutput
from mmed_jax.evaluation.ratings.sheets import SUFFIXES

SUMMARY = "people check a benchmark's rationales: sheet, read"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(__doc__)
        return
    if args[0] not in COMMANDS:
        raise UserError(f"data_gen check: no command '{args[0]}'{nearest(args[0], COMMANDS)}")
    COMMANDS[args[0]](args[1:])


def write_check_sheets(argv: list[str]) -> None:
    """check sheet; raises UserError."""
    parser = _parser("sheet", InputPlace)
    parser.add_argument("--items", type=int, default=200, metavar="N", help="of each language; 0: all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws items and order (%(default)s)")
    parser.add_argument("--languages", default="", metavar="en,zh,..", help="only these")
    parser.add_argument("--splits", default=",".join(SPLITS), metavar="A,B", help="%(default)s")
    parser.add_argument("--raters", type=int, default=2, metavar="N", help="a sheet for each (%(default)s)")
    parser.add_argument("--suffix", default=".xlsx", help=f"{' or '.join(SUFFIXES)} (%(default)s)")
    parser.add_argument("--output", required=True, type=OutputPlace, metavar="DIR", help="folder of the sheets")
    args = parser.parse_args(argv)
    for name, least in (("items", 0), ("raters", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}={getattr(args, name)}: must be {least} or more")
    with local_places(args) as places:
        _write_sheets(places)


def _write_sheets(args: argparse.Namespace) -> None:
    output = expand_home(args.output)
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output={args.output}: holds files already, perhaps filled-in sheets; name another folder")
    chosen = draw_rationales(
        expand_home(args.input), args.items, args.seed, languages=_words(args.languages), splits=_words(args.splits)
    )
    check_folder(output, "--output")
    sheets = write_sheets(output, chosen, raters=args.raters, seed=args.seed, suffix=args.suffix)
    counts = mmedbench_format.count_by_language(record for _, record in chosen)
    print(f"{len(chosen):,} rationales: {', '.join(f'{code} {n:,}' for code, n in counts.items())}")
    print(f"written: {', '.join(str(s) for s in sheets)}, each with its key, which stays with you")


def read_check_sheets(argv: list[str]) -> None:
    """check read; raises UserError."""
    parser = _parser("read", UpdatedOutput)
    sheets = "what `check sheet` wrote, filled in"
    parser.add_argument("--sheets", required=True, type=InputPlace, metavar="DIR", help=sheets)
    with local_places(parser.parse_args(argv)) as places:
        _read_sheets(places)


def _read_sheets(args: argparse.Namespace) -> None:
    folder, sheets = expand_home(args.input), expand_home(args.sheets)
    drawn = read_draw(sheets)
    checks = checks_of(drawn, read_verdicts(sheets, drawn))
    known = mmedbench_format.read_checks(folder)
    merged = {**known, **{(c["split"], c["id"]): c for c in checks}}
    lost = _write_checked(folder, merged, {(c["split"], c["id"]) for c in checks})
    jsonl.write_lines(folder / mmedbench_format.CHECKS, (jsonl.dump_line(dict(c)) for c in merged.values()))
    summary = summarise_checks(drawn, checks) | {"changed since": lost}
    write_json(folder / "check.json", summary)
    _print_summary(summary)
    print(f"written: {folder} (Train/, Test/, records/, {mmedbench_format.CHECKS}, check.json)")


COMMANDS = {"sheet": write_check_sheets, "read": read_check_sheets}


def _write_checked(folder: Path, checks: mmedbench_format.Checks, now: set[tuple[str, str]]) -> int:
    """Writes the questions with their booleans; how many of `now` are no longer the text that was rated."""
    records = {
        split: list(mmedbench_format.apply_checks(mmedbench_format.read_built(folder, split), split, checks))
        for split in SPLITS
    }
    languages = list(dict.fromkeys(r["language"] for rows in records.values() for r in rows))
    extra = mmedbench_format.extra_keys(folder)
    mmedbench_format.write_benchmark(folder, lambda split: iter(records[split]), languages, extra)
    there = {(split, r["id"]) for split, rows in records.items() for r in rows if r["human_checked"]}
    return len(now - there)


def _print_summary(summary: dict[str, Any]) -> None:
    for row in summary["languages"]:
        share = "-"
        if row["checked"]:
            low, high = row["interval95"]
            share = f"{row['passed'] / row['checked']:.1%} ({low:.1%} to {high:.1%})"
        print(f"{row['language']:<4} drawn {row['drawn']:>6,}  checked {row['checked']:>6,}  passed {share}")
    for row in summary["agreement"]:
        kappa = "-" if row["kappa"] is None else f"{row['kappa']:.3f}"
        names = f"{' and '.join(row['raters'])}, {row['criterion']}"
        print(f"{names:<44}  agree {row['share']:.1%}  kappa {kappa}")
    if summary["changed since"]:
        print(f"{summary['changed since']:,} rationales are not what was rated any more; they stay unchecked")


def _parser(command: str, kind: type) -> Parser:
    parser = Parser(prog=f"python -m data_gen check {command}", description=__doc__.partition("\n")[0], epilog=__doc__)
    benchmark = "a benchmark that `data_gen build` wrote"
    parser.add_argument("--input", required=True, type=kind, metavar="DIR", help=benchmark)
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    run_command(main)
