"""Every study that is shipped: its steps are ones that the commands take, shared where they are equal."""

import subprocess

import pytest

from mmed_jax import study
from mmed_jax.common.errors import UserError
from mmed_jax.config.recipes import recipe_names
from mmed_jax.studies.open_study import open_study
from mmed_jax.studies.tasks import lay_out

# {study: (arms, trainings, all other steps but evaluations)} of the demo and of 8b, whose base is a folder.
SIZES = {
    "two_stage": ((5, 5, 0), (5, 4, 0)),
    "tuning": ((3, 3, 0), (4, 3, 0)),
    "pretraining": ((6, 5, 3), (6, 4, 2)),
    "languages": ((4, 4, 0), (8, 7, 0)),
}


def planned(name, tmp_path):
    return lay_out(open_study(name, {}), tmp_path)


@pytest.mark.parametrize("name", SIZES)
def test_demo_and_8b(name, tmp_path):
    assert set(SIZES) == set(recipe_names("study"))
    for variant, sizes in zip(("demo", "8b"), SIZES[name]):
        plan = planned(f"{name}:{variant}", tmp_path)
        commands = [t.step.command for t in plan.tasks]
        others = sum(c in ("export", "merge") for c in commands)
        assert (len(plan.trials), commands.count("train"), others) == sizes
        # Of every step those that it needs come before it, and it leaves its result where they look for it.
        for k, task in enumerate(plan.tasks):
            assert set(task.needs) <= set(plan.tasks[:k])
            assert all(any(str(need.result) in a for a in task.arguments) for need in task.needs)
        assert all(t.evaluations.keys() == {b.name for b in plan.benchmarks} for t in plan.trials)
        assert plan.claims and {c.column for c in plan.claims} <= {"", *(plan.study.settings.get("each") or ())}


@pytest.mark.parametrize("name", ["two_stage:70b-qlora", "tuning:1b", "pretraining:70b", "languages:3b"])
def test_other_variants(name, tmp_path):
    assert len(planned(name, tmp_path).trials) >= 3


def test_a_model_of_one_s_own(tmp_path):
    with pytest.raises(UserError, match="^config.base is empty: name the model that all arms start from"):
        planned("tuning:custom", tmp_path)
    for name in (*SIZES, "two_stage:custom-qlora"):
        given = {"base": "my/model", "benchmark": "", "data": "dev.jsonl"}
        plan = lay_out(open_study(name if ":" in name else f"{name}:custom", given), tmp_path)
        starts = [t.settings["init_from"] for t in plan.tasks if t.step.command == "train"]
        assert "my/model" in starts and len(plan.trials) >= 3


def test_the_paper_s_tuning_is_asked_in_its_prompts(tmp_path):
    plan = planned("tuning:8b", tmp_path)
    assert all("--prompt_family=mmedbench" in t.arguments for t in plan.tasks if t.step.command == "evaluate")
    trainings = [t.settings for t in plan.tasks if t.step.command == "train"]
    assert {s["data.prompt_family"] for s in trainings} == {"mmedbench"}
    assert [s["lora.rank"] for s in trainings] == [16, 16, 0]


def test_dry_run_plans_the_trainings_of_an_open_model(tmp_path, capsys):
    arguments = ["--config=pretraining:8b", "--config.arms=corpus", f"--output={tmp_path}/out", "--price=2"]
    assert study.main([*arguments, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "planned    for gpu:8xh100-80g" in out and "GiB a chip; " in out
    assert "trainings  " in out and " chip hours, cost " in out and "not there: config.data.train: tables/mmedc" in out
    with pytest.raises(UserError, match="^step corpus: config.init_from: models/Meta-Llama-3-8B is not there"):
        study.main(arguments)


def test_a_printed_script_of_a_study_is_one_that_bash_reads(tmp_path, capsys):
    for name in SIZES:
        assert study.main([f"--config={name}", f"--output={tmp_path}/an out", "--launcher", "print"]) == 0
        script = capsys.readouterr().out
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
        assert script.endswith(f"python -m mmed_jax.study --config={name} '--output={tmp_path}/an out'\n")
