"""Reading Hugging Face folders: right leaves, any mesh, bounded memory, every fault named."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.hf import safetensors
from mmed_jax.hf.load import load_config, load_params, read_tensors
from mmed_jax.hf.mapping import flatten, group_names, hf_tensors
from mmed_jax.hf.safetensors import DTYPES, write_header, write_tensor
from mmed_jax.model.llama import forward, logical_axes, unembed
from mmed_jax.parallel.sharding import make_mesh, param_shardings
from tests.support.hf_folders import hf_folder, raw_tensors, torch_llama

VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one kv head": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 7e3}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("hf") / "model", dtype="bfloat16", max_shard_size="20KB")


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_read_folder_equal_transformers(tmp_path, variant):
    import torch

    model = torch_llama(**VARIANTS[variant])
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    cfg = load_config(tmp_path)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 80)).astype(np.int32)  # past the window of 64
    params = load_params(tmp_path, cfg)
    with torch.no_grad():
        want = model(torch.from_numpy(tokens).long()).logits.numpy()
    got = np.asarray(unembed(params, cfg, forward(params, cfg, tokens)))
    assert np.abs(got - want).max() < 1e-4 * max(1, np.abs(want).max())


def test_every_leaf_is_the_tensor_of_that_name(folder):
    cfg = load_config(folder)
    params, raw = load_params(folder, cfg), raw_tensors(folder)
    # Spelled out, so that a slip in the table is not compared with itself.
    names = {
        "attn_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    seen = 0
    for leaf, module in names.items():
        for i in range(3):
            code, shape, data = raw[f"model.layers.{i}.{module}.weight"]
            row = np.asarray(params["layers"][leaf]["weight"][i])
            assert (code, shape, data) == ("BF16", row.shape, row.tobytes())
            seen += 1
    for leaf, name in {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}.items():
        assert np.asarray(params[leaf]["weight"]).tobytes() == raw[f"{name}.weight"][2]
        seen += 1
    assert seen == len(raw) == len(hf_tensors(cfg))


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}])
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_sharded_load_equals_unsharded(folder, sizes, dtype):
    cfg = load_config(folder)
    shardings = param_shardings(make_mesh(**{"fsdp": 1, **sizes}), logical_axes(cfg))
    whole = flatten(load_params(folder, cfg, dtype=dtype))
    parts = flatten(load_params(folder, cfg, dtype=dtype, shardings=shardings))
    assert whole.keys() == parts.keys()
    for path, leaf in parts.items():
        assert leaf.sharding == flatten(shardings)[path] and leaf.dtype == (dtype or jnp.bfloat16)
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(whole[path])[shard.index])


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16"])
def test_casts_equal_torch(tmp_path, source, target):
    import torch

    hf_folder(tmp_path / "m", dtype=source, tokenizer=False, num_hidden_layers=1)
    cfg = load_config(tmp_path / "m")
    assert load_params(tmp_path / "m", cfg)["layers"]["gate"]["weight"].dtype == jnp.dtype(source)
    got = load_params(tmp_path / "m", cfg, dtype=target)["layers"]["gate"]["weight"]
    want = torch_llama(num_hidden_layers=1).to(getattr(torch, source)).model.layers[0].mlp.gate_proj.weight
    want = want.detach().to(getattr(torch, target))
    assert got.dtype == jnp.dtype(target)
    np.testing.assert_array_equal(np.asarray(got[0], np.float32), want.float().numpy())


@pytest.mark.parametrize("block", [1, 100, 1 << 25])
def test_any_part_of_a_tensor(tmp_path, monkeypatch, block):
    monkeypatch.setattr(safetensors, "MAP_BYTES", block)
    array = np.random.default_rng(0).standard_normal((13, 7)).astype(np.float32)
    with (tmp_path / "x.safetensors").open("wb") as f:
        write_header(f, [("before", np.dtype(np.float16), (3,)), ("x", array.dtype, array.shape)])
        write_tensor(f, np.zeros(3, np.float16))
        write_tensor(f, array)
    stored = safetensors.read_header(tmp_path / "x.safetensors")["x"]
    for index in ((slice(None), slice(None)), (slice(4, 11), slice(2, 5)), (slice(12, 13), slice(6, 7))):
        out = np.empty(array[index].shape, np.float16)
        stored.read(index, out)
        np.testing.assert_array_equal(out, array[index].astype(np.float16))


def test_both_rope_schemas_and_end_tokens(folder):
    cfg = load_config(folder)
    assert (cfg.rope_theta, cfg.rope_scaling.factor, cfg.rms_norm_eps) == (123456.0, 4.0, 3e-4)
    assert cfg.eos_token_id == (257, 265)
    config = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in config


def test_generation_config_adds_end_tokens(tmp_path):
    path = hf_folder(tmp_path / "m", tokenizer=False, eos_token_id=257)
    assert load_config(path).eos_token_id == (257,)
    (path / "generation_config.json").write_text('{"eos_token_id": [257, 264, 265]}')
    assert load_config(path).eos_token_id == (257, 264, 265)


def _rewrite(path, edit):
    """Stores the folder again in one file after `edit` changed {name: array}."""
    raw = raw_tensors(path)
    arrays = {n: np.frombuffer(data, DTYPES[code]).reshape(shape).copy() for n, (code, shape, data) in raw.items()}
    edit(arrays)
    for file in path.glob("*.safetensors*"):
        file.unlink()
    with (path / "model.safetensors").open("wb") as f:
        write_header(f, [(n, a.dtype, a.shape) for n, a in arrays.items()])
        for a in arrays.values():
            write_tensor(f, a)


def test_all_problems_are_named_at_once(tmp_path):
    path = hf_folder(tmp_path / "m", tokenizer=False)

    def spoil(a):
        for i in range(3):
            a[f"model.layers.{i}.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        del a["model.norm.weight"], a["model.layers.1.mlp.up_proj.weight"]
        a["model.layers.2.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)
        a["score.weight"] = np.zeros((2, 32), np.float32)

    _rewrite(path, spoil)
    with pytest.raises(UserError) as e:
        read_tensors(path, load_config(path))
    for part in (
        "missing: model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "unexpected: model.layers.{0-2}.self_attn.q_proj.bias, score.weight",
        "wrong shape: model.layers.2.self_attn.k_proj.weight is [32, 32], config.json says [16, 32]",
    ):
        assert part in str(e.value)
    assert "\n" not in str(e.value)


def test_harmless_buffers_and_a_stored_tied_head(tmp_path):
    path = hf_folder(tmp_path / "m", tokenizer=False, tie_word_embeddings=True)
    cfg = load_config(path)
    want = jax.tree.map(np.asarray, load_params(path, cfg))

    def add(a):
        a["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
        a["lm_head.weight"] = a["model.embed_tokens.weight"].copy()

    _rewrite(path, add)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, load_params(path, cfg)), want)

    def change(a):
        a["lm_head.weight"][-1, -1] += 1

    _rewrite(path, change)
    with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight"):
        load_params(path, cfg)


def test_quantised_weights_are_refused(tmp_path):
    path = hf_folder(tmp_path / "m", tokenizer=False, num_hidden_layers=1)
    file = path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(UserError, match="dtype I32 .*no quantised weights: download .*lora.base=nf4"):
        read_tensors(path, load_config(path))


def _edit_config(**changes):
    def edit(path):
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


def _cut(path):
    file = path / "model-00002-of-00005.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _only_bin(path):
    for file in path.glob("*.safetensors*"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"PK")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n"
FAULTS = {
    "no config": (lambda p: (p / "config.json").unlink(), "has no config.json"),
    "Meta's format": (
        lambda p: ((p / "config.json").unlink(), (p / "params.json").write_text("{}")),
        "Meta's original format",
    ),
    "config is no json": (lambda p: (p / "config.json").write_text('{\n "a": \n'), r"config.json:3: not JSON"),
    "config is a list": (lambda p: (p / "config.json").write_text("[]"), "must be a JSON object"),
    "config is a pointer": (lambda p: (p / "config.json").write_bytes(POINTER), "config.json is a git-lfs pointer"),
    "other model": (_edit_config(model_type="mistral"), r"model/config.json: model_type=\"mistral\" is not supported"),
    "quantised": (_edit_config(quantization_config={"bits": 4}), "quantization_config.*unquantised.*lora.base=nf4"),
    "only pickle": (_only_bin, "pytorch_model.*pickle files are not read.*save_pretrained"),
    "no weights": (lambda p: [f.unlink() for f in p.glob("*.safetensors*")], "gated model"),
    "one shard missing": (
        lambda p: (p / "model-00003-of-00005.safetensors").unlink(),
        "1 of 5 weight files are missing: model-00003-of-00005.safetensors",
    ),
    "shard is a pointer": (
        lambda p: (p / "model-00001-of-00005.safetensors").write_bytes(POINTER),
        "model-00001-of-00005.safetensors is a git-lfs pointer",
    ),
    "shard cut short": (_cut, r"model-00002-of-00005.safetensors is cut short: \d+ bytes of \d+"),
    "shard empty": (lambda p: (p / "model-00002-of-00005.safetensors").write_bytes(b""), "is cut short"),
    "shard is html": (
        lambda p: (p / "model-00002-of-00005.safetensors").write_bytes(b"<!DOCTYPE html><html>gated</html>"),
        "not a safetensors file",
    ),
    "index names a path": (
        lambda p: (p / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "must lie beside it: ../x.safetensors",
    ),
    "index without map": (lambda p: (p / "model.safetensors.index.json").write_text("{}"), "weight_map must be"),
    "more layers in the config": (
        _edit_config(num_hidden_layers=4),
        r"missing: model.layers.3.input_layernorm.weight, .*model.layers.3.self_attn.v_proj.weight",
    ),
    "tied in the config, not in the file": (_edit_config(tie_word_embeddings=True), "lm_head.weight differs"),
    "larger vocabulary": (
        _edit_config(vocab_size=600),
        r"wrong shape: .*model.embed_tokens.weight is \[512, 32\], config.json says \[600, 32\]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_clear_line(folder, tmp_path, fault):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    edit, message = FAULTS[fault]
    edit(path)
    with pytest.raises(UserError, match=message) as e:
        load_params(path, load_config(path))
    assert "\n" not in str(e.value) and str(path) in str(e.value)


def test_hub_names_and_missing_folders(tmp_path):
    with pytest.raises(UserError, match="hf download meta-llama/Llama-3.1-8B-Instruct --local-dir"):
        load_config("meta-llama/Llama-3.1-8B-Instruct")
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        load_config(tmp_path / "file")


def test_group_names():
    names = [f"model.layers.{i}.b" for i in (0, 1, 2, 5, 7, 8)] + ["model.layers.3.a", "x"]
    assert group_names(names) == "model.layers.3.a, model.layers.{0-2,5,7-8}.b, x"


MEMORY = """
import json, sys
sys.path[:0] = {paths!r}
import conftest, jax, numpy as np
from pathlib import Path
from mmed_jax.hf.load import load_config, load_params
from mmed_jax.model.llama import logical_axes
from mmed_jax.parallel.sharding import make_mesh, param_shardings

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

cfg = load_config({folder!r})
shardings = param_shardings(make_mesh(fsdp={fsdp}, devices=jax.devices()[:{fsdp}]), logical_axes(cfg))
jax.block_until_ready(jax.device_put(np.ones(8, np.float32)))
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
params = load_params({folder!r}, cfg, shardings=shardings)
sizes = [x.nbytes for x in jax.tree.leaves(params)]
print(json.dumps([status("VmHWM") - before, sum(sizes), max(sizes)]))
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    """A folder of 300 MB in three files; its largest leaf has 50 MB. Written here without a model in memory."""
    from mmed_jax.hf.save import plan_files
    from mmed_jax.model.config import LlamaConfig, to_hf

    path = tmp_path_factory.mktemp("large")
    cfg = LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=1600,
        num_layers=8,
        num_heads=16,
        num_kv_heads=16,
        head_dim=64,
    )
    (path / "config.json").write_text(json.dumps(to_hf(cfg, "float32")))
    tensors = hf_tensors(cfg)
    files = plan_files(tensors, {t.path: np.dtype(np.float32) for t in tensors}, 110_000_000)
    for name, inside in files.items():
        with (path / name).open("wb") as f:
            write_header(f, [(t.name, np.dtype(np.float32), t.shape) for t in inside])
            for t in inside:
                write_tensor(f, np.full(t.shape, 0.5, np.float32))
    weight_map = {t.name: name for name, inside in files.items() for t in inside}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize("fsdp", [1, 8])
def test_extra_host_memory_is_about_one_leaf(large_folder, repo, fsdp):
    code = MEMORY.format(paths=[str(repo / "tests"), str(repo)], folder=str(large_folder), fsdp=fsdp)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    peak, total, largest = json.loads(out.stdout.splitlines()[-1])
    print(f"fsdp {fsdp}: peak {peak / 1e6:.0f} MB, all {total / 1e6:.0f} MB, largest leaf {largest / 1e6:.0f} MB")
    assert total > 250e6 and largest < total / 5
    # One leaf, the mapped block of a stored tensor, and slack for the allocator.
    assert peak - total < 1.25 * largest + 40e6
