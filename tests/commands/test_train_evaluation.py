"""What a run says of its model while it trains: accuracy, answers, the best evaluation; early stops, export --best."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from mmed_jax import evaluate, export, generate
from mmed_jax.checkpoints.metrics_file import read_metrics
from mmed_jax.checkpoints.run_directory import read_meta
from mmed_jax.common.errors import UNFINISHED
from mmed_jax.config.overrides import parse_args
from mmed_jax.data.multiple_choice import mcq_prompt_ids
from mmed_jax.data.prepare import prepare
from mmed_jax.hf.open_model import open_model
from mmed_jax.inference.engine import Engine
from mmed_jax.parallel.sharding import make_mesh
from mmed_jax.training import validation
from mmed_jax.training.answers import ANSWER_TOKENS
from mmed_jax.training.best_evaluation import BestEvaluation
from mmed_jax.training.questions import QuestionRows, choose_questions, picked
from mmed_jax.training.state import BatchPlacer
from mmed_jax.training.step import StepOptions, make_eval_step
from tests.support.training import (
    FINDINGS,
    assert_same_state,
    bench,  # noqa: F401
    call,
    cut_back,
    metrics,
    saved,
    state_of,
    write_jsonl,
)

STEPS = 12
KEYS = {
    "data__seq_len": 256,
    "data__modes": "direct",
    "batch_size": 4,
    "steps": STEPS,
    "checkpoint__every_steps": 4,
    "checkpoint__keep_last": 2,
}
EVALUATED = {
    "eval_at_start": True,
    "eval_epochs": True,
    "eval_every": 4,
    "eval_questions": 12,
    "eval_answers": 3,
    "checkpoint__best_metric": "validation/accuracy",
}


def quiz(language: str, count: int, extra: str = "") -> list[dict]:
    """Questions of one language; the sixth needs an image, those from the seventh on have two right answers."""
    letters = {"en": "ABCD", "zh": "CDAB", "fr": "BADC"}[language]
    return [
        {
            "id": f"{language}{extra}{i}",
            "language": language,
            "source": "test",
            "question": f"{FINDINGS[language][i]}{extra}?",
            "options": {x: "yes" if x == letters[i % 4] else f"no {x}" for x in "ABCD"},
            "answer_idx": letters[i % 4] if i < 6 else "A,B",
            "rationale": f"{i}.",
            **({"needs_image": True} if i == 5 else {}),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Files of training and of validation records."""
    folder = tmp_path_factory.mktemp("questions")
    train = [q for language in FINDINGS for q in quiz(language, 6)]
    held_out = [q for language in FINDINGS for q in quiz(language, 8, extra="!")]
    return {
        "data__train": write_jsonl(folder / "train.jsonl", train),
        "data__validation": write_jsonl(folder / "validation.jsonl", held_out),
    }


@pytest.fixture(scope="module")
def run_with(bench, questions):  # noqa: F811
    """Runs stage 2 on the questions, from the reference run of stage 1."""

    def go(run, **changes):
        outcome = bench.train(run, "stage2", init_from=bench.reference, **{**KEYS, **questions, **changes})
        assert outcome.code == 0, outcome.err
        return outcome

    return go


@pytest.fixture(scope="module")
def evaluated(run_with, tmp_path_factory):
    """A run with all that can be evaluated, and its outcome."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    return run, run_with(run, **EVALUATED, tensorboard=True)


def answered(run):
    return {e["step"]: e["answers"] for e in metrics(run).events if e["event"] == "answers"}


def test_evaluations_come_first_by_steps_by_epochs_and_last(evaluated):
    run, outcome = evaluated
    records = metrics(run).evals
    # 15 rows in steps of 4: epochs end in steps 4, 8 and 12 (at 3.75, 7.5, 11.25).
    assert [r["step"] for r in records] == [0, 4, 8, 12]
    assert "\nevaluation 21 rows, 12 questions, 3 prompts; before the first step, every 4 steps, ev" in outcome.out
    for r in records:
        assert r["validation/accuracy_questions"] == 12
        each = [(r[f"validation/accuracy/{x}"], r[f"validation/accuracy_questions/{x}"]) for x in ("en", "zh", "fr")]
        assert sum(n for _, n in each) == 12 and all(n >= 3 for _, n in each)
        assert r["validation/accuracy"] == pytest.approx(sum(share * n for share, n in each) / 12)
    assert f"  accuracy {records[-1]['validation/accuracy']:.1%} of 12 questions  en " in outcome.err
    assert list(answered(run)) == [0, 4, 8, 12]
    for lines in answered(run).values():
        assert [a["language"] for a in lines] == ["en", "zh", "fr"]
        assert all("\nA. " in a["question"] and "!?" in a["question"] for a in lines)
    (events,) = (run / "tensorboard").glob("events.out.tfevents.*")
    content = events.read_bytes()
    names = (b"validation/accuracy/zh", b"validation/accuracy_questions", b"validation/answers/2_zh")
    assert all(name in content for name in names)


def test_the_accuracy_is_that_of_evaluate(bench, evaluated, questions, tmp_path):  # noqa: F811
    run, _ = evaluated
    outcome = call(
        evaluate.main,
        f"--model={run}",
        f"--data={questions['data__validation']}",
        "--mode=loglikelihood",
        f"--output={tmp_path / 'out'}",
    )
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "out/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    theirs = {p["id"]: p for p in map(json.loads, lines)}

    config, _ = parse_args(bench.argv(tmp_path / "run", "stage2", **{**KEYS, **questions}))
    source = open_model(run)
    records = prepare(config, source.tokenizer, say=lambda _: None).held_out
    chosen = choose_questions(source.tokenizer, records, config.data, 12)
    # Every usable one, however many are asked for: five a language have one right answer and no image.
    assert len(choose_questions(source.tokenizer, records, config.data, 2000)) == 15
    mesh = make_mesh(devices=jax.devices()[:1])
    step, params = jax.jit(make_eval_step(source.cfg, StepOptions())), source.load_params()
    with jax.set_mesh(mesh):
        packed, alone = (
            QuestionRows(chosen, 256, packing=packing).score(step, params, BatchPlacer(mesh, 4, 256))
            for packing in (True, False)
        )
    np.testing.assert_allclose(packed, alone, atol=2e-5)
    for question, values in zip(chosen, packed, strict=True):
        np.testing.assert_allclose(values, theirs[question.id]["loglikelihoods"], atol=2e-5)
        assert picked(question, values) == theirs[question.id]["extracted"]
    right = [theirs[q.id]["correct"] for q in chosen]
    assert metrics(run).evals[-1]["validation/accuracy"] == np.mean(right)


def test_the_answers_are_those_of_generate(evaluated, questions):
    run, _ = evaluated
    records = map(json.loads, questions["data__validation"].read_text(encoding="utf-8").splitlines())
    by_question = {r["question"]: r for r in records}
    source, lines = open_model(run), answered(run)[STEPS]
    tok = source.tokenizer
    prompts = [mcq_prompt_ids(tok, by_question[line["question"].splitlines()[0]], "direct") for line in lines]
    engine = Engine(source.load_params(), source.cfg, stop_ids=source.stop_ids)
    room = [min(ANSWER_TOKENS, KEYS["data__seq_len"] - len(p)) for p in prompts]
    expected = [tok.decode(c.ids, skip_special_tokens=True) for c in engine.generate(prompts, max_new_tokens=room)]
    assert [line["answer"] for line in lines] == [text.strip() for text in expected] and all(expected)


def test_evaluating_changes_nothing_of_the_training(evaluated, run_with, tmp_path):
    run_with(tmp_path / "run")
    assert saved(tmp_path / "run") == [8, 12]
    for step in (8, 12):
        assert_same_state(state_of(evaluated[0], step), state_of(tmp_path / "run", step))


def test_resumed_it_is_not_evaluated_at_the_start_again(evaluated, run_with, tmp_path):
    run = cut_back(evaluated[0], tmp_path / "run", 8)
    outcome = run_with(run, **EVALUATED)
    assert "resumed    step 8 of 12" in outcome.out
    assert [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines() if '"eval"' in x] == [
        0,
        4,
        8,
        12,
    ]
    assert read_meta(run, 12)["data_state"]["evaluations"] == read_meta(evaluated[0], 12)["data_state"]["evaluations"]
    assert answered(run) == answered(evaluated[0])


def test_the_best_is_kept_named_and_exported(evaluated, tmp_path):
    run, outcome = evaluated
    values = {r["step"]: r["validation/accuracy"] for r in metrics(run).evals}
    best = max((4, 8, 12), key=lambda step: (values[step], -step))  # of what a run saves
    over_all = max(values, key=lambda step: (values[step], -step))
    assert best in saved(run) and read_meta(run, best)["best_metric"] == values[best]
    (end,) = [e for e in metrics(run).events if e["event"] == "end"]
    assert (end["best_metric"], end["best_step"]) == ("validation/accuracy", over_all)
    assert end["best_value"] == values[over_all] and end["best_epoch"] == pytest.approx(over_all * 4 / 15, abs=0.01)
    assert f"best       validation/accuracy {values[over_all]:.4f} at step {over_all} " in outcome.out
    done = call(export.main, f"--model={run}", "--best", f"--output={tmp_path / 'best'}")
    assert done.code == 0 and f"best     step {best}, validation/accuracy {values[best]:.5g}\n" in done.out, done.err
    assert f"step     {best}\n" in done.out

    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    text = (broken / "metrics.jsonl").read_text()
    better = {"kind": "eval", "step": 10, "time": 1e9, "validation/accuracy": 1.0}
    (broken / "metrics.jsonl").write_text(f"{text}{json.dumps(better)}\n")
    refused = call(export.main, f"--model={broken}", "--best", f"--output={tmp_path / 'no'}")
    assert "step 10 of" in refused.error and "is not kept" in refused.error and f"--step={best}" in refused.error
    refused = call(export.main, f"--model={run}", "--best", "--step=4", f"--output={tmp_path / 'no'}")
    assert refused.error.startswith("--best --step=4: two checkpoints")


def test_best_without_evaluations_is_refused(bench, tmp_path):  # noqa: F811
    refused = call(export.main, f"--model={bench.reference}", "--best", f"--output={tmp_path / 'no'}")
    assert "was saved with a validation/loss (there are 6, 12, 18, 24); name one with --step=N" in refused.error
    refused = call(export.main, f"--model={tmp_path}", "--best", f"--output={tmp_path / 'no'}")
    assert "has no checkpoint" in refused.error


def test_stopped_in_the_first_evaluation_the_next_call_makes_it(bench, questions, tmp_path, monkeypatch):  # noqa: F811
    run, batches, sizes = tmp_path / "run", validation.eval_batches, []
    keys = {**KEYS, **questions, "init_from": bench.reference, "eval_at_start": True, "steps": 1, "grad_accum": 2}

    def and_stop(table, rows, **more):
        sizes.append(rows)
        if len(sizes) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(table, rows, **more)

    monkeypatch.setattr(validation, "eval_batches", and_stop)
    stopped = bench.train(run, "stage2", **keys)
    assert stopped.code == UNFINISHED and "at step 0 of 1, nothing to save yet" in stopped.out, stopped.err
    there = read_metrics(run)
    assert not saved(run) and not there.train and not there.evals and there.events[-1]["step"] == 0
    assert bench.train(run, "stage2", **keys).code == 0
    assert [r["step"] for r in metrics(run).evals] == [0, 1]
    # No more rows at a time than a part of the step.
    assert sizes == [2, 2, 2]


def test_it_stops_early_is_complete_and_goes_on_when_told_so(run_with, tmp_path, monkeypatch):
    run, still = tmp_path / "run", {"optim__lr": 1e-9, "eval_every": 1, "eval_answers": 0, "eval_epochs": False}
    still = {**EVALUATED, **still, "checkpoint__every_steps": 0}
    # A signal at the very step does not make it unfinished.
    with monkeypatch.context() as patch:
        add = BestEvaluation.add
        stop = {2: lambda: os.kill(os.getpid(), signal.SIGTERM)}
        patch.setattr(BestEvaluation, "add", lambda b, step, x: (add(b, step, x), stop.get(step, int)()))
        outcome = run_with(run, **still, stop_after=2)
    # No accuracy changes at this learning rate, and that of the untrained model counts.
    assert [r["step"] for r in metrics(run).evals] == [0, 1, 2] and saved(run) == [1, 2]
    reason = "validation/accuracy has not become better in 2 evaluations since validation/accuracy"
    assert f"done       2 of {STEPS} steps, stopped early: {reason}" in outcome.out and "next " in outcome.out
    assert "no evaluation was better than that of the untrained model" in outcome.out
    (event,) = [e for e in metrics(run).events if e["event"].startswith("stopped")]
    assert event["event"] == "stopped_early"
    assert event["step"] == 2 and event["reason"].startswith(reason)
    before = (run / "metrics.jsonl").read_bytes()
    again = run_with(run, **still, stop_after=2)
    assert f"complete   step 2 of {STEPS} was reached before" in again.out and "--config.stop_after=0" in again.out
    assert (run / "metrics.jsonl").read_bytes() == before
    assert "not finished" not in call(generate.main, f"--model={run}", "--prompt=a", "--max_new_tokens=1").err
    further = run_with(run, **still, stop_after=4)
    assert "resumed    step 2 of" in further.out and metrics(run).evals[-1]["step"] == 4


def test_a_mesh_gives_the_numbers_and_answers_of_one_device(evaluated, run_with, tmp_path):
    mesh = {"mesh__devices": 8, "mesh__fsdp": 2, "mesh__tensor": 2, "mesh__context": 2}
    run_with(tmp_path / "run", **EVALUATED, **mesh, steps=1)
    (ours, *_), (theirs, *_) = metrics(tmp_path / "run").evals, metrics(evaluated[0]).evals
    assert ours["step"] == theirs["step"] == 0 and ours.keys() == theirs.keys()
    names = [k for k in ours if k.startswith("validation/loss")]
    np.testing.assert_allclose([ours[k] for k in names], [theirs[k] for k in names], rtol=1e-5)
    assert ours["validation/accuracy"] == theirs["validation/accuracy"]
    assert answered(tmp_path / "run")[0] == answered(evaluated[0])[0]


def test_what_evaluations_cannot_give_is_refused_or_said(bench, questions, tmp_path):  # noqa: F811
    def refusal(**changes):
        return bench.train(tmp_path / "run", "stage2", init_from=bench.reference, **KEYS, **changes).error

    accuracy = {"checkpoint__best_metric": "validation/accuracy"}
    assert "set --config.eval_questions=500" in refusal(**accuracy)
    assert "nothing is evaluated before the end" in refusal(stop_after=2)
    assert "nothing is held out" in refusal(stop_after=2, eval_every=1)
    several = write_jsonl(tmp_path / "several.jsonl", quiz("en", 8, extra="!")[6:])
    files = {**questions, "data__validation": several}
    assert "is no multiple-choice question with one right answer" in refusal(**files, **accuracy, eval_questions=5)
    outcome = bench.train(tmp_path / "run", eval_at_start=True)
    assert "evaluation none, for nothing is held out" in outcome.out and not metrics(tmp_path / "run").evals
