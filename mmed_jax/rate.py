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
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, nearest, run_command
from mmed_jax.common.output_files import check_folder, write_json, write_text
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import InputPlace, OutputPlace, SheetPlace
from mmed_jax.evaluation.metrics.text_similarity import BERTSCORE, all_metrics, default_metrics, score_rationales
from mmed_jax.evaluation.ratings.correlation import (
    RESAMPLES,
    correlate,
    correlation_csv,
    correlation_table,
    mean_ratings,
)
from mmed_jax.evaluation.ratings.explanations import Explanation, Key, load_runs, named_paths, select_explanations
from mmed_jax.evaluation.ratings.sheets import CRITERIA, dump_ratings, read_ratings, write_sheet


def main(argv: list[str] | None = None) -> None:
    """The rate command; see the module's docstring and `--help`."""
    commands = {"sheet": write_rating_sheet, "judge": judge_explanations, "correlate": correlate_ratings}
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in commands:
        if argv[:1] in (["-h"], ["--help"]):
            print(__doc__)
            return
        raise UserError(f"rate: no command '{argv[0] if argv else ''}'{nearest(argv[0] if argv else '', commands)}")
    commands[argv[0]](argv[1:])


# ---- rate sheet -----------------------------------------------------------------------------------------------------


def write_rating_sheet(argv: list[str]) -> None:
    """rate sheet: a blind sheet for people, and its key. Raises UserError."""
    parser = _parser("sheet", "Writes a blind rating sheet.")
    _add_runs(parser)
    parser.add_argument("--output", required=True, type=OutputPlace, metavar="FILE", help="the sheet: .xlsx or .csv")
    parser.add_argument("--scale", type=int, default=5, metavar="N", help="numbers from 1 to N (%(default)s)")
    parser.add_argument("--criteria", default=",".join(CRITERIA), metavar="A,B", help="columns (%(default)s; overall)")
    with local_places(parser.parse_args(argv)) as args:
        if Path(args.output).exists():
            raise UserError(f"--output={args.output}: is there already, perhaps filled in; name another file")
        check_folder(Path(args.output).parent, "--output")
        explanations = choose_explanations(args)
        criteria = [c.strip() for c in args.criteria.split(",") if c.strip()]
        key = write_sheet(args.output, explanations, seed=args.seed, scale=args.scale, criteria=criteria)
        print(f"{len(explanations):,} explanations of {len({e.key[1:] for e in explanations}):,} items")
        print(f"written: {args.output} for the rater, {key} (who wrote what; keep it, it is needed to read the sheet)")


# ---- rate judge -----------------------------------------------------------------------------------------------------


def judge_explanations(argv: list[str]) -> None:
    """rate judge: grades by a model, as a .jsonl file. Raises UserError, and WorkError when some got no grade."""
    from mmed_jax.llm_api.run_settings import add_run_flags, settings_from

    parser = _parser("judge", "Asks a model for grades.")
    _add_runs(parser)
    parser.add_argument(
        "--output", required=True, type=OutputPlace, metavar="FILE", help="grades to write: a name ending in .jsonl"
    )
    parser.add_argument("--no_schema", action="store_true", help="for endpoints without structured output")
    parser.add_argument("--redraws", metavar="N", type=int, default=1, help="ask again N times for unusable answers")
    add_run_flags(parser)
    with local_places(parser.parse_args(argv)) as args:
        if not args.output.endswith(".jsonl"):
            raise UserError(f"--output={args.output}: must end in .jsonl")
        check_folder(Path(args.output).parent, "--output")
        console.outlive()
        from mmed_jax.evaluation.ratings.rationale_judge import judge

        explanations, settings = choose_explanations(args), settings_from(args)
        judged = judge(explanations, settings, structured=not args.no_schema, redraws=args.redraws)
        jsonl.write_lines(args.output, dump_ratings(judged.scores, model=settings.model, prompt=judged.prompt))
        count = f"{len(judged.scores):,} of {len(explanations):,}"
        print(f"{count} explanations graded by {settings.model}, prompt {judged.prompt}")
        _print_means({"judge": _one_number(judged.scores, "")})
        print(f"written: {args.output}")
        if judged.ungraded:
            (run, benchmark, name), state, reason = judged.ungraded[0]
            first = f"{run} {benchmark} {name}: {state} {reason}".rstrip()
            raise WorkError(
                f"{len(judged.ungraded)} explanations got no grade, the first {first}; the same command goes on"
            )


# ---- rate correlate -------------------------------------------------------------------------------------------------


def correlate_ratings(argv: list[str]) -> None:
    """rate correlate: how far ratings, and the metrics of --runs, agree. Raises UserError."""
    with local_places(_parse_correlate(argv)) as args:
        output = expand_home(args.output)
        if output.exists() and not output.is_dir():
            raise UserError(f"--output={args.output}: is a file; name a folder")
        ratings = _load_ratings(args)
        rows = correlate(ratings, resamples=args.resamples, seed=args.seed)
        if not any(r["count"] for r in rows):
            raise UserError("--ratings: no explanation was rated twice; are the runs named alike in all of them?")
        output = check_folder(output, "--output")
        description = {
            "statistic": "Kendall's tau-b; slope of b on a through the runs' mean places",
            "interval": "95 % percentile bootstrap over questions",
            "seed": args.seed,
            "resamples": args.resamples,
            "criterion": args.criterion or "mean of all",
        }
        write_json(output / "correlation.json", {**description, "pairs": rows, "means": mean_ratings(ratings)})
        write_text(output / "correlation.csv", correlation_csv(rows))
        print(correlation_table(rows) + "\n")
        _print_means(ratings)
        print(f"written: {output}/correlation.json, correlation.csv")


def _parse_correlate(argv: list[str]) -> argparse.Namespace:
    parser = _parser("correlate", "Kendall's tau-b of any two ratings.")
    parser.add_argument(
        "--ratings", required=True, type=SheetPlace, metavar="NAME=FILE[+FILE],..", help="sheets, judges' .jsonl files"
    )
    parser.add_argument("--runs", type=InputPlace, metavar="NAME=DIR,..", help="the rated runs, for the metrics")
    parser.add_argument("--metrics", default=",".join(default_metrics()), metavar="A,B", help="%(default)s")
    parser.add_argument(
        "--bertscore_model", type=InputPlace, metavar="DIR", help="adds BERTScore, with the model in this folder"
    )
    parser.add_argument("--criterion", default="", metavar="NAME", help="one criterion (default: the mean of all)")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the bootstrap (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    parser.add_argument(
        "--output", required=True, type=OutputPlace, metavar="DIR", help="where correlation.json and .csv go"
    )
    args = parser.parse_args(argv)
    if args.resamples < 100:
        raise UserError(f"--resamples={args.resamples}: must be 100 or more")
    return args


def _load_ratings(args: argparse.Namespace) -> dict[str, dict[Key, float]]:
    """{name: {explanation: number}} of the files of --ratings, and of the metrics where --runs are named."""
    ratings: dict[str, dict[Key, float]] = {}
    for name, paths in named_paths(args.ratings, "--ratings").items():
        ratings[name] = _mean_of_raters([_load_rating(path, args.criterion) for path in paths.split("+")])
    if args.runs:
        _add_metrics(ratings, args)
    if len(ratings) < 2:
        raise UserError("--ratings: names one rating; a second, or --runs for the metrics, is needed beside it")
    return ratings


def _load_rating(path: str, criterion: str) -> dict[Key, float]:
    rating = read_ratings(path.strip())
    if rating.unrated:
        print(f"{path}: {rating.unrated} rows are not rated", file=sys.stderr)
    known = {c for scores in rating.scores.values() for c in scores}
    if criterion and criterion not in known:
        raise UserError(f"--criterion={criterion}: {path} does not have it{nearest(criterion, sorted(known))}")
    return _one_number(rating.scores, criterion)


def _one_number(scores: dict[Key, dict[str, float]], criterion: str) -> dict[Key, float]:
    """Of each explanation the number of one criterion, or the mean of all for ""."""
    return {k: v[criterion] if criterion else sum(v.values()) / len(v) for k, v in scores.items()}


def _mean_of_raters(raters: list[dict[Key, float]]) -> dict[Key, float]:
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
    by_run = mean_ratings(ratings)
    width = max(len(run) for run in [*by_run, "mean of"])
    columns = [max(len(name), 7) for name in ratings]
    print("  ".join(["mean of".ljust(width), *(n.rjust(w) for n, w in zip(ratings, columns))]))
    for run, cells in by_run.items():
        shown = [f"{cells[n]:.3f}" if n in cells else "-" for n in ratings]
        print("  ".join([run.ljust(width), *(c.rjust(w) for c, w in zip(shown, columns))]))
    print()


def _parser(command: str, text: str) -> Parser:
    return Parser(prog=f"python -m mmed_jax.rate {command}", description=text, epilog=__doc__)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", required=True, type=InputPlace, metavar="NAME=DIR,..", help="evaluations in rationale mode"
    )
    parser.add_argument("--items", type=int, default=0, metavar="N", help="at most N items a language (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="draws items, codes and order (%(default)s)")
    parser.add_argument("--languages", default="", metavar="en,zh,..", help="only these")
    parser.add_argument("--checked", action="store_true", help="only items whose reference people have checked")


def choose_explanations(args: argparse.Namespace) -> list[Explanation]:
    """The explanations that --runs gave to the items that the flags choose. Raises UserError."""
    if args.items < 0:
        raise UserError(f"--items={args.items}: must be 0 (all) or more")
    languages = [c.strip() for c in args.languages.split(",") if c.strip()]
    runs = load_runs(named_paths(args.runs, "--runs"))
    return select_explanations(runs, items=args.items, seed=args.seed, checked=args.checked, languages=languages)


if __name__ == "__main__":
    run_command(main)
