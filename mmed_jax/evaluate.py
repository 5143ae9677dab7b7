"""Accuracy by generation on record files, per language.

    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --benchmark=medqa_us,headqa --data_dir=records --output=DIR
    python -m mmed_jax.evaluate --model=RUN_OR_HF_DIR --data=FILE.jsonl --mode=rationale --output=DIR

Multiple-choice records are asked in the language they are in, greedily, and the letters are read from the answer by
fixed rules (mmed_jax/evaluation/answers.py). Instruction records count as right when the answer equals the reference
word for word (NFKC, case and spaces aside): whether a model has learned its texts, not whether it knows medicine.

DIR gets results.json, predictions.jsonl and report.html. A stopped evaluation goes on where it was when it is called
again; results of other settings or weights are never mixed into it.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from mmed_jax.config import Parser
from mmed_jax.data.prompts import FAMILIES, MODES
from mmed_jax.errors import UserError, run_command
from mmed_jax.evaluation import benchmarks as B
from mmed_jax.evaluation.answers import RULES_VERSION
from mmed_jax.evaluation.report import make_page
from mmed_jax.evaluation.results import judge, summarise, table
from mmed_jax.inference.journal import Journal
from mmed_jax.inference.load import add_arguments, identity, load_engine, say, trained_prompts
from mmed_jax.manifest import write_json
from mmed_jax.progress import Progress

METRICS = {
    "mcq": "Accuracy: the letters read from the generated answer are exactly the right ones",
    "instruction": "Exact match: the generated answer equals the reference text (NFKC, case and spaces aside)",
}
# Enough for "###Answer: OPTION A,C IS CORRECT." in a byte-level vocabulary, for a rationale, for an answer.
MAX_NEW_TOKENS = {"direct": 64, "rationale": 1024, "exact_match": 512}


def main(argv: list[str] | None = None) -> None:
    """The evaluate command; see the module's docstring and `--help`."""
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
    if kind != "mcq" and args.mode:
        raise UserError(f"--mode={args.mode}: is for multiple choice; these are instruction records")
    if system and family == "mmedbench" and kind == "mcq":
        raise UserError("--system: the prompt family mmedbench has no place for a system message; pass --system=''")
    if args.limit < 0:
        raise UserError(f"--limit={args.limit}: must be 0 (all) or more")
    new_tokens = MAX_NEW_TOKENS[mode] if args.max_new_tokens is None else args.max_new_tokens
    languages = _list(args.languages, "--languages") if args.languages else None
    tok = source.tokenizer
    items, data = [], {}
    for b in found:
        records, images = B.load_records(b, kind, languages, args.limit)
        items += B.make_items(tok, b.name, records, mode=mode, family=family, system_prompt=system)
        data[b.name] = {"path": b.path, "sha256": B.file_hash(b.path), "asked": len(records), "needs_image": images}
    names = [f"{i.benchmark} {i.id}" for i in items]
    check_prompts(source.cfg, [i.prompt for i in items], new_tokens, names)

    settings = {
        "kind": kind, "mode": mode, "prompt_family": family if kind == "mcq" else "chat", "system_prompt": system,
        "languages": languages, "limit": args.limit, "max_new_tokens": new_tokens, "dtype": args.dtype,
        "stop_ids": stop_ids(tok), "rules_version": RULES_VERSION, "prompts_sha256": B.prompts_hash(items),
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
    say("asking", f"{mode}, prompt family {settings['prompt_family']}, greedy, at most {new_tokens} new tokens")
    say("output", str(output))
    if todo:
        engine = load_engine(args, source, settings["stop_ids"])
        # Known only now: the compute dtype, and the step when the newest checkpoint turned out to be damaged.
        settings["dtype"], model = engine.dtype.name, identity(source)
        journal = open_journal()
    bar = Progress(len(items), start=len(journal.done), every=max(1, len(items) // 10), label="evaluate")
    with journal, bar:
        right = sum(p["correct"] for p in journal.done.values())

        def done(i: int, completion: Any) -> None:
            nonlocal right
            item = items[todo[i]]
            output = tok.decode(completion.ids, skip_special_tokens=True)
            verdict = judge(item, output)
            right += verdict["correct"]
            journal.append({
                "benchmark": item.benchmark, "id": item.id, "language": item.language,
                "prompt": tok.decode(item.prompt), "output": output, **verdict, "answer": item.answer,
                "finish_reason": completion.finish_reason, "prompt_tokens": len(item.prompt),
                "new_tokens": len(completion.ids),
            })  # fmt: skip
            bar.update(len(journal.done), {"right": f"{right / len(journal.done):.1%}"})

        if todo:
            engine.generate([items[k].prompt for k in todo], max_new_tokens=new_tokens, items=todo, on_done=done)
        predictions = journal.arrange(i.key for i in items)

    # ---- What came out ----------------------------------------------------------------------------------------------
    results = {
        "metric": METRICS[kind],
        "model": {"path": str(args.model), **model},
        "settings": {k: journal.settings[k] for k in settings},
        "prompts_sha256": settings["prompts_sha256"],
        "data": data,
        **summarise(items, predictions),
    }
    write_json(output / "results.json", results)
    page = output / f".report.{os.getpid()}.tmp"
    page.write_text(make_page(results, items, predictions), encoding="utf-8")
    os.replace(page, output / "report.html")
    print(f"\n{results['metric']}\n\n{table(results)}\n")
    for name, d in data.items():
        if d["needs_image"]:
            print(f"left out   {d['needs_image']:,} of {name}: they need an image")
    print(f"written    {output}/results.json, predictions.jsonl, report.html")


def _list(text: str, flag: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError(f"{flag}={text}: names nothing")
    return parts


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mmed_jax.evaluate", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    parser.add_argument("--benchmark", metavar="NAME[,NAME]", help="record files (NAME.jsonl) or sources in --data_dir")
    parser.add_argument("--data_dir", metavar="DIR", help="the folder that --benchmark names are looked up in")
    parser.add_argument("--data", metavar="FILE[,FILE]", help="record files, instead of --benchmark")
    parser.add_argument("--kind", default="auto", help="mcq or instruction (default: what the records are)")
    parser.add_argument("--mode", choices=MODES, help="the letter alone, or after a rationale (default: direct)")
    parser.add_argument("--prompt_family", choices=FAMILIES, help="default: as the run was trained, else llama3")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: as the run was trained, else none)")
    parser.add_argument("--languages", metavar="en,zh,..", help="only these")
    parser.add_argument("--limit", type=int, default=0, help="at most so many items a language and benchmark")
    parser.add_argument("--max_new_tokens", type=int, help=f"default: {MAX_NEW_TOKENS}")
    parser.add_argument("--output", required=True, metavar="DIR", help="where results go")
    args = parser.parse_args(argv)
    if bool(args.data) == bool(args.benchmark):
        raise UserError("name what to evaluate on: either --data=FILE or --benchmark=NAME with --data_dir=DIR")
    if args.benchmark and not args.data_dir:
        raise UserError("--benchmark: needs --data_dir=DIR, the folder with the record files")
    return args


if __name__ == "__main__":
    run_command(main)
