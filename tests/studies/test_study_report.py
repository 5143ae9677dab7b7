"""The report of a study: tables, tests, spread over seeds, bits per byte and costs, of evaluations made by hand."""

import dataclasses
import json

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.common.output_files import write_json
from mmed_jax.config.resume import plain_config
from mmed_jax.evaluation.comparison.tables import YOURS, Line, Table, Value
from mmed_jax.evaluation.perplexity.summary import KIND, summarise
from mmed_jax.studies.design import Arm, Benchmark, Claim, Design, Study, settings, train
from mmed_jax.studies.open_study import seeds_of
from mmed_jax.studies.run_facts import differing_settings
from mmed_jax.studies.step_key import resolved_config
from mmed_jax.studies.study_report import write_report
from mmed_jax.studies.tasks import DONE, lay_out, write_state
from mmed_jax.studies.verdicts import Spread, spread_over_seeds
from tests.support.results import evaluated, items_of, record

# Of 20 questions in each of two languages, how many a model gets right: {arm: {seed: (en, zh)}}.
RIGHT = {
    "base": {None: (5, 5)},
    "one": {1: (10, 10), 2: (10, 10), 3: (10, 10)},
    "two": {1: (18, 20), 2: (17, 20), 3: (10, 12)},
}


def design(c):
    one = train("one", "stage1", "", {"steps": 2, "epochs": 0.0})
    two = train("two", "stage2", one, {"steps": 3, "epochs": 0.0})
    return Design(
        (Arm("base", "models/base"), Arm("one", one), Arm("two", two, "both stages")),
        (Benchmark("questions", {"data": "x.jsonl"}), Benchmark("texts", {"perplexity": "y.jsonl"})),
        (Claim("Two are better", "two", "one"), Claim("Two are better in Chinese", "two", "base", "zh")),
        compared_with="base",
    )


def plan_of(folder, *seeds):
    c = settings("small", "")
    c.seeds = seeds
    return lay_out(Study("Are two better?", c, design), folder)


def answer(plan, *, left_out=()):
    """Evaluations of every arm as RIGHT says, and runs of a few steps."""
    for trial in plan.trials:
        for task in trial.chain:
            task.result.mkdir(parents=True, exist_ok=True)
            events = [("event", 0, {"event": "start", "steps": 2, "devices": 4, "platform": "tpu"})]
            events += [("train", s, {"loss": 2.0 / s, "tokens_seen": 100 * s}) for s in (1, 2)]
            events += [("eval", 2, {"validation/loss": 1.5}), ("event", 2, {"event": "end"})]
            lines = (json.dumps({"kind": k, "step": s, "time": 1.0 + s, **v}) + "\n" for k, s, v in events)
            (task.result / "metrics.jsonl").write_text("".join(lines))
            write_state(task, DONE, seconds=1800.0)
        if trial.name in left_out:
            continue
        right = dict(zip(("en", "zh"), RIGHT[trial.arm.name][trial.seed]))
        items = items_of([record(n, lang) for lang in right for n in range(20)], "x")
        wrong = {"A": "B", "B": "C", "C": "D", "D": "A"}
        letters = {i.key: i.answer if k % 20 < right[i.language] else wrong[i.answer] for k, i in enumerate(items)}
        said = {key: f"###Answer: OPTION {letter} IS CORRECT." for key, letter in letters.items()}
        evaluated(trial.evaluations["questions"].result, items, lambda item, said=said: said[item.key])
        write_texts(trial.evaluations["texts"].result, nats=10.0 * len(trial.chain))
        for task in trial.evaluations.values():
            write_state(task, DONE, seconds=60.0)


def write_texts(folder, nats):
    """Three documents of 100 bytes and 30 tokens, of 200 nats less `nats` for each."""
    lines = [
        {"id": f"d{k}", "language": "en", "source": "s", "bytes": 100, "tokens": 30, "nll": 200.0 - nats - k}
        for k in range(3)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    known = {"path": "x", "kind": "run", "step": 1, "fingerprint": "0" * 16, "tuning": None}
    results = summarise(lines, settings={"kind": KIND}, model=known, data={"names": ["y"], "rule": "whole texts"})
    write_json(folder / "results.json", results)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """(folder, report.json, lines of the terminal) of a study with three seeds."""
    plan = plan_of(tmp_path_factory.mktemp("study"), "1", "2", "3")
    answer(plan)
    lines = write_report(plan, price=2.0)
    return plan.folder, json.loads((plan.folder / "report.json").read_text()), lines


def test_shared_steps_are_one_and_seeds_are_apart(three):
    _, report, _ = three
    names = [s["label"] for s in report["steps"]]
    assert names.count("base-questions") == 1 and {"one-seed1", "two-seed3", "two-questions-seed2"} < set(names)
    assert len(names) == len(set(names)) == 3 * 6 + 2
    assert [a["name"] for a in report["arms"]] == ["base", *["one"] * 3, *["two"] * 3]


def test_claims_have_a_ruling_with_every_seed(three):
    _, report, lines = three
    rulings = {(c["claim"]["text"], c["board"][:4], c["seed"]): c for c in report["claims"]}
    first = rulings["Two are better", "x (a", 1]
    assert (first["better"], first["worse"], first["count"]) == (0.95, 0.5, 40) and first["p"] < 0.001
    assert first["ruling"] == "supported" and rulings["Two are better", "x (a", 3]["ruling"] == "not decided"
    assert rulings["Two are better in Chinese", "x (a", 3]["ruling"] == "supported"
    # 10 nats less a document of 100 bytes are 0.144 bits a byte less: better.
    bits = rulings["Two are better", "bits", 1]
    assert bits["difference"] == pytest.approx(-10 / 100 / 0.693147, rel=1e-4) and bits["ruling"] == "supported"
    assert lines[0].startswith(
        "Two are better: supported with 2, not decided with 1 of 3 seeds; x (a file of one's own)"
    )


def test_the_spread_over_seeds_is_shown(three):
    folder, report, _ = three
    (spread,) = report["spreads"]
    two = spread["lines"]["two"]["en"]
    assert two["mean"] == pytest.approx(0.75) and (two["least"], two["most"], two["seeds"]) == (0.5, 0.9, 3)
    assert two["deviation"] == pytest.approx(0.21794, rel=1e-3)
    assert spread["lines"]["base"]["all"] == {"mean": 0.25, "least": 0.25, "most": 0.25, "deviation": 0.0, "seeds": 1}
    assert "| two (3 seed(s)) | 75.00 (50.00 to 90.00, s 21.79) |" in (folder / "report.md").read_text()


def test_costs_are_by_arm_and_shared_steps_once_in_all(three):
    folder, report, _ = three
    steps = {s["label"]: s for s in report["steps"]}
    assert steps["one-seed1"]["device_hours"] == 2.0 and steps["one-seed1"]["cost"] == 4.0
    assert steps["one-seed1"]["tokens"] == 200
    rows = [line.split(" | ") for line in (folder / "report.md").read_text().splitlines()]
    table = {r[0]: r[1:] for r in rows}
    assert table["| arm: two, seed 2"][3:5] == ["1:02:00", "4.033"]
    assert table["| all steps, each once"][3:5] == ["3:14:00", "12.233"]


def test_the_page_has_everything_and_asks_for_nothing(three):
    folder, _, _ = three
    page = (folder / "report.html").read_text()
    for text in (
        "Are two better?",
        "<svg",
        "Training loss: stage2",
        "Validation loss: stage1",
        "both stages",
        "seed 2",
    ):
        assert text in page, text
    assert "src=" not in page and "http://" not in page.replace("http://www.w3.org", "")
    settings_of = page.partition("What differs between the trainings")[2]
    assert "init_from" in settings_of and "random weights" in settings_of


def test_a_report_of_what_is_done_so_far(tmp_path):
    plan = plan_of(tmp_path, "0")
    with pytest.raises(UserError, match="no evaluation of this study is done yet"):
        write_report(plan)
    RIGHT["one"][None], RIGHT["two"][None] = RIGHT["one"][1], RIGHT["two"][1]
    answer(plan, left_out=("two",))
    assert write_report(plan) == []
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["missing"] == ["two-questions", "two-texts"] and report["spreads"] == []
    assert {r["arm"] for r in report["results"]} == {"base", "one"}
    answer(plan)
    assert len(write_report(plan)) == 3 and seeds_of(plan.study) == (0,)


def test_metrics_of_rationales_are_neither_claims_nor_spread(three):
    folder, report, _ = three
    plan = plan_of(folder, "1", "2", "3")
    tables = [[Table("x", m, "alike", ["en"], "", [Line(YOURS, "two", {"en": Value(v)}, None)]) for m, v in BOTH]] * 2
    (spread,) = spread_over_seeds(plan, tables)
    assert spread.lines["two"]["en"] == Spread(0.5, 0.5, 0.5, 0.0, 2)
    assert {r["metric"] for r in report["results"]} == {"accuracy"}


BOTH = (("accuracy", 0.5), ("bleu-1", 0.1))


def test_a_time_that_nobody_measured_is_no_zero(tmp_path):
    plan = plan_of(tmp_path, "1", "2")
    answer(plan)
    state = next((tmp_path / "steps").glob("base-questions-*/step.json"))
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "seconds"}))
    write_report(plan, price=2.0)
    text = (tmp_path / "report.md").read_text()
    assert "| base-questions | evaluate |  |  | not known | not known | not known |" in text
    assert "| arm: base (1 of unknown time not in it) |" in text and "every other step counts as one device" in text


def test_names_are_no_markup(tmp_path):
    def hostile(c):
        made = design(c)
        first, *rest = made.arms
        arms = (dataclasses.replace(first, text="<script>alert(1)</script>"), *rest)
        return dataclasses.replace(made, arms=arms)

    c = settings("small", "")
    plan = lay_out(Study("Is <img src=x> | better?", c, hostile), tmp_path)
    RIGHT["one"][None], RIGHT["two"][None] = RIGHT["one"][1], RIGHT["two"][1]
    answer(plan)
    write_report(plan)
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<script>alert" not in page and "<img" not in page and "<script" not in text


def test_values_that_a_model_of_one_s_own_got_are_compared(tmp_path):
    def own(c):
        steps = [train(f"rate{k}", "stage2:custom", "models/base", {"data.languages": (k,)}) for k in ("en", "zh")]
        arms = tuple(Arm(s.name, s) for s in steps)
        return Design(arms, (Benchmark("questions", {"data": "x.jsonl"}),))

    plan = lay_out(Study("Which?", settings("small", ""), own), tmp_path)
    for task, rate in zip((t for t in plan.tasks if t.step.command == "train"), (1e-5, 2e-5)):
        config = resolved_config(task.step, task.flags)
        config.optim.lr = rate
        task.result.mkdir(parents=True)
        write_json(task.result / "config.json", plain_config(config))
    _, rows = differing_settings(plan)
    assert ("optim.lr", "1e-05", "2e-05") in rows and ("data.languages", "en", "zh") in rows
