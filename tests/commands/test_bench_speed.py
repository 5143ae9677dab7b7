"""scripts/bench_train and scripts/bench_data, tiny and from end to end, and the arithmetic of their tables."""

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from scripts import bench_data, bench_data_gen, bench_generate, bench_gpu, bench_systems, bench_train
from scripts.bench_systems import IGNORED, PaddedSamples
from tests.support.training import call

TINY = [
    "--hidden_size=32",
    "--num_layers=2",
    "--num_heads=4",
    "--num_kv_heads=2",
    "--intermediate_size=64",
    "--vocab_size=4096",
    "--seq_len=128",
    "--batch_size=2",
    "--rounds=1",
    "--seconds=0.1",
    "--tokenizer=demo",
]


class WorkerHere:
    """A system in this process, which has imported jax, torch and transformers already."""

    def __init__(self, name: str, spec: Path):
        self.name, self.asked = name, []
        self.answers = bench_systems.answers(name, json.loads(spec.read_text()), self._lines())
        self.start = {**next(self.answers), "seconds_to_ready": 0.0}

    def _lines(self) -> Iterator[str]:
        while True:
            yield json.dumps(self.asked.pop())

    def turn(self, data: str, seconds: float) -> dict:
        self.asked.append({"data": data, "seconds": seconds})
        return next(self.answers)

    def close(self) -> None:
        self.answers.close()


def test_training_beside_other_systems(tmp_path, capsys, monkeypatch):
    """All but one in this process; a system in a process of its own is asked in the same words."""
    in_process = bench_train.Worker
    monkeypatch.setattr(
        bench_train, "Worker", lambda name, spec: (in_process if name == "nnx" else WorkerHere)(name, spec)
    )
    monkeypatch.setattr("mmed_jax.parallel.host_allocator.keep_freed_memory", lambda: None)
    bench_train.main([*TINY, "--against=transformers,nnx,peft", "--rank=2", f"--output={tmp_path}/out.json"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["turns"]) == ["mmed_jax", "mmed_jax-lora", "transformers", "nnx", "peft"]
    for name in found["turns"]:
        dense, real = (found["turns"][name][kind][0] for kind in ("dense", "real"))
        # The same work: random weights of one spread, the same tokens, hardly trained.
        assert dense["loss"] == pytest.approx(np.log(4096), rel=0.02)
        assert dense["supervised"] == dense["slots"] == dense["steps"] * 2 * 128
        assert 0 < real["supervised"] < real["tokens"] <= real["slots"]
        assert found["summary"][name]["peak_mib"] > 100
    table = capsys.readouterr().out
    assert all(f"| {name} | " in table for name in found["turns"])
    # A layer's q, k, v, o, gate, up, down have 64, 48, 48, 64, 96, 96, 96 inputs and outputs.
    trained = {name: row["trained"] for name, row in found["summary"].items()}
    assert trained["mmed_jax-lora"] == trained["peft"] == 2 * 2 * 512 < trained["mmed_jax"] == trained["transformers"]
    # Packed rows hold more trained targets than padded ones.
    filled = {name: row["real"]["filled"] for name, row in found["summary"].items()}
    assert found["data"]["efficiency"] > 0.7 and filled["nnx"] < filled["transformers"]


def test_ratios_are_taken_turn_by_turn():
    def system(*seconds: float) -> dict:
        turn = {"steps": 2, "slots": 100, "tokens": 80, "supervised": 50, "cpu_seconds": 1.0, "peak_mib": 10.0}
        turns = [{**turn, "seconds": s} for s in seconds]
        return {"start": {"setup_seconds": 1.0, "first_step_seconds": {"real": 3.0}}, "real": turns}

    rows = bench_train.summary({"mmed_jax": system(1.0, 10.0), "nnx": system(2.0, 20.0)}, ["real"])
    assert rows["nnx"]["real"]["ratios"] == [2.0, 2.0] and rows["nnx"]["real"]["ours_over_it"] == 2.0
    assert rows["mmed_jax"]["real"]["tokens_per_second"] == (50 + 5) / 2
    assert "| nnx | 14 (2 to 25) | 2.00 (2.00 to 2.00) |" in bench_train.markdown(rows, ["real"])


def test_padded_batches_hold_every_sample_and_its_labels(tmp_path):
    offsets = np.array([0, 3, 8, 9, 15])
    ids, trained = np.arange(1, 16), np.arange(15) % 2 == 0
    np.savez(tmp_path / "samples.npz", ids=ids, trained=trained, offsets=offsets)
    batches = iter(PaddedSamples(tmp_path / "samples.npz", 2, bucket=4))
    seen = [next(batches) for _ in range(2)]
    assert all(batch_ids.shape[1] % 4 == 0 for batch_ids, _, _ in seen)
    assert sorted(int(i) for batch_ids, _, mask in seen for i in batch_ids[mask > 0]) == ids.tolist()
    assert sorted(int(x) for _, y, _ in seen for x in y[y != IGNORED]) == ids[trained].tolist()


def test_the_input_side(tmp_path, capsys):
    bench_data.main(["--examples=60", "--seq_len=256", "--rounds=1", "--tokenizer=demo", f"--output={tmp_path}/o.json"])
    out = capsys.readouterr().out
    assert "| mmed_jax |" in out and "| tokenizer |" in out
    assert json.loads((tmp_path / "o.json").read_text())["machine"]["cores"] >= 1


def test_generation(tmp_path, capsys, monkeypatch):
    """Every set, beside transformers: all answers and scores alike. Short ones, of few lengths to compile for."""
    for name, tokens in {"LONG": 48, "COMMON": 64, "PLAIN": 24}.items():
        monkeypatch.setattr(bench_generate, name, tokens)
    bench_generate.main(
        [
            "--against=transformers",
            "--size=tiny",
            "--prompts=6",
            "--rounds=1",
            "--batch_size=3",
            f"--output={tmp_path}/o.json",
        ]
    )
    results = json.loads((tmp_path / "o.json").read_text())["results"]
    assert list(results) == ["mixed", "equal", "single", "score"]
    for name, rows in results.items():
        count = 1 if name == "single" else 6
        assert (rows["transformers"]["alike"], rows["transformers"]["of"]) == (count, count)
        assert rows["mmed_jax"]["ours_over_it"] == 1 and rows["transformers"]["ours_over_it"] > 0
    assert capsys.readouterr().out.count("| transformers |") == 4


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (bench_train, ["--rounds=x"], "argument --rounds: invalid int value: 'x'"),
        (bench_train, ["--round=1"], "unrecognized arguments: --round=1"),
        (bench_train, ["--seconds=0"], "--seconds=0.0: must be"),
        (bench_train, ["--num_kv_heads=0"], "--num_kv_heads=0: must be at least 1"),
        (bench_train, ["--num_heads=3"], "--num_heads must divide"),
        (bench_train, ["--rank=0"], "--rank=0: must be at least 1"),
        (bench_train, ["--records={}/empty.jsonl"], "empty"),
        (bench_train, ["--output={}/empty.jsonl/out.json"], "--output="),
        (bench_train, ["--output={}"], "is a folder"),
        (bench_data, ["--rounds=x"], "invalid int value"),
        (bench_data, ["--examples=0"], "--examples=0: must be at least 1"),
        (bench_data, ["--records={}/empty.jsonl"], "empty"),
        (bench_data, ["--output=/proc/x.json"], "can't be written"),
        (bench_generate, ["--size=7b"], "argument --size: invalid choice: '7b'"),
        (bench_generate, ["--prompts=0"], "--prompts=0: must be at least 1"),
        (bench_generate, ["--sets=mixed,score,sinle"], "--sets: 'sinle' is unknown, did you mean 'single'"),
        (bench_generate, ["--model={}/none"], "none"),
        (bench_generate, ["--output=/proc/x.json"], "can't be written"),
        (bench_gpu, ["--model=foo"], "argument --model: invalid choice: 'foo'"),
        (bench_gpu, ["--smoke", "--output={}/empty.jsonl"], "is a file; name a folder"),
        (bench_gpu, ["--smoke", "--output=/proc/bench"], "--output=/proc/bench: can't be written"),
        (bench_gpu, ["--smoke", "--minutes=nan"], "--minutes=nan: must be"),
        (bench_data_gen, ["--method=foo"], "invalid choice: 'foo'"),
        (bench_data_gen, ["--concurrency=0"], "--concurrency=0: must be at least 1"),
    ],
)
def test_wrong_values_are_one_line_before_anything_is_measured(module, arguments, message, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    measuring = {
        bench_train: "measure",
        bench_data: "measure",
        bench_gpu: "run_case",
        bench_data_gen: "report",
        bench_generate: "measure",
    }
    with mock.patch.object(module, measuring[module], side_effect=AssertionError("measured")):
        outcome = call(module.main, *(a.format(tmp_path) for a in arguments))
    assert outcome.code == 2 and message in outcome.error and len(outcome.err.splitlines()) == 1, outcome.err


@pytest.mark.parametrize(
    "module, argument",
    [(bench_train, "--against=transformer"), (bench_data, "--against=tlr"), (bench_generate, "--against=transformer")],
)
def test_unknown_systems_are_refused(module, argument):
    with pytest.raises(UserError, match="--against: .* did you mean '(transformers|trl)'"):
        module.main([argument])
