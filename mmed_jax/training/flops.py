"""FLOPs of a training step by formula, and their share of what the devices can do by data sheet, MFU."""

from typing import TYPE_CHECKING

from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel.chips import peak_flops

if TYPE_CHECKING:
    from mmed_jax.model.lora import LoraSpec


def matmul_params(cfg: LlamaConfig) -> int:
    """Parameters that take part in a matrix product: all but norms, biases and the input embedding look-up.

    A tied embedding counts once, as the output projection.
    """
    heads = cfg.hidden_size * cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_kv_heads)
    mlp = 3 * cfg.hidden_size * cfg.intermediate_size
    return cfg.num_layers * (heads + mlp) + cfg.vocab_size * cfg.hidden_size


def adapter_matmul_params(spec: "LoraSpec", cfg: LlamaConfig) -> int:
    """Numbers of an adapter that take part in a matrix product: not DoRA's magnitudes, nor what an embedding looks up.

    By the rank of each layer; the zeros that fill a smaller one up to the largest count as no work.
    """
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    d, f, vocab = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    # Sizes of input and output together.
    sizes = {"q": d + heads, "k": d + kv_heads, "v": d + kv_heads, "o": heads + d, "gate": d + f, "up": d + f}
    sizes |= {"down": f + d, "head": d + vocab, "embed": d}
    return sum(sizes[name] * sum(ranks) for name, ranks, _ in spec.modules)


def train_flops_per_token(cfg: LlamaConfig, seq_len: int, spec: "LoraSpec | None" = None) -> float:
    """Model FLOPs of forward and backward per token of a row of `seq_len` tokens, causal count.

    All weights trained   6 * matmul_params + 6 * layers * heads * head_dim * seq_len
    An adapter (`spec`)   4 * matmul_params + 6 * layers * heads * head_dim * seq_len + 6 * adapter_matmul_params

    2 FLOPs a multiply-add, backward twice the forward. Attention: a query meets seq_len / 2 keys on average, twice
    (scores and values): 2 * 2 * (seq_len / 2) * heads * head_dim forward. What remat computes again is not counted.
    Frozen weights have no gradient of their own, so that their backward is once the forward: what flows on to the layer
    below. Decoding quantised ones is not counted.
    Rows of packed documents are counted by the length of the row, although a document's queries meet fewer keys.

    Llama-3-8B: 46.64e9 at 2048, 51.47e9 at 8192; LoRA of rank 16 on all linear modules 31.88e9 and 36.71e9. The
    non-causal count, which some systems state, has 12 in place
    of the second 6.
    """
    attention = 6.0 * cfg.num_layers * cfg.num_heads * cfg.head_dim * seq_len
    if spec is None:
        return 6.0 * matmul_params(cfg) + attention
    return 4.0 * matmul_params(cfg) + attention + 6.0 * adapter_matmul_params(spec, cfg)


def mfu(tokens_per_second: float, flops_per_token: float, device_kind: str, num_devices: int) -> float | None:
    """Model FLOPs utilisation in 0..1: tokens/s of all devices x FLOPs a token / (peak bfloat16 FLOP/s x devices).

    None where the peak is not known. A float32 run is measured against the bfloat16 peak as well.
    """
    peak = peak_flops(device_kind)
    return None if peak is None else tokens_per_second * flops_per_token / (peak * num_devices)
