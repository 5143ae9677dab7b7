"""Answers to questions, or continuations of text.

    python -m mmed_jax.generate --model=RUN_OR_HF_DIR --prompt="Which vitamin prevents scurvy?"
    python -m mmed_jax.generate --model=RUN_OR_HF_DIR --input=FILE.jsonl --output=ANSWERS.jsonl --temperature=0.7

One prompt is answered as it is written. A file holds a prompt a line (.txt), {"prompt": text} objects, instruction
records (asked up to the last user turn) or multiple-choice records; every answer is appended to the output as it is
finished, and the same command goes on where it was stopped. --raw continues plain text without the chat template.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from mmed_jax.common import console, jsonl
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, printable, run_command
from mmed_jax.common.journal import Journal
from mmed_jax.common.paths import expand_home
from mmed_jax.common.progress import Progress
from mmed_jax.data.multiple_choice import FAMILIES, MODES
from mmed_jax.data.plain_text import decode_after, joins_plainly
from mmed_jax.inference.load import add_arguments, load_engine, say
from mmed_jax.inference.prompt_files import PromptFormat, prompt_ids, read_prompts


class TextStream:
    """Text from ids as they come, never half a character: a token may hold a part of one (byte-level vocabulary).

    `before`: ids that they follow, whose text is known.
    """

    def __init__(self, tok: Any, before: Sequence[int] = ()):
        self._tok, self._ids, self._before = tok, [], list(before)
        self._shown = 0  # ids whose text is out; always at the end of a character
        self._plain = joins_plainly(tok)

    def push(self, token: int) -> str:
        """The text that `token` completes, "" while a character is open."""
        self._ids.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        self._shown = len(self._ids)
        return text

    def flush(self) -> str:
        """What is left when no more tokens come; an open character shows as U+FFFD."""
        text = self._text()
        self._shown = len(self._ids)
        return text

    def _text(self) -> str:
        if self._plain:
            return self._tok.decode(self._ids[self._shown :], skip_special_tokens=True)
        return decode_after(self._tok, self._before + self._ids[: self._shown], self._ids[self._shown :])


def main(argv: list[str] | None = None) -> None:
    """The generate command; see the module's docstring and `--help`."""
    args = _arguments(argv)
    if args.output:
        console.outlive()
    from mmed_jax.hf.open_model import identity, open_model, trained_prompts
    from mmed_jax.inference.engine import check_prompts
    from mmed_jax.inference.sampling import Sampling, check_seed

    Sampling(args.temperature, args.top_p, args.top_k)
    check_seed(args.seed)
    given = [("--prompt", "1", {"prompt": args.prompt})] if args.prompt is not None else list(read_prompts(args.input))
    given = given[: args.limit or None]
    source = open_model(args.model, args.step, args.ignore_keys)
    trained, tok = trained_prompts(source), source.tokenizer
    how = PromptFormat(
        raw=args.raw,
        mode=args.mode,
        family=args.prompt_family or trained["prompt_family"],
        system="" if args.raw else trained["system_prompt"] if args.system is None else args.system,
    )
    prompts = [prompt_ids(tok, value, where, how) for where, _, value in given]
    check_prompts(source.cfg, prompts, args.max_new_tokens, [where for where, _, _ in given])
    sampling = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "seed": args.seed,
    }
    stops = source.stop_ids
    if args.prompt is not None:
        engine = load_engine(args, source, stops)
        _answer(engine, TextStream(tok, prompts[0] if args.raw else ()), prompts[0], sampling)
        return

    # ---- A file -----------------------------------------------------------------------------------------------------
    texts = [tok.decode(p) for p in prompts]

    def record(k: int, completion: Any) -> dict:
        return {
            "id": given[k][1],
            "prompt": texts[k],
            "output": decode_after(tok, prompts[k] if args.raw else (), completion.ids),
            "finish_reason": completion.finish_reason,
            "prompt_tokens": len(prompts[k]),
            "new_tokens": len(completion.ids),
        }

    if not args.output:
        engine = load_engine(args, source, stops)
        engine.generate(prompts, **sampling, on_done=lambda k, c: print(_terminal_line(record(k, c)), flush=True))
        return

    output = expand_home(args.output)
    model = identity(source)

    def open_journal(dtype: str | None) -> Journal:
        settings = {**sampling, "stop_ids": stops, "dtype": dtype, **{f"model_{k}": v for k, v in model.items()}}
        return Journal(output, settings)

    journal = open_journal(args.dtype)
    for (where, name, _), text in zip(given, texts):
        if (name,) in journal.done and journal.done[(name,)]["prompt"] != text:
            raise UserError(f"{where}: another prompt than the one answered in {output}; name another --output")
    todo = [k for k, (_, name, _) in enumerate(given) if (name,) not in journal.done]
    say("data", f"{len(given):,} prompts" + (f", {len(given) - len(todo):,} already answered" if journal.done else ""))
    say("output", str(output))
    if not todo:
        return
    engine = load_engine(args, source, stops)
    model = identity(source)
    label, every = "generate", max(1, len(given) // 10)
    with open_journal(engine.dtype.name) as journal, Progress(len(given), every=every, label=label) as bar:
        tokens = 0

        def done(i: int, completion: Any) -> None:
            nonlocal tokens
            journal.append(record(todo[i], completion))
            tokens += len(completion.ids)
            bar.update(len(journal.done), {"tokens": tokens})

        engine.generate([prompts[k] for k in todo], **sampling, items=todo, on_done=done)
        journal.arrange((name,) for _, name, _ in given)
    print(f"written    {output}")


def _terminal_line(record: dict) -> str:
    """A record as JSON in which characters that a terminal obeys are written as their escapes: the same values."""
    return re.sub(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda c: f"\\u{ord(c[0]):04x}", jsonl.dump_line(record))


def _answer(engine: Any, stream: TextStream, prompt: list[int], sampling: dict) -> None:
    """Writes one answer to stdout as it comes."""

    def show(text: str) -> None:
        sys.stdout.write(printable(text))
        sys.stdout.flush()

    completion = engine.generate([prompt], **sampling, on_token=lambda _, token: show(stream.push(token)))[0]
    show(stream.flush() + "\n")
    if completion.finish_reason == "length":
        say("cut", f"after {len(completion.ids)} tokens; --max_new_tokens=N allows more")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mmed_jax.generate",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="one question; the answer is written as it comes")
    parser.add_argument("--input", metavar="FILE", help=".txt, .jsonl or .jsonl.gz of prompts")
    parser.add_argument("--output", metavar="FILE.jsonl", help="answers to --input (default: the terminal)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N prompts of --input")
    parser.add_argument("--raw", action="store_true", help="no chat template: continue the text")
    parser.add_argument("--system", metavar="TEXT", help="system message (default: as the run was trained, else none)")
    parser.add_argument("--mode", choices=MODES, default="rationale", help="how multiple choice is asked")
    parser.add_argument("--prompt_family", choices=FAMILIES, help="default: as the run was trained, else llama3")
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) = greedy")
    parser.add_argument("--top_p", type=float, default=1.0, help="1 = off")
    parser.add_argument("--top_k", type=int, default=0, help="0 = off")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    args = parser.parse_args(argv)
    if (args.prompt is None) == (args.input is None):
        raise UserError("name what to answer: either --prompt=TEXT or --input=FILE")
    if args.output and args.input is None:
        raise UserError("--output: goes with --input=FILE; an answer to --prompt is written to the terminal")
    if args.raw and args.system:
        raise UserError("--system: has no place in --raw text; write it into the prompt")
    if args.output and not args.output.endswith(".jsonl"):
        raise UserError(f"--output={args.output}: must end in .jsonl")
    if args.output and expand_home(args.output).is_dir():
        raise UserError(f"--output={args.output}: is a folder; name a file")
    if args.limit < 0:
        raise UserError(f"--limit={args.limit}: must be 0 (all) or more")
    return args


if __name__ == "__main__":
    run_command(main)
