"""Nothing secret of an address and nothing that a terminal obeys is printed; malformed addresses are one line."""

import json
import os
from types import SimpleNamespace

import pytest

from data_gen import __main__ as data_gen
from mmed_jax import doctor, evaluate, export, generate, rate
from mmed_jax.common.errors import UserError, printable
from mmed_jax.llm_api.address import check_url, shown_url
from tests.support.hf_folders import hf_folder
from tests.support.ratings import make_runs, names
from tests.support.training import call, write_jsonl

SECRET = "hunter2"
# Forms in which people put a name and a password; all are shown as the rest.
WITH_PASSWORD = [
    f"user:{SECRET}@host/v1",
    f"http://user:{SECRET}@host/v1",
    f"https://user:{SECRET}@host:8/v1",
    f"HTTP://user:{SECRET}@host/v1",
    f"//user:{SECRET}@host/v1",
    f"http:/user:{SECRET}@host/v1",
    f"http:user:{SECRET}@host/v1",
    f"ftp://user:{SECRET}@host/v1",
    f"http://user:{SECRET}/x@host/v1",
    f"http://user:12/{SECRET}@host/v1",
    f"http://user:a@{SECRET}@host/v1",
    f"http://user:{SECRET}?x@host/v1",
    f"http://user:{SECRET}#x@host/v1",
    f"http://{SECRET}@host/v1",
    f"http://:{SECRET}@host/v1",
    f"http://user:{SECRET}%40host/v1",
    f"http://user:{SECRET} @host/v1",
    f"http://user:{SECRET}@[::1/v1",
    f"http://user:{SECRET}@[::1]:x/v1",
    f"http://user:{SECRET}@host:99999/v1",
    f" http://user:{SECRET}@host/v1",
    f"http://user:{SECRET}\x1b[2J@host/v1",
    f"http://host/v1?key={SECRET}",
    f"host/v1?key={SECRET}",
    f"http://user%3A{SECRET}%40host/v1",
    f"http://user%3a{SECRET}@host/v1",
    f"user:{SECRET}\uff20host/v1",
    f"user:x:{SECRET}@host",
    f"http://user:\n{SECRET}@host/v1",
    f"http://user:{SECRET}\\@host/v1",
]
# Of these, the ones that requests can be sent to.
RIGHT = [
    f"http://user:{SECRET}@host/v1",
    f"https://user:{SECRET}@host:8/v1",
    f"HTTP://user:{SECRET}@host/v1",
    f"http://{SECRET}@host/v1",
    f"http://:{SECRET}@host/v1",
    f"http://user:a@{SECRET}@host/v1",
    f"http://user:12/{SECRET}@host/v1",
    f"http://user%3A{SECRET}%40host/v1",
    f"http://user%3a{SECRET}@host/v1",
]
MALFORMED = [
    "host/v1",
    "localhost:8000/v1",
    "ftp://host/v1",
    "http://",
    "http:///v1",
    "http://:8000/v1",
    "https://[::1/v1",
    "http://host:port/v1",
    "http://host:99999/v1",
    "http://host:0/v1",
    "http://host:-1/v1",
    "http://ho st/v1",
    "http://host/v 1",
    "http://host/v1\n",
    "http://host\x1b]0;x\x07/v1",
    "http://host/v1\u2028",
    "http://h\\x/v1",
    "http://host/v1?x=1",
    "http://host/v1#x",
    "http://[x]/v1",
    "http://999.999.999.999/v1",
    " ",
    "/v1",
    "http//host",
    "http://\u2100host/v1",
    "http://host\x00/v1",
    "file:///etc/passwd",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_no_form_of_an_address_shows_its_password(url):
    assert SECRET not in shown_url(url) and shown_url(url).isprintable()


def test_what_is_no_secret_is_shown():
    for url in (
        "https://api.openai.com/v1",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8/v1",
        "https://h/x/@cf/meta/v1",
        "host:8000/v1",
        "http://\u00e9.fr/v1",
    ):
        assert shown_url(url) == url
    for url in ("https://api.openai.com/v1", "http://[::1]:8/v1", "HTTPS://h:1/v1/", "http://u:p%3F@h/v1", *RIGHT):
        check_url(url)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Every command that talks to an endpoint, as a function of more arguments."""
    folder = tmp_path_factory.mktemp("commands")
    question = {"id": "1", "language": "en", "question": "Which cell carries oxygen?", "answer_idx": "A"}
    data = write_jsonl(folder / "q.jsonl", [{**question, "options": {"A": "a red cell", "B": "a platelet"}}])
    runs = make_runs(folder)
    ledger = f"--ledger={folder / 'l.sqlite'}"
    generating = [f"--input={data}", f"--output={folder / 'o.jsonl'}", "--model=m", "--language=fr", ledger]
    return {
        "data_gen": (data_gen.main, ["translate", *generating]),
        "dry run": (data_gen.main, ["translate", *generating, "--dry_run"]),
        "evaluate": (evaluate.main, [f"--data={data}", "--api_model=m", f"--output={folder / 'e'}", ledger]),
        "judge": (rate.main, ["judge", f"--runs={names(runs)}", "--model=m", f"--output={folder / 'j.jsonl'}", ledger]),
        "wrong flag": (data_gen.main, ["translate", *generating, "--base_ulr=GIVEN"]),
    }


@pytest.mark.parametrize("command", ["data_gen", "dry run", "evaluate", "judge", "wrong flag"])
def test_a_malformed_address_is_one_line_in_every_command(commands, command, monkeypatch):
    main, argv = commands[command]
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("MMED_JAX_TRACEBACK", "")
    for number, url in enumerate([*MALFORMED, *WITH_PASSWORD]):
        if url in RIGHT:
            continue
        if command == "wrong flag":
            found = call(main, *(a.replace("GIVEN", url) for a in argv))
        elif number % 2 or "\x00" in url:
            found = call(main, *argv, f"--base_url={url}")
        else:
            monkeypatch.setenv("OPENAI_BASE_URL", url)
            found = call(main, *argv)
            monkeypatch.delenv("OPENAI_BASE_URL")
        assert found.code == 2 and found.error and not found.out, (url, found)
        if command == "wrong flag":
            assert "--base_ulr=" in found.error
        else:
            assert "--base_url=" in found.error or "OPENAI_BASE_URL=" in found.error
        assert SECRET not in found.err, (url, found.err)
        assert found.err == printable(found.err)


def test_the_doctor_shows_no_password():
    found = doctor.Findings()
    doctor.check_environment(
        found,
        {f"OPENAI_BASE_URL_{i}": u for i, u in enumerate(WITH_PASSWORD) if "@" in u}
        | {"OPENAI_BASE_URL": f"http://host/v1?key={SECRET}"},
    )
    assert SECRET not in found.block() and "http://host/v1" in found.block()


# ---- The terminal -------------------------------------------------------------------------------------------------

EVIL = "\x1b]0;pwn\x07\x1b[2J\x9b31m\x7f\u202etxt\u2066\r\b\x00"


def test_printable():
    assert printable("a\tb\nc é 中 ไ \u200d") == "a\tb\nc é 中 ไ \u200d"
    shown = printable("".join(map(chr, range(0x300))) + EVIL + "\ud800")
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert not set(shown) & set("\u202e\u2066\ud800") and shown.isprintable() is False and "\\x1b" in shown


def test_names_of_foreign_files_reach_no_terminal(tmp_path):
    """Tensors, fields of records, members of zips, keys of configs, tokens."""
    folder = hf_folder(tmp_path / "model", num_hidden_layers=2)
    config = json.loads((folder / "config.json").read_text())
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    end = max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")
    text = json.dumps(header | {EVIL: {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    outcomes = [call(export.main, f"--model={folder}", f"--output={tmp_path / 'out'}")]
    for key, value in ((EVIL, 1), (EVIL, False), ("hidden_act", EVIL)):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        outcomes.append(call(export.main, f"--model={folder}", f"--output={tmp_path / 'out'}"))
    (folder / "config.json").write_text(json.dumps(config))
    for name, value in ((EVIL, "x"), ("language", EVIL), ("id", [EVIL]), ("answer_idx", EVIL)):
        record = {"id": "1", "language": "en", "question": "?", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}
        path = write_jsonl(tmp_path / "r.jsonl", [record | {name: value}])
        outcomes.append(call(generate.main, f"--model={folder}", f"--input={path}"))
    assert all(o.code == 2 for o in outcomes), outcomes
    for found in outcomes:
        assert found.err and found.err == printable(found.err) and found.out == printable(found.out), found
        assert sum(line.startswith("error: ") for line in found.err.splitlines()) == 1


def test_model_text_reaches_no_terminal(capsys):
    """Streamed or as a line of JSON; the line still holds the text as it was."""
    said = EVIL + "Iron\tis\nlow."
    stream = SimpleNamespace(push=lambda token: said, flush=lambda: said)

    def answer(prompts, on_token, **kwargs):
        on_token(0, 1)
        return [SimpleNamespace(finish_reason="stop", ids=[1])]

    generate.stream_answer(SimpleNamespace(generate=answer), stream, [1], {})
    out = capsys.readouterr().out
    assert out == 2 * (printable(EVIL) + "Iron\tis\nlow.") + "\n" and printable(out) == out
    line = generate._terminal_line({"output": EVIL + "é"})
    assert json.loads(line) == {"output": EVIL + "é"} and printable(line) == line and "é" in line


def test_a_traceback_is_cleaned_too(monkeypatch):
    monkeypatch.setenv("MMED_JAX_TRACEBACK", "1")

    def main(argv):
        raise UserError(f"x: {EVIL}") if argv else RuntimeError(EVIL)

    for argv in (["x"], []):
        found = call(main, *argv)
        assert "Traceback" in found.err and printable(found.err) == found.err and found.code == (2 if argv else 1)
    assert os.environ["MMED_JAX_TRACEBACK"]
