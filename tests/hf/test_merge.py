"""Merging on the way in: the same on every mesh and in blocks, and never a second model in memory."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.hf import merge
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.peft_folder import save_adapter
from mmed_jax.hf.save import save_pretrained
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import logical_axes
from mmed_jax.model.lora import LINEAR_TARGETS, TARGETS, LoraSpec
from mmed_jax.parallel.sharding import make_mesh, param_shardings
from tests.support.hf_folders import random_params, tiny_tokenizer
from tests.support.peft_folders import lora_run, random_adapter

CFG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)


def spec(**kinds):
    layers = {t: 2 if t in LINEAR_TARGETS else 1 for t in TARGETS}
    return LoraSpec(4, 8.0, tuple((t, (4,) * n, (8.0,) * n) for t, n in layers.items()), **kinds)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(base as a folder, LoRA run on it, DoRA run on it, LoRA run on nf4 codes of it)"""
    place = tmp_path_factory.mktemp("in")
    tok = tiny_tokenizer(place / "tok")
    base = save_pretrained(place / "base", random_params(CFG), CFG, tok, dtype="float32")
    runs = [
        lora_run(place / name, s, random_adapter(s, CFG), open_model(base), tok, quantization=kind)
        for name, s, kind in (
            ("lora", spec(), "compute"),
            ("dora", spec(dora=True), "compute"),
            ("nf4", spec(), "nf4"),
        )
    ]
    return base, *runs


@pytest.mark.parametrize("shape", [{"fsdp": 4}, {"tensor": 2}, {"fsdp": 2, "tensor": 2}])
def test_the_same_on_every_mesh_and_in_blocks(folders, shape, monkeypatch):
    """Rounded to bfloat16 as on one device, and in float32 to the last bits of the small product."""
    mesh = make_mesh(
        **{"data": 1, "fsdp": 1, "tensor": 1, **shape}, devices=jax.devices()[: np.prod([*shape.values()])]
    )
    places = param_shardings(mesh, logical_axes(CFG))
    for folder in folders[1:]:
        one = open_model(folder).load_params()
        source = open_model(folder)
        with monkeypatch.context() as m:
            m.setattr(merge, "BLOCK", 64 * 24)  # rows of a matrix in several blocks, the last one smaller
            many = source.load_params(shardings=places)
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(x.sharding)), many, places)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-7), one, many)


def test_a_base_that_is_a_run_on_a_mesh(folders, tmp_path):
    from mmed_jax.checkpoints.checkpointer import Checkpointer
    from mmed_jax.hf.save import write_assets

    tok = tiny_tokenizer(tmp_path / "tok")
    with Checkpointer(tmp_path / "f", every_steps=1, every_minutes=0, keep_last=1, keep_best=0, async_=False) as saver:
        state = {"params": random_params(CFG), "opt_state": {}, "step": jnp.int32(1)}
        saver.maybe_save(1, state, data_state={}, config={"name": "stage1"}, metrics={})
    write_assets(tmp_path / "f" / "hf_assets", CFG, tok, dtype="float32")
    s = spec()
    run = lora_run(tmp_path / "lora", s, random_adapter(s, CFG), open_model(tmp_path / "f"), tok)
    places = param_shardings(make_mesh(data=1, fsdp=4, tensor=2), logical_axes(CFG))
    expected = open_model(folders[1]).load_params(dtype=jnp.bfloat16)
    merged = open_model(run).load_params(shardings=places, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(x.sharding)), merged, places)


MEMORY = """
import gc, json, sys
sys.path[:0] = {paths!r}
import conftest, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from mmed_jax.hf.open_model import open_model

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

folder = Path({folder!r})
source = open_model(folder / "base", adapter=folder / "adapter")
jnp.zeros(3).block_until_ready()
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
params = source.load_params(dtype=jnp.bfloat16)
print(json.dumps([status("VmHWM") - before, sum(x.nbytes for x in jax.tree.leaves(params))]))
"""


def test_merging_streams(tmp_path, repo):
    """One leaf and the blocks of one matrix beside the result, whatever the model's size."""
    cfg = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=1600, num_layers=8, num_heads=16, num_kv_heads=16,
        head_dim=64,
    )  # fmt: skip
    params = jax.tree.map(lambda x: x * np.float32(0.1), random_params(cfg))
    save_pretrained(tmp_path / "base", params, cfg, tiny_tokenizer(tmp_path / "tok"), dtype="bfloat16")
    s = LoraSpec(8, 16.0, tuple((t, (8,) * 8, (16.0,) * 8) for t in LINEAR_TARGETS))
    save_adapter(tmp_path / "adapter", random_adapter(s, cfg), s, cfg, base_name="org/base")
    code = MEMORY.format(paths=[str(repo / "tests"), str(repo)], folder=str(tmp_path))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    peak, total = json.loads(out.stdout.splitlines()[-1])
    largest = 8 * 1024 * 1600 * 2
    print(f"merging {total / 1e6:.0f} MB: {peak / 1e6:.0f} MB at most")
    assert total > 140e6 and peak < total + largest + 100e6
