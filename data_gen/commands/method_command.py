"""The command of a method: its flags, inputs, run, output files, and the table of what became of the rows."""

import argparse
import textwrap
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from data_gen.methods import METHODS, default_gates, make_method
from data_gen.methods.flags import codes
from data_gen.methods.method import GenerationMethod
from mmed_jax.common import console, jsonl
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, nearest
from mmed_jax.common.output_files import check_file, check_folder
from mmed_jax.common.place_flags import InputPlace, OutputPlace
from mmed_jax.common.row_buffer import remove_temporaries
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.llm_api.unfinished import all_rejected_text, limit_text, unfinished_text

_ORDER = ("accepted", "rejected", "failed", "pending")


class MethodCommand:
    """`python -m data_gen COMMAND` of one method."""

    def __init__(self, method: type[GenerationMethod]):
        self.method, self.name, self.SUMMARY = method, method.command, method.summary

    def main(self, argv: list[str] | None = None) -> None:
        """The command; raises UserError for wrong flags or input, WorkError when rows are left pending."""
        with local_places(self.parser().parse_args(argv)) as args:
            self.make(args)

    def make(self, args: argparse.Namespace) -> None:
        """Makes the records that the flags ask for; errors as of `main`."""
        check(args, self.name)
        for flag in self.method.flags:
            flag.check(getattr(args, flag.name), self.name)
        values = [(flag, getattr(args, flag.name)) for flag in self.method.flags]
        of_all = {"structured": not args.no_schema, "redraws": args.redraws}
        reading = {flag.keyword: value for flag, value in values if flag.reads}
        options = {flag.keyword: value for flag, value in values if flag.is_option}
        method = self.method(**of_all, **options)
        then = tuple(make_method(flag.then, **of_all) for flag, value in values if flag.then and value)
        run_method(method, args, lambda: inputs(args, partial(self.method.read, **reading)), then)

    def parser(self) -> Parser:
        """The flags that all methods have (--input, --output, ..., those of a run), and its own."""
        from mmed_jax.llm_api.runner import add_run_flags

        description, _, examples = self.method.usage.partition("\n")
        parser = Parser(
            names_itself=True,
            prog=f"python -m data_gen {self.name}",
            description=description,
            epilog=textwrap.indent(examples, "    "),
        )
        add = parser.add_argument
        add("--input", type=InputPlace, metavar="PATHS", help="files or folders, with commas")
        add("--output", type=OutputPlace, metavar="FILE", help="records to write: a name ending in .jsonl or .jsonl.gz")
        add("--rejects", type=OutputPlace, metavar="FILE", help="rows that became no record (default: beside it)")
        add("--only", metavar="CODES", help=f"inputs in these languages: {','.join(LANGUAGES)}")
        add("--limit", metavar="N", type=int, help="only the first N inputs: a sample before a full run")
        add("--no_schema", action="store_true", help="for endpoints without structured output")
        add("--redraws", metavar="N", type=int, default=1, help="ask again N times for unusable answers")
        add_run_flags(parser)
        for flag in self.method.flags:
            flag.add_to(parser)
        return parser


COMMANDS = {method.command: MethodCommand(method) for method in METHODS.values() if method.command}


def check(args: argparse.Namespace, command: str) -> None:
    """What can be told wrong before anything is read or sent. Raises UserError."""
    for name in ("input", "output"):
        if not getattr(args, name):
            raise UserError(f"{command}: --{name} is missing (--help shows the flags)")
    if not args.output.endswith(jsonl.SUFFIXES):
        raise UserError(f"--output={args.output}: must end in {' or '.join(jsonl.SUFFIXES)}")
    args.rejects = args.rejects or _default_rejects(args.output)
    if not args.rejects.endswith(jsonl.SUFFIXES):
        raise UserError(f"--rejects={args.rejects}: must end in {' or '.join(jsonl.SUFFIXES)}")
    written = [Path(args.output).resolve(), Path(args.rejects).resolve()]
    if written[0] == written[1]:
        raise UserError(f"--rejects={args.rejects}: is the --output file")
    for flag, path in (("--output", args.output), ("--rejects", args.rejects)):
        check_folder(Path(path).parent, flag)
        check_file(path, flag)
    for path in _paths(args):
        if Path(path).resolve() in written:
            raise UserError(f"--output={path}: is an input itself")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit={args.limit}: must be 1 or more")
    if args.redraws < 0:
        raise UserError(f"--redraws={args.redraws}: must be 0 or more")
    for code in codes(args.only or ""):
        if code not in LANGUAGES:
            raise UserError(f"--only={code}: not a language{nearest(code, LANGUAGES)}")


def _default_rejects(output: str) -> str:
    suffix = next(s for s in (".jsonl.gz", ".jsonl") if output.endswith(s))
    return f"{output.removesuffix(suffix)}.rejects{suffix}"


def _paths(args: argparse.Namespace) -> list[str]:
    return [p.strip() for p in args.input.split(",") if p.strip()]


def inputs(args: argparse.Namespace, read: Callable[[str], Iterable[dict]]) -> Iterator[dict]:
    """The inputs of a command, streaming; `read` reads one path.

    Raises UserError for an id that stands twice: its rows could not be told apart.
    """
    only, seen = set(codes(args.only or "")), set()

    def each() -> Iterator[dict]:
        for path in _paths(args):
            item = None
            for item in read(path):
                if only and item["language"] not in only:
                    continue
                if item["id"] in seen:
                    raise UserError(f"{path}: id '{item['id']}' stands twice in the input")
                seen.add(item["id"])
                yield item
            if item is None:
                raise UserError(f"--input={path}: holds no records")

    return islice(each(), args.limit)


def run_method(method, args: argparse.Namespace, items: Callable[[], Iterable[dict]], then: tuple = ()) -> None:
    """Runs a method over the inputs that `items()` gives anew each time, and the methods `then` over its records.

    Writes records and rejects, prints tables. What an enriching method leaves out follows its records unchanged;
    a record that got no label stays where it was.
    Files are written atomically. Raises WorkError when rows are left pending (a stop by --max_usd, --max_requests: told
    with the ledger's total) or failed (the endpoint would not answer them): the same command goes on. And when every
    row was rejected: more likely a fault of the model, the endpoint or the parameters than of each row.
    """
    if not args.dry_run:
        console.outlive()
    rejects: list[str] = []
    for number, one in enumerate((method, *then)):
        if number:
            items = partial(read_records, args.output)
        counts = _pass(one, args, items, rejects)
        jsonl.write_lines(args.rejects, rejects)
        print(f"written: {args.output}, {args.rejects}", flush=True)
        unfinished = {state: sum(n for (s, _), n in counts.items() if s == state) for state in ("pending", "failed")}
        if any(unfinished.values()):
            from mmed_jax.llm_api.runner import settings_from

            raise WorkError(unfinished_text(**unfinished, limit=limit_text(settings_from(args))))
        if problem := all_rejected_text(counts):
            raise WorkError(f"{one.name}: {problem}; see {args.rejects}")


def _pass(
    method, args: argparse.Namespace, items: Callable[[], Iterable[dict]], rejects: list[str]
) -> Counter[tuple[str, str]]:
    """One method from its inputs to the output file; adds lines to `rejects`. Returns rows by (state, reason)."""
    from mmed_jax.llm_api.runner import run, settings_from

    settings = settings_from(args)
    for path in (args.output, args.rejects):
        remove_temporaries(Path(path))
    # The whole input is read before the first request, so that a fault in its last line costs nothing.
    total = sum(len(method.languages_for(item)) for item in items())
    settings = replace(settings, total=total)
    gates = default_gates(method.name)
    counts: Counter[tuple[str, str]] = Counter()
    flags: Counter[str] = Counter()
    record_count = unlabelled = 0

    def lines() -> Generator[str, None, None]:
        nonlocal record_count, unlabelled
        with closing(run(method, items(), settings, gates)) as outcomes:  # whatever ends this ends the ledger in order
            for outcome in outcomes:
                counts[outcome.state, outcome.reason] += 1
                if outcome.state != "accepted":
                    rejects.append(jsonl.dump_line(_reject(outcome)))
                    if method.labels and outcome.reason != "key":  # "key" is the label's verdict on the row
                        unlabelled += 1
                        yield jsonl.dump_line(outcome.job.parent)
                for record in outcome.records if outcome.state == "accepted" else ():
                    record_count += 1
                    flags.update(record["provenance"].get("flags", ()))
                    yield jsonl.dump_line(record)
        if method.skipped_ids:
            yield from (jsonl.dump_line(r) for r in items() if r["id"] in method.skipped_ids)

    if settings.dry_run:
        deque(lines(), maxlen=0)  # prints the estimate and leaves
    with closing(lines()) as made_lines:
        jsonl.write_lines(args.output, made_lines)
    print(f"{method.name}\n{summary(method, counts, flags, record_count, unlabelled)}", flush=True)
    return counts


def _reject(outcome) -> dict:
    job = outcome.job
    return {
        "row_id": job.row_id,
        "method": job.method,
        "state": outcome.state,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "key": job.request.key,
    }


def summary(method, counts: Counter, flags: Counter, record_count: int, unlabelled: int) -> str:
    """The table: inputs left out, rows by state and reason (they add up), records made, kept without a label, flags."""
    verb = "left as it is" if method.enriches else "left out"
    lines = [(f"{verb}: {why}", n) for why, n in method.skipped.most_common()]
    lines.append(("rows", sum(counts.values())))
    for state in _ORDER:
        of_state = {reason: n for (s, reason), n in counts.items() if s == state}
        if of_state or state == "accepted":
            lines.append((f"  {state}", sum(of_state.values())))
        lines += [(f"    {reason}", n) for reason, n in sorted(of_state.items(), key=lambda x: -x[1]) if reason]
    lines.append(("records", record_count))
    if unlabelled:
        lines.append(("records kept without a label", unlabelled))
    lines += [(f"  flagged {name}", n) for name, n in flags.most_common()]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {n:>9,}" for name, n in lines)
