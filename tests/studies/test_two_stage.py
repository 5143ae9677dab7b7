"""A study as it is shipped, cut down to a few steps: trained, evaluated and reported by the commands themselves."""

import importlib
import json

import pytest

from mmed_jax import study
from mmed_jax.studies import run_here
from mmed_jax.studies.step_key import flags_text

# One program for all trainings: rates and lengths alike.
SMALL = {
    "epochs": 0,
    "steps": 3,
    "batch_size": 2,
    "data.seq_len": 256,
    "optim.lr": 1e-3,
    "tensorboard": "false",
    "checkpoint.every_minutes": 0,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """two_stage:demo, its steps in this process, where jax is there already."""
    out = tmp_path_factory.mktemp("study")
    keys = SMALL | {"data.cache_dir": out / "packed", "compile_cache": out / "compiled"}
    flags = [f"--train.{k}={v}" for k, v in keys.items()]

    def call(self, task):
        importlib.import_module(f"mmed_jax.{task.step.command}").main(task.arguments)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_here._Processes, "__call__", call)
        arms = "--config.arms=base,stage 2 only,both in one stage"
        code = study.main(["--config=two_stage", f"--output={out}", "--evaluate.limit=1", arms, *flags])
    assert code == 0
    return out


def test_arms_are_trained_asked_and_compared(folder):
    report = json.loads((folder / "report.json").read_text())
    assert [a["steps"] for a in report["arms"]] == [["base"], ["base", "stage2-only"], ["base", "mixed"]]
    assert report["missing"] == [] and report["compared_with"] == "base"
    assert {(r["arm"], r["count"]) for r in report["results"] if r["column"] == "zh"} == {
        ("base", 1),
        ("stage 2 only", 1),
        ("both in one stage", 1),
    }
    assert {d["column"] for d in report["differences"]} == {"en", "zh", "ja", "ko", "fr", "es", "ru", "all"}
    # Nothing is run twice: three trainings and three evaluations.
    assert len(report["steps"]) == 6 == len(list((folder / "steps").iterdir()))
    page = (folder / "report.html").read_text()
    assert "Training loss: stage2" in page and "random weights" in page


def test_the_mixed_arm_has_seen_the_records_of_both(folder):
    (log,) = (folder / "steps").glob("mixed-*/run/config.json")
    data = json.loads(log.read_text())["data"]
    assert data["kind"] == "mixed" and len(data["train"]) == 2


def test_flags_are_written_as_the_commands_read_them():
    given = {"config.tensorboard": False, "config.data.language_weights": {"zh": 2.0, "en": 0.5}, "config.steps": 3}
    assert flags_text({**given, "human_checked": True, "languages": ("en", "zh"), "allow": False}) == [
        "--config.tensorboard=false",
        "--config.data.language_weights=zh=2,en=0.5",
        "--config.steps=3",
        "--human_checked",
        "--languages=en,zh",
    ]
