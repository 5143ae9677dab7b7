"""The same adapter in both worlds: a PEFT model around a tiny `transformers` Llama, and our trees of numpy arrays."""

from types import SimpleNamespace

import numpy as np
import torch

from mmed_jax.model import lora
from mmed_jax.model.config import LlamaConfig
from tests.support import parity as ph

PEFT_NAMES = {k: ph.LAYER_NAMES[k].rpartition(".")[2] for k in lora.LINEAR_TARGETS} | {
    "head": "lm_head",
    "embed": "embed_tokens",
}


def settings(**changes) -> SimpleNamespace:
    """config.lora with its defaults, rank 4."""
    neutral = {"rank": 4, "alpha": 0.0, "rslora": False, "dora": False, "dropout": 0.0, "layers": ()}
    return SimpleNamespace(
        **neutral | {"targets": lora.LINEAR_TARGETS, "rank_pattern": {}, "alpha_pattern": {}} | changes
    )


def peft_pair(hf: dict, seed: int = 0, **changes):
    """(PEFT model in training mode, our config, base tree, spec, adapter tree) with adapters that do something."""
    model, cfg, base = ph.pair(hf, seed)
    own = settings(**changes)
    spec = lora.lora_spec(own, cfg)

    def theirs(pattern: dict) -> dict:
        parts = {name: name.rpartition(".") for name in pattern}
        full = {n: f"{p}.{_in_layer(t)}" if p else PEFT_NAMES[t] for n, (p, _, t) in parts.items()}
        # PEFT takes the first that fits.
        return {full[n]: pattern[n] for n in sorted(pattern, key=len, reverse=True)}

    import peft  # takes seconds; a worker that only collects these tests does without

    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=own.rank,
        lora_alpha=own.alpha or 2 * own.rank,
        use_rslora=own.rslora,
        use_dora=own.dora,
        target_modules=[PEFT_NAMES[t] for t in own.targets],
        layers_to_transform=list(own.layers) or None,
        rank_pattern=theirs(own.rank_pattern),
        alpha_pattern=theirs(own.alpha_pattern),
    )
    wrapped = peft.get_peft_model(model, config).train()
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                p.copy_(0.1 * torch.randn_like(p))
            elif "magnitude" in name:
                p.mul_(1 + 0.2 * torch.rand_like(p))
    return wrapped, cfg, base, spec, adapter_tree(spec, cfg, dict(wrapped.named_parameters()))


def _in_layer(target: str) -> str:
    return ph.LAYER_NAMES[target]


def adapter_tree(spec: lora.LoraSpec, cfg: LlamaConfig, tensors: dict) -> dict:
    """Tensors (or gradients) of a PEFT model by name -> our adapter tree, smaller ranks filled up with zeros."""

    def leaf(prefix: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        out = np.zeros(shape, np.float32)
        embedding = "embed_tokens" in prefix
        names = {"lora_a": "A", "lora_b": "B"}
        if kind == "magnitude":
            name = f"{prefix}.lora_magnitude_vector.default.weight"
        elif embedding:
            name = f"{prefix}.lora_embedding_{names[kind]}.default"
        else:
            name = f"{prefix}.lora_{names[kind]}.default.weight"
        if name in tensors:
            value = tensors[name].detach().numpy()
            out[tuple(slice(n) for n in value.shape)] = value
        return out

    tree: dict = {"layers": {}}
    shapes = lora.abstract_adapter(spec, cfg)
    for target, _, _ in spec.modules:
        if target in lora.LINEAR_TARGETS:
            prefixes = [f"base_model.model.model.layers.{i}.{_in_layer(target)}" for i in range(cfg.num_layers)]
            tree["layers"][target] = {
                kind: np.stack([leaf(p, kind, x.shape[1:]) for p in prefixes])
                for kind, x in shapes["layers"][target].items()
            }
        else:
            prefix = "base_model.model." + {"head": "lm_head", "embed": "model.embed_tokens"}[target]
            tree[target] = {kind: leaf(prefix, kind, x.shape) for kind, x in shapes[target].items()}
    return tree


def gradients(model: torch.nn.Module) -> dict:
    """The gradients of a PEFT model by the names of its parameters."""
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
