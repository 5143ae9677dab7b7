"""The steps of scripts/quickstart.sh behind the installation, in one process, each with the command a user would type.

python -m scripts.quickstart runs/quickstart
"""

import argparse
import importlib
import json
import shlex
import sys
import time
from pathlib import Path

from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.output_files import write_text
from mmed_jax.data.records.reading import read_records

RECORDS = "data_gen/handcrafted"
QUESTION_LANGUAGES = ("en", "zh")  # the same question is asked in both


def main(argv: list[str] | None = None) -> None:
    """Trains, measures, exports and asks; what is done already is not repeated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder for runs, results and the exported model")
    out = parser.parse_args(argv).out
    started = time.monotonic()
    common = (f"--config.data.cache_dir={out}/packed", "--config.log_every=100")

    step(2, "stage 1: general medical instructions (MMed-IFT)")
    train("--config=stage1", f"--config.run_dir={out}/stage1", *common)

    step(3, "stage 2: multiple choice with rationale (MMed-IFT-MC)")
    start_from = f"--config.init_from={out}/stage1"
    train("--config=stage2", f"--config.run_dir={out}/stage2", start_from, *common)

    step(4, "are the trained questions answered rightly?")
    for stage, records, name, *mode in (
        ("stage1", "instructions", "instructions"),
        ("stage2", "mcq", "direct", "--mode=direct"),
        ("stage2", "mcq", "rationale", "--mode=rationale"),
    ):
        given = (f"--data={RECORDS}/{records}.jsonl", f"--model={out}/{stage}", f"--output={out}/evaluation/{name}")
        run("evaluate", *given, *mode)

    step(5, "Hugging Face folder")
    if not (out / "export" / "config.json").exists():
        run("export", f"--model={out}/stage2", f"--output={out}/export")

    step(6, "one question in two languages to the exported folder")
    questions = choose_questions()
    write_text(out / "questions.jsonl", "".join(json.dumps(q, ensure_ascii=False) + "\n" for q in questions))
    run("generate", f"--model={out}/export", f"--input={out}/questions.jsonl", f"--output={out}/answers.jsonl")

    print_table(out)
    print(f"time       {time.monotonic() - started:.0f} s without the installation, {time.process_time():.0f} s of CPU")
    print_answers(out / "answers.jsonl", questions)


def step(number: int, title: str) -> None:
    """The heading of a step."""
    print(f"\n[{number}/6] {title}", flush=True)


def run(command: str, *arguments: str) -> int | None:
    """Calls a command's main function and shows the line that does the same in a shell."""
    print(f"$ python -m mmed_jax.{command} {shlex.join(arguments)}", flush=True)
    return importlib.import_module(f"mmed_jax.{command}").main(list(arguments))


def train(*arguments: str) -> None:
    """Trains, and ends the program where that was stopped: it is saved, and the rest must not go on from there."""
    if code := run("train", *arguments):
        print("stopped; call it again to go on", file=sys.stderr)
        sys.exit(code)


def choose_questions() -> list[dict]:
    """The first question of the records, in each of QUESTION_LANGUAGES."""
    records = list(read_records(f"{RECORDS}/mcq.jsonl"))
    group = next(r["provenance"]["group"] for r in records if r["language"] == QUESTION_LANGUAGES[0])
    versions = {r["language"]: r for r in records if r["provenance"]["group"] == group}
    return [versions[language] for language in QUESTION_LANGUAGES]


def accuracy(folder: Path) -> tuple[float, int]:
    """(share of right answers over all items, number of items) of an evaluation."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; run scripts/quickstart.sh again")
    overall = json.loads(path.read_text(encoding="utf-8"))["overall"]
    return overall["accuracy"], overall["count"]


def print_table(out: Path) -> None:
    """What was trained, how much of it is right, where to look next."""
    rows = [("stage", "steps", "loss", "what is asked", "right")]
    for stage, name, what in (
        ("stage1", "instructions", "instructions, word for word"),
        ("stage2", "direct", "multiple choice, letter alone"),
        ("stage2", "rationale", "multiple choice, after a rationale"),
    ):
        last = read_metrics(out / stage).train[-1]
        share, count = accuracy(out / "evaluation" / name)
        rows.append((stage, f"{last['step']:,}", f"{last['loss']:.4f}", what, f"{share:.1%} of {count}"))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    print()
    print(f"curves     {out}/stage1/report.html, {out}/stage2/report.html")
    print(f"answers    {out}/evaluation/*/report.html")
    print(f"model      {out}/export (an ordinary Hugging Face folder)")
    print(f"next       python -m mmed_jax.generate --model={out}/export --prompt='Which vitamin prevents scurvy?'")
    print("next       README.md, 'The main job with a published model'")


def print_answers(path: Path, questions: list[dict]) -> None:
    """Each question with its options, what the exported model answers, and the correct answer."""
    answers = {line["id"]: line["output"] for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    for record in questions:
        options = "  ".join(f"{letter}. {text}" for letter, text in record["options"].items())
        correct = ", ".join(f"{x}. {record['options'][x]}" for x in record["answer_idx"].split(","))
        print(f"\nquestion   {record['question']}\n           {options}")
        print(f"model      {' '.join(answers[record['id']].split())}")
        print(f"correct    {correct}")


if __name__ == "__main__":
    run_command(main)
