"""Multiple-choice adapters on small files of the published form, written here with invented content."""

import zipfile

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import group_ids
from mmed_jax.data.sources import Conversion, get_source
from tests.support.sources import chosen, convert, medmcqa, put, say, table


def test_medqa_us_three_forms(tmp_path):
    official = {
        "question": "Which?",
        "answer": "two",
        "options": {"A": "one", "B": "two"},
        "answer_idx": "B",
        "meta_info": "step1",
    }
    put(tmp_path / "test.jsonl", [official, {**official, "answer": "one"}, {**official, "answer_idx": ""}])
    mediq = {"id": 4, "context": ["A man falls.", "He is 50."], **official, "question": "What now?"}
    put(tmp_path / "dev_mediq.jsonl", [mediq])
    text = 'Question: "Quoted" start, what next?"\nOption A: rest\nOption B: Ice  pack\nOption C: x'
    sample = {"id": "seed", "instances": {"input": text, "output": 'ice pack\n"'}}
    put(tmp_path / "train.jsonl", [sample, {"instances": {"input": text, "output": "heat"}}])
    records, run = convert("medqa_us", tmp_path)
    by_split = {r["provenance"]["split"]: r for r in records}
    assert by_split["test"]["question"] == "Which?" and chosen(by_split["test"]) == ["two"]
    assert by_split["validation"]["question"] == "A man falls. He is 50. What now?"
    assert (
        by_split["validation"]["id"] == "medqa_us-validation-mediq-4"
        and by_split["validation"]["license"] == "CC BY 4.0"
    )
    assert by_split["train"]["question"] == '"Quoted" start, what next?' and by_split["train"]["answer_idx"] == "B"
    assert run.report.dropped == {
        "answer letter and answer text disagree": 1,
        "no key": 1,
        "answer text matches no option": 1,
    }


def test_medqa_zh_apollo_and_official(tmp_path):
    apollo = {"question": "问题？", "options": "(A) 甲.\n(B) 乙\n第二行.\n(C) .", "answer": "(B)", "source": "cmexam"}
    several = {
        **apollo,
        "question": "多选",
        "options": "(A) 甲.\n(B) 乙.\n(C) 0.5.",
        "answer": "(AC)",
        "source": "cmmlu-medical",
    }
    put(tmp_path / "train_zh.json", [apollo, several, apollo, {**apollo, "answer": "(C)"}])
    official = {"question": "官方", "options": {"B": "二", "A": "一"}, "answer_idx": "A", "answer": "一"}
    put(tmp_path / "test.jsonl", [official])
    records, run = convert("medqa_zh", tmp_path)
    one = {r["question"]: r for r in records}
    assert one["问题？"]["options"] == {"A": "甲", "B": "乙\n第二行"} and one["问题？"]["license"] == "Apache-2.0"
    assert one["多选"]["answer_idx"] == "A,C" and chosen(one["多选"]) == ["甲", "0.5"]
    assert one["多选"]["license"] == "CC BY-NC-SA 4.0"
    assert one["官方"]["options"] == {"A": "一", "B": "二"} and one["官方"]["license"] == "MIT"
    assert run.report.dropped == {"duplicate of an earlier row": 1, "key is not among the options": 1}


@pytest.mark.parametrize(
    ("values", "base"), [([1, 2, 3, 4], 1), ([0, 1, 2, 3], 0), ([4, 1], 1), ([0], 0), ([2, -1, 0], 0)]
)
def test_medmcqa_numbering_is_read_off_the_whole_file(tmp_path, values, base):
    path = put(tmp_path / "dev.jsonl", [medmcqa(v) for v in values])
    records, run = convert("medmcqa", path)
    assert [r["question"] for r in records] == [f"Q{v}" for v in values if v >= 0]
    assert [chosen(r) for r in records] == [["abcd"[v - base]] for v in values if v >= 0]
    assert run.report.dropped["no key"] == values.count(-1)


def test_medmcqa_numbering_unclear(tmp_path):
    path = put(tmp_path / "few.jsonl", [medmcqa(1), medmcqa(3)])
    with pytest.raises(
        UserError, match="few.jsonl: field 'cop' holds neither 0 nor 4.*--answer_base=0 or --answer_base=1"
    ):
        convert("medmcqa", path)
    assert len(convert("medmcqa", path, "instruction")[0]) == 2  # explanations need no numbering
    assert [chosen(r)[0] for r in convert("medmcqa", path, answer_base=0)[0]] == ["b", "d"]
    assert [chosen(r)[0] for r in convert("medmcqa", path, answer_base=1)[0]] == ["a", "c"]
    both = put(tmp_path / "both.jsonl", [medmcqa(0), medmcqa(4)])
    with pytest.raises(UserError, match="both 0 and 4"):
        convert("medmcqa", both)
    told = put(tmp_path / "told.jsonl", [medmcqa(0)])
    with pytest.raises(UserError, match="--answer_base=1, but field 'cop' holds 0: it counts from 0"):
        convert("medmcqa", told, answer_base=1)
    with pytest.raises(UserError, match="--answer_base: headqa has one numbering"):
        Conversion(get_source("headqa"), told, answer_base=1)


def test_medmcqa_explanations(tmp_path):
    path = put(tmp_path / "x.jsonl", [medmcqa(4), medmcqa(2, exp=None), medmcqa(3, exp="Ans. C")])
    [record], run = convert("medmcqa", path, "instruction")
    assert say(record) == ("Q4\nA. a\nB. b\nC. c\nD. d", "An explanation that is long enough.")
    assert run.report.dropped == {"no explanation": 1, "explanation under 30 characters": 1}
    assert [r["rationale"] for r in convert("medmcqa", path, "mcq")[0]] == [
        "An explanation that is long enough.",
        "",
        "Ans. C",
    ]


PUBMEDQA = {
    "11": {
        "QUESTION": "Is it?",
        "CONTEXTS": ["First.", "Second."],
        "final_decision": "no",
        "LONG_ANSWER": "It is not.",
        "YEAR": "2011",
    },
    "12": {
        "QUESTION": "Does it?",
        "CONTEXTS": ["Other."],
        "final_decision": "maybe",
        "LONG_ANSWER": "Perhaps.",
        "YEAR": None,
    },
    "13": {"QUESTION": "Empty?", "CONTEXTS": [], "final_decision": "yes", "LONG_ANSWER": "Yes."},
}


def test_pubmedqa_both_kinds_and_official_test_split(tmp_path):
    put(tmp_path / "ori_pqal.json", PUBMEDQA)
    records, run = convert("pubmedqa", tmp_path)
    assert [r["id"] for r in records] == ["pubmedqa-all-11", "pubmedqa-all-12"] and run.report.dropped == {
        "no abstract": 1
    }
    assert records[0]["options"] == {"A": "yes", "B": "no", "C": "maybe"} and chosen(records[0]) == ["no"]
    assert records[0]["context"] == "First.\nSecond." and records[0]["rationale"] == "It is not."
    put(tmp_path / "test_ground_truth.json", {"12": "maybe"})
    spoken, _ = convert("pubmedqa", tmp_path, "instruction")
    assert say(spoken[0]) == ("First.\nSecond.\n\nIs it?", "It is not.")
    assert [r["provenance"]["split"] for r in spoken] == ["train", "test"]
    assert spoken[0]["provenance"]["group"] == records[0]["provenance"]["group"] == "pubmedqa:11"


def test_mmlu_names_splits_and_subjects(tmp_path):
    row = ["What, exactly?", "one", " two ", "three", "four", "B"]
    table(tmp_path / "data" / "test" / "anatomy_test.csv", [], row)
    table(tmp_path / "data" / "val" / "virology_val.csv", [], ["V?", *row[1:]])
    table(tmp_path / "data" / "dev" / "nutrition_dev.csv", [], ["N?", *row[1:]])
    table(tmp_path / "data" / "test" / "abstract_algebra_test.csv", [], ["Z?", *row[1:]])
    records, run = convert("mmlu_medical", tmp_path)
    assert {(r["provenance"]["subject"], r["provenance"]["split"]) for r in records} == {
        ("anatomy", "test"),
        ("virology", "validation"),
        ("nutrition", "dev"),
    }
    assert all(chosen(r) == ["two"] for r in records)
    assert run.report.dropped == {"not one of the nine medical subjects": 1}
    with pytest.raises(UserError, match=r"bad.csv:1: expected 6 columns .* got 2"):
        convert("mmlu_medical", table(tmp_path / "bad.csv", [], ["a", "b"]))


def test_jmmlu_zip_with_header(tmp_path):
    text = "\ufeffquestion,A,B,C,D,answer\n尿を集めるのは？, 膀胱,腎臓 ,尿管,尿道,A\n"
    with zipfile.ZipFile(tmp_path / "JMMLU.zip", "w") as archive:
        archive.writestr("JMMLU/test/anatomy.csv", text)
        archive.writestr("JMMLU/test/japanese_history.csv", text)
        archive.writestr("__MACOSX/JMMLU/test/._anatomy.csv", "x")
    [record], run = convert("jmmlu_medical", tmp_path / "JMMLU.zip")
    assert record["options"] == {"A": "膀胱", "B": "腎臓", "C": "尿管", "D": "尿道"} and record["answer_idx"] == "A"
    assert record["license"] == "CC BY-SA 4.0" and run.report.read == 2


def test_mmlu_and_its_translation_are_not_mistaken_for_each_other(tmp_path):
    english = table(tmp_path / "en" / "anatomy.csv", [], ["What?", "one", "two", "three", "four", "B"])
    japanese = table(tmp_path / "ja" / "anatomy.csv", [], ["何か？", "一", "二", "三", "四", "B"])
    formula = table(tmp_path / "x" / "anatomy.csv", [], ["何か？", "1", "2", "3", "4", "B"])
    for name, wrong in (("mmlu_medical", japanese), ("jmmlu_medical", english), ("mmlu_medical", formula)):
        with pytest.raises(UserError, match=f"{name} expects|not in (English|Japanese)"):
            convert(name, wrong)
    assert len(convert("jmmlu_medical", formula)[0]) == 1


def test_frenchmedmcqa(tmp_path):
    row = {
        "id": "f1",
        "question": "Lequel ?",
        "answers": {"b": "deux", "a": "un", "c": "trois"},
        "correct_answers": ["c", "a"],
    }
    put(tmp_path / "train.json", [row, {**row, "id": "f2", "correct_answers": []}])
    [record], run = convert("frenchmedmcqa", tmp_path)
    assert record["answer_idx"] == "A,C" and chosen(record) == ["un", "trois"]
    assert record["id"] == "frenchmedmcqa-train-f1" and run.report.dropped == {"no key": 1}


def test_rumeddanet_keeps_the_passage_and_groups_by_it(tmp_path):
    rows = [
        {"pairID": f"p{i}", "context": passage, "question": f"Вопрос {i}?", "answer": answer}
        for i, (passage, answer) in enumerate([("Текст.", "да"), ("Текст.", "нет"), ("Другой.", "да"), ("Ещё.", "")])
    ]
    records, run = convert("rumeddanet", put(tmp_path / "dev_v1.jsonl", rows))
    assert [r["answer_idx"] for r in records] == ["A", "B", "A"] and records[0]["options"] == {"A": "да", "B": "нет"}
    assert records[0]["context"] == "Текст." and group_ids(records) == [0, 0, 1]
    assert run.report.dropped == {"no key": 1}


def headqa(language: str, question: str, image: str = "") -> dict:
    answers = [{"aid": i, "atext": f"{language}{i}"} for i in (1, 2, 3, 4)]
    data = [{"qid": "7", "qtext": question, "ra": "3", "answers": answers, "image": image}]
    data += [{"qid": "8", "qtext": "void", "ra": "9", "answers": answers, "image": ""}]
    return {
        "version": "1.0",
        "language": language,
        "exams": {"Exam_1": {"name": "Exam_1", "category": "biology", "data": data}},
    }


def test_headqa_languages_share_a_group(tmp_path):
    put(tmp_path / "HEAD" / "train_HEAD.json", headqa("es", "¿Cuál?", "./img.png"))
    put(tmp_path / "HEAD_EN" / "train_HEAD_EN.json", headqa("en", "Which?", "./img.png"))
    records, run = convert("headqa", tmp_path)
    assert sorted((r["language"], chosen(r)[0], r["id"]) for r in records) == [
        ("en", "en3", "headqa-train-en-Exam_1-7"),
        ("es", "es3", "headqa-train-es-Exam_1-7"),
    ]
    assert group_ids(records) == [0, 0] and run.report.needs_image == 2 and all(r["needs_image"] for r in records)
    assert run.report.dropped == {"no key": 2}
    only, run = convert("headqa", tmp_path, languages=("en",))
    assert [r["language"] for r in only] == ["en"] and run.report.dropped["another language"] == 1


def test_casimedicos_both_forms_and_kinds(tmp_path):
    joined = {
        "id": "train-3",
        "lang": "en",
        "split": "train",
        "type": "X",
        "question": "What test?",
        "options": {"2": "CT.", "1": "MRI.", "3": "", "5": "nan"},
        "answer": "2",
        "rationale": "Because 2 is right.",
    }
    put(tmp_path / "en_train.jsonl", [joined])
    put(tmp_path / "es_train.jsonl", [{**joined, "lang": "es", "question": "¿Qué prueba?"}, {**joined, "lang": "it"}])
    published = (
        '{"id": 274, "year": 2016, "question_id_specific": 73, "lang": "fr", "full_question": "Que faire ?", '
        '"type": "Y", "options": {"1": "A1", "2": "A2", "5": NaN}, "correct_option": 1, "full_answer": "ref", '
        '"full_answer_no_ref": "Car."}'
    )
    (tmp_path / "fr_dev_casimedicos.jsonl").write_text(published + "\n", encoding="utf-8")
    records, run = convert("casimedicos", tmp_path)
    one = {r["language"]: r for r in records}
    assert one["en"]["options"] == {"A": "MRI.", "B": "CT."}
    assert chosen(one["en"]) == ["CT."] and one["en"]["rationale"] == "Because 2 is right."
    assert (
        one["fr"]["options"] == {"A": "A1", "B": "A2"}
        and chosen(one["fr"]) == ["A1"]
        and one["fr"]["rationale"] == "Car."
    )
    assert one["fr"]["id"] == "casimedicos-validation-fr-274-2016-73" and one["en"]["id"] == "casimedicos-train-en-3"
    assert one["en"]["provenance"]["group"] == one["es"]["provenance"]["group"] != one["fr"]["provenance"]["group"]
    assert run.report.dropped == {"language not supported (it)": 1}
    spoken, _ = convert("casimedicos", tmp_path, "instruction")
    assert say(spoken[0]) == ("What test?\n1. MRI.\n2. CT.", "Because 2 is right.")


def test_mmedbench_bad_rows_are_counted_not_fatal(tmp_path):
    good = {
        "question": "Q",
        "options": {"A": "a", "B": "b"},
        "answer_idx": "A",
        "rationale": "r",
        "human_checked": False,
    }
    rows = [
        good,
        {**good, "answer_idx": ""},
        {**good, "options": {"A": "a"}},
        {**good, "answer_idx": "E"},
        {"question": "x"},
    ]
    put(tmp_path / "MMedBench" / "Train" / "Japanese.jsonl", rows)
    put(tmp_path / "MMedBench" / "Test" / "Russian.jsonl", [{**good, "options": {"A": "да", "B": "нет", "C": ""}}])
    records, run = convert("mmedbench", tmp_path / "MMedBench")
    assert [r["id"] for r in records] == ["mmedbench-test-Russian-1", "mmedbench-train-Japanese-1"]
    assert records[0]["options"] == {"A": "да", "B": "нет"}
    assert run.report.dropped == {
        "breaks the schema (options)": 1,
        "breaks the schema (answer_idx)": 2,
        "malformed row (field 'options' is missing)": 1,
    }
    put(tmp_path / "other" / "data.jsonl", [good])
    with pytest.raises(UserError, match="files are named by language"):
        convert("mmedbench", tmp_path / "other")


KORMED = ["subject", "year", "period", "q_number", "question", "A", "B", "C", "D", "E", "answer", "cot"]


def test_kormedmcqa(tmp_path):
    table(tmp_path / "doctor" / "test-00000.parquet", KORMED, ["doctor", 2022, 1, 15, "질문?", *"가나다라마", 5, ""])
    table(tmp_path / "nurse" / "fewshot-0.parquet", KORMED, ["nurse", 2021, 2, 3, "둘?", *"가나다라마", 1, "풀이"])
    records, _ = convert("kormedmcqa", tmp_path)
    one = {r["provenance"]["split"]: r for r in records}
    assert chosen(one["test"]) == ["마"] and one["test"]["id"] == "kormedmcqa-test-doctor-2022-1-15"
    assert chosen(one["fewshot"]) == ["가"] and one["fewshot"]["rationale"] == "풀이"


def test_igakuqa(tmp_path):
    row = {
        "problem_id": "116A1",
        "problem_text": "どれか。",
        "choices": ["い", "ろ", "は"],
        "text_only": True,
        "answer": ["c", "a"],
    }
    rows = [row, {**row, "problem_id": "116A2", "problem_text": "図は？", "text_only": False, "answer": ["b"]}]
    rows += [
        {**row, "problem_id": "116A3", "choices": [], "answer": ["15"]},
        {**row, "problem_id": "116A4", "choices": []},
    ]
    put(tmp_path / "data" / "2022" / "116-A.jsonl", rows)
    put(tmp_path / "data" / "2022" / "116-A_translate.jsonl", [row])
    records, run = convert("igakuqa", tmp_path)
    assert [(r["id"], r["answer_idx"]) for r in records] == [("igakuqa-all-116A1", "A,C"), ("igakuqa-all-116A2", "B")]
    assert [r.get("needs_image", False) for r in records] == [False, True] and records[0]["provenance"][
        "year"
    ] == "2022"
    assert run.report.dropped == {
        "number answer without options": 1,
        "no options": 1,
        "machine translation of the same problem": 1,
    }
