"""A corpus as a packed table: every document once, token for token, on its side; kills change no byte."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from corpus_texts import MEDICAL, ORDINARY

from data_gen.commands.corpus import main
from data_gen.corpus.document_files import LinesWriter
from data_gen.corpus.held_out_documents import hold_out, id_hash
from data_gen.corpus.run_task import run_parts
from data_gen.corpus.token_tables import published_lines
from data_gen.corpus.tokenize_build import TableBuild, find_corpus
from mmed_jax import inspect
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.hashes import file_hash
from mmed_jax.data.documents import RowSettings, join
from mmed_jax.data.packed_table import Table, split_row
from mmed_jax.data.plain_text import text_end, text_start
from mmed_jax.data.tokenizers.tokenizer import encode_text, load_tokenizer
from tests.support.corpora import REPO, result
from tests.support.tokenizer import tiny_tokenizer

SEQ_LEN = 128


class InThisProcess:
    """An executor without processes."""

    def run(self, folder):
        run_parts(folder, folder.pending())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tok"))


def write_corpus(folder, counts=(("fr", "web", 60), ("ja", "web", 25), ("fr", "books", 9), ("unknown", "web", 4))):
    """A folder as `corpus build` leaves it; {id: (language, source, text)} of its documents."""
    draw, written, files = random.Random(1), {}, []
    for language, source, count in counts:
        pool = re.findall(r"\S{1,6}", MEDICAL.get(language, ORDINARY["en"]))
        for number in range(0, count, 20):
            path = f"documents/{language}/{source}/{number // 20:05d}.jsonl.zst"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with LinesWriter(folder / path) as lines:
                for i in range(number, min(count, number + 20)):
                    words = draw.choices(pool, k=draw.choice((3, 20, 90, 200))) + ["<|end_of_text|>"] * (i % 7 == 0)
                    document = {"id": f"{source}-{language}-{i}", "text": " ".join(words), "source": source}
                    lines.write(document | ({} if language == "unknown" else {"language": language}))
                    written[document["id"]] = language, source, document["text"]
            about = {"path": path, "language": language, "source": source, "rows": min(20, count - number)}
            files.append(about | {"bytes": (folder / path).stat().st_size, "sha256": file_hash(folder / path)})
    recipe = {"source": {"web": {"kind": "filtered_web"}, "books": {"kind": "textbooks"}}}
    (folder / "corpus.json").write_text(json.dumps({"recipe": recipe, "files": files}))
    return written


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder)


def build(corpus, tokenizer, output, rows=RowSettings(SEQ_LEN), fraction=0.1, **options):  # noqa: B008
    """Makes a table in this process; what was made of each stage."""
    made = {}

    def say(text):
        name, _, counts = text.partition(": ")
        made[name.partition("-")[0]] = int(counts.split(", ")[1].split()[0])

    options = {"validation_fraction": fraction, "unit_mb": 0.006, "say": say, **options}
    TableBuild(find_corpus(corpus), tokenizer, output, rows, InThisProcess(), **options)()
    return made


@pytest.fixture(scope="module")
def built(corpus, tokenizer, tmp_path_factory):
    output = tmp_path_factory.mktemp("tables") / "table"
    return output, build(corpus[0], tokenizer, output)


def documents_of(table):
    """{id: its pieces in order} and {id: group} of all rows."""
    pieces, groups = {}, {}
    for group in table.groups:
        for row in range(group.start, group.start + group.rows):
            parts, start = split_row(table.record(row)), 0
            assert parts.trained.all()
            for name, length in zip(table.describe_row(row), parts.lengths):
                name, _, number = name.partition("#")
                pieces.setdefault(name, {})[int(number or 0)] = parts.ids[start : start + length]
                groups[name] = group.name
                start += length
    return {name: [found[i] for i in range(len(found))] for name, found in pieces.items()}, groups


def test_every_document_once_token_for_token_on_its_side(corpus, tokenizer, built):
    tok, limits = load_tokenizer(tokenizer), json.loads((built[0] / "table.json").read_bytes())["inputs"]["settings"]
    assert built[1]["shards"] > 4
    seen, tokens = {}, {}
    for split in ("train", "validation"):
        table = Table(built[0], split)
        pieces, groups = documents_of(table)
        assert not pieces.keys() & seen.keys()
        for name, found in pieces.items():
            language, source, text = corpus[1][name]
            ids = encode_text(tok, text)
            assert join(found, RowSettings(SEQ_LEN)).tolist() == [*text_start(tok), *ids, text_end(tok)]
            assert groups[name] == f"{language}/{source}"
            assert split == ("validation" if id_hash(name) < limits["limits"][language] else "train")
            tokens[split, language] = tokens.get((split, language), 0) + len(ids) + 1
        seen |= pieces
        batch = table.batch(range(len(table)))
        for group in table.groups:
            own = [name for name in pieces if groups[name] == group.name]
            assert group.documents == len(own)
            assert group.bytes == sum(len(corpus[1][name][2].encode()) for name in own)
            rows = slice(group.start, group.start + group.rows)
            assert group.tokens == (batch["segment_ids"][rows] > 0).sum() == batch["loss_mask"][rows].sum()
        by_language = {code: counts["tokens"] for code, counts in table.report["languages"].items()}
        assert by_language == {code: n for (s, code), n in tokens.items() if s == split}
        assert table.report["tokens"] == sum(by_language.values()) and table.report["samples"] > len(pieces)
    assert seen.keys() == corpus[1].keys()


def test_unchanged_is_skipped_and_what_changed_is_made(corpus, tokenizer, built):
    before = result(built[0])
    assert set(build(corpus[0], tokenizer, built[0]).values()) == {0} and result(built[0]) == before
    made = build(corpus[0], tokenizer, built[0], RowSettings(SEQ_LEN, 0.25))
    assert made["files"] == made["held_out"] == 0 < made["shards"] and result(built[0]) != before
    overlapped = Table(built[0], "train")
    pieces, _ = documents_of(overlapped)
    longest = max(pieces, key=lambda name: len(pieces[name]))
    assert pieces[longest][1][0] == pieces[longest][0][96]  # 0.75 of a row further on
    # What was linked half, and no table.json: as a kill leaves it.
    (built[0] / "table.json").unlink()
    (built[0] / "train").rename(built[0] / ".train.old")
    (built[0] / ".train.new" / "fr").mkdir(parents=True)
    build(corpus[0], tokenizer, built[0])
    assert result(built[0]) == before


def test_held_out_by_id_whatever_else_is_there():
    hashes = sorted(map(id_hash, map(str, range(5000))))
    few = hold_out({"fr": 5000}, {"fr": hashes[:8]}, 0.001)["fr"]
    assert few == max(hashes[7] + 1, round(0.001 * 2**64)) and sum(h < few for h in hashes) >= 8
    assert hold_out({"fr": 100, "ko": 19}, {"fr": hashes[:8], "ko": hashes[:8]}, 1e-9)["fr"] == hashes[4] + 1
    assert hold_out({"ko": 19}, {"ko": hashes[:8]}, 1e-12)["ko"] < hashes[0]
    assert hold_out({"fr": 5000}, {"fr": hashes[:8]}, 0.0)["fr"] == 0
    assert abs(sum(h < hold_out({"fr": 5000}, {"fr": hashes[:8]}, 0.1)["fr"] for h in hashes) - 500) < 80


def command(corpus, tokenizer, output, *flags):
    given = {"input": corpus, "tokenizer": tokenizer, "output": output, "seq_len": SEQ_LEN, "unit_mb": 0.006}
    return ["tokenize", *(f"--{k}={v}" for k, v in given.items()), "--validation_fraction=0.1", *flags]


def test_killed_the_same_command_gives_the_same_bytes(corpus, tokenizer, built, tmp_path, capsys):
    """By processes, killed once some shards are there; what it prints stands beside the published numbers."""
    output, environment = tmp_path / "table", {**os.environ, "PYTHONPATH": str(REPO)}
    arguments = command(corpus[0], tokenizer, output, "--workers=1")
    process = subprocess.Popen([sys.executable, "-m", "data_gen", "corpus", *arguments], cwd=REPO, env=environment)
    while process.poll() is None and not list(output.glob("work/shards-*/parts/0*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL and not (output / "table.json").exists()
    there = len(list(output.glob("work/shards-*/parts/0*")))
    made = build(corpus[0], tokenizer, output)
    assert 0 < made["shards"] == built[1]["shards"] - there and result(output) == result(built[0])
    main(command(corpus[0], tokenizer, output))  # nothing is left to make
    assert result(output) == result(built[0])
    printed = capsys.readouterr().out
    assert "train       fr/web" in printed and "0.02" in next(x for x in printed.splitlines() if x.startswith("fr  "))


def test_documents_that_lie_in_files(tokenizer, tmp_path):
    lines = [
        {"text": "fever"},
        {"id": 7, "text": "toux", "language": "fr"},
        {"id": "x", "text": "Husten", "language": "de"},
        {"text": " "},
    ]
    (tmp_path / "raw").mkdir()
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"text": "caf\n'
    (tmp_path / "raw" / "notes.jsonl").write_text(text)
    build(tmp_path / "raw", tokenizer, tmp_path / "table", fraction=0, language="en")
    table = Table(tmp_path / "table", "train")
    pieces, groups = documents_of(table)
    assert [groups.pop(name) for name in ("7", "x")] == ["fr/raw", "unknown/raw"] and [*groups.values()] == ["en/raw"]
    assert len(next(iter(groups))) == 32  # named by its text
    books = json.loads((tmp_path / "table" / "table.json").read_bytes())["books"]
    assert books["rejects"] == {"broken_json": 1, "empty_text": 1}
    assert books["first_reject"] == "notes.jsonl, line 4: empty_text"
    assert table.text_bytes(range(len(table))).tolist() == [6, 5, 0, 0, 0, 4, 0, 0]


def test_inspect_counts_and_names_a_damaged_shard(corpus, tokenizer, tmp_path, capsys):
    build(corpus[0], tokenizer, tmp_path / "table")
    inspect.main([f"--table={tmp_path / 'table'}", "--check"])
    printed = capsys.readouterr().out
    info = json.loads((tmp_path / "table" / "table.json").read_bytes())
    for group in info["splits"]["train"]["groups"]:
        assert re.search(
            rf"train +{group['name']} +{group['documents']} +{group['tokens']:,} +{group['rows']:,} ", printed
        )
    assert "shards are as they were written" in printed
    shard = info["splits"]["validation"]["shards"][1]["path"]
    path = tmp_path / "table" / shard
    data = bytearray(path.read_bytes())
    path.unlink()  # a link to the file of the stage
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    inspect.main([f"--table={tmp_path / 'table'}"])
    for problem in ("has another checksum than when it was written", "has 3 bytes instead of", "is missing"):
        with pytest.raises(WorkError, match=f"^[^\n]*table: {shard} {problem}[^\n]*$"):
            inspect.main([f"--table={tmp_path / 'table'}", "--check"])
        path.write_bytes(b"abc") if "checksum" in problem else path.unlink(missing_ok=True)
    info["splits"]["train"]["groups"][0]["tokens"] += 1
    (tmp_path / "table" / "table.json").write_text(json.dumps(info))
    with pytest.raises(WorkError, match=r"train, ja/web: tokens is not the sum of its shards"):
        inspect.main([f"--table={tmp_path / 'table'}", "--check"])
    (tmp_path / "table" / "table.json").unlink()
    with pytest.raises(UserError, match=r"no packed table \(no table.json\); it is not finished"):
        inspect.main([f"--table={tmp_path / 'table'}"])


def test_published_numbers_need_no_corpus(built):
    info = json.loads((built[0] / "table.json").read_bytes())
    rows = published_lines(info, {})
    assert rows[0].split() == ["10^9", "tokens", "total"] and {r.split()[0] for r in rows[1:]} == {
        "fr",
        "ja",
        "unknown",
    }
    assert next(r for r in rows if r.startswith("fr")).endswith("/ 2.09")


def test_mistakes_are_one_line(corpus, tokenizer, tmp_path):
    output = tmp_path / "out"

    def wrong(*flags, path=corpus[0], tok=tokenizer, into=output):
        with pytest.raises(UserError) as e:
            main(command(path, tok, into, *flags))
        assert "\n" not in str(e.value)
        return str(e.value)

    assert wrong("--seq_len=8") == "--seq_len=8: must be 16 to 1,048,576, for example 8192"
    assert "--overlap=1.5: must be 0 to 0.9" in wrong("--overlap=1.5")
    assert "--validation_fraction=0.9: must be 0 to 0.5" in wrong("--validation_fraction=0.9")
    assert "did you mean 'fr'" in wrong("--language=fra")
    assert "no such file or folder" in wrong(path=tmp_path / "gone")
    assert "'gone' does not exist" in wrong(tok="gone")
    (tmp_path / "empty").mkdir()
    assert "no corpus (corpus.json) and no file of documents (.jsonl" in wrong(path=tmp_path / "empty")
    (tmp_path / "begun" / "work").mkdir(parents=True)
    assert "the corpus is not finished (no corpus.json)" in wrong(path=tmp_path / "begun")
    (tmp_path / "begun" / "table.json").touch()
    assert "is a packed table; name the corpus that it was made from" in wrong(path=tmp_path / "begun")
    assert "--source=x: the sources of a corpus have names" in wrong("--source=x")
    assert "is the folder of a corpus" in wrong(into=corpus[0]) or "holds other files" in wrong(into=corpus[0])
    copy = tmp_path / "copy"
    shutil.copytree(corpus[0], copy)
    damaged = next(copy.rglob("*.zst"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert f"{damaged.relative_to(copy)} has " in wrong(path=copy)
    damaged.unlink()
    assert "is not there; run the build of the corpus again" in wrong(path=copy)
    (copy / "corpus.json").write_text("{}")
    assert "corpus.json cannot be read (KeyError" in wrong(path=copy)
    with pytest.raises(UserError, match="--tokenizer is missing"):
        main(["tokenize", f"--input={corpus[0]}", f"--output={output}"])
    (tmp_path / "bad.jsonl").write_text('{"content": "x"}\n')
    with pytest.raises(UserError, match=r"not one document to train on: no_text 1 \(bad.jsonl, line 1"):
        build(tmp_path / "bad.jsonl", tokenizer, output, fraction=0)
    assert not (output / "table.json").exists()


def test_a_changed_file_and_another_tokenizer_are_seen(corpus, tokenizer, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus[0], copy)
    damaged = sorted(copy.rglob("*.zst"))[0]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(UserError, match="has another checksum than in corpus.json"):
        build(copy, tokenizer, tmp_path / "table")
    other = tmp_path / "tok"
    shutil.copytree(tokenizer, other)

    class Meanwhile(InThisProcess):
        def run(self, folder):
            tiny_tokenizer(tmp_path / "new", 420)
            shutil.copytree(tmp_path / "new" / "tiny_tokenizer", other, dirs_exist_ok=True)
            super().run(folder)

    with pytest.raises(WorkError, match="is another tokenizer than when the command began"):
        TableBuild(find_corpus(corpus[0]), other, tmp_path / "t", RowSettings(64), Meanwhile(), say=lambda _: None)()
