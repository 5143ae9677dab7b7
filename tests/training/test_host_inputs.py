"""What hosts read for themselves is known by little of it: what a digest tells apart, and which keys are covered."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save_file

from mmed_jax.common import sampled_files
from mmed_jax.common.place_flags import InputPlace
from mmed_jax.common.sampled_files import describe_contents
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.recipes import load_config
from mmed_jax.hf import weights_sample
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.weights_sample import describe_weights
from mmed_jax.parallel.host_comparison import HostsDiffer, agree
from mmed_jax.training.host_agreement import data_facts
from mmed_jax.training.host_inputs import input_facts
from tests.support.hf_folders import hf_folder
from tests.support.hosts import hosts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("inputs") / "model", max_shard_size="64KB")


def copy_of(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def change(folder, name, at):
    """Value number `at` of a tensor; None: that in the middle."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name].reshape(-1)[tensors[name].size // 2 if at is None else at] += 1
            save_file(tensors, file, {"format": "pt"})
            return
    raise AssertionError(name)


def rename_token(folder):
    """A reserved token of a tokenizer has another name."""
    for file in folder.glob("tokenizer*.json"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("<|reserved_special_token_100|>", "<|another_token|>"), encoding="utf-8")


def test_weights_of_every_tensor_are_told_apart(model, tmp_path):
    described = describe_weights(open_model(model))
    copy = copy_of(model, tmp_path)
    names = [n for file in copy.glob("*.safetensors") for n in load_file(file)]
    assert len(names) > 20 and f" bytes in {len(names)} tensors, digest " in described
    seen = {described}
    for name in names:  # one after the other, so that each change is another model
        change(copy, name, None)
        seen.add(describe_weights(open_model(copy)))
    assert len(seen) == 1 + len(names)


def test_what_files_hold_the_weights_and_when_they_were_written_does_not_count(model, tmp_path):
    copy = copy_of(model, tmp_path)
    tensors = {n: t for file in copy.glob("*.safetensors") for n, t in load_file(file).items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    os.utime(copy / "model.safetensors", (0, 0))
    assert describe_weights(open_model(copy)) == describe_weights(open_model(model))


def test_of_large_tensors_middle_and_end_are_read(model, tmp_path, monkeypatch):
    """32 bytes each; a value elsewhere is not seen, as is said."""
    monkeypatch.setattr(weights_sample, "SAMPLE", 32)
    name, described = "model.embed_tokens.weight", describe_weights(open_model(model))
    size = 512 * 32
    for at, is_seen in ((size // 2, True), (size - 1, True), (0, False)):
        copy = copy_of(model, tmp_path)
        change(copy, name, at)
        assert (describe_weights(open_model(copy)) != described) is is_seen, at
        shutil.rmtree(copy)


def test_files_are_told_apart_by_names_sizes_and_samples(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jsonl").write_text(name * 1000)
    described = describe_contents(folder)
    assert described.startswith("3,000 bytes in 3 files, digest ")
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "set")
    os.utime(moved / "a.jsonl", (0, 0))
    assert describe_contents(moved) == described
    (moved / "b.jsonl").write_text("b" * 400 + "x" + "b" * 599)
    assert describe_contents(moved) != described
    (moved / "b.jsonl").rename(moved / "d.jsonl")
    assert describe_contents(moved) != described
    assert describe_contents(tmp_path / "none") == "nothing there"
    assert describe_contents(folder / "a.jsonl").startswith("1,000 bytes in 1 file, digest ")

    # Too large to be read whole: begin, middle and end.
    monkeypatch.setattr(sampled_files, "WHOLE", 100)
    monkeypatch.setattr(sampled_files, "SAMPLE", 10)
    described, text = describe_contents(folder), "b" * 1000
    for at, is_seen in ((0, True), (505, True), (999, True), (300, False)):
        (folder / "b.jsonl").write_text(text[:at] + "x" + text[at + 1 :])
        assert (describe_contents(folder) != described) is is_seen, at


def test_every_key_that_names_something_to_read_is_compared(model, tmp_path, monkeypatch):
    """Each in turn: what one of two hosts finds there is another thing, and both are refused with that key's line."""
    read = {name for name, key in KEYS.items() if key.place is not None and issubclass(key.place, InputPlace)}
    # What is written, and what is this host's own, is compared otherwise or not at all: docs/pods.md.
    assert {name for name, key in KEYS.items() if key.place is not None} - read == {
        "run_dir",
        "data.cache_dir",
        "compile_cache",
    }
    record = {"id": "a", "language": "en", "messages": []}
    for disk in ("a", "b"):
        shutil.copytree(model, tmp_path / disk / "model")
        for name in ("train", "validation", "replay"):
            (tmp_path / disk / f"{name}.jsonl").write_text(json.dumps(record))
    config = load_config("stage1")
    with config.unlocked():
        config.init_from, config.tokenizer, config.run_dir = "model", "model", str(tmp_path / "run")
        for name in ("train", "validation", "replay"):
            config.data[name] = (f"{name}.jsonl",)

    def facts(disk):
        monkeypatch.chdir(tmp_path / disk)
        source = open_model(tmp_path / disk / "model")
        return input_facts(config, source.cfg, source.tokenizer, source, None)

    assert facts("a") == {}  # a single process compares nothing
    with config.unlocked():
        config.distributed.coordinator = "127.0.0.1:1"
    stated = facts("a")
    assert facts("b") == stated
    other = tmp_path / "b"
    changes = {
        "init_from": lambda: change(other / "model", "model.norm.weight", 0),
        "tokenizer": lambda: rename_token(other / "model"),
        "data.train": lambda: (other / "train.jsonl").write_text(""),
        "data.validation": lambda: (other / "validation.jsonl").unlink(),
        "data.replay": lambda: (other / "replay.jsonl").write_text(json.dumps(record | {"id": "b"})),
    }
    assert changes.keys() == read
    with hosts(2) as two:
        for name, apply in changes.items():
            apply()
            differs = facts("b")
            first, second = two.run(lambda c: agree(c, "run", [stated, differs][c.index]))  # noqa: B023
            assert isinstance(first, HostsDiffer) and first.lines == second.lines
            (line,) = first.lines
            assert line.startswith(f"config.{name} (") and " on process 0 (host-a); " in line, line
            assert line.endswith(" on process 1 (host-b)")
            stated = differs


def test_a_run_with_checkpoints_does_not_look_at_what_it_started_from(model, tmp_path, monkeypatch):
    source = open_model(model)
    config = load_config("stage1")
    with config.unlocked():
        config.run_dir, config.distributed.coordinator = str(tmp_path), "127.0.0.1:1"
        config.data.train = ()
    assert "config.init_from (weights)" in input_facts(config, source.cfg, source.tokenizer, source, source)
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    facts = input_facts(config, source.cfg, source.tokenizer, source, source)
    assert "config.init_from (weights)" not in facts and "weights beneath the adapter" in facts
    other = SimpleNamespace(**vars(source.cfg))
    assert (
        facts["architecture"]
        != input_facts(config, type(source.cfg)(**vars(other) | {"rope_theta": 1.0}), source.tokenizer, source, source)[
            "architecture"
        ]
    )


def test_records_that_questions_are_taken_from_are_compared():
    class Rows:
        fingerprint = "ab" * 32

        def __len__(self):
            return 3

    facts = [
        data_facts(SimpleNamespace(train=Rows(), validation={"validation": Rows()}, held_out=held_out))
        for held_out in ([{"id": "a"}], [{"id": "b"}])
    ]
    assert facts[0].keys() == {"data (train)", "data (validation)", "data (held-out records)"}
    assert [k for k in facts[0] if facts[0][k] != facts[1][k]] == ["data (held-out records)"]
