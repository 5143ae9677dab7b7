"""The merge command: a folder that others read, parents by their hashes, mistakes before anything is made."""

import dataclasses
import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from mmed_jax import export, merge
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.tokenizers.tokenizer import save_tokenizer, tokenizer_hash
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.open_model import open_model
from mmed_jax.hf.save import save_pretrained
from tests.commands.test_export import CFG
from tests.commands.test_export_card import CONTENTS, write_run
from tests.support.hf_folders import random_params, raw_tensors, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("merge")


@pytest.fixture(scope="module")
def tokenizer(place):
    return tiny_tokenizer(place / "tok")


@pytest.fixture(scope="module")
def parents(place, tokenizer):
    """Exports of two second stages of one first stage: zh and fr."""
    base = place / "Llama-3.1-8B"
    save_pretrained(base, random_params(CFG), CFG, tokenizer, dtype="float32")
    (base / MARKER).unlink()
    write_run(place / "stage1", tokenizer, "stage1", base, CONTENTS[:1])
    for seed, name, contents in ((2, "zh", CONTENTS[1:]), (3, "fr", CONTENTS[2:])):
        run = write_run(place / f"run-{name}", tokenizer, "stage2", place / "stage1", contents, seed)
        export.main([f"--model={run}", f"--output={place / f'Llama-{name}'}", "--dtype=float32"])
    return [place / "Llama-zh", place / "Llama-fr"]


@pytest.fixture(scope="module")
def merged(parents, place):
    out = place / "Llama-mean"
    merge.main([f"--models={parents[0]},{parents[1]}", "--weights=0.75,0.25", f"--output={out}", "--dtype=bfloat16"])
    return out


def test_the_folder_holds_the_mean(merged, parents):
    zh, fr, ours = (raw_tensors(folder) for folder in (*parents, merged))
    assert ours.keys() == zh.keys() and open_model(merged).kind == "hf"
    for name, (code, shape, data) in ours.items():
        a, b = (np.frombuffer(tensors[name][2], "<f4") for tensors in (zh, fr))
        mean = np.float32(0.75) * a + np.float32(0.25) * b
        assert (code, shape) == ("BF16", zh[name][1]) and data == mean.astype(jnp.bfloat16).tobytes(), name


def test_card_and_record_name_the_parents(merged, parents):
    _, head, text = (merged / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    record = json.loads((merged / MARKER).read_text())
    assert record["made_by"] == "mmed_jax.merge" and record["tuning"]["method"] == "full"
    assert head["base_model"] == "meta-llama/Llama-3.1-8B" and head["license"] == "llama3.1"
    assert "merge" in head["tags"] and head["language"] == ["en", "fr"]
    assert "The weighted mean of the weights of `Llama-zh`, `Llama-fr`; " in text
    for parent, known, weight in zip(parents, record["provenance"]["merged"], ("0.75", "0.25")):
        for name, digest in known["files"].items():
            assert digest == hashlib.sha256((parent / name).read_bytes()).hexdigest()
        assert {"config.json", "model.safetensors"} == known["files"].keys()
        assert f"| {parent.name} | {weight} | meta-llama/Llama-3.1-8B | llama3.1 | {known['sha256']} |" in text
    # The stage that both have stands once, the others with their parent's name.
    names = [s["name"] for s in record["provenance"]["stages"]]
    assert names == ["stage1", "Llama-zh: stage2", "Llama-fr: stage2"]
    assert "| medquad | CC BY 4.0 | 1,200 | 1,200 |" in text and str(merged.parent) not in text


def test_what_is_trained_from_a_mean_says_so(merged, place, tokenizer):
    run = write_run(place / "after", tokenizer, "stage3", merged, CONTENTS[:1])
    export.main([f"--model={run}", f"--output={place / 'Llama-after'}"])
    text = (place / "Llama-after" / "README.md").read_text()
    assert "trained from a mean of models (below): stage3 (all weights)." in text
    assert "## Parents\n\nIt began with a mean of models." in text and "### Llama-zh: stage2" in text


def test_dtype_of_the_first_and_equal_weights(parents, place, tokenizer, capsys):
    half = place / "half"
    save_pretrained(half, random_params(CFG, 9), CFG, tokenizer, dtype="float16", max_shard_bytes=30_000)
    out = place / "mean-of-three"
    merge.main([f"--models={half},{parents[0]},{parents[1]}", f"--output={out}"])
    assert {code for code, _, _ in raw_tensors(out).values()} == {"F16"}
    name = "model.layers.1.self_attn.q_proj.weight"
    rows = [np.frombuffer(raw_tensors(p)[name][2], k) for p, k in zip([half, *parents], ("<f2", "<f4", "<f4"))]
    total = np.zeros(len(rows[0]), np.float32)
    for row in rows:
        total += row.astype(np.float32) * np.float32(1 / 3)
    assert raw_tensors(out)[name][2] == total.astype("<f2").tobytes()
    printed = capsys.readouterr().out
    assert f"model    0.333333 x {half}\n" in printed and "as the first model's (F16)" in printed
    with pytest.raises(UserError, match="holds an earlier export; add --overwrite"):
        merge.main([f"--models={half},{parents[0]}", f"--output={out}"])


def variant(folder, cfg, tokenizer, change=None):
    save_pretrained(folder, random_params(cfg, 5), cfg, tokenizer, dtype="float32")
    if change:
        change(folder)
    return folder


def begin_token(folder):
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "post_processor": None}))


def vocabulary(folder):
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    vocab = state["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[5:7]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(state))


def test_mistakes_are_one_line_and_nothing_is_written(parents, place, tokenizer, tmp_path, capsys):
    a = parents[0]
    others = {
        "shape": variant(tmp_path / "shape", dataclasses.replace(CFG, intermediate_size=64), tokenizer),
        "theta": variant(tmp_path / "theta", dataclasses.replace(CFG, rope_theta=1e4), tokenizer),
        "tied": variant(tmp_path / "tied", dataclasses.replace(CFG, tie_word_embeddings=False), tokenizer),
        "vocabulary": variant(tmp_path / "vocabulary", CFG, tokenizer, vocabulary),
    }
    out = f"--output={tmp_path / 'out'}"
    for models, words, more in (
        (f"{a}", "give two folders or more", []),
        (f"{a},", "give two folders or more", []),
        (f"{a},{a}", "is named twice", []),
        (f"{a},{tmp_path / 'gone'}", "does not exist", []),
        (f"{a},{place / 'stage1'}", "is a run directory; export it first", []),
        (f"{a},{others['shape']}", r"another architecture than .*: intermediate_size \(48, 64\)", []),
        (f"{a},{others['theta']}", r"rope_theta \(70000.0, 10000.0\)", []),
        (f"{a},{others['tied']}", r"tie_word_embeddings \(True, False\)", []),
        (f"{a},{others['vocabulary']}", "has another tokenizer than", []),
        (f"{a},{parents[1]}", "their sum is 2", ["--weights=1,1"]),
        (f"{a},{parents[1]}", "would replace", [f"--output={a}", "--overwrite"]),
    ):
        with pytest.raises(UserError, match=words) as e:
            merge.main([f"--models={models}", out, *more])
        assert "\n" not in str(e.value)
    with pytest.raises(WorkError, match="holds values that are not finite in float16"):
        merge.main([f"--models={a},{parents[1]}", "--weights=4e5,-399999", "--dtype=float16", out])
    assert not list(tmp_path.glob("out*"))
    capsys.readouterr()
    # What stands around texts is no vocabulary: the first one's is kept, and that is said.
    merge.main([f"--models={a},{variant(tmp_path / 'chat', CFG, tokenizer, begin_token)}", out])
    assert "has another chat template or other control tokens around texts than" in capsys.readouterr().err
    hashes = [tokenizer_hash(open_model(folder).tokenizer) for folder in (tmp_path / "out", a, tmp_path / "chat")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_adapter_is_no_whole_model(parents, tmp_path, tokenizer):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    (tmp_path / "peft" / "adapter_model.safetensors").write_bytes(b"x")
    save_tokenizer(tokenizer, tmp_path / "peft")
    with pytest.raises(UserError, match="is an adapter; export it first"):
        merge.main([f"--models={parents[0]},{tmp_path / 'peft'}", f"--output={tmp_path / 'out'}"])
