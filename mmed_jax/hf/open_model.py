"""One door to a trained model: a run directory, a Hugging Face folder, a run of adapters, a base with a PEFT folder."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmed_jax.checkpoints.run_directory import CHECKPOINTS
from mmed_jax.common.buckets.download import fetch_model
from mmed_jax.common.errors import UserError, warn
from mmed_jax.common.paths import expand_home
from mmed_jax.common.places import is_bucket
from mmed_jax.hf.base_model import open_base
from mmed_jax.hf.lora_model import LoraModel, adapt
from mmed_jax.hf.model_source import ASSETS, ModelSource, identity, lora_record, open_whole, trained_prompts
from mmed_jax.hf.peft_config import CONFIG_FILE, read_config_file
from mmed_jax.hf.peft_folder import base_record, is_peft_folder, open_peft_folder
from mmed_jax.model.lora import LoraSpec

__all__ = ["ASSETS", "LoraModel", "ModelSource", "identity", "open_model", "trained_prompts"]


def open_model(
    path: str | os.PathLike,
    step: int | None = None,
    ignore_keys: Collection[str] = (),
    *,
    adapter: str | os.PathLike = "",
    base_dir: str | os.PathLike = "",
    merge_into: str = "trained",
    adapter_only: bool = False,
) -> ModelSource:
    """Opens a run directory, a Hugging Face folder, or a PEFT folder.

    Args:
      path: the folder, or its gs:// address (also those below); for a run also its checkpoints/ or one step in it.
      step: checkpoint of a run; None = the newest good one.
      ignore_keys: of an HF folder's config.json, not known here, that the user vouches for (model.config.from_hf).
      adapter: PEFT folder whose adapter goes onto the model at `path`; "" = none.
      base_dir: where the base of a LoRA run or of a PEFT folder lies now; "" = where it lay, as far as that is known.
      merge_into: weights that an adapter is added to: "trained" = as they were held in training (decoded, of a
        quantised base), "original" = those of the base's files.
      adapter_only: of a LoRA run only the adapter is wanted: no error where its base is not there.

    Returns:
      A LoraModel where there is an adapter, else a plain ModelSource.

    Raises:
      UserError: nothing there (with the download command for a hub name), none of these, no checkpoint or not that one,
        config.json or headers wrong; an adapter that is refused, or whose base is missing or another.
    """
    path, base_dir = fetch_model(path, step), fetch_model(base_dir) if base_dir else ""
    if adapter:
        adapter = fetch_model(adapter)
        base = _open_plain(path, step, ignore_keys)
        if base_dir:
            raise UserError("--base: --model names the base where --adapter is given; leave it out")
        return adapt(base, open_peft_folder(adapter, base.cfg), merge_into)
    folder = expand_home(path)
    if is_peft_folder(folder):
        if step is not None:
            raise UserError(f"model: {folder} is a PEFT folder; --step={step} goes with runs only")
        place = _base_of(folder, base_dir)
        base = _open_plain(place, _step_of(folder, place), ignore_keys)
        return adapt(base, open_peft_folder(folder, base.cfg), merge_into)
    source = open_whole(path, step, ignore_keys)
    record = lora_record(source)
    if record is None:
        if base_dir:
            raise UserError(f"--base={base_dir}: {path} has no adapter, and needs no base; leave it out")
        if (source.path / CONFIG_FILE).is_file():
            warn(f"{source.path} holds an adapter beside its weights, which is not used (--adapter={path} adds it)")
        return source
    return _open_lora_run(source, record, str(base_dir), merge_into, adapter_only)


def _open_lora_run(
    source: ModelSource, record: dict[str, Any], base_dir: str, merge_into: str, adapter_only: bool
) -> LoraModel:
    try:
        spec = LoraSpec.from_json(record["spec"])
        trained_on = dict(record["base"])
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"model: {source.path}: the checkpoint's record of its adapter is damaged ({e})") from e
    return LoraModel(
        source.path,
        source.kind,
        source.cfg,
        source.step,
        source.ignore_keys,
        lora=spec,
        base=_base_beneath(trained_on, base_dir, source.path, needed=not adapter_only),
        record=trained_on,
        merge_into=merge_into,
    )


def _base_beneath(record: dict, base_dir: str, run_dir: Path, needed: bool) -> ModelSource | None:
    """The base of a run. Raises UserError where it is needed, or named, and can't be had."""
    try:
        return open_base(record, base_dir, run_dir)
    except UserError:
        if needed or base_dir:
            raise
        return None


def _step_of(folder: Path, place: str | os.PathLike) -> int | None:
    """The checkpoint that a PEFT folder of this program was trained on, where its base is a run."""
    if not (expand_home(place) / CHECKPOINTS).is_dir():
        return None
    return (base_record(folder) or {}).get("step")


def _open_plain(path: str | os.PathLike, step: int | None, ignore_keys: Collection[str]) -> ModelSource:
    """A model to put an adapter onto. Raises UserError for one that has an adapter already."""
    folder = expand_home(path)
    if is_peft_folder(folder) or lora_record(source := open_whole(path, step, ignore_keys)) is not None:
        raise UserError(
            f"model: {folder} is an adapter itself; name its base, or export it merged first (mmed_jax.export)"
        )
    return source


def _base_of(folder: Path, base_dir: str | os.PathLike) -> str | os.PathLike:
    """The folder of a PEFT folder's base: as given, else as its config says it. Raises UserError: neither is there."""
    if base_dir:
        return base_dir
    name = read_config_file(folder).get("base_model_name_or_path")
    if isinstance(name, str) and is_bucket(name):
        return fetch_model(name)
    if isinstance(name, str) and name and expand_home(name).is_dir():
        return name
    of = f" of '{name}'" if name else ""
    raise UserError(f"model: {folder} is an adapter{of}; say in which folder that model lies with --base=DIR")
