"""The run directory: may we write there, does it belong to this config, is another process training in it.

Nothing here imports jax, so that these mistakes are said before any device is touched.
"""

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmed_jax.checkpoints.metrics_file import METRICS_FILE
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.input_files import check_file
from mmed_jax.common.jsonl import loads
from mmed_jax.common.output_files import check_writable, write_json
from mmed_jax.common.paths import expand_home
from mmed_jax.config.resume import plain_config, training_differences, training_keys

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
META_ITEM, META_FILE = "meta", "meta.json"
LOCK_FILE = ".lock"

# What orbax calls a finished checkpoint.
_STEP = re.compile("0|[1-9][0-9]*")


def step_folders(run_dir: str | os.PathLike) -> dict[int, Path]:
    """{step: folder} of the finished checkpoints of a run, ascending (unfinished ones have another name).

    Raises:
      WorkError: the folder is there and cannot be read.
    """
    return {step: p for step, (p, is_folder) in _named_steps(run_dir).items() if is_folder}


def odd_steps(run_dir: str | os.PathLike) -> dict[int, str]:
    """{step: what it is} of what has a checkpoint's name and is no folder: a file, a link to nothing.

    Raises:
      WorkError: the folder is there and cannot be read.
    """
    return {step: _what_it_is(p) for step, (p, is_folder) in _named_steps(run_dir).items() if not is_folder}


def _named_steps(run_dir: str | os.PathLike) -> dict[int, tuple[Path, bool]]:
    """{step: (path, whether it is a folder)}, ascending."""
    folder = Path(run_dir) / CHECKPOINTS
    try:
        entries = {int(p.name): (p, p.is_dir()) for p in folder.iterdir() if _STEP.fullmatch(p.name)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as e:
        raise WorkError(f"{folder}: cannot be read ({e.strerror or e})") from e
    return dict(sorted(entries.items()))


def _what_it_is(path: Path) -> str:
    """Of something that should be a folder and is none: "a file, not a folder", or where its link leads."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    return "a file, not a folder"


def read_meta(run_dir: str | os.PathLike, step: int) -> dict[str, Any]:
    """The meta record of one checkpoint: see checkpoint.Checkpointer. Raises OSError or ValueError."""
    path = Path(run_dir) / CHECKPOINTS / str(step) / META_ITEM / META_FILE
    meta = loads(path.read_bytes(), dict)
    if meta.get("step") != step:
        raise ValueError(f"{path}: not the meta record of step {step}")
    return meta


def guard_run_dir(run_dir: str | os.PathLike, config: Mapping[str, Any], *, write: bool = True) -> Path:
    """Creates the run directory, or makes sure that an existing one can be written and belongs to `config`.

    Writes config.json, unless `write` is False: before the directory is locked, another run may be at work in it.
    While a directory holds no checkpoint its config may still change (there is nothing to lose); from the first
    checkpoint on, keys that change the training must stay (those with `may_change` in mmed_jax/config/defaults.py may
    differ). A key that a run of an earlier version does not have counts as having had the neutral value given there.

    Raises:
      UserError: not a directory, not writable, full, an object-store address, a run whose files are none (a pipe) or
        cannot be read, or one of another config (with the first differing keys, both values, and what to do).
      WorkError: the checkpoints' folder cannot be read, or config.json cannot be written.
    """
    text = os.fspath(run_dir)
    if "://" in text:
        raise UserError(f"run_dir={text}: must be a folder of a (shared) file system; mount the bucket and name that")
    path = expand_home(text)
    make_folder(path)
    try:
        check_writable(path)
        for name in (CONFIG_FILE, METRICS_FILE, LOCK_FILE):
            if (path / name).exists():
                check_file(path / name, f"run_dir={text}: {name}")
        if os.path.lexists(path / CHECKPOINTS) and not (path / CHECKPOINTS).is_dir():
            raise UserError(f"run_dir={text}: {path / CHECKPOINTS} is {_what_it_is(path / CHECKPOINTS)}")
    except OSError as e:
        raise _not_writable(path, e) from e

    saved = _saved_config(path)
    steps = step_folders(path)
    if saved is not None and steps:
        differences = training_differences(saved, config)
        if differences:
            raise UserError(_other_config(path, max(steps), differences))
    if write:
        write_json(path / CONFIG_FILE, plain_config(config))
    return path


def make_folder(path: Path) -> None:
    """Makes a folder of the run and those above it. Raises UserError where something else is in its place."""
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"run_dir={path}: is {_what_it_is(path)}")
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:  # a zero byte in the name is a ValueError
        raise _not_writable(path, e) from e


def _not_writable(path: Path, e: Exception) -> UserError:
    why = getattr(e, "strerror", None) or e
    return UserError(f"run_dir={path}: cannot be written ({why}); name another with --config.run_dir=DIR")


def _saved_config(path: Path) -> dict[str, Any] | None:
    """config.json of the run, or the newest checkpoint's copy when it is gone or damaged."""
    try:
        return _usable(loads((path / CONFIG_FILE).read_bytes(), dict))
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


def _other_config(path: Path, newest: int, differences: list[tuple[str, str, str]]) -> str:
    shown = "; ".join(f"{k}: {old} in the run, {new} now" for k, old, new in differences[:4])
    more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
    hint = ""
    if any(k in ("steps", "epochs") for k, _, _ in differences):
        hint = " (the length of a run shapes its learning rates, so it cannot change half-way)"
    return (
        f"run_dir={path} holds step {newest} of a run with another config: {shown}{more}{hint}. Set these back to "
        f"continue it, or use another --config.run_dir (with --config.init_from={path} to start from its weights)"
    )


_HELD: dict[str, Any] = {}


def lock_run_dir(run_dir: str | os.PathLike) -> None:
    """Takes the run directory for this process until `unlock_run_dir` or its end, however it ends.

    Does nothing on file systems without locks. Raises UserError when another process holds it or it cannot be made.
    """
    path = Path(run_dir).resolve() / LOCK_FILE
    if str(path) in _HELD:
        return
    try:
        f = open(path, "a+", encoding="utf-8")
    except OSError as e:
        raise UserError(f"run_dir={run_dir}: {path} cannot be written ({e.strerror or e})") from e
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        f.seek(0)
        holder = f.read().strip() or "unknown"
        f.close()
        raise UserError(
            f"run_dir={run_dir} is in use by another training process ({holder}); stop it or use another run_dir"
        ) from None
    except OSError:
        f.close()
        return
    with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
        f.truncate(0)
        f.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        f.flush()
    _HELD[str(path)] = f


def unlock_run_dir(run_dir: str | os.PathLike) -> None:
    """Gives the run directory back; does nothing when this process does not hold it."""
    held = _HELD.pop(str(Path(run_dir).resolve() / LOCK_FILE), None)
    if held is not None:
        held.close()
