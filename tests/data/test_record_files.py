"""Every way records can lie on disk: JSON lines, gzip, folders, zips, MMedBench's own files, TFDS folders."""

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.common.errors import UserError
from mmed_jax.data.records import schema
from mmed_jax.data.records import tfds as tfds_io
from mmed_jax.data.records.reading import load_files, read_records
from mmed_jax.data.records.schema import RecordError, validate_record, write_records

INSTRUCTION = {
    "id": "i1",
    "language": "en",
    "messages": [{"role": "user", "content": "What is a fever?"}, {"role": "assistant", "content": "A raised heat."}],
}
MCQ = {
    "id": "m1",
    "language": "fr",
    "question": "Quel organe ?",
    "options": {"A": "foie", "B": "rate", "C": "rein"},
    "answer_idx": "B",
}


def without(record: dict, name: str) -> dict:
    return {k: v for k, v in record.items() if k != name}


def lines(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["X.JSONL.GZ", "X.Jsonl.gz", "x.jsonl.GZ", "X.JSONL", "ü.b.JsonL"])
@pytest.mark.parametrize("where", ["file", "folder", "zip"])
def test_the_size_of_letters_in_a_suffix_means_nothing(tmp_path, name, where):
    """In every reader: records, published files, prompts, handcrafted samples, passages, benchmarks."""
    from data_gen.commands import handcraft
    from data_gen.passages import read_passages
    from mmed_jax.data.sources.raw_rows import objects
    from mmed_jax.evaluation.benchmarks.locate import locate_files
    from mmed_jax.inference.prompt_files import read_prompts

    plain = lines(tmp_path / "in" / name, MCQ | {"context": "Le foie est grand."}).read_bytes()
    content = gzip.compress(plain) if name.lower().endswith(".gz") else plain
    (tmp_path / "in" / name).write_bytes(content)
    path = tmp_path / "in"
    if where == "file":
        path /= name
    elif where == "zip":
        path = tmp_path / "IN.ZIP"
        with zipfile.ZipFile(path, "w") as z:
            z.writestr(name, content)
    (record,) = read_records(path)
    assert record["id"] == "m1"
    assert [row.raw["id"] for row in objects(path, ".json", ".jsonl")] == ["m1"]
    assert len(list(read_passages(path))) == 1
    if where == "file":
        assert [ident for _, ident, _ in read_prompts(str(path))] == ["m1"]
        assert [b.name for b in locate_files([str(path)])] == [name[: name.lower().index(".jsonl")]]
    if where != "zip":
        assert [r["id"] for r in handcraft.read(path)] == ["m1"]


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(texts, texts, st.sampled_from(schema.LANGUAGES)), max_size=5),
    st.sampled_from(["jsonl", "jsonl.gz"]),
)
def test_any_text_survives_the_file(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.mktemp("any") / f"records.{suffix}"
    records = [
        {
            "id": f"r{i}",
            "language": language,
            "messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}],
        }
        for i, (a, b, language) in enumerate(rows)
    ]
    assert write_records(path, records) == len(records)
    assert list(read_records(path, "instruction")) == [validate_record(r, "x") for r in records]
    first = path.read_bytes()
    write_records(path, records)
    assert path.read_bytes() == first  # gzip too: no time stamp
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [MCQ])
    before = path.read_bytes()
    with pytest.raises(RecordError, match="record 2 for .*records.jsonl: field 'question'"):
        write_records(path, [MCQ, {**MCQ, "question": ""}])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]
    with pytest.raises(UserError, match="record files end in .jsonl"):
        write_records(tmp_path / "records.json", [MCQ])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda line: b"\xef\xbb\xbf" + line + b"\n",
        lambda line: line + b"\r\n",
        lambda line: b"\n\n  \n" + line + b"\n\n",
        lambda line: line,
    ],
    ids=["bom", "crlf", "blank lines", "no last newline"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_users_files_look_like_is_tolerated(tmp_path, wrap, packed):
    data = wrap(json.dumps(MCQ, ensure_ascii=False).encode())
    path = tmp_path / ("f.jsonl.gz" if packed else "f.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert list(read_records(path)) == [validate_record(MCQ, "x")]


GOOD = json.dumps(MCQ, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", GOOD + b'{"id": "\xe9"}\n', "a.jsonl:2: not UTF-8 (byte 0xe9 at position 8)"),
        ("a.jsonl", '{"id": "x"}\n'.encode("utf-16"), "it looks like UTF-16"),
        ("a.jsonl", GOOD + b'{"id": "x"', "a.jsonl:2: broken JSON at column 11"),
        ("a.jsonl", b"[\n" + GOOD, "a.jsonl:1: the file is one JSON array"),
        ("a.jsonl", b"[1, 2]\n", "a.jsonl:1: expected a JSON object, got an array"),
        ("a.jsonl", b'"text"\n', "a.jsonl:1: expected a JSON object, got a str"),
        ("a.jsonl", b'{"id": "x", "id": "y"}\n', "a.jsonl:1: field 'id' is given twice"),
        ("a.jsonl", b'{"id": NaN}\n', "a.jsonl:1: NaN is not valid JSON"),
        ("a.jsonl", b'{"id": ' + b"9" * 5000 + b"}\n", "a.jsonl:1: a number of more than 4300 digits"),
        ("a.jsonl", b'{"x": ' + b"[" * 100_000 + b"\n", "a.jsonl:1: "),
        ("a.jsonl", b'{"id": "\\ud83d", "messages": []}\n', "a.jsonl:1: field 'id': holds half of a surrogate pair"),
        ("a.jsonl.gz", gzip.compress(GOOD * 50, mtime=0)[:-20], "a.jsonl.gz: damaged gzip file"),
        ("a.jsonl.gz", GOOD, "a.jsonl.gz: damaged gzip file"),
        ("a.csv", GOOD, "expected a .jsonl or .jsonl.gz file"),
        ("a.zip", GOOD, "a.zip: damaged zip file"),
        ("a.jsonl", b"[" + GOOD.strip() + b",\n" + GOOD.strip() + b"]", "a.jsonl:1: the file is one JSON array"),
    ],
)
def test_unreadable_files_say_where_and_what(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read_records(tmp_path / name))
    assert says in str(caught.value)


def test_a_flipped_bit_in_a_zip_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", GOOD)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"{")] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match="a.zip/a.jsonl: damaged"):
        load_files([tmp_path / "a.zip"], "mcq")


def test_missing_file_names_the_nearest(tmp_path):
    lines(tmp_path / "train.jsonl", MCQ)
    with pytest.raises(UserError, match=r"trian.jsonl: no such file or folder, did you mean 'train.jsonl'\?"):
        list(read_records(tmp_path / "trian.jsonl"))
    with pytest.raises(UserError, match="there is no folder"):
        list(read_records(tmp_path / "nowhere" / "train.jsonl"))


THEIRS = {
    "question": "Q?",
    "options": {"A": "a", "B": "b", "C": "c"},
    "answer_idx": "C",
    "answer": "c",
    "rationale": "because",
    "human_checked": True,
    "human_check_passed": False,
    "meta_info": "step1",
    "metamap_phrases": ["x"],
}


@pytest.fixture
def mmedbench(tmp_path) -> Path:
    root = tmp_path / "MMedBench"
    for name in ("English", "Chinese", "Japanese", "French", "Russian", "Spanish", "Korean"):
        lines(
            root / "Train" / f"{name}.jsonl",
            {**THEIRS, "question": f"{name} one"},
            {**THEIRS, "question": f"{name} two"},
        )
        lines(root / "Test" / f"{name}.jsonl", {**THEIRS, "question": f"{name} test"})
    return root


def zipped(root: Path) -> Path:
    target = root.parent / "MMedBench.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("__MACOSX/._English.jsonl", b"\x00\x05")
        for path in sorted(root.rglob("*.jsonl")):
            archive.write(path, path.relative_to(root.parent))
    return target


@pytest.mark.parametrize("pack", [lambda p: p, zipped], ids=["folder", "zip"])
def test_mmedbench_is_read_as_it_is(mmedbench, pack):
    path = pack(mmedbench)
    train = list(read_records(path, "mcq"))
    assert len(train) == 14 and {r["language"] for r in train} == set(schema.LANGUAGES)
    test = {r["language"]: r for r in read_records(f"{path}:test")}
    assert test["ru"]["question"] == "Russian test" and test["ko"]["question"] == "Korean test"
    first = next(r for r in train if r["question"] == "Japanese two")
    assert first["id"] == "mmedbench-train-Japanese-2" and first["license"] == "CC BY-NC 4.0"
    assert first["provenance"] == {"file": "Japanese.jsonl", "line": 2, "split": "train", "meta_info": "step1"}
    assert (first["answer_idx"], first["human_checked"], first["human_check_passed"]) == ("C", True, False)
    with pytest.raises(UserError, match=r"no split 'tset', did you mean 'test'\?"):
        list(read_records(f"{path}:tset"))


def test_mmedbench_parts(mmedbench):
    assert len(list(read_records(mmedbench / "Train"))) == 14
    [only] = read_records(mmedbench / "Test" / "English.jsonl")
    assert only["id"] == "mmedbench-test-English-1"


@pytest.mark.parametrize("answer", ["A,C", "AC", "CA", ["A", "C"]])
def test_mmedbench_answer_forms(tmp_path, answer):
    path = lines(tmp_path / "Japanese.jsonl", {**THEIRS, "answer_idx": answer})
    [record] = read_records(path)
    assert record["answer_idx"] == "A,C" and record["id"] == "mmedbench-Japanese-1"


def test_own_records_in_a_file_named_by_language_stay_own(tmp_path):
    [record] = read_records(lines(tmp_path / "English.jsonl", MCQ))
    assert record["language"] == "fr" and record["source"] == "user"
    with pytest.raises(RecordError, match="English.jsonl:1: field 'id'"):
        list(read_records(lines(tmp_path / "English.jsonl", without(MCQ, "id"))))


def test_bad_mmedbench_row_points_to_convert(tmp_path):
    path = lines(tmp_path / "French.jsonl", THEIRS, {**THEIRS, "answer_idx": "E"})
    with pytest.raises(UserError, match=r"French.jsonl:2: field 'answer_idx': 'E' .*convert --source=mmedbench"):
        list(read_records(path))


def test_folders(tmp_path):
    lines(tmp_path / "b.jsonl", {**MCQ, "id": "b"})
    lines(tmp_path / "a.jsonl", {**MCQ, "id": "a"})
    assert [r["id"] for r in read_records(tmp_path)] == ["a", "b"]
    lines(tmp_path / "test" / "c.jsonl", {**MCQ, "id": "c"})
    with pytest.raises(UserError, match="both inside and outside of split folders"):
        list(read_records(tmp_path))
    assert [r["id"] for r in read_records(f"{tmp_path}:test")] == ["c"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no .jsonl"):
        list(read_records(tmp_path / "none"))


def test_a_record_of_the_other_kind_is_an_error(tmp_path):
    path = lines(tmp_path / "f.jsonl", MCQ, INSTRUCTION)
    with pytest.raises(UserError, match=r"f.jsonl:2: a record of kind instruction where multiple-choice"):
        list(read_records(path, "mcq"))


def test_load_files(tmp_path):
    a = lines(tmp_path / "a.jsonl", MCQ, {**MCQ, "id": "m2", "language": "ru"})
    b = lines(tmp_path / "b.jsonl", {**MCQ, "id": "m3"})
    assert [r["id"] for r in load_files([a, b], "mcq")] == ["m1", "m2", "m3"]
    assert [r["id"] for r in load_files([a, b], "mcq", ("ru",))] == ["m2"]
    with pytest.raises(RecordError, match=r"c.jsonl:1: field 'id': 'm1' was already used at .*a.jsonl:1"):
        load_files([a, lines(tmp_path / "c.jsonl", MCQ)], "mcq")
    with pytest.raises(UserError, match="empty.jsonl: holds no records"):
        load_files([a, lines(tmp_path / "empty.jsonl")], "mcq")
    with pytest.raises(UserError, match=r"language 'jp' is not supported, did you mean 'ja'\?"):
        load_files([a], "mcq", ("jp",))
    with pytest.raises(UserError, match="no record in the languages ko; the files hold fr, ru"):
        load_files([a], "mcq", ("ko",))


def test_tfds_round_trip(tmp_path):
    train = [
        {
            **MCQ,
            "id": f"t{i}",
            "language": "ja",
            "question": f"問い{i}？",
            "needs_image": i == 1,
            "provenance": {"group": "g"},
        }
        for i in range(30)
    ]
    folder = tfds_io.write_tfds(tmp_path, "mmed_test", "1.0.0", {"train": train, "test": [{**MCQ, "id": "x"}]})
    assert folder == tmp_path / "mmed_test" / "1.0.0" and [p.name for p in tmp_path.iterdir()] == ["mmed_test"]
    assert list(read_records(folder)) == [validate_record(r, "x") for r in train]
    assert [r["id"] for r in load_files([f"{tmp_path / 'mmed_test'}:test"], "mcq")] == ["x"]
    tfds_io.write_tfds(tmp_path, "mmed_test", "1.0.0", {"validation": [INSTRUCTION]})  # replaces
    assert [r["id"] for r in read_records(tmp_path / "mmed_test")] == ["i1"]
    tfds_io.write_tfds(tmp_path, "mmed_test", "1.10.0", {"a": [INSTRUCTION], "b": [{**INSTRUCTION, "id": "newest"}]})
    assert [r["id"] for r in read_records(f"{tmp_path / 'mmed_test'}:b")] == ["newest"]
    with pytest.raises(UserError, match="several splits and none is train"):
        list(read_records(tmp_path / "mmed_test"))


def test_tfds_columns_can_be_read_without_parsing(tmp_path):
    import tensorflow_datasets as tfds

    record = {**INSTRUCTION, "needs_image": True, "provenance": {"group": "g7"}, "license": "MIT"}
    folder = tfds_io.write_tfds(tmp_path, "columns", "0.1.0", {"train": [record]})
    row = tfds.builder_from_directory(str(folder)).as_data_source(split="train")[0]
    assert json.loads(row["record"]) == validate_record(record, "x")
    plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items() if k != "record"}
    assert plain == {
        "id": "i1",
        "kind": "instruction",
        "language": "en",
        "source": "user",
        "license": "MIT",
        "method": "original",
        "group": "g7",
        "needs_image": True,
    }


def test_tfds_faults(tmp_path):
    with pytest.raises(UserError, match="data set name 'My-Set'"):
        tfds_io.write_tfds(tmp_path, "My-Set", "1.0.0", {"train": []})
    with pytest.raises(UserError, match="data set version '1'"):
        tfds_io.write_tfds(tmp_path, "ok", "1", {"train": []})
    with pytest.raises(RecordError, match="record 1 of split train"):
        tfds_io.write_tfds(tmp_path, "ok", "1.0.0", {"train": [{**MCQ, "question": ""}]})
    assert list(tmp_path.iterdir()) == []
    folder = tfds_io.write_tfds(tmp_path, "ok", "1.0.0", {"train": [MCQ]})
    with pytest.raises(UserError, match=r"no split 'tain', did you mean 'train'\?"):
        list(read_records(f"{folder}:tain"))
    data = next(folder.glob("*.array_record*"))
    data.write_bytes(data.read_bytes()[:60])
    with pytest.raises(UserError, match="ok/1.0.0"):
        list(read_records(folder))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="which needs TensorFlow"):
        list(read_records(folder))
    info.write_text("{")
    with pytest.raises(UserError, match="dataset_info.json: damaged"):
        list(read_records(folder))


def test_no_heavy_imports(repo, tmp_path):
    """Reading records, TFDS included, needs neither jax nor TensorFlow nor torch."""
    folder = tfds_io.write_tfds(tmp_path, "light", "1.0.0", {"train": [MCQ]})
    code = (
        "import sys; from mmed_jax.data.records.reading import load_files; import mmed_jax.data.sources, "
        "data_gen.__main__, "
        f"data_gen.commands.convert; load_files([{str(folder)!r}], 'mcq'); "
        "print([m for m in ('jax', 'jaxlib', 'flax', 'tensorflow', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
