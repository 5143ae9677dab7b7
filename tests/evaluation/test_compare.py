"""Runs beside runs and beside published rows; what is refused."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mmed_jax import compare as command
from mmed_jax.common.errors import UserError
from mmed_jax.evaluation.benchmarks.registry import ENTRIES
from mmed_jax.evaluation.comparison.compare_runs import compare_runs
from mmed_jax.evaluation.comparison.published_tables import english_board
from mmed_jax.evaluation.comparison.runs import read_runs
from mmed_jax.evaluation.comparison.tables import YOURS
from mmed_jax.evaluation.metrics.intervals import mcnemar, mean_interval, wilson
from tests.support.results import evaluated, items_of, read_lines, record, write_lines

SIX = ("en", "zh", "ja", "fr", "ru", "es")
SIZES = ENTRIES["mmedbench"].counts["test"]


def mmedbench(count=6, languages=SIX, **more):
    return items_of([record(n, lang, **more) for lang in languages for n in range(count)], "mmedbench")


def sometimes(share, seed=0):
    """The right answer to a share of the items, drawn by their ids."""
    return lambda i: f"Answer: {i.answer if random.Random(f'{seed}{i.id}').random() < share else 'AB'[i.answer == 'A']}"


@pytest.fixture
def runs(tmp_path):
    """Writes evaluations; returns their folders."""

    def go(**asked):
        for name, more in asked.items():
            evaluated(tmp_path / name, more.pop("items", mmedbench()), more.pop("answer", sometimes(0.5)), **more)
        return [str(tmp_path / name) for name in asked]

    return go


def tables(paths, **more):
    return compare_runs(read_runs(paths), **more)


def own(found):
    return [t for t in found if any(line.group == YOURS for line in t.lines)]


# ---- Tables ---------------------------------------------------------------------------------------------------------


def test_runs_stand_beside_published_rows_that_were_asked_alike(runs):
    first, *others = tables(runs(a={}, b={"answer": sometimes(0.8)}))
    assert first.conditions == "direct, prompt family mmedbench, no examples" and first.columns == list(SIX)
    assert [line.name for line in first.lines[:2]] == ["a", "b"] and len(first.lines) == 2 + 31
    assert first.lines[-1].name == "MMed-Llama 3.1 70B" and first.lines[-1].average.value == 0.8051
    assert [t.conditions.split(",")[1] for t in others] == [" 5 examples", " no examples"]  # over an API
    assert own([first, *others]) == [first]


def test_average_is_over_languages_with_interval_and_counts_are_marked(runs, tmp_path):
    items = [i for n, lang in enumerate(SIX) for i in mmedbench(4 + 3 * n, [lang])]
    line = tables(runs(a={"items": items}), methods=())[0].lines[0]
    results = json.loads((tmp_path / "a" / "results.json").read_text())["benchmarks"]["mmedbench"]
    assert line.average.value == pytest.approx(results["mean_over_languages"])
    cells = results["languages"]
    expected = mean_interval([(cells[k]["correct"], cells[k]["count"]) for k in SIX])
    assert line.average.interval == expected
    assert line.values["ja"].interval == wilson(cells["ja"]["correct"], 10) and line.values["ja"].mark == "*"
    assert "en 4 of 1,273" in line.notes[0] and "ru 16 of 256" in line.notes[0] and line.average.mark == "*"


def test_whole_test_set_is_not_marked(runs):
    items = items_of([record(n, "ru") for n in range(SIZES["ru"])], "mmedbench")
    line = tables(runs(a={"items": items}), methods=())[0].lines[0]
    assert line.values["ru"].mark == "" and line.values["ru"].count == 256
    assert line.average is None and line.notes == ["no average: en, zh, ja, fr, es not asked"]


def test_a_missing_language_leaves_no_average(runs):
    (table,) = tables(runs(a={"items": mmedbench(languages=["en", "ja"])}), methods=())
    assert table.lines[0].average is None and "no average: zh, fr, ru, es not asked" in table.lines[0].notes[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"mode": "rationale"},
        {"prompt_family": "llama3"},
        {"few_shot": 3},
        {"shuffle_seed": 1},
        {"mode": "loglikelihood", "answer": lambda i: [-1.0, -2.0, -3.0, -4.0]},
    ],
)
def test_ways_of_asking_never_share_a_table(runs, changed):
    found = own(tables(runs(a={}, b=changed)))
    assert [[line.name for line in t.lines if line.group == YOURS] for t in found] == [["a"], ["b"]]
    assert found[0].conditions != found[1].conditions and not any(t.differences for t in found)
    assert len(found[1].lines) == 1  # published rows stay with what was asked as they were


def test_passages_matter_only_where_there_are_some(runs):
    both = [*mmedbench(languages=["ru"]), *items_of([record(0, "ru")], "rumeddanet")]
    found = tables(runs(a={"items": both, "book": "open"}, b={"items": both, "book": "closed"}), methods=())
    assert [(t.board, len(t.lines)) for t in found] == [("mmedbench", 2), ("rumeddanet", 1), ("rumeddanet", 1)]


@pytest.mark.parametrize("newer", [False, True])
def test_a_run_without_passages_is_asked_as_one_that_has_some_elsewhere(runs, newer):
    """MedMCQA has none: it is compared with itself whether or not PubMedQA was asked beside it."""
    quiz = items_of([record(n, "en") for n in range(8)], "medmcqa")
    both = [*quiz, *items_of([record(n, "en") for n in range(8)], "pubmedqa")]
    paths = runs(a={"items": both, "book": "open"}, b={"items": quiz, "book": "closed"}, c={"items": both})
    for path, passages in zip(paths, ("shown", None, "hidden")):
        file = Path(path) / "results.json"
        results = json.loads(file.read_text())
        results["data"]["medmcqa"]["split"] = "validation"
        if newer:
            for name, data in results["data"].items():
                data["passages"] = passages if name == "pubmedqa" else None
        file.write_text(json.dumps(results))
    (table,) = tables(paths[:2], methods=())
    assert table.conditions.endswith("pubmedqa with passages") and [line.name for line in table.lines] == ["a", "b"]
    (d,) = table.differences
    assert d.column == "medmcqa" and d.count == 8 and d.p is not None
    found = {t.conditions.rpartition(", ")[2]: t for t in tables(paths, methods=())}
    told = {asked: ([line.name for line in t.lines], t.columns) for asked, t in found.items()}
    assert told == {
        "pubmedqa with passages": (["a"], ["medmcqa", "pubmedqa"]),
        "no examples": (["a", "b", "c"], ["medmcqa"]),
        "pubmedqa without passages": (["c"], ["medmcqa", "pubmedqa"]),
    }
    assert found["no examples"].total == "" and not any("average" in n for n in found["no examples"].lines[0].notes)
    assert [(d.other, d.column) for d in found["no examples"].differences] == [("b", "medmcqa"), ("c", "medmcqa")]


def test_passages_of_ones_own_files(runs):
    items = items_of([record(n, "en") for n in range(4)], "mine")
    for pair, count in ((("shown", "hidden"), 2), ((None, None), 1), (("shown", None), 1)):
        made = {f"r{k}": {"items": items, "info": {"passages": p}} for k, p in enumerate(pair)}
        assert len(tables(runs(**made), methods=())) == count, pair


def test_copies_under_two_names_are_counted_once_and_named(runs):
    records = [record(n, "es") for n in range(8)]
    twice = [*items_of(records, "headqa:dev"), *items_of(records, "headqa:validation")]
    once = items_of(records, "headqa:dev")
    info = {"info": {"split": "validation"}}
    right = {"answer": sometimes(1.0)}
    (table,) = tables(runs(a={"items": twice, **info}, b={"items": once, **right, **info}), methods=())
    assert [line.values["es"].count for line in table.lines] == [8, 8] and table.differences[0].count == 8
    told = "headqa:validation are questions of headqa:dev, asked twice: left out"
    assert told in table.lines[0].notes
    assert not any("twice" in n for n in table.lines[1].notes)


def test_a_part_beside_its_whole_is_counted_once(runs):
    exams = [record(n, "ko", id=f"{s}{n}", provenance={"subject": s}) for s in ("doctor", "nurse") for n in range(4)]
    items = [*items_of(exams[:4], "kormedmcqa/doctor", "subject"), *items_of(exams, "kormedmcqa", "subject")]
    (table,) = tables(runs(a={"items": items}), methods=())
    assert {c: v.count for c, v in table.lines[0].values.items()} == {"doctor": 4, "nurse": 4}
    assert any("kormedmcqa/doctor are questions of kormedmcqa" in n for n in table.lines[0].notes)


def test_differences_are_over_common_items_with_mcnemars_test(runs):
    answers = {"a": "BBBBBBBBAA", "b": "BABABABBBB"}  # on items whose right letter is B
    made = {
        name: {
            "items": items_of([record(n, "en", "B") for n in range(10)], "mmedbench"),
            "answer": lambda i, s=said: f"Answer: {s[int(i.id[2:])]}",
        }
        for name, said in answers.items()
    }
    (table,) = tables(runs(**made), methods=())
    (d,) = table.differences
    assert (d.first, d.other, d.column, d.count) == ("a", "b", "en", 10) and d.shares == (0.8, 0.7)
    assert (d.only_first, d.only_other) == (3, 2) and d.p == mcnemar(3, 2) == 1.0
    assert d.difference == pytest.approx(-0.1) and d.interval[0] < -0.1 < d.interval[1]


def test_averages_of_tables_and_differences_are_over_the_published_columns(runs):
    """A folder that is called like the benchmark may hold a language more."""
    items = mmedbench(6, [*SIX, "ko"])
    (table,) = tables(runs(a={"items": items}, b={"items": items, "answer": sometimes(0.9)}), methods=())
    (d,) = [d for d in table.differences if d.column == "average"]
    assert d.shares == pytest.approx([line.average.value for line in table.lines]) and d.count == 36


def test_items_of_one_run_alone_are_left_out_of_differences(runs):
    (table,) = tables(runs(a={}, b={"items": mmedbench(4)}), methods=())
    assert {d.column: d.count for d in table.differences} == {**dict.fromkeys(SIX, 4), "average": 24, "all": 24}
    assert table.notes == ["a, b: differences are over 24 common items of 36 and 24"]
    assert [d.p is None for d in table.differences] == [False] * 6 + [True, False]


def test_order_of_lines_changes_nothing(runs, tmp_path):
    paths = runs(a={}, b={"answer": sometimes(0.9)})
    before = tables(paths)
    lines = read_lines(tmp_path / "b" / "predictions.jsonl")
    write_lines(tmp_path / "b" / "predictions.jsonl", random.Random(0).sample(lines, len(lines)))
    assert tables(paths) == before


def test_english_table_averages_nine_columns(runs):
    subjects = ENTRIES["mmlu_medical"].asked_parts
    eight = [record(n, "en") for n in range(8)]
    items = [i for name in ("medqa_us", "medmcqa", "pubmedqa") for i in items_of(eight, name)]
    of_mmlu = [record(n, "en", id=f"{s}{n}", provenance={"subject": s}) for s in subjects for n in range(4)]
    items += items_of(of_mmlu, "mmlu_medical", "subject")
    (path,) = runs(a={"items": items})
    file = Path(path) / "results.json"
    results = json.loads(file.read_text())
    results["data"]["medmcqa"]["split"] = "validation"
    file.write_text(json.dumps(results))
    first, other = tables([path])
    assert first.columns == list(english_board().columns) and first.board == "english" and first.total == "average"
    line = first.lines[0]
    assert line.average.value == pytest.approx(sum(v.value for v in line.values.values()) / 9)
    assert line.values["mmlu_anatomy"].count == 4 and line.values["mmlu_anatomy"].size == 135
    assert len(other.lines) == 12 and "not published" in other.conditions


def test_another_split_is_not_the_published_one(runs):
    found = tables(runs(a={"info": {"split": "train"}}))
    assert [t.board for t in found] == ["mmedbench (train split)"] and len(found[0].lines) == 1
    assert found[0].total == "all" and "en 6 of 10,178" in found[0].lines[0].notes[0]


def test_rationales_stand_beside_published_ones_only_when_checked(runs, tmp_path):
    said = {"answer": lambda i: f"{i.record['rationale']}\n\n###Answer: OPTION A IS CORRECT.", "mode": "rationale"}
    paths = runs(a={**said, "metrics": ["bleu-1"]}, b={**said, "metrics": ["bleu-1"]})
    file = tmp_path / "b" / "results.json"
    results = json.loads(file.read_text())
    results["rationale_settings"]["checked"] = True
    file.write_text(json.dumps(results))
    found = {t.conditions: t for t in tables(paths) if t.metric == "bleu-1"}
    asked = "rationale, prompt family mmedbench, no examples"
    assert [line.name for line in found[f"{asked}, all references"].lines] == ["a"]
    checked = found[f"{asked}, human-checked references"].lines
    assert checked[0].name == "b" and checked[0].average.value == 1.0 and len(checked) == 1 + 28
    assert [line.name for t in found.values() for line in t.lines].count("GPT-3.5") == 1


# ---- The command ----------------------------------------------------------------------------------------------------


def test_files_hold_what_is_printed(runs, tmp_path, capsys):
    paths = runs(a={}, b={"answer": sometimes(0.9), "model": "<b>"})
    command.main([*paths, f"--output={tmp_path / 'out'}", "--published=llama 3"])
    shown = capsys.readouterr().out
    out = tmp_path / "out"
    assert (out / "compare.txt").read_text() in shown and "MMed-Llama 3 8B" in shown and "GPT-4" not in shown
    rows = list(csv.DictReader((out / "compare.csv").open()))
    mine = {(r["name"], r["column"]): r for r in rows if r["group"] == YOURS}
    assert len(mine) == 14 and mine["a", "fr"]["published_count"] == "622" and mine["a", "fr"]["mark"] == "*"
    assert float(mine["a", "average"]["low"]) < float(mine["a", "average"]["percent"])
    differences = list(csv.DictReader((out / "differences.csv").open()))
    assert [r["column"] for r in differences] == [*SIX, "average", "all"] and differences[6]["mcnemar_p"] == ""
    page = (out / "compare.html").read_text()
    assert "MMed-Llama 3.1 70B" in page and "://" not in page and "<script" not in page


def test_runs_are_named_by_what_tells_them_apart(runs, tmp_path):
    runs(**{"x/eval": {}, "y/eval": {"answer": sometimes(0.9)}, "z": {}})
    named = read_runs([str(tmp_path / "x/eval"), str(tmp_path / "y/eval"), f"best={tmp_path / 'z'}"])
    assert [r.name for r in named] == ["x/eval", "y/eval", "best"]


def broken(tmp_path, kind):
    """Arguments that are wrong in one way."""
    a, b = tmp_path / "a", tmp_path / "b"
    evaluated(a, mmedbench(2), sometimes(0.5))
    other = mmedbench(2) if kind != "other items" else items_of([record(n, "en") for n in (7, 8)], "mmedbench")
    if kind == "other key":
        other = items_of([record(n, lang, "D") for lang in SIX for n in range(2)], "mmedbench")
    evaluated(b, other, sometimes(0.5))
    results = json.loads((b / "results.json").read_text())
    lines = read_lines(b / "predictions.jsonl")
    if kind == "schema":
        results = {"benchmarks": {}, "overall": {}}
    elif kind == "newer":
        results["schema"] = 3
    elif kind == "foreign":
        results = [1]
    elif kind == "count":
        lines = lines[1:]
    elif kind == "field":
        del lines[3]["correct"]
    elif kind == "twice":
        lines[1] = lines[0]
    (b / "results.json").write_text("{" if kind == "json" else json.dumps(results))
    write_lines(b / "predictions.jsonl", lines)
    if kind in ("unfinished", "empty"):
        (b / "results.json").unlink()
    if kind in ("empty", "no predictions"):
        (b / "predictions.jsonl").unlink()
    return {"none": [a, tmp_path / "c"], "same": [a, a], "names": [f"x={a}", f"x={b}"]}.get(kind, [a, b])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "c: no such folder"),
        ("same", "is named twice"),
        ("names", "two runs are called 'x'; name them as NAME=PATH"),
        ("empty", "holds no results.json, which"),
        ("unfinished", "not finished, its command goes on"),
        ("json", "results.json: can't be read"),
        ("foreign", "is not a file of"),
        ("schema", "has schema 1, from an older version"),
        ("newer", "has schema 3, from a newer version"),
        ("no predictions", "no predictions.jsonl"),
        ("count", "has not the 12 items of mmedbench"),
        ("field", "predictions.jsonl:4: field 'correct' is missing"),
        ("twice", "predictions.jsonl:2: item mmedbench en0 stands twice"),
        ("other items", "a and b: no item of mmedbench in common"),
        ("other key", "mmedbench item en0 has the answer A in one and D in the other"),
    ],
)
def test_bad_input_is_one_line(tmp_path, kind, message):
    with pytest.raises(UserError, match=message) as e:
        command.main([str(x) for x in broken(tmp_path, kind)])
    assert "\n" not in str(e.value)


def test_exit_code_and_line(repo, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mmed_jax.compare", str(tmp_path)], cwd=repo, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--submission=s", "--output=o"], "leave out --output"),
        (["--allow_count_mismatch"], "goes with --submission"),
        (["--published=,"], "names nothing"),
        (["--output=FILE"], "is a file; name a folder"),
    ],
)
def test_contradicting_flags(runs, tmp_path, flags, message):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        command.main([*runs(a={}), *(f.replace("FILE", str(tmp_path / "file")) for f in flags)])
