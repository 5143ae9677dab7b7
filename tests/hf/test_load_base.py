"""A base is quantised on its way from a folder or a run: the same bits as at once, on every mesh, in bounded memory."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.checkpoints.checkpointer import Checkpointer
from mmed_jax.common.errors import UserError
from mmed_jax.hf.mapping import hf_tensors
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.safetensors import write_header, write_tensor
from mmed_jax.hf.save import plan_files, save_pretrained, write_assets
from mmed_jax.model.config import LlamaConfig, to_hf
from mmed_jax.model.quantization import KINDS
from mmed_jax.model.quantized_base import base_shardings, quantize_base
from mmed_jax.parallel.sharding import make_mesh
from tests.support.hf_folders import random_params, tiny_tokenizer

CFG = LlamaConfig(
    vocab_size=512, hidden_size=256, intermediate_size=128, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32
)
MESHES = {"fsdp": {"fsdp": 4}, "tensor": {"fsdp": 1, "tensor": 2}, "both": {"fsdp": 2, "tensor": 2}}


def place(kind: str, mesh: str):
    sizes = MESHES[mesh]
    count = int(np.prod(list(sizes.values())))
    return base_shardings(make_mesh(**sizes, devices=jax.devices()[:count]), CFG, kind)


@pytest.fixture(scope="module")
def params():
    return random_params(CFG)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, params):
    """The same parameters as a folder and as a run."""
    root = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer(root / "tok")
    folder = save_pretrained(root / "folder", params, CFG, tokenizer, dtype="float32")
    run = root / "run"
    with Checkpointer(run, every_steps=1, every_minutes=0, keep_last=5, keep_best=0, async_=False) as checkpointer:
        for step, tree in ((3, params), (7, jax.tree.map(lambda x: x + 1, params))):
            state = {"params": tree, "opt_state": {}, "step": jnp.int32(step)}
            checkpointer.maybe_save(step, state, data_state={}, config={"name": "stage1"}, metrics={})
    write_assets(run / "hf_assets", CFG, tokenizer, dtype="float32")
    return {"hf": (folder, None), "run": (run, 3)}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["hf", "run"])
def test_loading_is_quantising_what_is_stored(sources, params, source, kind):
    want = quantize_base(params, kind, jnp.bfloat16)
    opened = open_model(*sources[source])
    same(opened.load_base(kind, jnp.bfloat16), want)
    assert opened.step == sources[source][1]
    for mesh in ["fsdp", "both"] if source == "hf" else ["both"]:
        shardings = place(kind, mesh)
        base = opened.load_base(kind, jnp.bfloat16, shardings)
        same(base, want)
        jax.tree.map(lambda x, sharding: x.sharding == sharding or pytest.fail(f"{x.sharding}"), base, shardings)


def test_a_mesh_that_does_not_divide_the_blocks_is_one_line(sources):
    shardings = base_shardings(make_mesh(fsdp=8), CFG, "nf4")
    with pytest.raises(UserError, match=r"hidden_size=256 has 4 blocks .*context=8 \(.* \[1, 2, 4\]\)"):
        open_model(sources["hf"][0]).load_base("nf4", jnp.float32, shardings)


def test_the_base_of_a_run_is_the_step_asked_for(sources, params):
    newest = open_model(sources["run"][0])
    want = quantize_base(jax.tree.map(lambda x: x + 1, params), "nf4", jnp.float32)
    same(newest.load_base("nf4", jnp.float32), want)
    assert newest.step == 7


def test_a_folder_is_read_once_and_progress_says_so(sources):
    ticks = []
    open_model(sources["hf"][0]).load_base("nf4", jnp.float32, progress=lambda done, total: ticks.append((done, total)))
    assert ticks[-1][0] == ticks[-1][1] and [done for done, _ in ticks] == sorted({done for done, _ in ticks})


def test_what_cannot_be_quantised_names_the_tensor(tmp_path, params):
    weight = np.array(params["layers"]["up"]["weight"])
    weight[2, 5, 9] = np.inf
    broken = {**params, "layers": {**params["layers"], "up": {"weight": weight}}}
    folder = write_folder(tmp_path, CFG, lambda t: np.asarray(_row(broken, t)))
    for kind in ("int8", "nf4"):
        with pytest.raises(UserError, match="model.layers.2.mlp.up_proj.weight: holds values that are not finite"):
            open_model(folder).load_base(kind, jnp.float32)
    with pytest.raises(UserError, match="did you mean 'int8'"):
        open_model(folder).load_base("int9", jnp.float32)


def _row(tree, tensor):
    for name in tensor.path:
        tree = tree[name]
    return tree if tensor.layer is None else tree[tensor.layer]


def write_folder(path, cfg, values):
    """A folder of float32 tensors `values(tensor)`, written without a model in memory."""
    (path / "config.json").write_text(json.dumps(to_hf(cfg, "float32")))
    tensors = hf_tensors(cfg)
    files = plan_files(tensors, {t.path: np.dtype(np.float32) for t in tensors}, 110_000_000)
    for name, inside in files.items():
        with (path / name).open("wb") as f:
            write_header(f, [(t.name, np.dtype(np.float32), t.shape) for t in inside])
            for t in inside:
                write_tensor(f, values(t))
    if len(files) > 1:
        weight_map = {t.name: name for name, inside in files.items() for t in inside}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


CASES = (("nf4", 1), ("nf4", 4), ("int8", 4))
# Each case in a process of its own, which has all imports and no device of jax yet.
MEMORY = """
import json, os, sys
sys.path[:0] = {paths!r}
import conftest, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from mmed_jax.hf.open_model import open_model
from mmed_jax.model.quantized_base import base_shardings
from mmed_jax.parallel.sharding import make_mesh

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

def measure(kind, fsdp):
    source, small = open_model({folder!r}), open_model({small!r})
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:fsdp])
    load = lambda s: jax.block_until_ready(s.load_base(kind, jnp.bfloat16, base_shardings(mesh, s.cfg, kind)))
    load(small)  # imports and threads
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    base = load(source)
    print(json.dumps([status("VmHWM") - before, sum(x.nbytes for x in jax.tree.leaves(base))]), flush=True)

for case in {cases!r}:
    if not (child := os.fork()):
        measure(*case)
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory):
    """360 MB of float32; a layer's largest tensor has 8 MB, the largest stacked leaf 101 MB."""
    cfg = LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=2048,
        num_layers=12,
        num_heads=2,
        num_kv_heads=2,
        head_dim=256,
    )
    return write_folder(tmp_path_factory.mktemp("large"), cfg, lambda t: np.full(t.shape, 0.5, np.float32))


@pytest.fixture(scope="module")
def measured(large_folder, sources, repo):
    """{case: (peak, bytes of the base)}"""
    paths, small = [str(repo / "tests"), str(repo)], str(sources["hf"][0])
    code = MEMORY.format(paths=paths, folder=str(large_folder), small=small, cases=CASES)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stderr
    return dict(zip(CASES, map(json.loads, out.stdout.splitlines()[-len(CASES) :]), strict=True))


@pytest.mark.parametrize(("kind", "fsdp"), CASES)
def test_extra_host_memory_is_about_one_layers_tensor(measured, large_folder, kind, fsdp):
    peak, total = measured[kind, fsdp]
    stored = sum(f.stat().st_size for f in large_folder.glob("*.safetensors"))
    print(f"{kind}, fsdp {fsdp}: peak {peak / 1e6:.0f} MB, base {total / 1e6:.0f} MB, stored {stored / 1e6:.0f} MB")
    # A tensor of 8 MB, its mapped pages, codes, and what programs and threads take; the floats of one leaf are 101 MB.
    assert stored > 350e6 and total < 0.3 * stored
    assert peak - total < 70e6
