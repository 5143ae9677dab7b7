"""config.json in and out: every constant, both RoPE schemas, and one clear line for what is not understood."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import transformers

from mmed_jax.common.errors import UserError
from mmed_jax.model import llama, nnx_llama
from mmed_jax.model.config import PRESETS, LlamaConfig, RopeScaling, check, from_hf, num_params, to_hf
from tests.support import parity as ph

# The published config.json of Llama-3.2-1B.
LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
# ... and of Meta-Llama-3-8B, older: no head_dim, no mlp_bias.
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
MINIMAL = {k: LLAMA_3_8B[k] for k in ("model_type", "vocab_size", "hidden_size", "intermediate_size")} | {
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
}
ODD = dataclasses.replace(
    ph.tiny_config(), eos_token_id=(2, 5, 7), pad_token_id=3, attention_bias=True, mlp_bias=True, initializer_range=0.03
)


def test_published_configs_are_the_presets():
    assert from_hf(LLAMA_32_1B) == PRESETS["llama3.2-1b"]
    assert from_hf(LLAMA_3_8B) == PRESETS["llama3-8b"]


@pytest.mark.parametrize(
    "preset, published",
    [
        ("llama3-8b", 8_030_261_248),
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.2-3b", 3_212_749_824),
        ("llama3-70b", 70_553_706_496),
        ("llama3.3-70b", 70_553_706_496),
    ],
)
def test_preset_sizes(preset, published):
    cfg = PRESETS[preset]
    assert num_params(cfg) == published
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(llama.abstract_params(cfg))) == published


def test_preset_scaling():
    factors = {n: c.rope_scaling and c.rope_scaling.factor for n, c in PRESETS.items() if n != "demo"}
    assert factors == {
        "llama3-8b": None,
        "llama3-70b": None,
        "llama3.1-8b": 8,
        "llama3.1-70b": 8,
        "llama3.3-70b": 8,
        "llama3.2-1b": 32,
        "llama3.2-3b": 32,
    }
    assert all(c == check(c) for c in PRESETS.values())
    assert PRESETS["llama3.3-70b"].eos_token_id == (128001, 128008, 128009)  # generation_config of the instruct model


@pytest.mark.parametrize("tied, bias", [(False, False), (True, False), (False, True)])
def test_parameter_count_of_transformers(tied, bias):
    hf = ph.TINY | {"tie_word_embeddings": tied, "attention_bias": bias, "mlp_bias": bias}
    cfg = from_hf(hf)
    assert num_params(cfg) == ph.torch_llama(hf).num_parameters()
    assert num_params(cfg) == sum(x.size for x in jax.tree.leaves(llama.init_params(cfg, jax.random.key(0))))


@pytest.mark.parametrize("cfg", [ODD, *PRESETS.values()], ids=["odd", *PRESETS])
def test_round_trip_is_exact(cfg):
    assert from_hf(json.loads(json.dumps(to_hf(cfg, "float32")))) == cfg


@pytest.mark.parametrize("cfg", [ODD, *PRESETS.values()], ids=["odd", *PRESETS])
def test_transformers_reads_what_we_write(cfg, tmp_path):
    """... and we read what it writes again, unchanged."""
    (tmp_path / "config.json").write_text(json.dumps(to_hf(cfg, "bfloat16")))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.LlamaConfig)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "attention_bias"):
        assert getattr(theirs, name) == getattr(cfg, name)
    assert theirs.num_key_value_heads == cfg.num_kv_heads
    assert theirs.tie_word_embeddings is cfg.tie_word_embeddings
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == cfg.rope_theta
    assert rope["rope_type"] == ("llama3" if cfg.rope_scaling else "default")
    if cfg.rope_scaling:
        assert {k: rope[k] for k in dataclasses.asdict(cfg.rope_scaling)} == dataclasses.asdict(cfg.rope_scaling)
    assert str(theirs.dtype) in ("bfloat16", "torch.bfloat16")
    theirs.save_pretrained(tmp_path / "again")
    assert from_hf(json.loads((tmp_path / "again" / "config.json").read_text())) == cfg


def test_both_schemas_are_written():
    """transformers 4.x looks at the top level, 5.x at rope_parameters."""
    d = to_hf(ODD, "float16")
    scaling = {"rope_type": "llama3"} | dataclasses.asdict(ODD.rope_scaling)
    assert d["rope_theta"] == ODD.rope_theta and d["rope_scaling"] == scaling
    assert d["rope_parameters"] == scaling | {"rope_theta": ODD.rope_theta}
    assert d["torch_dtype"] == d["dtype"] == "float16"
    assert d["eos_token_id"] == [2, 5, 7]
    plain = to_hf(PRESETS["llama3-8b"])
    assert plain["rope_scaling"] is None and plain["eos_token_id"] == 128001
    assert plain["rope_parameters"] == {"rope_type": "default", "rope_theta": 500000.0}


def test_absent_keys_take_the_defaults_of_transformers():
    ours = from_hf(MINIMAL)
    theirs = transformers.LlamaConfig(**{k: v for k, v in MINIMAL.items() if k != "model_type"})
    assert ours == from_hf(theirs.to_dict())
    assert ours.rope_theta == 10000.0 and ours.rms_norm_eps == 1e-6 and ours.num_kv_heads == 32
    assert ours.head_dim == 128 and ours.max_position_embeddings == 2048 and not ours.tie_word_embeddings


@pytest.mark.parametrize(
    "rope, theta, scaled",
    [
        ({"rope_scaling": {"type": "default"}, "rope_theta": 5.0}, 5.0, False),
        ({"rope_scaling": {}, "rope_theta": 7}, 7.0, False),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, 9.0, False),
        ({"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 1.0}}, 9.0, False),
        ({"rope_parameters": ph.LLAMA3_ROPE | {"rope_theta": 9.0}, "rope_scaling": None}, 9.0, True),
        ({"rope_parameters": ph.LLAMA3_ROPE, "rope_theta": 11.0}, 11.0, True),
        ({"rope_scaling": ph.LLAMA3_ROPE, "rope_parameters": ph.LLAMA3_ROPE | {"rope_theta": 9.0}}, 9.0, True),
        ({"rope_scaling": ph.LLAMA3_ROPE | {"type": "llama3"}, "rope_theta": 9}, 9.0, True),
    ],
)
def test_rope_schemas(rope, theta, scaled):
    cfg = from_hf(MINIMAL | rope)
    assert cfg.rope_theta == theta
    assert cfg.rope_scaling == (RopeScaling(7.0, 1.5, 5.0, 64) if scaled else None)


BAD = {
    "rope_type linear": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope_type", "linear", "llama3"]),
    "rope type dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["dynamic"]),
    "yarn in the new schema": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["yarn"]),
    "longrope": ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1]}}, ["longrope"]),
    "rope_scaling without a field": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
    "rope_scaling with a stranger": ({"rope_scaling": ph.LLAMA3_ROPE | {"beta_fast": 32}}, ["beta_fast", "32"]),
    "default type with a factor": ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, ["factor", "2.0"]),
    "partial rotation": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor", "0.5"]),
    "thetas that contradict": ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, ["10000", "500000"]),
    "scalings that contradict": (
        {"rope_scaling": ph.LLAMA3_ROPE, "rope_parameters": {"rope_type": "default"}},
        ["rope_scaling", "rope_parameters", "contradict"],
    ),
    "rope_scaling of a wrong type": ({"rope_scaling": "llama3"}, ["rope_scaling", "llama3"]),
    "scaling field of a wrong type": ({"rope_scaling": ph.LLAMA3_ROPE | {"factor": "8"}}, ["factor", '"8"']),
    "scaling factors in the wrong order": ({"rope_scaling": ph.LLAMA3_ROPE | {"low_freq_factor": 9.0}}, ["low_freq"]),
    "another family": ({"model_type": "mistral"}, ["model_type", "mistral", "llama"]),
    "another activation": ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
    "another architecture": ({"architectures": ["DeciLMForCausalLM"]}, ["DeciLMForCausalLM", "LlamaForCausalLM"]),
    "dropout": ({"attention_dropout": 0.1}, ["attention_dropout", "0.1"]),
    "pretraining_tp": ({"pretraining_tp": 2}, ["pretraining_tp", "2"]),
    "unknown number": ({"residual_multiplier": 0.22}, ["residual_multiplier", "0.22"]),
    "misspelt": ({"rms_norm_epsilon": 1e-5}, ["rms_norm_epsilon", "rms_norm_eps'"]),
    "window before scaling": (
        {"rope_scaling": ph.LLAMA3_ROPE, "original_max_position_embeddings": 4096},
        ["4096", "64", "contradict"],
    ),
    "sliding window switched on": ({"sliding_window": 4096, "use_sliding_window": True}, ["sliding_window"]),
    "sliding window": ({"sliding_window": 4096}, ["sliding_window", "4096"]),
    "logit soft-capping": ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0"]),
    "quantised": ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
    "remote code": ({"auto_map": {"AutoModel": "m.M"}}, ["auto_map"]),
    "text for a number": ({"hidden_size": "4096"}, ["hidden_size", '"4096"', "integer"]),
    "fraction for an integer": ({"vocab_size": 1.5}, ["vocab_size", "1.5"]),
    "true for an integer": ({"num_hidden_layers": True}, ["num_hidden_layers"]),
    "number for a flag": ({"tie_word_embeddings": 1}, ["tie_word_embeddings", "true or false"]),
    "text for a float": ({"rope_theta": "500000"}, ["rope_theta"]),
    "not a number": ({"rms_norm_eps": float("nan")}, ["rms_norm_eps"]),
    "list of wrong ids": ({"eos_token_id": [1, "2"]}, ["eos_token_id"]),
    "missing size": ({"hidden_size": None}, ["hidden_size", "missing"]),
    "heads do not divide": ({"num_attention_heads": 33}, ["hidden_size=4096", "33"]),
    "heads do not divide, head_dim given": ({"num_attention_heads": 33, "head_dim": 8}, ["hidden_size=4096", "33"]),
    "kv heads do not divide": ({"num_key_value_heads": 5}, ["num_kv_heads", "5", "[1, 2, 4, 8, 16, 32]"]),
    "odd head_dim": ({"head_dim": 63}, ["head_dim", "63", "even"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_layers", "0"]),
    "negative eps": ({"rms_norm_eps": -1e-5}, ["rms_norm_eps"]),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line_that_names_it(name):
    change, words = BAD[name]
    with pytest.raises(UserError) as e:
        from_hf(MINIMAL | change)
    message = str(e.value)
    assert "\n" not in message and message.startswith("config.json: ")
    for word in words:
        assert word in message


def test_not_a_config():
    with pytest.raises(UserError, match="object"):
        from_hf([])
    with pytest.raises(UserError, match="model_type"):
        from_hf({"hidden_size": 4})


def test_harmless_keys_change_nothing():
    extra = {
        "_name_or_path": "x",
        "torch_dtype": "float16",
        "dtype": "float16",
        "use_cache": False,
        "transformers_version": "9",
        "pretraining_tp": 1,
        "attention_dropout": 0.0,
        "temperature": 0.6,
        "unsloth_version": "2025.1",
        "id2label": {"0": "A"},
        "sliding_window": None,
        "quantization_config": None,
        "original_max_position_embeddings": 16384,
        "architectures": ["LLaMAForCausalLM"],
        "max_window_layers": 28,
    }
    assert from_hf(MINIMAL | extra) == from_hf(MINIMAL)
    # A window that is switched off, and the window before scaling where scaling says the same.
    assert from_hf(MINIMAL | {"sliding_window": 4096, "use_sliding_window": False}) == from_hf(MINIMAL)
    before = ph.LLAMA3_ROPE["original_max_position_embeddings"]
    scaled = MINIMAL | {"rope_scaling": ph.LLAMA3_ROPE}
    assert from_hf(scaled | {"original_max_position_embeddings": before}) == from_hf(scaled)


def test_every_field_of_the_config_is_written():
    """A field that to_hf forgets would come back as its default."""
    default = LlamaConfig(97, 48, 80, 2, 4, 2, 16)
    for field in dataclasses.fields(LlamaConfig):
        assert getattr(ODD, field.name) != getattr(default, field.name) or field.name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "tie_word_embeddings",
        ), field.name
    assert from_hf(to_hf(ODD)) == ODD
    assert from_hf(to_hf(dataclasses.replace(ODD, tie_word_embeddings=True))).tie_word_embeddings


def test_module_is_the_plain_tree():
    from flax import nnx

    cfg = ph.tiny_config(attention_bias=True)
    model = nnx_llama.Llama(cfg, nnx.Rngs(3))
    tree = nnx.to_pure_dict(nnx.state(model))
    abstract = llama.abstract_params(cfg)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tree) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    axes = llama.logical_axes(cfg)
    ranks = jax.tree.map(lambda x: len(x.shape), abstract)
    assert jax.tree.map(len, axes, is_leaf=lambda x: isinstance(x, tuple)) == ranks
    assert model.layers.q.weight.get_metadata("out_sharding") == axes["layers"]["q"]["weight"]
    tokens = ph.random_tokens(cfg, 2, 9)
    np.testing.assert_allclose(model(tokens), ph.logits(tree, cfg, tokens), atol=1e-5)


def test_init_statistics():
    cfg = ph.tiny_config(initializer_range=0.05, attention_bias=True)
    a, b = (llama.init_params(cfg, jax.random.key(i)) for i in (0, 1))
    assert np.std(a["layers"]["up"]["weight"]) == pytest.approx(0.05, rel=0.05)
    assert np.all(a["layers"]["attn_norm"]["weight"] == 1) and np.all(a["layers"]["q"]["bias"] == 0)
    assert not np.array_equal(a["layers"]["up"]["weight"], b["layers"]["up"]["weight"])
    assert not np.array_equal(a["layers"]["up"]["weight"], a["layers"]["gate"]["weight"])
    again = llama.init_params(cfg, jax.random.key(0))
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(again), strict=True))
