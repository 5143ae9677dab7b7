"""Rating sheets out and in, and which explanations are rated."""

import csv
import json
import os
import random
import shutil
import zipfile
from types import SimpleNamespace

import openpyxl
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.ratings.explanations import load_runs, named_paths, select_explanations
from mmed_jax.evaluation.ratings.sheets import CRITERIA, read_ratings, read_sheet, write_sheet
from mmed_jax.evaluation.scoring import prediction
from tests.support.ratings import QUALITY, fill, make_runs
from tests.support.results import evaluated, items_of, read_lines, record, write_lines

DONE = SimpleNamespace(ids=[3], finish_reason="stop")


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


@pytest.fixture
def found(runs):
    return select_explanations(load_runs({k: str(v) for k, v in runs.items()}))


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_sheet_comes_back_as_it_was_filled_in(tmp_path, found, suffix):
    path = tmp_path / f"sheet{suffix}"
    key = json.loads(write_sheet(path, found, seed=3).read_text())
    rated = {}

    def number(row, criterion):
        where = key["rows"][row["code"]]
        value = rng.choice([1, 2.5, 5])
        rated.setdefault((where["run"], where["benchmark"], where["id"]), {})[criterion] = value
        return value

    rng = random.Random(1)
    fill(path, number)
    read = read_sheet(path)
    assert read.scores == rated and read.unrated == 0 and len(rated) == 36
    assert read_ratings(path) == read


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_sheet_is_blind_and_its_order_drawn(tmp_path, found, suffix):
    texts, orders = [], []
    for n, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"sheet{n}{suffix}"
        key = json.loads(write_sheet(path, found, seed=seed).read_text())
        if suffix == ".csv":
            rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
        else:
            rows = [[str(c or "") for c in row] for row in openpyxl.load_workbook(path)["ratings"].values]
        texts.append(rows)
        orders.append([key["rows"][row[0]]["run"] for row in rows[1:]])
        assert not any(name in cell for row in rows for cell in row for name in QUALITY)
        assert rows[0][:7] == ["code", "in", "question", "options", "right answer", "reference", "explanation"]
        assert rows[0][7:] == [*CRITERIA, "comment"]
    assert texts[0] == texts[1] != texts[2] and orders[0] != orders[2]
    # No run stands at the same place of every item, and items are not in the order of the files.
    assert len({tuple(orders[0][i : i + 3]) for i in range(0, 36, 3)}) > 2
    assert [row[2] for row in texts[0][1:]][::3] != sorted(row[2] for row in texts[0][1:])[::3]


def test_what_spreadsheets_refuse_is_left_out(tmp_path, found):
    from dataclasses import replace

    odd = [replace(found[0], text="a\x00b\x0bc " + "x" * 40_000, question="=1+1")]
    for suffix in (".csv", ".xlsx"):
        write_sheet(tmp_path / f"odd{suffix}", odd)
        fill(tmp_path / f"odd{suffix}", lambda row, criterion: 2)
        assert list(read_sheet(tmp_path / f"odd{suffix}").scores.values()) == [dict.fromkeys(CRITERIA, 2.0)]


def test_sheets_as_people_leave_them(tmp_path, found):
    """Semicolons and decimal commas, moved, missing and empty rows, spaces around, an empty line."""
    path = tmp_path / "s.csv"
    write_sheet(path, found, criteria=["overall"])
    fill(path, lambda row, criterion: 3)
    rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    head, body = rows[0], rows[1:]
    at = head.index("overall")
    body[0][at], body[1][at], body[2][at] = "3,5", "", " 4 "
    body = [body[2], [""] * len(head), *body[:2], *body[4:]]
    with path.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f, delimiter=";").writerows([[h.upper() for h in head], *body])
    read = read_sheet(path)
    assert read.unrated == 2 and sorted(v["overall"] for v in read.scores.values())[-2:] == [3.5, 4.0]


def spoil(path, change):
    rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    change(rows)
    with path.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows(rows)


def put(row, column, value):
    def change(rows):
        rows[row - 1][rows[0].index(column)] = value

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (put(5, "reasoning", "6"), "row 5, column 'reasoning': '6' is not a number from 1 to 5"),
        (put(5, "reasoning", "0"), "row 5, column 'reasoning': '0' is not a number from 1 to 5"),
        (put(6, "language", "good"), "row 6, column 'language': 'good' is not a number from 1 to 5"),
        (put(6, "language", "nan"), "row 6, column 'language': 'nan' is not"),
        (put(7, "correctness", ""), "row 7, column 'correctness': empty, while other columns"),
        (put(8, "code", "r123"), "row 8, column 'code': 'r123' is no code of this sheet"),
        (put(8, "code", ""), "row 8, column 'code': '' is no code of this sheet"),
        (lambda rows: rows.append(rows[2]), "row 38, column 'code': 'r.*' stands already in row 3"),
        (put(1, "reasoning", "resoning"), "row 1: column 'reasoning' is missing"),
        (put(1, "comment", "reasoning"), "row 1: column 'reasoning' stands twice"),
        (lambda rows: rows.__delitem__(slice(1, None)), "nothing is rated in it"),
        (lambda rows: rows.clear(), "row 1: column 'code' is missing"),
    ],
)
def test_what_is_wrong_in_a_sheet_is_one_line(tmp_path, found, change, line):
    path = tmp_path / "sheet.csv"
    write_sheet(path, found)
    fill(path, lambda row, criterion: 3)
    spoil(path, change)
    with pytest.raises(UserError, match=rf"sheet\.csv: {line}") as e:
        read_sheet(path)
    assert "\n" not in str(e.value)


def test_files_that_are_no_sheets(tmp_path, found):
    path = tmp_path / "s.xlsx"
    key = write_sheet(path, found)
    with pytest.raises(UserError, match="nothing is rated"):
        read_sheet(path)
    path.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(UserError, match=r"s\.xlsx: not an XLSX workbook"):
        read_sheet(path)
    key.unlink()
    with pytest.raises(UserError, match=r"its key .*s\.xlsx\.key\.json is not there"):
        read_sheet(path)
    (tmp_path / "s.csv").write_bytes("code;correctness\nrätsel".encode("latin-1"))
    (tmp_path / "s.csv.key.json").write_text('{"scale": 5, "criteria": ["correctness"], "rows": {}}')
    with pytest.raises(UserError, match=r"s\.csv: not UTF-8"):
        read_sheet(tmp_path / "s.csv")
    for name, said in (("no.csv", "no such file"), ("no.ods", "ends in .csv or .xlsx"), ("no.jsonl", "no such file")):
        with pytest.raises(UserError, match=said):
            read_ratings(tmp_path / name)
    with pytest.raises(UserError, match="not a criterion, did you mean 'language'"):
        write_sheet(tmp_path / "t.csv", found, criteria=["langage"])


# ---- Which explanations ---------------------------------------------------------------------------------------------


def test_items_are_those_that_all_runs_explained(runs, tmp_path):
    rows = (runs["fair"] / "predictions.jsonl").read_text().splitlines()
    short = [r.replace('"rationale": "w0', '"rationale": null, "x": "w0') for r in rows[:9]]
    (runs["fair"] / "predictions.jsonl").write_text("\n".join(reversed(short)) + "\n")
    loaded = load_runs({k: str(v) for k, v in runs.items()})
    assert {e.id for e in select_explanations(loaded)} == {f"q{i}" for i in range(1, 9)}
    assert {e.id for e in select_explanations(loaded, checked=True)} == {"q2", "q4", "q6", "q8"}
    assert {e.language for e in select_explanations(loaded, languages=["ko"])} == {"ko"}
    drawn = [[e.key for e in select_explanations(loaded, items=2, seed=s)] for s in (0, 0, 1)]
    assert len(drawn[0]) == 18 and drawn[0] == drawn[1] != drawn[2]
    del loaded["fair"]
    assert {e.id for e in select_explanations(loaded)} == {f"q{i}" for i in range(12)}


def test_raters_see_the_question_and_its_passage_and_not_the_prompt(tmp_path):
    """What evaluations write is what sheets show; lines of earlier versions have only the prompt."""
    records = [record(0, "en"), record(1, "en", context="A passage.")]
    evaluated(tmp_path, items_of(records, "quiz"), lambda i: "Because.\n\nAnswer: A", mode="rationale")
    file = tmp_path / "predictions.jsonl"
    lines = read_lines(file)
    assert [(p["question"], p.get("context")) for p in lines] == [("Question 0?", None), ("Question 1?", "A passage.")]
    asked = {e.id: e.question for e in select_explanations(load_runs({"a": str(tmp_path)}))}
    assert asked == {"en0": "Question 0?", "en1": "A passage.\n\nQuestion 1?"}
    write_lines(file, [{k: v for k, v in p.items() if k not in ("question", "context")} for p in lines])
    asked = {e.id: e.question for e in select_explanations(load_runs({"a": str(tmp_path)}))}
    assert asked["en1"] == lines[1]["prompt"] == "<|user|>Question 1?"


def test_a_line_of_predictions_has_the_question_as_asked():
    def line(**more):
        item = items_of([record(0, "en", **more)], "quiz")[0]
        return prediction(item, DONE, mode="direct", prompt="p", output="Answer: A")

    assert line()["question"] == "Question 0?" and "context" not in line()
    assert line(context="A passage.")["context"] == "A passage."
    told = {"id": "i", "messages": [{"role": "user", "content": "Hello?"}]}
    item = Item("notes", "i", "en", [1], "Hi.", {}, record=told)
    assert "question" not in prediction(item, DONE, mode="exact_match", prompt="p", output="Hi.")


def test_mistakes_with_runs(runs, tmp_path):
    assert named_paths(f"a=x/y, {runs['good']}", "--runs") == {"a": "x/y", "good": str(runs["good"])}
    with pytest.raises(UserError, match="'good' stands for two paths"):
        named_paths(f"good=x,{runs['good']}", "--runs")
    with pytest.raises(UserError, match="no predictions.jsonl there"):
        load_runs({"a": str(tmp_path)})
    file = runs["good"] / "predictions.jsonl"
    lines = file.read_text().splitlines()
    for text, said in (
        (lines[0] + "\n" + lines[0], ":2: item b q0 stands twice"),
        (lines[0].replace('"answer"', '"ans"'), ":1: field 'answer' is missing"),
        (lines[0].replace('"language": "en"', '"language": "eng"'), ":1: language 'eng', did you mean 'en'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            load_runs({"good": str(runs["good"])})
    file.write_text(lines[0].replace('"generated_rationale"', '"x"'))
    with pytest.raises(UserError, match="no item of good has a generated rationale"):
        select_explanations(load_runs({"good": str(runs["good"])}))


PAYLOADS = [
    lead + "=1+1"
    for lead in (
        "",
        "\x00",
        "\x01",
        "\x1f",
        "\ufffe",
        "\uffff",
        "\ufeff",
        "\t",
        "\r",
        "\n",
        "\r\n",
        " ",
        "\u3000",
        "\xa0",
        "\u200b",
        '"',
        "'",
        "\x00 \x01",
        "\u202e",
        "\x9b",
        "\ud800",
    )
] + [sign + "SUM(A1)" for sign in "+-@＝＋－＠﹦﹢﹣﹫"]


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_no_text_becomes_a_formula(tmp_path, found, suffix):
    from dataclasses import replace

    harmless = ["Iron is low.", "答案：甲", "2 < 3", "\U0001f600 fine", "(a) = b"]
    rows = [replace(found[0], id=str(i), text=t, question=t, answer=t) for i, t in enumerate(PAYLOADS + harmless)]
    path = tmp_path / f"sheet{suffix}"
    key = json.loads(write_sheet(path, rows).read_text())["rows"]
    if suffix == ".csv":
        table = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    else:
        sheet = openpyxl.load_workbook(path)["ratings"]
        assert {c.data_type for row in sheet.iter_rows(min_row=2, max_col=7) for c in row} <= {"s", "n"}
        table = [[c or "" for c in row] for row in sheet.values]
    cells = {key[row[0]]["id"]: (row[2], row[4], row[6]) for row in table[1:]}
    for i, text in enumerate(PAYLOADS + harmless):
        guarded = suffix == ".csv" and text not in harmless
        for cell in cells[str(i)]:
            assert (cell[:1] == "'") == (guarded or (suffix == ".xlsx" and text[:1] == "'")), (text, cell)
            if text in harmless:
                assert cell == text
            assert "1+1" in cell or "SUM(A1)" in cell or text in harmless
    fill(path, lambda row, criterion: 4)
    assert len(read_sheet(path).scores) == len(rows)


def test_sheets_that_would_fill_the_memory_are_read_or_refused(tmp_path, found, monkeypatch):
    path = tmp_path / "s.xlsx"
    write_sheet(path, found)
    fill(path, lambda row, criterion: 3)
    expected = read_sheet(path)
    book = openpyxl.load_workbook(path)
    book["ratings"]["XFD1048576"] = "stray"
    book["ratings"]["ALL2"] = " "
    book.save(path)
    assert read_sheet(path) == expected
    write_sheet(path, found)
    monkeypatch.setattr("mmed_jax.evaluation.ratings.sheets._MOST_CELLS", 100)
    with pytest.raises(UserError, match="s.xlsx: more than 100 cells"):
        read_sheet(path)
    monkeypatch.setattr("mmed_jax.evaluation.ratings.sheets._LARGEST", 5000)
    with pytest.raises(UserError, match="s.xlsx: unpacks to more than"):
        read_sheet(path)


def test_workbooks_that_are_cut_or_made_up(tmp_path, found):
    """Every member of the archive in turn: its XML cut, empty, of an unknown encoding, of entities without end."""
    good = tmp_path / "good.xlsx"
    write_sheet(good, found)
    fill(good, lambda row, criterion: 3)
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
        + "]><x>&j;</x>"
    )
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, data in members.items():
        for kind in (
            data[: len(data) // 2],
            b"",
            b'<?xml version="1.0" encoding="utf-7"?><x/>',
            b'<?xml version="1.0" encoding="klingon"?><x/>',
            bomb.encode(),
            b"<x/>",
        ):
            path = tmp_path / "s.xlsx"
            with zipfile.ZipFile(path, "w") as archive:
                for other, content in members.items():
                    archive.writestr(other, kind if other == name else content)
            shutil.copy(tmp_path / "good.xlsx.key.json", tmp_path / "s.xlsx.key.json")
            try:
                read_sheet(path)
            except UserError as e:
                assert "s.xlsx" in str(e) and "\n" not in str(e)
    for name, make in (
        ("pipe.xlsx", os.mkfifo),
        ("gone.csv", lambda p: p.symlink_to("/nowhere")),
        ("zero.csv", lambda p: p.symlink_to("/dev/zero")),
        ("f.csv", lambda p: p.mkdir()),
    ):
        make(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: is a"):
            read_sheet(tmp_path / name)


@pytest.mark.parametrize(
    "key",
    [
        "[]",
        "3",
        '{"scale": "x", "criteria": [], "rows": {}}',
        '{"scale": 5, "criteria": 1, "rows": {}}',
        '{"scale": 5, "criteria": ["overall"], "rows": {"r1": 3}}',
        "[" * 100_000,
        '{"scale": ' + "9" * 5000 + "}",
    ],
)
def test_keys_that_are_none(tmp_path, found, key):
    path = tmp_path / "s.csv"
    write_sheet(path, found).write_text(key)
    with pytest.raises(UserError, match=r"s.csv.key.json"):
        read_sheet(path)
