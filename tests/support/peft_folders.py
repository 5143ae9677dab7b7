"""Adapters that `peft` itself makes on a tiny Llama, and a LoRA run as training leaves it."""

import copy
import warnings
from pathlib import Path

import numpy as np
import torch

# What adapters of other programs look like: keyword arguments of LoraConfig.
KINDS = {
    "lora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "up_proj", "down_proj"], "use_dora": True, "layers_to_transform": [0, 2]},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 6},
        "alpha_pattern": {"^model.layers.2.*v_proj": 32, "up_proj": 3.5},
    },
    "regex": {"target_modules": r".*\.layers\.(0|2)\.mlp\.(gate|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "layers": {"target_modules": ["o_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "tables": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "dora tables": {"target_modules": ["v_proj", "lm_head", "embed_tokens"], "use_dora": True},
}


def peft_model(model, seed: int = 0, **settings):
    """`model` (a copy of it) with a peft adapter whose every tensor is away from its start."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 10, "task_type": "CAUSAL_LM", **settings})
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_magnitude" in name:
                p.mul_(1 + 0.3 * torch.rand_like(p))
            elif "lora_" in name:
                p.copy_(0.1 * torch.randn_like(p))
    return adapted


def save_peft(adapted, folder: Path) -> Path:
    """peft's own save_pretrained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tables are stored as well
        adapted.save_pretrained(folder)
    return folder


def load_peft(model, folder: Path):
    """A folder of ours on a copy of `model`, as peft's users load one; any warning is an error."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of peft itself, which asks transformers by an old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def merged_weights(adapted) -> dict[str, torch.Tensor]:
    """peft's merge_and_unload, by HF names; `adapted` itself stays as it is."""
    return copy.deepcopy(adapted).merge_and_unload().state_dict()


def random_adapter(spec, cfg, seed: int = 0):
    """An adapter tree of `spec` as float32 numpy arrays: zeros where smaller ranks are filled up, magnitudes near 1."""
    import jax

    from mmed_jax.model.lora import abstract_adapter, rank_mask

    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape, np.float32), abstract_adapter(spec, cfg))
    for target, _, _ in spec.modules:
        module = tree["layers"].get(target) or tree[target]
        kept = rank_mask(spec, target)
        module["lora_a"] *= kept[..., :, None]
        module["lora_b"] *= kept[..., None, :]
        if "magnitude" in module:
            module["magnitude"] += 1
    return tree


def lora_run(folder: Path, spec, adapter, base, tokenizer, *, quantization: str = "compute", dtype="float32") -> Path:
    """A run directory whose only checkpoint holds an adapter on `base` (a ModelSource)."""
    import json

    import jax
    import jax.numpy as jnp

    from mmed_jax.checkpoints.checkpointer import Checkpointer
    from mmed_jax.hf.base_model import record_base
    from mmed_jax.hf.save import write_assets

    record = {"spec": spec.to_json(), "base": record_base(base, quantization, dtype)}
    with Checkpointer(folder, every_steps=1, every_minutes=0, keep_last=2, keep_best=0, async_=False) as checkpointer:
        state = {"params": jax.tree.map(jnp.asarray, adapter), "opt_state": {}, "step": jnp.int32(5)}
        checkpointer.maybe_save(5, state, data_state={}, config={"name": "stage1"}, metrics={}, adapter=record)
    (folder / "config.json").write_text(json.dumps({"name": "stage1", "run_dir": str(folder)}))
    write_assets(folder / "hf_assets", base.cfg, tokenizer, dtype="float32")
    return folder
