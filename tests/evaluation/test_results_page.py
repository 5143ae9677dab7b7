"""The page of an evaluation: well-formed, complete, escaped, without anything from outside."""

import re

import pytest

from mmed_jax.common.html_page import Cell, environment
from mmed_jax.data.records.schema import LANGUAGES
from tests.support.html_outline import Outline
from tests.support.results import OPTIONS, evaluated, items_of, record


@pytest.fixture
def page_of(tmp_path):
    def go(items, answer, **more):
        results = evaluated(tmp_path, items, answer, **more)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        outline = Outline(text)
        assert not re.search(r"https?:|url\(|@import", text) and "<script" not in text
        assert all(name not in ("src", "href") and not name.startswith("on") for name, _ in outline.attributes)
        return results, text, outline

    return go


def quiz(languages=LANGUAGES, count=8, **more):
    return items_of([record(n, lang, **more) for lang in languages for n in range(count)], "quiz")


def test_seven_languages(page_of):
    results, text, outline = page_of(quiz(), lambda i: f"Answer: {'A' if i.language != 'ru' else ''}")
    assert outline.headings[0] == "21.4% of 56 answers right"
    shown = {row[0]: row for row in outline.rows if row}
    assert shown["Korean"][:4] == ["Korean", "8", "25.0%", "7.1% to 59.1%"] and "0.0%" in shown["Russian"]
    assert shown["all"][1] == "56" and shown["mean over languages"][2] == f"{results['mean_over_languages']:.1%}"
    assert shown["right is B"] == ["right is B", "12", "0", "0", "0", "2", "14", "0.0%"]
    assert outline.headings.count("Wrong answers (12 of 44)") == 1
    assert [h for h in outline.headings if h in ("English", "Korean", "Russian")] == ["English", "Korean", "Russian"]


def test_one_language_has_no_mean_and_no_total(page_of):
    _, text, outline = page_of(quiz(["ja"], 30), lambda i: "正解：A")
    names = [row[0] for row in outline.rows]
    assert "Japanese" in names and "all" not in names and "mean over languages" not in names
    assert text.count("<details>") == 12


def test_everything_that_comes_from_outside_is_escaped(page_of):
    evil = '<img src=x onerror="alert(1)">&'
    records = [record(0, "en", "B", question=evil, options={"A": evil, "B": "b"}, context=evil, id=f"{evil}0")]
    _, text, _ = page_of(items_of(records, f"quiz{evil}"), lambda i: evil, model=evil, system_prompt=evil)
    assert "<img" not in text and text.count("&lt;img") >= 8


def test_long_texts_are_cut_and_empty_answers_named(page_of):
    options = {**OPTIONS, "A": "long " * 1000}
    _, text, _ = page_of(quiz(["en", "zh"], 2, options=options, question="问题" * 5000), lambda i: "")
    assert "(nothing)" in text and len(text) < 60_000 and "问题" * 400 not in text


def test_all_right(page_of):
    _, text, outline = page_of(quiz(["fr"], 3), lambda i: f"Réponse : {i.answer}")
    assert outline.headings[0] == "100.0% of 3 answers right" and "There are none." in text
    assert "<details>" not in text


def test_log_likelihoods_are_shown_and_nothing_is_parsed(page_of):
    _, text, outline = page_of(quiz(["en"], 4), lambda i: [-1.25, -2.0, -3.0, -4.5], mode="loglikelihood")
    assert "(-1.25 nats)" in text and "parsed" not in text and "cut" not in outline.rows[0]
    assert "How answers were read" not in outline.headings


def test_rationale_metrics(page_of):
    _, text, outline = page_of(
        quiz(["en", "zh"], 4), lambda i: f"{i.record['rationale']}\n\nAnswer: A", mode="rationale", metrics=["bleu-1"]
    )
    cells = "100.00100.0-100.0"  # the interval is the second line of a cell
    assert [r for r in outline.rows if cells in r] == [
        ["English", "4", cells],
        ["Chinese", "4", cells],
        ["mean over languages", "8", cells],
    ]
    assert text.count('<p class="note">reference</p>') == 6  # of the wrong answers
    assert "Chinese: jieba" in text and "95 % intervals by a bootstrap over items" in text


def test_rationales_of_one_language_have_no_average(page_of):
    said = {"mode": "rationale", "metrics": ["chrf"]}
    _, _, outline = page_of(quiz(["ko"], 4), lambda i: f"{i.record['rationale']}\n\n정답: A", **said)
    at = outline.rows.index(["", "items", "chrf"])
    assert [r[:2] for r in outline.rows[at + 1 : at + 3]] == [["quiz"], ["Korean", "4"]]
    assert "mean over languages" not in [r[0] for r in outline.rows]


def test_same_wrong_answers_in_any_order(page_of):
    items = quiz(["en", "fr"], 20)
    _, first, _ = page_of(items, lambda i: "Answer: A")
    _, second, _ = page_of(items[::-1], lambda i: "Answer: A")
    assert first[first.index("Wrong answers") :] == second[second.index("Wrong answers") :]


def test_count_that_is_off_is_said(page_of):
    problem = "mmedbench: 8 questions of the test set, 8,518 were published"
    _, text, _ = page_of(quiz(["en"], 8), lambda i: "A", info={"expected": 8518, "count_mismatch": problem})
    assert "not as published" in text and problem in text


def test_a_sample_is_marked_and_the_published_average_leads(page_of):
    items = items_of([record(n, k) for k in ("en", "fr") for n in range(4 if k == "en" else 8)], "mmedbench")
    _, text, outline = page_of(items, lambda i: f"Answer: {i.answer if i.language == 'en' else 'E'}", limit=8)
    assert outline.headings[0] == "50.0% mean over languages, as published; 33.3% of 12 answers right"
    assert "a sample (--limit=8)" in text[: text.index("<dl>")]
    _, text, _ = page_of(items, lambda i: "Answer: A")
    assert "a sample" not in text


def test_pieces():
    pieces = environment().get_template("pieces.html").module
    drawn = pieces.table(["a", "b"], [["<x>", Cell(1, "2 to 3", shade=0.5, kind="right", span=2)], [1234, "b"]])
    assert drawn.count("colspan") == 1 and "&lt;x&gt;" in drawn and "1,234" in drawn
    cell = {"accuracy": 0.5, "interval95": [0.25, 0.75], "count": 1234}
    drawn = pieces.interval_bars("t", [("English", cell), ("French", {**cell, "chance": 0.2})], "note")
    assert drawn.count('width="50.00%"') == 2 and drawn.count("stroke-dasharray") == 1 and "1,234 items" in drawn
