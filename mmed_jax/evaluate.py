"""Accuracy on medical benchmarks and record files, per language.

    python -m mmed_jax.evaluate list [--data_dir=DIR]
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --benchmark=mmedbench,medqa_us --data_dir=DIR --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --benchmark=papers --data_dir=hub --few_shot=3 --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --data=FILE.jsonl --mode=rationale --output=DIR

Multiple choice is asked in the language of the record, greedily, and the letters are read from the answer by fixed
rules (mmed_jax/evaluation/answers.py), or the options' log-likelihoods are compared (--mode=loglikelihood). Registered
benchmarks are read as published and counted; a name of --benchmark may also be a record file. Instruction records
count as right when the answer equals the reference word for word (NFKC, case and spaces aside): whether a model has
learned its texts, not whether it knows medicine.

DIR gets results.json, predictions.jsonl and report.html. A stopped evaluation goes on where it was when it is called
again; results of other settings, modes or weights are never mixed into it. docs/evaluation.md says more.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmed_jax.config import Parser
from mmed_jax.data.prompts import FAMILIES
from mmed_jax.data.schema import load_files
from mmed_jax.errors import UserError, run_command
from mmed_jax.evaluation import benchmarks as B
from mmed_jax.evaluation import breakdown, modes
from mmed_jax.evaluation.answers import RULES_VERSION
from mmed_jax.evaluation.items import MAX_EXAMPLES, Asking, Item, choose_examples, closed_book, make_items, prompts_hash
from mmed_jax.evaluation.rationale import DEFAULT
from mmed_jax.evaluation.report import make_page
from mmed_jax.evaluation.results import summarise, table
from mmed_jax.inference.journal import Journal
from mmed_jax.inference.load import add_arguments, identity, load_engine, say, trained_prompts
from mmed_jax.manifest import write_json
from mmed_jax.outputs import write_text
from mmed_jax.progress import Progress

METRICS = {
    "mcq": "Accuracy: the letters read from the generated answer are exactly the right ones",
    "instruction": "Exact match: the generated answer equals the reference text (NFKC, case and spaces aside)",
    "letter": "Accuracy: the right letter has the largest log-likelihood",
    "option": "Accuracy: the right option's text has the largest log-likelihood",
}


def main(argv: list[str] | None = None) -> None:
    """The evaluate command; see the module's docstring and `--help`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["list"]:
        _list_benchmarks(argv[1:])
        return
    args = _arguments(argv)
    from mmed_jax.data.tokenizer import stop_ids
    from mmed_jax.hf.source import open_model
    from mmed_jax.inference.engine import check_prompts

    # ---- What is asked, with what; no device yet --------------------------------------------------------------------
    if args.data:
        found = B.from_files(_list(args.data, "--data"))
    else:
        found = B.find(_list(args.benchmark, "--benchmark"), args.data_dir)
    kind = B.kind_in(found, args.kind)
    source = open_model(args.model, args.step)
    trained = trained_prompts(source)
    family = args.prompt_family or trained["prompt_family"]
    system = trained["system_prompt"] if args.system is None else args.system
    mode = (args.mode or "direct") if kind == "mcq" else "exact_match"
    score = (args.score or "letter") if mode == "loglikelihood" else ""
    _check(args, kind, mode, family, system)
    new_tokens = modes.MAX_NEW_TOKENS.get(mode, 0) if args.max_new_tokens is None else args.max_new_tokens
    tok = source.tokenizer
    how = Asking(mode, family, system, args.shuffle_options, score)
    items, data = _items(args, tok, found, kind, how)
    names = [f"{i.benchmark} {i.id}" for i in items]
    longest = [i.prompt + list(max(i.choices, key=len, default=())) for i in items]
    check_prompts(source.cfg, longest, new_tokens if mode != "loglikelihood" else 1, names)

    open_book = any(i.record.get("context") for i in items) and args.book != "closed"
    settings = {
        "kind": kind, "mode": mode, "score": score or None,
        "normalise": args.normalise or modes.DEFAULT_NORMALISE.get(score, "none"),
        "prompt_family": family if kind == "mcq" else "chat", "system_prompt": system, "few_shot": args.few_shot,
        "shuffle_seed": args.shuffle_options, "book": "open" if open_book else "closed",
        "languages": _list(args.languages, "--languages") if args.languages else None, "limit": args.limit,
        "max_new_tokens": new_tokens, "dtype": args.dtype, "stop_ids": stop_ids(tok), "rules_version": RULES_VERSION,
        "prompts_sha256": prompts_hash(items),
    }  # fmt: skip
    output = Path(args.output).expanduser()
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={args.output}: is a file; name a folder")
    model = identity(source)

    def open_journal() -> Journal:
        known = {**settings, **{f"model_{k}": v for k, v in model.items()}}
        return Journal(output / "predictions.jsonl", known, ("benchmark", "id"))

    journal = open_journal()

    # ---- Asking -----------------------------------------------------------------------------------------------------
    todo = [k for k, item in enumerate(items) if item.key not in journal.done]
    before = f", {len(journal.done):,} already done" if journal.done else ""
    say("data", f"{len(items):,} items of {', '.join(data)}{before}")
    for problem in filter(None, (d.get("count_mismatch") for d in data.values())):
        say("count", problem)
    end = f"greedy, at most {new_tokens} new tokens" if mode != "loglikelihood" else f"of the {score}"
    say("asking", f"{mode}, prompt family {settings['prompt_family']}, {args.few_shot} examples, {end}")
    say("output", str(output))
    if todo:
        engine = load_engine(args, source, settings["stop_ids"])
        # Known only now: the compute dtype, and the step when the newest checkpoint turned out to be damaged.
        settings["dtype"], model = engine.dtype.name, identity(source)
        journal = open_journal()
    bar = Progress(len(items), start=len(journal.done), every=max(1, len(items) // 10), label="evaluate")
    with journal, bar:
        right = sum(p["correct"] for p in journal.done.values())

        def done(i: int, result: Any) -> None:
            nonlocal right
            item = items[todo[i]]
            text = "" if item.choices else tok.decode(result.ids, skip_special_tokens=True)
            line = modes.prediction(
                item, result, mode=mode, prompt=tok.decode(item.prompt), output=text, normalise=settings["normalise"]
            )
            right += line["correct"]
            journal.append(line)
            bar.update(len(journal.done), {"right": f"{right / len(journal.done):.1%}"})

        if todo:
            modes.ask(engine, [items[k] for k in todo], todo, new_tokens, done)
        predictions = journal.arrange(i.key for i in items)

    # ---- What came out ----------------------------------------------------------------------------------------------
    results = {
        "schema": 2,
        "metric": METRICS[score or kind],
        **{k: settings[k] for k in ("mode", "prompt_family", "few_shot", "shuffle_seed", "book")},
        "model": {"path": str(args.model), **model},
        "settings": {k: journal.settings[k] for k in settings},
        "prompts_sha256": settings["prompts_sha256"],
        "data": data,
        **summarise(items, predictions),
    }
    breakdown.add(results, items, predictions, data)
    if args.rationale_metrics:
        chosen = _list(args.rationale_metrics, "--rationale_metrics")
        breakdown.rationales(results, predictions, chosen, args.human_checked, args.bertscore_model, output)
    write_json(output / "results.json", results)
    write_text(output / "report.html", make_page(results, items, predictions))
    print(f"\n{results['metric']}\n\n{table(results)}\n")
    if more := breakdown.table(results):
        print(f"{more}\n")
    for name, d in data.items():
        if d["needs_image"]:
            print(f"left out   {d['needs_image']:,} of {name}: they need an image")
        several = sum("," in i.answer for i in items if i.benchmark == name)
        if score and several:
            print(f"note       {several:,} of {name} have several right answers, which one pick never is: wrong")
    print(f"written    {output}/results.json, predictions.jsonl, report.html")


def _items(
    args: argparse.Namespace, tok: Any, found: list[B.Benchmark], kind: str, how: Asking
) -> tuple[list[Item], dict[str, dict]]:
    """(items, {benchmark: what is said of it in results.json}) of everything that is asked."""
    languages = _list(args.languages, "--languages") if args.languages else None
    told = load_files([args.few_shot_data], "mcq") if args.few_shot_data else None
    items, data, passages = [], {}, False
    for b in found:
        loaded = B.load(
            b, kind, split=args.split or "", languages=languages, limit=args.limit, images=args.images or "",
            count_mismatch=args.allow_count_mismatch, pools=args.few_shot > 0 and told is None,
        )  # fmt: skip
        records, pools, info = loaded.records, loaded.pools, loaded.info
        passages |= any(r.get("context") for r in records)
        if args.book == "closed":
            records, pools = closed_book(records), {s: closed_book(p) for s, p in pools.items()}
        part_field = b.entry.part_field if b.entry else ""
        examples = {}
        if args.few_shot:
            if told is not None:
                pools = {args.few_shot_data: closed_book(told) if args.book == "closed" else told}
            field = "" if told is not None else part_field
            examples = choose_examples(b.name, pools, records, args.few_shot, how.prompt_mode, field)
            info["few_shot"] = {"/".join(filter(None, k)): [r["id"] for r in v] for k, v in examples.items()}
        items += make_items(tok, b.name, records, how, examples=examples, part_field=part_field)
        data[b.name] = {**info, "published_average": "overall"}
        if b.entry and b.entry.name == "mmedbench" and not b.part:
            data[b.name]["published_average"] = "mean_over_languages"
    if args.book and not passages:
        raise UserError(f"--book={args.book}: no question of {', '.join(data)} has a passage; leave it out")
    return items, data


def _check(args: argparse.Namespace, kind: str, mode: str, family: str, system: str) -> None:
    """Raises UserError for flags that contradict each other or the data."""
    if kind != "mcq":
        for flag in ("mode", "few_shot", "shuffle_options", "book", "images", "rationale_metrics"):
            value = getattr(args, flag)
            if value or (flag == "shuffle_options" and value is not None):
                raise UserError(f"--{flag}={value}: is for multiple choice; these are instruction records")
    if system and family == "mmedbench" and kind == "mcq":
        raise UserError("--system: the prompt family mmedbench has no place for a system message; pass --system=''")
    if mode != "loglikelihood":
        for flag in ("score", "normalise"):
            if getattr(args, flag):
                raise UserError(f"--{flag}={getattr(args, flag)}: goes with --mode=loglikelihood; the mode is {mode}")
    elif args.max_new_tokens is not None:
        raise UserError("--max_new_tokens: --mode=loglikelihood writes nothing; leave it out")
    if args.normalise not in (None, "none") and args.score != "option":
        raise UserError(f"--normalise={args.normalise}: goes with --score=option; letters are compared as they are")
    if mode != "rationale" and args.rationale_metrics:
        raise UserError(f"--rationale_metrics: goes with --mode=rationale; the mode is {mode}")
    if args.rationale_metrics:
        breakdown.check_metrics(_list(args.rationale_metrics, "--rationale_metrics"), args.bertscore_model)


def _list(text: str, flag: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError(f"{flag}={text}: names nothing")
    return parts


def _list_benchmarks(argv: list[str]) -> None:
    """evaluate list [--data_dir=DIR]"""
    from mmed_jax.evaluation import catalogue

    parser = Parser(prog="python -m mmed_jax.evaluate list", description="Benchmarks by name.", allow_abbrev=False)
    parser.add_argument("--data_dir", metavar="DIR", help="also show which of them lie there")
    args = parser.parse_args(argv)
    here = catalogue.in_folder(args.data_dir) if args.data_dir else ""
    print(catalogue.registered())
    if here:
        print(f"\nin {args.data_dir}\n{here}")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mmed_jax.evaluate", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    add = parser.add_argument
    add("--benchmark", metavar="NAME[,NAME]", help="registered names (see list), 'papers', or record files NAME.jsonl")
    add("--data_dir", metavar="DIR|hub", help="where --benchmark names are looked up")
    add("--data", metavar="FILE[,FILE]", help="record files, instead of --benchmark")
    add("--split", help="of --benchmark, instead of the one that is reported")
    add("--allow_count_mismatch", action="store_true", help="go on when a split has not the published size")
    add("--kind", default="auto", help="mcq or instruction (default: what the records are)")
    add("--mode", choices=modes.MODES, help="the letter alone, after a rationale, or scored (default: direct)")
    add("--score", choices=modes.SCORES, help="of loglikelihood: the option's letter (default) or its text")
    add("--normalise", choices=modes.NORMALISE, help="of --score=option: compared a token, byte (default), ..")
    add("--prompt_family", choices=FAMILIES, help="default: as the run was trained, else llama3")
    add("--system", metavar="TEXT", help="system message (default: as the run was trained, else none)")
    add("--few_shot", type=int, default=0, metavar="N", help=f"examples before each question, 0 to {MAX_EXAMPLES}")
    add("--few_shot_data", metavar="FILE", help="records to take them from (default: the benchmark's other splits)")
    add("--shuffle_options", type=int, metavar="SEED", help="ask the options in an order drawn with this seed")
    add("--book", choices=("open", "closed"), help="with or without the passage (default: open where there is one)")
    add("--images", choices=("ask", "skip"), help="questions that need one (default: asked if the published count is)")
    add("--rationale_metrics", metavar="NAME[,NAME]", nargs="?", const=",".join(DEFAULT),
        help="of --mode=rationale, against the reference (default of the bare flag: all but bertscore)")  # fmt: skip
    add("--human_checked", action="store_true", help="--rationale_metrics only where people passed the reference")
    add("--bertscore_model", metavar="DIR", help="for --rationale_metrics=..,bertscore")
    add("--languages", metavar="en,zh,..", help="only these")
    add("--limit", type=int, default=0, help="at most so many items a language (or part) and benchmark")
    add("--max_new_tokens", type=int, help=f"default: {modes.MAX_NEW_TOKENS}")
    add("--output", required=True, metavar="DIR", help="where results go")
    args = parser.parse_args(argv)
    if bool(args.data) == bool(args.benchmark):
        raise UserError("name what to evaluate on: either --data=FILE or --benchmark=NAME with --data_dir=DIR")
    if args.benchmark and not args.data_dir:
        raise UserError("--benchmark: needs --data_dir=DIR, the folder with the files, or --data_dir=hub")
    if args.data and args.data_dir:
        raise UserError("--data_dir: goes with --benchmark=NAME; --data=FILE names the file itself")
    if args.data and args.split:
        raise UserError(f"--split={args.split}: goes with --benchmark=NAME; write --data=PATH:{args.split}")
    if args.data and args.allow_count_mismatch:
        raise UserError("--allow_count_mismatch: goes with --benchmark=NAME; files of your own are not counted")
    if args.limit < 0:
        raise UserError(f"--limit={args.limit}: must be 0 (all) or more")
    if not 0 <= args.few_shot <= MAX_EXAMPLES:
        raise UserError(f"--few_shot={args.few_shot}: must be 0 to {MAX_EXAMPLES}")
    if args.few_shot_data and not args.few_shot:
        raise UserError("--few_shot_data: goes with --few_shot=N, how many of its records are shown")
    for flag in ("human_checked", "bertscore_model"):
        if getattr(args, flag) and not args.rationale_metrics:
            raise UserError(f"--{flag}: goes with --rationale_metrics")
    return args


if __name__ == "__main__":
    run_command(main)
