"""How a model's weights were tuned, as far as its folder tells: for results that stand beside each other."""

import contextlib
from typing import Any

from mmed_jax.checkpoints.run_directory import CONFIG_FILE
from mmed_jax.common import jsonl
from mmed_jax.common.buckets.download import address_of
from mmed_jax.data.chat_formats import syntax_of
from mmed_jax.hf.base_model import hub_name
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.load import read_json
from mmed_jax.hf.lora_model import LoraModel, adapter_text
from mmed_jax.hf.model_source import ModelSource
from mmed_jax.model.config import num_params
from mmed_jax.model.lora import num_adapter_params

METHODS = ("none", "lora", "full")
RANDOM = "random weights"


def export_info(source: ModelSource, made_by: str) -> dict[str, Any]:
    """What mmed_jax_export.json says of where an export came from, when its weights are read. JSON values."""
    chat = syntax_of(source.tokenizer)
    return {
        "made_by": made_by,
        "source_kind": source.kind,
        "source": source.path.resolve().name,
        "chat_format": chat.name if chat else None,
        **({} if source.step is None else {"step": source.step}),
        **({} if source.lora is None else {"adapter": source.lora.to_json()}),
        "tuning": tuning_of(source),
    }


def tuning_of(source: ModelSource) -> dict[str, Any]:
    """What was trained, and on what. Small files are read, and no device is touched.

    Returns:
      JSON values. "method", of METHODS: "none" is a Hugging Face folder as it came, of which no more is known; an
      export of this program says what it is an export of. "text": the same in words. "trained_parameters".
      "parameters": of the model in all. "base": name or folder of what the training began with, "" where that is not
      known. "quantization": how a LoRA's base was held. "adapter": LoraSpec.to_json() of a LoRA, else None.
    """
    total = num_params(source.cfg)
    known = {"parameters": total, "quantization": "compute", "adapter": None}
    if isinstance(source, LoraModel):
        held = source.record.get("quantization", "compute")
        return known | {
            "method": "lora",
            "text": adapter_text(source.spec) + (f", base in {held}" if held != "compute" else ""),
            "trained_parameters": num_adapter_params(source.spec, source.cfg),
            "base": source.base_name or source.base_path,
            "quantization": held,
            "adapter": source.spec.to_json(),
        }
    if source.kind == "run":
        return known | {"method": "full", "text": "full", "trained_parameters": total, "base": _start_of(source)}
    marker = source.path / MARKER
    exported = read_json(marker).get("tuning") if marker.is_file() else None
    if isinstance(exported, dict) and exported.get("method") in METHODS and exported.keys() >= known.keys():
        return exported
    return known | {
        "method": "none",
        "text": "none",
        "trained_parameters": 0,
        "base": hub_name(source) or address_of(source.path) or str(source.path.resolve()),
    }


def _start_of(run: ModelSource) -> str:
    """config.init_from of a run."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        start = jsonl.loads((run.path / CONFIG_FILE).read_bytes(), dict)["init_from"]
        return str(start) if start else RANDOM
    return ""
