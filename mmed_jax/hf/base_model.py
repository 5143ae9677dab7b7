"""The frozen model beneath an adapter: written down when training starts, found again and compared afterwards.

An adapter means something on the weights it was trained on and on no others, and nothing in its own file says which
those were. So a checkpoint of an adapter keeps a record of its base: where it lay, and the fingerprint of its files
(hf.model_source.identity). The folder may move; another model is never taken for it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmed_jax.common.buckets.download import address_of, fetch_model
from mmed_jax.common.errors import UserError
from mmed_jax.data.tokenizers.tokenizer import local_path
from mmed_jax.hf.load import read_json
from mmed_jax.hf.model_source import ModelSource, identity, lora_record, open_whole

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NAME_IT = "say where that model lies now with --base=DIR"
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def record_base(source: ModelSource, kind: str, dtype: Any) -> dict[str, Any]:
    """What a checkpoint of an adapter keeps of its base; JSON values.

    Args:
      source: the base as it is trained on; of a run the step is the one that was loaded.
      kind: how it is held, of model.quantization.KINDS. dtype: of compute, a name or a numpy or jax dtype.

    Returns:
      {"path" (absolute, or gs://), "kind" ("hf" or "run"), "step", "fingerprint", "quantization", "dtype", "hub_name"
      ("" = not known), "ignore_keys"}.

    Raises:
      UserError: `source` is itself a base with an adapter.
    """
    if source.lora is not None or lora_record(source) is not None:
        raise UserError(f"base model: {source.path} is a base with an adapter; export it merged first")
    return {
        "path": address_of(source.path) or str(source.path.resolve()),
        **identity(source),
        "quantization": kind,
        "dtype": dtype if isinstance(dtype, str) else _dtype_name(dtype),
        "hub_name": hub_name(source),
        "ignore_keys": list(source.ignore_keys),
    }


def open_base(record: Mapping[str, Any], base_dir: str = "", run_dir: str | os.PathLike = "") -> ModelSource:
    """Opens the base that `record` describes, and only that one; reads small files and 3 MiB of each weight file.

    Args:
      record: from `record_base`, as a checkpoint holds it.
      base_dir: where it lies now; "" = where it lay.
      run_dir: the run of the adapter: a base that lay in it has moved with it.

    Raises:
      UserError: it is not there, or other weights are; one line that says what to type.
    """
    wanted = _read_record(record)
    place = base_dir or wanted.path
    if not base_dir and run_dir and not Path(place).exists() and (moved := Path(run_dir) / Path(place).name).is_dir():
        place = str(moved)
    try:
        folder = local_path(fetch_model(place, wanted.step), "base model")
    except UserError as e:
        if base_dir:
            raise
        raise UserError(
            f"base model: the adapter was trained on {wanted.path}, which is not there any more; {_NAME_IT}"
        ) from e
    try:
        source = open_whole(folder, wanted.step, record.get("ignore_keys", ()))
    except UserError as e:
        raise UserError(f"base model: {place} is not what the adapter was trained on: {e}; {_NAME_IT}") from e
    found = identity(source)
    if (found["kind"], found["fingerprint"]) == (wanted.kind, wanted.fingerprint):
        return source
    step = f", step {wanted.step}" if wanted.step is not None else ""
    original = f" ({wanted.path}{step})" if base_dir else ""
    raise UserError(
        f"base model: {place} holds other weights than those the adapter was trained on{original}; an adapter fits its "
        f"own base only: {_NAME_IT}"
    )


def hub_name(source: ModelSource) -> str:
    """The name on the Hugging Face hub, as far as folder or config.json tell it ("org/model"), else ""."""
    for part in source.path.resolve().parts:
        if cached := _HUB_CACHE.fullmatch(part):
            return f"{cached[1]}/{cached[2]}"
    file = source.assets / "config.json"
    name = read_json(file).get("_name_or_path") if file.is_file() else None
    return name if isinstance(name, str) and _HUB_NAME.fullmatch(name) and not Path(name).exists() else ""


class _Record(NamedTuple):
    path: str
    kind: str
    step: int | None
    fingerprint: str


def _read_record(record: Mapping[str, Any]) -> _Record:
    try:
        return _Record(*(record[name] for name in _Record._fields))
    except (KeyError, TypeError) as e:
        raise UserError(f"base model: the checkpoint's record of it is damaged ({e} is missing)") from e


def _dtype_name(dtype: Any) -> str:
    import jax.numpy as jnp

    return jnp.dtype(dtype).name
