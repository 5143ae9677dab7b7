"""Answers to questions, or continuations of text.

    python -m mmed_jax.generate --model=RUN_OR_HF_DIR --prompt="Which vitamin prevents scurvy?"
    python -m mmed_jax.generate --model=RUN_OR_HF_DIR --input=FILE.jsonl --output=ANSWERS.jsonl --temperature=0.7
    python -m mmed_jax.generate --model=BASE_DIR --adapter=PEFT_DIR --prompt="Which vitamin prevents scurvy?"
    python -m mmed_jax.generate --model=RUN_OR_HF_DIR --chat [--system=TEXT]

One prompt is answered as it is written. A file holds a prompt a line (.txt), {"prompt": text} objects, instruction
records (asked up to the last user turn) or multiple-choice records; every answer is appended to the output as it is
finished, and the same command goes on where it was stopped. --raw continues plain text without the chat template.
--chat asks in turns, in the model's own chat format: /help lists its commands, Ctrl-C stops an answer, Ctrl-D leaves.
Questions may come from a pipe as well, one a line.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmed_jax.common import console, jsonl
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, printable, run_command
from mmed_jax.common.journal import Journal
from mmed_jax.common.paths import expand_home
from mmed_jax.common.place_flags import FreeText, InputPlace, ResumedOutput
from mmed_jax.common.progress import Progress
from mmed_jax.data.multiple_choice import FAMILIES, MODES
from mmed_jax.data.plain_text import decode_after
from mmed_jax.inference.load import add_arguments, flags_to_lower, load_engine, say
from mmed_jax.inference.prompt_files import PromptFormat, prompt_ids, read_prompts
from mmed_jax.inference.text_stream import TextStream

if TYPE_CHECKING:
    from mmed_jax.hf.open_model import ModelSource


# What needs less memory where rows cannot be fewer.
SHORTER = "a shorter prompt or answer (--max_new_tokens)"


class Prompt(NamedTuple):
    """One prompt: `where` it stands, its `id` among the answers, its token ids, and these as text."""

    where: str
    id: str
    ids: list[int]
    text: str


def main(argv: list[str] | None = None) -> None:
    """The generate command; see the module's docstring and `--help`."""
    args = parse_arguments(argv)
    if args.output:
        console.outlive()
    with local_places(args) as places:
        generate(places)


def generate(args: argparse.Namespace) -> None:
    """Answers --prompt, the prompts of --input, or in turns with --chat. Raises UserError, WorkError."""
    from mmed_jax.hf.open_model import open_model
    from mmed_jax.inference.engine import check_prompts
    from mmed_jax.inference.sampling import Sampling, check_seed

    if args.output and expand_home(args.output).is_dir():
        raise UserError(f"--output={args.output}: is a folder; name a file")
    Sampling(args.temperature, args.top_p, args.top_k)
    check_seed(args.seed)
    if args.chat:
        chat(args)
        return
    rows = [("--prompt", "1", {"prompt": args.prompt})] if args.prompt is not None else list(read_prompts(args.input))
    source = open_model(args.model, args.step, args.ignore_keys, adapter=args.adapter, base_dir=args.base)
    prompts = encode_prompts(args, rows[: args.limit or None], source)
    check_prompts(source.cfg, [p.ids for p in prompts], args.max_new_tokens, [p.where for p in prompts])
    if args.prompt is not None:
        engine = load_engine(args, source, source.stop_ids)
        stream = TextStream(source.tokenizer, prompts[0].ids if args.raw else ())
        stream_answer(engine, stream, prompts[0].ids, sampling_flags(args))
    elif args.output:
        write_answers(args, source, prompts)
    else:
        print_answers(args, source, prompts)


def chat(args: argparse.Namespace) -> None:
    """Asks in turns what stdin says. Raises UserError, WorkError."""
    from mmed_jax.data.chat import chat_format
    from mmed_jax.hf.open_model import open_model, trained_prompts
    from mmed_jax.inference.chat_session import ChatSession
    from mmed_jax.inference.conversation import Conversation
    from mmed_jax.inference.engine import check_prompts

    source = open_model(args.model, args.step, args.ignore_keys, adapter=args.adapter, base_dir=args.base)
    tok, system = source.tokenizer, trained_prompts(source)["system_prompt"] if args.system is None else args.system
    fmt = chat_format(tok)
    conversation = Conversation(
        None, tok, source.cfg.max_position_embeddings, system=system, sampling=sampling_flags(args)
    )
    check_prompts(source.cfg, [conversation.prompt()], args.max_new_tokens, ["--system"])
    conversation.engine = load_engine(args, source, source.stop_ids)
    say("chat", f"format {fmt.name}, {source.cfg.max_position_embeddings:,} positions; /help lists what can be done")
    if system:
        say("system", system)
    say("note", "for research, not for clinical use: answers may be wrong and sound right")
    ChatSession(conversation).run()


def encode_prompts(
    args: argparse.Namespace, rows: Sequence[tuple[str, str, dict]], source: "ModelSource"
) -> list[Prompt]:
    """The rows (where, id, object) as the model reads them: as it was trained, unless flags say otherwise."""
    from mmed_jax.hf.open_model import trained_prompts

    trained, tok = trained_prompts(source), source.tokenizer
    prompt_format = PromptFormat(
        raw=args.raw,
        mode=args.mode,
        family=args.prompt_family or trained["prompt_family"],
        system="" if args.raw else trained["system_prompt"] if args.system is None else args.system,
    )
    prompts = []
    for where, name, value in rows:
        ids = prompt_ids(tok, value, where, prompt_format)
        prompts.append(Prompt(where, name, ids, tok.decode(ids)))
    return prompts


def sampling_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What decides an answer beside weights and prompt, as Engine.generate takes it."""
    return {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "seed")}


def answer_record(args: argparse.Namespace, source: "ModelSource", prompt: Prompt, completion: Any) -> dict[str, Any]:
    """The line of an answer."""
    return {
        "id": prompt.id,
        "prompt": prompt.text,
        "output": decode_after(source.tokenizer, prompt.ids if args.raw else (), completion.ids),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(prompt.ids),
        "new_tokens": len(completion.ids),
    }


def stream_answer(engine: Any, stream: TextStream, prompt: list[int], sampling: dict[str, Any]) -> None:
    """Writes one answer to stdout as it comes."""

    def show(text: str) -> None:
        sys.stdout.write(printable(text))
        sys.stdout.flush()

    try:
        with flags_to_lower(SHORTER):
            completion = engine.generate([prompt], **sampling, on_token=lambda _, token: show(stream.push(token)))[0]
    except WorkError:  # what came of the answer ends its line
        show(stream.flush() + "\n")
        raise
    show(stream.flush() + "\n")
    if completion.finish_reason == "length":
        say("cut", f"after {len(completion.ids)} tokens; --max_new_tokens=N allows more")


def print_answers(args: argparse.Namespace, source: "ModelSource", prompts: Sequence[Prompt]) -> None:
    """Writes a line of JSON to stdout for each answer, in the order in which they are finished."""
    engine = load_engine(args, source, source.stop_ids)

    def show(i: int, completion: Any) -> None:
        print(_terminal_line(answer_record(args, source, prompts[i], completion)), flush=True)

    with flags_to_lower(SHORTER):
        engine.generate([p.ids for p in prompts], **sampling_flags(args), on_done=show)


def write_answers(args: argparse.Namespace, source: "ModelSource", prompts: Sequence[Prompt]) -> None:
    """Appends each answer to --output as it is finished; goes on where an earlier call stopped. Raises UserError."""
    output, sampling = expand_home(args.output), sampling_flags(args)
    journal = open_answers(output, sampling, source, args.dtype)
    for prompt in prompts:
        answered = journal.done.get((prompt.id,))
        if answered is not None and answered["prompt"] != prompt.text:
            raise UserError(f"{prompt.where}: another prompt than the one answered in {output}; name another --output")
    remaining = [k for k, prompt in enumerate(prompts) if (prompt.id,) not in journal.done]
    before = f", {len(prompts) - len(remaining):,} already answered" if journal.done else ""
    say("data", f"{len(prompts):,} prompts{before}")
    say("output", str(output))
    if not remaining:
        return
    engine = load_engine(args, source, source.stop_ids)
    journal = open_answers(output, sampling, source, engine.dtype.name)
    every = max(1, len(prompts) // 10)
    with journal, Progress(len(prompts), every=every, label="generate") as bar:
        tokens = 0

        def write(i: int, completion: Any) -> None:
            nonlocal tokens
            journal.append(answer_record(args, source, prompts[remaining[i]], completion))
            tokens += len(completion.ids)
            bar.update(len(journal.done), {"tokens": tokens})

        with flags_to_lower(SHORTER, kept=True):
            engine.generate([prompts[k].ids for k in remaining], **sampling, items=remaining, on_done=write)
        journal.arrange((prompt.id,) for prompt in prompts)
    print(f"written    {output}")


def open_answers(output: Path, sampling: dict[str, Any], source: "ModelSource", dtype: str | None) -> Journal:
    """--output with the answers of earlier calls. Raises UserError where they are of other weights or settings."""
    from mmed_jax.hf.open_model import identity

    model = {f"model_{k}": v for k, v in identity(source).items()}
    return Journal(output, {**sampling, "stop_ids": source.stop_ids, "dtype": dtype, **model})


def _terminal_line(record: dict) -> str:
    """A record as JSON in which characters that a terminal obeys are written as their escapes: the same values."""
    return re.sub(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda c: f"\\u{ord(c[0]):04x}", jsonl.dump_line(record))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags. Raises UserError for those that contradict each other."""
    parser = Parser(prog="python -m mmed_jax.generate", description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--prompt", type=FreeText, metavar="TEXT", help="one question; the answer is written as it comes"
    )
    parser.add_argument("--input", type=InputPlace, metavar="FILE", help=".txt, .jsonl or .jsonl.gz of prompts")
    parser.add_argument(
        "--output", type=ResumedOutput, metavar="FILE.jsonl", help="answers to --input (default: the terminal)"
    )
    parser.add_argument("--chat", action="store_true", help="ask in turns, from the terminal or a pipe of lines")
    parser.add_argument("--limit", type=int, default=0, help="only the first N prompts of --input")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the text")
    parser.add_argument(
        "--system", type=FreeText, metavar="TEXT", help="system message (default: as the run was trained, else none)"
    )
    parser.add_argument("--mode", choices=MODES, default="rationale", help="how multiple choice is asked")
    parser.add_argument("--prompt_family", choices=FAMILIES, help="default: as the run was trained, else llama3")
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) = greedy")
    parser.add_argument("--top_p", type=float, default=1.0, help="1 = off")
    parser.add_argument("--top_k", type=int, default=0, help="0 = off")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    args = parser.parse_args(argv)
    if (args.prompt is not None) + (args.input is not None) + args.chat != 1:
        raise UserError("name what to answer: either --prompt=TEXT or --input=FILE, or --chat")
    if args.chat and args.raw:
        raise UserError("--raw: continues plain text, and --chat has turns; leave one of them out")
    if args.output and args.input is None:
        raise UserError("--output: goes with --input=FILE; an answer to --prompt is written to the terminal")
    if args.raw and args.system:
        raise UserError("--system: has no place in --raw text; write it into the prompt")
    if args.output and not args.output.endswith(".jsonl"):
        raise UserError(f"--output={args.output}: must end in .jsonl")
    if args.limit < 0:
        raise UserError(f"--limit={args.limit}: must be 0 (all) or more")
    return args


if __name__ == "__main__":
    run_command(main)
