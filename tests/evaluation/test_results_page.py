"""The page of an evaluation: well-formed, complete, escaped, without anything from outside."""

import json
import re
import shutil
import subprocess
from collections import Counter

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.common.html_page import TEMPLATES, Cell, environment
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.results_answers import unread_answers
from mmed_jax.evaluation.results_page import make_page, read_baseline
from tests.support.html_outline import Outline
from tests.support.results import OPTIONS, evaluated, items_of, read_lines, record


@pytest.fixture
def page_of(tmp_path):
    def go(items, answer, **more):
        results = evaluated(tmp_path, items, answer, **more)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        outline = Outline(text)
        assert not re.search(r"https?:|url\(|@import", text) and text.count("<script>") == 1
        assert all(name not in ("src", "href") and not name.startswith("on") for name, _ in outline.attributes)
        return results, text, outline

    return go


def quiz(languages=LANGUAGES, count=8, **more):
    return items_of([record(n, lang, **more) for lang in languages for n in range(count)], "quiz")


def languages_of(text, verdict):
    return list(dict.fromkeys(re.findall(rf'data-answer="{verdict}" data-language="(\w+)"', text)))


def test_seven_languages(page_of):
    results, text, outline = page_of(quiz(), lambda i: f"Answer: {'A' if i.language != 'ru' else ''}")
    assert outline.headings[0] == "21.4% of 56 answers right"
    shown = {row[0]: row for row in outline.rows if row}
    assert shown["Korean"][:4] == ["Korean", "8", "25.0%", "7.1% to 59.1%"] and "0.0%" in shown["Russian"]
    assert shown["all"][1] == "56" and shown["mean over languages"][2] == f"{results['mean_over_languages']:.1%}"
    assert shown["right is B"] == ["right is B", "12", "0", "0", "0", "2", "14", "0.0%"]
    assert [h for h in outline.headings if " of " in h][1:] == [
        "Could not be read (8 of 8)",
        "Wrong (36 of 36)",
        "Right (12 of 12)",
    ]
    assert languages_of(text, "wrong") == ["English", "Chinese", "Japanese", "Korean", "French", "Spanish"]
    assert languages_of(text, "not read") == ["Russian"]


def test_one_language_has_no_mean_and_no_total(page_of):
    _, text, outline = page_of(quiz(["ja"], 30), lambda i: "正解：A")
    names = [row[0] for row in outline.rows]
    assert "Japanese" in names and "all" not in names and "mean over languages" not in names
    assert text.count("<details class=") == 30


def test_everything_that_comes_from_outside_is_escaped(page_of):
    evil = '<img src=x onerror="alert(1)">&'
    records = [record(0, "en", "B", question=evil, options={"A": evil, "B": "b"}, context=evil, id=f"{evil}0")]
    _, text, _ = page_of(items_of(records, f"quiz{evil}"), lambda i: evil, model=evil, system_prompt=evil)
    assert "<img" not in text and text.count("&lt;img") >= 8


def test_long_texts_are_cut_and_empty_answers_named(page_of):
    options = {**OPTIONS, "A": "long " * 1000}
    _, text, _ = page_of(quiz(["en", "zh"], 2, options=options, question="问题" * 5000), lambda i: "")
    assert "(nothing)" in text and len(text) < 70_000 and "问题" * 400 not in text


def test_all_right(page_of):
    _, text, outline = page_of(quiz(["fr"], 3), lambda i: f"Réponse : {i.answer}")
    assert outline.headings[0] == "100.0% of 3 answers right" and "could not be read" not in text
    assert languages_of(text, "right") == ["French"] and languages_of(text, "wrong") == []


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
    assert text.count('<p class="note">reference</p>') == 8
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
    assert first[first.index("<h2>Answers") :] == second[second.index("<h2>Answers") :]


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


def test_answers_that_could_not_be_read_come_first_with_what_to_try(page_of):
    said = {"en": "", "zh": "答案：A或B", "fr": "Je ne sais pas ce que cette question veut dire.", "es": "Answer: A"}
    _, text, outline = page_of(quiz(list(said), 4), lambda i: said[i.language], few_shot=0)
    assert text.index("12 of 16 answers (75.0%) could not be read") < text.index("<h2>Results")
    rows = {row[0]: row[1:] for row in outline.rows if row}
    assert rows["are empty"][0] == "4" and "--prompt_family=llama3" in rows["are empty"][1]
    both = "--few_shot=3, which shows the form, or --mode=loglikelihood, which compares the options"
    assert rows["state no option"] == ["4", both]
    assert rows["name several options, or take one back"] == ["4", "--mode=loglikelihood, which compares the options"]
    assert "were cut by the token limit" not in rows


def test_what_was_done_already_or_cannot_be_done_is_no_advice():
    line = {"output": "x", "extracted": None, "correct": False, "rule": "none"}
    line |= {"finish_reason": "length", "cut": True}
    pairs = [(item, dict(line)) for item in quiz(["en"], 2)]
    settings = {"few_shot": 3, "max_new_tokens": 64, "mode": "direct", "prompt_family": "llama3"}
    results = {"overall": {"parse_rate": 0.0}, "mode": "direct", "model": {"kind": "api"}, "settings": settings}
    longer = "--max_new_tokens=128, or --mode=rationale, where it explains first"
    assert unread_answers(results, pairs)["reasons"] == [["were cut by the token limit", 2, longer]]
    for _, prediction in pairs:
        prediction["cut"] = False
    assert unread_answers(results, pairs)["reasons"] == [["state no option", 2, "a closer look at them, below"]]
    assert unread_answers({**results, "mode": "loglikelihood"}, pairs) is None


def test_a_page_of_many_answers_has_a_few_of_each_kind(page_of):
    _, text, outline = page_of(quiz(LANGUAGES, 200), lambda i: "Answer: A" if i.language != "ko" else "")
    assert {h for h in outline.headings if " of " in h} >= {
        "Could not be read (60 of 200)",
        "Wrong (100 of 900)",
        "Right (60 of 300)",
    }
    assert len(text) < 500_000


def test_an_earlier_evaluation_is_shown_with_this_one(tmp_path):
    items = quiz(["en", "fr"], 6)
    evaluated(tmp_path / "base", items[:10], lambda i: "Answer: C <b>", model="models/<base>")
    ours = evaluated(tmp_path / "ours", items, lambda i: "Answer: A")
    lines = read_lines(tmp_path / "ours/predictions.jsonl")
    baseline = read_baseline(f"<i>untrained={tmp_path}/base", items)
    text = make_page(ours, items, lines, baseline)
    rows = [row for row in Outline(text).rows if row and row[0] in ("en", "fr", "all")]
    assert ["en", "6", "16.67", "33.33", "+16.67"] in [row[:5] for row in rows]
    assert "Compared with <bdi>&lt;i&gt;untrained</bdi>" in text and "<base>" not in text and "<b>\n" not in text
    changes = re.findall(r'data-change="([\w ]+)"', text)
    assert Counter(changes) == {"now right": 3, "now wrong": 2, "same": 5}
    assert text.count("&lt;i&gt;untrained: C, wrong") == 8 and text.count("&lt;i&gt;untrained: C, right") == 2
    # Asked in another way there are no differences, and the answers are there all the same.
    evaluated(tmp_path / "other", items, lambda i: "Answer: B", prompt_family="llama3")
    text = make_page(ours, items, lines, read_baseline(str(tmp_path / "other"), items))
    assert "It was asked otherwise (direct, prompt family llama3" in text and 'data-change="same"' in text
    for change, problem in [({"id": "x"}, "none of the questions"), ({"options": {"A": "b"}}, "has other options")]:
        strange = items_of([{**i.record, "answer_idx": "A", **change} for i in items], "quiz")
        with pytest.raises(UserError, match=rf"^--baseline={re.escape(str(tmp_path))}/base: .*{problem}"):
            read_baseline(str(tmp_path / "base"), strange)
    with pytest.raises(UserError, match="no such folder"):
        read_baseline(str(tmp_path / "none"), items)
    journal = tmp_path / "base" / "predictions.jsonl"
    journal.write_text("".join(json.dumps({**line, "correct": "yes"}) + "\n" for line in read_lines(journal)))
    with pytest.raises(UserError, match="predictions.jsonl.*field 'correct': must be true or false"):
        read_baseline(str(tmp_path / "base"), items)


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node to run the script with")
def test_search_and_choices():
    code = f"""
      const {{ matches, plain }} = require({json.dumps(str(TEMPLATES / "filter.js"))});
      const entry = {{ text: plain("Fièvre ＡＢＣ 发烧 [x] (y"), fields: {{ answer: "wrong", language: "French" }} }};
      const cases = [["", {{}}], ["fièvre abc", {{}}], ["发烧", {{ answer: "wrong" }}], ["[x] (y", {{}}],
        ["fever", {{}}], ["", {{ answer: "right" }}], ["", {{ answer: "", language: "French" }}],
        ["", {{ benchmark: "quiz" }}]];
      console.log(JSON.stringify(cases.map(([query, chosen]) => matches(entry, query, chosen))));"""
    shown = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == [True, True, True, True, False, False, True, False]
