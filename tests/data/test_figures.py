"""Questions that point at a figure they were published without."""

import pytest

from mmed_jax.data.sources import Conversion, get_source
from mmed_jax.data.sources.figures import needs_figure
from tests.support.sources import convert, medmcqa, put

TWO = {"A": "one", "B": "two"}
POINTS = [
    "A photograph of the rash is shown. What is it?",
    "pH 7.54 PCO2 17 mm Hg A chest X-ray is shown. Which of the following explains it?",
    "He was started on 2.5 mg of amlodipine and an ECG is shown. What now?",
    "There is a dark lesion on his leg (see image). Which protein?",
    "The findings are shown in Figures A and B. What is it?",
    "The chest x-ray (Image A) was taken before. What now?",
    "The rash is as shown in the accompanying photograph. Which drug?",
    "A CT scan of the abdomen is presented below. Which vessel?",
    "Name the structure marked with arrow",
    "Given instrument is known as:",
    "A CXR was done and shown below. Diagnosis?",
]
COMPLETE = [
    "Laboratory values are shown below: | Hemoglobin: 9 g/dL. What now?",
    "Results of his arterial blood gas analysis are shown. | pH 7.1. What now?",
    "The results of the tests are shown in the table below. Glucose 164 mg/dL. What now?",
    "A magnetic resonance image (MRI) of the spine shows a fracture. What now?",
    "The microscopic image of a KOH preparation shows pseudohyphae. What is it?",
    "X-ray shows lytic lesions. The liver is palpated 3 cm below the costal margin. What is it?",
    "Calculate the sensitivity based on the data given below: 273, 595.",
    "He was found to have figures below 140/90 mmHg. What now?",
    "Which of the following instruments are more efficient?",
    "An ECG is normal and his laboratory values given below are new: K+ 6. What now?",
    "A 45-year-old man was shown to have a blood pressure of 142/90. He trusts no authority figures.",
]


@pytest.mark.parametrize("question", POINTS)
def test_points_at_a_figure(question):
    assert needs_figure("en", question, TWO) and not needs_figure("fr", question, TWO)


@pytest.mark.parametrize("question", COMPLETE)
def test_says_everything_in_words(question):
    assert not needs_figure("en", question, TWO)


def test_options_that_are_only_letters_are_marks_in_a_figure():
    marks = dict(zip("ABCD", ("A", "B.", "C", "D")))
    assert needs_figure("en", "Which marker shows a holocrine gland?", marks)
    assert not needs_figure("en", "Which cluster of personality disorders?", marks)
    assert not needs_figure("en", "Which base?", dict(zip("ABCD", "CATG")))


@pytest.mark.parametrize(
    "question", ["如图（3）所示，心律属于", "检查结果见图19，应", "试卷附图中，图示的饮片是", "如下图所示的是"]
)
def test_points_at_a_figure_in_chinese(question):
    assert needs_figure("zh", question, TWO)


@pytest.mark.parametrize(
    "question", ["心电图示窦性心律", "CT可见图像清晰", "例如图形的辨认", "脑电图中度异常", "《植物名实图考》"]
)
def test_chinese_words_that_end_in_the_sign(question):
    assert not needs_figure("zh", question, TWO)


def test_adapters_flag_such_rows_and_count_them(tmp_path):
    us = {"options": TWO, "answer_idx": "A", "answer": "one"}
    shown = "A photograph is shown. What is it?"
    sample = {"instances": {"input": "Question: An ECG is shown. Then?\nOption A: x\nOption B: y", "output": "x"}}
    put(tmp_path / "us.jsonl", [{**us, "question": shown}, {**us, "question": "Which?"}, sample])
    records, run = convert("medqa_us", tmp_path / "us.jsonl")
    assert [r.get("needs_image", False) for r in records] == [True, False, True] and run.report.needs_image == 2
    apollo = {"options": "(A) 甲.\n(B) 乙.", "answer": "(B)", "source": "cmexam"}
    put(tmp_path / "zh.json", [{**apollo, "question": "如图所示的是"}, {**apollo, "question": "心电图示"}])
    assert [r.get("needs_image", False) for r in convert("medqa_zh", tmp_path / "zh.json")[0]] == [True, False]
    path = put(tmp_path / "mc.jsonl", [{**medmcqa(4), "question": "Given instrument is known as:"}, medmcqa(1)])
    for kind in ("mcq", "instruction"):
        assert [r.get("needs_image", False) for r in convert("medmcqa", path, kind)[0]] == [True, False]


@pytest.mark.parametrize(
    ("source", "folder", "count"),
    [
        ("medqa_us", "medqa_us", 184),
        ("medmcqa", "medmcqa_dev_en", 46),
        ("medqa_zh", "medqa_zh", 3),
        ("mmlu_medical", "mmlu_medical_en", 0),
        ("casimedicos", "casimedicos_en_es_fr", 0),
    ],
)
def test_counts_of_the_published_sets(shared_dir, source, folder, count):
    run = Conversion(get_source(source), shared_dir / "data" / folder)
    assert sum(needs_figure(r["language"], r["question"], r["options"]) for r in run) == count
    assert run.report.needs_image == count
