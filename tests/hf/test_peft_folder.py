"""PEFT folders in and out, with `peft` as the oracle: equal logits, equal merged weights, nothing passed over."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.hf import peft_folder
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.lora_model import LoraModel
from mmed_jax.hf.mapping import flatten, hf_tensors
from mmed_jax.hf.open_model import identity, open_model
from mmed_jax.hf.peft_folder import PREFIX, WEIGHTS_FILE, adapter_tensors, fold_patterns, open_peft_folder, save_adapter
from mmed_jax.model.lora import LoraSpec, join
from tests.hf.test_peft_config import KEYS
from tests.support import parity
from tests.support.hf_folders import hf_folder, tiny_tokenizer, torch_llama
from tests.support.peft_folders import (
    KINDS,
    load_peft,
    merged_weights,
    peft_model,
    random_adapter,
    save_peft,
)

TOKENS = np.random.default_rng(0).integers(0, 256, (2, 9), dtype=np.int32)


@pytest.fixture(scope="module")
def model():
    return torch_llama()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("in") / "base")


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, base):
    """{kind: (peft's folder, its logits, its merged weights)}"""
    made = {}
    for kind, settings in KINDS.items():
        adapted = peft_model(model, **settings)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        folder = save_peft(adapted, tmp_path_factory.mktemp("peft") / kind.replace(" ", "-"))
        made[kind] = folder, parity.torch_logits(adapted, TOKENS), merged_weights(adapted)
    return made


@pytest.fixture(scope="module")
def plain(made):
    """The folder of an adapter of all linear layers."""
    return made["lora"][0]


def rows(params, cfg):
    """{HF name: numpy array} of a parameter tree."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    return {t.name: flat[t.path] if t.layer is None else flat[t.path][t.layer] for t in hf_tensors(cfg)}


def close(ours, theirs):
    return np.abs(ours - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize("kind", KINDS)
def test_pefts_folder_gives_pefts_logits_and_merged_weights(made, base, model, kind):
    folder, logits, merged = made[kind]
    source = open_model(base, adapter=folder)
    assert isinstance(source, LoraModel) and source.kind == "hf" and source.base.path == base
    params = source.load_params()
    assert close(parity.logits(params, source.cfg, TOKENS), logits)
    assert not close(logits, parity.torch_logits(model, TOKENS))
    tolerance = 5e-7 if "dora" in kind else 0  # norms are summed in another order
    for name, value in rows(params, source.cfg).items():
        difference = np.abs(value - merged[name].numpy()).max()
        assert difference <= tolerance * max(1.0, np.abs(value).max()), name
    assert source.merger.error() == 0


def test_the_adapter_beside_its_base_is_the_same_model(made, base):
    folder, logits, _ = made["tables"]
    source = open_model(base, adapter=folder)
    joined = join(source.base.load_params(), source.load_adapter(), source.lora, source.cfg)
    assert close(parity.logits(joined, source.cfg, TOKENS), logits)


def test_bfloat16_is_the_float32_sum_rounded_once(made, base, tmp_path):
    folder, _, merged = made["patterns"]
    source = open_model(base, adapter=folder)
    for name, value in rows(source.load_params(dtype=jnp.bfloat16), source.cfg).items():
        expected = merged[name].to(torch.bfloat16).view(torch.int16).numpy()
        np.testing.assert_array_equal(value.view(np.int16), expected, err_msg=name)
    assert 0 < source.merger.error() < 0.1 and 0 < source.merger.error("q") < 0.1
    # Onto a base in bfloat16, as peft does.
    half = hf_folder(tmp_path / "half", dtype="bfloat16")
    adapted = peft_model(torch_llama().to(torch.bfloat16), **KINDS["patterns"])
    theirs = merged_weights(adapted)
    source = open_model(half, adapter=save_peft(adapted, tmp_path / "adapter"))
    for name, value in rows(source.load_params(), source.cfg).items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value.view(np.int16), theirs[name].view(torch.int16).numpy(), err_msg=name)


def test_a_small_change_in_bfloat16_is_measured(base, plain, tmp_path):
    """A change far below half a unit of the last place leaves most of bfloat16's weights as they were."""
    faint = shutil.copytree(plain, tmp_path / "faint")
    tensors = {n: t * (1e-3 if "lora_B" in n else 1) for n, t in load_file(plain / WEIGHTS_FILE).items()}
    save_file(tensors, faint / WEIGHTS_FILE, metadata={"format": "pt"})
    source = open_model(base, adapter=faint)
    merged = rows(source.load_params(dtype=jnp.bfloat16), source.cfg)
    weights = rows(source.base.load_params(), source.cfg)
    exact = rows(source.load_params(), source.cfg)
    open_model(base, adapter=faint).load_params(dtype=jnp.bfloat16)
    lost = change = 0.0
    for name in (n for n in exact if "_proj" in n):
        lost += np.square(merged[name].astype(np.float64) - exact[name]).sum()
        change += np.square(exact[name].astype(np.float64) - weights[name]).sum()
    source.load_params(dtype=jnp.bfloat16)
    assert source.merger.error() == pytest.approx(np.sqrt(lost / change), rel=1e-3) and source.merger.error() > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_of_16_bits_are_read(plain, base, tmp_path, model, dtype):
    folder = shutil.copytree(plain, tmp_path / "half")
    tensors = {n: t.to(dtype) for n, t in load_file(plain / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    source = open_model(base, adapter=folder)
    adapter = source.load_adapter()
    assert {x.dtype for x in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    assert close(
        parity.logits(source.load_params(), source.cfg, TOKENS), parity.torch_logits(load_peft(model, folder), TOKENS)
    )


ALL = ("q", "k", "v", "o", "gate", "up", "down")
OURS = {
    "plain": LoraSpec(4, 8.0, tuple((t, (4, 4, 4), (8.0,) * 3) for t in ALL)),
    "one layer": LoraSpec(4, 8.0, (("q", (0, 4, 0), (0.0, 8.0, 0.0)), ("embed", (4,), (8.0,))), dropout=0.05),
    "patterns": LoraSpec(
        4,
        8.0,
        (("q", (4, 2, 4), (8.0, 8.0, 3.0)), ("down", (6, 6, 6), (5.0,) * 3), ("head", (3,), (8.0,))),
        rslora=True,
    ),
    "dora": LoraSpec(4, 8.0, (("k", (4, 4, 4), (8.0,) * 3), ("up", (2, 4, 4), (8.0,) * 3)), dora=True),
    "ragged": LoraSpec(2, 2.0, (("q", (2, 0, 2), (2.0, 0.0, 2.0)), ("v", (0, 0, 5), (0.0, 0.0, 2.0)))),
}


@pytest.mark.parametrize("name", OURS)
def test_our_folder_gives_our_logits_in_peft(name, base, model, tmp_path):
    """In peft any warning is an error; the bare key set is that of the releases of 2024."""
    spec, cfg = OURS[name], open_model(base).cfg
    adapter = random_adapter(spec, cfg)
    folder = save_adapter(tmp_path / "out", adapter, spec, cfg, base_name="org/base")
    assert list(json.loads((folder / "adapter_config.json").read_text())) == KEYS
    source = open_model(base, adapter=folder)
    assert source.lora == spec
    jax.tree.map(np.testing.assert_array_equal, source.load_adapter(), adapter)
    logits = parity.logits(source.load_params(), cfg, TOKENS)
    assert close(parity.torch_logits(load_peft(model, folder), TOKENS), logits)
    assert not close(logits, parity.torch_logits(model, TOKENS))


@pytest.mark.parametrize("name", [n for n in OURS if n != "dora"])
def test_plain_folders_have_one_rank_and_one_scale(name, base, model, tmp_path):
    """For a reader that knows r, lora_alpha, use_rslora and target_modules alone: the same logits."""
    spec, cfg = OURS[name], open_model(base).cfg
    adapter = random_adapter(spec, cfg)
    tree, folded, lines = fold_patterns(adapter, spec, cfg)
    folder = save_adapter(tmp_path / "out", tree, folded, cfg, base_name="org/base")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"], config["layers_to_transform"]) == ({}, {}, None)
    assert {t.shape[0] for n, t in load_file(folder / WEIGHTS_FILE).items() if "lora_A" in n} == {config["r"]}
    original = save_adapter(tmp_path / "patterned", adapter, spec, cfg, base_name="org/base")
    expected = parity.torch_logits(load_peft(model, original), TOKENS)
    assert close(parity.torch_logits(load_peft(model, folder), TOKENS), expected)
    said = "\n".join(lines)
    assert ("filled up" in said) == (name in ("patterns", "ragged")) and ("scale folded in" in said) == (
        name in ("patterns", "ragged")
    )
    assert ("written as zeros" in said) == (name in ("one layer", "ragged"))
    if name == "plain":
        jax.tree.map(np.testing.assert_array_equal, tree, adapter)
    assert adapter_tensors(spec, cfg) != [] and spec == OURS[name]


def test_plain_refuses_dora():
    with pytest.raises(UserError, match="--plain: .*DoRA"):
        fold_patterns({}, OURS["dora"], None)


def changed(folder, tmp_path, change):
    """A copy of a PEFT folder whose tensors went through `change`."""
    copied = shutil.copytree(folder, tmp_path / "changed")
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, copied / WEIGHTS_FILE, metadata={"format": "pt"})
    return copied


A = f"{PREFIX}model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop(A), rf"missing: {A}"),
        (lambda t: [t.pop(n) for n in list(t) if ".layers.2." in n], r"missing: .*layers.2.mlp.down_proj.lora_A"),
        (lambda t: t.update({A.replace("q_proj", "z_proj"): torch.zeros(4, 32)}), "unexpected: .*z_proj.lora_A"),
        (lambda t: t.update({f"{PREFIX}lm_head.lora_A.weight": torch.zeros(4, 32)}), "unexpected: .*lm_head"),
        (lambda t: t.update({A.replace("lora_A.weight", "lora_B.bias"): torch.zeros(4)}), "unexpected: .*lora_B.bias"),
        (lambda t: t.update({A: t[A][:3]}), rf"wrong shape: {A} is \[3, 32\], must be \[4, 32\]"),
        (lambda t: t.update({A: t[A].double()}), "dtype F64"),
        (
            lambda t: t.update({n.removeprefix(PREFIX): t.pop(n) for n in list(t)}),
            f"names lack PEFT's prefix '{PREFIX}'",
        ),
        (lambda t: t[A].__setitem__((0, 0), float("nan")), f"values that are not finite: {A}"),
        (lambda t: t[A].__setitem__((1, 0), float("inf")), f"values that are not finite: {A}"),
        (lambda t: t.update({f"{PREFIX}lm_head.weight": torch.zeros(512, 32)}), "holds lm_head.weight, which differs"),
        (lambda t: t.update({f"{PREFIX}lm_head.base_layer.weight": torch.zeros(5, 3)}), "holds lm_head.weight, which"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(plain, base, tmp_path, change, said):
    with pytest.raises(UserError, match=said) as e:
        open_model(base, adapter=changed(plain, tmp_path, change))
    assert "\n" not in str(e.value)


def test_other_folders_are_refused(plain, base, tmp_path):
    with pytest.raises(UserError, match="adapter: .* has no adapter_config.json"):
        open_model(base, adapter=base)
    with pytest.raises(UserError, match="'/nowhere' does not exist"):
        open_model(base, adapter="/nowhere")
    empty = shutil.copytree(plain, tmp_path / "empty")
    (empty / WEIGHTS_FILE).rename(empty / "adapter_model.bin")
    with pytest.raises(UserError, match="has no adapter_model.safetensors .pickle files are not read"):
        open_model(base, adapter=empty)
    shutil.copy(plain / "adapter_config.json", tmp_path / "file")
    with pytest.raises(UserError, match="file is a file"):
        open_model(base, adapter=tmp_path / "file")
    smaller = hf_folder(tmp_path / "smaller", num_hidden_layers=2)
    with pytest.raises(UserError, match="unexpected: .*layers.2"):
        open_model(smaller, adapter=plain)
    with pytest.raises(UserError, match="is an adapter itself"):
        open_model(plain, adapter=plain)
    tied = hf_folder(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(UserError, match="one matrix in this model"):
        open_model(tied, adapter=save_peft(peft_model(torch_llama(), **KINDS["tables"]), tmp_path / "tables"))


def test_copies_of_the_tables_are_compared_with_the_base(made, base, tmp_path):
    folder = made["tables"][0]
    names = set(load_file(folder / WEIGHTS_FILE))
    assert f"{PREFIX}lm_head.base_layer.weight" in names  # peft wrote them
    source = open_model(base, adapter=folder)
    assert set(source.load_adapter()) == {"layers", "head", "embed"}
    # In another dtype they are the base's in that dtype.
    key = f"{PREFIX}lm_head.base_layer.weight"
    open_model(base, adapter=changed(folder, tmp_path, lambda t: t.update({key: t[key].to(torch.bfloat16)})))
    with pytest.raises(UserError, match="holds lm_head.weight, which differs from the base's"):
        open_model(base, adapter=changed(folder, tmp_path / "2", lambda t: t[key].__setitem__((3, 3), 1.0)))


def test_an_adapter_folder_as_the_model(plain, base, tmp_path):
    """By what its config names when that is a folder, else by base_dir; the same model as both folders named."""
    assert json.loads((plain / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    both = open_model(base, adapter=plain)
    assert identity(open_model(plain)) == identity(both) != identity(open_model(base))
    moved = shutil.copytree(base, tmp_path / "moved")
    assert identity(open_model(plain, base_dir=moved)) == identity(both)
    config = json.loads((plain / "adapter_config.json").read_text())
    elsewhere = shutil.copytree(plain, tmp_path / "elsewhere")
    (elsewhere / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match="is an adapter of 'org/base'; .* --base=DIR"):
        open_model(elsewhere)
    with pytest.raises(UserError, match="--step=3 goes with runs only"):
        open_model(elsewhere, 3, base_dir=base)
    with pytest.raises(UserError, match="--model names the base"):
        open_model(base, adapter=plain, base_dir=base)
    with pytest.raises(UserError, match="has no adapter, and needs no base"):
        open_model(base, base_dir=base)


def test_an_adapter_beside_a_whole_model_is_not_passed_over(plain, base, tmp_path, capsys):
    folder = shutil.copytree(base, tmp_path / "both")
    for file in plain.iterdir():
        shutil.copy(file, folder)
    (folder / WEIGHTS_FILE).unlink()
    assert not isinstance(open_model(folder), LoraModel)
    assert "holds an adapter beside its weights, which is not used" in capsys.readouterr().err


def test_our_folders_know_their_base(base, tmp_path, model):
    from mmed_jax.hf.base_model import record_base

    source = open_model(base)
    spec = OURS["plain"]
    record = record_base(source, "compute", "float32")
    tok = tiny_tokenizer(tmp_path / "tok")
    folder = save_adapter(
        tmp_path / "out", random_adapter(spec, source.cfg), spec, source.cfg,
        base_name="org/base", base_record=record, tokenizer=tok,
    )  # fmt: skip
    assert open_model(shutil.copytree(base, tmp_path / "moved"), adapter=folder).record == record
    other = hf_folder(tmp_path / "other", initializer_range=0.2)
    with pytest.raises(UserError, match="was trained on other weights than those of .*other"):
        open_model(other, adapter=folder)
    card = (folder / "README.md").read_text()
    for words in ("base_model: org/base", "For research. Not for clinical use.", "licence", "library_name: peft"):
        assert words in card
    assert json.loads((folder / MARKER).read_text())["files"].keys() >= {"README.md", WEIGHTS_FILE, "tokenizer.json"}
    load_peft(model, folder)


def test_writing_is_whole_or_not_at_all(base, tmp_path, monkeypatch):
    spec, cfg = OURS["plain"], open_model(base).cfg
    adapter = random_adapter(spec, cfg)
    out = save_adapter(tmp_path / "out", adapter, spec, cfg, base_name="x")
    with pytest.raises(UserError, match="--overwrite"):
        save_adapter(out, adapter, spec, cfg, base_name="x")
    before = (out / WEIGHTS_FILE).read_bytes()
    wrong = jax.tree.map(np.copy, adapter)
    wrong["layers"]["q"]["lora_b"][1, 2, 3] = np.nan
    with pytest.raises(WorkError, match=r"layers.1.self_attn.q_proj.lora_B.weight holds values that are not finite"):
        save_adapter(out, wrong, spec, cfg, base_name="x", overwrite=True)
    with monkeypatch.context() as m:
        m.setattr(peft_folder, "write_tensor", lambda f, a: f.write((a + 1).astype(a.dtype).tobytes()))
        with pytest.raises(WorkError, match="reads back differently"):
            save_adapter(out, adapter, spec, cfg, base_name="x", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (out / WEIGHTS_FILE).read_bytes() == before
    other = dataclasses.replace(spec, alpha=4.0, modules=tuple((t, r, (4.0,) * 3) for t, r, _ in spec.modules))
    save_adapter(out, adapter, other, cfg, base_name="x", overwrite=True)
    assert open_peft_folder(out, cfg).spec == other
