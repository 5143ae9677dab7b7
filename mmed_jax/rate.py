"""Ratings of generated rationales: by people, by a model, and how far they and the metrics agree.

    python -m mmed_jax.rate sheet --runs=ours=eval/ours,base=eval/base --items=20 --output=ratings/rater1.xlsx
    python -m mmed_jax.rate judge --runs=ours=eval/ours,base=eval/base --items=20 --model=gpt-4o --output=gpt.jsonl
    python -m mmed_jax.rate correlate --ratings=human=ratings/rater1.xlsx+ratings/rater2.xlsx,gpt=gpt.jsonl \\
        --runs=ours=eval/ours,base=eval/base --output=ratings/agreement

Runs are folders written by `python -m mmed_jax.evaluate --mode=rationale`. `sheet` and `judge` take the items that all
runs explained; equal --items, --seed, --languages and --checked take equal items. `correlate` gives Kendall's tau-b of
any two ratings and the slope of the line through the runs, with bootstrap intervals; the rating named first is along x.
With --runs the metrics of the rated explanations are ratings as well.
"""

import argparse
import sys
from pathlib import Path

from mmed_jax.common import console, jsonl
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, nearest, run_command
from mmed_jax.common.output_files import check_folder, csv_text, write_json, write_text
from mmed_jax.common.paths import expand_home
from mmed_jax.evaluation.metrics.text_similarity import BERTSCORE, all_metrics, default_metrics, score_rationales
from mmed_jax.evaluation.ratings import correlation
from mmed_jax.evaluation.ratings.explanations import Explanation, Key, explanations, load_runs, named_paths
from mmed_jax.evaluation.ratings.sheets import CRITERIA, dump_ratings, read_ratings, write_sheet


def main(argv: list[str] | None = None) -> None:
    """The rate command; see the module's docstring and `--help`."""
    commands = {"sheet": _sheet, "judge": _judge, "correlate": _correlate}
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in commands:
        if argv[:1] in (["-h"], ["--help"]):
            print(__doc__)
            return
        raise UserError(f"rate: no command '{argv[0] if argv else ''}'{nearest(argv[0] if argv else '', commands)}")
    commands[argv[0]](argv[1:])


def _sheet(argv: list[str]) -> None:
    parser = _parser("sheet", "Writes a blind rating sheet.")
    _add_runs(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="the sheet: .xlsx or .csv")
    parser.add_argument("--scale", type=int, default=5, metavar="N", help="numbers from 1 to N (%(default)s)")
    parser.add_argument("--criteria", default=",".join(CRITERIA), metavar="A,B", help="columns (%(default)s; overall)")
    args = parser.parse_args(argv)
    if Path(args.output).exists():
        raise UserError(f"--output={args.output}: is there already, perhaps filled in; name another file")
    check_folder(Path(args.output).parent, "--output")
    found = _found(args)
    criteria = [c.strip() for c in args.criteria.split(",") if c.strip()]
    key = write_sheet(args.output, found, seed=args.seed, scale=args.scale, criteria=criteria)
    print(f"{len(found):,} explanations of {len({e.key[1:] for e in found}):,} items")
    print(f"written: {args.output} for the rater, {key} (who wrote what; keep it, it is needed to read the sheet)")


def _judge(argv: list[str]) -> None:
    from mmed_jax.llm_api.run_settings import add_run_flags, settings_from

    parser = _parser("judge", "Asks a model for grades.")
    _add_runs(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="grades to write: a name ending in .jsonl")
    parser.add_argument("--no_schema", action="store_true", help="for endpoints without structured output")
    parser.add_argument("--redraws", metavar="N", type=int, default=1, help="ask again N times for unusable answers")
    add_run_flags(parser)
    args = parser.parse_args(argv)
    if not args.output.endswith(".jsonl"):
        raise UserError(f"--output={args.output}: must end in .jsonl")
    check_folder(Path(args.output).parent, "--output")
    console.outlive()
    from mmed_jax.evaluation.ratings.rationale_judge import judge

    found, settings = _found(args), settings_from(args)
    done = judge(found, settings, structured=not args.no_schema, redraws=args.redraws)
    jsonl.write_lines(args.output, dump_ratings(done.scores, model=settings.model, prompt=done.prompt))
    print(f"{len(done.scores):,} of {len(found):,} explanations graded by {settings.model}, prompt {done.prompt}")
    _print_means({"judge": _plain(done.scores, "")})
    print(f"written: {args.output}")
    if done.left:
        (run, benchmark, name), state, reason = done.left[0]
        first = f"{run} {benchmark} {name}: {state} {reason}".rstrip()
        raise WorkError(f"{len(done.left)} explanations got no grade, the first {first}; the same command goes on")


def _correlate(argv: list[str]) -> None:
    parser = _parser("correlate", "Kendall's tau-b of any two ratings.")
    parser.add_argument("--ratings", required=True, metavar="NAME=FILE[+FILE],..", help="sheets, judges' .jsonl files")
    parser.add_argument("--runs", metavar="NAME=DIR,..", help="the rated runs, for the metrics")
    parser.add_argument("--metrics", default=",".join(default_metrics()), metavar="A,B", help="%(default)s")
    parser.add_argument("--bertscore_model", metavar="DIR", help="adds BERTScore, with the model in this folder")
    parser.add_argument("--criterion", default="", metavar="NAME", help="one criterion (default: the mean of all)")
    parser.add_argument("--resamples", type=int, default=correlation.RESAMPLES, help="of the bootstrap (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    parser.add_argument("--output", required=True, metavar="DIR", help="where correlation.json and .csv go")
    args = parser.parse_args(argv)
    if args.resamples < 100:
        raise UserError(f"--resamples={args.resamples}: must be 100 or more")
    output = expand_home(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={args.output}: is a file; name a folder")
    ratings: dict[str, dict[Key, float]] = {}
    for name, paths in named_paths(args.ratings, "--ratings").items():
        ratings[name] = _mean([_rating(path, args.criterion) for path in paths.split("+")])
    if args.runs:
        _add_metrics(ratings, args)
    if len(ratings) < 2:
        raise UserError("--ratings: names one rating; a second, or --runs for the metrics, is needed beside it")
    rows = correlation.correlate(ratings, resamples=args.resamples, seed=args.seed)
    if not any(r["count"] for r in rows):
        raise UserError("--ratings: no explanation was rated twice; are the runs named alike in all of them?")
    output = check_folder(output, "--output")
    write_json(
        output / "correlation.json",
        {
            "statistic": "Kendall's tau-b; slope of b on a through the runs' mean places",
            "interval": "95 % percentile bootstrap over questions",
            "seed": args.seed,
            "resamples": args.resamples,
            "criterion": args.criterion or "mean of all",
            "pairs": rows,
            "means": correlation.means(ratings),
        },
    )
    head = (
        "rating",
        "with",
        "explanations",
        "questions",
        "tau_b",
        "low95",
        "high95",
        "slope",
        "slope_low95",
        "slope_high95",
        "slope_questions",
    )
    lines = [
        [
            r["b"],
            r["a"],
            r["count"],
            r["items"],
            r["tau"],
            *(r["interval95"] or ("", "")),
            r["slope"],
            *(r["slope_interval95"] or ("", "")),
            r["slope_items"],
        ]
        for r in rows
    ]
    write_text(output / "correlation.csv", csv_text(head, lines))
    print(correlation.table(rows) + "\n")
    _print_means(ratings)
    print(f"written: {output}/correlation.json, correlation.csv")


def _rating(path: str, criterion: str) -> dict[Key, float]:
    read = read_ratings(path.strip())
    if read.unrated:
        print(f"{path}: {read.unrated} rows are not rated", file=sys.stderr)
    known = {c for scores in read.scores.values() for c in scores}
    if criterion and criterion not in known:
        raise UserError(f"--criterion={criterion}: {path} does not have it{nearest(criterion, sorted(known))}")
    return _plain(read.scores, criterion)


def _plain(scores: dict[Key, dict[str, float]], criterion: str) -> dict[Key, float]:
    return {k: v[criterion] if criterion else sum(v.values()) / len(v) for k, v in scores.items()}


def _mean(raters: list[dict[Key, float]]) -> dict[Key, float]:
    """What several raters say together: the mean over those who rated an explanation."""
    keys = dict.fromkeys(k for r in raters for k in r)
    return {k: sum(r[k] for r in raters if k in r) / sum(k in r for r in raters) for k in keys}


def _add_metrics(ratings: dict[str, dict[Key, float]], args: argparse.Namespace) -> None:
    names = [m.strip() for m in args.metrics.split(",") if m.strip()]
    names += [BERTSCORE] if args.bertscore_model and BERTSCORE not in names else []
    for name in names:
        if name in ratings:
            raise UserError(f"--ratings: '{name}' is the name of a metric; call the rating something else")
        if name not in all_metrics():
            raise UserError(f"--metrics={name}: not a metric{nearest(name, all_metrics())}")
    runs = load_runs(named_paths(args.runs, "--runs"))
    rated = {k for scores in ratings.values() for k in scores}
    for unknown in sorted({k[0] for k in rated} - set(runs)):
        raise UserError(f"--runs: has no run '{unknown}', which was rated{nearest(unknown, runs)}")
    rows = {(run, r["benchmark"], r["id"]): r for run, lines in runs.items() for r in lines}
    keys = sorted(rated)
    for run, benchmark, item in keys:
        if not rows.get((run, benchmark, item), {}).get("rationale"):
            raise UserError(f"--runs={run}: {benchmark} {item} was rated and is not there with a reference")
    pairs = [(rows[k]["language"], rows[k].get("generated_rationale") or "", rows[k]["rationale"]) for k in keys]
    scored = score_rationales(pairs, names, bertscore_model=args.bertscore_model)
    for name in names:
        ratings[name] = {k: row[name] for k, row in zip(keys, scored) if row[name] is not None}


def _print_means(ratings: dict[str, dict[Key, float]]) -> None:
    by_run = correlation.means(ratings)
    width = max(len(run) for run in [*by_run, "mean of"])
    columns = [max(len(name), 7) for name in ratings]
    print("  ".join(["mean of".ljust(width), *(n.rjust(w) for n, w in zip(ratings, columns))]))
    for run, cells in by_run.items():
        shown = [f"{cells[n]:.3f}" if n in cells else "-" for n in ratings]
        print("  ".join([run.ljust(width), *(c.rjust(w) for c, w in zip(shown, columns))]))
    print()


def _parser(command: str, text: str) -> Parser:
    return Parser(
        prog=f"python -m mmed_jax.rate {command}",
        description=text,
        epilog=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", required=True, metavar="NAME=DIR,..", help="evaluations in rationale mode")
    parser.add_argument("--items", type=int, default=0, metavar="N", help="at most N items a language (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="draws items, codes and order (%(default)s)")
    parser.add_argument("--languages", default="", metavar="en,zh,..", help="only these")
    parser.add_argument("--checked", action="store_true", help="only items whose reference people have checked")


def _found(args: argparse.Namespace) -> list[Explanation]:
    if args.items < 0:
        raise UserError(f"--items={args.items}: must be 0 (all) or more")
    languages = [c.strip() for c in args.languages.split(",") if c.strip()]
    runs = load_runs(named_paths(args.runs, "--runs"))
    return explanations(runs, items=args.items, seed=args.seed, checked=args.checked, languages=languages)


if __name__ == "__main__":
    run_command(main)
