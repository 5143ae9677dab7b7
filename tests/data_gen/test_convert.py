"""python -m data_gen convert: what it writes, what it prints, and what it says when something is wrong."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_gen import __main__ as data_gen
from data_gen.commands import convert as command
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.records.reading import load_files
from mmed_jax.data.sources import SOURCES
from tests.support.sources import medmcqa, put


@pytest.fixture
def medmcqa_file(tmp_path) -> Path:
    rows = [medmcqa(n) for n in (1, 2, 3, 4)] + [medmcqa(4), medmcqa(-1)]
    return put(tmp_path / "dev.jsonl", rows)


def run(*args: object) -> None:
    data_gen.main(["convert", *map(str, args)])


def test_records_table_and_next_command(medmcqa_file, tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "out.jsonl"
    run("--source=medmcqa", f"--input={medmcqa_file}", f"--output={out}")
    assert [r["answer_idx"] for r in load_files([out], "mcq")] == list("ABCD")
    printed = capsys.readouterr().out
    found = dict(re.findall(r"(?m)^ *(.+?) {2,}([\d,]+)", printed))
    assert found == {
        "rows read": "6",
        "kept": "4",
        "en": "4",
        "dropped: duplicate of an earlier row": "1",
        "dropped: no key": "1",
    }
    assert f"first: {medmcqa_file}:5" in printed and f"first: {medmcqa_file}:6" in printed
    assert f"--config=stage2 --config.data.train={out}" in printed
    assert list(out.parent.iterdir()) == [out]


def test_kind_gzip_and_the_same_bytes_again(medmcqa_file, tmp_path, capsys):
    out = tmp_path / "out.jsonl.gz"
    flags = ("--source=medmcqa", f"--input={medmcqa_file}", f"--output={out}", "--kind=instruction")
    run(*flags)
    first = out.read_bytes()
    run(*flags)
    assert out.read_bytes() == first and len(gzip.decompress(first).splitlines()) == 5
    assert first[4:8] == bytes(4)  # gzip's time stamp
    assert "--config=stage1" in capsys.readouterr().out


def test_language_split_and_image_lines(tmp_path, capsys):
    answers = [{"aid": 1, "atext": "a"}, {"aid": 2, "atext": "b"}]
    for split in ("train", "dev"):
        for suffix, language in (("", "es"), ("_EN", "en")):
            data = [{"qid": "1", "qtext": f"{split} {language}?", "ra": "1", "answers": answers, "image": "x.png"}]
            put(tmp_path / "h" / f"{split}_HEAD{suffix}.json", {"exams": {"E": {"data": data}}})
    run("--source=headqa", f"--input={tmp_path / 'h'}", f"--output={tmp_path / 'o.jsonl'}")
    printed = capsys.readouterr().out
    assert "split train" in printed and "split validation" in printed and "--split keeps one" in printed
    assert "kept, but needs an image          4  training leaves it out" in printed
    run(
        "--source=headqa",
        f"--input={tmp_path / 'h'}",
        f"--output={tmp_path / 'o.jsonl'}",
        "--split=dev",
        "--language=es",
    )
    [record] = load_files([tmp_path / "o.jsonl"], "mcq")
    assert record["question"] == "dev es?" and record["provenance"]["split"] == "validation"


def test_help_lists_commands_and_list_lists_sources(capsys):
    data_gen.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in data_gen.COMMANDS)
    run("--list")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["source", *SOURCES]
    for line, source in zip(printed[1:], SOURCES.values()):
        assert ",".join(source.kinds) in line and ",".join(source.languages) in line and source.license in line


WRONG = [
    ([], "convert: --source is missing"),
    (["--source=medmcqa"], "convert: --input is missing"),
    (["--source=medmcqa", "--input={dev}"], "convert: --output is missing"),
    (["--source=medmqa"], "no source 'medmqa', did you mean 'medmcqa'?"),
    (["--sorce=medmcqa"], "unrecognized arguments: --sorce=medmcqa, did you mean '--source'?"),
    (["--source=medmcqa", "--input={tmp}/dve.jsonl", "--output={out}"], "dve.jsonl: no such file or folder, did you"),
    (["--source=medmcqa", "--input={tmp}/no/x", "--output={out}"], "there is no folder"),
    (["--source=medmcqa", "--input={dev}", "--output={tmp}/o.json"], "o.json: must end in .jsonl or .jsonl.gz"),
    (["--source=medmcqa", "--input={dev}", "--output={dev}"], "is the input itself"),
    (["--source=medmcqa", "--input={dev}", "--output={tmp}/dir.jsonl"], "is a folder"),
    (["--source=medmcqa", "--input={dev}", "--output={out}", "--kind=mqc"], "--kind=mqc: unknown, did you mean 'mcq'?"),
    (["--source=headqa", "--input={dev}", "--output={out}", "--kind=instruction"], "=instruction: headqa gives mcq"),
    (["--source=medmcqa", "--input={dev}", "--output={out}", "--language=de"], "--language=de: unknown; valid: en, zh"),
    (["--source=medmcqa", "--input={dev}", "--output={out}", "--language=fr"], "--language=fr: medmcqa holds en"),
    (["--source=medmcqa", "--input={dev}", "--output={out}", "--answer_base=2"], "--answer_base=2: must be 0 or 1"),
    (["--source=medmcqa", "--input={dev}", "--output={out}", "--hub_config=x"], "--hub_config: only with --input=hub"),
    (["--source=medmcqa", "--input={dev}", "--output={out}", "--split=tset"], "(another split: 6)"),
    (["--source=headqa", "--input={dev}", "--output={out}"], "field 'name' is missing; found: id, question"),
    (["--source=casimedicos", "--input={dev}", "--output={out}"], "casimedicos expects JSON lines with id, lang"),
    (["--source=toyhom", "--input={tmp}/dir.jsonl", "--output={out}"], "dir.jsonl: holds no .csv or"),
    (["--source=mfds_edrug", "--input={dev}", "--output={out}"], "is no .xlsx or .csv file (mfds_edrug expects"),
    (["--source=medmcqa", "--input={tmp}/nokey.jsonl", "--output={out}"], "none of 2 rows became a record (no key: 2)"),
]


@pytest.mark.parametrize(("args", "says"), WRONG, ids=range(len(WRONG)))
def test_every_mistake_is_one_line_and_writes_nothing(medmcqa_file, tmp_path, args, says):
    (tmp_path / "dir.jsonl").mkdir()
    put(tmp_path / "nokey.jsonl", [medmcqa(-1), medmcqa(-1, id="b", question="Z")])
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    before = medmcqa_file.read_bytes()
    with pytest.raises(UserError) as caught:
        run(*[a.format(tmp=tmp_path, dev=medmcqa_file, out=out) for a in args])
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert out.read_text() == "older\n" and medmcqa_file.read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_unknown_command():
    with pytest.raises(UserError, match=r"data_gen: no command 'convrt', did you mean 'convert'\?"):
        data_gen.main(["convrt"])


def test_work_that_fails_half_way_keeps_the_older_output(medmcqa_file, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    out.write_text("older\n")
    written = []

    def full_disk(value: dict) -> str:
        written.append(value)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return json.dumps(value)

    monkeypatch.setattr(command.jsonl, "dump_line", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run("--source=medmcqa", f"--input={medmcqa_file}", f"--output={out}")
    assert out.read_text() == "older\n" and sorted(p.name for p in tmp_path.iterdir()) == ["dev.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--source=medmcqa", "--input={dev}", "--output={out}"], 0, ""),
        (["--source=medmqa"], 2, "error: no source 'medmqa', did you mean 'medmcqa'?"),
        (["--source=medmcqa", "--input={dev}", "--output={dev}/o.jsonl"], 2, "error: {dev}/o.jsonl: cannot be written"),
    ],
)
def test_exit_codes(repo, medmcqa_file, tmp_path, args, code, says):
    flags = [a.format(dev=medmcqa_file, out=tmp_path / "o.jsonl") for a in args]
    done = subprocess.run(
        [sys.executable, "-m", "data_gen", "convert", *flags], cwd=repo, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    says = says.format(dev=medmcqa_file)
    assert done.stderr.startswith(says) and len(done.stderr.splitlines()) == bool(code)


def test_no_network_is_work_that_failed(monkeypatch, tmp_path):
    import datasets

    def nowhere(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", nowhere)
    with pytest.raises(WorkError, match="hub:EleutherAI/headqa .es.: can't be fetched .ConnectionError: no route"):
        run("--source=headqa", "--input=hub", f"--output={tmp_path / 'o.jsonl'}")
    assert list(tmp_path.iterdir()) == []
