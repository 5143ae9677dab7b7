"""Tables and files with a fault that would move cells or lose rows: an error or a counted drop, each time."""

import csv
import datetime
import io
import json
import os
import zipfile
from pathlib import Path

import openpyxl
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.data.sources.mfds_edrug import QUESTIONS
from tests.support.sources import (
    KORMED,
    LETTERED,
    convert,
    drops,
    headqa_row,
    kormed_row,
    medmcqa,
    medqa_row,
    put,
    say,
    table,
)

# ---- Tables -------------------------------------------------------------------------------------------------------

TABLES = {
    "kormedmcqa": (KORMED, kormed_row(1, 1), kormed_row(2, 2)),
    "medmcqa": (list(medmcqa(1)), list(medmcqa(4).values()), list(medmcqa(1).values())),
    "covid_faq": (
        ["question", "answer", "language", "source", "section"],
        ["What is it?", "A virus.", "english", "CDC", "FAQ"],
        ["Who?", "All.", "english", "CDC", "FAQ"],
    ),
    "toyhom": (
        ["department", "title", "ask", "answer"],
        ["内科", "头痛", "头痛怎么办", "休息"],
        ["内科", "咳嗽", "无", "喝水"],
    ),
    "xlinghealth": (
        ["id", "label", "question_English", "answer_English"],
        [1, 1, "Why?", "So."],
        [2, 1, "Who?", "All."],
    ),
    "mfds_edrug": (
        ["품목일련번호", "제품명", "주성분", *QUESTIONS],
        [1, "가나정", "갑", *"가나다라마바사"],
        [2, "다라정", "을", *"아자차카타파하"],
    ),
}


def text_of(*rows: list) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("source", TABLES)
@pytest.mark.parametrize("change", [lambda row: [*row, "more"], lambda row: ["x", *row], lambda row: row[:-1]])
def test_rows_of_another_width_are_counted_with_their_line(tmp_path, source, change):
    header, first, second = TABLES[source]
    path = put(tmp_path / "test.csv", text_of(header, first, change(second)))
    whole = put(tmp_path / "whole.csv", text_of(header, first))
    records, run = convert(source, path)
    [(reason, count)] = [(r, n) for r, n in run.report.dropped.items() if "width" in r]
    wide = len(change(second))
    assert reason == f"row of another width ({wide} cells where the header has {len(header)})" and count == 1
    assert run.report.examples[reason] == f"{path}:3"
    alone, _ = convert(source, whole)
    assert [r.get("question") or say(r) for r in records] == [r.get("question") or say(r) for r in alone]
    # Empty cells at the end, as spreadsheets write them, are no more cells.
    padded = put(tmp_path / "padded.csv", text_of(header, [*first, "", " "], second))
    assert not [r for r in convert(source, padded)[1].report.dropped if "width" in r]
    unnamed = put(tmp_path / "unnamed.csv", text_of([*header, "", ""], first, [*second, "note"]))
    assert not [r for r in convert(source, unnamed)[1].report.dropped if "width" in r]


@pytest.mark.parametrize("source", [*TABLES, "mmlu_medical"])
def test_quotation_marks_that_are_not_closed(tmp_path, source):
    header, first, second = TABLES.get(source, (None, ["Why?", *"wxyz", "A"], ["Who?", *"wxyz", "B"]))
    rows = [text_of(r) for r in ((header,) if header else ()) if r] + [text_of(first), text_of(second), text_of(first)]
    line = 2 if header else 1
    opened = [*rows]
    opened[line - 1] = opened[line - 1].replace(",", ',"', 1)
    path = put(tmp_path / "anatomy.csv", "".join(opened))
    with pytest.raises(
        UserError, match=f"anatomy.csv:{line}: broken CSV: a quotation mark is opened .* end of the file"
    ):
        convert(source, path)
    within = [*opened]
    within[line] = within[line].replace(",", ',x"y,', 1)
    put(path, "".join(within))
    with pytest.raises(UserError, match=f"anatomy.csv:{line}: broken CSV"):
        convert(source, path)


def test_a_quotation_mark_that_swallows_rows_is_seen(tmp_path):
    """Closed by chance at the end of a cell further down: right CSV, and rows 2 to 4 are one."""
    rows = text_of(KORMED, *(kormed_row(n, n) for n in (1, 2, 3, 4))).split("\r\n")
    rows[1] = rows[1].replace("1 진단", '"1 진단')
    rows[3] = rows[3].replace("은?", '은?"')
    with pytest.raises(UserError, match="test.csv:2: .*closed in line 4, and the lines between look like rows"):
        convert("kormedmcqa", put(tmp_path / "test.csv", "\r\n".join(rows)))
    long = kormed_row(1, 2, "첫 줄, 하나, 둘\n둘째 줄, 셋,,,\n\n1,2,3,4,5,6\n진단은?")
    records, _ = convert("kormedmcqa", put(tmp_path / "long.csv", text_of(KORMED, long, kormed_row(2, 1))))
    assert [r["answer_idx"] for r in records] == ["B", "A"] and records[0]["question"].count("\n") == 4
    stray = put(
        tmp_path / "stray.csv", text_of(KORMED, kormed_row(1, 1)) + 'doctor,2022,1,2,"둘"째?,가,나,다,라,마,2\r\n'
    )
    records, run = convert("kormedmcqa", stray)
    assert len(records) == 1 and run.report.dropped == {"broken CSV: a quotation mark in the wrong place": 1}


# ---- Names given twice --------------------------------------------------------------------------------------------


def test_a_name_given_twice(tmp_path):
    twice = '{"question": "Which?", "options": {"A": "x", "B": "y", "B": "z"}, "answer_idx": "A", "meta": 1}'
    good = json.dumps({"question": "Who?", "options": LETTERED, "answer_idx": "A"})
    for name, content, place in (
        ("a.jsonl", f"{good}\n{twice}\n", "a.jsonl:2"),
        ("b.json", f"[{good}, {twice}]", "b.json"),
    ):
        with pytest.raises(UserError, match=f"{place}: field 'B' is given twice in one object"):
            convert("medqa_us", put(tmp_path / name.replace("json", "txt"), content).rename(tmp_path / name))
    pmids = '{"1": {"QUESTION": "a"}, "1": {"QUESTION": "b"}}'
    with pytest.raises(UserError, match="p.json: field '1' is given twice"):
        convert("pubmedqa", put(tmp_path / "p.txt", pmids).rename(tmp_path / "p.json"))
    listed = [{"key": k, "value": v} for k, v in (("A", "x"), ("B", "y"), ("b", "z"))]
    row = {"question": "Which?", "options": listed, "answer_idx": "B"}
    assert drops("medqa_us", put(tmp_path / "list.jsonl", [row])) == {"an option's name is given twice": 1}
    aids = put(tmp_path / "es" / "h.jsonl", [headqa_row(1, (1, 2, 2, 3))])
    assert drops("headqa", aids) == {"an option's name is given twice": 1}
    with pytest.raises(UserError, match="c.csv:1: two columns are named 'answer'"):
        convert("kormedmcqa", table(tmp_path / "c.csv", [*KORMED, " answer"], [*kormed_row(1, 2), 5]))
    with pytest.raises(UserError, match="L.xlsx:1: two columns are named 'label'"):
        convert("xlinghealth", table(tmp_path / "L.xlsx", [*TABLES["xlinghealth"][0], "label"], [1, 0, "q", "a", 1]))
    xml = "<Document><QAPairs><QAPair><Question qid='1'>Why?</Question><Answer>a</Answer><Answer>b</Answer></QAPair>"
    (tmp_path / "d.xml").write_text(f"{xml}</QAPairs></Document>")
    assert drops("medquad", tmp_path / "d.xml") == {"<Answer> given twice in a pair": 1}


# ---- Workbooks ----------------------------------------------------------------------------------------------------


def book(path: Path, *sheets: tuple[str, list]) -> Path:
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title, rows in sheets:
        sheet = made.create_sheet(title)
        for row in rows:
            sheet.append(row)
    made.save(path)
    return path


XLING = TABLES["xlinghealth"][0]


def test_further_sheets_are_read_or_counted(tmp_path):
    other = [["label", "id", "answer_English", "question_English"], [1, 3, "There.", "Where?"]]
    sheets = (
        ("one", [XLING, [1, 1, "Why?", "So."]]),
        ("empty", []),
        ("two", other),
        ("notes", [["made by"], ["us"], ["x"]]),
    )
    records, run = convert("xlinghealth", book(tmp_path / "L.xlsx", *sheets))
    assert [say(r) for r in records] == [("Why?", "So."), ("Where?", "There.")]
    assert run.report.dropped["on another sheet, with another header"] == 2
    assert run.report.examples["on another sheet, with another header"] == f"{tmp_path}/L.xlsx[notes]:2"


def test_sheets_named_by_a_split_are_of_it(tmp_path):
    sheets = [(title, [XLING, [n, 1, f"Why {n}?", "So."]]) for n, title in enumerate(("train", "Test"))]
    path = book(tmp_path / "L.xlsx", *sheets)
    assert [say(r)[0] for r in convert("xlinghealth", path, split="train")[0]] == ["Why 0?"]
    assert [say(r)[0] for r in convert("xlinghealth", path, split="test")[0]] == ["Why 1?"]


def test_headers_of_tables_that_may_have_none(tmp_path):
    """MMLU's tables are read by place, unless a header says where the columns are."""
    row = {"question": "Why?", "a": "w", "b": "x", "c": "y", "d": "z", "answer": "B"}
    for order in (list(row), list(row)[::-1], ["answer", "question", "b", "a", "d", "c"]):
        path = table(tmp_path / "anatomy.csv", [n.title() for n in order], [row[n] for n in order])
        [record] = convert("mmlu_medical", path)[0]
        assert record["question"] == "Why?" and list(record["options"].values()) == list("wxyz")
        assert record["answer_idx"] == "B"
    for header in (["prompt", *"ABCD", "answer"], ["question", "one", "two", "three", "four", "answer"]):
        assert len(convert("mmlu_medical", table(tmp_path / "anatomy.csv", header, list(row.values())))[0]) == 1
    with pytest.raises(UserError, match="anatomy.csv:1: the columns are question, a, c, d, e, answer; expected"):
        convert("mmlu_medical", table(tmp_path / "anatomy.csv", ["question", *"ACDE", "answer"], list(row.values())))


def test_errors_and_dates_are_no_answers(tmp_path):
    day = datetime.datetime(2024, 3, 5)
    cells = ["#NAME?", "#REF!", "#N/A", "#DIV/0!", "#VALUE!", day, day.time(), "fine", "#1 cause", "2024-03-05"]
    rows = [[n, 1, f"Why {n}?", cell] for n, cell in enumerate(cells)]
    records, run = convert("xlinghealth", book(tmp_path / "L.xlsx", ("s", [XLING, *rows])))
    assert [say(r)[1] for r in records] == ["fine", "#1 cause", "2024-03-05"]
    assert run.report.dropped["an Excel error where text should be"] == 5
    assert run.report.dropped["a date where text should be"] == 2
    # As spreadsheets in other languages write them into CSV; none of the rest is one.
    wrong = ["#NOM?", "#VALEUR!", "#¿NOMBRE?", "#¡VALOR!", "#N/D", "#ИМЯ?", "#ДЕЛ/0!", "#Н/Д", "########", "Err:502"]
    right = ["#1", "#Stop!", "# VALUE!", "N/A", "Error 502", "#REF! see below"]
    rows = [[n, 1, f"Why {n}?", cell] for n, cell in enumerate([*wrong, *right])]
    records, run = convert("xlinghealth", table(tmp_path / "L.csv", XLING, *rows))
    assert [say(r)[1] for r in records] == right
    assert run.report.dropped["an Excel error where text should be"] == len(wrong)
    rows = [
        {**medqa_row(1), "options": {"A": "#REF!", "B": "rest"}},
        {**medqa_row(2), "options": {"A": "rest", "B": "#REF!"}},
    ]
    records, run = convert("medqa_us", put(tmp_path / "x.jsonl", rows))  # a wrong option may be unreadable
    assert len(records) == 1 and run.report.dropped == {"an Excel error where text should be": 1}
    options = [[*kormed_row(1, 1)], [*kormed_row(2, 1)]]
    options[1][7] = day
    path = table(tmp_path / "k.parquet", KORMED, options[0])
    assert len(convert("kormedmcqa", path)[0]) == 1


def test_mfds_rows_without_a_product_are_no_questions(tmp_path):
    header, first, _ = TABLES["mfds_edrug"]
    rows = [
        first,
        [2, None, "갑", *"하파타카차자아"],
        [3, "#REF!", "갑", *"거너더러머버서"],
        [4, "(수출명:X)", "갑", *"고노도로모보소"],
    ]
    records, run = convert("mfds_edrug", table(tmp_path / "e.xlsx", header, *rows))
    assert len(records) == 7 and run.report.dropped == {"no product": 14, "an Excel error where text should be": 7}


def sheet_xml(tmp_path: Path, content: str, name: str = "L.xlsx") -> Path:
    """A workbook whose one sheet has this XML."""
    whole = book(tmp_path / "whole.xlsx", ("s", [XLING, [1, 1, "Why?", "So."]]))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            data = old.read(part)
            if part.endswith("sheet1.xml"):
                data = (
                    data[:-40] if content == "cut" else data.replace(b"</sheetData>", f"{content}</sheetData>".encode())
                )
            new.writestr(part, data)
    return tmp_path / name


def test_a_cell_at_the_far_end_and_empty_cells_cost_nothing(tmp_path):
    last = '<row r="1048576"><c r="A1048576"><v>7</v></c><c r="XFD1048576"><v>1</v></c></row>'
    records, run = convert("xlinghealth", sheet_xml(tmp_path, last))
    assert len(records) == 1 and run.report.examples["wrong pairing (label 0)"].endswith(":1048576")
    wide = "".join(f'<row r="{n}"><c r="XFD{n}" s="0"/></row>' for n in range(3, 3000))
    assert len(convert("xlinghealth", sheet_xml(tmp_path, wide))[0]) == 1


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("L.xlsx", lambda p: sheet_xml(p, "cut"), "L.xlsx: not a readable xlsx file: "),
        (
            "L.xlsx",
            lambda p: sheet_xml(p, '<row r="3"><c r="A3" t="s"><v>999</v></c></row>'),
            "L.xlsx: not a readable xlsx",
        ),
        ("L.xlsx", lambda p: (p / "L.xlsx").write_bytes(b"PK no"), "L.xlsx: not a readable xlsx file: BadZipFile"),
        (
            "x.parquet",
            lambda p: (p / "x.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1"),
            "x.parquet: not a readable parquet",
        ),
    ],
)
def test_broken_tables_are_one_line(tmp_path, name, make, says):
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        convert("xlinghealth", tmp_path / name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


# ---- Bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", "[" * 100_000, "x.jsonl: JSON nested too deeply|x.jsonl:1: JSON nested too deeply"),
        ("x.jsonl", '{"a": ' * 100_000, "x.jsonl:1: JSON nested too deeply"),
        ("x.jsonl", '{"a": ' + "1" * 5000 + "}", "x.jsonl:1: a number of more than 4300 digits"),
        ("x.json", '[{"a": ' + "1" * 5000 + "}]", "x.json: a number of more than 4300 digits"),
    ],
)
def test_json_in_bounds(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        convert("medqa_us", tmp_path / name)


def test_lines_without_end_and_files_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr("mmed_jax.common.jsonl.MAX_LINE", 10_000)
    (tmp_path / "x.jsonl").write_text(json.dumps(medqa_row(1)) + "\n" + "x" * 20_000)
    with pytest.raises(UserError, match="x.jsonl:2: a line of .* no row is that long"):
        convert("medqa_us", tmp_path / "x.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "zero.jsonl"):
        with pytest.raises(UserError, match=f"{name}: is .*a regular file is needed"):
            convert("medqa_us", tmp_path / name)
    monkeypatch.setattr("mmed_jax.data.sources.raw_file._MOST_BYTES", 1000)
    with pytest.raises(UserError, match="x.jsonl: unpacks to more than"):
        convert("medqa_us", tmp_path / "x.jsonl")


def test_control_characters_in_names_are_shown_escaped(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(
            "a\x1b]0;pwn\x07.jsonl", json.dumps(medqa_row(1)) + "\n" + json.dumps({**medqa_row(2), "answer_idx": ""})
        )
        archive.writestr("b\x9b.jsonl", "{")
    with pytest.raises(UserError) as caught:
        convert("medqa_us", tmp_path / "x.zip")
    assert "b\\x9b.jsonl:1: broken JSON" in str(caught.value) and "\x9b" not in str(caught.value)
