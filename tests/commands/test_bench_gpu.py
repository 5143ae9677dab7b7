"""scripts/bench_gpu: tried on the CPU from end to end; refused without a GPU; its arithmetic of memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.model.config import PRESETS
from scripts import bench_gpu, bench_gpu_systems

ROOT = Path(__file__).resolve().parents[2]


def test_smoke(tmp_path, capsys, monkeypatch):
    """The products in a process of their own, as all is for users; the rest in this one, which has imported it all."""
    in_process = bench_gpu.run_case

    def run_case(system: str, case: dict, smoke: bool) -> tuple[dict | None, str]:
        if system == "matmul":
            return in_process(system, case, smoke)
        given, result = tmp_path / "case.json", tmp_path / "result.json"
        given.write_text(json.dumps(case))
        assert bench_gpu_systems.main([system, str(given), str(result)]) == 0, capsys.readouterr().err
        return json.loads(result.read_text()), ""

    monkeypatch.setattr(bench_gpu, "run_case", run_case)
    bench_gpu.main(["--smoke", f"--output={tmp_path}"])
    report = json.loads((tmp_path / "bench_gpu.json").read_text())
    ran = [(case["system"], case["tuning"]) for case in report["cases"]]
    adapters = [(system, tuning) for tuning in ("lora", "qlora") for system in ("mmed_jax", "peft")]
    assert ran == [("mmed_jax", "full"), ("transformers", "full"), *adapters]
    *cases, last = report["cases"]
    if importlib.util.find_spec("bitsandbytes") is None:
        assert "bitsandbytes" in last["missing"]
    else:
        cases.append(last)
    for case in cases:
        assert case["missing"] == "" and case["summary"]["tokens_per_second"] > 0
        # The same work: random weights of one spread, the same tokens, hardly trained.
        assert case["result"]["loss"] == pytest.approx(np.log(256), rel=0.1)
    assert 0 < len(report["cases"][0]["result"]["kernels"]) <= bench_gpu_systems.KERNELS
    table = (tmp_path / "bench_gpu.md").read_text()
    assert "| mmed_jax | full | 2 x 256 packed | adafactor | minimal_ctx | reference |" in table
    assert table in capsys.readouterr().out


def test_the_script_hands_on_its_arguments(tmp_path):
    (tmp_path / "file").touch()
    command = ["bash", str(ROOT / "scripts/bench_gpu.sh"), "--smoke", f"--output={tmp_path / 'file'}"]
    env = {**os.environ, "PYTHON_BIN": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 2 and "file: is a file; name a folder" in done.stderr


def test_refused_without_a_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no NVIDIA GPU.*--smoke"):
        bench_gpu.main([])


def test_a_system_that_fails_is_said(tmp_path):
    result, why = bench_gpu.run_case("abacus", {}, smoke=True)
    assert result is None and "abacus" in why


def test_remat_by_memory():
    cfg = PRESETS["llama3-8b"]
    h200, h100 = 143771 * 2**20, 81559 * 2**20  # as nvidia-smi reports them
    assert bench_gpu.policies_that_fit(cfg, "adafactor", 16384, h200)[0] == "minimal_ctx"
    assert bench_gpu.policies_that_fit(cfg, "adamw", 16384, h200)[0] == "qkv"
    assert bench_gpu.policies_that_fit(cfg, "adafactor", 32768, h100) == ["full"]


def test_memory_of_adapters():
    """By hand, 8B: 6.98e9 of its 8.03e9 parameters are in linear modules of layers; 41.9e6 in the adapter."""
    cfg = PRESETS["llama3-8b"]
    lora, qlora = (bench_gpu.resident_bytes(cfg, tuning, "adamw") for tuning in ("lora", "qlora"))
    assert lora == 2 * 8_030_261_248 + 16 * 41_943_040
    linear = 32 * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert lora - qlora == linear * (2 - 0.5 - 1 / 32)
    assert bench_gpu.policies_that_fit(cfg, "adamw", 16384, 81559 * 2**20, "lora")[0] == "minimal_ctx"


def test_remat_arithmetic_is_what_jax_keeps():
    """By hand, 8B, bytes a token and layer: layer input 8192; q, k, v 12288; context 8192, attn_out 8192, MLP 57344."""
    cfg = PRESETS["llama3-8b"]
    kept = {p: bench_gpu.activation_bytes(cfg, p) / cfg.num_layers for p in bench_gpu.REMAT}
    # 128: the float32 log-sum-exp of 32 heads.
    assert kept == {"full": 8192, "qkv": 20480, "minimal_ctx": 94208 + 128}


@pytest.mark.parametrize("packed", [True, False])
def test_rows(packed):
    batch = bench_gpu_systems.packed_rows(2, 4096, packed, vocab=100)
    for segments, positions in zip(batch["segment_ids"], batch["positions"]):
        starts = np.flatnonzero(positions == 0)
        assert (len(starts) > 4) == packed and segments[0] == 1
        lengths = np.diff([*starts, 4096])
        assert (np.repeat(np.arange(1, len(starts) + 1), lengths) == segments).all()
        assert not packed or (lengths[:-1].min() >= 64 and lengths.max() <= 1024)
