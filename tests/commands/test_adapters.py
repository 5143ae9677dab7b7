"""Runs of adapters and PEFT folders through the commands: merged, written for others, asked, looked at, refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmed_jax import export, generate, inspect
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.mapping import flatten, hf_tensors
from mmed_jax.hf.open_model import identity, open_model
from mmed_jax.hf.save import save_pretrained
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.lora import LoraSpec, merge_leaf, scales
from mmed_jax.model.quantization import LINEAR_MODULES, dequantize, quantize_leaf
from tests.hf.test_peft_config import KEYS
from tests.support.hf_folders import random_params, raw_tensors, tiny_tokenizer
from tests.support.peft_folders import lora_run, random_adapter

CFG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=7e4,
    eos_token_id=(257,),
)
SPEC = LoraSpec(4, 8.0, (("q", (4, 2), (8.0, 8.0)), ("down", (4, 4), (8.0, 3.0)), ("head", (4,), (8.0,))), rslora=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tok"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    return save_pretrained(tmp_path_factory.mktemp("in") / "base", random_params(CFG), CFG, tokenizer, dtype="float32")


@pytest.fixture(scope="module")
def adapter():
    return random_adapter(SPEC, CFG)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, base, adapter, tokenizer):
    return lora_run(tmp_path_factory.mktemp("runs") / "lora", SPEC, adapter, open_model(base), tokenizer)


@pytest.fixture(scope="module")
def peft_dir(tmp_path_factory, run_dir):
    folder = tmp_path_factory.mktemp("out") / "adapter"
    export.main([f"--model={run_dir}", "--adapter", f"--output={folder}", "--base_name=org/base"])
    return folder


def merged(params, adapter, kind="compute"):
    """{HF name: float32} of what a merged model holds, by numpy, matrix by matrix."""
    found = {}
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    for t in hf_tensors(CFG):
        row, target = flat[t.path] if t.layer is None else flat[t.path][t.layer], t.path[-2]
        if kind != "compute" and target in LINEAR_MODULES:
            codes = {k: jnp.asarray(v) for k, v in quantize_leaf(row, kind).items()}
            row = np.asarray(dequantize(codes, jnp.bfloat16)).astype(np.float32)
        if target in scales(SPEC):
            leaves = adapter["layers"].get(target) or adapter[target]
            i = t.layer or 0
            a, b = (leaves[n][i] if t.layer is not None else leaves[n] for n in ("lora_a", "lora_b"))
            row = merge_leaf(row, a, b, float(scales(SPEC)[target][i]))
        found[t.name] = row
    return found


def assert_holds(folder, expected, dtype):
    stored = raw_tensors(folder)
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        assert stored[name][2] == value.astype(jnp.dtype(dtype)).tobytes(), name


def test_a_run_is_exported_merged(run_dir, base, adapter, tmp_path, capsys):
    expected = merged(random_params(CFG), adapter)
    export.main([f"--model={run_dir}", f"--output={tmp_path / 'out'}"])
    assert_holds(tmp_path / "out", expected, "bfloat16")
    printed = capsys.readouterr()
    assert "rank-stabilised LoRA of rank 2 to 4, alpha 3 to 8, on q,down,head, run directory" in printed.out
    assert f", base {base}" in printed.out and "step     5" in printed.out
    assert "merged   into the base; rounding took 0." in printed.out and "(q 0." in printed.out
    assert "warning" not in printed.err
    marker = json.loads((tmp_path / "out" / MARKER).read_text())
    assert LoraSpec.from_json(marker["adapter"]) == SPEC
    export.main([f"--model={run_dir}", f"--output={tmp_path / 'full'}", "--dtype=float32"])
    assert_holds(tmp_path / "full", expected, "float32")
    assert "rounding took 0.00% of the change" in capsys.readouterr().out


def test_a_change_lost_in_rounding_is_warned_of(base, adapter, tokenizer, tmp_path, capsys):
    faint = jax.tree.map(lambda x: x * np.float32(0.03), adapter)
    run = lora_run(tmp_path / "run", SPEC, faint, open_model(base), tokenizer)
    export.main([f"--model={run}", f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr()
    assert "warning: rounding took" in printed.err and "--dtype=float32 keeps it" in printed.err


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_is_merged_as_it_was_trained_on(base, adapter, tokenizer, tmp_path, capsys, kind):
    run = lora_run(tmp_path / "run", SPEC, adapter, open_model(base), tokenizer, quantization=kind, dtype="bfloat16")
    params = random_params(CFG)
    export.main([f"--model={run}", f"--output={tmp_path / 'out'}", "--dtype=float32"])
    assert_holds(tmp_path / "out", merged(params, adapter, kind), "float32")
    assert f"merged   into the base decoded from {kind}" in capsys.readouterr().out
    export.main([f"--model={run}", f"--output={tmp_path / 'plain'}", "--dtype=float32", "--merge_into=original"])
    assert_holds(tmp_path / "plain", merged(params, adapter), "float32")
    assert identity(open_model(run)) != identity(open_model(run, merge_into="original"))
    # Its PEFT folder knows that too.
    export.main([f"--model={run}", "--adapter", f"--output={tmp_path / 'peft'}", "--base_name=org/base"])
    export.main([f"--model={base}", f"--adapter={tmp_path / 'peft'}", f"--output={tmp_path / 'again'}"])
    assert_holds(tmp_path / "again", merged(params, adapter, kind), "float32")
    assert "held as" in (tmp_path / "peft" / "README.md").read_text()


def test_a_run_is_exported_as_a_peft_folder_and_comes_back(run_dir, base, peft_dir, adapter, tmp_path, capsys):
    config = json.loads((peft_dir / "adapter_config.json").read_text())
    assert list(config) == KEYS and config["base_model_name_or_path"] == "org/base"
    back = open_model(base, adapter=peft_dir)
    assert back.lora == SPEC and back.description.endswith("adapter on a Hugging Face folder")
    jax.tree.map(np.testing.assert_array_equal, back.load_adapter(), adapter)
    export.main([f"--model={base}", f"--adapter={peft_dir}", f"--output={tmp_path / 'merged'}"])
    assert_holds(tmp_path / "merged", merged(random_params(CFG), adapter), "float32")
    # Again, folded, from the PEFT folder; without a name the base is a folder of this machine.
    capsys.readouterr()
    export.main([f"--model={peft_dir}", f"--base={base}", "--adapter", "--plain", f"--output={tmp_path / 'plain'}"])
    printed = capsys.readouterr()
    assert "folded   rank 4 and scale 4 in every module" in printed.out
    assert "folded   filled up to rank 4 with zeros: model.layers.1.self_attn.q_proj" in printed.out
    assert f"the base as a folder of this machine ({base})" in printed.err and "--base_name=ORG/MODEL" in printed.err
    plain = open_model(base, adapter=tmp_path / "plain").load_params()
    exact = open_model(base, adapter=peft_dir).load_params()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, exact)
    export.main([f"--model={run_dir}", "--adapter", f"--output={peft_dir}", "--base_name=org/base", "--overwrite"])


def test_a_base_that_is_a_run(tmp_path, tokenizer, adapter, capsys):
    """Full training first, adapters on its checkpoint: read and merged leaf by leaf."""
    from mmed_jax.checkpoints.checkpointer import Checkpointer
    from mmed_jax.hf.save import write_assets

    params, first = random_params(CFG, 3), tmp_path / "full"
    with Checkpointer(first, every_steps=1, every_minutes=0, keep_last=5, keep_best=0, async_=False) as checkpointer:
        for step in (4, 9):
            state = {"params": params if step == 4 else random_params(CFG, 9), "opt_state": {}, "step": jnp.int32(step)}
            checkpointer.maybe_save(step, state, data_state={}, config={"name": "stage1"}, metrics={})
    write_assets(first / "hf_assets", CFG, tokenizer, dtype="float32")
    run = lora_run(tmp_path / "run", SPEC, adapter, open_model(first, 4), tokenizer)
    export.main([f"--model={run}", f"--output={tmp_path / 'out'}"])
    assert_holds(tmp_path / "out", merged(params, adapter), "bfloat16")
    export.main([f"--model={run}", f"--output={tmp_path / 'float'}", "--dtype=source"])
    assert_holds(tmp_path / "float", merged(params, adapter), "float32")
    # Its PEFT folder names that run, and knows the checkpoint.
    peft = tmp_path / "peft"
    export.main([f"--model={run}", "--adapter", f"--output={peft}"])
    alone = open_model(peft)
    assert (alone.base.path, alone.step) == (first, 4) and alone.fingerprint() == open_model(
        first, 4, adapter=peft
    ).fingerprint()
    for other in (first, tmp_path / "float"):  # another step; a folder, which has no checksums of checkpoints
        with pytest.raises(UserError, match=rf"was trained on other weights .*\({first}, step 4\)"):
            open_model(other, adapter=peft)
    assert "peft reads no runs: export that one too" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{run} is a run, which knows its base: name it as the model"):
        open_model(first, adapter=run)
    export.main([f"--model={peft}", f"--output={tmp_path / 'alone'}", "--dtype=float32"])
    assert_holds(tmp_path / "alone", merged(params, adapter), "float32")


def test_a_moved_base_is_named_and_another_refused(base, run_dir, tmp_path, tokenizer, adapter, capsys):
    mine = shutil.copytree(base, tmp_path / "mine")
    run = lora_run(tmp_path / "run", SPEC, adapter, open_model(mine), tokenizer)
    expected = identity(open_model(run))
    moved = tmp_path / "moved"
    mine.rename(moved)
    out = f"--output={tmp_path / 'out'}"
    for command in (export.main, generate.main):
        flags = [out] if command is export.main else ["--prompt=x", "--raw"]
        with pytest.raises(UserError, match=f"trained on {mine}, which is not there any more; .*--base=DIR"):
            command([f"--model={run}", *flags])
    assert identity(open_model(run, base_dir=moved)) == expected
    other = save_pretrained(tmp_path / "other", random_params(CFG, 1), CFG, tokenizer, dtype="float32")
    with pytest.raises(UserError, match="holds other weights than those the adapter was trained on"):
        export.main([f"--model={run}", out, f"--base={other}"])
    export.main([f"--model={run}", out, f"--base={moved}"])
    assert_holds(tmp_path / "out", merged(random_params(CFG), adapter), "bfloat16")
    # The adapter alone needs no base; and one that lies in the run moves with it.
    export.main([f"--model={run}", "--adapter", f"--output={tmp_path / 'peft'}", "--base_name=org/base"])
    assert f"warning: {mine} is not there any more, or holds other weights" in capsys.readouterr().err
    moved.rename(run / "mine")
    assert identity(open_model(run)) == expected
    capsys.readouterr()
    export.main([f"--model={run}", "--adapter", f"--output={tmp_path / 'again'}"])
    assert f"base     {run / 'mine'}" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds other weights"):
        export.main([f"--model={run}", "--adapter", f"--base={other}", f"--output={tmp_path / 'no'}"])
    with pytest.raises(UserError, match="is an adapter itself"):
        open_model(run, adapter=tmp_path / "peft")


def test_generate_asks_the_merged_model(base, run_dir, peft_dir, tmp_path, capsys):
    """The run, the base with the PEFT folder, and the merged export answer alike; the base does not."""
    export.main([f"--model={run_dir}", f"--output={tmp_path / 'merged'}", "--dtype=float32"])
    answers = {}
    for name, flags in {
        "run": [f"--model={run_dir}"],
        "peft": [f"--model={base}", f"--adapter={peft_dir}"],
        "alone": [f"--model={peft_dir}", f"--base={base}"],
        "merged": [f"--model={tmp_path / 'merged'}"],
        "base": [f"--model={base}"],
    }.items():
        capsys.readouterr()
        generate.main([*flags, "--prompt=abc", "--raw", "--max_new_tokens=12", "--dtype=float32"])
        printed = capsys.readouterr()
        answers[name] = printed.out
        assert ("LoRA of rank 2 to 4" in printed.err) == (name in ("run", "peft", "alone"))
    assert answers["run"] == answers["peft"] == answers["alone"] == answers["merged"] != answers["base"]


def test_evaluate_and_python_take_an_adapter(base, run_dir, peft_dir, tmp_path):
    from mmed_jax import Llama, evaluate

    data = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    data.write_text(json.dumps({"id": "1", "language": "en", "messages": messages}) + "\n")
    evaluate.main(
        [
            f"--model={base}",
            f"--adapter={peft_dir}",
            f"--data={data}",
            f"--output={tmp_path / 'r'}",
            "--max_new_tokens=4",
        ]
    )
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    source = open_model(base, adapter=peft_dir)
    assert (
        results["model"]["fingerprint"] == identity(source)["fingerprint"] != identity(open_model(base))["fingerprint"]
    )
    tokens = np.arange(8)[None] + 60
    logits = Llama.from_pretrained(base, adapter=peft_dir, dtype="float32")(tokens)
    np.testing.assert_array_equal(logits, Llama.from_pretrained(run_dir, dtype="float32")(tokens))
    np.testing.assert_array_equal(logits, Llama.from_pretrained(peft_dir, base=base, dtype="float32")(tokens))


def test_inspect_shows_an_adapter(base, run_dir, peft_dir, adapter, capsys):
    inspect.main([f"--adapter={run_dir}"])
    printed = capsys.readouterr().out
    assert "rank-stabilised LoRA of rank 2 to 4" in printed and f"base       {base}" in printed
    line = next(x for x in printed.splitlines() if x.startswith("q "))
    change = [merge_leaf(np.zeros((64, 64)), adapter["layers"]["q"]["lora_a"][i], adapter["layers"]["q"]["lora_b"][i],
                         float(scales(SPEC)["q"][i])) for i in (0, 1)]  # fmt: skip
    assert line.split()[:5] == ["q", "2/2", "2-4", "8", "4-5.65685"]
    assert float(line.split()[5]) == pytest.approx(np.sqrt(sum(np.square(c).sum() for c in change)), rel=1e-2)
    inspect.main([f"--adapter={peft_dir}", f"--base={base}"])
    assert line in capsys.readouterr().out
    with pytest.raises(UserError, match="has no adapter"):
        inspect.main([f"--adapter={base}"])


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--plain"], "--plain: goes with --adapter"),
        (["--adapter", "--dtype=float32"], "--dtype: goes with merged weights"),
        (["--adapter", "--merge_into=original"], "--merge_into: goes with merged weights"),
        (["--merge_into=trained"], "--merge_into=trained: .* has no adapter"),
        (["--adapter"], "--adapter: .* has none"),
        (["--base=/x"], "--base=/x: .* has no adapter"),
        (["--merge_into=origin"], "invalid choice"),
    ],
)
def test_flags_that_contradict(base, tmp_path, flags, said):
    with pytest.raises(UserError, match=said):
        export.main([f"--model={base}", f"--output={tmp_path / 'out'}", *flags])


def test_an_export_never_replaces_what_it_is_made_from(base, peft_dir, run_dir):
    for flags in (
        [f"--model={base}", f"--adapter={peft_dir}", f"--output={peft_dir}"],
        [f"--model={base}", f"--adapter={peft_dir}", f"--output={base}"],
        [f"--model={peft_dir}", f"--base={base}", f"--output={peft_dir}"],
        [f"--model={run_dir}", f"--output={run_dir}", "--adapter"],
    ):
        with pytest.raises(UserError, match="would replace the model"):
            export.main([*flags, "--overwrite"])


def test_a_damaged_run_is_said(run_dir, tmp_path):
    copied = shutil.copytree(run_dir, tmp_path / "run")
    meta = copied / "checkpoints" / "5" / "meta" / "meta.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "lora": {"spec": {}, "base": content["lora"]["base"]}}))
    with pytest.raises(UserError, match="record of its adapter is damaged"):
        open_model(copied)
    meta.write_text(json.dumps({**content, "saved_at": ""}))  # still readable, but not what was written
    with pytest.raises(WorkError, match="no checkpoint in .* can be read"):
        open_model(copied).load_params()
