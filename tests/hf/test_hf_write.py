"""Writing Hugging Face folders: bytes kept, readable by others, checked, and nothing lost when it fails."""

import dataclasses
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash
from mmed_jax.hf import save, verify
from mmed_jax.hf.gather import gather
from mmed_jax.hf.load import load_config, load_params
from mmed_jax.hf.mapping import flatten, hf_tensors
from mmed_jax.hf.save import MARKER, plan_files, save_pretrained
from mmed_jax.hf.weight_stream import FolderStream
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import forward, logical_axes, unembed
from mmed_jax.parallel.sharding import make_mesh, param_shardings
from tests.support.hf_folders import hf_folder, random_params, raw_tensors, tiny_tokenizer

VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
}
CFG = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    bos_token_id=256,
    eos_token_id=(257,),
    rope_theta=5e4,
    rms_norm_eps=3e-4,
)


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def params():
    return random_params(CFG)


ONE_FILE, SOME_FILES = 5_000_000_000, 20_000


@pytest.mark.parametrize(
    "variant, dtype, shard",
    [
        ("untied", "float32", ONE_FILE),
        ("untied", "bfloat16", ONE_FILE),
        ("untied", "float16", ONE_FILE),
        ("untied", "bfloat16", SOME_FILES),
        ("untied", "float32", SOME_FILES),
        ("untied", "float16", SOME_FILES),
        ("tied", "bfloat16", SOME_FILES),
        ("tied", "bfloat16", ONE_FILE),
        ("biases", "bfloat16", SOME_FILES),
        ("biases", "bfloat16", ONE_FILE),
    ],
)
def test_bytes_are_kept(tmp_path, tok, variant, dtype, shard):
    changes = {"num_hidden_layers": 2, "dtype": dtype, "max_shard_size": shard, "tokenizer": False}
    source = hf_folder(tmp_path / "in", **changes, **VARIANTS[variant])
    cfg = load_config(source)
    out = save_pretrained(tmp_path / "out", FolderStream(source, cfg), cfg, tok, max_shard_bytes=shard)
    assert raw_tensors(out) == raw_tensors(source)
    files = sorted(p.name for p in out.glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (shard == ONE_FILE) != (out / "model.safetensors.index.json").exists()
    assert [p.name for p in tmp_path.glob("out*")] == ["out"]


def test_arrays_of_any_kind_give_the_same_bytes(tmp_path, tok, params):
    """Of one device, of a mesh (also split by layers), of numpy."""
    mesh = make_mesh(fsdp=2, tensor=2, data=2)
    placed = flatten(jax.device_put(params, param_shardings(mesh, logical_axes(CFG))))
    down = ("layers", "down", "weight")
    placed[down] = jax.device_put(placed[down], NamedSharding(mesh, PartitionSpec("fsdp")))
    plain = flatten(jax.tree.map(np.asarray, params))
    out = raw_tensors(save_pretrained(tmp_path / "out", params, CFG, tok, dtype="bfloat16"))
    for t in hf_tensors(CFG):
        want = (plain[t.path] if t.layer is None else plain[t.path][t.layer]).astype(jnp.bfloat16)
        assert out.pop(t.name) == ("BF16", t.shape, want.tobytes())
        for flat in (placed, plain):
            array, finite = gather(flat[t.path], t.layer, np.dtype(jnp.bfloat16))
            assert finite and array.tobytes() == want.tobytes()
    assert not out


def test_layers_split_over_devices():
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    leaf = jax.device_put(rows, NamedSharding(make_mesh(fsdp=2, data=4), PartitionSpec("fsdp")))
    for layer in range(4):
        np.testing.assert_array_equal(gather(leaf, layer, np.dtype(np.float32))[0], rows[layer])


def test_mixed_dtypes_stay_mixed(tmp_path, tok, params):
    """Some checkpoints keep their norms in float32."""
    mixed = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    mixed["layers"]["attn_norm"]["weight"] = params["layers"]["attn_norm"]["weight"]
    first = save_pretrained(tmp_path / "first", mixed, CFG, tok, dtype=None)
    codes = {name: code for name, (code, _, _) in raw_tensors(first).items()}
    assert {n for n, c in codes.items() if c == "F32"} == {f"model.layers.{i}.input_layernorm.weight" for i in (0, 1)}
    assert json.loads((first / "config.json").read_text())["dtype"] == "bfloat16"
    second = save_pretrained(tmp_path / "second", FolderStream(first, CFG), CFG, tok)
    assert raw_tensors(second) == raw_tensors(first)


def test_the_cast_is_torchs(tmp_path, tok, params):
    import torch

    save_pretrained(tmp_path / "out", params, CFG, tok, dtype="bfloat16")
    want = torch.from_numpy(np.array(params["layers"]["gate"]["weight"][1])).to(torch.bfloat16)
    code, _, data = raw_tensors(tmp_path / "out")["model.layers.1.mlp.gate_proj.weight"]
    assert code == "BF16" and data == want.view(torch.int16).numpy().tobytes()


def test_the_safetensors_library_opens_it(tmp_path, tok, params):
    from safetensors import safe_open

    save_pretrained(tmp_path / "out", params, CFG, tok, dtype="float32", max_shard_bytes=30_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert set(index["weight_map"]) == {t.name for t in hf_tensors(CFG)}
    flat = flatten(params)
    for t in hf_tensors(CFG):
        with safe_open(tmp_path / "out" / index["weight_map"][t.name], framework="np") as f:
            assert f.metadata() == {"format": "pt"}
            want = flat[t.path] if t.layer is None else flat[t.path][t.layer]
            np.testing.assert_array_equal(f.get_tensor(t.name), np.asarray(want))


def test_files_are_no_larger_than_asked():
    tensors = hf_tensors(CFG)
    kinds = {t.path: np.dtype(np.float32) for t in tensors}
    files = plan_files(tensors, kinds, 30_000)
    assert [t for inside in files.values() for t in inside] == tensors
    sizes = [[t.size * 4 for t in inside] for inside in files.values()]
    assert all(sum(s) <= 30_000 or len(s) == 1 for s in sizes) and any(len(s) > 1 for s in sizes)
    assert list(files) == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_it_and_says_the_same(tmp_path, variant):
    """No missing or unexpected keys; greedy tokens of the exported folder equal ours; the same rendered chat."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = hf_folder(tmp_path / "in", dtype="bfloat16", **VARIANTS[variant])
    cfg, tok = load_config(source), load_tokenizer(source)
    params = load_params(source, cfg)
    out = save_pretrained(tmp_path / "out", params, cfg, tok, max_shard_bytes=30_000)
    model, loading = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(loading[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    auto = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": " What is 발열? "}, {"role": "assistant", "content": "Fieber <b>"}]
    for flag in (False, True):
        assert auto.apply_chat_template(chat, tokenize=False, add_generation_prompt=flag) == tok.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=flag
        )
    assert model.generation_config.eos_token_id == [257, 264, 265] and model.generation_config.pad_token_id == 260

    prompt = auto.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([prompt])
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 64, "eos_token_id": -1}
    generated = model.generate(ids, **settings)[0].tolist()
    tokens_bt = np.zeros((1, len(prompt) + 64), np.int32)
    tokens_bt[0, : len(prompt)] = prompt
    step = jax.jit(lambda tokens, t: unembed(params, cfg, forward(params, cfg, tokens)[0, t]).argmax())
    for t in range(len(prompt), tokens_bt.shape[1]):
        tokens_bt[0, t] = step(tokens_bt, t - 1)
    assert len(set(generated[len(prompt) :])) > 8  # not one token over and over
    assert tokens_bt[0].tolist() == generated


def test_configs(tmp_path, tok, params):
    # 2 is transformers' default end token; in a Llama-3 vocabulary it is an ordinary character.
    cfg = dataclasses.replace(CFG, eos_token_id=(2, 258))
    source = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": 257, "_from_model_config": True}
    save_pretrained(tmp_path / "out", params, cfg, tok, source_generation=source, info={"step": 7})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    marker = json.loads((tmp_path / "out" / MARKER).read_text())
    assert config["eos_token_id"] == [257, 258, 264, 265] and config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert (config["bos_token_id"], config["pad_token_id"]) == (256, 260)
    # transformers 4.57 warns of a wrong tokenizer unless a version up to 4.57.2 is there.
    assert "4.43.0" == config["transformers_version"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e4
    assert generation == {
        "temperature": 0.6,
        "top_p": 0.9,
        "do_sample": True,
        "bos_token_id": 256,
        "eos_token_id": [257, 258, 264, 265],
        "pad_token_id": 260,
    }
    assert marker["step"] == 7 and marker["tokenizer_hash"] == tokenizer_hash(tok)
    assert set(marker["files"]) | {MARKER} == {p.name for p in (tmp_path / "out").iterdir()}


def test_progress_counts_bytes(tmp_path, tok, params):
    seen = []
    save_pretrained(tmp_path / "out", params, CFG, tok, progress=lambda done, total: seen.append((done, total)))
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})
    assert seen[-1][0] == seen[-1][1] == sum(x.size * 2 for x in jax.tree.leaves(params))


# The check before the final name


@pytest.fixture
def exported(tmp_path, tok, params):
    return save_pretrained(tmp_path / "out", params, CFG, tok, dtype="float32")


def _edit_json(name, **changes):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return edit


def _flip(folder):
    """Changes one weight by a little: bit 20 of the last value of the last tensor."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 0x10
    file.write_bytes(data)


def _swap(folder):
    """Exchanges the names of two tensors of one shape."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    a, b = b"model.layers.0.mlp.up_proj", b"model.layers.1.mlp.up_proj"
    file.write_bytes(data.replace(a, b"@swapped@").replace(b, a).replace(b"@swapped@", b))


SPOILED = {
    "theta": (_edit_json("config.json", rope_theta=6e4, rope_parameters=None), "rope_theta"),
    "eps": (_edit_json("config.json", rms_norm_eps=1e-5), "rms_norm_eps"),
    "heads": (_edit_json("config.json", num_attention_heads=2, head_dim=16, num_key_value_heads=1), "num_heads"),
    "one weight": (_flip, "other logits"),
    "two tensors exchanged": (_swap, "other logits"),
    "tensor gone": (lambda f: _rename(f, b"model.norm.weight", b"model.nerm.weight"), "missing: model.norm.weight"),
    "tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "cannot be read back"),
    "template": (lambda f: _other_tokenizer(f), "tokenizer is not the one"),
}


def _rename(folder, old, new):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(old, new))


def _other_tokenizer(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["ignore_merges"] = False
    (folder / "tokenizer.json").write_text(json.dumps(state))


@pytest.mark.parametrize("what", SPOILED)
def test_verify_sees(exported, tok, params, what):
    kinds = {p: np.dtype(np.float32) for p in flatten(params)}
    assert verify.verify_export(exported, params, CFG, dtypes=kinds, tokenizer=tok) < 1e-6
    edit, message = SPOILED[what]
    edit(exported)
    with pytest.raises(WorkError, match=message):
        verify.verify_export(exported, params, CFG, dtypes=kinds, tokenizer=tok)


def test_verify_sees_the_wrong_dtype(exported, tok, params):
    with pytest.raises(WorkError, match="as F32, not bfloat16"):
        verify.verify_export(exported, params, CFG, dtypes={p: np.dtype(jnp.bfloat16) for p in flatten(params)})


def test_nothing_appears_when_the_check_fails(tmp_path, tok, params, monkeypatch):
    monkeypatch.setattr(save, "write_tensor", lambda f, a: f.write((a * 1.01).astype(a.dtype).tobytes()))
    with pytest.raises(WorkError, match="other values of model.embed_tokens.weight"):
        save_pretrained(tmp_path / "out", params, CFG, tok)
    assert list(tmp_path.iterdir()) == []


# Failures


@pytest.mark.parametrize("value, dtype", [(np.nan, "bfloat16"), (np.inf, "float32"), (1e5, "float16")])
def test_values_that_are_not_finite_stop_it(tmp_path, tok, params, value, dtype):
    bad = jax.tree.map(lambda x: x, params)
    bad["layers"]["down"]["weight"] = params["layers"]["down"]["weight"].at[1, 3, 4].set(value)
    with pytest.raises(WorkError, match="model.layers.1.mlp.down_proj.weight holds values that are not finite"):
        save_pretrained(tmp_path / "out", bad, CFG, tok, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_leaves_nothing(tmp_path, tok, params):
    """A real write error in the middle of a tensor: files may not grow beyond 50 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(WorkError, match="disk is full: writing out failed .*nothing was left behind"):
            save_pretrained(tmp_path / "out", params, CFG, tok, dtype="float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before(tmp_path):
    with pytest.raises(UserError, match=r"needs 1000000.00 GB, \d+.\d\d GB are free"):
        save.check_output(tmp_path / "out", needed=10**15)


def test_read_only_output(tmp_path, tok, params, monkeypatch):
    # The test may run as root, whom no permission stops: the refusal of the file system is played.
    def refuse(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(save.Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"out cannot be written \(Read-only file system\)"):
        save_pretrained(tmp_path / "out", params, CFG, tok)
    monkeypatch.undo()
    monkeypatch.setattr(save.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        save_pretrained(tmp_path / "out", params, CFG, tok)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, tok, params):
    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tmp_path / "out", params, CFG, tok, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path, tok, params, capsys):
    out = tmp_path / "out"
    out.mkdir()
    save_pretrained(out, params, CFG, tok)  # empty: taken
    before = raw_tensors(out)
    with pytest.raises(UserError, match="holds an earlier export; add --overwrite"):
        save_pretrained(out, params, CFG, tok)
    other = jax.tree.map(lambda x: x + 1, params)
    (out / "README.md").write_text("mine")
    with pytest.raises(UserError, match="added to the earlier export: README.md"):
        save_pretrained(out, other, CFG, tok, overwrite=True)
    assert raw_tensors(out) == before and (out / "README.md").read_text() == "mine"
    (out / "README.md").unlink()
    save_pretrained(out, other, CFG, tok, overwrite=True)
    assert raw_tensors(out) != before and [p.name for p in tmp_path.iterdir()] == ["out"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is no export of this program"):
        save_pretrained(tmp_path / "mine", params, CFG, tok, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        save_pretrained(tmp_path / "mine" / "notes.txt", params, CFG, tok)
    with pytest.raises(UserError, match="is a file"):
        save_pretrained(tmp_path / "mine" / "notes.txt" / "out", params, CFG, tok)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert capsys.readouterr().err == ""
    (tmp_path / "new.tmp-123").mkdir()
    save_pretrained(tmp_path / "new", params, CFG, tok)
    assert "new.tmp-123 is what an interrupted export left" in capsys.readouterr().err


def test_a_failed_rename_puts_the_old_export_back(tmp_path, tok, params, monkeypatch):
    out = save_pretrained(tmp_path / "out", params, CFG, tok)
    before = raw_tensors(out)
    rename = save.Path.rename

    def fail(self, target):
        if ".tmp-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(save.Path, "rename", fail)
    with pytest.raises(WorkError, match="Input/output error"):
        save_pretrained(out, jax.tree.map(lambda x: x + 1, params), CFG, tok, overwrite=True)
    assert raw_tensors(out) == before and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_tokenizer_and_tree_must_fit(tmp_path, tok, params):
    small = dataclasses.replace(CFG, vocab_size=500)
    with pytest.raises(UserError, match="ids up to 511"):
        save_pretrained(tmp_path / "out", random_params(small), small, tok)
    with pytest.raises(UserError, match="do not fit the config: head.weight"):
        save_pretrained(tmp_path / "out", params, dataclasses.replace(CFG, tie_word_embeddings=True), tok)
    with pytest.raises(UserError, match="dtype int8: exports are float32, float16, bfloat16"):
        save_pretrained(tmp_path / "out", params, CFG, tok, dtype="int8")
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import gc, json, sys
sys.path[:0] = {paths!r}
import conftest, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from tests.support.hf_folders import tiny_tokenizer
from mmed_jax.hf import save
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import abstract_params

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

folder = Path({folder!r})
cfg = LlamaConfig(vocab_size=512, hidden_size=1024, intermediate_size=1600, num_layers=5, num_heads=16, num_kv_heads=16,
                  head_dim=64)
tok = tiny_tokenizer(folder / "ranks")
tree = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), abstract_params(cfg, jnp.float32))
tree = jax.device_put(tree, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
jax.block_until_ready(tree)
# Once before: the compiler's own memory is not the point.
tok.save_pretrained(folder / "warm")
save.save_pretrained(folder / "programs", tree, cfg, tok, dtype="float32")
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
save.save_pretrained(folder / "out", tree, cfg, tok, dtype="float32", max_shard_bytes=110_000_000)
sizes = [x.nbytes for x in jax.tree.leaves(tree)]
print(json.dumps([status("VmHWM") - before, sum(sizes)]))
"""


def test_writing_streams(tmp_path, repo):
    code = MEMORY.format(paths=[str(repo / "tests"), str(repo)], folder=str(tmp_path))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    extra, total = json.loads(out.stdout.splitlines()[-1])
    print(f"writing and checking {total / 1e6:.0f} MB: {extra / 1e6:.0f} MB extra")
    # A layer (36 MB) a few times, not the model once more.
    assert total > 180e6 and extra < 0.5 * total


TWO = """
import json, sys
sys.path[:0] = {paths!r}
import os
os.environ["JAX_PLATFORMS"], os.environ["XLA_FLAGS"] = "cpu", "--xla_force_host_platform_device_count=4"
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:{port}", 2, int(sys.argv[1]), initialization_timeout=60)
from pathlib import Path
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
from mmed_jax.common.errors import WorkError
from mmed_jax.hf import safetensors, save
from mmed_jax.hf.load import load_config, load_params
from mmed_jax.model.llama import logical_axes
from mmed_jax.parallel.sharding import make_mesh, param_shardings

folder, read = Path({folder!r}), [0]
original = safetensors.StoredTensor.read
def counted(self, index, out):
    read[0] += out.size
    original(self, index, out)
safetensors.StoredTensor.read = counted
cfg = load_config(folder / "in")
shardings = param_shardings(make_mesh(fsdp=8), logical_axes(cfg))
tree = load_params(folder / "in", cfg, shardings=shardings)
mine = read[0]
save.save_pretrained(folder / "out", tree, cfg, load_tokenizer(folder / "in"), dtype=None, max_shard_bytes=20_000)
problem = ""
if jax.process_index() == 0:  # the disk fails where it is written; the other process must hear of it
    def fail(f, a):
        raise OSError(28, "No space left on device")
    save.write_tensor = fail
try:
    save.save_pretrained(folder / "full", tree, cfg, load_tokenizer(folder / "in"))
except WorkError as e:
    problem = str(e)
print(json.dumps([mine, problem]), flush=True)
"""


@pytest.mark.multidevice
def test_two_processes(tmp_path, repo):
    """Each reads about half of the bytes; together they write what one would; a full disk stops both."""
    import socket

    hf_folder(tmp_path / "in", dtype="bfloat16", max_shard_size="40KB")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = TWO.format(paths=[str(repo)], port=port, folder=str(tmp_path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = [subprocess.Popen([sys.executable, "-c", code, str(i)], **pipes) for i in (0, 1)]
    done = [p.communicate(timeout=240) for p in run]
    for p, (_, err) in zip(run, done):
        assert p.returncode == 0, err[-3000:]
    results = [json.loads(out.splitlines()[-1]) for out, _ in done]
    assert raw_tensors(tmp_path / "out") == raw_tensors(tmp_path / "in")
    total = sum(int(np.prod(shape)) for _, shape, _ in raw_tensors(tmp_path / "in").values())
    norms = 7 * 32  # held by all
    assert [n for n, _ in results] == [(total - norms) // 2 + norms] * 2
    assert all("disk is full" in problem for _, problem in results)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(("full", "out."))]
