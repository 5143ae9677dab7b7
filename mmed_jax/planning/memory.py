"""What fills a chip's memory, by arithmetic: term by term, without a compiler.

Used to name the biggest terms beside the compiler's totals, to say what to change when a program does not fit, to plan
for GPUs (for which nothing can be compiled here) and to prune a search.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from mmed_jax.config.values import batch_rows
from mmed_jax.model.config import LlamaConfig, num_params
from mmed_jax.planning.frozen_weights import frozen_weights

GIB = 2**30
# Queries at a time in model.attention_reference, which needs jax to import.
QUERY_BLOCK = 1024
_BYTES = {"float32": 4, "bfloat16": 2}
# Names of the terms that a run with an adapter has: what is never saved, and what is trained.
FROZEN, ADAPTER = "frozen weights", "adapter"


@dataclass(frozen=True)
class Term:
    """Bytes on the fullest chip. kind: "state" lives always, "step" while a step runs, "layer" while a layer is at
    work and "loss" while the loss is: of these two only the larger counts."""

    name: str
    bytes: float
    kind: str


def saved_per_token(cfg: LlamaConfig, remat: str, width: int, *, tensor: int = 1) -> float:
    """Bytes a token and layer that the forward pass keeps for the backward pass.

    Args:
      remat: policy of mmed_jax.model.remat. width: bytes of a value of compute_dtype. tensor: size of that mesh axis,
        over which heads and feed-forward values are split.
    """
    d, f = cfg.hidden_size, cfg.intermediate_size / tensor
    qkv = (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_dim / tensor
    context = cfg.num_heads * cfg.head_dim / tensor
    # The kernel's row sums (float32, a number a head) are kept with its output.
    sums = 4 * cfg.num_heads / tensor
    values = {
        "offload": 0.0,
        "full": d,
        "qkv": d + qkv,
        "minimal": d + qkv + d + 2 * f,
        "minimal_ctx": d + qkv + d + 2 * f + context,
        # Nothing is computed again: also what both norms keep, mostly in float32, and the parts of the gated product.
        "none": 13 * d + qkv + 5 * f + context,
    }[remat]
    return values * width + (sums if remat in ("minimal_ctx", "none") else 0.0)


def memory_terms(config: ConfigDict, cfg: LlamaConfig, mesh: dict[str, int]) -> list[Term]:
    """Every large thing on a chip, the biggest first.

    Args:
      config: of the run, attention resolved ("auto" is taken for a kernel). mesh: size of every mesh axis, resolved.

    An estimate of 10 to 20 % either way: the compiler shares buffers and keeps copies as it likes.
    """
    width = _BYTES[config.compute_dtype]
    weight = _BYTES[config.param_dtype]
    shards = mesh["fsdp"] * mesh["context"] * mesh["tensor"]
    frozen = frozen_weights(config, cfg, mesh)
    params = frozen.adapter if frozen else num_params(cfg) / shards
    rows = max(1.0, batch_rows(config) / config.grad_accum / (mesh["data"] * mesh["fsdp"]))
    tokens = rows * config.data.seq_len / mesh["context"]
    layer = (num_params(cfg) - _outside_layers(cfg)) / cfg.num_layers
    head = cfg.vocab_size * cfg.hidden_size / mesh["tensor"]
    split = mesh["fsdp"] * mesh["context"] > 1
    chunk = min(config.loss_chunk, tokens)
    f, d = cfg.intermediate_size / mesh["tensor"], cfg.hidden_size

    terms = [
        Term(ADAPTER if frozen else "weights", params * weight, "state"),
        # Of several micro-batches: the sum, and those of the one at work.
        Term("gradients", params * (4 if config.grad_accum == 1 else 8), "step"),
        Term(
            "saved activations",
            cfg.num_layers * tokens * saved_per_token(cfg, config.remat, width, tensor=mesh["tensor"]),
            "step",
        ),
        # One layer forward and backward: gated feed-forward values and their gradients, the residual beside them.
        Term("one layer's values", tokens * (4 * f + 6 * d) * width, "layer"),
        Term("logits of a chunk", 2 * chunk * cfg.vocab_size / mesh["tensor"] * 4, "loss"),
    ]
    if frozen:
        terms.append(Term(FROZEN, frozen.weights, "state"))
        # Nothing is summed for the head, and no layer has a gradient of its weights that would leave.
        terms.append(Term("output head", head * width if split else 0.0, "loss"))
        terms.append(Term("gathered layers", frozen.layer_bytes(width, split), "layer"))
    else:
        # Summed in float32 on every chip before it is shared out.
        terms.append(Term("output head and its gradient", head * (width + 4) if split else head * 4, "loss"))
        if split:
            # The next layer's weights arrive while one is at work; gradients of a layer leave in full size.
            terms.append(Term("gathered layers", layer / mesh["tensor"] * (2 * width + 4), "layer"))
    if config.attention == "reference":
        # Scores and probabilities of a block of queries (model.attention_reference), and their gradients.
        queries = min(QUERY_BLOCK, config.data.seq_len / mesh["context"])
        scores = rows * cfg.num_heads / mesh["tensor"] * queries * config.data.seq_len
        terms.append(Term("attention scores", 3 * 4 * scores, "layer"))
    if config.optim.name == "adafactor":
        rows_and_columns = params * (1 / cfg.hidden_size + 1 / cfg.intermediate_size)
        terms.append(Term("second moment (factored)", rows_and_columns * 4, "state"))
    else:
        terms.append(Term("first moment", params * _BYTES[config.optim.mu_dtype], "state"))
        terms.append(Term("second moment", params * 4, "state"))
    return sorted(terms, key=lambda t: -t.bytes)


def _outside_layers(cfg: LlamaConfig) -> int:
    tables = 1 if cfg.tie_word_embeddings else 2
    return cfg.hidden_size * (tables * cfg.vocab_size + 1)


def total(terms: list[Term], kind: str | None = None) -> float:
    """Bytes of what lives at the fullest moment: of "state", of "step" (which is all else), or of both."""
    of = {k: sum(t.bytes for t in terms if t.kind == k) for k in ("state", "step", "layer", "loss")}
    stepping = of["step"] + max(of["layer"], of["loss"])
    return {"state": of["state"], "step": stepping, None: of["state"] + stepping}[kind]
