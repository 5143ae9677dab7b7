"""README.md of an adapter's folder: what it is for, how it is loaded, whose licence holds."""

import re
from collections.abc import Mapping
from typing import Any

from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.lora import LoraSpec, num_adapter_params

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_KINDS = {"nf4": "4-bit NF4 codes (blocks of 64)", "int8": "8-bit codes by output row"}


def adapter_card(spec: LoraSpec, cfg: LlamaConfig, base_name: str, base_record: Mapping[str, Any] | None = None) -> str:
    """The text of README.md.

    Args:
      base_name: of the model it was trained on. base_record: of hf.base_model; None = not known.
    """
    name = base_name if _HUB_NAME.fullmatch(base_name) else ""
    front = ["---", *([f"base_model: {name}"] if name else []), "library_name: peft", "pipeline_tag: text-generation"]
    tags = ["lora", *([f"base_model:adapter:{name}"] if name else [])]
    front += ["tags:", *(f"- {tag}" for tag in tags), "---", ""]
    method = ("rank-stabilised " if spec.rslora else "") + ("DoRA" if spec.dora else "LoRA")
    ranks = sorted({r for _, by_layer, _ in spec.modules for r in by_layer if r})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    modules = ", ".join(t for t, _, _ in spec.modules)
    lines = [
        "# Adapter",
        "",
        f"A {method} adapter of `{base_name}`: rank {shown}, alpha {spec.alpha:g}, modules {modules}; "
        f"{num_adapter_params(spec, cfg):,} trained parameters in float32. Written by mmed_jax.",
        "",
        "**For research. Not for clinical use.** Nothing here has been validated for the care of patients.",
        "",
        "It changes that base and no other: on different weights its output means nothing.",
        *_quantised(base_record),
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{base_name}")',
        'model = PeftModel.from_pretrained(model, "THIS_FOLDER")',
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        "    python -m mmed_jax.generate --model=BASE --adapter=THIS_FOLDER --prompt=TEXT",
        "",
        "## Licence",
        "",
        "An adapter is a work derived from its base, and that model's licence holds for it as well: for Llama models",
        "the Llama community licence of their release, with its terms on names, notices and use. The records that it",
        "was trained on have licences of their own.",
        "",
    ]
    return "\n".join(front + lines)


def _quantised(record: Mapping[str, Any] | None) -> list[str]:
    kind = (record or {}).get("quantization")
    if kind not in _KINDS:
        return []
    return [
        "",
        f"While it was trained the base's linear layers were held as {_KINDS[kind]}; on the unquantised base it "
        "computes slightly other numbers.",
    ]
