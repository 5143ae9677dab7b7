"""Mistakes a user can make: each gives one clear line, the right exit code, and loses nothing.

Exit code 2: the input or the config is wrong. Exit code 1: the work itself failed.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_gen import __main__ as data_gen
from mmed_jax import evaluate, export, generate, inspect
from mmed_jax.training import metric_log
from tests.support.training import (
    REPO,
    STEPS,
    assert_same_state,
    bench,  # noqa: F401
    call,
    cut_back,
    files,
    instructions,
    questions,
    saved,
    state_of,
    write_jsonl,
)


def altered(records: list[dict], index: int, **fields: object) -> list[dict]:
    """`records` with fields of one of them set; None removes a field."""
    records[index] = {k: v for k, v in {**records[index], **fields}.items() if v is not None}
    return records


@pytest.fixture(scope="module")
def bad(bench, tmp_path_factory) -> Path:  # noqa: F811
    """A folder full of wrong input."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.jsonl").touch()
    good = write_jsonl(folder / "good.jsonl", instructions()).read_text()
    (folder / "broken.jsonl").write_text(good.replace("\n", "\n{oops\n", 1))
    (folder / "blank.jsonl").write_text("\n\n")
    write_jsonl(folder / "no_answer.jsonl", altered(instructions(), 3, messages=instructions()[3]["messages"][:1]))
    write_jsonl(folder / "german.jsonl", altered(instructions(), 1, language="de"))
    write_jsonl(folder / "name.jsonl", altered(instructions(), 1, language="Chinese"))
    write_jsonl(folder / "field.jsonl", altered(instructions(), 0, mesages=[]))
    write_jsonl(folder / "twice.jsonl", altered(instructions(), 5, id="en-2"))
    write_jsonl(folder / "letter.jsonl", altered(questions(), 2, answer_idx="C"))
    (folder / "latin1.jsonl").write_bytes(good.encode().replace("è".encode(), "è".encode("latin-1")))
    (folder / "file").write_text("x")
    (folder / "nothing").mkdir()
    (folder / "junk").mkdir()
    (folder / "junk" / "notes.txt").write_text("x")
    # An HF folder, and copies of it with one fault each.
    model = folder / "model"
    assert call(export.main, f"--model={bench.reference}", f"--output={model}", "--dtype=float32").code == 0
    for name in ("truncated", "weightless", "other_model", "tokenless"):
        shutil.copytree(model, folder / name)
    (weights,) = (folder / "truncated").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    for p in (folder / "weightless").glob("*.safetensors"):
        p.unlink()
    config = folder / "other_model" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mistral"'))
    for p in (folder / "tokenless").glob("*token*"):
        p.unlink()
    # Of the same size as the model's own tokenizer, with two tokens' ids exchanged.
    shutil.copytree(model, folder / "exchanged", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tokenizer = json.loads((folder / "exchanged" / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "exchanged" / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


FROM_MODEL = {"stage": "stage2", "init_from": "BAD/model"}
# name: (config keys, what the line says). BAD stands for the folder above.
TRAIN = {
    # weights
    "missing weights": ({"stage": "stage2", "init_from": "BAD/none"}, "config.init_from: ", "none"),
    "gated weights": ({"stage": "stage2", "init_from": "meta-llama/Llama-3.1-8B"}, "hf download", "accept its licence"),
    "not a model": ({"stage": "stage2", "init_from": "BAD/junk"}, "neither a run directory", "notes.txt"),
    "empty folder as model": ({"stage": "stage2", "init_from": "BAD/nothing"}, "it is empty"),
    "truncated weights": ({"stage": "stage2", "init_from": "BAD/truncated"}, "safetensors"),
    "no weights": ({"stage": "stage2", "init_from": "BAD/weightless"}, "safetensors"),
    "another architecture": ({"stage": "stage2", "init_from": "BAD/other_model"}, "model_type", "mistral"),
    "no tokenizer": ({"stage": "stage2", "init_from": "BAD/tokenless"}, "tokenizer"),
    "sizes for given weights": ({"stage": "stage2", "init_from": "BAD/model", "model__num_layers": 3}, "config.model"),
    # config
    "unknown config": ({"stage": "stag1"}, "did you mean 'stage1'?"),
    "unknown variant": ({"stage": "stage1:8bb"}, "has no variant '8bb'", "did you mean '8b'?"),
    "unknown key": ({"optim__lrr": 1}, "--config.optim.lrr: no such key", "did you mean 'optim.lr'?"),
    "group as key": ({"optim": 1}, "--config.optim: is a group of keys"),
    "text for a number": ({"optim__lr": "fast"}, "--config.optim.lr=fast: must be a number"),
    "fraction for a count": ({"steps": 1.5}, "--config.steps=1.5: must be a whole number"),
    "text for a switch": ({"data__packing": "maybe"}, "--config.data.packing=maybe: must be true or false"),
    "unknown choice": ({"optim__schedule": "cosinus"}, "config.optim.schedule", "did you mean 'cosine'?"),
    "negative": ({"optim__lr": -1}, "config.optim.lr=-1.0: must be greater than 0"),
    "steps and epochs": ({"epochs": 2}, "config.steps and config.epochs: both are set"),
    "no length": ({"steps": 0}, "config.steps and config.epochs: neither is set"),
    "batch and micro-batches": ({"grad_accum": 3}, "8 sequences does not divide by grad_accum=3"),
    "batch in tokens": ({"batch_size": 0, "batch_tokens": 1000}, "not a multiple of data.seq_len=128", "896"),
    "more steps than can be counted": ({"steps": 2**31}, "config.steps=2147483648", "at most 2,147,483,647"),
    "epochs without end": ({"steps": 0, "epochs": 1e12}, "config.epochs=1000000000000.0", "at most 2,147,483,647"),
    "warm-up longer than the run": ({"optim__warmup_ratio": 0, "optim__warmup_steps": 30}, "warm-up of 30 steps"),
    "rows longer than the model": ({"data__seq_len": 512}, "max_position_embeddings=256"),
    "heads that do not divide": ({"model__hidden_size": 36, "model__head_dim": 0}, "hidden_size=36, num_heads=8"),
    "key-value heads that do not divide": ({"model__num_kv_heads": 3}, "num_kv_heads"),
    "unknown preset": ({"model__preset": "llama3-9b"}, "config.model.preset", "did you mean 'llama3-8b'?"),
    # mesh
    "mesh and devices": ({"mesh__devices": 8, "mesh__fsdp": 3}, "config.mesh (data=1 fsdp=3", "8"),
    "mesh and heads": (
        {"mesh__devices": 8, "mesh__tensor": 8, "model__num_kv_heads": 2},
        "num_kv_heads 2 is not divisible by mesh.tensor=8",
    ),
    "mesh and batch": ({"mesh__devices": 8, "batch_size": 6}, "a micro-batch of 6 rows does not divide", "8"),
    "mesh and length": ({"mesh__devices": 8, "mesh__context": 8, "data__seq_len": 100}, "data.seq_len 100"),
    "more devices than there are": ({"mesh__devices": 9}, "config.mesh.devices=9 but there are 8 devices"),
    "coordinator alone": ({"distributed__coordinator": "127.0.0.1:1"}, "needs num_processes"),
    "fewer processes than expected": ({"distributed__expect_processes": 2}, "expect_processes=2 but 1 take part"),
    # tokenizer
    "vocabulary mismatch": ({"model__vocab_size": 300}, "ids up to 399", "ends at 299"),
    "missing tokenizer": ({"tokenizer": "BAD/none"}, "none"),
    "not a tokenizer": ({"tokenizer": "BAD/junk"}, "junk"),
    "another tokenizer of the same size": (
        FROM_MODEL | {"tokenizer": "BAD/exchanged"},
        "2 ids mean other tokens than in",
        "'b' here, 'a' there",
    ),
    "no tokenizer named": ({"tokenizer": ""}, "config.tokenizer is empty"),
    # records
    "missing records": ({"data__train": "BAD/goood.jsonl"}, "goood.jsonl: no such file", "did you mean"),
    "missing validation records": ({"data__validation": "BAD/none.jsonl"}, "none.jsonl: no such file"),
    "no records named": ({"data__train": ""}, "config.data.train is empty"),
    "empty records": ({"data__train": "BAD/empty.jsonl"}, "empty.jsonl: holds no records"),
    "blank lines only": ({"data__train": "BAD/blank.jsonl"}, "blank.jsonl"),
    "broken JSON": ({"data__train": "BAD/broken.jsonl"}, "broken.jsonl:2: ", "JSON"),
    "not UTF-8": ({"data__train": "BAD/latin1.jsonl"}, "latin1.jsonl:", "UTF-8"),
    "record without an answer": ({"data__train": "BAD/no_answer.jsonl"}, "no_answer.jsonl:4: field 'messages'"),
    "unknown field": ({"data__train": "BAD/field.jsonl"}, "field.jsonl:1: field 'mesages'", "did you mean 'messages'?"),
    "unknown language": ({"data__train": "BAD/german.jsonl"}, "german.jsonl:2: field 'language'", "'de'", "en, zh"),
    "language by name": ({"data__train": "BAD/name.jsonl"}, "name.jsonl:2: field 'language'", "did you mean 'zh'?"),
    "duplicate ids": ({"data__train": "BAD/twice.jsonl"}, "twice.jsonl:6: field 'id'", "twice.jsonl:3"),
    "the same file twice": ({"data__train": "BAD/good.jsonl,BAD/good.jsonl"}, "already used at"),
    "questions in stage 1": ({"data__train": "QUESTIONS"}, "stage2.jsonl:1: "),
    "instructions in stage 2": (FROM_MODEL | {"data__train": "BAD/good.jsonl"}, "good.jsonl:1: "),
    "answer without option": (
        FROM_MODEL | {"data__train": "BAD/letter.jsonl"},
        "letter.jsonl:3: field 'answer_idx'",
        "valid: A to B",
    ),
    "unknown language wanted": ({"data__languages": "en,de"}, "'de' is not supported"),
    "language that is not there": ({"data__languages": "ko"}, "no record in the languages ko", "en, fr, zh"),
    "nothing short enough": ({"data__seq_len": 8}, "24 records give no sample at data.seq_len=8"),
    # places
    "run directory that is a file": ({"run_dir": "BAD/file"}, "run_dir=", "is a file, not a folder"),
    "run directory below a file": ({"run_dir": "BAD/file/run"}, "run_dir=", "Not a directory"),
    "read-only output": ({"run_dir": "/proc/no_such_place"}, "run_dir=/proc/no_such_place: cannot be written"),
    "run directory in another store": ({"run_dir": "s3://bucket/run"}, "run_dir=s3://bucket/run"),
    "packed data into a file": ({"data__cache_dir": "BAD/file"}, "config.data.cache_dir", "file"),
    "compile cache is a file": ({"compile_cache": "BAD/file"}, "config.compile_cache"),
    # platform
    "a large variant on a CPU": (
        {"stage": "stage1:8b", "init_from": "BAD/model", "data__train": "BAD/good.jsonl"},
        "stage1:8b is meant for a TPU or GPU",
        "doctor",
    ),
}


@pytest.mark.parametrize("changes, said", [(c, s) for c, *s in TRAIN.values()], ids=TRAIN.keys())
def test_train(bench, bad, tmp_path, changes, said):  # noqa: F811
    run = tmp_path / "run"
    changes = {"run_dir": run} | changes
    text = {k: str(v).replace("BAD", str(bad)).replace("QUESTIONS", str(bench.questions)) for k, v in changes.items()}
    before = files(bad)
    outcome = bench.train(text.pop("run_dir"), text.pop("stage", "stage1"), **text)
    assert outcome.code == 2, outcome.err
    for part in said:
        assert part in outcome.error
    assert files(bad) == before and not files(run)


def test_stage_2_without_stage_1_names_the_command_that_makes_it(bench, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmed_jax.common.paths.REPO", tmp_path)
    outcome = bench.train(tmp_path / "run", "stage2")
    assert outcome.code == 2 and "python -m mmed_jax.train --config=stage1`" in outcome.error
    outcome = bench.train(tmp_path / "run", "stage2:1b")
    assert outcome.code == 2 and "python -m mmed_jax.train --config=stage1:1b`" in outcome.error


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"optim__lr": 0.5}, "optim.lr: 0.01 in the run, 0.5 now"),
        ({"batch_size": 4}, "batch_size: 8 in the run, 4 now"),
        ({"steps": 30}, "cannot change half-way"),
        ({"stage": "stage2", "init_from": "BAD/model"}, "in the run"),
    ],
)
def test_a_run_directory_of_another_config(bench, bad, tmp_path, changes, said):  # noqa: F811
    run = cut_back(bench.reference, tmp_path / "run", 6)
    before = files(run)
    changes = {k: str(v).replace("BAD", str(bad)) for k, v in changes.items()}
    outcome = bench.train(run, changes.pop("stage", "stage1"), **changes)
    assert outcome.code == 2 and "holds step 6 of a run with another config" in outcome.error and said in outcome.error
    assert files(run) == before


def test_a_disk_that_fills_up_during_a_save_loses_no_checkpoint(bench, tmp_path, monkeypatch):  # noqa: F811
    run = cut_back(bench.reference, tmp_path / "run", 12)
    before = {step: state_of(run, step) for step in saved(run)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What takes more than 64 kB fails, as on a full disk: the arrays of a checkpoint, nothing smaller.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    noise = []
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    try:
        outcome = bench.train(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 1
    assert not noise
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: checkpoint of step 18") and "step 12 is the newest whole checkpoint" in last
    assert saved(run) == [6, 12]
    for step, state in before.items():
        assert_same_state(state_of(run, step), state)
    assert bench.train(run).code == 0
    assert_same_state(state_of(run, STEPS), state_of(bench.reference, STEPS))


def test_a_full_disk_for_the_numbers(bench, tmp_path, monkeypatch):  # noqa: F811
    def full(path, mode="r", **options):
        return open("/dev/full" if mode == "ab" else path, mode, **options)

    run = cut_back(bench.reference, tmp_path / "run", 12)
    monkeypatch.setattr(metric_log, "open", full, raising=False)
    outcome = bench.train(run)
    assert outcome.code == 1 and "No space left on device" in outcome.error
    assert saved(run) == [6, 12]


RUN, OUT = "--model=RUN", "--output=TMP/out"
MEDQA = "convert --source=medqa_us"
# name: (command, arguments, what the line says)
OTHERS = {
    "inspect: unknown key": (inspect, "--config=stage1 --config.data.seqlen=5", "did you mean 'data.seq_len'?"),
    "inspect: records": (inspect, "--config=stage1 --config.data.train=BAD/twice.jsonl", "twice.jsonl:6: field 'id'"),
    "inspect: split": (inspect, "--config=stage1 --split=test", "test"),
    "generate: no model": (generate, "--model=BAD/none --prompt=x", "none"),
    "generate: hub name": (generate, "--model=meta-llama/Llama-3.1-8B --prompt=x", "hf download"),
    "generate: not a model": (generate, "--model=BAD/junk --prompt=x", "neither a run directory"),
    "generate: step": (generate, f"{RUN} --step=7 --prompt=x", "no checkpoint of step 7"),
    "generate: nothing to do": (generate, RUN, "--prompt"),
    "generate: no input": (generate, f"{RUN} --input=BAD/none.jsonl", "none.jsonl"),
    "generate: broken input": (generate, f"{RUN} --input=BAD/broken.jsonl", "broken.jsonl:2"),
    "generate: temperature": (generate, f"{RUN} --prompt=x --temperature=-1", "temperature"),
    "generate: unknown flag": (generate, f"{RUN} --prompt=x --temprature=1", "did you mean '--temperature'?"),
    "generate: wrong type": (generate, f"{RUN} --prompt=x --max_new_tokens=many", "max_new_tokens"),
    "generate: too long": (generate, f"{RUN} --prompt={'x' * 400}", "256"),
    "evaluate: no model": (evaluate, f"--model=BAD/none --data=QUESTIONS {OUT}", "none"),
    "evaluate: no data": (evaluate, f"{RUN} --data=BAD/none.jsonl {OUT}", "none.jsonl"),
    "evaluate: broken data": (evaluate, f"{RUN} --data=BAD/letter.jsonl {OUT}", "letter.jsonl:3: field 'answer_idx'"),
    "evaluate: empty data": (evaluate, f"{RUN} --data=BAD/empty.jsonl {OUT}", "empty.jsonl"),
    "evaluate: benchmark": (evaluate, f"{RUN} --benchmark=medqa_uss --data_dir=BAD {OUT}", "medqa_us"),
    "evaluate: output": (evaluate, f"{RUN} --data=QUESTIONS --output=BAD/file", "is a file"),
    "evaluate: mode": (evaluate, f"{RUN} --data=QUESTIONS --mode=dirct {OUT}", "direct"),
    "export: no model": (export, f"--model=BAD/none {OUT}", "none"),
    "export: output is the model": (export, "--model=BAD/model --output=BAD/model", "would replace the model"),
    "export: output is there": (export, f"{RUN} --output=BAD/model", "--overwrite"),
    "export: output is a file": (export, f"{RUN} --output=BAD/file", "file"),
    "export: read-only output": (export, f"{RUN} --output=/proc/no_such_place/x", "/proc/no_such_place"),
    "export: step": (export, f"{RUN} --step=7 {OUT}", "no checkpoint of step 7"),
    "export: dtype": (export, f"{RUN} --dtype=float8 {OUT}", "float8"),
    "export: truncated weights": (export, f"--model=BAD/truncated {OUT}", "safetensors"),
    "export: no output": (export, RUN, "--output"),
    "convert: source": (data_gen, "convert --source=medqaus --input=BAD/good.jsonl --output=TMP/o.jsonl", "'medqa_us'"),
    "convert: no input": (data_gen, f"{MEDQA} --input=BAD/none --output=TMP/o.jsonl", "none"),
    "convert: empty": (data_gen, f"{MEDQA} --input=BAD/empty.jsonl --output=TMP/o.jsonl", "empty.jsonl"),
    "convert: broken": (data_gen, f"{MEDQA} --input=BAD/broken.jsonl --output=TMP/o.jsonl", "broken.jsonl"),
    "convert: suffix": (data_gen, f"{MEDQA} --input=BAD/good.jsonl --output=TMP/o.txt", ".jsonl"),
    "convert: output": (data_gen, f"{MEDQA} --input=BAD/good.jsonl --output=BAD/file/o.jsonl", "o.jsonl"),
    "data_gen: command": (data_gen, "convrt --source=medqa_us", "did you mean 'convert'?"),
}


@pytest.mark.parametrize("command, arguments, said", OTHERS.values(), ids=OTHERS.keys())
def test_other_commands(bench, bad, tmp_path, monkeypatch, command, arguments, said):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    names = {"BAD": bad, "TMP": tmp_path, "RUN": bench.reference, "QUESTIONS": bench.questions}
    for name, value in names.items():
        arguments = arguments.replace(name, str(value))
    before = files(bad), files(bench.reference)
    outcome = call(command.main, *arguments.split())
    assert outcome.code == 2, outcome.err
    assert said in outcome.error
    assert (files(bad), files(bench.reference)) == before and not files(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ("mmed_jax.train", "--config=stage1", "--config.optim.lrr=1"),
        ("mmed_jax.generate", "--model=no/such/folder", "--prompt=x"),
        ("data_gen", "convert", "--source=nonsense", "--input=x", "--output=y.jsonl"),
    ],
    ids=lambda c: c[0],
)
def test_as_a_process_of_its_own(tmp_path, command):
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert not files(tmp_path)
