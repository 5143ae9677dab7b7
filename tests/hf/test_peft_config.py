"""adapter_config.json: read as peft reads it, module by module; written so that old and new releases read the same."""

import dataclasses
import json
import random
import warnings

import pytest
import torch

from mmed_jax.common.errors import UserError
from mmed_jax.hf.peft_config import HF_NAMES, config_of, modules_of, read_adapter_config, spec_of
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.lora import LINEAR_TARGETS, TARGETS, LoraSpec, scales
from tests.support.hf_folders import torch_llama

CFG = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_layers=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)
TIED = dataclasses.replace(CFG, tie_word_embeddings=True)
# Those that an adapter_config.json of peft 0.10 has.
KEYS = """alpha_pattern auto_mapping base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights
    layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout megatron_config
    megatron_core modules_to_save peft_type r rank_pattern revision target_modules task_type use_dora
    use_rslora""".split()
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def peft_modules(config: dict) -> dict[str, tuple[int, float]]:
    """{module: (rank, scale)} that peft makes of an adapter_config.json; its warnings are errors."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds: not when tests are collected
    from peft.tuners.lora import LoraLayer

    with torch.device("meta"):
        model = torch_llama(num_hidden_layers=CFG.num_layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = {k: v for k, v in config.items() if k != "peft_type"}
        inject_adapter_in_model(LoraConfig(**own), model, low_cpu_mem_usage=True)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    return {name: (m.r["default"], m.scaling["default"]) for name, m in layers.items()}


def our_modules(spec: LoraSpec) -> dict[str, tuple[int, float]]:
    """The same of a spec."""
    by_name = {(m.target, m.layer): m.name for m in modules_of(CFG)}
    found = {}
    for (target, ranks, _), scale in zip(spec.modules, scales(spec).values(), strict=True):
        for i, rank in enumerate(ranks):
            if rank:
                found[by_name[target, i if target in LINEAR_TARGETS else None]] = rank, pytest.approx(float(scale[i]))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True, "lora_alpha": 7.5},
        {"target_modules": [*(HF_NAMES[t].rpartition(".")[2] for t in TARGETS)]},
        {"target_modules": "all-linear"},
        {"target_modules": ["model.layers.3.mlp.up_proj", "layers.11.self_attn.k_proj", "lm_head"]},
        {"target_modules": r".*\.layers\.(1|10)\.(self_attn|mlp)\.(q|down)_proj"},
        {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "layers_to_transform": [0, 11]},
        {"target_modules": ["mlp.gate_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.1.self_attn.q_proj", "k_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*layers\.\d+\.mlp.*"},
        {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6}, "alpha_pattern": {"v_proj": 3}},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 3}, "alpha_pattern": {r"^model.*q_proj": 32}},
        {"rank_pattern": {"q_proj": 3, "layers.1.self_attn.q_proj": 2}},  # the first one counts
        {"rank_pattern": {r"layers\.\d\.self_attn\.v_proj": 5}, "alpha_pattern": {"(q|v)_proj": 2.5}},
        {"rank_pattern": {"^model.layers.2.self_attn.q_proj": 1}, "use_rslora": True},
    ],
)
def test_modules_ranks_and_scales_are_those_of_peft(changes):
    config = {**PLAIN, **changes}
    spec = spec_of(config, CFG)
    expected = peft_modules(config)
    assert expected and our_modules(spec) == expected
    # And what is written of it says the same, to peft and to us.
    written = json.loads(json.dumps(config_of(spec, "org/base")))
    assert peft_modules(written) == expected and spec_of(written, CFG) == spec
    assert peft_modules(dict(sorted(written.items()))) == expected


def random_spec(draw: random.Random) -> LoraSpec:
    targets = [t for t in TARGETS if draw.random() < 0.6] or ["q"]
    some_layers = draw.random() < 0.5 and [draw.random() < 0.5 for _ in range(CFG.num_layers)]
    modules = []
    for target in targets:
        count = CFG.num_layers if target in LINEAR_TARGETS else 1
        use = some_layers if some_layers and any(some_layers) and count > 1 else [True] * count
        if draw.random() < 0.15 and count > 1:  # layers of its own
            use = [i == 5 for i in range(count)]
        one = draw.choice([(4, 8.0), (2, 8.0), (4, 3.5)])
        pairs = [one if draw.random() < 0.8 else draw.choice([(1, 1.0), (6, 8.0), (4, 8.0)]) for _ in use]
        pairs = [p if u else (0, 0.0) for p, u in zip(pairs, use, strict=True)]
        modules.append((target, tuple(r for r, _ in pairs), tuple(a for _, a in pairs)))
    return LoraSpec(4, 8.0, tuple(modules), rslora=draw.random() < 0.3, dora=draw.random() < 0.3, dropout=0.05)


def early_release(config: dict) -> dict[str, tuple[int, float]]:
    """{module: (rank, scale)} as peft 0.10 looks patterns up: the first key of either, in both; sorted, as it saves."""
    import re

    ranks, alphas = (dict(sorted(config[k].items())) for k in ("rank_pattern", "alpha_pattern"))
    found = {}
    for name in our_modules(spec_of(config, CFG)):
        key = next((k for k in [*ranks, *alphas] if re.match(rf".*\.{k}$", name)), name)
        rank, alpha = ranks.get(key, config["r"]), alphas.get(key, config["lora_alpha"])
        found[name] = rank, alpha / (rank**0.5 if config["use_rslora"] else rank)
    return found


def test_what_is_written_reads_back_whatever_the_spec():
    draw = random.Random(3)
    for i in range(300):
        spec = random_spec(draw)
        config = json.loads(json.dumps(config_of(spec, "org/base")))
        assert list(config) == KEYS
        assert config["target_modules"] == sorted(config["target_modules"])
        assert spec_of(config, CFG) == spec
        assert our_modules(spec) == early_release(config)
        if i < 6:
            assert peft_modules(config) == our_modules(spec)
    # Nothing that follows from the defaults is written out.
    plain = spec_of(PLAIN, CFG)
    config = config_of(plain, "x")
    assert (config["rank_pattern"], config["alpha_pattern"], config["layers_to_transform"]) == ({}, {}, None)
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["lora_alpha"] == 8


def test_a_file_of_todays_peft_is_read(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
    config.save_pretrained(tmp_path)
    assert len(json.loads((tmp_path / "adapter_config.json").read_text())) > len(KEYS)
    spec = read_adapter_config(tmp_path, CFG)
    assert spec == dataclasses.replace(spec_of(PLAIN, CFG), dropout=0.1)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"peft_type": None}, "peft_type=None: only LORA"),
        ({"peft_type": "IA3"}, "peft_type=IA3: only LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type=SEQ_CLS"),
        ({"r": 0}, "r=0: must be a whole number above 0; an adapter of 0 has no effect"),
        ({"r": 2.5}, "r=2.5"),
        ({"r": True}, "r=True"),
        ({"r": "4"}, "r=4: must be"),
        ({"lora_alpha": 0}, "lora_alpha=0: must be a number above 0; an adapter of 0 has no effect"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]=0"),
        ({"alpha_pattern": {"q_proj": -1}}, r"alpha_pattern\['q_proj'\]=-1"),
        ({"rank_pattern": {"q_proj(": 2}}, "'q_proj\\(' is no regular expression"),
        ({"rank_pattern": [4]}, "must be an object"),
        ({"bias": "lora_only"}, "bias=lora_only"),
        ({"lora_bias": True}, "lora_bias=True: a bias of B"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.*fully trained copies"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices=.*rows of the embedding"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora=.*not computed here"),
        ({"use_qalora": True}, "use_qalora=True: is not computed"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"a_switch_of_tomorrow": "on"}, "a_switch_of_tomorrow=on: is not computed here"),
        ({"use_dora": "yes"}, "use_dora=yes: must be true or false"),
        ({"lora_dropout": 1.5}, "lora_dropout=1.5"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa: .*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights=pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights=loftq"),
        ({"target_modules": ["q_proj", "v_prj"]}, "'v_prj' is no module of this model, did you mean 'v_proj'"),
        ({"target_modules": "q_proj"}, "together they name no module"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"target_modules": []}, "names no module"),
        ({"target_modules": [1]}, "must be a list of names"),
        ({"target_modules": ["input_layernorm"]}, "layers.0.input_layernorm.*can't have an adapter"),
        ({"target_modules": ".*self_attn.*"}, "self_attn.*can't have an adapter"),
        ({"exclude_modules": ".*"}, "together they name no module"),
        ({"layers_to_transform": [12]}, "layers_to_transform: 12: the model has layers 0 to 11"),
        ({"layers_pattern": "layers"}, "layers_pattern: goes with layers_to_transform"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [1]}, "not with a regular expression"),
    ],
)
def test_refused_in_one_line(changes, said):
    with pytest.raises(UserError, match=said) as e:
        spec_of({**PLAIN, **changes}, CFG)
    assert str(e.value).startswith("adapter_config.json: ") and "\n" not in str(e.value)


def test_refused_on_a_tied_model_and_without_a_key():
    for target in ("lm_head", "embed_tokens", "model.embed_tokens"):
        with pytest.raises(UserError, match="one matrix in this model"):
            spec_of({**PLAIN, "target_modules": ["q_proj", target]}, TIED)
    assert spec_of({**PLAIN, "target_modules": "all-linear"}, TIED) == spec_of(
        {**PLAIN, "target_modules": "all-linear"}, CFG
    )
    for key in ("peft_type", "r", "lora_alpha"):
        with pytest.raises(UserError, match=f"{key} is missing"):
            spec_of({k: v for k, v in PLAIN.items() if k != key}, CFG)
    assert spec_of({**PLAIN, "init_lora_weights": "gaussian", "peft_version": "0.21.2"}, CFG) == spec_of(PLAIN, CFG)


def test_a_pattern_for_nothing_is_said(capsys):
    assert spec_of({**PLAIN, "alpha_pattern": {"k_proj": 3}}, CFG) == spec_of(PLAIN, CFG)
    assert "alpha_pattern names k_proj: no module with an adapter" in capsys.readouterr().err
