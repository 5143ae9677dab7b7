"""Training from the command line: what it computes, what it keeps, what it writes down."""

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest

from mmed_jax import export
from mmed_jax.data.loader import eval_batches
from mmed_jax.data.mixture import evenly
from mmed_jax.data.packed_table import Group
from mmed_jax.training.validation import describe_losses, validation_losses
from tests.support.training import (
    STEPS,
    bench,  # noqa: F401
    call,
    cut_back,
    damage,
    losses,
    metrics,
    reproduced,
    saved,
    state_of,
    unseen,
)

STAGE2 = {"data__seq_len": 256, "optim__warmup_ratio": 0, "optim__warmup_steps": 4, "optim__schedule": "linear"}


def test_losses_are_those_that_were_written_down(bench):  # noqa: F811
    """Any change of the data, the model, the loss, the optimizer or the order of the batches shows here."""
    np.testing.assert_allclose(losses(bench.reference)[:4], [6.037769, 5.497504, 5.157106, 4.754146], rtol=1e-4)


def test_the_learning_rate_is_warm_up_and_cosine(bench):  # noqa: F811
    """optim.warmup_ratio 0.05 of 24 steps is one step; end_lr_ratio is 0.05."""
    cosine = [0.05 + 0.95 * (1 + math.cos(math.pi * t / (STEPS - 1))) / 2 for t in range(STEPS - 1)]
    found = [r["lr"] for r in metrics(bench.reference).train]
    np.testing.assert_allclose(found, [1e-2, *(1e-2 * np.array(cosine))], rtol=1e-5)


def test_micro_batches_and_a_batch_in_tokens_change_nothing(bench, tmp_path):  # noqa: F811
    outcome = bench.train(tmp_path / "run", batch_size=0, batch_tokens=8 * 128, grad_accum=0, micro_rows=2)
    assert outcome.code == 0, outcome.err
    assert "8 rows a step in 4 part(s)" in outcome.out
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(bench.reference), rtol=1e-5)


def test_every_step_is_written_down_completely(bench):  # noqa: F811
    records, report = metrics(bench.reference), (bench.reference / "report.html").read_text()
    assert [r["step"] for r in records.train] == list(range(1, STEPS + 1))
    always = {
        "loss",
        "loss/en",
        "loss/fr",
        "loss/zh",
        "lr",
        "grad_norm",
        "param_norm",
        "update_norm",
        "real_tokens",
        "supervised_tokens",
        "tokens_seen",
        "host_memory_gib",
        "host_memory_peak_gib",
        "goodput",
        "batch",
    }
    timed = {
        "step_seconds",
        "step_seconds_median",
        "data_wait_seconds",
        "data_wait_share",
        "tokens_per_second",
        "supervised_tokens_per_second",
    }
    assert always <= records.train[0].keys()
    for r in records.train[1:]:
        assert always | timed <= r.keys()
        assert r["tokens_per_second"] == pytest.approx(r["real_tokens"] / r["step_seconds"])
        assert r["supervised_tokens_per_second"] == pytest.approx(r["supervised_tokens"] / r["step_seconds"])
        assert 0 <= r["data_wait_seconds"] <= r["step_seconds"]
    assert np.cumsum([r["real_tokens"] for r in records.train]).tolist() == [r["tokens_seen"] for r in records.train]
    start, compiled, *saves, end = records.events
    assert [(e["event"], e["step"]) for e in saves] == [("save", step) for step in saved(bench.reference)]
    assert all(e["blocked_seconds"] > 0 for e in saves) and "Where the time went" in report
    assert (start["event"], start["devices"], start["platform"]) == ("start", 1, "cpu")
    assert "real tokens/s" in start["mfu_formula"] and start["flops_per_token"] > 0
    assert (compiled["event"], compiled["compile_count"]) == ("compiled", 1) and compiled["compile_seconds"] > 0
    assert compiled["startup_seconds"] > compiled["compile_seconds"]
    waited, seconds = (sum(r[k] for r in records.train[1:]) for k in ("data_wait_seconds", "step_seconds"))
    assert (end["event"], end["step"]) == ("end", STEPS) and end["data_wait_share"] == pytest.approx(waited / seconds)
    assert f"{waited / seconds:.2%}" in report


def test_the_run_directory_holds_what_comes_after_training_needs(bench):  # noqa: F811
    run = bench.reference
    assert json.loads((run / "config.json").read_text())["steps"] == STEPS
    assert "<html" in (run / "report.html").read_text()
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (run / "hf_assets" / name).stat().st_size > 0


def test_saves_by_the_clock_and_keeps_the_newest(bench, tmp_path):  # noqa: F811
    run, changes = tmp_path / "run", {"checkpoint__every_steps": 0, "checkpoint__every_minutes": "auto"}
    changes["checkpoint__mean_hours_between_interruptions"] = 1e-9
    assert bench.train(run, **changes, checkpoint__keep_last=3).code == 0
    assert len(saved(run)) == 3 and saved(run)[-1] == STEPS
    assert reproduced(run) == reproduced(bench.reference)


@pytest.fixture(scope="module")
def validated(bench, tmp_path_factory):  # noqa: F811
    """A run whose validation loss rises at some time: it asks for answers that no training record gives."""
    folder = tmp_path_factory.mktemp("validated")
    run, odd = folder / "run", unseen(folder / "validation.jsonl")
    outcome = bench.train(
        run,
        data__validation=odd,
        eval_every=4,
        optim__lr=3e-2,
        optim__schedule="wsd",
        tensorboard=True,
        checkpoint__every_steps=0,
        checkpoint__keep_last=1,
    )
    assert outcome.code == 0, outcome.err
    (folder / "stderr").write_text(outcome.err, encoding="utf-8")
    return run


def test_lines_of_a_log_show_the_newest_validation_and_no_speed_of_nothing(validated):
    """log_every is 1: a line a step; what was validated after step 4 stands behind each from step 5 on."""
    lines = (validated.parent / "stderr").read_text(encoding="utf-8").splitlines()
    by_step = {int(s.split()[1].split("/")[0]): s for s in lines if s.startswith("stage1 ") and "%" in s}
    assert list(by_step) == list(range(1, STEPS + 1))
    assert "tok/s" not in by_step[1] and all("tok/s " in by_step[s] for s in range(2, STEPS + 1))
    assert not any("tok/s 0" in line for line in lines)
    assert " val " not in by_step[4] and all(" val " in by_step[s] for s in range(5, STEPS + 1))
    first = metrics(validated).evals[0]["validation/loss"]
    assert f" val {first:.4g}  lr " in by_step[5]


def test_validation_by_language_and_the_best_checkpoint_kept(validated):
    evals = metrics(validated).evals
    assert [e["step"] for e in evals] == list(range(4, STEPS + 1, 4))
    for e in evals:
        by_language = [e[f"validation/loss/{lang}"] for lang in ("en", "fr", "zh")]
        assert min(by_language) <= e["validation/loss"] <= max(by_language) and e["validation/tokens"] > 0
        assert e["validation/perplexity/zh"] == pytest.approx(math.exp(e["validation/loss/zh"]))
    size = Counter()
    for line in (validated.parent / "validation.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        size[record["language"]] += len(record["messages"][1]["content"].encode())
    for e in evals:
        bits = e["validation/loss"] * e["validation/tokens"] / math.log(2)
        assert e["validation/bits_per_byte"] == pytest.approx(bits / size.total(), rel=1e-6)
        assert sum(e[f"validation/bits_per_byte/{k}"] * n for k, n in size.items()) == pytest.approx(bits, rel=1e-5)
    best = min(evals, key=lambda e: e["validation/loss"])["step"]
    assert best < STEPS, "without a rise this test means nothing"
    assert saved(validated) == [best, STEPS]


def test_tensorboard_has_the_curves(validated):
    (events,) = (validated / "tensorboard").glob("events.out.tfevents.*")
    content = events.read_bytes()
    names = (b"train/loss", b"train/lr", b"validation/loss/zh", b"validation/bits_per_byte/zh")
    assert all(name in content for name in names)


def test_wsd_holds_the_learning_rate_and_then_decays(validated):
    lr = [r["lr"] for r in metrics(validated).train]
    np.testing.assert_allclose(lr[:-2], 3e-2, rtol=1e-6)
    assert 3e-2 > lr[-1] > 3e-2 * 0.05


class CountingPlacer:
    """Leaves the batches where they are."""

    batch_size = 5

    def __init__(self, rows=range(5)):
        self.rows = np.array(rows)

    def __call__(self, batch):
        return batch


class FakeTable:
    """Seven rows of two tokens in languages 1 and 2; the loss of a token is its row number, as are the bytes, plus 1.

    groups: how many rows each has; several are of documents.
    """

    def __init__(self, groups):
        starts = np.cumsum([0, *groups])
        self.groups = [
            Group(f"group {start}", "fr" if len(groups) > 1 else "", "", n, 0, 0, 0, 0, int(start))
            for n, start in zip(groups, starts)
        ]

    def __len__(self):
        return 7

    def text_bytes(self, rows):
        return np.bincount([1, 2], [sum(rows) + len(rows), 5 * len(rows)], minlength=8)

    def batch(self, rows):
        rows = np.array(rows)
        real = np.repeat((rows >= 0)[:, None], 2, axis=1).astype(np.float32)
        language = np.array([[1, 2]] * len(rows))
        return {"loss_mask": real, "nll": np.maximum(rows, 0)[:, None] * real, "language": language}


@pytest.mark.parametrize(("groups", "limit"), [([7], 0), ([7], 4), ([4, 3], 4), ([4, 3], 0)])
def test_validation_takes_every_row_once_and_no_padding(groups, limit):
    def eval_step(_, batch):
        slots = np.arange(8) == batch["language"][..., None]
        return {k: (batch[v][..., None] * slots).sum((0, 1)) for k, v in (("nll", "nll"), ("count", "loss_mask"))}

    table, placer = FakeTable(groups), CountingPlacer()
    read = range(limit or 7) if len(groups) == 1 else evenly(table.groups)[: limit or 7]
    assert len(groups) == 1 or not limit or sum(row < 4 for row in read) == 2
    found = validation_losses(eval_step, None, table, placer, limit)
    assert found["validation/loss"] == np.mean(read) and found["validation/tokens"] == 2 * len(read)
    # Bytes are those of the rows that were read, none behind the limit.
    assert found["validation/bits_per_byte"] == pytest.approx(2 * sum(read) / (sum(read) + 6 * len(read)) / math.log(2))
    assert found["validation/bits_per_byte/zh"] == pytest.approx(np.mean(read) / (5 * math.log(2)))
    # A process that reads two rows of each batch gets the sums of all from its devices, and counts all bytes itself.
    sums = iter([eval_step(None, batch) for batch in eval_batches(table, 5, limit=limit)])
    assert validation_losses(lambda *_: next(sums), None, table, CountingPlacer(np.arange(2)), limit) == found
    assert describe_losses(found).startswith(f"validation loss {np.mean(read):.4f}, perplexity ")
    assert " bits/byte  en " in describe_losses(found)
    assert len(list(eval_batches(table, 5, limit=limit))) == (1 if limit else 2)
    asked = iter([False, True])
    assert limit or validation_losses(eval_step, None, table, placer, 0, lambda: next(asked)) is None


@pytest.fixture(scope="module")
def stage2(bench, tmp_path_factory):  # noqa: F811
    """Stage 2 from a copy of the reference run of stage 1, `stage1` beside it."""
    run = tmp_path_factory.mktemp("stage2") / "run"
    folder = shutil.copytree(bench.reference, run.parent / "stage1")
    outcome = bench.train(run, "stage2", init_from=folder, **STAGE2)
    assert outcome.code == 0, outcome.err
    return run, outcome


def test_stage_2_has_its_own_schedule_from_step_0(stage2):
    run, outcome = stage2
    assert f"weights    {run.parent / 'stage1'}, step {STEPS}" in outcome.out
    up = [0.25e-2, 0.5e-2, 0.75e-2]
    down = np.linspace(1e-2, 0.05e-2, STEPS - 4 + 1)
    np.testing.assert_allclose([r["lr"] for r in metrics(run).train], [*up, 1e-2, *down[:-1]], rtol=1e-5)
    counts = [v for k, v in state_of(run, 6).items() if k.endswith(("count", "opt_state/step"))]
    assert counts and all(c == 6 for c in counts)


def test_stage_2_takes_weights_only(bench, stage2, tmp_path):  # noqa: F811
    """From an exported folder, which has no optimizer moments, it goes exactly as from the run."""
    folder = tmp_path / "exported"
    outcome = call(export.main, f"--model={bench.reference}", f"--output={folder}", "--dtype=float32")
    assert outcome.code == 0, outcome.err
    assert bench.train(tmp_path / "run", "stage2", init_from=folder, **STAGE2).code == 0
    assert reproduced(tmp_path / "run") == reproduced(stage2[0])


def test_stage_2_goes_on_without_the_folder_it_started_from(bench, stage2, tmp_path):  # noqa: F811
    folder, run = stage2[0].parent / "stage1", cut_back(stage2[0], tmp_path / "run", 6)
    shutil.rmtree(folder, ignore_errors=True)
    outcome = bench.train(run, "stage2", init_from=folder, **STAGE2)
    assert outcome.code == 0, outcome.err
    assert f"resumed    step 6 of {STEPS}" in outcome.out
    assert reproduced(run) == reproduced(stage2[0])


def test_stage_2_passes_over_a_damaged_newest_checkpoint(bench, tmp_path):  # noqa: F811
    stage1 = cut_back(bench.reference, tmp_path / "stage1", 12)
    damage(stage1, 12)
    outcome = bench.train(tmp_path / "run", "stage2", init_from=stage1, **STAGE2)
    assert outcome.code == 0, outcome.err
    assert "checkpoints/12 is damaged and is not used" in outcome.err
    assert f"weights    {stage1}, step 6" in outcome.out
    assert saved(stage1) == [6, 12], "reading changes nothing"


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(bench, tmp_path):  # noqa: F811
    run, changes = tmp_path / "run", {"optim__lr": 1e10, "checkpoint__every_steps": 1, "data__packing": False}
    for _ in range(2):  # called again, it ends the same way
        outcome = bench.train(run, **changes)
        assert outcome.code == 1
        last = outcome.err.splitlines()[-1]
        assert last.startswith("error: step 2: grad_norm, language_nll, loss")
        assert saved(run) == [1]
    event = [e for e in metrics(run).events if e["event"] == "not_finite"][-1]
    assert event["step"] == 2 and len(event["samples"]) == 8
    assert f"Samples in its batch: {', '.join(event['samples'])}." in last
    assert [r["step"] for r in metrics(run).train] == [1]
