"""export --gguf: transformers reads the file to the logits of the rounded weights, tokenizers keep their ids."""

import json
import os
import re
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mmed_jax import export
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.tokenizers.tokenizer import encode_text, load_tokenizer, save_tokenizer
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.gguf_file import Written, model_fields, verify_gguf
from mmed_jax.hf.gguf_tokenizer import tokenizer_fields
from mmed_jax.hf.model_source import open_whole
from mmed_jax.hf.push import check_whole
from tests.commands.test_export_card import CONTENTS, write_run
from tests.support.foreign_models import PIECES, chatml_tokenizer, foreign_model, sentencepiece_like
from tests.support.hf_folders import hf_folder, tiny_tokenizer
from tests.support.tokenizer import tiny_tokenizer as trained_tokenizer

TOKENS = torch.tensor([[256, 5, 77, 300, 12, 9, 410, 33]])
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
TEXTS = [
    "The fever, and a cough: 1234 mg/kg?",
    " two  spaces\n\n and lines\t",
    "Das Fieber ist 38,5 °C. l'été n'a pas",
    "发热三天，体温39度。",
    "発熱とせき。カタカナ",
    "발열이 있습니다",
    "У пациента кашель",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def scaled(place):
    """Grouped heads, llama3 scaling, its own head; rows of 32 and of 48 values."""
    return hf_folder(place / "scaled", num_hidden_layers=2)


@pytest.fixture(scope="module")
def tied(place):
    """Tied, with all biases."""
    changes = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    return hf_folder(place / "tied", dtype="float16", num_hidden_layers=1, **changes, **PLAIN)


def write(model, out, *flags):
    export.main([f"--model={model}", f"--output={out}", *flags])
    (file,) = out.glob("*.gguf")
    return file


def rounded(weight, kind):
    """A weight as the format keeps it, by the format's own words and not by the package."""
    w = weight.float().numpy()
    if w.ndim == 1 or kind == "f32":
        return torch.from_numpy(w.copy())
    if kind == "bf16":
        return weight.float().to(torch.bfloat16).float()
    if kind == "f16" or w.shape[1] % 32:
        return torch.from_numpy(w.astype(np.float16).astype(np.float32))
    blocks = w.reshape(len(w), -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    steps = blocks / np.where(scale, scale, 1)
    codes = np.sign(steps) * np.floor(np.abs(steps) + 0.5)  # halves away from zero
    return torch.from_numpy((codes * scale.astype(np.float16).astype(np.float32)).reshape(w.shape))


def logits_of(model):
    with torch.no_grad():
        return model(TOKENS).logits.float()


def read_by_transformers(file, biases):
    """As llama.cpp would compute: transformers passes over rope_freqs.weight, by which frequencies are divided.

    biases: whether there are any, which it has to be told.
    """
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config.attention_bias = config.mlp_bias = biases
    given = {"gguf_file": file.name, "config": config, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(file.parent, **given).eval()
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == "rope_freqs.weight":
            model.model.rotary_emb.inv_freq /= torch.from_numpy(np.array(tensor.data))
    return model


@pytest.mark.parametrize("kind, name", [("f32", "tied"), ("f16", "scaled"), ("bf16", "tied"), ("q8_0", "scaled")])
def test_transformers_reads_the_logits(request, place, kind, name, capsys):
    source = request.getfixturevalue(name)
    file = write(source, place / f"{name}-{kind}-GGUF", f"--gguf={kind}")
    assert file.name == f"{name}-{kind}-{kind.upper()}.gguf"
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    unrounded = logits_of(original)
    with torch.no_grad():
        for p in original.parameters():
            p.copy_(rounded(p, kind))
    expected, found = logits_of(original), logits_of(read_by_transformers(file, name == "tied"))
    assert float((found - expected).abs().max()) < 2e-4 * float(expected.abs().max())
    worst = {"f32": 1e-4, "f16": 0.01, "bf16": 0.1, "q8_0": 0.1}[kind] * float(unrounded.abs().max())
    assert float((found - unrounded).abs().max()) < worst
    out = capsys.readouterr().out
    error = float(re.search(r"took ([\d.]+)% of the weights", out)[1])
    assert {"f32": 0, "f16": 0, "bf16": 0.1, "q8_0": 0.2}[kind] <= error <= {"f32": 0, "f16": 0.1}.get(kind, 1)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32" and kinds["blk.0.attn_q.weight"] == kind.upper()
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if kind == "q8_0" else kind.upper())
    assert ("output.weight" in kinds, "rope_freqs.weight" in kinds) == ((name == "scaled"),) * 2


def test_card_and_marker_and_push(place, scaled):
    out = place / "scaled-f16-GGUF"
    file = out / "scaled-f16-F16.gguf"
    if not file.exists():
        write(scaled, out, "--gguf=f16")
    card, marker = (out / "README.md").read_text(), json.loads((out / MARKER).read_text())
    assert "library_name: gguf\n" in card and f"llama-cli -m {file.name} -cnv" in card
    assert marker["gguf"] == "f16" and marker["files"][file.name] == file.stat().st_size
    check_whole(out)
    with pytest.raises(UserError, match="holds an earlier export; add --overwrite"):
        write(scaled, out, "--gguf=f16")


def test_a_run_is_written_as_its_export_is(place):
    """Its layers come leaf by leaf, not in their order."""
    run = write_run(place / "run", tiny_tokenizer(place / "ranks"), "stage2", "", CONTENTS)
    export.main([f"--model={run}", f"--output={place / 'plain'}", "--dtype=float32"])
    one, other = (write(m, place / f"gguf-{i}", "--gguf=f32") for i, m in enumerate((run, place / "plain")))
    tensors = [{t.name: np.array(t.data) for t in gguf.GGUFReader(f).tensors} for f in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        np.testing.assert_array_equal(value, tensors[1][name])
    fields = gguf.GGUFReader(one).fields
    assert fields["general.languages"].contents() == ["en", "fr"]


# ---- Tokenizers --------------------------------------------------------------------------------------------------


def test_llama3_keeps_its_ids(place):
    model, out = hf_folder(place / "merges", tokenizer=False, num_hidden_layers=1), place / "tokens"
    save_tokenizer(load_tokenizer(trained_tokenizer(place, 500)), model)
    file = write(model, out, "--gguf=f32")
    ours = load_tokenizer(model)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(file).fields.items()}
    assert fields["tokenizer.ggml.pre"] == "llama-bpe" and fields["tokenizer.ggml.model"] == "gpt2"
    assert len(fields["tokenizer.ggml.tokens"]) == 512 and fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.chat_template"] == ours.chat_template
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.eot_token_id"] == ours.eos_token_id
    types = fields["tokenizer.ggml.token_type"]
    assert set(types[:489]) == {1} and set(types[489:500]) == {3} and set(types[500:]) == {5}
    theirs = AutoTokenizer.from_pretrained(out, gguf_file=file.name)
    for text in TEXTS:
        assert len(encode_text(ours, text)) < len(text.encode())
        assert theirs(text, add_special_tokens=False)["input_ids"] == encode_text(ours, text)
    assert theirs.chat_template == ours.chat_template


def pieces_by_score(fields, text):
    """Ids as a reader of the scores makes them: the neighbours whose join has the best score first, then bytes."""
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    ids = {t: i for i, t in enumerate(tokens)}
    symbols = list((" " if fields["tokenizer.ggml.add_space_prefix"] else "").join(["", text]).replace(" ", "▁"))
    while True:
        joins = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(zip(symbols, symbols[1:])) if a + b in ids]
        if not joins:
            break
        _, i = min(joins)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return [i for s in symbols for i in ([ids[s]] if s in ids else [ids[f"<0x{b:02X}>"] for b in s.encode()])]


@pytest.mark.parametrize("first", [False, True])
def test_sentencepiece_keeps_its_ids(place, first):
    model = foreign_model(place / f"sp{first}", sentencepiece_like(PIECES, first=first), {"bos_token": "<s>"})
    tok = load_tokenizer(model)
    fields = tokenizer_fields(tok, 512)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[:3] == [2, 3, 3] and kinds[3:259] == [6] * 256 and kinds[-1] == 5
    for text in ["The fever and a cough", "the  thefever, überall: é 发热", *TEXTS]:
        if first and text.startswith(" "):  # there the splitter adds no space, and the format can't say so
            continue
        assert pieces_by_score(fields, text) == encode_text(tok, text), text


def splitting(tok, **changes):
    """The tokenizer with other parts of its tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tok.backend_tokenizer.to_str())
    for key, value in changes.items():
        place = state if key in state else state["model"]
        place[key] = value
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))


def test_rules_of_splitting_by_their_names(place):
    llama3 = tiny_tokenizer(place / "rules")
    gpt2 = load_tokenizer(chatml_tokenizer(place / "chatml"))
    digits = {"type": "Digits", "individual_digits": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    smollm = splitting(gpt2, pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, level]})
    for tok, name in (
        (llama3, "llama-bpe"),
        (splitting(llama3, ignore_merges=False), "smaug-bpe"),
        (gpt2, "gpt-2"),
        (smollm, "smollm"),
    ):
        assert tokenizer_fields(tok, 512)["tokenizer.ggml.pre"] == name
    for changed in (
        splitting(gpt2, pre_tokenizer={**level, "add_prefix_space": True}),
        splitting(gpt2, pre_tokenizer={"type": "Whitespace"}),
        splitting(gpt2, ignore_merges=True),
        splitting(llama3, normalizer={"type": "NFC"}),
    ):
        with pytest.raises(UserError, match=r"none of the rules that are known here .*--gguf_pre=NAME"):
            tokenizer_fields(changed, 512)
        assert tokenizer_fields(changed, 512, "mine")["tokenizer.ggml.pre"] == "mine"


def test_what_has_no_form_is_refused_before_anything_is_written(place, scaled, tmp_path, monkeypatch):
    other = hf_folder(tmp_path / "other", num_hidden_layers=1)
    save_tokenizer(splitting(load_tokenizer(other), normalizer={"type": "NFC"}), other)
    out = f"--output={tmp_path / 'out'}"
    for model, flags, words in (
        (other, ["--gguf=f16"], "none of the rules"),
        (scaled, ["--gguf=f16", "--dtype=float32"], "--gguf: is a form of whole weights, and --dtype"),
        (scaled, ["--gguf=f16", "--adapter"], "--adapter writes the adapter alone"),
        (scaled, ["--gguf_pre=x"], "--gguf_pre: goes with --gguf"),
    ):
        with pytest.raises(UserError, match=words) as e:
            export.main([f"--model={model}", out, *flags])
        assert "\n" not in str(e.value)
    unigram = sentencepiece_like(PIECES)
    state = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
    with pytest.raises(UserError, match="of the kind Unigram"):
        tokenizer_fields(splitting(tiny_of(unigram), model=state, added_tokens=[], post_processor=None), 512)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="needs the package gguf"):
        export.main([f"--model={scaled}", out, "--gguf=f16"])
    assert not list(tmp_path.glob("out*"))


def tiny_of(tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


# ---- Damage ------------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_found_when_it_is_read_back(place, tied, monkeypatch):
    from mmed_jax.hf import gguf_folder

    out = place / "damaged"
    real = gguf_folder.write_gguf

    def damage(file, *given):
        written = real(file, *given)
        tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.ffn_up.weight")
        with file.open("r+b") as f:
            f.seek(int(tensor.data_offset) + 40)
            byte = f.read(1)
            f.seek(-1, os.SEEK_CUR)
            f.write(bytes([byte[0] ^ 1]))
        return written

    monkeypatch.setattr(gguf_folder, "write_gguf", damage)
    with pytest.raises(WorkError, match="other values of blk.0.ffn_up.weight than were written"):
        write(tied, out, "--gguf=bf16")
    assert not out.exists() and not list(place.glob("damaged.tmp*"))
    file = place / "cut.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    cfg = open_whole(tied).cfg
    with pytest.raises(WorkError):
        verify_gguf(file, Written(), cfg, "f16", model_fields(cfg, "f16"))


def test_values_beyond_float16_are_named(place, tmp_path):
    from safetensors.torch import load_file, save_file

    model = hf_folder(tmp_path / "large", num_hidden_layers=1)
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = 7e4
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkError, match="model.layers.0.mlp.up_proj.weight holds values that are not finite in F16"):
        write(model, tmp_path / "out", "--gguf=f16")
    assert not (tmp_path / "out").exists()
