"""Keys, options, splits and languages of published files: right, or an error or a counted drop."""

import json
import shutil
from pathlib import Path

import pytest

from data_gen.commands import convert as command
from mmed_jax.common.errors import UserError
from tests.support.sources import (
    KORMED,
    LETTERED,
    casimedicos_row,
    chosen,
    convert,
    drops,
    french_row,
    headqa_row,
    kormed_row,
    medmcqa,
    medqa_row,
    put,
    say,
    table,
)

# ---- Keys and options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name", "row"),
    [
        ("medqa_us", "x.jsonl", {"question": "Which?", "options": {k: LETTERED[k] for k in "ACD"}, "answer_idx": "C"}),
        (
            "medqa_zh",
            "x.jsonl",
            {"question": "哪个？", "options": {"A": "甲", "C": "乙", "D": "丙"}, "answer_idx": "C"},
        ),
        (
            "medqa_us",
            "x.jsonl",
            {"question": "Which?", "options": [{"key": k, "value": k} for k in "BCD"], "answer_idx": "C"},
        ),
        ("frenchmedmcqa", "x.jsonl", french_row(1, ["c"], {"a": "un", "c": "trois", "d": "quatre", "e": "cinq"})),
        ("casimedicos", "x.jsonl", casimedicos_row(1, "3", "1345")),
        ("casimedicos", "x.jsonl", casimedicos_row(1, "3", "2345")),
    ],
)
def test_options_with_a_gap_never_move_under_the_key(tmp_path, source, name, row):
    assert drops(source, put(tmp_path / name, [row])) == {"options not in order": 1}


def test_options_whose_names_say_their_place_keep_their_key(tmp_path):
    rows = [headqa_row(4, (1, 3, 4), n=1), headqa_row("3", (1, 2, 3), n=2), headqa_row("③", (1, 2, 3), n=3)]
    records, _ = convert("headqa", put(tmp_path / "es" / "x.jsonl", rows))
    assert [chosen(r) for r in records] == [["opción 2"]] * 3
    zero = put(tmp_path / "zero.jsonl", [casimedicos_row(n, str(n), "01234") for n in range(5)])
    assert [chosen(r)[0] for r in convert("casimedicos", zero)[0]] == ["uno", "dos", "tres", "cuatro", "cinco"]


BASES = {
    "kormed": lambda keys: ("kormedmcqa", KORMED, [kormed_row(n, k) for n, k in enumerate(keys)]),
    "casimedicos": lambda keys: ("casimedicos", None, [casimedicos_row(n, k) for n, k in enumerate(keys)]),
    "french": lambda keys: ("frenchmedmcqa", None, [french_row(n, [k]) for n, k in enumerate(keys)]),
    "headqa": lambda keys: ("headqa", None, [headqa_row(k, n=n, language="es") for n, k in enumerate(keys)]),
    "medqa": lambda keys: (
        "medqa_us",
        None,
        [medqa_row(n, options=dict(zip("123", "xyz")), answer_idx=k) for n, k in enumerate(keys)],
    ),
    "french numbers": lambda keys: (
        "frenchmedmcqa",
        None,
        [french_row(n, [k], dict(zip("123", ("un", "deux", "trois")))) for n, k in enumerate(keys)],
    ),
    "mmlu": lambda keys: ("mmlu_medical", [], [[f"Why {n}?", *"wxyz", k] for n, k in enumerate(keys)]),
}


def keyed(folder: Path, name: str, keys: tuple) -> tuple[str, Path]:
    """(source, file) of rows with these keys."""
    source, header, rows = BASES[name](keys)
    if header is None:
        return source, put(folder / "t.jsonl", rows)
    return source, table(folder / ("anatomy.csv" if name == "mmlu" else "t.csv"), header, *rows)


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("kormed", (1, 0, 2), "t.csv:3: the key is 0, and kormedmcqa numbers its 5 options from 1"),
        ("kormed", ("3.0", "0.0"), "the key is 0"),
        ("casimedicos", ("1", "0"), "t.jsonl:2: the key is 0, and casimedicos numbers its 5 options from 1"),
        ("french", (1, 5), "t.jsonl:2: the key is 5, and frenchmedmcqa numbers its 5 options from 0"),
        ("french", ("1", "2", "5"), "the key is 5"),
        ("headqa", (3, 0), "t.jsonl:2: the key is 0, and headqa numbers its 4 options from 1"),
        ("medqa", ("2", "0"), "t.jsonl:2: the key is 0, and MedQA numbers its 3 options from 1"),
        ("french numbers", ("1", 0), "t.jsonl:2: the key is 0, and frenchmedmcqa numbers its 3 options from 1"),
        ("mmlu", (4, 2), "anatomy.csv:1: the key is 4, and MMLU numbers its 4 options from 0"),
    ],
)
def test_a_file_that_counts_from_another_number_is_an_error(tmp_path, name, keys, says):
    source, path = keyed(tmp_path, name, keys)
    with pytest.raises(UserError, match=f"{says}.*make every answer another one"):
        convert(source, path)


@pytest.mark.parametrize(
    ("name", "keys", "right"),
    [
        ("kormed", (1, "2.0", 3.0, "④", "５", " 2 ", "(3)", "Ｂ", "d."), "ABCDEBCBD"),
        ("casimedicos", (1, "2.0", "③", "４"), "ABCD"),
        ("french", (0, "1", 2.0, "３"), "ABCD"),
        ("headqa", (1, "2.0", "③", "４"), "ABCD"),
        ("medqa", (1, "2.0", "③"), "ABC"),
        ("french numbers", (1, "2", "③"), "ABC"),
        ("mmlu", (0, "1.0", "②", "Ａ", "b"), "ABCAB"),
    ],
)
def test_numbers_and_letters_as_spreadsheets_write_them(tmp_path, name, keys, right):
    source, path = keyed(tmp_path, name, keys)
    assert [r["answer_idx"] for r in convert(source, path)[0]] == list(right)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "no key"),
        (-1, "no key"),
        ("2.5", "key is neither a letter nor a number"),
        ("가", "key is neither a letter nor a number"),
        (9, "key is not among the options"),
        ("9" * 5000, "key is neither a letter nor a number"),
        ("#N/A", "key is neither a letter nor a number"),
    ],
)
@pytest.mark.parametrize("name", BASES)
def test_keys_that_cannot_be_read_tell_why(tmp_path, name, key, reason):
    source, path = keyed(tmp_path, name, (1, key))
    found = drops(source, path)
    assert found == {reason: 1} or name == "headqa" and key in (-1, 9) and found == {"no key": 1}


def test_the_key_of_the_last_option_is_right_whatever_is_missing_before_it(tmp_path):
    """An option without text, or a fifth one, is no sign that a file counts from another number."""
    answers = dict(zip("abcde", ("un", "deux", "", "quatre", "cinq")))
    rows = [french_row(1, [4], answers), french_row(2, [4])]
    records, run = convert("frenchmedmcqa", put(tmp_path / "f.jsonl", rows))
    assert [chosen(r) for r in records] == [["cinq"]] and run.report.dropped == {"empty option": 1}
    row = {"question": "Why?", "subject": "anatomy", "choices": list("vwxyz"), "answer": 4}
    [record] = convert("mmlu_medical", table(tmp_path / "m.parquet", list(row), list(row.values())))[0]
    assert chosen(record) == ["z"]


@pytest.mark.parametrize(
    "choices",
    [
        "胃肺",
        {"a": "胃", "c": "肺", "d": "心"},
        {"text": ["胃", "肺"], "label": ["A", "B"]},
    ],
)
def test_options_that_are_no_list_are_not_taken_apart(tmp_path, choices):
    exam = {"problem_id": 1, "problem_text": "正しいのはどれか。", "choices": choices, "answer": ["b"]}
    assert drops("igakuqa", put(tmp_path / "e.jsonl", [exam])) == {"options are no list": 1}
    row = {"question": "どれか。", "subject": "anatomy", "choices": choices, "answer": 1}
    path = table(tmp_path / "m.parquet", list(row), list(row.values()))
    assert drops("jmmlu_medical", path) == {"options are no list": 1}


def test_lists_and_objects_are_no_text(tmp_path):
    def case(**more):
        pair = {"question": "怎么办？", "answer": "休息。", **more}
        return {"id": 1, "description": "病人头痛。", "QA_pairs": [pair]}

    cases = [case(), case(question=["怎么办？"]), case(answer={"text": "休息。"}), {**case(), "description": ["头痛"]}]
    records, run = convert("cmb_clin", put(tmp_path / "c.json", cases))
    assert len(records) == 1 and run.report.dropped == {"malformed row (a field of unexpected form)": 3}
    rows = [medqa_row(1), medqa_row(2, question=["Which?"]), medqa_row(3, options={"A": {"text": "x"}, "B": "y"})]
    records, run = convert("medqa_us", put(tmp_path / "m.jsonl", [*rows, medqa_row(4, answer_idx=["A", "B"])]))
    assert [r["answer_idx"] for r in records] == ["A", "A,B"]
    assert run.report.dropped == {"malformed row (a field of unexpected form)": 2}


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("cmb_clin", [{"id": 1, "description": "头痛。", "QA_pairs": None}]),
        ("cmb_clin", [{"id": 1, "description": "头痛。", "QA_pairs": ["x"]}]),
        ("headqa", {"exams": {"E": [1]}}),
        ("headqa", {"exams": {"E": {"data": None}}}),
        ("headqa", {"exams": {"E": {"data": [1]}}}),
    ],
)
def test_files_of_another_build_are_one_line(tmp_path, source, content):
    with pytest.raises(UserError, match="x_HEAD.json: a part of unexpected form; .* expects "):
        convert(source, put(tmp_path / "x_HEAD.json", content))


def test_medmcqa_numbers(tmp_path):
    rows = [
        medmcqa(4),
        medmcqa(1),
        {**medmcqa(2), "cop": "②"},
        {**medmcqa(3), "cop": "3.0"},
        {**medmcqa(-1), "cop": "?"},
        {**medmcqa(-2), "cop": "b"},
    ]
    records, run = convert("medmcqa", put(tmp_path / "t.jsonl", rows))
    assert [r["answer_idx"] for r in records] == list("DABCB")
    assert run.report.dropped == {"key is neither a letter nor a number": 1}


# ---- Splits -------------------------------------------------------------------------------------------------------


def whole_beside_splits(folder: Path, source: str) -> Path:
    """A folder with the whole set in one file, and its splits beside it, told differently in small things."""
    if source == "medqa_us":
        rows = [medqa_row(n) for n in range(4)]
        put(folder / "US_qbank.jsonl", rows)
        put(folder / "train.jsonl", rows[:2])
        put(folder / "dev.jsonl", [{**rows[2], "question": " which  drug helps case 2"}])
        put(folder / "test.jsonl", [{**rows[3], "options": {"A": "Rest.", "B": "Drug 3"}, "answer_idx": ""}])
    elif source == "headqa":
        for name, numbers in (("HEAD", range(4)), ("train_HEAD", (0, 1)), ("dev_HEAD", (2,)), ("test_HEAD", (3,))):
            data = [headqa_row(1, n=n) for n in numbers]
            put(folder / f"{name}.json", {"language": "es", "exams": {"E": {"data": data}}})
    elif source == "pubmedqa":
        item = {"CONTEXTS": ["Text."], "final_decision": "no", "LONG_ANSWER": "It is not."}
        for name, numbers in (("ori_pqal", range(4)), ("train_set", (0, 1)), ("dev_set", (2,)), ("test_set", (3,))):
            put(folder / f"{name}.json", {f"{name}{n}": {"QUESTION": f"Is it {n}?", **item} for n in numbers})
    elif source == "kormedmcqa":
        for name, numbers in (("all", range(4)), ("train", (0, 1)), ("dev", (2,)), ("test", (3,))):
            table(folder / f"{name}.csv", KORMED, *(kormed_row(n, 1) for n in numbers))
    else:
        for name, numbers in (("all", range(4)), ("train", (0, 1)), ("dev", (2,)), ("test", (3,))):
            put(
                folder / f"{name}.jsonl",
                [{"qid": f"{name}{n}", "question": f"What is {n}?", "answer": "It."} for n in numbers],
            )
    return folder


@pytest.mark.parametrize("source", ["medqa_us", "headqa", "pubmedqa", "kormedmcqa", "medquad"])
@pytest.mark.parametrize("zipped", [False, True])
def test_rows_that_stand_in_a_file_of_a_split_belong_to_it(tmp_path, source, zipped):
    folder = whole_beside_splits(tmp_path / "set", source)
    path = Path(shutil.make_archive(tmp_path / "set", "zip", folder)) if zipped else folder
    for split, numbers in (("train", "01"), ("dev", "2")):
        records, run = convert(source, path, split=split)
        asked = [r.get("question") or say(r)[0] for r in records]
        assert [next(c for c in q if c.isdigit()) for q in asked] == list(numbers), asked
        assert run.report.dropped["also in the file of its split"] == len(numbers)
    records, run = convert(source, path)
    assert {r["provenance"]["split"] for r in records} <= {"train", "validation", "test"}
    # Without the file of the test split its rows are in none: nobody may learn from them unasked.
    name = next(p for p in folder.iterdir() if p.name.startswith("test"))
    name.unlink()
    with pytest.raises(UserError, match=r"names no split, and 1 rows of such files stand in none .*\(first: .*\)"):
        convert(source, folder, split="train")
    assert "" in {r["provenance"].get("split", "") for r in convert(source, folder)[0]}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("trainset", "testset"),
        ("TrainData", "TestData"),
        ("training", "testing"),
        ("x_traindata", "x_testdata"),
    ],
)
def test_names_of_files_that_say_their_split_in_other_words(tmp_path, train, test):
    put(tmp_path / f"{train}.jsonl", [medqa_row(1)])
    put(tmp_path / f"{test}.jsonl", [medqa_row(2)])
    for split, number in (("train", "1"), ("test", "2")):
        [record] = convert("medqa_us", tmp_path, split=split)[0]
        assert number in record["question"] and record["provenance"]["split"] == split


def test_a_row_of_two_splits_is_of_the_one_that_must_not_be_learned_from(tmp_path):
    said = ("train", "Test set", "TESTING", "validation", "")
    rows = [medqa_row(n, split=split) for n, split in enumerate(said)]
    records, _ = convert("medqa_us", put(tmp_path / "train.jsonl", rows))
    assert [r["provenance"]["split"] for r in records] == ["train", "test", "test", "validation", "train"]
    records, _ = convert("medqa_us", put(tmp_path / "test.jsonl", rows))
    assert {r["provenance"]["split"] for r in records} == {"test"}


def test_rows_say_their_split_where_the_file_does_not(tmp_path):
    rows = [{**casimedicos_row(n, 1), "split": split} for n, split in enumerate(("train", "dev", "test"))]
    path = put(tmp_path / "es.jsonl", rows)
    for split, number in (("train", 0), ("dev", 1), ("test", 2)):
        [record] = convert("casimedicos", path, split=split)[0]
        assert str(number) in record["question"]
    for order in (rows, rows[::-1]):
        mixed = put(tmp_path / "mixed.jsonl", [*order[:2], casimedicos_row(9, 1), order[2]])
        with pytest.raises(UserError, match=r"mixed.jsonl:3: names no split while other rows do \(.*mixed.jsonl:1\)"):
            convert("casimedicos", mixed, split="train")


def test_duplicates_of_a_test_split_are_kept_when_asked(tmp_path, capsys):
    path = put(tmp_path / "test.jsonl", [medqa_row(1), medqa_row(2), medqa_row(1)])
    flags = ["--source=medqa_us", f"--input={path}", f"--output={tmp_path / 'o.jsonl'}"]
    command.main(flags)
    printed = capsys.readouterr().out
    assert (
        "note: 1 of the rows left out are duplicates within a test split" in printed and "--keep_duplicates" in printed
    )
    command.main([*flags, "--keep_duplicates"])
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert len(records) == 3 and len({r["id"] for r in records}) == 3 and "note:" not in capsys.readouterr().out
    command.main(["--source=medqa_us", f"--input={path.rename(tmp_path / 'train.jsonl')}", flags[2]])
    assert "note:" not in capsys.readouterr().out


# ---- Languages ----------------------------------------------------------------------------------------------------


def test_headqa_languages_come_from_field_or_path(tmp_path):
    header = ["name", "qid", "qtext", "ra", "answers"]

    def hub(folder: Path) -> None:
        folder.mkdir(parents=True)
        row = headqa_row(1)
        table(folder / "test-0.parquet", header, [row[name] for name in header])

    for place in ("a/es", "a/en", "b/headqa-spanish", "b/HEAD_EN", "c"):
        hub(tmp_path / place)
    assert {r["id"].split("-")[2]: r["language"] for r in convert("headqa", tmp_path / "a")[0]} == {
        "es": "es",
        "en": "en",
    }
    assert sorted(r["language"] for r in convert("headqa", tmp_path / "b")[0]) == ["en", "es"]
    for place, language in (("a/en", "en"), ("a/es/test-0.parquet", "es")):
        assert [r["language"] for r in convert("headqa", tmp_path / place)[0]] == [language]
    for place in ("c", "c/test-0.parquet"):
        with pytest.raises(UserError, match="test-0.parquet:1: the language can't be told.*folders es/ and en/"):
            convert("headqa", tmp_path / place)
    for said, language in (("ES", "es"), ("English", "en"), ("Español", "es")):
        path = put(tmp_path / "f" / "x.jsonl", [headqa_row(1, language=said)])
        assert [r["language"] for r in convert("headqa", path)[0]] == [language]
    exams = {"exams": {"E": {"data": [headqa_row(1)]}}}
    for name, language in (("train_HEAD.json", "es"), ("train_HEAD_EN.json", "en"), ("english/HEAD.json", "en")):
        path = put(tmp_path / "d" / name, exams)
        assert [r["language"] for r in convert("headqa", path)[0]] == [language]
    with pytest.raises(UserError, match="questions.json: E 1: the language can't be told"):
        convert("headqa", put(tmp_path / "questions.json", exams))
