"""Where a model comes from, for its card: base, stages of training with settings and data. Small files are read.

A run's checkpoint holds its config and the counts of its data; `init_from` leads to the run or folder before it, an
export's mmed_jax_export.json says what was known when it was written.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from mmed_jax.checkpoints.run_directory import CHECKPOINTS, read_meta, step_folders
from mmed_jax.common.buckets.download import address_of
from mmed_jax.common.checksums import MANIFEST
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.paths import resolve_path
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import is_bucket, parse_place
from mmed_jax.hf.base_model import hub_name
from mmed_jax.hf.export_folder import MARKER, PROVENANCE
from mmed_jax.hf.licences import base_facts, licence_of, official_name
from mmed_jax.hf.load import read_json
from mmed_jax.hf.lora_model import LoraModel, adapter_text
from mmed_jax.hf.model_source import ModelSource, open_whole

KEY = PROVENANCE
_DEEPEST = 8  # runs behind one another; more are a circle
# Of a run's config, in the order in which a card shows them.
SETTINGS = (
    *("optim.name", "optim.lr", "optim.schedule", "optim.warmup_ratio", "optim.warmup_steps", "optim.end_lr_ratio"),
    *("optim.b1", "optim.b2", "optim.weight_decay", "optim.clip_norm", "batch_size", "batch_tokens", "data.seq_len"),
    *("data.packing", "data.kind", "data.modes", "data.prompt_family", "data.language_weights", "data.source_weights"),
    *("epochs", "seed", "compute_dtype", "param_dtype"),
)


def provenance_of(source: ModelSource, base_name: str = "") -> dict[str, Any]:
    """What is known of a model's making. JSON values.

    Args:
      source: the model. base_name: what the user calls the base; "" = as found.

    Returns:
      "base": {"name" ("" = not known), "hub" (whether that is a name on the hub), "random" (made here from random
      weights), "licence", "licence_from" (of licences.licence_of)}.
      "stages", in their order: {"name", "method", "step", "tokens_seen", "settings": {key: value}, "data": [{"source",
      "license", "language", "records"}] or None where the run has no record of it, "validation": {name: value}}, and
      for an audit, where they are known, "run", "files", "start" and "base" (mmed_jax.lineage).
      "complete": whether the way back to the base was found.
      Of a mean of models, or what was trained from one, "merged" and "merged_stages" (merge_record.merged_provenance).
    """
    found = _provenance(source, 0)
    if base_name:
        licence, known_from = licence_of(base_name)
        if not licence:
            licence, known_from = found["base"]["licence"], found["base"]["licence_from"]
            known_from = "the name of what it began with" if known_from == "its name" else known_from
        found["base"] = base_facts(base_name, licence, known_from)
    return found


def _provenance(source: ModelSource, depth: int) -> dict[str, Any]:
    if isinstance(source, LoraModel):
        return _of_adapter(source, depth)
    if source.kind == "run":
        return _of_run(source.path, source.known_step, "all weights", depth)
    return _of_folder(source.path, hub_name(source))


def _of_folder(folder: Path, name: str = "") -> dict[str, Any]:
    """Of a Hugging Face folder: as its marker says it, else it is a base itself."""
    marker = read_json(folder / MARKER) if (folder / MARKER).is_file() else {}
    if isinstance(marker.get(KEY), dict) and marker[KEY].keys() >= {"base", "stages", "complete"}:
        return marker[KEY]
    called = folder.resolve().name
    name = name or official_name(called)
    licence, known_from = licence_of(name or called, folder)
    # An export without this record says of what it is one, and no more.
    return {"base": base_facts(name or called, licence, known_from), "stages": [], "complete": not marker}


def _of_adapter(model: LoraModel, depth: int) -> dict[str, Any]:
    if model.peft is not None:
        marker = read_json(model.peft.path / MARKER) if (model.peft.path / MARKER).is_file() else {}
        if isinstance(marker.get(KEY), dict):
            return marker[KEY]
        beneath = _provenance(model.base, depth + 1) if model.base else _unknown()
        stage = describe_stage(model.peft.path, None, adapter_text(model.spec), {}, {"name": "adapter"})
        return beneath | {"stages": [*beneath["stages"], stage]}
    found = _of_run(model.path, model.known_step, adapter_text(model.spec), depth)
    if not found["complete"] and model.base is not None and model.base.kind == "hf":
        beneath = _of_folder(model.base.path, model.base_name)
        found = beneath | {"stages": [*beneath["stages"], *found["stages"]]}
    base = found["base"]
    if not base["hub"] and not base["random"] and model.base_name:
        found["base"] = base_facts(
            model.base_name, *licence_of(model.base_name, model.base.path if model.base else None)
        )
    elif not base["name"] and not base["random"] and model.base_path:
        called = Path(model.base_path).name
        found["base"] = base_facts(official_name(called) or called, *licence_of(called))
    return found


def _of_run(folder: Path, step: int | None, method: str, depth: int) -> dict[str, Any]:
    try:
        meta = read_meta(folder, step) if step is not None else {}
    except (OSError, ValueError):  # reading the weights says what is wrong with a checkpoint
        meta = {}
    config: dict[str, Any] = meta["config"] if isinstance(meta.get("config"), dict) else {}
    before = _before(config.get("init_from"), depth + 1)
    return before | {"stages": [*before["stages"], describe_stage(folder, step, method, meta, config)]}


def _before(start: Any, depth: int) -> dict[str, Any]:
    """Of what a run began with: config.init_from."""
    if start == "":
        base = {**base_facts("", "", ""), "random": True}
        return {"base": base, "stages": [], "complete": True}
    if not isinstance(start, str) or depth > _DEEPEST:
        return _unknown()
    called = start.rstrip("/").rpartition("/")[2]
    place = None if is_bucket(start) else resolve_path(start)
    if place is not None and place.is_dir():
        if (place / "config.json").is_file() and not (place / CHECKPOINTS).is_dir():
            return _of_folder(place, _name_of(place))
        try:
            steps = step_folders(place)
            if steps:
                newest = max(steps)
                adapter = read_meta(place, newest).get("lora")
                return _of_run(place, newest, "an adapter" if adapter else "all weights", depth)
        except (OSError, ValueError, WorkError):
            pass
    name = official_name(called)
    return {"base": base_facts(name or called, *licence_of(called)), "stages": [], "complete": bool(name)}


def _name_of(folder: Path) -> str:
    try:
        return hub_name(open_whole(folder))
    except UserError:  # of an adapter's folder, or a damaged one: it is known by its name
        return ""


def describe_stage(
    folder: Path, step: int | None, method: str, meta: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """A stage of `provenance_of`. JSON values.

    Args:
      folder: of the run. meta: of its checkpoint at `step`. config: the one in `meta`, {} where there is none.
    """
    state = meta.get("data_state") or {}
    numbers = {k: v for k, v in (meta.get("metrics") or {}).items() if k.startswith("validation/")}
    return {
        "name": str(config.get("name") or folder.resolve().name),
        "method": method,
        "step": step,
        "tokens_seen": meta.get("tokens_seen"),
        "settings": _settings(config),
        "data": state.get("contents"),
        "validation": numbers,
        **_audit_facts(folder, step, meta, state),
    }


def _audit_facts(folder: Path, step: int | None, meta: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """What an audit compares (mmed_jax.lineage): the checkpoint, its record files, what it began with, its base."""
    facts: dict[str, Any] = {key: state[key] for key in ("files", "start") if key in state}
    if step is not None:
        facts["run"] = {"path": address_of(folder) or str(folder), "step": step, "sha256": manifest_hash(folder, step)}
    if isinstance(meta.get("lora"), dict):
        base = meta["lora"].get("base") or {}
        facts["base"] = {key: base.get(key) for key in ("path", "kind", "step", "fingerprint", "ignore_keys")}
    return facts


def manifest_hash(run_dir: str | Path, step: int) -> str:
    """SHA-256 (hex) of a checkpoint's manifest.json, which has the checksums of its files; "" where there is none."""
    try:
        manifest = read_bytes(parse_place(run_dir) / CHECKPOINTS / str(step) / MANIFEST)
    except (OSError, WorkError):
        return ""
    return hashlib.sha256(manifest).hexdigest()


def without_places(value: Any) -> Any:
    """JSON values with absolute paths of a machine cut to their last name, for readers elsewhere."""
    if isinstance(value, str):
        return PurePath(value).name if value.startswith(("/", "~")) else value
    if isinstance(value, Mapping):
        return {without_places(k): without_places(v) for k, v in value.items()}
    return [without_places(v) for v in value] if isinstance(value, list | tuple) else value


_ZERO_IS_UNUSED = ("optim.warmup_steps", "batch_tokens", "epochs")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of SETTINGS that a config has and uses."""
    found = {key: _value(config, key) for key in SETTINGS}
    return {k: v for k, v in found.items() if v not in (None, "", {}, []) and (v or k not in _ZERO_IS_UNUSED)}


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _unknown() -> dict[str, Any]:
    return {"base": base_facts("", "", ""), "stages": [], "complete": False}
