"""Readers and units: what is cut anywhere and read piece by piece is the whole file, and what is broken is counted."""

import gzip
import json
import os
import random

import hypothesis
import hypothesis.strategies as st
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_gen.corpus import lines_reader
from data_gen.corpus.readers import Fields, RawDocument, Reject, format_of, reader_of
from data_gen.corpus.units import describe_file, find_files, plan_units
from mmed_jax.common.errors import UserError


def read(path, unit_bytes=1 << 30):
    """Documents and rejects of all pieces, as short as a test needs them."""
    reader = reader_of(format_of(path.name))
    items = []
    for cut in reader.cuts(path, unit_bytes):
        items += reader.read(path, cut, Fields())
    return [i.text if isinstance(i, RawDocument) else (i.reason, i.place) for i in items]


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), max_size=9),
    unit_bytes=st.integers(1, 120),
    packing=st.sampled_from(["", ".gz", ".zst"]),
    last=st.booleans(),
)
def test_any_cut_of_jsonl_reads_every_line_once(tmp_path_factory, texts, unit_bytes, packing, last):
    lines = [json.dumps({"text": f"x{text}"}, ensure_ascii=False).encode() for text in texts]
    path = tmp_path_factory.mktemp("cut") / f"a.jsonl{packing}"
    path.write_bytes(packed(b"\n".join(lines) + b"\n" * last, packing))
    assert read(path, unit_bytes) == [f"x{text}" for text in texts]


def packed(data: bytes, packing: str) -> bytes:
    """In two members or frames."""
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    return pack(data[: len(data) // 2]) + pack(data[len(data) // 2 :])


BROKEN = {
    b'{"text": "caf\xe9"}': ("not_utf8", "line 2"),
    b'{"text": "cut': ("broken_json", "line 2"),
    b'["text"]': ("not_an_object", "line 2"),
    b'{"content": "x"}': ("no_text", "line 2"),
    b'{"text": 3}': ("no_text", "line 2"),
    b'{"text": " "}': ("empty_text", "line 2"),
    b'{"text": NaN}': ("broken_json", "line 2"),
    b'{"text": "\\ud800"}': ("broken_json", "line 2"),
    b"\x00\x01": ("broken_json", "line 2"),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("line", BROKEN, ids=lambda line: repr(line)[2:-1])
def test_a_broken_line_is_one_reject_with_its_place(tmp_path, line, packing):
    path = tmp_path / f"a.jsonl{packing}"
    data = b'{"text": "one"}\n' + line + b'\r\n\n{"text": "two"}\n'
    path.write_bytes(packed(data, packing))
    for unit_bytes in (7, 20, 1000):
        assert read(path, unit_bytes) == ["one", BROKEN[line], "two"]
    assert read(_write(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"text": "one"}\n' + line)) == ["one", BROKEN[line]]


def _write(path, data):
    path.write_bytes(data)
    return path


def test_long_lines_utf16_and_files_that_end_too_early(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_reader, "MAX_LINE", 100)
    long = b'{"text": "one"}\n{"text": "' + b"x" * 300 + b'"}\n{"text": "two"}\n'
    for unit_bytes in (50, 120, 1000):
        assert read(_write(tmp_path / "a.jsonl", long), unit_bytes) == ["one", ("line_too_long", "line 2"), "two"]
    utf16 = '{"text": "one"}\n{"text": "two"}\n'.encode("utf-16")
    assert read(_write(tmp_path / "b.jsonl", utf16), 20) == [("not_utf8", "line 1")]
    for other in (b"PAR1", gzip.compress(b"{}"), zstandard.compress(b"{}"), b"%PDF-1.4", b"PK\x03\x04"):
        assert read(_write(tmp_path / "b.jsonl", other + b"\n\xff\xfe\n" * 9), 20) == [("wrong_format", "")]
    draw = random.Random(0)
    lines = "".join(json.dumps({"text": f"{draw.random()}"}) + "\n" for _ in range(2000)).encode()
    for packing in (".gz", ".zst"):
        path = _write(tmp_path / f"c.jsonl{packing}", packed(lines, packing)[:-9])
        items = read(path, 5000)
        assert [i for i in items if isinstance(i, tuple)][-1][0] == "broken_file" and len(items) > 900
        assert read(_write(path, b"no such thing")) == [("broken_file", "line 1")]


def test_text_files(tmp_path):
    assert read(_write(tmp_path / "a.txt", "\ufeffFièvre\n".encode())) == ["Fièvre\n"]
    assert read(_write(tmp_path / "b.txt", b"one\ntwo \xff\n")) == [("not_utf8", "line 2")]
    assert read(_write(tmp_path / "c.txt", b" \n")) == [("empty_text", "")]


def test_parquet_by_row_group_with_bytes_that_are_no_text(tmp_path):
    texts = [b"one", b"caf\xe9", b"", None, b"two", b"three"]
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.binary()), "id": range(6)})
    raw = tmp_path / "raw.parquet"
    pyarrow.parquet.write_table(table, raw, row_group_size=2)
    schema = pyarrow.schema([("text", pyarrow.string()), ("id", pyarrow.int64())])
    # As another program would have written it: the column says text, the bytes are what they are.
    unsafe = table.set_column(
        0, "text", pyarrow.Array.from_buffers(pyarrow.string(), 6, table["text"].chunk(0).buffers())
    )
    pyarrow.parquet.write_table(unsafe.cast(schema), tmp_path / "a.parquet", row_group_size=2)
    want = ["one", ("not_utf8", "row 2"), ("empty_text", "row 3"), ("no_text", "row 4"), "two", "three"]
    reader = reader_of("parquet")
    for path in (raw, tmp_path / "a.parquet"):
        assert read(path) == want and len(reader.cuts(path, 1)) == 3
        assert read(path, 1) == want
    assert [d.id for d in reader.read(raw, reader.cuts(raw, 1)[2], Fields())] == ["4", "5"]


def test_broken_parquet_is_one_reject(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one" * 50, "two" * 50], "n": [1, 2]}), path, row_group_size=1)
    data = path.read_bytes()
    assert read(_write(tmp_path / "cut.parquet", data[:-20])) == [("broken_file", "")]
    place = data.index(b"one" * 9)
    damaged = _write(tmp_path / "b.parquet", data[: place - 30] + b"\xff" * 30 + data[place:])
    items = read(damaged)
    assert items[0][0] == "broken_row_group" and items[1:] == ["two" * 50]
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    assert read(path) == [("no_text_column", "")]
    twice = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    assert read(tmp_path / "twice.parquet") == [("column_twice", "")]


def test_units_are_the_same_in_whatever_order_files_come(tmp_path):
    for name, lines in (("b/2.jsonl", 30), ("b/1.jsonl", 3), ("a.jsonl", 4), ("c.txt", 1)):
        path = tmp_path / "s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "twenty bytes"}\n' * lines)
    (tmp_path / "s" / ".hidden.jsonl").write_text("{}")
    (tmp_path / "s" / "README").write_text("no format")
    files = find_files("s", tmp_path, "s")
    assert [f.name for f in files] == ["s/a.jsonl", "s/b/1.jsonl", "s/b/2.jsonl", "s/c.txt"]
    described = [describe_file(f, 200) for f in files]
    units = plan_units(files, described, 200)
    shuffled = list(zip(files, described))
    random.Random(1).shuffle(shuffled)
    assert plan_units(*zip(*shuffled), 200) == units
    assert all(u.bytes <= 200 for u in units) and [len(u.pieces) for u in units][:2] == [2, 1]
    assert sum(u.bytes for u in units) == sum(f.size for f in files)
    assert [p.name for p in units[-1].pieces] == ["s/b/2.jsonl", "s/c.txt"]


def test_files_of_no_known_format_are_refused(tmp_path):
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(UserError, match="source.s: .*x.docx: no format by its name"):
        find_files("s", tmp_path, "*")
    assert find_files("s", tmp_path, "nothing/*") == []
    assert [f.format for f in find_files("s", tmp_path, "x.docx", "text")] == ["text"]
    with pytest.raises(UserError, match="format 'txet' is not known, did you mean 'text'"):
        find_files("s", tmp_path, "x.docx", "txet")
    (tmp_path / "x.txt").write_text("x")
    passed_over: list[str] = []
    assert [f.name for f in find_files("s", tmp_path, "*", "", passed_over)] == ["x.txt"] and passed_over == ["x.docx"]


def test_links_to_folders_are_followed_and_paths_stay_below_the_inputs(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "raw" / "s").mkdir(parents=True)
    (tmp_path / "other" / "a.txt").write_text("x")
    (link := tmp_path / "raw" / "s" / "link").symlink_to(tmp_path / "other")
    assert [f.name for f in find_files("s", tmp_path / "raw", "s")] == ["s/link/a.txt"]
    assert [f.name for f in find_files("s", tmp_path / "raw", str(tmp_path / "raw" / "s"))] == ["s/link/a.txt"]
    for pattern in ("../other", str(tmp_path / "other"), "s/../../other"):
        with pytest.raises(UserError, match="source.s.path=.*other: must lie below --data_dir="):
            find_files("s", tmp_path / "raw", pattern)
    with pytest.raises(UserError, match=r"source.s.path=s/\*\*x: Invalid pattern"):
        find_files("s", tmp_path / "raw", "s/**x")
    link.unlink()
    link.symlink_to(tmp_path / "raw")
    with pytest.raises(UserError, match="s/link: is a link to a folder that it lies in; remove it"):
        find_files("s", tmp_path / "raw", "s")
    link.unlink()
    os.close(os.open(os.fsencode(tmp_path / "raw" / "s") + b"/\xff.txt", os.O_CREAT))
    with pytest.raises(UserError, match=r"udcff.txt': its name is no UTF-8; rename it"):
        find_files("s", tmp_path / "raw", "s")


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="source.s: .*a.jsonl: is a link to .*gone.jsonl, which is not there"):
        find_files("s", tmp_path, "*")
    (tmp_path / "a.jsonl").unlink()
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl: is a named pipe"):
        find_files("s", tmp_path, "*.jsonl")


def test_every_format_has_its_reader():
    for kind in ("jsonl", "text", "parquet"):
        assert reader_of(kind)
    assert format_of("X.JSONL.GZ") == "jsonl" and format_of("x.docx") == "" and Reject("a") == Reject("a", "", "")
