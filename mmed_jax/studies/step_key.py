"""What a step is known by: a hash of its command, of the settings that decide its result, and of its inputs."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError
from mmed_jax.common.hashes import file_hash, json_hash
from mmed_jax.common.paths import resolve_path
from mmed_jax.common.place_flags import InputPlace
from mmed_jax.common.places import is_bucket
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.overrides import parse_args
from mmed_jax.config.resume import training_keys
from mmed_jax.config.values import flatten
from mmed_jax.evaluation.arguments import parse_arguments
from mmed_jax.evaluation.benchmarks.locate import HUB, locate_benchmarks
from mmed_jax.studies.design import Step

WHOLE = 16 << 20  # bytes up to which all of a file counts; of larger ones their size, beginning and end
SAMPLE = 1 << 20
MANY = 256  # files of a folder beyond which their names and sizes count
# Flags of commands other than train that name what is read. (Of --data_dir only the files of its benchmarks count.)
_READ = ("model", "models", "data", "perplexity", "few_shot_data", "adapter", "base")
# Of a training that ends when evaluations get no better.
_ENDS_EARLY = ("stop_after", "eval_every", "eval_epochs", "eval_rows", "eval_questions", "checkpoint.best_metric")
# What decides nothing of a result.
_FREE = ("batch_size", "dry_run")
# Where a Hugging Face folder or a run keeps its weights, and what they are.
_WEIGHTS = ("config.json", "*.safetensors", "*.index.json", "adapter_config.json", "tokenizer*", "checkpoints/*")


def flag_text(value: Any, name: str) -> str:
    """A value as its command-line text.

    Args:
      name: of the flag, for the message of a value that has none.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v:g}" for k, v in value.items())
    if isinstance(value, tuple | list):
        return ",".join(flag_text(v, name) for v in value)
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"--{name}: {type(value).__name__} is no value of a flag")


def flags_text(flags: Mapping[str, Any]) -> list[str]:
    """Flags as arguments; True is a bare switch but for keys of a config, False is left out likewise."""
    out = []
    for name, value in flags.items():
        if isinstance(value, bool) and not name.startswith("config."):
            out += [f"--{name}"] if value else []
        else:
            out.append(f"--{name}={flag_text(value, name)}")
    return out


def resolved_config(step: Step, flags: Mapping[str, Any]) -> ConfigDict:
    """The config of a training with its overrides. Raises UserError, with the step's name, as train would.

    What a recipe of one's own model leaves open stays open: it is chosen where the step runs, from the model and the
    devices there (configs/custom.py).
    """
    try:
        return parse_args(flags_text(flags), complete=False)[0]
    except UserError as e:
        raise e.at(f"step {step.name}") from None


def settings_of(step: Step, keys: Mapping[Step, str]) -> dict[str, Any]:
    """{name: JSON value} of what decides the result of a step; equal for equal results.

    Args:
      keys: of its inputs.

    Raises:
      UserError: a key or value that train refuses.
    """

    def known(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [known(v) for v in value]
        return keys[value] if isinstance(value, Step) else value

    if step.command == "evaluate":
        _check_evaluation(step)
    if step.command != "train":
        named = {k: known(v) for k, v in step.flags.items() if k not in _FREE}
        contents = {f"contents of {k}": stamps(v) for k, v in step.flags.items() if k in _READ and stamps(v)}
        with contextlib.suppress(UserError):  # what is not there is named before a step is run
            if files := benchmark_files(step):
                contents["contents of data_dir"] = stamps(tuple(files))
        return named | contents
    steps = {k: v for k, v in step.flags.items() if isinstance(v, Step)}
    config = resolved_config(step, {**step.flags, **dict.fromkeys(steps, "step")})
    values = (
        training_keys(config) | _length_keys(config) | {k.removeprefix("config."): keys[v] for k, v in steps.items()}
    )
    read = {k: v for k, v in input_keys(config).items() if f"config.{k}" not in steps}
    return values | {f"contents of {k}": stamps(v) for k, v in read.items() if stamps(v)}


def _length_keys(config: ConfigDict) -> dict[str, Any]:
    """What a run may be continued with otherwise and what yet decides where it ends, if that may be early."""
    flat = flatten(config)
    return {k: flat[k] for k in _ENDS_EARLY} if flat["stop_after"] else {}


def _check_evaluation(step: Step) -> None:
    """Raises UserError, with the step's name, for flags that evaluate refuses."""
    flags = {k: "step" if isinstance(v, Step) else v for k, v in step.flags.items()}
    try:
        parse_arguments(flags_text({**flags, "output": "results"}), "")
    except UserError as e:
        raise e.at(f"step {step.name}") from None


def benchmark_files(step: Step) -> list[str]:
    """Where the benchmarks lie that an evaluation finds in its --data_dir; [] of others, and of the hub's.

    Raises UserError, as evaluate would: one that is not there.
    """
    names, folder = _paths(step.flags.get("benchmark", "")), str(step.flags.get("data_dir", ""))
    if step.command != "evaluate" or not names or not folder or folder == HUB:
        return []
    located = locate_benchmarks(names, folder, str(step.flags.get("split", "")))
    return list(dict.fromkeys(b.path for b in located if b.path != HUB))


def input_keys(config: ConfigDict) -> dict[str, Any]:
    """{key: value} of what a training reads, empty ones left out."""
    flat = flatten(config)
    return {k: flat[k] for k, key in KEYS.items() if key.place and issubclass(key.place, InputPlace) and flat[k]}


def key_of(step: Step, settings: Mapping[str, Any]) -> str:
    """The hash of a step: 12 hex digits."""
    return json_hash({"command": step.command, "settings": settings}, 12, default=str)


def missing_inputs(step: Step) -> list[str]:
    """What a step reads besides results of other steps and what is not there, as "config.data.train: PATH"."""
    if step.command == "train":
        steps = {k: v for k, v in step.flags.items() if isinstance(v, Step)}
        config = resolved_config(step, {**step.flags, **dict.fromkeys(steps, "step")})
        read = {f"config.{k}": v for k, v in input_keys(config).items() if f"config.{k}" not in steps}
        if config.tokenizer == "demo":
            read.pop("config.tokenizer", None)
    else:
        read = {f"--{k}": v for k, v in step.flags.items() if k in (*_READ, "data_dir") and v != "hub"}
    return [f"{name}: {path}" for name, value in read.items() for path in _paths(value) if _find(path) is None]


def stamps(value: Any) -> list[list[Any]]:
    """What identifies the contents of files and folders that a flag names; nothing for what is not there."""
    return [stamp for path in _paths(value) if (found := _find(path)) for stamp in _stamp(found)]


def _paths(value: Any) -> list[str]:
    if isinstance(value, Step):
        return []
    parts = value if isinstance(value, tuple | list) else str(value).split(",")
    return [str(p) for p in parts if not isinstance(p, Step) and str(p) and not is_bucket(str(p))]


def _find(path: str) -> Path | None:
    """A file or folder, with its :SPLIT left out."""
    head, colon, _ = path.rpartition(":")
    for text in (path, *([head] if colon else [])):
        if (found := resolve_path(text)).exists():
            return found
    return None


def _stamp(path: Path) -> list[list[Any]]:
    if path.is_file():
        return [[path.name, path.stat().st_size, _content(path)]]
    weights = {p for pattern in _WEIGHTS for p in path.glob(pattern)}
    is_model = (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
    files = sorted(weights) if is_model else sorted(p for p in path.rglob("*") if p.is_file())
    many = len(files) > MANY
    out: list[list[Any]] = []
    for file in files:
        size = file.stat().st_size if file.is_file() else -1
        out.append([file.relative_to(path).as_posix(), size, "" if many or size < 0 else _content(file)])
    return [["folder", len(out), json_hash(out, 16)]]


def _content(file: Path) -> str:
    stat = file.stat()
    return _content_of(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)  # many steps read the same files
def _content_of(file: Path, size: int, changed: int) -> str:
    if size <= WHOLE:
        return file_hash(file)[:16]
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        digest.update(f.read(SAMPLE))
        f.seek(-SAMPLE, os.SEEK_END)
        digest.update(f.read(SAMPLE))
    return digest.hexdigest()[:16]
