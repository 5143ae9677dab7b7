"""The export command and the one door to models: runs and HF folders in, HF folders out, mistakes in one line."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax.checkpoints.checkpointer import Checkpointer
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.tokenizers.tokenizer import save_tokenizer, tokenizer_hash
from mmed_jax.export import main
from mmed_jax.hf.mapping import flatten, hf_tensors
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.save import MARKER, write_assets
from mmed_jax.model.config import LlamaConfig
from tests.support.hf_folders import hf_folder, random_params, raw_tensors, tiny_tokenizer

CFG = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
    rope_theta=7e4,
    eos_token_id=(257,),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in") / "model"
    return hf_folder(folder, dtype="float16", max_shard_size="30KB", num_hidden_layers=2)


@pytest.fixture(scope="module")
def trees():
    """Parameters after 3 and after 7 steps."""
    return {step: random_params(CFG, step) for step in (3, 7)}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, trees):
    """A run directory as training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "stage1-demo"
    with Checkpointer(folder, every_steps=1, every_minutes=0, keep_last=5, keep_best=0, async_=False) as checkpointer:
        for step, params in trees.items():
            state = {"params": params, "opt_state": {}, "step": jnp.int32(step)}
            assert checkpointer.maybe_save(step, state, data_state={}, config={"name": "stage1"}, metrics={})
    (folder / "config.json").write_text(json.dumps({"name": "stage1", "run_dir": str(folder)}))
    tok = tiny_tokenizer(folder.parent / "ranks")
    write_assets(folder / "hf_assets", CFG, tok, dtype="float32", source_generation={"temperature": 0.6})
    return folder


def stored(params, dtype):
    """What an export of `params` must hold, cast by numpy."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    code = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}[dtype]
    rows = {t.name: (t, flat[t.path] if t.layer is None else flat[t.path][t.layer]) for t in hf_tensors(CFG)}
    return {name: (code, t.shape, row.astype(jnp.dtype(dtype)).tobytes()) for name, (t, row) in rows.items()}


def test_hf_folder_in_hf_folder_out(source, tmp_path, capsys):
    out = tmp_path / "out"
    main([f"--model={source}", f"--output={out}"])
    assert raw_tensors(out) == raw_tensors(source)
    printed = capsys.readouterr().out
    weights = "in 21 tensors, as stored (F16)"
    for line in ("Hugging Face folder", weights, "stop ids 257, 264, 265", "checked ", "done ", f"--model={out}"):
        assert line in printed
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"
    # Again, on top of it, with another dtype.
    with pytest.raises(UserError, match="--overwrite"):
        main([f"--model={source}", f"--output={out}"])
    main([f"--model={source}", f"--output={out}", "--overwrite", "--dtype=bfloat16"])
    assert {code for code, _, _ in raw_tensors(out).values()} == {"BF16"}


@pytest.mark.parametrize("step, dtype", [(None, None), (3, "float32"), (7, "float16"), (None, "source")])
def test_run_directory_in(run_dir, trees, tmp_path, capsys, step, dtype):
    arguments = [f"--model={run_dir}", f"--output={tmp_path / 'out'}"]
    main(arguments + ([f"--step={step}"] if step else []) + ([f"--dtype={dtype}"] if dtype else []))
    kept = {None: "bfloat16", "source": "float32"}.get(dtype, dtype)
    assert raw_tensors(tmp_path / "out") == stored(trees[step or 7], kept)
    assert f"step     {step or 7}\n" in capsys.readouterr().out
    marker = json.loads((tmp_path / "out" / MARKER).read_text())
    assert (marker["step"], marker["source_kind"], marker["source"]) == (step or 7, "run", "stage1-demo")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.6 and generation["eos_token_id"] == [257, 264, 265]


def test_a_checkpoint_folder_is_a_model_too(run_dir, trees):
    for path in (run_dir / "checkpoints", run_dir / "checkpoints" / "3"):
        model = open_model(path)
        params = model.load_params()
        step = 3 if path.name == "3" else 7
        assert model.step == step
        jax.tree.map(np.testing.assert_array_equal, params, trees[step])


def test_both_kinds_of_model_answer_alike(run_dir, source):
    run, hf = open_model(run_dir), open_model(source)
    assert (run.kind, hf.kind) == ("run", "hf") and run.step is None
    assert run.stored_bytes == {}
    assert hf.stored_bytes == {"F16": sum(len(data) for _, _, data in raw_tensors(source).values())}
    assert run.chat_template == hf.chat_template and tokenizer_hash(run.tokenizer) == tokenizer_hash(hf.tokenizer)
    assert run.cfg.eos_token_id == (257, 264, 265) and run.cfg.rope_theta == 7e4
    assert run.generation["temperature"] == 0.6
    from mmed_jax.model.llama import logical_axes
    from mmed_jax.parallel.sharding import make_mesh, param_shardings

    shardings = param_shardings(make_mesh(fsdp=4, tensor=2), logical_axes(CFG))
    placed = run.load_params(shardings=shardings, dtype=jnp.bfloat16)
    for path, leaf in flatten(placed).items():
        assert leaf.sharding == flatten(shardings)[path] and leaf.dtype == jnp.bfloat16


def test_a_damaged_newest_checkpoint_is_passed_over(run_dir, trees, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    for file in (run / "checkpoints" / "7" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    main([f"--model={run}", f"--output={tmp_path / 'out'}", "--dtype=float32"])
    assert raw_tensors(tmp_path / "out") == stored(trees[3], "float32")
    captured = capsys.readouterr()
    assert "step     3\n" in captured.out and "damaged" in captured.err
    with pytest.raises(WorkError, match="step 7"):
        main([f"--model={run}", f"--output={tmp_path / 'other'}", "--step=7"])
    assert not (tmp_path / "other").exists()


def _empty(tmp_path):
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def _run_without(what):
    def build(tmp_path, run_dir):
        shutil.copytree(run_dir, tmp_path / "m")
        shutil.rmtree(tmp_path / "m" / what)
        return tmp_path / "m"

    return build


def _other_vocabulary(tmp_path, source):
    shutil.copytree(source, tmp_path / "m")
    from mmed_jax.data.tokenizers.tokenizer import load_tokenizer
    from tests.support.hf_folders import write_ranks

    save_tokenizer(load_tokenizer(write_ranks(tmp_path / "tokenizer.model", (b"ab",))), tmp_path / "m")
    return tmp_path / "m"


def _no_tokenizer(tmp_path, source):
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*"))
    return tmp_path / "m"


def _not_started(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"name": "stage1", "run_dir": "m"}')
    return tmp_path / "m"


MISTAKES = {
    "nothing there": (lambda t, s, r: t / "nowhere", [], "does not exist"),
    "hub name": (lambda t, s, r: "meta-llama/Llama-3.2-1B", [], "hf download meta-llama/Llama-3.2-1B"),
    "empty folder": (lambda t, s, r: _empty(t), [], "neither a run directory .* nor a Hugging Face .*it is empty"),
    "step of an HF folder": (lambda t, s, r: s, ["--step=3"], "goes with runs only"),
    "no such step": (lambda t, s, r: r, ["--step=4"], "no checkpoint of step 4; there are 3, 7"),
    "no checkpoints": (lambda t, s, r: _run_without("checkpoints")(t, r), [], "no checkpoint yet"),
    "run not begun": (lambda t, s, r: _not_started(t), [], "run directory without checkpoints"),
    "no assets": (lambda t, s, r: _run_without("hf_assets")(t, r), [], "hf_assets/config.json is missing"),
    "tokenizer too large": (lambda t, s, r: _other_vocabulary(t, s), [], "ids up to 512.*ends at 511"),
    "no tokenizer": (lambda t, s, r: _no_tokenizer(t, s), [], "neither tokenizer.json nor"),
    "output is the model": (lambda t, s, r: s, ["--output={model}", "--overwrite"], "would replace the model"),
    "output holds the model": (lambda t, s, r: s, ["--output={model}/..", "--overwrite"], "would replace the model"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(source, run_dir, tmp_path, mistake):
    model, arguments, message = MISTAKES[mistake]
    model = model(tmp_path, source, run_dir)
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as e:
        main([f"--model={model}", f"--output={tmp_path / 'out'}", *(a.format(model=model) for a in arguments)])
    assert "\n" not in str(e.value)
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_exit_code_and_single_line(repo, tmp_path):
    command = [sys.executable, "-m", "mmed_jax.export", f"--output={tmp_path / 'out'}"]
    env = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}  # the mistake is said before a device is asked for
    out = subprocess.run([*command, f"--model={tmp_path}"], cwd=repo, env=env, capture_output=True, text=True)
    assert out.returncode == 2 and out.stdout == ""
    assert out.stderr.startswith("error: model: ") and out.stderr.count("\n") == 1
    out = subprocess.run([*command, "--model=x", "--dtype=int8"], cwd=repo, env=env, capture_output=True, text=True)
    assert out.returncode == 2 and "invalid choice: 'int8'" in out.stderr


def test_what_an_interrupted_export_left_is_said_once(source, tmp_path, capsys):
    for name in ("out.tmp-7", "out.old-7", "outer.tmp-8"):
        (tmp_path / name).mkdir()
    main([f"--model={source}", f"--output={tmp_path / 'out'}"])
    err = capsys.readouterr().err
    assert err.count(f"{tmp_path / 'out.tmp-7'} is what an interrupted export left") == 1
    assert err.count(f"{tmp_path / 'out.old-7'} is the earlier export") == 1
    assert "outer" not in err and (tmp_path / "out.old-7").is_dir()


def test_flags_are_not_guessed(source, tmp_path):
    with pytest.raises(UserError, match="unrecognized arguments: --out=.* --over, did you mean '--output'"):
        main([f"--model={source}", f"--out={tmp_path / 'out'}", "--over"])
    with pytest.raises(UserError, match="required: --output"):
        main([f"--model={source}"])
