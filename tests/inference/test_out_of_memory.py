"""A device without room in the middle of answering: one line in every command, and what was done is kept."""

import io
import sys

import jax
import pytest

from mmed_jax import evaluate, generate
from mmed_jax.data.records.schema import write_records
from mmed_jax.inference import steps, text_scorer
from tests.support.hf_folders import hf_folder
from tests.support.results import read_lines, write_lines
from tests.support.training import call

WORDS = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes."
QUESTION = {"language": "en", "options": {"A": "aspirin", "B": "heparin"}, "answer_idx": "A", "rationale": "So."}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("no_room") / "model", max_position_embeddings=512, num_hidden_layers=1)


def no_room(patch, module, name, times):
    """Lets a program of the device run so many times; then there is no room for it."""
    step, left = getattr(module, name), iter(range(times))

    def run(*args, **kwargs):
        if next(left, None) is None:
            raise jax.errors.JaxRuntimeError(f"{WORDS}\nBuffer 1: many more lines")
        return step(*args, **kwargs)

    patch.setattr(module, name, run)


@pytest.fixture
def files(tmp_path):
    """What the commands read: prompts, questions, texts, four of each."""
    (tmp_path / "prompts.txt").write_text("".join(f"{'word ' * n}\n" for n in range(1, 5)))
    write_records(tmp_path / "quiz.jsonl", [{**QUESTION, "id": f"q{n}", "question": f"Why {n}?"} for n in range(4)])
    texts = [{"id": f"t{n}", "text": "Fever. " * 30, "language": "en", "source": "wiki"} for n in range(4)]
    write_lines(tmp_path / "texts.jsonl", texts)
    return tmp_path


COMMANDS = {
    "generate": (generate, steps, "decode", ["--input={}/prompts.txt", "--max_new_tokens=4", "--raw"]),
    "evaluate": (evaluate, steps, "prefill", ["--data={}/quiz.jsonl", "--max_new_tokens=4"]),
    "loglikelihood": (evaluate, steps, "score", ["--data={}/quiz.jsonl", "--mode=loglikelihood"]),
    "perplexity": (evaluate, text_scorer, "_nll", ["--perplexity={}/texts.jsonl", "--seq_len=256", "--stride=256"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_done_is_kept_and_fewer_rows_go_on(name, model, files, monkeypatch):
    command, module, program, flags = COMMANDS[name]
    flags = [f"--model={model}", *(f.format(files) for f in flags)]
    output = files / ("out.jsonl" if command is generate else "out")
    lines = output if command is generate else output / "predictions.jsonl"
    with monkeypatch.context() as patch:
        no_room(patch, module, program, 2 if program == "prefill" else 1)
        broken = call(command.main, *flags, f"--output={output}", "--batch_size=2")
    assert broken.code == 1 and "Traceback" not in broken.err
    error = broken.err.splitlines()[-1]
    assert error == (
        f"error: out of device memory with 2 rows of 256 positions ({WORDS}); what is done is kept, and the same "
        "command goes on with --batch_size=1, or --mesh_tensor=N on more devices"
    )
    there = read_lines(lines)
    assert 0 < len(there) < 4
    goes_on = call(command.main, *flags, f"--output={output}", "--batch_size=1")
    assert goes_on.code == 0 and f"{len(there)} already" in goes_on.err
    assert len(read_lines(lines)) == 4 and all(line in read_lines(lines) for line in there)


def test_answers_on_the_terminal_end_their_line(model, files, monkeypatch):
    no_room(monkeypatch, steps, "decode", 3)
    flags = [f"--model={model}", "--max_new_tokens=8", "--raw"]
    one = call(generate.main, *flags, "--prompt=Hello")
    assert one.code == 1 and one.out.endswith("\n") and len(one.out) > 1
    hint = "; try --mesh_tensor=N on more devices, or a shorter prompt or answer (--max_new_tokens)"
    assert one.err.splitlines()[-1] == f"error: out of device memory with 1 row of 256 positions ({WORDS}){hint}"
    several = call(generate.main, *flags, f"--input={files}/prompts.txt", "--batch_size=4")
    assert several.code == 1 and several.err.splitlines()[-1].endswith(
        "; try --batch_size=2, or --mesh_tensor=N on more devices"
    )


class Typing(io.StringIO):
    """A terminal at which these lines are typed."""

    def isatty(self):
        return True


def test_a_chat_goes_on_at_a_terminal_and_ends_in_a_pipe(model, monkeypatch):
    """Of the second question: its answer had begun; the third is asked as if it had not been."""
    asked, prefill, left = [], steps.prefill, iter([False, True])
    flags = [f"--model={model}", "--chat", "--max_new_tokens=2"]

    def run(params, cache, entry, *args, **kwargs):
        asked.append(entry["tokens_gt"][0][: entry["lengths_g"][0]].tolist())
        if next(left, False):
            raise jax.errors.JaxRuntimeError(WORDS)
        return prefill(params, cache, entry, *args, **kwargs)

    monkeypatch.setattr(steps, "prefill", run)
    monkeypatch.setattr(sys, "stdin", Typing("One\nTwo\nSix\n"))
    typed = call(generate.main, *flags)
    hint = f"({WORDS}); try --mesh_tensor=N on more devices, or a new conversation (/reset)"
    assert typed.code == 0 and f"taken back out of device memory with 1 row of 256 positions {hint}\n" in typed.err
    assert len(asked) == 3 and len(asked[1]) == len(asked[2]) and asked[1] != asked[2]
    left = iter([False, True])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One\nTwo\nSix\n")))
    piped = call(generate.main, *flags)
    assert piped.code == 1 and len(asked) == 5
    assert piped.err.splitlines()[-1] == f"error: stdin:2: out of device memory with 1 row of 256 positions {hint}"


def test_other_failures_of_a_device_stay_what_they_are(model, files, monkeypatch):
    def run(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(steps, "prefill", run)
    outcome = call(generate.main, f"--model={model}", "--prompt=Hello")
    assert outcome.code == 1 and "Traceback" in outcome.err and "INTERNAL" in outcome.err


def test_weights_without_room(model, monkeypatch):
    def run(*args):
        raise jax.errors.JaxRuntimeError(WORDS)

    monkeypatch.setattr(steps, "cast", run)
    outcome = call(generate.main, f"--model={model}", "--prompt=Hello")
    assert outcome.code == 1 and outcome.err.splitlines()[-1] == (
        f"error: out of device memory with the weights alone ({WORDS}); --mesh_tensor=N spreads them over N devices"
    )
