"""Keys of config.json beyond the sizes: harmless ones pass, off ones pass with a word, others need the user's word."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from mmed_jax import evaluate, export, generate
from mmed_jax.common.errors import UserError
from mmed_jax.config.overrides import parse_args
from mmed_jax.config.resume import training_hash
from mmed_jax.hf.load import load_config
from mmed_jax.hf.open_model import open_model
from mmed_jax.model.config import from_hf
from mmed_jax.model.config_keys import FIXED, HARMLESS, OFF_IS_HARMLESS
from mmed_jax.training.setup import open_init
from tests.support import parity as ph
from tests.support.hf_folders import hf_folder, raw_tensors

# As real folders of Llama models carry them.
SILENT = {
    "unk_token_id": 0,
    "is_llama_config": True,
    "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16"}},
    "layer_types": ["full_attention", "full_attention"],
    "use_sliding_window": False,
    "sliding_window": None,
    "output_past": True,
    "auto_map": {},
    "max_window_layers": 28,
    "_name_or_path": "./checkpoint",
    "_model_name_or_path": "Smollm2 135M",  # transformers, of the name in a GGUF file
    "max_sequence_length": 2048,
    "_flash_attn_2_enabled": True,
    "use_flash_attention": False,
    "num_labels": 2,
    "quantization_config": None,
    "hidden_activation": None,
    "attention_chunk_size": None,
    "pretraining_tp": 1,
    "tie_encoder_decoder": False,
    "max_new_tokens": 100,
    "min_p": 0.1,
    "use_qk_norm": False,
    "is_causal": True,
    "pad_token": "<pad>",
    "name_or_path": "x/y",
    "bos_token": "<s>",
    "generation_config": {"temperature": 0.6},
    "unsloth_fixed": True,
    "model_name": "m",
    "padding_side": "left",
}
OFF = {"my_note": "", "my_list": [], "my_table": {}, "my_switch": False, "my_nothing": None}
CONTENT = {
    "my_number": 0.22,
    "my_zero": 0,
    "my_text": "x",
    "my_list": [0],
    "my_switch": True,
    "my_table": {"a": None},
    "auto_map": {"AutoModelForCausalLM": "modeling_x.X"},
    "use_qk_norm": True,
    "residual_multiplier": 0.22,
    "attn_config": {"kind": "y"},
    "layer_norm_eps": 1e-5,
    "my_nan": float("nan"),
}
# Known, and no word of the user's makes them anything else.
MATTER = {
    "hidden_act": "gelu",
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    "attention_bias": True,
    "mlp_bias": True,
    "model_type": "mistral",
    "sliding_window": 4096,
    "use_sliding_window": True,
    "layer_types": ["full_attention", "sliding_attention"],
    "quantization_config": {"bits": 4},
    "hidden_size": 64,
    "partial_rotary_factor": 0.5,
    "architectures": ["MistralForCausalLM"],
    "tie_word_embeddings": 1,
    "rope_parameters": {"rope_type": "linear"},
    "attention_dropout": 0.1,
    "is_causal": False,
    "use_rope": False,
    "hidden_activation": "gelu",
    "pretraining_tp": 2,
    "per_layer_config": {"0": {}},
    "rms_norm_eps": 1.0,
}


def test_harmless_keys_pass_in_silence_and_change_nothing_for_transformers_either():
    said = []
    assert from_hf(ph.TINY | SILENT, say=said.append) == from_hf(ph.TINY) and not said
    for key, value in SILENT.items():
        assert from_hf(ph.TINY | {key: value}, say=said.append) == from_hf(ph.TINY) and not said, key
    tokens = ph.random_tokens(from_hf(ph.TINY), 1, 12)
    expected = ph.torch_logits(ph.torch_llama(ph.TINY), tokens)
    for keys in [{k: v} for k, v in SILENT.items() if k != "generation_config"] + [dict(list(SILENT.items())[:18])]:
        try:
            found = ph.torch_logits(ph.torch_llama(ph.TINY | keys), tokens)
        except TypeError as e:  # names that only a file may have
            assert "." in next(iter(keys)), e
            continue
        np.testing.assert_array_equal(found, expected, err_msg=str(keys))


def test_what_is_generated_with_them_is_the_same(tmp_path):
    """`layer_types` and sliding windows act on the cache of generation, not on one forward pass."""
    prompt = torch.tensor(ph.random_tokens(from_hf(ph.TINY), 1, 12))

    def run(keys):
        model = ph.torch_llama(ph.TINY | keys)
        return model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0).tolist()

    cache = {k: SILENT[k] for k in ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers")}
    assert run(cache) == run({})


def test_off_keys_pass_with_one_word():
    said = []
    assert from_hf(ph.TINY | OFF, say=said.append) == from_hf(ph.TINY)
    assert len(said) == 1 and all(key in said[0] for key in OFF)
    many = {f"note_{i}": None for i in range(1000)}
    said.clear()
    from_hf(ph.TINY | many, say=said.append)
    assert len(said) == 1 and len(said[0]) < 600 and "and 988 more" in said[0]


@pytest.mark.parametrize("key", CONTENT)
def test_content_needs_the_users_word(key):
    with pytest.raises(UserError) as e:
        from_hf(ph.TINY | {key: CONTENT[key]})
    assert str(e.value).startswith(f"config.json: {key}=") and f"--ignore_keys={key} " in str(e.value)
    said = []
    assert from_hf(ph.TINY | {key: CONTENT[key]}, (key,), said.append) == from_hf(ph.TINY)
    assert len(said) == 1 and key in said[0]


@pytest.mark.parametrize("key", MATTER)
def test_what_matters_cannot_be_vouched_for(key):
    with pytest.raises(UserError, match=f"ignore_keys={key}: this key is known"):
        from_hf(ph.TINY | {key: MATTER[key]}, (key,))
    with pytest.raises(UserError, match=f"ignore_keys={key}: this key is known"):
        from_hf(ph.TINY, ("my_note", key))


def test_the_nearest_name_only_when_it_makes_sense():
    """Not a name that stands there itself, and no list of all names."""
    for key, hint in (
        ("rms_norm_epsilon", None),
        ("head_dims", None),
        ("attention_biases", "attention_bias"),
        ("zzz", None),
        ("rope_thetas", None),
        ("mlp_biass", "mlp_bias"),
    ):
        with pytest.raises(UserError) as e:
            from_hf(ph.TINY | {key: 7})
        assert ("did you mean" in str(e.value)) == bool(hint) and "valid:" not in str(e.value), str(e.value)
        assert not hint or f"'{hint}'" in str(e.value)


def test_no_key_stands_in_two_lists():
    assert not HARMLESS & FIXED.keys() and not HARMLESS & OFF_IS_HARMLESS and not OFF_IS_HARMLESS & FIXED.keys()


HUGE = {
    "layers beyond the files": {"num_hidden_layers": 1_000_000},
    "layers without end": {"num_hidden_layers": 1_000_000_000},
    "layers beyond int32": {"num_hidden_layers": 10**30},
    "vocabulary": {"vocab_size": 2**31 - 1},
    "hidden": {"hidden_size": 2**30, "head_dim": 8},
    "heads": {"num_attention_heads": 2**30, "num_key_value_heads": 7, "hidden_size": 2**30, "head_dim": 8},
    "mlp": {"intermediate_size": 10**400},
    "positions": {"max_position_embeddings": 10**30},
    "theta": {"rope_theta": 10**400},
    "eps": {"rms_norm_eps": 1e400},
    "token id": {"eos_token_id": 10**20},
    "negative": {"num_hidden_layers": -1},
    "true": {"num_attention_heads": True},
    "fraction": {"num_hidden_layers": 2.0},
    "text": {"hidden_size": "48"},
    "long name": {"x" * 100_000: 1},
    "long value": {"x": "y" * 1_000_000},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("keys") / "model", num_hidden_layers=2)


def altered(folder, path, keys):
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | keys))
    return path


@pytest.mark.parametrize("name", HUGE)
def test_sizes_beyond_reason_are_one_line_at_once(name, folder, tmp_path):
    with pytest.raises(UserError) as e:
        open_model(altered(folder, tmp_path / "model", HUGE[name]))
    assert "\n" not in str(e.value) and len(str(e.value)) < 1200, str(e.value)


def test_generation_config_with_wrong_end_tokens(folder, tmp_path):
    for number, ids in enumerate(("</s>", [True], [10**20], {"a": 1}, [[1]])):
        path = altered(folder, tmp_path / str(number), {})
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        with pytest.raises(UserError, match="generation_config.json: eos_token_id="):
            load_config(path)


def test_many_foreign_tensors_are_some_and_a_count(folder, tmp_path):
    path = altered(folder, tmp_path / "model", {})
    (file,) = path.glob("*.safetensors")
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    end = max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")
    names = [f"stranger.{i}.{'x' * 500}" for i in range(3000)] + [f"model.layers.{2 * i}.odd" for i in range(3000)]
    more = {name: {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for name in names}
    text = json.dumps(header | more).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])
    with pytest.raises(UserError, match="unexpected: .* more") as e:
        open_model(path)
    assert len(str(e.value)) < 5000 and "stranger.0.xxx" in str(e.value)


def test_the_users_word_goes_with_every_command(folder, tmp_path, capsys):
    path = altered(folder, tmp_path / "model", {"my_table": {"a": 1}, "my_number": 3, "my_switch": False})
    word = "--ignore_keys=my_table, my_number"
    with pytest.raises(UserError, match="my_table"):
        export.main([f"--model={path}", f"--output={tmp_path / 'out'}"])
    capsys.readouterr()
    export.main([f"--model={path}", f"--output={tmp_path / 'out'}", word])
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert [("my_table, my_number" in w, "my_switch" in w) for w in warned] == [(False, True), (True, False)]
    assert raw_tensors(tmp_path / "out") == raw_tensors(path)
    exported = open_model(tmp_path / "out").cfg
    ids = {"eos_token_id": exported.eos_token_id}  # with the tokenizer's own
    assert exported == dataclasses.replace(open_model(path, ignore_keys=("my_table", "my_number")).cfg, **ids)
    generate.main([f"--model={path}", "--prompt=Iron?", "--max_new_tokens=2", word])
    question = {"id": "1", "language": "en", "question": "Iron?", "options": {"A": "low", "B": "high"}}
    question["answer_idx"] = "A"
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    evaluate.main(
        [
            f"--model={path}",
            f"--data={tmp_path / 'q.jsonl'}",
            f"--output={tmp_path / 'e'}",
            word,
            "--mode=loglikelihood",
        ]
    )
    assert (tmp_path / "e" / "results.json").is_file()
    common = ["--config=stage2:demo", f"--config.init_from={path}", f"--config.run_dir={tmp_path / 'run'}"]
    plain, _ = parse_args(common)
    config, _ = parse_args([*common, "--config.model.ignore_keys=my_table,my_number"])
    with pytest.raises(UserError, match="my_table"):
        open_init(plain)
    assert dataclasses.replace(open_init(config).cfg, **ids) == exported
    assert training_hash(config) == training_hash(plain)  # the run itself holds what the model is
