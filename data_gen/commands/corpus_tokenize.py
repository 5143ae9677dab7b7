"""`corpus tokenize`: a corpus as a packed table, which continued pretraining reads.

python -m data_gen corpus tokenize --input=corpora/mmedc --tokenizer=models/Meta-Llama-3-8B --output=tables/mmedc
"""

import argparse
from typing import Any

from data_gen.commands.corpus_executor import (
    CLUSTER_FLAGS,
    BuildPlace,
    add_executor,
    build_place,
    make_executor,
    say,
    split_clusters,
)
from data_gen.corpus.requirements import check_extra
from mmed_jax.common import console
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError
from mmed_jax.common.place_flags import BuiltOutput, InputPlace

# What workers would load for themselves, at seconds each.
_PRELOAD = ("data_gen.corpus.tokenize_stage", "data_gen.corpus.run_task", "transformers", "array_record.python")


def _parser() -> Parser:
    parser = Parser(
        names_itself=True,
        prog="python -m data_gen corpus tokenize",
        description=__doc__.partition("\n")[0],
        epilog=CLUSTER_FLAGS,
    )
    parser.add_argument(
        "--input", type=InputPlace, metavar="DIR|FILE", help="a finished corpus, or documents as JSONL, Parquet, text"
    )
    parser.add_argument(
        "--tokenizer", type=InputPlace, metavar="DIR", help="tokenizer of the model that will be trained"
    )
    parser.add_argument("--seq_len", type=int, default=8192, help="slots of a row (default 8192)")
    parser.add_argument("--output", type=BuiltOutput, metavar="DIR", help="folder of the table")
    parser.add_argument("--overlap", type=float, default=0.0, help="share that pieces of a document have in common (0)")
    parser.add_argument("--attend_across", action="store_true", help="one segment a row: attention across documents")
    parser.add_argument("--validation_fraction", type=float, default=0.001, help="documents held out (default 0.001)")
    parser.add_argument("--language", metavar="CODE", default="", help="of documents that say none")
    parser.add_argument("--source", metavar="NAME", default="", help="of files without a corpus (default: their name)")
    parser.add_argument("--unit_mb", type=float, default=100.0, help="MB of input that one task reads (default 100)")
    add_executor(parser)
    return parser


def tokenize_corpus(argv: list[str]) -> None:
    """The command; raises UserError for wrong flags or input, WorkError when work is left."""
    flags, clusters = split_clusters(argv)
    args = _parser().parse_args(flags)
    for name in ("input", "tokenizer", "output"):
        if not getattr(args, name):
            raise UserError(f"corpus tokenize: --{name} is missing (--help shows the flags)")
    executor = make_executor(args, clusters, _PRELOAD)
    check_extra()
    console.outlive()
    from data_gen.corpus.tokenize_stage import SPLITS
    from mmed_jax.data.packed_table import TABLE

    with local_places(args) as places, build_place(args.output, SPLITS, (TABLE,)) as place:
        write_table(places, place, executor)


def write_table(args: argparse.Namespace, place: BuildPlace, executor: Any) -> None:
    """Writes the table of --input and prints its counts; errors as of `tokenize_corpus`."""
    from data_gen.corpus.tokenize_build import TableBuild, find_corpus
    from data_gen.corpus.tokenize_stage import check_language
    from mmed_jax.data.documents import RowSettings

    check_language(args.language)
    corpus = find_corpus(args.input, args.source)
    build = TableBuild(
        corpus,
        args.tokenizer,
        place.output,
        RowSettings(args.seq_len, args.overlap, args.attend_across),
        executor,
        validation_fraction=args.validation_fraction,
        language=args.language,
        unit_mb=args.unit_mb,
        work=place.work,
        store=place.store,
        say=say,
    )
    _print_counts(build(), corpus.kinds, place.output)


def _print_counts(info: dict[str, Any], kinds: dict[str, str], output: str) -> None:
    from data_gen.corpus.token_tables import published_lines
    from mmed_jax.data.token_report import group_lines

    books = info["books"]
    for line in group_lines(info):
        say(line)
    say("\ntraining tokens beside the published corpus (ours / published):")
    for line in published_lines(info, kinds):
        say(line)
    if books["rejects"]:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in books["rejects"].items())
        say(f"could not be read: {reasons}; the first: {books['first_reject']}")
    if books["empty"]:
        say(f"documents of whose text the tokenizer makes nothing: {books['empty']:,}")
    say(f"written: {output} (table.json, {', '.join(f'{split}/' for split in info['splits'])})")
