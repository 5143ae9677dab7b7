"""The generate command: streaming whole characters, files of prompts, resuming, refusals."""

import argparse
import gzip
import json
import random
import resource

import pytest

from mmed_jax import generate
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.chat import chat_prompt_ids
from mmed_jax.data.multiple_choice import mcq_prompt_ids
from mmed_jax.hf.open_model import identity, open_model
from mmed_jax.inference.load import check_mesh
from mmed_jax.inference.prompt_files import PromptFormat, prompt_ids, read_prompts
from mmed_jax.inference.text_stream import TextStream
from tests.support.hf_folders import hf_folder
from tests.support.inference import TableEngine
from tests.support.tokenizer import TEXT, tiny_fast_tokenizer

MCQ = {"id": "q", "language": "fr", "question": "Quoi ?", "options": {"A": "a", "B": "b"}, "answer_idx": "A"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("generate") / "model", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def tok(model):
    return open_model(model).tokenizer


@pytest.fixture
def run(model, monkeypatch):
    """Runs the command with an engine that says how long the prompt was; returns the engine."""

    def go(*flags, stop_after=None):
        engine = TableEngine(open_model(model).tokenizer, lambda text: f"é{len(text)}", stop_after)
        monkeypatch.setattr(generate, "load_engine", lambda *_: engine)
        generate.main([f"--model={model}", *flags])
        return engine

    return go


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- Streaming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [280, 400])
@pytest.mark.parametrize("text", [*TEXT, "µg m² Ａ ① 𝛼 👩🏽‍⚕️ e\u0301", "a\ufffdb", " x \n\n  y", "患"])
def test_stream_shows_whole_characters_only(vocab_size, text):
    """Vocabularies of single bytes and of merges: pieces join to the text, none ends inside a character."""
    tok = tiny_fast_tokenizer(vocab_size)
    stream, pieces = TextStream(tok), []
    for token in tok.encode(text, add_special_tokens=False):
        pieces.append(stream.push(token))
    assert "".join(pieces) + stream.flush() == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


def test_stream_of_random_tokens_equals_decoding_at_once():
    """Also for ids that are no text at all: broken bytes, control tokens."""
    tok, rng = tiny_fast_tokenizer(), random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(len(tok)) for _ in range(rng.randrange(1, 30))]
        stream = TextStream(tok)
        shown = "".join(stream.push(i) for i in ids) + stream.flush()
        assert shown == tok.decode(ids, skip_special_tokens=True) and stream.flush() == ""


def test_cut_inside_a_character():
    tok = tiny_fast_tokenizer(280)
    ids = tok.encode("ab患", add_special_tokens=False)[:-1]
    stream = TextStream(tok)
    assert [stream.push(i) for i in ids] == ["a", "b", "", ""] and stream.flush() == "\ufffd"


# ---- Prompts ------------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_training(tok):
    ask = [{"role": "user", "content": "Hi"}]
    system = [{"role": "system", "content": "Be kind."}]
    turns = [*ask, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Why?"}]
    bos = tok.bos_token_id
    for value, how, expected in [
        ({"prompt": "Hi"}, PromptFormat(), chat_prompt_ids(tok, ask)),
        ({"prompt": "Hi"}, PromptFormat(system="Be kind."), chat_prompt_ids(tok, system + ask)),
        ({"prompt": "<|eot_id|> Hi"}, PromptFormat(raw=True), [bos, *b"<|eot_id|> Hi"]),
        ({"messages": ask}, PromptFormat(), chat_prompt_ids(tok, ask)),
        ({"messages": turns}, PromptFormat(), chat_prompt_ids(tok, turns)),
        ({"messages": turns[:2]}, PromptFormat(), chat_prompt_ids(tok, ask)),
        ({"messages": system + ask}, PromptFormat(system="Other."), chat_prompt_ids(tok, system + ask)),
        (MCQ, PromptFormat(), mcq_prompt_ids(tok, MCQ, "rationale")),
        (MCQ, PromptFormat(mode="direct", family="mmedbench"), mcq_prompt_ids(tok, MCQ, "direct", "mmedbench")),
    ]:
        assert prompt_ids(tok, value, "f:1", how) == expected


def test_files_of_prompts(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n", encoding="utf-8-sig")
    assert [(name, v["prompt"]) for _, name, v in read_prompts(str(tmp_path / "a.txt"))] == [("1", "one"), ("4", "two")]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as f:
        f.write('{"prompt": "x"}\n{"id": "k", "prompt": "y"}\n')
    found = list(read_prompts(str(tmp_path / "b.jsonl.gz")))
    assert [name for _, name, _ in found] == ["1", "k"] and found[1][0].endswith("b.jsonl.gz:2")
    raw = {k: v for k, v in MCQ.items() if k not in ("id", "language")}
    (tmp_path / "Korean.jsonl").write_text(json.dumps(raw) + "\n")  # MMedBench's own file: the language is its name
    assert [v["language"] for _, _, v in read_prompts(str(tmp_path / "Korean.jsonl"))] == ["ko"]


# ---- The command --------------------------------------------------------------------------------------------------


def test_one_prompt_streams_to_the_terminal(model, capsys):
    """A real model: the text on stdout is the greedy completion, the head and the cut are on stderr."""
    generate.main([f"--model={model}", "--prompt=Hello", "--max_new_tokens=12", "--raw"])
    got = capsys.readouterr()
    source = open_model(model)
    from mmed_jax.inference.engine import Engine

    engine = Engine(source.load_params(), source.cfg, max_batch=1, stop_ids=(257, 264, 265))
    ids = engine.generate([[256, *b"Hello"]], max_new_tokens=12)[0].ids
    assert got.out == source.tokenizer.decode(ids, skip_special_tokens=True) + "\n"
    assert [line.split()[0] for line in got.err.splitlines()] == ["platform", "model", "precision", "cut"]


def test_file_to_file_stopped_and_continued(run, tmp_path):
    source, out, whole = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    source.write_text("".join(json.dumps({"id": f"p{n}", "prompt": "x" * (n + 1)}) + "\n" for n in range(6)))
    run(f"--input={source}", f"--output={whole}")
    with pytest.raises(KeyboardInterrupt):
        run(f"--input={source}", f"--output={out}", stop_after=4)
    assert len(lines(out)) == 4
    engine = run(f"--input={source}", f"--output={out}")
    assert len(engine.asked) == 2 and out.read_bytes() == whole.read_bytes()
    first = lines(out)[0]
    assert list(first) == ["id", "prompt", "output", "finish_reason", "prompt_tokens", "new_tokens"]
    assert first["id"] == "p0" and first["output"] == f"é{len(first['prompt'])}" and first["finish_reason"] == "stop"
    # more prompts may be added; changed ones are refused
    source.write_text(source.read_text() + json.dumps({"id": "p6", "prompt": "new"}) + "\n")
    assert len(run(f"--input={source}", f"--output={out}").asked) == 1 and len(lines(out)) == 7
    run(f"--input={source}", f"--output={out}", "--limit=2")
    assert [r["id"] for r in lines(out)] == [f"p{n}" for n in range(7)]
    source.write_text(source.read_text().replace('"new"', '"newer"'))
    with pytest.raises(UserError, match="in.jsonl:7: another prompt than the one answered"):
        run(f"--input={source}", f"--output={out}")


def test_file_to_the_terminal(run, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("b\naaaa\n")
    run(f"--input={tmp_path / 'in.txt'}", "--system=Sys")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(r["id"] for r in found) == ["1", "2"] and all("Sys" in r["prompt"] for r in found)


def test_sampled_file_is_the_same_when_resumed(model, tmp_path):
    """Real sampling: stopped after the first answers and continued gives the draws of one uninterrupted run."""
    (tmp_path / "in.txt").write_text("".join(f"{'word ' * n}\n" for n in range(1, 6)))
    flags = [f"--model={model}", "--temperature=1.2", "--top_p=0.9", "--max_new_tokens=6", "--seed=5", "--raw"]
    for name, limits in (("a", [0]), ("b", [2, 0])):
        for limit in limits:
            generate.main(
                [*flags, f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / name}.jsonl", f"--limit={limit}"]
            )
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len({r["output"] for r in lines(tmp_path / "a.jsonl")}) == 5


def test_identity_follows_the_weights(model, tmp_path):
    import shutil

    first = identity(open_model(model))
    shutil.copytree(model, tmp_path / "copy")
    assert identity(open_model(tmp_path / "copy")) == first
    file = next((tmp_path / "copy").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert identity(open_model(tmp_path / "copy")) != first


ERRORS = [
    (["--prompt=x", "--model={tmp}/none"], "does not exist"),
    (["--prompt=x", "--model={tmp}"], "neither a run directory"),
    ([], "either --prompt=TEXT or --input=FILE"),
    (["--prompt=x", "--input={tmp}/ok.txt"], "either --prompt=TEXT or --input=FILE"),
    (["--prompt= "], "--prompt: field 'prompt': must be text"),
    (["--prompt=x", "--output={tmp}/o.jsonl"], "goes with --input"),
    (["--prompt=x", "--raw", "--system=y"], "no place in --raw"),
    (["--prompt=x", "--temperature=-1"], "temperature=-1.0"),
    (["--prompt=x", "--top_p=2"], "top_p=2.0"),
    (["--prompt=x", "--max_new_tokens=0"], "max_new_tokens=0"),
    (["--prompt=x", "--step=7"], "--step=7"),
    (["--prompt=x", "--promt=y"], "did you mean '--prompt'"),
    (["--prompt={long}"], r"--prompt: has \d+ tokens.*max_position_embeddings is 1024"),
    (["--input={tmp}/ok.tx"], "did you mean 'ok.txt'"),
    (["--input={tmp}/empty.jsonl"], "empty.jsonl: holds no prompts"),
    (["--input={tmp}/twice.jsonl"], r"twice.jsonl:2: field 'id': 'a' was already used at .*twice.jsonl:1"),
    (["--input={tmp}/bad.jsonl"], r"bad.jsonl:1: field 'prompt'"),
    (["--input={tmp}/role.jsonl"], r"role.jsonl:1: field 'messages\[0\].role'"),
    (["--input={tmp}/mcq.jsonl", "--raw"], r"mcq.jsonl:1: --raw continues plain text"),
    (["--input={tmp}/ok.txt", "--output={tmp}/o.txt"], "must end in .jsonl"),
    (["--input={tmp}/ok.txt", "--output={tmp}/dir.jsonl"], "is a folder"),
    (["--input={tmp}/ok.txt", "--output={tmp}/mcq.jsonl"], "nobody knows what it holds"),
    (["--input={tmp}/ok.txt", "--output={tmp}/ok.txt/a.jsonl"], "cannot be written"),
    (["--input={tmp}/ok.txt", "--limit=-2"], "--limit=-2"),
]


@pytest.mark.parametrize(("flags", "message"), ERRORS, ids=[" ".join(f) or "nothing" for f, _ in ERRORS])
def test_mistakes_are_one_line_before_any_device(model, tmp_path, monkeypatch, flags, message):
    for name, text in {
        "ok.txt": "hello\n",
        "empty.jsonl": "\n",
        "twice.jsonl": '{"id": "a", "prompt": "x"}\n' * 2,
        "bad.jsonl": '{"prompt": 3}\n',
        "role.jsonl": '{"messages": [{"role": "doctor", "content": "x"}]}\n',
        "mcq.jsonl": json.dumps(MCQ) + "\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "dir.jsonl").mkdir()
    monkeypatch.setattr(generate, "load_engine", lambda *_: pytest.fail("a device was touched"))
    flags = [f.format(tmp=tmp_path, long="word " * 300) for f in flags]
    with pytest.raises(UserError, match=message) as caught:
        generate.main([f"--model={model}", *flags])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 3), "--mesh_tensor=3: does not divide the model's num_heads=4; try"),
        ((4, 4), "16 devices asked for"),
        ((0, 1), "must be at least 1"),
    ],
)
def test_mesh_flags(model, sizes, message):
    flags = argparse.Namespace(mesh_data=sizes[0], mesh_tensor=sizes[1])
    with pytest.raises(UserError, match=message):
        check_mesh(flags, open_model(model).cfg, 8)
    check_mesh(argparse.Namespace(mesh_data=4, mesh_tensor=2), open_model(model).cfg, 8)


def test_lines_of_text_end_where_editors_end_them(tmp_path):
    """Line separators inside a prompt (U+2028, form feed, NEL) do not cut it in two."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone\u2028still one\r\n\r\ntwo\x0cstill two\x85\nthree".encode())
    found = [(name, value["prompt"]) for _, name, value in read_prompts(str(file))]
    assert found == [("1", "one\u2028still one"), ("3", "two\x0cstill two\x85"), ("4", "three")]


def test_a_file_that_is_no_output_of_ours_is_left_alone(run, tmp_path):
    """Also when it has a single line without an end, which looks like one torn by a kill."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "Why?"}')
    with pytest.raises(UserError, match="in.settings.json does not"):
        run(f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'in.jsonl'}")
    assert (tmp_path / "in.jsonl").read_text() == '{"prompt": "Why?"}'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_full_disk_is_one_line_and_the_rest_follows_later(run, tmp_path):
    (tmp_path / "in.txt").write_text("one\ntwo and more\nthree and much more")
    flags = [f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'out.jsonl'}"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, old[1]))
    try:
        with pytest.raises(WorkError, match=r"out.jsonl: cannot be written \(File too large\).*2 results are safe"):
            run(*flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert len(run(*flags).asked) == 1
    assert [r["id"] for r in lines(tmp_path / "out.jsonl")] == ["1", "2", "3"]


def test_a_seed_of_more_than_32_bits_is_refused_before_any_device(model, monkeypatch):
    monkeypatch.setattr(generate, "load_engine", lambda *_: pytest.fail("a device was asked for"))
    with pytest.raises(UserError, match="seed=4294967296"):
        generate.main([f"--model={model}", "--prompt=x", "--temperature=1", "--seed=4294967296"])
