"""What an evaluation writes about its rationales, and what the comparison of two makes of it."""

import csv
import json
import random

import pytest

from mmed_jax import compare as command
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.evaluation.arguments import parse_arguments
from mmed_jax.evaluation.comparison.compare_runs import compare_runs
from mmed_jax.evaluation.comparison.runs import read_runs
from mmed_jax.evaluation.comparison.tables import YOURS
from mmed_jax.evaluation.metrics import text_similarity
from mmed_jax.evaluation.metrics.intervals import bootstrap, paired_difference
from mmed_jax.evaluation.metrics.text_similarity import average, pairs_of, score_rationales
from mmed_jax.evaluation.results_text import breakdown_table
from tests.support.results import evaluated, items_of, read_lines, record, write_lines

SIX = ("en", "zh", "ja", "fr", "ru", "es")
WORDS = "fever cough pain rash nausea dyspnea edema anemia sepsis asthma".split()


def quiz(name="mmedbench", languages=SIX, count=8):
    rng = random.Random(0)
    return items_of(
        [record(n, k, rationale=" ".join(rng.choices(WORDS, k=9)) + ".") for k in languages for n in range(count)], name
    )


def explain(share):
    """Explanations that repeat a share of the reference's words, drawn by the item's id."""

    def go(item):
        rng = random.Random(f"{share}{item.id}")
        words = item.record["rationale"].split()
        said = " ".join(w if rng.random() < share else "other" for w in words)
        return f"{said}\n\n###Answer: OPTION A IS CORRECT."

    return go


def run(folder, share, items=None, metrics=("bleu-1", "chrf"), **more):
    results = evaluated(folder, items or quiz(), explain(share), mode="rationale", metrics=metrics, **more)
    return results["benchmarks"], read_lines(folder / "predictions.jsonl")


def test_results_hold_means_with_intervals_and_the_scores_behind_them(tmp_path):
    blocks, lines = run(tmp_path, 0.5)
    rows = score_rationales(pairs_of(lines), ["bleu-1", "chrf"])
    assert blocks["mmedbench"]["rationale"] == average(rows)
    cell = blocks["mmedbench"]["rationale"]["chrf"]["fr"]
    assert cell["interval95"][0] < cell["mean"] < cell["interval95"][1]
    scores = read_lines(tmp_path / "rationale_scores.jsonl")
    assert [(s["benchmark"], s["id"]) for s in scores] == [("mmedbench", p["id"]) for p in lines]
    assert [{"language": s["language"], **s["scores"]} for s in scores] == rows


def test_printed_table(tmp_path):
    results = evaluated(tmp_path, quiz(), explain(0.6), mode="rationale", metrics=["bleu-1"])
    lines = breakdown_table(results).splitlines()
    at = lines.index("mmedbench: rationales, times 100, with 95 % intervals")
    head, means, intervals, items = (line.split() for line in lines[at + 1 : at + 5])
    found = results["benchmarks"]["mmedbench"]["rationale"]["bleu-1"]
    assert head == [*(k for k in LANGUAGES if k in SIX), "average"] and items == ["items", *["8"] * 6, "48"]
    assert means == ["bleu-1", *(f"{100 * found[k]['mean']:.2f}" for k in head)]
    low, high = found["average"]["interval95"]
    assert intervals[-1] == f"{100 * low:.1f}-{100 * high:.1f}" and len(intervals) == 7


# ---- Two runs -------------------------------------------------------------------------------------------------------


def tables(*folders):
    found = compare_runs(read_runs([str(f) for f in folders]), methods=())
    return {t.metric: t for t in found if any(line.group == YOURS for line in t.lines)}


def scores_of(folder, metric, language):
    return [s["scores"][metric] for s in read_lines(folder / "rationale_scores.jsonl") if s["language"] == language]


def test_runs_are_compared_over_common_items_with_paired_bootstrap(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    blocks, _ = run(a, 0.4)
    run(b, 0.7)
    table = tables(a, b)["chrf"]
    first = table.lines[0]
    assert first.values["ja"].interval == tuple(blocks["mmedbench"]["rationale"]["chrf"]["ja"]["interval95"])
    assert first.average.interval == tuple(blocks["mmedbench"]["rationale"]["chrf"]["average"]["interval95"])
    assert [d.column for d in table.differences] == [*SIX, "average"]
    groups = [[scores_of(f, "chrf", k) for k in SIX] for f in (a, b)]
    for d, x, y in zip(table.differences, [[g] for g in groups[0]] + groups[:1], [[g] for g in groups[1]] + groups[1:]):
        assert (d.difference, *d.interval) == pytest.approx(paired_difference(x, y))
        assert d.p is None and (d.first, d.other) == ("a", "b")
    last = table.differences[-1]
    assert last.count == 48 and last.difference > 0.1 and last.interval[0] > 0
    widths = [bootstrap(g)[1] - bootstrap(g)[0] for g in groups]
    assert last.interval[1] - last.interval[0] < sum(widths)


def test_only_items_and_metrics_of_both_count(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, 0.5)
    run(b, 0.5, items=quiz()[:4] + quiz()[8:12], metrics=("chrf", "rouge-1"))
    found = tables(a, b)
    assert [d.count for d in found["chrf"].differences] == [4, 4]
    assert found["chrf"].notes == ["a, b: differences are over 8 common rationales of 48 and 8"]
    assert found["bleu-1"].differences == found["rouge-1"].differences == []


def test_runs_without_the_scores_of_items_are_shown_and_not_compared(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, 0.5)
    run(b, 0.6)
    (a / "rationale_scores.jsonl").unlink()
    results = json.loads((a / "results.json").read_text())
    for by in results["benchmarks"]["mmedbench"]["rationale"].values():
        for cell in by.values():
            del cell["interval95"]  # as earlier versions wrote it
    (a / "results.json").write_text(json.dumps(results))
    table = tables(a, b)["chrf"]
    assert [line.name for line in table.lines] == ["a", "b"] and table.lines[0].values["en"].interval is None
    assert not table.differences and "a: no rationale_scores.jsonl" in table.notes[0]


def test_another_benchmark_than_mmedbench(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, 0.4, items=quiz("mine", ["en", "ko"]))
    run(b, 0.6, items=quiz("mine", ["en", "ko"]))
    table = tables(a, b)["bleu-1"]
    assert table.columns == ["en", "ko"] and table.lines[0].average is not None and not table.lines[0].notes
    assert [d.column for d in table.differences] == ["en", "ko", "average"]
    run(a, 0.4, items=quiz("kormedmcqa", ["ko"]))
    table = tables(a)["bleu-1"]
    assert (table.columns, table.total, table.lines[0].notes) == (["ko"], "", [])


def test_files(tmp_path, capsys):
    run(tmp_path / "a", 0.3)
    run(tmp_path / "b", 0.8)
    command.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--output={tmp_path / 'out'}", "--published=none"])
    shown = capsys.readouterr().out
    part = shown[shown.index("mmedbench, chrf: ") :]
    assert "first a, second b" in part and "only first right" not in part and "second - first" in part
    rows = list(csv.DictReader((tmp_path / "out/differences.csv").open()))
    mine = [r for r in rows if r["metric"] == "chrf"]
    assert [r["column"] for r in mine] == [*SIX, "average"] and {r["mcnemar_p"] for r in mine} == {""}
    numbers = [r for r in csv.DictReader((tmp_path / "out/compare.csv").open()) if r["metric"] == "chrf"]
    assert all(float(r["low"]) <= float(r["percent"]) <= float(r["high"]) for r in numbers)
    assert "chrf: rationale" in (tmp_path / "out/compare.html").read_text()


def test_other_references_and_wrong_scores_are_one_line(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, 0.5)
    run(b, 0.6)
    lines = read_lines(b / "predictions.jsonl")
    write_lines(b / "predictions.jsonl", [{**lines[0], "rationale": "another"}, *lines[1:]])
    with pytest.raises(UserError, match="a and b: mmedbench item en0 has another reference in each"):
        tables(a, b)
    write_lines(b / "predictions.jsonl", lines)
    scores = read_lines(b / "rationale_scores.jsonl")
    for wrong, said in (
        (scores[1:], "has not the scores that results.json averages"),
        ([{**scores[0], "scores": {"chrf": 0.0, "bleu-1": 0.0}}, *scores[1:]], "has not the scores that results.json"),
        ([scores[0], scores[0]], "2: item mmedbench en0 stands twice"),
        ([{"id": "en0"}], "1: field 'benchmark' is missing"),
        ([{**scores[0], "scores": {"chrf": "x"}}], "1: field 'scores': must hold numbers"),
    ):
        write_lines(b / "rationale_scores.jsonl", wrong)
        with pytest.raises(UserError, match=rf"rationale_scores\.jsonl.*{said}") as e:
            tables(a, b)
        assert "\n" not in str(e.value)


def test_a_metric_is_one_function(tmp_path, monkeypatch):
    """A decorated function is offered by the flags and stands in results.json, the page, the lines and the tables."""
    monkeypatch.setattr(text_similarity, "METRICS", dict(text_similarity.METRICS))

    @text_similarity.text_metric("length")
    def length_ratio(hypothesis: str, reference: str, language: str) -> dict[str, float]:
        return {"length": min(len(hypothesis) / len(reference), 1.0)}

    command = ["--model=M", "--data=F", "--mode=rationale", "--rationale_metrics", f"--output={tmp_path}"]
    assert "length" in parse_arguments(command, "").rationale_metrics.split(",")
    for name, share in (("a", 0.1), ("b", 0.9)):
        blocks, _ = run(tmp_path / name, share, metrics=("length",))
    assert blocks["mmedbench"]["rationale"]["length"]["average"]["interval95"]
    assert "length" in breakdown_table(json.loads((tmp_path / "b" / "results.json").read_text()))
    assert ">length<" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    tables = compare_runs(read_runs([str(tmp_path / name) for name in "ab"]), methods=())
    [table] = [t for t in tables if t.metric == "length"]
    assert [line.name for line in table.lines] == ["a", "b"] and table.differences
