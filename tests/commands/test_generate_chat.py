"""generate --chat: turns in the model's own format, commands, Ctrl-C, pipes, what no longer fits, hostile answers."""

import io
import os
import signal
import sys

import pytest

from mmed_jax import generate
from mmed_jax.common.errors import UserError, printable
from mmed_jax.data.chat import chat_prompt_ids
from mmed_jax.hf.open_model import open_model
from mmed_jax.inference.conversation import Conversation
from tests.support.hf_folders import hf_folder
from tests.support.inference import TableEngine

HOSTILE = "\x1b]0;title\x07\x1b[2Jred\x9b31m\r\u202eabc 患者\n- é"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("chat") / "model", max_position_embeddings=256)


@pytest.fixture(scope="module")
def tok(model):
    return open_model(model).tokenizer


class Typing(io.StringIO):
    """A terminal at which these lines are typed; an exception class in their place is raised."""

    def __init__(self, *lines):
        super().__init__()
        self.lines = list(lines)

    def isatty(self):
        return True

    def readline(self, *_):
        line = self.lines.pop(0) if self.lines else ""
        if isinstance(line, type):
            raise line
        return line and line + "\n"


@pytest.fixture
def chat(model, tok, monkeypatch):
    """Runs the command on lines, from a pipe (bytes) or typed; the engine counts up in its answers."""

    def go(*lines, answer=None, flags=()):
        engine = TableEngine(tok, answer or (lambda _: f"é{len(engine.asked)}"))
        engine.settings, asked = [], engine.generate
        engine.generate = lambda prompts, **kw: engine.settings.append(kw) or asked(prompts, **kw)
        monkeypatch.setattr(generate, "load_engine", lambda *_: engine)
        piped = isinstance(lines[0], bytes)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines[0])) if piped else Typing(*lines))
        generate.main([f"--model={model}", "--chat", *flags])
        return engine

    return go


def turns(tok, *messages):
    """The text of a prompt: the system message, then question and answer in turn."""
    roles = ["system", *["user", "assistant"] * len(messages)]
    return tok.decode(chat_prompt_ids(tok, [{"role": r, "content": m} for r, m in zip(roles, messages) if m]))


def test_lines_of_a_pipe_are_turns_of_one_conversation(chat, tok, capsys):
    text = "\ufeffWhat is it?\r\n\n Why?\n//etc?\n/reset\nNew\n/system Other\n/temperature 0.5\nMore\n/system -\nNone"
    engine = chat(text.encode(), flags=["--system=Be brief.", "--seed=3"])
    first = ("Be brief.", "What is it?", "é1")
    assert engine.asked == [
        turns(tok, *first[:2]),
        turns(tok, *first, "Why?"),
        turns(tok, *first, "Why?", "é2", "/etc?"),
        turns(tok, "Be brief.", "New"),
        turns(tok, "Other", "More"),
        turns(tok, "", "None"),
    ]
    out, err = capsys.readouterr()
    assert out == "".join(f"é{n}\n" for n in range(1, 7))
    # Every question draws on its own; the settings are those of the flags until a command changes them.
    assert [s["items"] for s in engine.settings] == [[n] for n in range(6)]
    assert [s["temperature"] for s in engine.settings] == [0, 0, 0, 0, 0.5, 0.5]
    assert engine.settings[0]["seed"] == 3
    assert err.count("for research, not for clinical use") == 1 and "chat       format llama3, 256 positions" in err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"ok\n/restart\n", "stdin:2: /restart: no such command, did you mean '/reset'?"),
        (b"/temperature hot\n", "stdin:1: /temperature hot: must be a number"),
        (b"/temperature -1\n", "stdin:1: temperature=-1.0: must be 0 "),
        (b"ok\n\nna\xefve\n", "stdin:3: is not UTF-8 .byte 3"),
        (b"x" * 300 + b"\n", "stdin:1: the question has 3.. tokens, and the model's max_position_embeddings is 256"),
    ],
)
def test_what_is_wrong_in_a_pipe_ends_it_with_its_line(chat, lines, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        chat(lines)


def test_what_is_wrong_at_a_terminal_is_said_and_the_session_goes_on(chat, capsys):
    engine = chat("/restart", "x" * 300, "/temperature", "/help", "ok", "/quit", "never")
    out, err = capsys.readouterr()
    assert out == "é1\n" and len(engine.asked) == 1
    for line in ("not asked  /restart: no such", "not asked  the question has 3", "temperature 0\n", "\n/reset "):
        assert line in err


def test_a_line_goes_on_behind_a_backslash_and_ctrl_c_empties_it(chat, tok, capsys):
    engine = chat("Fever,\\", "cough.\\", "What?", "half\\", KeyboardInterrupt, "Whole?")  # and Ctrl-D
    assert engine.asked[0] == turns(tok, "", "Fever,\ncough.\nWhat?")
    assert engine.asked[1] == turns(tok, "", "Fever,\ncough.\nWhat?", "é1", "Whole?")
    err = capsys.readouterr().err
    assert "Ctrl-D or /quit leaves" in err and ">>> ... ... >>> ... " in err.replace("\n", "") and err.endswith("\n")


def test_no_answer_gives_the_terminal_orders(chat, tok, capsys):
    """Shown escaped; in the conversation it stays what the model said."""
    engine = chat("Hi", "And?", answer=lambda _: HOSTILE)
    out, err = capsys.readouterr()
    assert out == f"{printable(HOSTILE)}\n" * 2 and "患者\n- é" in out
    assert not set("\x1b\x07\x9b\r\u202e") & set(out + err)
    assert engine.asked[1] == turns(tok, "", "Hi", HOSTILE, "And?")


def test_ctrl_c_stops_an_answer_and_keeps_the_session(chat, tok, capsys):
    before = signal.getsignal(signal.SIGINT)
    presses = iter([False, True, False, False, True, False])

    def answer(text):  # pressed before the first token of the first answer, and of the second
        if next(presses):
            os.kill(os.getpid(), signal.SIGINT)
        return "abc"

    engine = chat("One", "Two", "Three", "Four", "Five", answer=answer)
    # Its first token was there already: what was shown is part of the conversation.
    assert engine.asked[2] == turns(tok, "", "One", "abc", "Two", "a", "Three")
    out, err = capsys.readouterr()
    assert out == "abc\na\nabc\nabc\na\n" and err.count("stopped    what it said stays") == 2
    assert signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_twice_takes_the_question_back(chat, tok, capsys):
    def answer(text):
        if text == turns(tok, "", "Two"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return "abc"

    engine = chat("/reset", "Two", "Three", answer=answer)
    assert engine.asked == [turns(tok, "", "Two"), turns(tok, "", "Three")]
    out, err = capsys.readouterr()
    assert out == "\nabc\n" and "the question is taken back" in err


def test_the_oldest_turns_give_way_and_the_system_message_stays(chat, tok, capsys):
    questions = [f"{n}" * 50 for n in range(1, 6)]
    engine = chat(*questions, flags=["--system=Be brief.", "--max_new_tokens=100"])
    assert all(len(tok.encode(text, add_special_tokens=False)) <= 256 - 64 for text in engine.asked)
    assert engine.asked[1] == turns(tok, "Be brief.", questions[0], "é1", questions[1])
    assert engine.asked[2] == turns(tok, "Be brief.", questions[1], "é2", questions[2])
    assert engine.asked[4] == turns(tok, "Be brief.", questions[3], "é4", questions[4])
    err = capsys.readouterr().err
    assert err.count("context    full: the oldest 1 turn(s) are left out") == 3


def test_a_cut_answer_says_how_to_get_more(chat, capsys):
    chat("Hi", answer=lambda _: "abcdef", flags=["--max_new_tokens=3"])
    out, err = capsys.readouterr()
    assert out == "abc\n" and "cut        after 3 tokens; --max_new_tokens=N allows more" in err


def test_a_question_that_fails_is_no_part_of_the_conversation(tok):
    engine = TableEngine(tok, lambda _: "a", stop_after=1)
    sampling = {"max_new_tokens": 8, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    conversation = Conversation(engine, tok, 256, sampling=sampling)
    conversation.ask("One", lambda _: None)
    held = list(conversation.messages)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("Two", lambda _: None)
    assert (
        conversation.messages
        == held
        == [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "a"},
        ]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=x"], "either --prompt=TEXT or --input=FILE, or --chat"),
        (["--input=x"], "either --prompt"),
        (["--raw"], "--raw: continues plain text"),
        (["--output=x.jsonl"], "--output: goes with --input"),
        (["--max_new_tokens=0"], "max_new_tokens=0"),
        ([f"--system={'x' * 300}"], "--system: has 3"),
    ],
)
def test_flags_that_do_not_go_together(model, monkeypatch, flags, message):
    monkeypatch.setattr(generate, "load_engine", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=message):
        generate.main([f"--model={model}", "--chat", *flags])


def test_with_a_real_model_turns_are_read_once_and_answered_as_alone(model, monkeypatch, capsys):
    """Each answer is what one long prompt gets, although most of it was read before."""
    from mmed_jax.inference import steps
    from mmed_jax.inference.engine import Engine

    starts, prefill = [], steps.prefill
    monkeypatch.setattr(
        steps,
        "prefill",
        lambda *a, **k: starts.append((int(a[2]["start"]), int(a[2]["lengths_g"][0]))) or prefill(*a, **k),
    )
    source = open_model(model)
    engine = Engine(source.load_params(), source.cfg, max_batch=1, stop_ids=source.stop_ids)
    monkeypatch.setattr(generate, "load_engine", lambda *_: engine)
    questions = ["What is a fever, and why does it come with a cough?", "Why?", "And then?"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(questions).encode())))
    generate.main([f"--model={model}", "--chat", "--max_new_tokens=8"])
    out = capsys.readouterr().out
    assert starts[0][0] == 0 and starts[1][0] == starts[0][1] // 64 * 64 > 0 and starts[2][0] == starts[1][1] // 64 * 64
    alone, messages, shown = Engine(source.load_params(), source.cfg, max_batch=1, stop_ids=source.stop_ids), [], ""
    for question in questions:
        messages.append({"role": "user", "content": question})
        ids = alone.generate([chat_prompt_ids(source.tokenizer, messages)], max_new_tokens=8)[0].ids
        messages.append({"role": "assistant", "content": source.tokenizer.decode(ids, skip_special_tokens=True)})
        shown += printable(messages[-1]["content"]) + "\n"
    assert out == shown
