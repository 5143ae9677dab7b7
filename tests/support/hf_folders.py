"""Small Hugging Face folders made on the spot: a vocabulary of 512 ids, tiny random Llamas from `transformers`."""

import base64
import json
from pathlib import Path

VOCAB = 512


def write_ranks(path: Path, words: tuple[bytes, ...] = ()) -> Path:
    """A tiktoken ranks file: the 256 single bytes, then `words` (each must be a join of two earlier entries)."""
    tokens = [bytes([b]) for b in range(256)] + list(words)
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)))
    return path


def tiny_tokenizer(folder: Path):
    """A Llama-3 tokenizer of 256 bytes and 256 special tokens."""
    from mmed_jax.data.tokenizers.tokenizer import load_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    return load_tokenizer(write_ranks(folder / "tokenizer.model"))


def torch_llama(**changes):
    """A random tiny `transformers` Llama with odd constants, grouped heads and llama3 scaling."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 3e-4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "bos_token_id": 256,
        "eos_token_id": [257, 265],
        "pad_token_id": 260,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 123456.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": 64,
        },
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()
    with torch.no_grad():  # norms and biases away from their trivial start
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    return model


def hf_folder(
    folder: Path, *, dtype: str = "float32", max_shard_size: str = "5GB", tokenizer: bool = True, **changes
) -> Path:
    """Saves `torch_llama(**changes)` by `transformers` itself, in `dtype`, with a tokenizer beside it."""
    import torch

    torch_llama(**changes).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        from mmed_jax.data.tokenizers.tokenizer import save_tokenizer

        save_tokenizer(tiny_tokenizer(folder.parent / f"{folder.name}-ranks"), folder)
    return folder


def random_params(cfg, seed: int = 0):
    """A float32 parameter tree drawn by numpy, so that nothing has to be compiled; norms around 1."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mmed_jax.model.llama import abstract_params

    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), abstract_params(cfg))
    for norm in (tree["layers"]["attn_norm"], tree["layers"]["mlp_norm"], tree["final_norm"]):
        norm["weight"] += 1
    return jax.tree.map(jnp.asarray, tree)


def raw_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of an HF folder as (dtype name, shape, bytes), read by a parser of its own (safetensors README)."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, t in header.items():
            assert name not in found, f"{name} stands in two files"
            begin, end = (start + o for o in t["data_offsets"])
            found[name] = t["dtype"], tuple(t["shape"]), data[begin:end]
    return found
