"""A study as it is shipped, cut down to a few steps: trained, merged, evaluated and reported by the commands."""

import importlib
import json

import pytest

from mmed_jax import study
from mmed_jax.studies import run_here
from mmed_jax.studies.step_key import flags_text

SMALL = {
    "epochs": 0,
    "steps": 3,
    "batch_size": 2,
    "optim.lr": 1e-3,
    "tensorboard": "false",
    "checkpoint.every_minutes": 0,
    "log_every": 1,
}


def run_small(out, *flags):
    """The report of a study whose steps are run in this process, where jax is there already."""
    keys = SMALL | {"data.cache_dir": out / "packed", "compile_cache": out / "compiled"}

    def call(self, task):
        importlib.import_module(f"mmed_jax.{task.step.command}").main(task.arguments)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_here._Processes, "__call__", call)
        trained = [f"--train.{k}={v}" for k, v in keys.items()]
        assert study.main([*flags, f"--output={out}", "--evaluate.limit=1", *trained]) == 0
    return json.loads((out / "report.json").read_text())


def test_a_corpus_and_the_mean_with_the_base(tmp_path):
    report = run_small(tmp_path, "--config=pretraining", "--config.arms=base,corpus merged", "--config.texts=")
    made = [[], ["base-folder", "corpus", "corpus-folder", "merged"]]
    assert [a["steps"] for a in report["arms"]] == [["base", *steps] for steps in made]
    assert report["missing"] == [] and report["compared_with"] == "base"
    asked = {(r["arm"], r["count"]) for r in report["results"] if r["column"] == "zh"}
    assert asked == {("base", 1), ("corpus merged", 1)}
    assert {d["column"] for d in report["differences"]} == {"en", "zh", "ja", "ko", "fr", "es", "ru", "all"}
    # Nothing is run twice: two trainings, their folders, the mean and two evaluations.
    assert len(report["steps"]) == 7 == len(list((tmp_path / "steps").iterdir()))
    page = (tmp_path / "report.html").read_text()
    assert "Training loss: pretrain" in page and "random weights" in page


def test_flags_are_written_as_the_commands_read_them():
    given = {"config.tensorboard": False, "config.data.language_weights": {"zh": 2.0, "en": 0.5}, "config.steps": 3}
    assert flags_text({**given, "human_checked": True, "languages": ("en", "zh"), "allow": False}) == [
        "--config.tensorboard=false",
        "--config.data.language_weights=zh=2,en=0.5",
        "--config.steps=3",
        "--human_checked",
        "--languages=en,zh",
    ]
