"""The best evaluation of a run: what is better, when a run is over, what is said; the order of held-out records."""

import json
import math

import numpy as np
import pytest

from mmed_jax.checkpoints.best import Ranked, best_of, cost
from mmed_jax.data.held_out_records import read_held_out, write_held_out
from mmed_jax.data.records.schema import validate_record
from mmed_jax.data.records.store import RecordStore
from mmed_jax.training.answers import row_length
from mmed_jax.training.best_evaluation import BestEvaluation, changed_sample

LOSS, ACCURACY = "validation/loss", "validation/accuracy"


def of(metric, values, record=None):
    best = BestEvaluation(metric, record, rows_per_epoch=40, rows=4)
    for step, value in values.items():
        best.add(step, {} if value is None else {metric: value})
    return best


def test_a_loss_is_better_lower_an_accuracy_higher_the_first_of_equals():
    evaluations = [(0, {LOSS: 2.0, ACCURACY: 0.5}), (10, {LOSS: 1.0, ACCURACY: 0.5}), (20, {LOSS: 1.0})]
    assert best_of(LOSS, evaluations) == Ranked(1.0, 10, 1.0)
    assert best_of(ACCURACY, evaluations) == Ranked(-0.5, 0, 0.5)
    assert best_of(LOSS, [(1, {LOSS: math.nan}), (2, {}), (3, {LOSS: "NaN"}), (4, {LOSS: True})]) is None
    assert cost(LOSS, None) is None and cost(ACCURACY, {ACCURACY: 0.25}) == -0.25


def test_over_after_so_many_evaluations_that_are_no_better():
    best = of(ACCURACY, {0: 0.5, 10: 0.4, 20: 0.6, 30: 0.6, 40: None, 50: math.nan})
    assert not best.is_over(0) and best.is_over(3) and not best.is_over(4)
    assert "in 3 evaluations since validation/accuracy 0.6000 at step 20 (epoch 2)" in best.reason()
    # A checkpoint brings the count back, but not under another metric.
    again = json.loads(json.dumps(best.record))
    assert of(ACCURACY, {60: 0.5}, again).is_over(4) and of(ACCURACY, {60: 0.7}, again).record["since"] == 0
    assert not of(LOSS, {60: 1.0}, again).is_over(1)
    # Stopped between evaluations, a run has not ended there.
    assert of(ACCURACY, {}, again).has_ended(50, 3) and not of(ACCURACY, {}, again).has_ended(55, 3)
    assert best.describe() == {"best_metric": ACCURACY, "best_step": 20, "best_value": 0.6, "best_epoch": 2.0}


@pytest.mark.parametrize(
    "values, kept, words",
    [
        (
            {0: 3.0, 5: 2.0, 10: 1.0},
            True,
            "validation/loss 1.0000 at step 10 (epoch 1), the last evaluation",
        ),
        (
            {0: 3.0, 5: 1.0, 10: 2.0},
            True,
            "at step 10 (epoch 1), has 2.0000; python -m mmed_jax.export --model=R ",
        ),
        ({0: 3.0, 5: 1.0, 10: 2.0}, False, "its checkpoint is not kept (config.checkpoint.keep_best=0)"),
        ({0: 1.0, 5: 2.0}, True, "warning    no evaluation was better than that of the untrained model: the last, at"),
        ({5: 1.0, 10: 1.0}, True, "best       validation/loss 1.0000 at step 5 (epoch 0.5), and no better since"),
        ({5: 1.0, 10: math.nan}, True, "has no number"),
    ],
)
def test_the_closing_lines_warn_where_the_best_is_not_the_last(values, kept, words):
    lines = of(LOSS, values).lines("R", kept=kept)
    assert words in lines and ("warning" in lines) == ("the last, at" in lines)


def test_a_run_that_goes_on_with_another_sample_is_warned():
    saved = {"eval_rows": 0, "eval_questions": 500, "checkpoint": {"best_metric": ACCURACY}}
    assert "eval_questions was 500 and is 100" in changed_sample(saved, saved | {"eval_questions": 100})
    by_loss = {"checkpoint": {"best_metric": LOSS}}
    assert "eval_rows was 0 and is 64" in changed_sample(saved, saved | by_loss | {"eval_rows": 64})
    # What does not decide, and keys that an earlier version had not.
    assert changed_sample(saved, saved | {"eval_rows": 64}) == changed_sample({}, saved) == ""


def test_nothing_is_said_without_an_evaluation():
    best = of(LOSS, {})
    assert best.lines("R", kept=True) == "" and best.describe() == {} and not best.is_over(1)


def test_held_out_records_take_turns_by_language_in_an_order_of_the_seed(tmp_path):
    def record(language, i, **more):
        question = {"question": f"{language} {i}?", "options": {"A": "a", "B": "b"}, "answer_idx": "A", "rationale": ""}
        made = {"id": f"{language}{i}", "language": language, "source": "test", **question, **more}
        return validate_record(made, "here")

    talk = {"id": "t", "language": "en", "source": "test", "messages": [{"role": "user", "content": "a"}]}
    talk["messages"].append({"role": "assistant", "content": "b"})
    records = [record("en", i) for i in range(9)] + [record("zh", i) for i in range(3)]
    records += [record("fr", 0, needs_image=True), validate_record(talk, "here")]

    def order(records, seed):
        store = RecordStore(records, tmp_path, seed)
        write_held_out(tmp_path, store, np.arange(len(records)))
        return [r["id"] for r in read_held_out(tmp_path)]

    first = order(records, 1)
    assert sorted(first) == sorted({r["id"] for r in records} - {"fr0"}) and first[-1] == "t"
    assert [x[:2] for x in first[2:6]].count("zh") == 2 and first != order(records, 2)
    assert order(records[::-1], 1) == first


def test_rows_of_prompts_are_no_longer_than_those_of_training():
    assert [row_length(n, 2048, 1) for n in (100, 129, 600, 1100, 4000)] == [128, 256, 1024, 2048, 2048]
    assert row_length(100, 128, 1) == 128 and row_length(100, 96, 1) == 96 and row_length(200, 2000, 3) == 2000
