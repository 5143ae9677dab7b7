"""Accuracy on medical benchmarks and record files, per language.

    python -m mmed_jax.evaluate list [--data_dir=DIR]
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --benchmark=mmedbench,medqa_us --data_dir=DIR --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --benchmark=papers --data_dir=hub --few_shot=3 --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --data=FILE.jsonl --mode=rationale --output=DIR
    python -m mmed_jax.evaluate --api_model=NAME --base_url=URL --benchmark=.. --data_dir=DIR --max_usd=5 --output=DIR

Multiple choice is asked in the language of the record, greedily, and the letters are read from the answer by fixed
rules (evaluation/extraction), or the options' log-likelihoods are compared (--mode=loglikelihood). Registered
benchmarks are read as published and counted; a name of --benchmark may also be a record file. Instruction records
count as right when the answer equals the reference word for word (NFKC, case and spaces aside): whether a model has
learned its texts, not whether it knows medicine. A model behind an OpenAI-compatible endpoint (--api_model) is asked
the same words through data_gen's ledger; --dry_run says what that may cost.

DIR gets results.json, predictions.jsonl and report.html. A stopped evaluation goes on where it was when it is called
again; results of other settings, modes or weights are never mixed into it. docs/evaluation.md says more.
"""

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from mmed_jax.common import console
from mmed_jax.common.checksums import write_json
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.journal import Journal
from mmed_jax.common.output_files import write_text
from mmed_jax.common.paths import expand_home
from mmed_jax.common.progress import Progress
from mmed_jax.data.records.reading import load_files
from mmed_jax.evaluation import scoring
from mmed_jax.evaluation.arguments import check, listed, parse
from mmed_jax.evaluation.benchmarks import select as B
from mmed_jax.evaluation.comparison.runs import SCORES
from mmed_jax.evaluation.extraction.extract import RULES_VERSION
from mmed_jax.evaluation.metrics import breakdown
from mmed_jax.evaluation.metrics.accuracy import summarise, table
from mmed_jax.evaluation.prompts.few_shot import choose_examples
from mmed_jax.evaluation.prompts.items import Item, PromptSettings, hide_passages, make_items, prompts_hash
from mmed_jax.evaluation.results_page import make_page
from mmed_jax.inference.load import say

if TYPE_CHECKING:
    from mmed_jax.evaluation.models.api import ApiModel
    from mmed_jax.evaluation.models.local import LocalModel

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
    args = parse(argv, __doc__)

    # ---- What is asked, of what; no device yet, and nothing sent ----------------------------------------------------
    if args.data:
        found = B.from_files(listed(args.data, "--data"))
    else:
        found = B.find(listed(args.benchmark, "--benchmark"), args.data_dir, args.split or "")
        found = [dataclasses.replace(b, encoding=args.encoding) for b in found]
    kind = B.kind_in(found, args.kind)
    model = _model(args)
    if not model.dry_run:
        console.outlive()
    family = args.prompt_family or model.prompts["prompt_family"]
    system = model.prompts["system_prompt"] if args.system is None else args.system
    mode = (args.mode or "direct") if kind == "mcq" else "exact_match"
    score = (args.score or "letter") if mode == "loglikelihood" else ""
    check(args, kind, mode, family, system)
    how = PromptSettings(mode, family, system, args.shuffle_options, score)
    new_tokens = model.room(scoring.MAX_NEW_TOKENS.get(mode, 0))
    items, data = _items(args, found, kind, how)
    items = model.prepare(items, how, new_tokens)

    open_book = any(i.record.get("context") for i in items) and args.book != "closed"
    settings = {
        "kind": kind,
        "mode": mode,
        "score": score or None,
        "normalise": args.normalise or scoring.DEFAULT_NORMALISE.get(score, "none"),
        "prompt_family": family if kind == "mcq" else "chat",
        "system_prompt": system,
        "few_shot": args.few_shot,
        "shuffle_seed": args.shuffle_options,
        "book": "open" if open_book else "closed",
        "languages": listed(args.languages, "--languages") if args.languages else None,
        "limit": args.limit,
        "max_new_tokens": new_tokens,
        **model.settings,
        "rules_version": RULES_VERSION,
        "prompts_sha256": prompts_hash(items),
    }
    output = expand_home(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={args.output}: is a file; name a folder")

    def open_journal() -> Journal:
        known = {**settings, **{f"model_{k}": v for k, v in model.identity.items()}}
        return Journal(output / "predictions.jsonl", known, ("benchmark", "id"))

    journal = open_journal()

    # ---- Asking -----------------------------------------------------------------------------------------------------
    done = {key for key, line in journal.done.items() if model.is_final(line)}
    todo = [k for k, item in enumerate(items) if item.key not in done]
    before = f", {len(done):,} already done" if done else ""
    say("data", f"{len(items):,} items of {', '.join(data)}{before}")
    for problem in filter(None, (d.get("count_mismatch") for d in data.values())):
        say("count", problem)
    length = f"at most {new_tokens} new tokens" if new_tokens else "answers of any length"
    end = f"{model.decoding}, {length}" if mode != "loglikelihood" else f"of the {score}"
    say("asking", f"{mode}, prompt family {settings['prompt_family']}, {args.few_shot} examples, {end}")
    say("output", str(output))
    asked = [items[k] for k in todo]
    if todo or model.dry_run:
        model.start(asked, how, settings, len(done))
        settings |= model.settings  # some are known only now
        journal = open_journal()
    bar = Progress(
        len(items), start=len(done), every=max(1, len(items) // 10), label="evaluate", is_main=not model.own_bar
    )
    with journal, bar:
        right = sum(line["correct"] for key, line in journal.done.items() if key in done)

        def on_line(line: dict) -> None:
            nonlocal right
            right += line["correct"]
            journal.append(line)
            done.add((line["benchmark"], line["id"]))
            bar.update(len(done), {"right": f"{right / len(done):.1%}"})

        if todo:
            model.ask(asked, todo, how, settings, on_line)
        predictions = journal.arrange(i.key for i in items)

    # ---- What came out ----------------------------------------------------------------------------------------------
    of_model, beside, lines = model.told(predictions)
    results = {
        "schema": 2,
        "metric": METRICS[score or kind],
        **{k: settings[k] for k in ("mode", "prompt_family", "few_shot", "shuffle_seed", "book")},
        "model": {"path": str(args.model or args.api_model), **model.identity, **of_model},
        **beside,
        "settings": {k: journal.settings[k] for k in settings},
        "prompts_sha256": settings["prompts_sha256"],
        "data": data,
        **summarise(items, predictions),
    }
    breakdown.add(results, items, predictions, data)
    if args.rationale_metrics:
        chosen = listed(args.rationale_metrics, "--rationale_metrics")
        breakdown.rationales(results, predictions, chosen, args.human_checked, args.bertscore_model, output)
    write_json(output / "results.json", results)
    write_text(output / "report.html", make_page(results, items, predictions))
    print(f"\n{results['metric']}\n\n{table(results)}\n")
    if more := breakdown.table(results):
        print(f"{more}\n")
    for name, d in data.items():
        if d["needs_image"]:
            print(f"left out   {d['needs_image']:,} of {name}: they need an image")
        if n := d["duplicates"]:
            print(f"note       {n:,} question{'s' if n > 1 else ''} of {name} {'are' if n > 1 else 'is'} there twice")
        several = sum("," in i.answer for i in items if i.benchmark == name)
        if score and several:
            print(f"note       {several:,} of {name} have several right answers, which one pick never is: wrong")
    for line in lines:
        print(line)
    for name, block in results["benchmarks"].items():
        if n := block.get("rationales_empty"):
            what, are = ("rationales", "are empty and score 0") if n > 1 else ("rationale", "is empty and scores 0")
            print(f"note       {n:,} {what} of {name} {are}")
    scores = f", {SCORES}" if args.rationale_metrics else ""
    print(f"written    {output}/results.json, predictions.jsonl, report.html{scores}")


def _model(args: argparse.Namespace) -> "LocalModel | ApiModel":
    """What is evaluated. Each way has imports of its own: a model behind an API needs no jax, ours no data_gen."""
    if args.api_model is not None:
        from mmed_jax.evaluation.models.api import ApiModel

        return ApiModel(args)
    from mmed_jax.evaluation.models.local import LocalModel

    return LocalModel(args)


def _items(
    args: argparse.Namespace, found: list[B.Benchmark], kind: str, how: PromptSettings
) -> tuple[list[Item], dict[str, dict]]:
    """(items, {benchmark: what is said of it in results.json}) of everything that is asked."""
    languages = listed(args.languages, "--languages") if args.languages else None
    told = load_files([args.few_shot_data], "mcq") if args.few_shot_data else None
    items, data = [], {}
    read = [
        (
            b,
            B.load(
                b,
                kind,
                split=args.split or "",
                languages=languages,
                limit=args.limit,
                images=args.images or "",
                count_mismatch=args.allow_count_mismatch,
                pools=args.few_shot > 0 and told is None,
            ),
        )
        for b in found
    ]
    B.check_apart(read)
    for b, loaded in read:
        records, pools, info = loaded.records, loaded.pools, loaded.info
        has = any(r.get("context") for r in records)
        info["passages"] = ("hidden" if args.book == "closed" else "shown") if has else None
        if args.book == "closed":
            records, pools = hide_passages(records), {s: hide_passages(p) for s, p in pools.items()}
        part_field = b.entry.part_field if b.entry else ""
        examples = {}
        if args.few_shot:
            if told is not None:
                pools = {args.few_shot_data: hide_passages(told) if args.book == "closed" else told}
            field = "" if told is not None else part_field
            examples = choose_examples(b.name, pools, records, args.few_shot, how.prompt_mode, field)
            info["few_shot"] = {"/".join(filter(None, k)): [r["id"] for r in v] for k, v in examples.items()}
        items += make_items(b.name, records, how, examples=examples, part_field=part_field)
        data[b.name] = {**info, "published_average": "overall"}
        if b.entry and b.entry.name == "mmedbench" and not b.part:
            data[b.name]["published_average"] = "mean_over_languages"
    if args.book and not any(d["passages"] for d in data.values()):
        raise UserError(f"--book={args.book}: no question of {', '.join(data)} has a passage; leave it out")
    return items, data


def _list_benchmarks(argv: list[str]) -> None:
    """evaluate list [--data_dir=DIR]"""
    from mmed_jax.evaluation.benchmarks import list as catalogue

    parser = Parser(prog="python -m mmed_jax.evaluate list", description="Benchmarks by name.", allow_abbrev=False)
    parser.add_argument("--data_dir", metavar="DIR", help="also show which of them lie there")
    args = parser.parse_args(argv)
    here = catalogue.in_folder(args.data_dir) if args.data_dir else ""
    print(catalogue.registered())
    if here:
        print(f"\nin {args.data_dir}\n{here}")


if __name__ == "__main__":
    run_command(main)
