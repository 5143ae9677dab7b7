"""Kendall's tau, the judge and the rate command."""

import json

import numpy as np
import pytest
from scipy import stats

from mmed_jax import rate
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.evaluation.ratings.correlation import _slopes, _weighted, correlate, interval, kendall, rank_runs, slope
from mmed_jax.evaluation.ratings.sheets import CRITERIA
from tests.support.openai_server import Faults, OpenAIServer
from tests.support.ratings import QUALITY, fill, make_runs, names


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


# ---- Kendall's tau --------------------------------------------------------------------------------------------------


def by_counting(a, b):
    """tau-b by its definition, pair by pair."""
    score = x = y = 0
    for i in range(len(a)):
        for j in range(i):
            p, q = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
            score, x, y = score + p * q, x + p * p, y + q * q
    return score / np.sqrt(x * y)


def test_tau_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    for n in (2, 5, 40):
        a, b = rng.permutation(n), rng.integers(1, 6, n)
        if len(set(b)) > 1:
            assert kendall(a, b) == pytest.approx(by_counting(a, b))
            assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall([1, 2, 3], [1, 2, 3]) == pytest.approx(1) and kendall([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert kendall([1, 1], [1, 2]) is None is kendall([1], [1]) and kendall([], []) is None


def test_intervals_hold_the_truth_and_respect_groups():
    """Of 40 samples of a correlated pair the 95 % interval holds the population's tau nearly always; doubling every
    explanation inside its question does not narrow it."""
    rng = np.random.default_rng(1)
    rho, held = 0.6, 0
    for trial in range(40):
        x, y = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 60).T
        low, high = interval(x, y, range(60), resamples=200, seed=trial)
        held += low <= 2 / np.pi * np.arcsin(rho) <= high
    assert held >= 35
    once = interval(x, y, range(60), resamples=400)
    twice = interval(np.tile(x, 2), np.tile(y, 2), [*range(60)] * 2, resamples=400)
    assert twice[1] - twice[0] == pytest.approx(once[1] - once[0], rel=0.15)
    assert interval(x, y, range(60), resamples=200) == interval(x, y, range(60), resamples=200)
    assert interval([1, 2], [1, 2], [0, 0]) is None and interval([1, 1, 1], [1, 2, 3], [0, 1, 2], resamples=100) is None


def test_a_draw_is_the_tau_of_the_drawn_explanations():
    rng = np.random.default_rng(2)
    for n in (3, 20, 300):
        a, b = rng.integers(0, 4, n), rng.normal(size=n)
        weights = rng.integers(0, 3, (4, n))
        for w, tau in zip(weights, _weighted(a, b, weights.astype(float))):
            expected = kendall(np.repeat(a, w), np.repeat(b, w))
            assert np.isnan(tau) if expected is None else tau == pytest.approx(expected)


def test_only_what_both_rated_counts():
    a = {("r", "b", str(i)): float(i) for i in range(6)}
    b = {("r", "b", str(i)): float(-i) for i in range(3, 9)}
    (row,) = correlate({"a": a, "b": b}, resamples=100)
    assert (row["count"], row["items"], row["tau"]) == (3, 3, pytest.approx(-1))
    (row,) = correlate({"a": a, "c": {("x", "b", "1"): 1.0}}, resamples=100)
    assert (row["count"], row["tau"], row["interval95"]) == (0, None, None)


# ---- The slope ------------------------------------------------------------------------------------------------------


def test_places_are_ranks():
    rng = np.random.default_rng(0)
    values = rng.integers(1, 5, (50, 6)).astype(float)
    assert np.array_equal(rank_runs(values), stats.rankdata(values, axis=1))


def test_slope_is_the_line_through_the_runs_mean_places():
    rng = np.random.default_rng(1)
    quality = np.arange(6)
    a = quality + rng.normal(0, 4, (80, 6))
    b = quality + rng.normal(0, 1.5, (80, 6))
    k, (low, high) = slope(a, b, resamples=400)
    expected = stats.linregress(stats.rankdata(a, axis=1).mean(0), stats.rankdata(b, axis=1).mean(0)).slope
    assert k == pytest.approx(expected) and low < k < high
    assert k > 1.2  # b tells the runs apart better
    assert slope(a, np.exp(b), resamples=400) == (k, (low, high))  # the places alone count
    assert slope(b, b, resamples=100) == (pytest.approx(1), pytest.approx((1, 1)))
    back, _ = slope(b, a, resamples=100)
    assert back < 1


def test_bars_of_the_papers_figure_have_about_the_printed_slopes():
    """What the docstring says: human, GPT-4 and BERTScore means of the six systems, as read off the chart."""
    human = np.array([[4.1, 3.9, 3.8, 3.6, 3.3, 2.35]] * 2)
    others = np.array([[4.7, 3.85, 3.4, 3.6, 2.9, 2.55], [4.0, 3.9, 3.6, 3.75, 3.4, 2.4]])
    assert _slopes(human, others) == pytest.approx([1.04, 0.91], abs=0.005)


def test_slope_where_there_is_none():
    one = np.array([[1.0], [2.0]])
    assert slope(one, one) == (None, None) == slope(np.zeros((0, 3)), np.zeros((0, 3)))
    assert slope(np.ones((5, 3)), np.arange(15.0).reshape(5, 3), resamples=100) == (None, None)
    k, around = slope(np.array([[1.0, 2, 3]]), np.array([[1.0, 3, 2]]))
    assert (k, around) == (pytest.approx(0.5), None)


def test_only_questions_with_all_runs_are_in_the_slope():
    a = {(run, "b", str(i)): float(n + i) for n, run in enumerate("xyz") for i in range(5)}
    b = {k: -v for k, v in a.items() if k != ("x", "b", "0")}
    (row,) = correlate({"a": a, "b": b}, resamples=100)
    assert (row["count"], row["items"], row["slope_items"], row["slope"]) == (14, 5, 4, pytest.approx(-1))


# ---- The judge and the command --------------------------------------------------------------------------------------


def grades(body):
    """The server's model: the share of the reference's words that the explanation has."""
    text = body["messages"][1]["content"]
    data = json.loads(text[text.index("{") : text.rindex("}") + 1])
    words, said = data["reference"].split(), data["explanation"].split()
    grade = str(1 + round(4 * sum(w in said for w in words) / len(words)))
    return json.dumps(dict.fromkeys(CRITERIA, grade))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with OpenAIServer(grades) as s:
        yield s


def test_sheet_judge_and_correlate(runs, tmp_path, server, capsys):
    """The whole way: two raters, a judge, metrics; all agree that good is better than fair and poor."""
    sheets = []
    for n in range(2):
        path = tmp_path / f"rater{n}.{('csv', 'xlsx')[n]}"
        sheets.append(path)
        rate.main(["sheet", f"--runs={names(runs)}", f"--output={path}", f"--seed={n}"])
        key = json.loads((tmp_path / f"{path.name}.key.json").read_text())["rows"]
        fill(path, lambda row, criterion: QUALITY[key[row["code"]]["run"]] + (row["code"] > "r7"))  # noqa: B023
    common = [f"--runs={names(runs)}", "--model=gpt-4o-mini", f"--base_url={server.base_url}"]
    common += [f"--ledger={tmp_path / 'ledger.sqlite'}", f"--output={tmp_path / 'gpt.jsonl'}"]
    rate.main(["judge", *common])
    paid = sum(server.billed.values())
    assert paid == 36
    judged = [json.loads(line) for line in (tmp_path / "gpt.jsonl").open()]
    assert len(judged) == 36 and {r["prompt"] for r in judged} == {"rationale_judge/1"}
    first = (tmp_path / "gpt.jsonl").read_bytes()
    rate.main(["judge", *common])  # from the ledger
    assert sum(server.billed.values()) == paid and (tmp_path / "gpt.jsonl").read_bytes() == first
    capsys.readouterr()
    rate.main(
        [
            "correlate",
            f"--ratings=human={sheets[0]}+{sheets[1]},gpt={tmp_path / 'gpt.jsonl'}",
            f"--runs={names(runs)}",
            f"--output={tmp_path / 'out'}",
            "--resamples=100",
            "--metrics=bleu-1,rouge-1,chrf",
        ]
    )
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "correlation.json").read_text())
    assert len(result["pairs"]) == 10 and "tau-b" in shown and "mean of" in shown
    for row in result["pairs"]:
        assert row["count"] == 36 and row["items"] == 12
        assert 0.2 < row["interval95"][0] <= row["tau"] <= row["interval95"][1] <= 1
    for name in ("human", "gpt", "bleu-1", "rouge-1", "chrf"):
        means = [result["means"][run][name] for run in QUALITY]
        assert means == sorted(means, reverse=True)
    lines = (tmp_path / "out" / "correlation.csv").read_text().splitlines()
    head = "rating,with,explanations,questions,tau_b,low95,high95,slope,slope_low95,slope_high95,slope_questions"
    assert lines[0] == head and len(lines) == 11 and "slope k" in shown
    for row in result["pairs"]:
        assert row["slope_items"] == 12 and 0.5 < row["slope"] < 2
        assert row["slope_interval95"][0] <= row["slope"] <= row["slope_interval95"][1]


def test_the_judge_sees_no_names_and_fences_what_it_reads(runs, tmp_path, server):
    seen = []
    server.model = lambda body: seen.append(json.dumps(body, ensure_ascii=False)) or grades(body)
    rate.main(
        [
            "judge",
            f"--runs={names(runs)}",
            "--items=1",
            "--model=gpt-4o-mini",
            f"--base_url={server.base_url}",
            f"--ledger={tmp_path / 'l.sqlite'}",
            f"--output={tmp_path / 'g.jsonl'}",
        ]
    )
    assert len(seen) == 9
    for body in seen:
        assert not any(f'"{name}"' in body or f"/{name}" in body for name in QUALITY) and "<<<DATA" in body


def test_empty_explanations_and_answers_that_cannot_be_used(runs, tmp_path, server, capsys):
    file = runs["good"] / "predictions.jsonl"
    rows = [json.loads(line) for line in file.open()]
    rows[0]["generated_rationale"] = "  "
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    server.faults = Faults({"refusal": 0.3})
    args = [
        "judge",
        f"--runs=good={runs['good']}",
        "--model=gpt-4o-mini",
        f"--base_url={server.base_url}",
        f"--ledger={tmp_path / 'l.sqlite'}",
        f"--output={tmp_path / 'g.jsonl'}",
        "--redraws=0",
    ]
    with pytest.raises(WorkError, match=r"explanations got no grade, the first good b q\d+: rejected refusal"):
        rate.main(args)
    graded = {r["id"]: r["scores"] for r in map(json.loads, (tmp_path / "g.jsonl").open())}
    assert graded["q0"] == dict.fromkeys(CRITERIA, 1.0) and 1 < len(graded) < 12


def test_a_dry_run_asks_nothing(runs, tmp_path, server, capsys):
    with pytest.raises(SystemExit) as e:
        rate.main(
            [
                "judge",
                f"--runs={names(runs)}",
                "--model=gpt-4o-mini",
                f"--base_url={server.base_url}",
                f"--ledger={tmp_path / 'l.sqlite'}",
                f"--output={tmp_path / 'g.jsonl'}",
                "--dry_run",
            ]
        )
    assert e.value.code == 0 and "36" in capsys.readouterr().out and not server.billed


def test_mistakes_on_the_command_line(runs, tmp_path):
    sheet = tmp_path / "s.csv"
    rate.main(["sheet", f"--runs={names(runs)}", f"--output={sheet}", "--criteria=overall", "--scale=3"])
    fill(sheet, lambda row, criterion: 2)
    out, ours = f"--output={tmp_path / 'o'}", f"--runs={names(runs)}"
    for argv, said in (
        ([], "no command ''; valid: sheet, judge, correlate"),
        (["sheets"], "no command 'sheets', did you mean 'sheet'"),
        (["sheet", ours, f"--output={sheet}"], "is there already, perhaps filled in"),
        (["sheet", ours, "--output=x.txt"], "must end in .csv or .xlsx"),
        (["sheet", ours, "--output=x.csv", "--scale=1"], "must be 2 or more"),
        (["sheet", ours, "--output=x.csv", "--items=-1"], "must be 0 .all. or more"),
        (["sheet", ours, "--output=x.csv", "--languages=de"], "--languages=de: not a language"),
        (["sheet", ours, "--output=x.csv", "--itmes=1"], "did you mean '--items'"),
        (["judge", ours, "--output=x.csv"], "must end in .jsonl"),
        (["correlate", f"--ratings=h={sheet}", out], "names one rating"),
        (["correlate", f"--ratings=h={sheet},chrf={sheet}", ours, out], "'chrf' is the name of a metric"),
        (["correlate", f"--ratings=h={sheet}", ours, out, "--metrics=blue-1"], "not a metric, did you mean 'bleu-1'"),
        (["correlate", f"--ratings=h={sheet}", ours, out, "--criterion=style"], "does not have it; valid: overall"),
        (["correlate", f"--ratings=h={sheet}", f"--runs=godo={runs['good']}", out], "has no run 'fair'"),
        (["correlate", f"--ratings=h={sheet}", ours, out, "--resamples=3"], "must be 100 or more"),
    ):
        with pytest.raises(UserError, match=said) as e:
            rate.main(argv)
        assert "\n" not in str(e.value)
