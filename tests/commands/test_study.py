"""A study's steps run once, in their own processes, and go on after any end; with stand-ins for the commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmed_jax import study
from mmed_jax.common.errors import UNFINISHED, UserError, WorkError
from mmed_jax.studies import run_here
from mmed_jax.studies.run_here import hold
from mmed_jax.studies.tasks import read_state

FAKE = Path(__file__).resolve().parents[1] / "support" / "fake_commands.py"
RECIPE = """
from mmed_jax.studies.design import Arm, Claim, Design, Study, benchmarks, export, settings, train

def get_study():
    c = settings("small", "")
    c.data = ("data_gen/handcrafted/mcq.jsonl",)
    c.rate = 1e-3
    return Study("Does it work?", c, design)

def design(c):
    first = train("first", "stage1", "", {"optim.lr": c.rate})
    second = train("second", "stage2", first)
    return Design(
        (Arm("base", first), Arm("tuned", second), Arm("exported", export("folder", second))),
        benchmarks(c),
        (Claim("Tuning helps", "tuned", "base"),),
    )
"""
# In the order of the arms; the first is an arm itself.
STEPS = ["train first", "evaluate base-questions", "train second", "evaluate tuned-questions", "export folder"]
STEPS += ["evaluate exported-questions"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the recipe small.py; steps are run by the stand-in."""
    (tmp_path / "small.py").write_text(RECIPE)
    monkeypatch.setenv("FAKE_COMMANDS", str(tmp_path))
    monkeypatch.setattr(run_here, "PYTHON", (sys.executable, "-S", str(FAKE)))
    monkeypatch.setattr(run_here, "_end_with_parent", None)  # jax is in this process, which must not be forked
    monkeypatch.setattr(study, "print_report", lambda *_: None)
    return tmp_path


def run(here, *flags) -> int:
    return study.main([f"--config={here}/small.py", f"--output={here}/out", *flags])


def calls(here) -> list[str]:
    path = here / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_every_step_once_and_never_again(here, capsys):
    assert run(here) == 0 and calls(here) == STEPS
    out = capsys.readouterr().out
    assert "[1/6]      first: train, log " in out and "[6/6]      exported-questions: done in 0:0" in out
    state = read_state(next((here / "out" / "steps").glob("second-*")))
    assert state["state"] == "done" and state["exit_code"] == 0 and state["calls"] == 1
    assert run(here) == 0 and calls(here) == STEPS
    assert capsys.readouterr().out.count("done before") == 6


def test_changed_settings_are_said_and_only_what_depends_on_them_is_made_anew(here, capsys):
    run(here)
    run(here, "--evaluate.limit=2")
    assert calls(here)[6:] == [s for s in STEPS if s.startswith("evaluate")]
    capsys.readouterr()
    assert run(here, "--config.rate=0.5") == 0 and len(calls(here)) == 6 + 3 + 6
    out = capsys.readouterr().out
    assert "first: settings differ from those of first-" in out and "(optim.lr: 0.001 there, 0.5 now): made anew" in out
    # What changes nothing that is learnt is no other step, and the first settings are still done.
    assert run(here, "--train.log_every=7") == 0 and len(calls(here)) == 15
    stops = ("--train.eval_epochs=true", "--train.stop_after=1")  # a run may be continued so, and yet ends elsewhere
    assert run(here, *stops) == 0 and len(calls(here)) == 21


def test_a_step_that_fails_is_named_with_its_last_error_and_its_log(here):
    (here / "second.fail").touch()
    with pytest.raises(WorkError) as e:
        run(here)
    assert str(e.value).startswith("step second failed with exit code 1: config.data.train: x.jsonl:3: no answer; its ")
    assert calls(here) == STEPS[:3] and str(e.value).endswith("log.txt")
    assert "step second begins" in Path(str(e.value).rpartition("its log: ")[2]).read_text()
    (here / "second.fail").unlink()
    assert run(here) == 0 and calls(here) == [*STEPS[:3], *STEPS[2:]]


def test_the_reason_is_that_of_the_last_call(here, monkeypatch):
    (here / "first.fail").touch()
    with pytest.raises(WorkError, match="no answer"):
        run(here)

    def killed(self, task):
        with open(task.log, "a") as log:
            log.write(f"$ {task.shell()}\nstep 3 loss 2.0\n")
        return -signal.SIGKILL

    monkeypatch.setattr(run_here._Processes, "__call__", killed)
    with pytest.raises(WorkError, match="^step first ended by SIGKILL: step 3 loss 2.0; its log"):
        run(here)


def test_more_seeds_keep_what_is_there(here, capsys):
    assert run(here, "--seeds=2") == 0 and calls(here) == STEPS
    assert run(here, "--seeds=1,2") == 0 and calls(here)[6:] == STEPS
    out = capsys.readouterr().out
    assert "second-seed2: done before" in out and "made anew" not in out
    assert run(here, "--seeds=1") == 0 and len(calls(here)) == 12


def test_a_folder_is_one_study_s(here, capsys):
    run(here)
    other = here / "other.py"
    other.write_text(RECIPE.replace('settings("small"', 'settings("large"'))
    with pytest.raises(UserError, match="is the folder of the study small; name another one for large"):
        study.main([f"--config={other}", f"--output={here}/out"])
    assert len(calls(here)) == 6


MISTAKES = {
    "return Design(": ("return dict(c); Design(", "^--config=.*small.py: design must return a Design, got dict"),
    "first = ": ("first = c.nothing; first = ", "^--config=.*small.py: line 11: AttributeError: .*nothing"),
    'Arm("base"': ('Arm("base\\nrm"', "a name has no = and no /, and is one line"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_design_is_one_line(here, text):
    wrong, line = MISTAKES[text]
    (here / "small.py").write_text(RECIPE.replace(text, wrong, 1))
    with pytest.raises(UserError, match=line):
        run(here)


def test_arms_may_have_names_of_any_script(here):
    recipe = RECIPE.replace('"base"', '"基线"').replace('"tuned"', '"两阶段"')
    (here / "small.py").write_text(recipe)
    assert run(here) == 0 and len(calls(here)) == 6


def test_other_questions_in_the_folder_of_a_benchmark_are_other_steps(here):
    questions = Path("data_gen/handcrafted/mcq.jsonl").read_text()
    (here / "data").mkdir()
    (here / "data" / "quiz.jsonl").write_text(questions)
    asked = ("--config.data=", "--config.benchmark=quiz", f"--config.data_dir={here}/data")
    assert run(here, *asked) == 0
    (here / "data" / "another.jsonl").write_text(questions.replace('"id": "', '"id": "x'))
    assert run(here, *asked) == 0 and len(calls(here)) == 6
    (here / "data" / "quiz.jsonl").write_text(questions.replace("?", "??", 1))
    assert run(here, *asked) == 0 and len(calls(here)) == 9
    with pytest.raises(UserError, match="^step base-questions: --benchmark=quizz"):
        run(here, *asked, "--config.benchmark=quizz")


def test_a_result_that_was_removed_is_made_again(here):
    run(here)
    for file in next((here / "out" / "steps").glob("folder-*/model")).iterdir():
        file.unlink()
    state = next((here / "out" / "steps").glob("folder-*/step.json"))
    state.write_text("{")  # and its state is damaged
    assert run(here) == 0 and calls(here)[6:] == ["export folder"]
    for file in next((here / "out" / "steps").glob("folder-*/model")).iterdir():
        file.unlink()
    assert run(here) == 0 and calls(here)[7:] == ["export folder"]


# ---- Ended from outside ---------------------------------------------------------------------------------------------

DRIVER = f"""
import sys
from mmed_jax import study
from mmed_jax.common.errors import run_command
from mmed_jax.studies import run_here
run_here.PYTHON = (sys.executable, "-S", {str(FAKE)!r})
study.print_report = lambda *_: None
run_command(study.main)
"""


def start(here) -> subprocess.Popen:
    """The study in a process of its own, which waits in the step `first`."""
    (here / "first.slow").touch()
    before = len(calls(here))
    command = [sys.executable, "-c", DRIVER, f"--config={here}/small.py", f"--output={here}/out"]
    environment = os.environ | {"PYTHONPATH": str(FAKE.parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: len(calls(here)) > before, process)
    return process


def wait_for(condition, process) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def test_a_signal_lets_the_step_save_and_the_next_call_goes_on(here, capsys):
    process = start(here)
    with pytest.raises(UserError, match="another process runs this study"):
        run(here)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == UNFINISHED and err == ""
    assert "first: SIGTERM: stopped after 0:0" in out and "the same command goes on with it" in out
    log = next((here / "out" / "steps").glob("first-*/log.txt"))
    assert "SIGTERM: saving after this step" in log.read_text()
    assert read_state(log.parent)["state"] == "unfinished"
    (here / "first.slow").unlink()
    assert run(here) == 0 and calls(here) == ["train first", *STEPS]
    assert read_state(log.parent)["calls"] == 2


def test_a_study_that_was_killed_leaves_no_step_and_goes_on(here, capfd):
    process = start(here)
    process.kill()
    process.communicate(timeout=60)
    log = next((here / "out" / "steps").glob("first-*/log.txt"))
    (here / "first.slow").unlink()
    # What is left of it is waited for.
    assert run(here) == 0 and calls(here) == ["train first", *STEPS]
    assert log.read_text().count("step first begins") == 2
    if sys.platform == "linux":
        assert "SIGTERM: saving" in log.read_text()


def test_a_step_that_is_stopped_by_itself_leaves_the_study_unfinished(here, monkeypatch):
    monkeypatch.setattr(run_here._Processes, "__call__", lambda self, task: UNFINISHED)
    assert run(here) == UNFINISHED


def test_a_step_that_was_killed_is_a_failure(here, monkeypatch):
    monkeypatch.setattr(run_here._Processes, "__call__", lambda self, task: -signal.SIGKILL)
    with pytest.raises(WorkError, match="^step first ended by SIGKILL: no log"):
        run(here)


# ---- Without running anything ---------------------------------------------------------------------------------------


def test_dry_run_writes_nothing_and_names_what_is_not_there(here, capsys):
    assert run(here, "--dry_run", "--evaluate.data=lost.jsonl", "--seeds=1,2") == 0
    out = capsys.readouterr().out
    assert not (here / "out").exists() and calls(here) == []
    assert "[3/12]     second-seed1: train after first-seed1; for tuned, exported" in out
    assert "not there: --data: lost.jsonl" in out
    assert "arm        exported, seed 2: first-seed2 -> second-seed2 -> folder-seed2" in out
    with pytest.raises(UserError, match="^step base-questions: --data: lost.jsonl is not there"):
        run(here, "--evaluate.data=lost.jsonl")
    assert calls(here) == []


def test_the_printed_script_runs_and_is_what_the_study_would_do(here, capsys):
    assert run(here, "--launcher=print") == 0
    script = capsys.readouterr().out
    assert not (here / "out").exists() and script.count("python -m mmed_jax.train ") == 2
    own = script.replace("python -m", f"{sys.executable} -S {FAKE} -m").rstrip("\n").rpartition("\n")[0]
    done = subprocess.run(["bash"], input=own, text=True, capture_output=True)
    assert done.returncode == 0 and calls(here) == STEPS, done.stderr
    # Nothing is left to do.
    assert run(here) == 0 and calls(here) == STEPS


SBATCH = """
import json, os, sys
home = os.environ["FAKE_COMMANDS"]
if os.path.exists(home + "/closed"):
    sys.exit("sbatch: error: Batch job submission failed: Invalid account")
with open(home + "/jobs.txt", "a+") as f:
    f.seek(0)
    job = 101 + len(f.readlines())
    f.write(json.dumps(sys.argv[1:]) + "\\n")
print(f"{job};cluster")
"""
# Jobs up to the number in queue.txt are still known.
SQUEUE = """
import os, sys
job = next(a for a in sys.argv if a.startswith("--jobs=")).partition("=")[2]
path = os.environ["FAKE_COMMANDS"] + "/queue.txt"
if not os.path.exists(path) or int(job) > int(open(path).read()):
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print("PENDING")
"""


def test_slurm_jobs_wait_for_each_other_and_are_submitted_once(here, monkeypatch, capsys):
    with monkeypatch.context() as nowhere:
        nowhere.setenv("PATH", str(here))
        with pytest.raises(UserError, match="--launcher=slurm: sbatch, squeue: no such command here"):
            run(here, "--launcher=slurm")
    for name, program in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (here / name).write_text(f"#!{sys.executable} -S\n{program}")
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    flags = ("--launcher", "slurm", "--sbatch=--partition=gpu --gpus-per-node=1", "--sbatch_train=--gpus-per-node=8")
    assert run(here, *flags) == 0
    jobs = [json.loads(line) for line in (here / "jobs.txt").read_text().splitlines()]
    names = [next(a for a in job if a.startswith("--job-name=")).partition("=")[2] for job in jobs]
    assert names == [s.split()[1] for s in STEPS] + ["small-report"]
    after = {n: [a for a in job if a.startswith("--dependency=")] for n, job in zip(names, jobs)}
    assert after["first"] == [] and after["second"] == after["base-questions"] == ["--dependency=afterok:101"]
    assert after["exported-questions"] == ["--dependency=afterok:105"]
    assert after["small-report"] == ["--dependency=afterok:101:102:103:104:105:106"]
    first, report = jobs[0], jobs[-1]
    assert first[first.index("--gpus-per-node=8") + 1].endswith("scripts/slurm.sh") and "--partition=gpu" in first
    assert first[first.index("--gpus-per-node=8") + 2 :][:3] == ["python", "-m", "mmed_jax.train"]
    assert report[-1].endswith(f"python -m mmed_jax.study --config={here}/small.py --output={here}/out --report")
    assert "[1/6]      first: job 101, log " in capsys.readouterr().out
    # What is in the queue stays there; what left it without a result is submitted again.
    (here / "queue.txt").write_text("103")
    (here / "closed").touch()
    with pytest.raises(WorkError, match="step tuned-questions: sbatch: sbatch: error: Batch job .* Invalid account"):
        run(here, *flags)
    (here / "closed").unlink()
    with pytest.raises(UserError, match="^step first: is in Slurm's queue as job 101; wait for it, or take out"):
        run(here)
    with hold(here / "out"), pytest.raises(UserError, match="another process runs this study"):
        run(here, *flags)
    assert run(here, *flags) == 0
    out = capsys.readouterr().out
    assert "[3/6]      second: in the queue as job 103" in out and "[4/6]      tuned-questions: job 108" in out
    last = json.loads((here / "jobs.txt").read_text().splitlines()[7])
    assert "--dependency=afterok:103" in last
    # Where there is no squeue it is said.
    (here / "squeue").unlink()
    assert run(here) == 0 and calls(here) == STEPS
    assert "warning: step first was submitted to Slurm as job 101; no squeue here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--config=two_stag"], "--config=two_stag: no study 'two_stag', did you mean 'two_stage'?"),
        (
            ["--config=stage1"],
            "--config=stage1: is a recipe of a training, for `python -m mmed_jax.train --config=stage1`",
        ),
        (["--config=two_stage:9b"], "--config=two_stage:9b: two_stage has no variant '9b'; valid: demo, 1b,"),
        (["--config=two_stage", "--config.stage3=x"], "--config.stage3: no such key, did you mean 'stage2'?"),
        (["--config=two_stage", "--train.optim.lrr=1"], "step base: --config.optim.lrr: no such key, did you mean"),
        (["--config=two_stage", "--evaluate.mod=1"], "step base-questions: unrecognized arguments: --mod=1, did you"),
        (["--config=two_stage", "--config.arms=stage2"], "config.arms: no arm is called 'stage2', did you mean"),
        (["--config=languages", "--config.each=de"], "config.each: language 'de' is unknown"),
        (["--config=two_stage", "--seeds=1,x"], "config.seeds: 'x' is no whole number"),
        (["--config=two_stage", "--seeds="], "config.seeds is empty"),
        (["--config=two_stage", "--seeds=1,01"], "config.seeds: 1 is named twice"),
        (["--config=two_stage", f"--seeds={'9' * 5000}"], "config.seeds: '999"),
        (["--config=two_stage", "--config.price=-3"], "--price=-3.0: must be a number of at least 0"),
        (["--config=two_stage", "--topology=v9"], "--topology=v9: no such slice"),
        (["--config=two_stage", "--train.init_from=x"], "--train.init_from: its arms say what each training starts"),
        (["--config=two_stage", "--train.seed=5"], "--train.seed: the seeds of a study are --seeds=1,2,3"),
        (["--config=two_stage", "--train.data.train=x"], "--train.data.train: the steps of this study differ by it"),
        (["--config=two_stage", "--evaluate.model=x"], "--evaluate.model: every arm's own model is asked"),
        (["--config=two_stage", "--evaluate.human_checked=yes"], "step base-questions: argument --human_checked"),
        (["--config=two_stage", "--seeds=1,1"], "config.seeds: 1 is named twice"),
        (["--config=two_stage", "--sbatch=--nodes=2"], "--sbatch and --sbatch_train go with --launcher=slurm"),
        (["--config=two_stage", "--launcher=slrm"], "argument --launcher: invalid choice: 'slrm'"),
        (["--config=two_stage", "--config.data="], "config.benchmark, config.data and config.texts are empty"),
    ],
)
def test_wrong_input_is_one_line(flags, line, tmp_path):
    with pytest.raises(UserError) as e:
        study.main([*flags, f"--output={tmp_path}/out", "--dry_run"])
    assert str(e.value).startswith(line), str(e.value)
