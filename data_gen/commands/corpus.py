"""Corpora of running text for continued pretraining.

    python -m data_gen corpus build --recipe=mmedc --data_dir=raw --output=corpora/mmedc --benchmarks=test_sets
    python -m data_gen corpus build ... --executor=slurm --slurm.partition=cpu --tasks=2000
    python -m data_gen corpus build ... --executor=ray --ray.address=auto
    python -m data_gen corpus build --recipe=mmedc:demo --output=corpora/demo
    python -m data_gen corpus tokenize --input=corpora/mmedc --tokenizer=models/Meta-Llama-3-8B --output=tables/mmedc

Stop it at any time; the same command goes on. The same inputs and the same recipe give the same bytes.
"""

import argparse
import sys
from collections.abc import Callable
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
from data_gen.commands.corpus_tokenize import tokenize_corpus
from data_gen.corpus.requirements import check_extra
from mmed_jax.common import console
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest, run_command
from mmed_jax.common.place_flags import BuiltOutput, InputPlace
from mmed_jax.config.overrides import split_overrides

SUMMARY = "a corpus for continued pretraining: build, tokenize"


def _parser() -> Parser:
    parser = Parser(
        names_itself=True,
        prog="python -m data_gen corpus build",
        description=__doc__.partition("\n")[0],
        epilog="--recipe.KEY=VALUE sets any key of the recipe; data_gen/corpus/corpus_recipe.py explains each.\n"
        + CLUSTER_FLAGS,
    )
    parser.add_argument("--recipe", metavar="NAME[:VARIANT]", help="mmedc, or a .py file")
    parser.add_argument("--data_dir", type=InputPlace, metavar="DIR", default=".", help="where the inputs lie")
    parser.add_argument("--output", type=BuiltOutput, metavar="DIR", help="folder of the corpus")
    parser.add_argument(
        "--benchmarks", type=InputPlace, metavar="DIR", default="", help="test sets that no document may give away"
    )
    parser.add_argument(
        "--earlier", type=InputPlace, metavar="DIR,..", default="", help="finished corpora whose documents are left out"
    )
    parser.add_argument("--licenses", metavar="NAME", default="", help="which to let in: open (default), research, all")
    parser.add_argument("--format", metavar="NAME", default="", help="of the finished files: jsonl (default), parquet")
    add_executor(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags, recipe or input, WorkError when work is left."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(f"{__doc__}\ncommands: {', '.join(COMMANDS)} (python -m data_gen corpus COMMAND --help)")
        return
    if args[0] not in COMMANDS:
        raise UserError(f"data_gen corpus: no command '{args[0]}'{nearest(args[0], COMMANDS)}")
    COMMANDS[args[0]](args[1:])


def build_corpus(argv: list[str]) -> None:
    """`corpus build`; errors as of `main`."""
    flags, overrides = split_overrides(argv, "--recipe")
    flags, clusters = split_clusters(flags)
    args = _parser().parse_args(flags)
    for name in ("recipe", "output"):
        if not getattr(args, name):
            raise UserError(f"corpus build: --{name} is missing (--help shows the flags)")
    executor = make_executor(args, clusters)
    check_extra()
    console.outlive()
    from data_gen.corpus.corpus_build import FILES, FOLDERS

    with local_places(args) as places, build_place(args.output, FOLDERS, FILES) as place:
        write_corpus(places, place, executor, overrides)


def write_corpus(args: argparse.Namespace, place: BuildPlace, executor: Any, overrides: dict[str, str]) -> None:
    """Builds the corpus of --recipe and prints its counts; errors as of `main`."""
    from data_gen.corpus.corpus_build import CorpusBuild
    from data_gen.corpus.corpus_recipe import load_recipe

    if args.licenses:
        overrides["step.licenses.allow"] = args.licenses
    if args.format:
        overrides["output_format"] = args.format
    recipe = load_recipe(args.recipe, overrides)
    earlier = [path for path in args.earlier.split(",") if path]
    build = CorpusBuild(
        recipe,
        args.data_dir,
        place.output,
        executor,
        benchmarks=args.benchmarks,
        earlier=earlier,
        work=place.work,
        store=place.store,
        say=say,
    )
    summary = build()
    _print_books(summary, place.output)


COMMANDS: dict[str, Callable[[list[str]], None]] = {"build": build_corpus, "tokenize": tokenize_corpus}


def _print_books(summary: dict[str, Any], output: str) -> None:
    """Documents kept by language and dropped by reason."""
    kept: dict[str, int] = {}
    for _, language, n in summary["books"]["clean"]["kept"]:
        kept[language] = kept.get(language, 0) + n
    dropped: dict[str, int] = {}
    for stage in ("filter", "clean"):
        for _, _, step, reason, n in summary["books"][stage]["dropped"]:
            dropped[f"{step}: {reason}"] = dropped.get(f"{step}: {reason}", 0) + n
    read = sum(row[-1] for row in summary["books"]["filter"]["read"])
    rows = [("documents read", read), ("kept", sum(kept.values()))]
    rows += [(f"  {language or 'unknown'}", n) for language, n in sorted(kept.items(), key=lambda kv: -kv[1])]
    rows += sorted(dropped.items(), key=lambda kv: -kv[1])
    width = max(len(name) for name, _ in rows)
    for name, n in rows:
        print(f"{name:<{width}}  {n:>13,}")
    print(f"written: {output} (documents/, corpus.json, report.html, rejects.jsonl)")


if __name__ == "__main__":
    run_command(main)
