"""The run directory: may we write there, does it belong to this config. (Its lock: local_run.py, bucket_run.py.)

Nothing here imports jax, so that these mistakes are said before any device is touched.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmed_jax.checkpoints.local_run import LocalRun
from mmed_jax.checkpoints.metrics_file import METRICS_FILE
from mmed_jax.checkpoints.run_storage import CHECKPOINTS, LOCK_FILE, RunStorage
from mmed_jax.common.errors import UserError
from mmed_jax.common.jsonl import loads
from mmed_jax.common.output_files import write_json
from mmed_jax.common.place_files import read_bytes
from mmed_jax.common.places import Place, is_bucket, parse_place
from mmed_jax.config.resume import plain_config, training_differences, training_keys

CONFIG_FILE = "config.json"
META_ITEM, META_FILE = "meta", "meta.json"

_STORAGES: dict[str, RunStorage] = {}


def run_storage(run_dir: str | os.PathLike) -> RunStorage:
    """The storage of a run directory, the same object for the same place, so that one that is locked is known.

    Raises:
      UserError: the place is none (places.parse_place).
    """
    place = parse_place(run_dir, "run_dir")
    name = str(place) if is_bucket(place) else str(place.absolute())
    if name not in _STORAGES:
        if is_bucket(place):
            from mmed_jax.checkpoints.bucket_run import BucketRun

            _STORAGES[name] = BucketRun(place)
        else:
            _STORAGES[name] = LocalRun(Path(name))
    return _STORAGES[name]


def step_folders(run_dir: str | os.PathLike) -> dict[int, Place]:
    """{step: folder} of the finished checkpoints of a run, ascending (unfinished ones have another name).

    Raises:
      WorkError: the folder is there and cannot be read.
    """
    return {step: p for step, (p, instead) in run_storage(run_dir).named_steps().items() if not instead}


def odd_steps(run_dir: str | os.PathLike) -> dict[int, str]:
    """{step: what it is} of what has a checkpoint's name and is no folder: a file, a link to nothing.

    Raises:
      WorkError: the folder is there and cannot be read.
    """
    return {step: instead for step, (_, instead) in run_storage(run_dir).named_steps().items() if instead}


def read_meta(run_dir: str | os.PathLike, step: int) -> dict[str, Any]:
    """The meta record of one checkpoint: see checkpoint.Checkpointer. Raises OSError or ValueError."""
    path = parse_place(run_dir) / CHECKPOINTS / str(step) / META_ITEM / META_FILE
    meta = loads(read_bytes(path), dict)
    if meta.get("step") != step:
        raise ValueError(f"{path}: not the meta record of step {step}")
    return meta


def guard_run_dir(run_dir: str | os.PathLike, config: Mapping[str, Any], *, write: bool = True) -> Place:
    """Creates the run directory, or makes sure that an existing one can be written and belongs to `config`.

    Writes config.json, unless `write` is False: before the directory is locked, another run may be at work in it.
    While a directory holds no checkpoint its config may still change (there is nothing to lose); from the first
    checkpoint on, keys that change the training must stay (those with `may_change` in mmed_jax/config/defaults.py may
    differ). A key that a run of an earlier version does not have counts as having had the neutral value given there.

    Raises:
      UserError: not a directory, not writable, full, an address other than gs://, a run whose files are none (a pipe)
        or cannot be read, or one of another config (with the first differing keys, both values, and what to do).
      WorkError: the checkpoints' folder cannot be read, or config.json cannot be written.
    """
    path = parse_place(run_dir, "config.run_dir")
    run_storage(path).check((CONFIG_FILE, METRICS_FILE, LOCK_FILE))
    saved = saved_config(path)
    steps = step_folders(path)
    if saved is not None and steps:
        differences = training_differences(saved, config)
        if differences:
            raise UserError(_other_config(path, max(steps), differences))
    if write:
        write_json(path / CONFIG_FILE, plain_config(config))
    return path


def saved_config(path: Place) -> dict[str, Any] | None:
    """config.json of the run, or the newest checkpoint's copy when it is gone or damaged; None: neither can be read.

    Raises:
      UserError: config.json is there and cannot be read.
    """
    try:
        return _usable(loads(read_bytes(path / CONFIG_FILE), dict))
    except (FileNotFoundError, ValueError):
        pass
    except OSError as e:
        # It is there, and would be overwritten without having been compared.
        raise UserError(f"run_dir={path}: {CONFIG_FILE} cannot be read ({e.strerror or e})") from e
    for step in sorted(step_folders(path), reverse=True):
        try:
            return _usable(read_meta(path, step)["config"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def _usable(config: Any) -> dict[str, Any]:
    """`config`, when it is one that can be compared. Raises ValueError."""
    try:
        training_keys(config)
    except (RecursionError, TypeError, AttributeError) as e:
        raise ValueError("not a config") from e
    return config


def _other_config(path: Place, newest: int, differences: list[tuple[str, str, str]]) -> str:
    shown = "; ".join(f"{k}: {old} in the run, {new} now" for k, old, new in differences[:4])
    more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
    hint = ""
    if any(k in ("steps", "epochs") for k, _, _ in differences):
        hint = " (the length of a run shapes its learning rates, so it cannot change half-way)"
    return (
        f"run_dir={path} holds step {newest} of a run with another config: {shown}{more}{hint}. Set these back to "
        f"continue it, or use another --config.run_dir (with --config.init_from={path} to start from its weights)"
    )
