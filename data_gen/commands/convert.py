"""Turns a published data set into records.

    python -m data_gen convert --list
    python -m data_gen convert --source=medmcqa --input=dev.json --output=medmcqa.jsonl --kind=instruction
    python -m data_gen convert --source=headqa --input=hub --language=es --split=train --output=headqa.jsonl.gz

Every row of the input becomes a record or is counted with the reason why not.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed_jax.common import console, jsonl
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest, run_command
from mmed_jax.common.place_flags import InputPlace, OutputPlace
from mmed_jax.data.records.schema import KINDS, LANGUAGES
from mmed_jax.data.sources import SOURCES, Conversion, Report, get_source

SUMMARY = "a published data set into records (--list names the sets)"


def _parser() -> Parser:
    parser = Parser(
        names_itself=True,
        prog="python -m data_gen convert",
        description=__doc__.partition("\n")[0],
        epilog="sources: " + ", ".join(SOURCES),
    )
    parser.add_argument("--list", action="store_true", help="list the sources with kinds, languages and licence")
    parser.add_argument("--source", metavar="NAME", help="which data set the input is")
    parser.add_argument(
        "--input", type=InputPlace, metavar="PATH", help="file, folder or zip as published, or hub[:REPO_ID[@REVISION]]"
    )
    parser.add_argument(
        "--output", type=OutputPlace, metavar="FILE", help="records to write: a name ending in .jsonl or .jsonl.gz"
    )
    parser.add_argument("--kind", metavar="KIND", help="mcq or instruction, where the set gives both")
    parser.add_argument("--split", metavar="NAME", help="keep this split; files that name none are all of this split")
    parser.add_argument("--language", metavar="CODES", help=f"keep these, with commas: {','.join(LANGUAGES)}")
    parser.add_argument("--answer_base", metavar="0|1", help="medmcqa: the number of the first option, if asked for it")
    parser.add_argument("--encoding", metavar="NAME", default="", help="of text files that are not UTF-8, as cp949")
    parser.add_argument("--keep_duplicates", action="store_true", help="keep equal rows, as benchmark counts do")
    parser.add_argument("--hub_config", metavar="NAME", help="with --input=hub: a configuration of the repository")
    return parser


def _check_flags(args: argparse.Namespace) -> None:
    for name in ("source", "input", "output"):
        if not getattr(args, name):
            raise UserError(f"convert: --{name} is missing (--help shows the flags, --list the sources)")
    if not args.output.endswith(jsonl.SUFFIXES):
        raise UserError(f"--output={args.output}: must end in {' or '.join(jsonl.SUFFIXES)}")
    if args.kind is not None and args.kind not in KINDS:
        raise UserError(f"--kind={args.kind}: unknown{nearest(args.kind, KINDS)}")
    if args.answer_base not in (None, "0", "1"):
        raise UserError(f"--answer_base={args.answer_base}: must be 0 or 1")


def _progress(records: Iterable[dict], conversion: Conversion) -> Iterator[dict]:
    """The records; on a terminal says every second how far it is."""
    shown = time.monotonic()
    for record in records:
        yield record
        if sys.stderr.isatty() and time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"\r{conversion.report.read:,} rows read", end="", file=sys.stderr, flush=True)


def summary(conversion: Conversion) -> str:
    """The table of what became of the rows, two columns, drops with the place of their first row."""
    report: Report = conversion.report
    lines = [("rows read", report.read, ""), ("kept", report.kept, "")]
    lines += [(f"  {code}", report.by_language[code], "") for code in LANGUAGES if report.by_language[code]]
    if len(report.by_split) > 1:
        lines += [(f"  split {name or 'unnamed'}", n, "--split keeps one") for name, n in report.by_split.items()]
    lines += [(f"dropped: {why}", n, f"first: {report.examples[why]}") for why, n in report.dropped.most_common()]
    if report.needs_image:
        lines.append(("kept, but needs an image", report.needs_image, "training leaves it out"))
    if report.renamed:
        lines.append(("ids that were not unique", report.renamed, "numbered -2, -3, ..."))
    width = max(len(name) for name, _, _ in lines)
    return "\n".join(f"{name:<{width}}  {count:>9,}  {note}".rstrip() for name, count, note in lines)


def listing() -> str:
    """One line per source: kinds, languages, licence, where it comes from."""
    table = [("source", "kinds", "languages", "licence", "hub", "origin")]
    for s in SOURCES.values():
        table.append((s.name, ",".join(s.kinds), ",".join(s.languages), s.license, s.hub.repo or "-", s.url))
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    return "\n".join("  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths)), row[5]]) for row in table)


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input, WorkError when the hub can't be reached."""
    args = _parser().parse_args(argv)
    if args.list:
        print(listing())
        return
    if args.source:
        get_source(args.source)
    _check_flags(args)
    console.outlive()
    with local_places(args) as places:
        convert(places)


def convert(args: argparse.Namespace) -> None:
    """Converts --input to --output and prints what became of the rows. Raises UserError, WorkError."""
    if Path(args.output).is_dir():
        raise UserError(f"--output={args.output}: is a folder; name a file in it")
    if Path(args.input).is_file() and Path(args.input).resolve() == Path(args.output).resolve():
        raise UserError(f"--output={args.output}: is the input itself")
    conversion = Conversion(
        get_source(args.source),
        args.input,
        kind=args.kind,
        split=args.split,
        hub_config=args.hub_config,
        languages=tuple(c.strip() for c in args.language.split(",")) if args.language else None,
        answer_base=None if args.answer_base is None else int(args.answer_base),
        encoding=args.encoding,
        keep_duplicates=args.keep_duplicates,
    )
    print(f"{args.source} -> {conversion.kind} records, from {args.input}", flush=True)
    jsonl.write_lines(args.output, map(jsonl.dump_line, _progress(conversion, conversion)))
    print(summary(conversion))
    if conversion.report.test_copies:
        copies = f"{conversion.report.test_copies:,} of the rows left out are duplicates within a test split"
        print(f"note: {copies}; published counts include them: for a benchmark file add --keep_duplicates")
    stage = "stage1" if conversion.kind == "instruction" else "stage2"
    print(f"written: {args.output}")
    print(f"next: python -m mmed_jax.train --config={stage} --config.data.train={args.output}")


if __name__ == "__main__":
    run_command(main)
