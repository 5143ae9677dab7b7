"""Two processes that do not mean the same run take no step; hosts without a common cache each make their own table."""

import json
import os
import shutil
import socket
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.hf_folders import hf_folder
from tests.support.training import (
    MODEL,
    WAIT,
    bench,  # noqa: F401
    files,
    finish,
    instructions,
    losses,
    metrics,
    unseen,
    write_jsonl,
)

pytestmark = pytest.mark.multidevice

# A model that is given brings its own sizes and tokenizer.
GIVEN = {k.replace(".", "__"): None for k in MODEL} | {"tokenizer": ""}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Hugging Face folder with a chat template, in two weight files."""
    return hf_folder(tmp_path_factory.mktemp("hosts") / "model", max_shard_size="64KB")


def two_disks(tmp_path, *places):
    """A folder for each of two hosts with a copy of each of `places`, that of the second a day older."""
    disks = tmp_path / "a" / "disk", tmp_path / "b" / "disk"
    for disk in disks:
        disk.mkdir(parents=True)
        for place in places:
            (shutil.copytree if place.is_dir() else shutil.copy)(place, disk / place.name)
        for path in [*disk.rglob("*")] if disk == disks[1] else ():
            os.utime(path, (path.stat().st_mtime - 86400,) * 2)
    return disks


def change(folder, name):
    """One value in the middle of a tensor of a folder's safetensors files."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name].reshape(-1)[tensors[name].size // 2] += np.float32(1)
            save_file(tensors, file, {"format": "pt"})
            return
    raise AssertionError(name)


def differences(outcomes):
    """What differs by the lines of two processes that end with 2 and the same lines."""
    assert [o.code for o in outcomes] == [2, 2], outcomes
    lines = [[line for line in o.err.splitlines() if line.startswith("error: ")] for o in outcomes]
    assert lines[0] == lines[1]
    host = socket.gethostname()
    for line in lines[0]:
        assert f" on process 0 ({host}); " in line and line.endswith(f" on process 1 ({host})"), line
    return [line.removeprefix("error: ").partition(" differs between hosts: ")[0] for line in lines[0]]


def test_hosts_that_differ_take_no_step(bench, tmp_path):  # noqa: F811
    """Keys, and one that finds another run directory: a line each, the same on both."""
    run = tmp_path / "run"
    other = {"optim__lr": 1e-2, "data__max_repeats": 2.0, "run_dir": tmp_path / "another"}
    outcomes = finish(*bench.start_two(run, optim__lr=1e-4, second=other))
    assert [o.code for o in outcomes] == [2, 2], outcomes
    host = socket.gethostname()
    for outcome in outcomes:
        assert f"joining    process {outcomes.index(outcome)} of 2 on {host}, coordinator 127.0.0.1:" in outcome.out
        lines = [line.removeprefix("error: ") for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert lines[:2] == [
            f"config.data.max_repeats differs between hosts: 4.0 on process 0 ({host}); 2.0 on process 1 ({host})",
            f"config.optim.lr differs between hosts: 0.0001 on process 0 ({host}); 0.01 on process 1 ({host})",
        ]
        assert len(lines) == 3
        assert lines[2].startswith(f"run_dir differs between hosts: one folder on process 0 ({host}); another folder")
    assert not files(run) and not files(tmp_path / "another")


def test_other_files_under_one_path_are_no_start(bench, model, tmp_path):  # noqa: F811
    """Weights, tokenizer, records, validation records: a line each, before a weight is read."""
    held_out = unseen(tmp_path / "held_out.jsonl")
    disks = two_disks(tmp_path, model, bench.records, held_out)
    change(disks[1] / "model", "model.layers.1.mlp.down_proj.weight")
    for file in (disks[1] / "model").glob("tokenizer*.json"):
        file.write_text(file.read_text().replace("<|reserved_special_token_100|>", "<|another_token|>"))
    write_jsonl(disks[1] / "stage1.jsonl", instructions()[:-1])
    write_jsonl(disks[1] / "held_out.jsonl", instructions()[:1])
    named = {"init_from": "model", "data__train": "stage1.jsonl", "data__validation": "held_out.jsonl"}
    run = tmp_path / "run"
    outcomes = finish(*bench.start_two(run, **GIVEN, **named, cwd=disks[0], second={"cwd": disks[1]}))
    assert differences(outcomes) == [
        "config.init_from (weights)",
        "config.tokenizer (contents)",
        "config.data.train (contents of stage1.jsonl)",
        "config.data.validation (contents of held_out.jsonl)",
    ]
    assert not files(run)
    assert "weights    " not in outcomes[0].out


def test_an_adapter_or_its_base_of_other_hosts_is_no_start(bench, model, tmp_path):  # noqa: F811
    """A PEFT folder of another program, which knows its base by the path alone."""
    from transformers import LlamaForCausalLM

    from tests.support.peft_folders import peft_model, save_peft

    adapted = peft_model(
        LlamaForCausalLM.from_pretrained(model), r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]
    )
    adapter = save_peft(adapted, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "model"}))
    disks = two_disks(tmp_path, model, adapter)
    keys = {**GIVEN, "init_from": "adapter", "lora__rank": 2, "lora__targets": "q,v"}
    change(disks[1] / "adapter", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
    change(disks[1] / "model", "model.layers.0.self_attn.q_proj.weight")
    outcomes = finish(*bench.start_two(tmp_path / "run", **keys, cwd=disks[0], second={"cwd": disks[1]}))
    assert differences(outcomes) == ["config.init_from (weights)", "weights beneath the adapter"]


def test_another_checkpoint_under_one_path_is_no_start(bench, tmp_path):  # noqa: F811
    """init_from is a run: on one host another training of as many steps, on the other an older step."""
    disks = two_disks(tmp_path, bench.reference)
    run = disks[1] / bench.reference.name
    (manifest,) = run.glob("checkpoints/24/manifest.json")
    entries = json.loads(manifest.read_text())
    name = next(n for n in entries["files"] if n.startswith("params/"))
    entries["files"][name][1] ^= 1
    manifest.write_text(json.dumps(entries))
    keys = {**GIVEN, "init_from": run.name}
    outcomes = finish(*bench.start_two(tmp_path / "run", **keys, cwd=disks[0], second={"cwd": disks[1]}))
    assert differences(outcomes) == ["config.init_from (weights)"]


def test_equal_files_of_other_times_are_one_start(bench, model, tmp_path):  # noqa: F811
    """Copies on two disks, one a day older and with its weights in one file: nothing differs, tables are made."""
    disks = two_disks(tmp_path, model, bench.records)
    tensors = {n: t for file in (disks[1] / "model").glob("*.safetensors") for n, t in load_file(file).items()}
    save_file(tensors, disks[1] / "model" / "model.safetensors", {"format": "pt"})
    keys = {**GIVEN, "init_from": "model", "data__train": "stage1.jsonl", "steps": 1, "more": ("--profile=5:6",)}
    outcomes = finish(*bench.start_two(tmp_path / "run", **keys, cwd=disks[0], second={"cwd": disks[1]}))
    # Refused behind the comparisons, so that nothing has to be compiled.
    assert [o.code for o in outcomes] == [2, 2], outcomes
    assert all(o.err.splitlines()[-1] == "error: --profile=5:6: the run has 1 steps" for o in outcomes), outcomes


@pytest.mark.parametrize("refused", [0, 1])
def test_one_that_is_refused_before_it_joins_is_not_waited_for(bench, tmp_path, refused):  # noqa: F811
    """Its run directory is a file: both end with that, at once, whichever of them coordinates."""
    (tmp_path / "file").touch()
    places = [tmp_path / "run", tmp_path / "run"]
    places[refused] = tmp_path / "file"
    outcomes = finish(*bench.start_two(places[0], second={"run_dir": places[1]}), timeout=100)
    assert [o.code for o in outcomes] == [2, 2], outcomes
    problem = f"run_dir={tmp_path}/file: is a file, not a folder"
    assert outcomes[refused].error == problem
    who = "process 1 (" if refused else ""
    assert outcomes[1 - refused].error.startswith(who) and outcomes[1 - refused].error.endswith(problem), outcomes


WRONG = {
    "a misspelt flag": ("--profil=1:2", "unrecognized arguments: --profil=1:2, did you mean '--profile'?"),
    "a value that is none": ("--profile=1-2", "--profile=1-2"),
    "a recipe that is not there": ("--config=none.py", "none.py"),
}


@pytest.mark.parametrize(("refused", "name"), [(0, "a misspelt flag"), *((1, name) for name in WRONG)])
def test_a_wrong_command_line_on_one_host_ends_all(bench, tmp_path, refused, name):  # noqa: F811
    """Where the others are stands in the part that can be read: both end with that line, whichever coordinates."""
    given, problem = WRONG[name]
    more = [(), ()]
    more[refused] = (given,)
    start = time.monotonic()
    outcomes = finish(*bench.start_two(tmp_path / "run", more=more[0], second={"more": more[1]}))
    assert [o.code for o in outcomes] == [2, 2], outcomes
    assert time.monotonic() - start < WAIT / 2
    said = outcomes[refused].error
    assert problem in said
    others = outcomes[1 - refused].error
    assert others == (f"process 1 ({socket.gethostname()}): {said}" if refused else said)
    assert not files(tmp_path / "run")


def test_each_host_makes_its_own_table_where_no_cache_is_shared(bench, tmp_path):  # noqa: F811
    run, few = tmp_path / "run", {"steps": 4}
    caches = tmp_path / "cache-a", tmp_path / "cache-b"
    outcomes = finish(*bench.start_two(run, data__cache_dir=caches[0], second={"data__cache_dir": caches[1]}, **few))
    assert [o.code for o in outcomes] == [0, 0], outcomes
    assert f"{caches[0]} is not shared by all hosts, so process 1 (" in outcomes[0].out
    assert [p.name for p in caches[0].iterdir()] == [p.name for p in caches[1].iterdir()]
    assert bench.train(tmp_path / "alone", **few).code == 0
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    # Compiled before the first step by all, and not once more for it.
    (compiled,) = [e for e in metrics(run).events if e["event"] == "compiled"]
    assert compiled["compile_count"] == 1 and compiled["compile_seconds"] > 0, compiled


def test_a_coordinator_that_nobody_knows(bench, tmp_path):  # noqa: F811
    process = bench.start(
        tmp_path / "run",
        distributed__coordinator="no-such-host.invalid:1234",
        distributed__num_processes=2,
        distributed__process_id=1,
    )
    (outcome,) = finish(process)
    assert outcome.code == 2 and "joining    process 1 of 2 on" in outcome.out, outcome
    start = "config.distributed.coordinator: the coordinator's host no-such-host.invalid is not known"
    assert outcome.error.startswith(start), outcome
