"""The build of a corpus as a command: what is unchanged is skipped, kills change no byte, mistakes are a line."""

import contextlib
import hashlib
import io
import json
import random
import re
import signal
import subprocess
import sys

import datasets
import pytest

from data_gen.commands.corpus import main
from data_gen.corpus import parquet_documents
from data_gen.corpus.accounting import Books, check_follows
from data_gen.corpus.output_stage import read_file
from data_gen.corpus.readers import Fields, reader_of
from data_gen.corpus.tokenize_build import find_corpus
from mmed_jax.common.errors import UserError, WorkError
from tests.support.corpora import REPO, documents, finish, result, start, stop_after, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    return folder, write_inputs(folder)


def build(inputs, output, *flags) -> dict[str, tuple[int, int]]:
    """Builds in this process; {stage: (parts, those that were made)}."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["build", f"--recipe={inputs / 'recipe.py'}", f"--data_dir={inputs}", f"--output={output}", *flags])
    stages = re.findall(r"^(\w+)-\w{16}: (\d+) parts, (\d+) to make$", printed.getvalue(), re.MULTILINE)
    return {name: (int(parts), int(made)) for name, parts, made in stages}


@pytest.fixture(scope="module")
def built(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("corpus")
    return output, build(inputs[0], output, "--workers=2")


def test_the_books_balance_and_files_are_as_listed(inputs, built):
    summary = json.loads((built[0] / "corpus.json").read_bytes())
    books = {name: Books.from_dict(value) for name, value in summary["books"].items()}
    assert sum(books["filter"].read.values()) == inputs[1]
    assert sum(n for (_, _, step, _), n in books["filter"].dropped.items() if step == "read") == 3
    gone = sum(books["filter"].dropped.values()) + sum(books["clean"].dropped.values())
    listed = documents(built[0])
    assert inputs[1] == gone + len(listed) and len(listed) > 15
    assert sum(books["clean"].kept.values()) == len(listed) == len({d["id"] for d in listed})
    assert sum(books["clean"].bytes.values()) == sum(len(d["text"].encode()) for d in listed)
    assert built[1]["filter"][0] >= 4


def test_parquet_files_have_the_same_documents(inputs, built, tmp_path):
    """Only the last stage is made anew; our reader, the reader of earlier corpora and datasets see the same rows."""
    output, before = built[0], documents(built[0])
    files = json.loads((output / "corpus.json").read_bytes())["files"]
    lines = {f["path"].removesuffix(".jsonl.zst"): list(read_file(output / f["path"])) for f in files}
    made = build(inputs[0], output, "--workers=2", "--format=parquet")
    assert [name for name, (_, pending) in made.items() if pending] == ["documents"]
    summary = json.loads((output / "corpus.json").read_bytes())
    assert sum(f["rows"] for f in summary["files"]) == len(before)
    for file in summary["files"]:
        path = output / file["path"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
        want = lines.pop(file["path"].removesuffix(".parquet"))
        assert list(read_file(path)) == want and len(want) == file["rows"]
        (cut,) = reader_of("parquet").cuts(path, 1 << 30)
        rows = list(reader_of("parquet").read(path, cut, Fields()))
        assert [(r.id, r.text, r.metadata["language"]) for r in rows] == [
            (line["id"], line["text"], line["language"]) for line in want
        ]
    assert not lines and {f.format for f in find_corpus(str(output)).files} == {"parquet"}
    paths = sorted(str(p) for p in (output / "documents").rglob("*.parquet"))
    table = datasets.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(tmp_path))
    assert sorted(table["id"]) == sorted(d["id"] for d in before)
    assert {k: v for k, v in table[0].items() if v is not None} in before
    assert build(inputs[0], output)["documents"][1] == 0 and documents(output) == before


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_documents, "GROUP_BYTES", 100)
    lines = [{"id": f"{n}", "text": "x" * 30, "pages": "3"} for n in range(10)]
    for path in (tmp_path / "a.parquet", tmp_path / "b.parquet"):
        with parquet_documents.ParquetWriter(path) as f:
            for line in lines:
                f.write(line)
    assert path.read_bytes() == (tmp_path / "a.parquet").read_bytes() and list(read_file(path)) == lines
    assert [(c.start, c.end) for c in reader_of("parquet").cuts(path, 1)] == [(0, 1), (1, 2), (2, 3)]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(WorkError, match="b.parquet: is damaged"):
        list(read_file(path))


def test_a_fault_in_the_books_is_seen(built):
    books = Books.from_dict(json.loads((built[0] / "corpus.json").read_bytes())["books"]["clean"])
    place = next(iter(books.kept))
    books.kept[place] += 1
    with pytest.raises(WorkError, match=f"source {place[0]}: .* documents read, .* kept or dropped"):
        books.check("clean")
    with pytest.raises(WorkError, match="stage clean: .*: read"):
        check_follows(books, Books(), "clean")


def test_what_is_unchanged_is_skipped_and_what_changed_is_not(inputs, tmp_path):
    """Settings, keyword lists and inputs; each makes the stages that follow from it, and no other."""
    raw, output = tmp_path / "raw", tmp_path / "corpus"
    raw.mkdir()
    write_inputs(raw, 40)
    assert all(made == parts for parts, made in build(raw, output).values())
    before = result(output)
    assert all(made == 0 for _, made in build(raw, output, "--tasks=1").values()) and result(output) == before
    made = {name: n for name, (_, n) in build(raw, output, "--recipe.step.near_duplicates.least=0.9").items()}
    assert made["inputs"] == made["filter"] == made["exact"] == 0 < made["near"] and made["clean"] > 0
    words = tmp_path / "fr.txt"
    words.write_text("bronches\ntoux\nfièvre\nsang\n", encoding="utf-8")
    flags = [f"--recipe.step.keywords.lists.fr={words}", "--recipe.step.keywords.thresholds.fr=2,0.001"]
    assert build(raw, output, *flags)["filter"][1] > 0 == build(raw, output, *flags)["filter"][1]
    words.write_text("bronches\ntoux\nfièvre\nsang\nfer\n", encoding="utf-8")
    assert build(raw, output, *flags)["filter"][1] > 0
    assert all(made == 0 for _, made in build(raw, output).values()) and result(output) == before
    with open(raw / "web" / "a.jsonl", "a") as f:
        f.write('{"text": "x"}\n')
    made = build(raw, output)
    assert made["inputs"][1] == 1 and made["filter"][1] > 0
    assert sum(row[-1] for row in json.loads((output / "corpus.json").read_bytes())["books"]["filter"]["read"]) == 47


def test_tasks_workers_and_the_order_of_files_change_no_byte(inputs, built, tmp_path):
    copy = tmp_path / "raw"
    files = sorted(p for p in inputs[0].rglob("*") if p.is_file())
    random.Random(3).shuffle(files)  # made in another order, with other times
    for path in files:
        target = copy / path.relative_to(inputs[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    build(copy, tmp_path / "corpus", "--tasks=3", "--workers=3")
    assert result(tmp_path / "corpus") == result(built[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(inputs, built, tmp_path, number):
    draw, output, stopped = random.Random(number), tmp_path / "corpus", 0
    for _ in range(3):
        process = start(inputs[0], output)
        if stop_after(process, draw.uniform(0.8, 4), number):
            stopped += 1
            if number == signal.SIGINT:
                assert process.returncode in (130, -2)  # the latter while modules are loaded
        process.stdout.close()
    finish(inputs[0], output)
    assert stopped and result(output) == result(built[0])
    assert not list(output.glob("work/*/parts/.*")) and not list(output.glob(".documents*"))


def test_what_an_earlier_corpus_has_is_left_out(inputs, built, tmp_path):
    """The same inputs give nothing new; others give what neither has."""
    with pytest.raises(WorkError, match="no document is left for the corpus; dropped: .*: .* [0-9]"):
        build(inputs[0], tmp_path / "same", f"--earlier={built[0]}")
    raw = tmp_path / "raw"
    raw.mkdir()
    write_inputs(raw, 60, seed=5)
    made = build(raw, tmp_path / "more", f"--earlier={built[0]}")
    assert made["earlier"][1] == len(json.loads((built[0] / "corpus.json").read_bytes())["files"])
    alone = build(raw, tmp_path / "alone")
    assert "earlier" not in alone
    old, more, all_new = (
        {" ".join(d["text"].split()) for d in documents(o)} for o in (built[0], tmp_path / "more", tmp_path / "alone")
    )
    assert more and not more & old and more < all_new and all_new & old
    with pytest.raises(UserError, match=f"--earlier={tmp_path}: no corpus"):
        build(raw, tmp_path / "out", f"--earlier={tmp_path}")


def wrong(inputs, output, *flags) -> str:
    with pytest.raises(UserError) as e:
        main(["build", f"--recipe={inputs / 'recipe.py'}", f"--data_dir={inputs}", f"--output={output}", *flags])
    assert "\n" not in str(e.value)
    return str(e.value)


def test_mistakes_are_one_line(inputs, tmp_path):
    raw, output = inputs[0], tmp_path / "out"
    assert wrong(raw, output, "--recipe=mmedcc").endswith("no recipe of a corpus 'mmedcc', did you mean 'mmedc'?")
    assert "no recipe of a corpus 'mmed_ift'" in wrong(raw, output, "--recipe=mmed_ift")
    assert wrong(raw, output, "--recipe.unit_bm=1") == "--recipe.unit_bm: no such key, did you mean 'unit_mb'?"
    assert "languages names 'fe'; valid: en, zh" in wrong(raw, output, "--recipe.languages=fe")
    assert "steps names 'keyword', did you mean 'keywords'" in wrong(raw, output, "--recipe.steps=keyword")
    assert "must be 2 numbers" in wrong(raw, output, "--recipe.step.keywords.thresholds.fr=2")
    assert "mode 'papr': unknown, did you mean 'paper'" in wrong(raw, output, "--recipe.step.keywords.mode=papr")
    assert "licenses.allow 'opn': unknown, did you mean 'open'" in wrong(raw, output, "--licenses=opn")
    assert wrong(raw, output, f"--data_dir={tmp_path / 'no'}").endswith("no: no such folder")
    assert "source.web: no file at" in wrong(raw, output, "--recipe.source.web.path=wbe")
    assert "--executor=lokal: unknown, did you mean 'local'" in wrong(raw, output, "--executor=lokal")
    assert "output_format 'parqet', did you mean 'parquet'" in wrong(raw, output, "--format=parqet")
    assert "--tasks=-1: must be 0 or more" in wrong(raw, output, "--tasks=-1")
    assert "--memory_gb=nan: must be 0 or more" in wrong(raw, output, "--memory_gb=nan")
    assert "unit_mb=1e-07: must be between 0.001 and" in wrong(raw, output, "--recipe.unit_mb=1e-7")
    assert "lies in the inputs of source.web" in wrong(raw, raw / "web" / "out")
    (output / "documents").mkdir(parents=True)
    (output / "documents" / "x.jsonl").touch()
    around = [f"--data_dir={tmp_path}", "--recipe.sources=web", "--recipe.source.web.path=**/*.jsonl"]
    assert "lies in the inputs of source.web" in wrong(raw, output, *around)
    assert "out: is --output itself" in wrong(raw, output, f"--earlier={output}")
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in wrong(raw, tmp_path / "file")
    with pytest.raises(UserError, match="no command 'biuld', did you mean 'build'"):
        main(["biuld"])
    assert not output.exists() or not (output / "corpus.json").exists()


def test_without_the_extra_the_help_works_and_a_build_is_one_line(tmp_path):
    program = (
        "import sys\n"
        "for name in ('datatrove', 'ahocorasick_rs', 'orjson', 'zstandard', 'warcio', 'trafilatura', 'pypdfium2'):\n"
        "    sys.modules[name] = None\n"
        "from data_gen.__main__ import main\n"
        "from mmed_jax.common.errors import run_command\n"
        "main(['--help'])\n"
        f"run_command(lambda: main(['corpus', 'build', '--recipe=mmedc:demo', '--output={tmp_path}/out']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True)
    assert "  corpus " in done.stdout and done.returncode == 2
    problem = "error: corpus: datatrove, ahocorasick_rs, orjson, zstandard not installed"
    assert done.stderr == f'{problem}; pip install "mmed_jax[corpus]"\n'
    assert not (tmp_path / "out").exists()


def test_a_source_that_cannot_be_read_at_all_ends_the_build(inputs, tmp_path):
    raw = tmp_path / "raw"
    (raw / "web").mkdir(parents=True)
    (raw / "books").mkdir()
    (raw / "web" / "a.jsonl").write_text('{"content": "x"}\n{"content": "y"}\n')
    (raw / "books" / "a.txt").write_text("fever")
    (raw / "recipe.py").write_text((inputs[0] / "recipe.py").read_text())
    assert wrong(raw, tmp_path / "out") == "source.web: not one document could be read: no_text 2"
    (raw / "web" / "a.jsonl").write_text("")
    assert wrong(raw, tmp_path / "out") == "source.web: not one document could be read: empty_file 1"


def test_a_stated_language_names_no_other_file(tmp_path):
    (tmp_path / "raw" / "web").mkdir(parents=True)
    stated = ["../../../x", "pt.BR", "x" * 300, "a/b", "unknown", "", "pt-BR"]
    rows = [{"text": f"fever {n}", "language": language} for n, language in enumerate(stated)]
    (tmp_path / "raw" / "web" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "raw" / "web" / "b.docx").touch()
    (tmp_path / "raw" / "recipe.py").write_text(
        "from data_gen.corpus.corpus_recipe import base, source\n"
        "def get_config(variant=''):\n"
        "    c = base()\n"
        "    c.name, c.sources, c.steps = 'own', ('web',), ('exact_duplicates',)\n"
        "    c.source.web = source('web')\n"
        "    return c\n"
    )
    build(tmp_path / "raw", tmp_path / "out", "--workers=1")
    summary = json.loads((tmp_path / "out" / "corpus.json").read_bytes())
    assert {f["language"]: f["rows"] for f in summary["files"]} == {"unknown": 6, "pt-BR": 1}
    assert summary["inputs"]["passed_over"] == {"web": 1}
