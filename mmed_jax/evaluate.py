"""Accuracy on medical benchmarks and record files, per language.

    python -m mmed_jax.evaluate list [--data_dir=DIR]
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --benchmark=mmedbench,medqa_us --data_dir=DIR --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --benchmark=papers --data_dir=hub --few_shot=3 --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --data=FILE.jsonl --mode=rationale --output=DIR
    python -m mmed_jax.evaluate --model=BASE_DIR --adapter=PEFT_DIR --data=FILE.jsonl --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --perplexity=TEXTS.jsonl --output=DIR
    python -m mmed_jax.evaluate --api_model=NAME --base_url=URL --benchmark=.. --data_dir=DIR --max_usd=5 --output=DIR

Multiple choice is asked in the language of the record, greedily, and the letters are read from the answer by fixed
rules (evaluation/extraction), or the options' log-likelihoods are compared (--mode=loglikelihood). Registered
benchmarks are read as published and counted; a name of --benchmark may also be a record file. Instruction records
count as right when the answer equals the reference word for word (NFKC, case and spaces aside): whether a model has
learned its texts, not whether it knows medicine. A model behind an OpenAI-compatible endpoint (--api_model) is asked
the same words through the ledger of llm_api; --dry_run says what that may cost.

--perplexity asks nothing: it scores held-out texts, and gives loss, perplexity and bits per byte by language. A text
longer than --seq_len is read in windows that overlap, each of which scores its last --stride tokens.

DIR gets results.json, predictions.jsonl and report.html. A stopped evaluation goes on where it was when it is called
again; results of other settings, modes or weights are never mixed into it. docs/evaluation.md says more.
"""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmed_jax.common import console
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.journal import Journal
from mmed_jax.common.output_files import write_json, write_text
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import InputPlace
from mmed_jax.common.progress import Progress
from mmed_jax.data.records.reading import load_files
from mmed_jax.evaluation import scoring
from mmed_jax.evaluation.arguments import check_combination, parse_arguments, split_names
from mmed_jax.evaluation.benchmarks.list import list_folder, list_registered
from mmed_jax.evaluation.benchmarks.locate import Benchmark, locate_benchmarks, locate_files
from mmed_jax.evaluation.benchmarks.select import Selection, check_disjoint, common_kind, load_benchmark
from mmed_jax.evaluation.extraction.extract import RULES_VERSION
from mmed_jax.evaluation.prompts.few_shot import choose_examples
from mmed_jax.evaluation.prompts.items import Item, PromptSettings, hide_passages, make_items, prompts_hash
from mmed_jax.evaluation.results_json import SCORES, add_rationale_metrics, summarise
from mmed_jax.evaluation.results_page import make_page, read_baseline
from mmed_jax.evaluation.results_text import accuracy_table, breakdown_table, notes
from mmed_jax.inference.load import say

if TYPE_CHECKING:
    from mmed_jax.evaluation.models.api import ApiModel
    from mmed_jax.evaluation.models.local import LocalModel

    Model = LocalModel | ApiModel


def main(argv: list[str] | None = None) -> None:
    """The evaluate command; see the module's docstring and `--help`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["list"]:
        print_benchmarks(argv[1:])
        return
    with local_places(parse_arguments(argv, __doc__)) as args:
        if args.perplexity is not None:
            score_texts(args)
        else:
            answer_questions(args)


def answer_questions(args: argparse.Namespace) -> None:
    """evaluate --benchmark, or --data: a question is a line of predictions.jsonl as soon as it is answered."""
    # ---- Choose: which questions, in which prompts, for which model; no device is touched yet, and nothing sent -----
    benchmarks = choose_benchmarks(args)
    kind = common_kind(benchmarks, args.kind)
    model = choose_model(args)
    if not model.dry_run:
        console.outlive()
    prompt_settings = choose_prompts(args, kind, model.prompt_defaults)
    max_new_tokens = model.answer_limit(scoring.MAX_NEW_TOKENS.get(prompt_settings.mode, 0))
    items, data = load_items(args, benchmarks, kind, prompt_settings)
    items = model.prepare(items, prompt_settings, max_new_tokens)
    settings = collect_settings(args, kind, prompt_settings, max_new_tokens, model, items)
    output = output_folder(args)
    baseline = read_baseline(args.baseline, items) if args.baseline else None
    if baseline and baseline.path.resolve() == output.resolve():
        raise UserError(f"--baseline={args.baseline}: is the folder of --output; name that of another evaluation")

    # ---- Ask and score: an answer is a line of predictions.jsonl as soon as it is there ------------------------------
    journal = open_journal(output, settings, model)
    done = {key for key, line in journal.done.items() if model.is_final(line)}
    remaining = [k for k, item in enumerate(items) if item.key not in done]
    print_head(model, settings, output, data, len(items), len(done))
    if remaining or model.dry_run:
        model.start([items[k] for k in remaining], prompt_settings, settings, len(done))
        settings |= model.settings  # some are known only now
        journal = open_journal(output, settings, model)
    predictions = ask_and_score(model, items, remaining, done, prompt_settings, settings, journal)

    # ---- Summarise ---------------------------------------------------------------------------------------------------
    usage = model.usage(predictions)
    results = summarise(
        items,
        predictions,
        settings={k: journal.settings[k] for k in settings},
        model={"path": str(args.model or args.api_model), **model.identity, "tuning": model.tuning, **usage.model},
        data=data,
        usage=usage.results,
    )
    if args.rationale_metrics:
        metrics = split_names(args.rationale_metrics, "--rationale_metrics")
        add_rationale_metrics(results, predictions, metrics, args.human_checked, args.bertscore_model, output)
    write_json(output / "results.json", results)
    write_text(output / "report.html", make_page(results, items, predictions, baseline))

    # ---- Print -------------------------------------------------------------------------------------------------------
    print(f"\n{results['metric']}\n\n{accuracy_table(results)}\n")
    if breakdowns := breakdown_table(results):
        print(f"{breakdowns}\n")
    for line in notes(results, items, usage.lines):
        print(line)
    scores = f", {SCORES}" if args.rationale_metrics else ""
    print(f"written    {output}/results.json, predictions.jsonl, report.html{scores}")


# ---- Choose ---------------------------------------------------------------------------------------------------------


def choose_benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    """The benchmarks of --benchmark, or the record files of --data. Raises UserError."""
    if args.data:
        return locate_files(split_names(args.data, "--data"))
    benchmarks = locate_benchmarks(split_names(args.benchmark, "--benchmark"), args.data_dir, args.split or "")
    return [dataclasses.replace(b, encoding=args.encoding) for b in benchmarks]


def choose_model(args: argparse.Namespace) -> "Model":
    """The model of --model or --api_model. Each has imports of its own: a model behind an API needs no jax."""
    if args.api_model is not None:
        from mmed_jax.evaluation.models.api import ApiModel

        return ApiModel(args)
    from mmed_jax.evaluation.models.local import LocalModel

    return LocalModel(args)


def choose_prompts(args: argparse.Namespace, kind: str, defaults: dict[str, str]) -> PromptSettings:
    """How questions are put: as the flags say, else by `defaults`, the model's own. Raises UserError."""
    family = args.prompt_family or defaults["prompt_family"]
    system = defaults["system_prompt"] if args.system is None else args.system
    mode = (args.mode or "direct") if kind == "mcq" else "exact_match"
    score = (args.score or "letter") if mode == "loglikelihood" else ""
    check_combination(args, kind, mode, family, system)
    return PromptSettings(mode, family, system, args.shuffle_options, score)


def load_items(
    args: argparse.Namespace, benchmarks: Sequence[Benchmark], kind: str, prompt_settings: PromptSettings
) -> tuple[list[Item], dict[str, dict]]:
    """(items, {benchmark: what results.json says of its data}) of everything that is asked. Raises UserError."""
    example_records = load_files([args.few_shot_data], "mcq") if args.few_shot_data else None
    selections = [
        (b, select_questions(args, b, kind, pools=args.few_shot > 0 and example_records is None)) for b in benchmarks
    ]
    check_disjoint(selections)
    items: list[Item] = []
    data: dict[str, dict] = {}
    for benchmark, selection in selections:
        records, pools, info = selection.records, selection.pools, selection.info
        has_passages = any(r.get("context") for r in records)
        info["passages"] = ("hidden" if args.book == "closed" else "shown") if has_passages else None
        part_field = benchmark.entry.part_field if benchmark.entry else ""
        example_field = part_field
        if example_records is not None:
            pools, example_field = {args.few_shot_data: example_records}, ""
        if args.book == "closed":
            records, pools = hide_passages(records), {name: hide_passages(pool) for name, pool in pools.items()}
        examples = {}
        if args.few_shot:
            mode = prompt_settings.prompt_mode
            examples = choose_examples(benchmark.name, pools, records, args.few_shot, mode, example_field)
            info["few_shot"] = {"/".join(filter(None, k)): [r["id"] for r in v] for k, v in examples.items()}
        items += make_items(benchmark.name, records, prompt_settings, examples=examples, part_field=part_field)
        whole = benchmark.entry is not None and not benchmark.part
        data[benchmark.name] = {**info, "published_average": benchmark.entry.published_average if whole else "overall"}
    if args.book and not any(info["passages"] for info in data.values()):
        raise UserError(f"--book={args.book}: no question of {', '.join(data)} has a passage; leave it out")
    return items, data


def select_questions(args: argparse.Namespace, benchmark: Benchmark, kind: str, pools: bool) -> Selection:
    """The records of a benchmark that the flags ask for; with `pools` those that examples may come from."""
    return load_benchmark(
        benchmark,
        kind,
        split=args.split or "",
        languages=wanted_languages(args),
        limit=args.limit,
        images=args.images or "",
        count_mismatch=args.allow_count_mismatch,
        pools=pools,
    )


def wanted_languages(args: argparse.Namespace) -> tuple[str, ...] | None:
    """The codes of --languages; None for all."""
    return split_names(args.languages, "--languages") if args.languages else None


def collect_settings(
    args: argparse.Namespace,
    kind: str,
    prompt_settings: PromptSettings,
    max_new_tokens: int | None,
    model: "Model",
    items: Sequence[Item],
) -> dict[str, Any]:
    """What decides the answers: results of other settings are never mixed into a folder."""
    open_book = any(i.record.get("context") for i in items) and args.book != "closed"
    score = prompt_settings.score
    return {
        "kind": kind,
        "mode": prompt_settings.mode,
        "score": score or None,
        "normalise": args.normalise or scoring.DEFAULT_NORMALISE.get(score, "none"),
        "prompt_family": prompt_settings.family if kind == "mcq" else "chat",
        "system_prompt": prompt_settings.system_prompt,
        "few_shot": args.few_shot,
        "shuffle_seed": args.shuffle_options,
        "book": "open" if open_book else "closed",
        "languages": wanted_languages(args),
        "limit": args.limit,
        "max_new_tokens": max_new_tokens,
        **model.settings,
        "rules_version": RULES_VERSION,
        "prompts_sha256": prompts_hash(items),
    }


def output_folder(args: argparse.Namespace) -> Path:
    """The folder of --output, which need not be there. Raises UserError."""
    output = expand_home(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={args.output}: is a file; name a folder")
    return output


# ---- Ask and score --------------------------------------------------------------------------------------------------


def open_journal(output: Path, settings: dict[str, Any], model: "Model") -> Journal:
    """predictions.jsonl with the lines of earlier calls. Raises UserError where they are of another evaluation."""
    known = {**settings, **{f"model_{k}": v for k, v in model.identity.items()}}
    return Journal(output / "predictions.jsonl", known, ("benchmark", "id"))


def print_head(
    model: "Model", settings: dict[str, Any], output: Path, data: dict[str, dict], count: int, done: int
) -> None:
    """What will be asked, on stderr. `count`: items; `done`: those that earlier calls answered."""
    before = f", {done:,} already done" if done else ""
    say("data", f"{count:,} items of {', '.join(data)}{before}")
    for problem in filter(None, (info.get("count_mismatch") for info in data.values())):
        say("count", problem)
    limit = settings["max_new_tokens"]
    length = f"at most {limit} new tokens" if limit else "answers of any length"
    mode, score = settings["mode"], settings["score"]
    decoding = f"of the {score}" if mode == "loglikelihood" else f"{model.decoding}, {length}"
    say("asking", f"{mode}, prompt family {settings['prompt_family']}, {settings['few_shot']} examples, {decoding}")
    say("output", str(output))


def ask_and_score(
    model: "Model",
    items: Sequence[Item],
    remaining: Sequence[int],
    done: set[tuple[str, str]],
    prompt_settings: PromptSettings,
    settings: dict[str, Any],
    journal: Journal,
) -> list[dict[str, Any]]:
    """Asks for the `remaining` items and writes the scored line of each; returns the lines of all items, in order."""
    correct = sum(line["correct"] for key, line in journal.done.items() if key in done)
    bar = Progress(
        len(items), start=len(done), every=max(1, len(items) // 10), label="evaluate", is_main=not model.shows_progress
    )

    def on_line(line: dict) -> None:
        nonlocal correct
        correct += line["correct"]
        journal.append(line)
        done.add((line["benchmark"], line["id"]))
        bar.update(len(done), {"right": f"{correct / len(done):.1%}"})

    with journal, bar:
        if remaining:
            model.ask([items[k] for k in remaining], remaining, prompt_settings, settings, on_line)
        return journal.arrange(i.key for i in items)


# ---- evaluate --perplexity ------------------------------------------------------------------------------------------


def score_texts(args: argparse.Namespace) -> None:
    """evaluate --perplexity: a document is a line of predictions.jsonl as soon as it is scored."""
    from mmed_jax.evaluation.perplexity.open_texts import open_texts
    from mmed_jax.evaluation.perplexity.perplexity_report import make_page, results_table
    from mmed_jax.evaluation.perplexity.score import score_documents
    from mmed_jax.evaluation.perplexity.summary import KIND, summarise
    from mmed_jax.hf.open_model import identity, open_model
    from mmed_jax.hf.tuning import tuning_of
    from mmed_jax.inference.load import flags_to_lower, load_scorer

    # ---- Choose: texts and model; no device is touched yet -----------------------------------------------------------
    source = open_model(args.model, args.step, args.ignore_keys, adapter=args.adapter, base_dir=args.base)
    names = split_names(args.perplexity, "--perplexity")
    texts = open_texts(names, source, args.seq_len, args.stride, wanted_languages(args), args.limit)
    output = output_folder(args)
    console.outlive()
    settings = {"kind": KIND, "languages": wanted_languages(args), "limit": args.limit, **texts.settings}

    def journal_of(dtype: str | None) -> Journal:
        known = {**settings, "dtype": dtype, **{f"model_{k}": v for k, v in identity(source).items()}}
        return Journal(output / "predictions.jsonl", known)

    # ---- Score -------------------------------------------------------------------------------------------------------
    journal = journal_of(args.dtype)
    remaining = [i for i, doc in enumerate(texts.documents) if (doc.id,) not in journal.done]
    count, tokens = len(texts.documents), sum(doc.tokens for doc in texts.documents)
    before = f", {count - len(remaining):,} already done" if len(remaining) < count else ""
    say("texts", f"{count:,} documents, {tokens:,} tokens{before}")
    say("scoring", texts.info["rule"])
    say("output", str(output))
    if remaining:
        scorer = load_scorer(args, source)
        journal = journal_of(scorer.dtype.name)
    total = Counter({k: sum(x[k] for x in journal.done.values()) for k in ("nll", "tokens")})
    with journal, Progress(count, start=count - len(remaining), every=max(1, count // 10), label="score") as bar:

        def on_line(line: dict[str, Any]) -> None:
            journal.append(line)
            total.update({k: line[k] for k in total})
            bar.update(len(journal.done), {"loss": total["nll"] / total["tokens"]})

        if remaining:
            with flags_to_lower("another --output with shorter windows (--seq_len)", kept=True):
                score_documents(scorer, texts, remaining, on_line)
        lines = journal.arrange((doc.id,) for doc in texts.documents)

    # ---- Summarise and print -----------------------------------------------------------------------------------------
    results = summarise(
        lines,
        settings={k: journal.settings[k] for k in (*settings, "dtype")},
        model={"path": str(args.model), **identity(source), "tuning": tuning_of(source)},
        data={"names": names, **texts.info},
    )
    write_json(output / "results.json", results)
    write_text(output / "report.html", make_page(results, texts, lines))
    print(f"\n{results['metric']}\n\n{results_table(results)}\n")
    print(f"written    {output}/results.json, predictions.jsonl, report.html")


# ---- evaluate list --------------------------------------------------------------------------------------------------


def print_benchmarks(argv: list[str]) -> None:
    """evaluate list [--data_dir=DIR]"""
    parser = Parser(prog="python -m mmed_jax.evaluate list", description="Benchmarks by name.")
    parser.add_argument("--data_dir", type=InputPlace, metavar="DIR", help="also show which of them lie there")
    with local_places(parser.parse_args(argv)) as args:
        in_folder = list_folder(args.data_dir) if args.data_dir else ""
        print(list_registered())
        if in_folder:
            print(f"\nin {args.data_dir}\n{in_folder}")


if __name__ == "__main__":
    run_command(main)
