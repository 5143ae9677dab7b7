"""The files of a submission to MMedBench."""

import csv
import io
import json
import random

import pytest

from mmed_jax import compare as command
from mmed_jax.common.errors import UserError
from mmed_jax.evaluation.benchmarks.registry import ENTRIES
from mmed_jax.evaluation.metrics.text_similarity import average, score_rationales
from tests.support.results import evaluated, items_of, read_lines, record

SIX = ("en", "zh", "ja", "fr", "ru", "es")
NAMES = ("English", "Chinese", "Japanese", "French", "Russian", "Spanish")


def mmedbench(count, **more):
    return items_of([record(n, lang, **more) for lang in SIX for n in range(count)], "mmedbench")


def half(item):
    """The right letter to half of the items."""
    return f"Answer: {item.answer if random.Random(item.id).random() < 0.5 else 'A'}"


@pytest.fixture
def runs(tmp_path):
    """Writes evaluations; returns their folders."""

    def go(**asked):
        for name, more in asked.items():
            more = {"items": mmedbench(3), "answer": half, **more}
            evaluated(tmp_path / name, more.pop("items"), more.pop("answer"), **more)
        return [str(tmp_path / name) for name in asked]

    return go


CHECKED = {"human_checked": 1, "human_check_passed": 1}
EXPLAINS = {"mode": "rationale", "answer": lambda i: f'Because of,\n"{i.id}".\n\n###Answer: OPTION A IS CORRECT.'}


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def test_submission_files(runs, tmp_path):
    items = mmedbench(3, **CHECKED)
    items[0] = mmedbench(1)[0]  # nobody has checked this one
    paths = runs(a={"items": items}, b={**EXPLAINS, "items": items})
    command.main([f"--submission={tmp_path / 's'}", "--allow_count_mismatch", *paths])
    answers = rows_of(tmp_path / "s/multi_choice_results.csv")
    assert list(answers[0]) == ["Language", "ModelInput", "ModelOutput", "GT_Answer"] and len(answers) == 18
    assert [r["Language"] for r in answers[::3]] == list(NAMES)
    lines = read_lines(tmp_path / "a/predictions.jsonl")
    assert [(r["ModelInput"], r["ModelOutput"], r["GT_Answer"]) for r in answers] == [
        (p["prompt"], p["output"], p["answer"]) for p in lines
    ]
    (accuracy,) = rows_of(tmp_path / "s/accuracy_metric.csv")
    cells = json.loads((tmp_path / "a/results.json").read_text())["benchmarks"]["mmedbench"]["languages"]
    assert accuracy == {name: f"{100 * cells[k]['accuracy']:.2f}" for name, k in zip(NAMES, SIX)}
    rationales = rows_of(tmp_path / "s/rationale_results.csv")
    assert len(rationales) == 17 and rationales[0]["ModelOutput"].strip() == 'Because of,\n"en1".'
    assert rationales[0]["GT_Answer"] == "Because of reason 1."
    similar = rows_of(tmp_path / "s/rationale_similarity_metric.csv")
    assert [r["Metric"] for r in similar] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    codes = dict(zip(NAMES, SIX))
    again = average(score_rationales([(codes[r["Language"]], r["ModelOutput"], r["GT_Answer"]) for r in rationales]))
    for row in similar:
        for name, language in codes.items():
            assert row[name] == f"{100 * again[row['Metric'].lower()][language]['mean']:.2f}"


def test_submission_of_answers_alone(runs, tmp_path):
    command.main([f"--submission={tmp_path / 's'}", "--allow_count_mismatch", *runs(a={})])
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"multi_choice_results.csv", "accuracy_metric.csv"}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([{}], r"is not the whole test set \(en 2 of 1,273"),
        ([EXPLAINS], "is of mode rationale; RUN_DIRECT, the first one, must be of mode direct"),
        ([{}, {}], "is of mode direct; RUN_RATIONALE, the second one,"),
        ([{"shuffle_seed": 1}], "its options were shuffled"),
        ([{"items": items_of([record(0, "en")], "medqa_us")}], "has no items of mmedbench's test split"),
        ([{}, EXPLAINS], "no reference is marked as checked"),
        ([{}, {**EXPLAINS, "weights": "other"}], "are of different weights"),
        ([{"prompt_family": "llama3"}, EXPLAINS], r"r0 and r1: differ in the prompt family \(llama3, mmedbench\)"),
        ([{}, {**EXPLAINS, "few_shot": 3}], r"differ in the number of examples \(0, 3\)"),
    ],
)
def test_what_is_no_submission(runs, tmp_path, made, message):
    made = {f"r{n}": {"items": mmedbench(2), **m} for n, m in enumerate(made)}
    other = [m.pop("weights", None) for m in made.values()]
    paths = runs(**made)
    if any(other):
        file = tmp_path / "r1" / "results.json"
        results = json.loads(file.read_text())
        results["model"]["fingerprint"] = "other"
        file.write_text(json.dumps(results))
    allow = [] if "whole" in message else ["--allow_count_mismatch"]
    with pytest.raises(UserError, match=message):
        command.main([f"--submission={tmp_path / 's'}", *allow, *paths])
    assert not list((tmp_path / "s").glob("*.csv"))


def test_a_whole_test_set_needs_no_word(runs, tmp_path):
    items = items_of(
        [record(n, k) for k, size in ENTRIES["mmedbench"].counts["test"].items() for n in range(size)], "mmedbench"
    )
    command.main([f"--submission={tmp_path / 's'}", *runs(a={"items": items})])
    assert len(rows_of(tmp_path / "s/multi_choice_results.csv")) == 8518
