"""inspect: shows exactly what is trained, without touching a device."""

import os
import re
import subprocess
import sys

import pytest

from mmed_jax import inspect as command
from mmed_jax.common.errors import UserError
from mmed_jax.data.chat import encode_chat
from mmed_jax.data.multiple_choice import encode_mcq
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import write_records
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from tests.support.tokenizer import tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_tokenizer(tmp_path)
    talks = [
        {
            "id": f"talk-{i}",
            "language": "zh",
            "source": "own",
            "messages": [
                {"role": "system", "content": "简短"},
                {"role": "user", "content": f"问题 {i}？\x1b[31m"},
                {"role": "assistant", "content": "第一\n第二"},
                {"role": "user", "content": "ok?"},
                {"role": "assistant", "content": "да"},
            ],
        }
        for i in range(6)
    ]
    questions = [
        {
            "id": f"q-{i}",
            "language": "fr",
            "question": f"Q{i} ?",
            "options": {"A": "a", "B": "b"},
            "answer_idx": "A,B",
            "rationale": "Parce que.",
            "source": "own",
        }
        for i in range(6)
    ]
    write_records(tmp_path / "talks.jsonl", talks)
    write_records(tmp_path / "questions.jsonl", questions)
    return tmp_path


def arguments(folder, config="stage1", file="talks", *more):
    return [
        f"--config={config}",
        f"--config.data.train={folder / file}.jsonl",
        f"--config.data.cache_dir={folder / 'cache'}",
        f"--config.tokenizer={folder / 'tiny_tokenizer'}",
        "--config.data.seq_len=1200",
        "--config.data.validation_fraction=0.2",
        *more,
    ]


def test_trained_text_is_marked_and_nothing_else(folder, capsys):
    command.main(arguments(folder, "stage1", "talks", "--rows=9"))
    out = capsys.readouterr().out
    assert re.findall("⟦(.*?)⟧", out, re.DOTALL) == ["第一\n   第二<|eot_id|>", "да<|eot_id|>"] * 5
    assert all(s in out for s in ("问题", "简短", "train: 5 samples", "validation: 1 samples", "zh Chinese"))
    assert "\x1b" not in out and "\\x1b[31m" in out  # text from data cannot steer the terminal
    shown = re.findall(r"-- segment \d+: (\S+) \(zh\)", out)
    held_out = {f"talk-{i}" for i in range(6)} - set(shown)
    assert len(shown) == 5 and len(held_out) == 1
    command.main(arguments(folder, "stage1", "talks", "--split=validation"))
    assert f"segment 1: {held_out.pop()} (zh)" in capsys.readouterr().out


def test_stage_2_marks_answers_with_and_without_rationale(folder, capsys):
    command.main(arguments(folder, "stage2", "questions", "--rows=9"))
    out = capsys.readouterr().out
    marked = re.findall("⟦(.*?)⟧", out, re.DOTALL)
    assert sorted(set(marked)) == ["Parce que.\n   \n   Réponse : A,B<|eot_id|>", "Réponse : A,B<|eot_id|>"]
    assert len(marked) == 10 and "q-" in out and ":direct (fr)" in out and ":rationale (fr)" in out


def test_rows_and_tokens_flags(folder, capsys):
    command.main(arguments(folder, "stage1", "talks", "--rows=0"))
    assert "row 0" not in capsys.readouterr().out
    flags = ("--rows=1", "--tokens", "--config.data.packing=false", "--first=3")
    command.main(arguments(folder, "stage1", "talks", *flags))
    out = capsys.readouterr().out
    assert "row 3: 1 segments" in out and "row 4" not in out
    tok = load_tokenizer(folder / "tiny_tokenizer")
    record = {r["id"]: r for r in read_records(folder / "talks.jsonl")}[re.search(r"segment 1: (\S+)", out)[1]]
    sample = encode_chat(tok, record["messages"])
    lines = [re.fullmatch(r" +(\d+) +(\d+) (.*)", line) for line in out.split("\n")[out.split("\n").index("") :]]
    got = [(int(m[2]), m[3].startswith("⟦")) for m in lines if m]
    assert got == list(zip(sample.ids, sample.trained))


def test_segments_undo_the_packing(folder):
    from mmed_jax.config.overrides import parse_args
    from mmed_jax.data.prepare import prepare

    tok = load_tokenizer(folder / "tiny_tokenizer")
    table = prepare(parse_args(arguments(folder, "stage2", "questions"))[0], tok).train
    records = {r["id"]: r for r in read_records(folder / "questions.jsonl")}
    for row in range(len(table)):
        for name, (ids, trained, language) in zip(table.describe_row(row), command.segments(table.batch([row]))):
            ident, mode = name.split(":")
            sample = encode_mcq(tok, records[ident], mode)
            assert (ids, trained, language) == (sample.ids, sample.trained, "fr")


def test_colors_on_a_terminal(folder):
    tok = load_tokenizer(folder / "tiny_tokenizer")
    sample = encode_chat(tok, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\nb"}])
    text = command.marked_text(tok, sample.ids, sample.trained, command.COLOR)
    assert text.endswith("\n\n\033[32ma\033[0m\n\033[32mb<|eot_id|>\033[0m")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--rows=-1"], "--rows=-1: must not be negative"),
        (["--first=99"], "--first=99: train has rows 0 to"),
        (["--split=validaton"], "did you mean 'validation'"),
        (["--row=3"], "did you mean '--rows'"),
        (["--config.data.seq_length=3"], "did you mean 'data.seq_len'"),
    ],
)
def test_wrong_flags(folder, flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        command.main(arguments(folder, "stage1", "talks", *flags))


def test_no_device_is_touched(folder, repo):
    # With a platform that does not exist, any look at a device fails.
    run = [sys.executable, "-m", "mmed_jax.inspect", *arguments(folder), "--config.model.vocab_size=512"]
    env = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    done = subprocess.run(run, cwd=repo, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "row 0" in done.stdout
    bad = subprocess.run([*run, "--config.data.train=none.jsonl"], cwd=repo, env=env, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith("error: none.jsonl: no such file")


def test_the_model_is_checked_with_a_tokenizer_of_its_own(folder, capsys):
    with pytest.raises(UserError, match="config.model.preset='lama'"):
        command.main(arguments(folder, "stage1", "talks", "--config.model.preset=lama"))
    with pytest.raises(UserError, match="they do not fit"):
        command.main(arguments(folder, "stage1", "talks", "--config.model.vocab_size=100"))
    # Data may be looked at before the weights are there, but not without a word.
    command.main(arguments(folder, "stage1", "talks", f"--config.init_from={folder / 'later'}"))
    assert f"'{folder / 'later'}' does not exist" in capsys.readouterr().err
