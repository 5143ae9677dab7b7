"""Passages: every kind of input gives the same dicts, ids are stable, long ones are cut without losing text."""

import gzip
import json

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.passages import read_passages, split_text
from mmed_jax.common.errors import UserError

ROWS = [
    {"Drug": "Metformin", "Dose": "500 mg", "Note": "With meals,\nnot before"},
    {"Drug": "Aspirin", "Dose": None, "Note": "Keep < 25 °C"},
]
TEXTS = ["Drug: Metformin\nDose: 500 mg\nNote: With meals,\nnot before", "Drug: Aspirin\nNote: Keep < 25 °C"]


def write_table(path):
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in (list(ROWS[0]), *(list(r.values()) for r in ROWS)):
            book.active.append(row)
        book.save(path)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(ROWS[0])] + [mark.join(f'"{v or ""}"' for v in r.values()) for r in ROWS]
        path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx"])
def test_tables(tmp_path, suffix):
    path = tmp_path / f"drugs{suffix}"
    write_table(path)
    passages = list(read_passages(str(path), language="en", license="CC0"))
    assert [p["text"] for p in passages] == TEXTS
    assert [p["id"] for p in passages] == ["drugs-2", "drugs-3"]
    assert passages[0]["provenance"] == {"file": path.name, "row": 2}
    assert {(p["language"], p["license"], p["source"]) for p in passages} == {("en", "CC0", "drugs")}
    chosen = [p["text"] for p in read_passages(str(path), language="en", field="Note, Drug")]
    assert chosen[1] == "Note: Keep < 25 °C\nDrug: Aspirin"
    with pytest.raises(UserError, match="no column 'Doses', did you mean 'Dose'"):
        list(read_passages(str(path), language="en", field="Doses"))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_of_any_shape_and_records(tmp_path, suffix, repo):
    path = tmp_path / f"mixed{suffix}"
    record = json.loads((repo / "data_gen/handcrafted/mcq.jsonl").read_text(encoding="utf-8").splitlines()[0])
    objects = [
        {"abstract": "Statins lower LDL.", "id": 7, "language": "en", "license": "MIT", "year": 2020},
        {"text": "Статины снижают ЛПНП.", "language": "ru"},
        {**record, "context": "Trisomy 21 is an extra chromosome."},
    ]
    data = "\n".join(json.dumps(o, ensure_ascii=False) for o in objects).encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    first, second, third = read_passages(str(path))
    assert (first["id"], first["text"], first["license"]) == ("7", "Statins lower LDL.", "MIT")
    assert (second["id"], second["language"], second["license"]) == ("mixed-2", "ru", "unspecified")
    assert third["context"] == "Trisomy 21 is an extra chromosome." and third["provenance"]["group"] == "hc-mcq-001"
    with pytest.raises(UserError, match="mixed.jsonl.*:1: no text in field 'body'.*abstract"):
        list(read_passages(str(path), field="body"))


def test_text_is_joined_by_paragraphs(tmp_path):
    path = tmp_path / "leaflet.txt"
    path.write_text("One.\r\nStill one.\n\n\nTwo.\n \nThree is longer than the rest.\n", encoding="utf-8")
    passages = list(read_passages(str(path), language="en", max_chars=30))
    assert [(p["id"], p["text"]) for p in passages] == [
        ("leaflet-1", "One.\nStill one.\n\nTwo."),
        ("leaflet-3", "Three is longer than the rest."),
    ]
    with pytest.raises(UserError, match="no language in the file; give --from_language"):
        list(read_passages(str(path)))


def test_wrong_files(tmp_path):
    for name, content, message in (
        ("a.pdf", b"%PDF", "unknown kind of file"),
        ("a.xlsx", b"no zip", "not a readable .xlsx"),
        ("a.csv", b"a,b\n\xff,1", "not UTF-8"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            list(read_passages(str(tmp_path / name), language="en"))
    with pytest.raises(UserError, match="no such file or folder, did you mean 'a.pdf'"):
        list(read_passages(str(tmp_path / "a.pdx"), language="en"))
    with pytest.raises(UserError, match="--from_language=kr"):
        list(read_passages(str(tmp_path / "a.txt"), language="kr"))


def test_parts_of_a_long_passage_share_a_family(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"id": "x", "text": "Alpha beta. " * 40, "language": "en"}), encoding="utf-8")
    parts = list(read_passages(str(path), max_chars=200))
    assert [p["id"] for p in parts] == ["x-1", "x-2", "x-3"]
    assert {p["provenance"]["group"] for p in parts} == {"x"}
    assert all(p["text"].endswith("beta.") for p in parts)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab .!?。、\n糖尿", max_size=300), st.integers(10, 60))
def test_nothing_is_lost_in_cutting(text, size):
    parts = split_text(text, size)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(0 < len(p) <= size for p in parts)


def test_drug_tables_as_published(shared_dir):
    path = shared_dir / "data" / "mfds_edrug_ko" / "e_yakeunyo.xlsx"
    if not path.is_file():
        pytest.skip("no drug table in the shared folder")
    passages = read_passages(str(path), language="ko", max_chars=2000)
    found = [next(passages) for _ in range(20)]
    assert all("제품명: " in p["text"] or p["id"].count("-") > 1 for p in found)
    assert found[0]["id"].startswith("e_yakeunyo-2") and max(len(p["text"]) for p in found) <= 2000
