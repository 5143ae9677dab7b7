"""Tiny random Llamas in both worlds: a `transformers` model in float32, and its weights as our tree (plain numpy)."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig, from_hf

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}

# Odd on purpose: a hard-coded "right" constant must fail.
TINY = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 123456.0,
    "rms_norm_eps": 3e-4,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large enough that attention is far from uniform and every constant shows in the logits.
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 7.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 64,
}


def torch_llama(hf: dict, seed: int = 0) -> transformers.LlamaForCausalLM:
    """A random float32 model whose norms and biases are away from 1 and 0."""
    torch.manual_seed(seed)
    # A copy, because transformers writes rope_theta into the rope_scaling it is given.
    config = transformers.LlamaConfig(**copy.deepcopy({k: v for k, v in hf.items() if k != "model_type"}))
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.copy_(0.3 * torch.randn_like(p))
    return model


def to_tree(cfg: LlamaConfig, tensors: dict) -> dict:
    """HF state dict (or gradients by the same names) -> our tree of numpy arrays."""

    def get(name):
        return tensors[name].detach().numpy()

    layers: dict = {}
    for ours, theirs in LAYER_NAMES.items():
        for kind in ("weight", "bias"):
            names = [f"model.layers.{i}.{theirs}.{kind}" for i in range(cfg.num_layers)]
            if names[0] in tensors:
                layers.setdefault(ours, {})[kind] = np.stack([get(n) for n in names])
    tree = {
        "embed": {"weight": get("model.embed_tokens.weight")},
        "layers": layers,
        "final_norm": {"weight": get("model.norm.weight")},
    }
    if not cfg.tie_word_embeddings:
        tree["head"] = {"weight": get("lm_head.weight")}
    return tree


def pair(hf: dict, seed: int = 0):
    """(torch model, our config, our parameters) of one random model."""
    model = torch_llama(hf, seed)
    cfg = from_hf(hf)
    return model, cfg, jax.tree.map(jnp.asarray, to_tree(cfg, model.state_dict()))


@functools.partial(jax.jit, static_argnums=1, static_argnames=("compute_dtype", "remat", "attention"))
def _logits(params, cfg, tokens, **kwargs):
    return llama.unembed(params, cfg, llama.forward(params, cfg, tokens, **kwargs))


def logits(params: dict, cfg: LlamaConfig, tokens, **kwargs) -> np.ndarray:
    """Our float32 logits [B, T, V]."""
    return np.asarray(_logits(params, cfg, jnp.asarray(tokens, jnp.int32), **kwargs))


def torch_logits(model, tokens) -> np.ndarray:
    """Logits [B, T, V] of the transformers model."""
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))).logits.numpy()


def tiny_config(**changes) -> LlamaConfig:
    """Our config of TINY, with fields replaced."""
    return dataclasses.replace(from_hf(TINY | {"rope_scaling": LLAMA3_ROPE}), **changes)


def random_tokens(cfg: LlamaConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, cfg.vocab_size, (batch, length), dtype=np.int32)
