"""Strict configuration: --config=NAME[:VARIANT] --config.KEY=VALUE, checked before any device is touched.

An unknown key, a wrong type or an impossible combination is one line and exit code 2.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.paths import expand_home
from mmed_jax.config.recipes import CONFIG_DIR as CONFIG_DIR
from mmed_jax.config.recipes import DATA_RECIPES as DATA_RECIPES
from mmed_jax.config.recipes import MAPPINGS, REPO, flatten, load_config, nearest_key

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def resolve_path(path: str) -> Path:
    """A path of a config: as given (home expanded) when it exists, else relative to the checkout, else as given."""
    p = expand_home(path)
    if not p.exists() and not p.is_absolute() and (REPO / p).exists():
        return REPO / p
    return p


def set_override(config: ConfigDict, key: str, text: str) -> None:
    """Sets one key from its command-line text, in the type of its default.

    Raises:
      UserError: unknown key (with the nearest), or a text that is not of the type.
    """
    flat = flatten(config)
    if key not in flat:
        groups = {k.rsplit(".", 1)[0] for k in flat if "." in k}
        if key in groups:
            raise UserError(f"--config.{key}: is a group of keys{nearest('', [k for k in flat if k.startswith(key)])}")
        raise UserError(f"--config.{key}: no such key{nearest_key(key, flat)}")
    value = _parse(text, flat[key], key)
    node = config
    *parents, leaf = key.split(".")
    for p in parents:
        node = node[p]
    with node.unlocked():
        node[leaf] = ConfigDict(value) if isinstance(value, dict) else value


def _parse(text: str, default: Any, key: str) -> Any:
    def bad(kind: str, example: str) -> UserError:
        return UserError(f"--config.{key}={text}: must be {kind}, for example {example} (default {default!r})")

    if isinstance(default, bool):
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise bad("true or false", "true")
    if isinstance(default, int):
        try:
            return int(text.replace("_", ""))
        except ValueError:
            raise bad("a whole number", "8") from None
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError:
            raise bad("a number", "1e-5") from None
    if isinstance(default, (tuple, list)):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(default, dict):
        out = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, eq, number = part.partition("=")
            try:
                out[name.strip()] = float(number)
            except ValueError:
                eq = ""
            if not eq or not name.strip():
                raise bad("name=number,name=number", "zh=2,en=0.5")
        return out
    return text


def parse_args(
    argv: list[str] | None, *, description: str = "", extra: dict[str, tuple[Any, str]] | None = None
) -> tuple[ConfigDict, SimpleNamespace]:
    """Parses `--config=NAME[:VARIANT] [--config.KEY=VALUE ...]` and a command's own flags; validates the config.

    Args:
      argv: arguments without the program name; None = sys.argv[1:].
      description: shown by --help.
      extra: name -> (default, help) of further `--name=value` flags, typed by their default; False = a switch.

    Returns:
      (locked config, namespace of the extra flags)

    Raises:
      UserError: see set_override, load_config, validate.
    """
    extra = extra or {}
    parser = Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="NAME[:VARIANT]", help="a recipe in configs/, or a .py file")
    parser.add_argument("--print_config", action="store_true", help="print the resolved config and stop")
    for name, (default, text) in extra.items():
        kind = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
        parser.add_argument(f"--{name}", help=text, **kind)
    parser.epilog = "--config.KEY=VALUE sets any key; mmed_jax/config/defaults.py explains each."

    plain, overrides, args = [], [], list(sys.argv[1:] if argv is None else argv)
    while args:
        arg = args.pop(0)
        if not arg.startswith("--config."):
            plain.append(arg)
            continue
        key, eq, value = arg.removeprefix("--config.").partition("=")
        if not eq:
            if not args or args[0].startswith("--"):
                raise UserError(f"--config.{key}: needs a value, as --config.{key}=VALUE")
            value = args.pop(0)
        overrides.append((key, value))
    flags = parser.parse_args(plain)
    config = load_config(flags.config)
    for key, value in overrides:
        set_override(config, key, value)
    if flags.print_config:
        print(to_json(config))
        sys.exit(0)
    validate(config)
    return config, flags


CHOICES = {
    "platform": ("any", "accelerator"),
    "compute_dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
    "remat": ("none", "full", "qkv", "minimal", "minimal_ctx", "offload"),
    "attention": ("auto", "reference", "splash", "triton", "cudnn"),
    "data.kind": ("instruction", "mcq"),
    "data.overlong": ("drop", "truncate_prompt"),
    "data.prompt_family": ("llama3", "mmedbench"),
    "optim.name": ("adamw", "adafactor"),
    "optim.schedule": ("cosine", "linear", "wsd", "constant"),
    "optim.mu_dtype": ("float32", "bfloat16"),
}
POSITIVE = (
    "grad_accum",
    "loss_chunk",
    "optim.lr",
    "optim.eps",
    "log_every",
    "checkpoint.keep_last",
    "data.seq_len",
    "distributed.timeout_seconds",
)
NOT_NEGATIVE = (
    "seed",
    "batch_size",
    "batch_tokens",
    "steps",
    "epochs",
    "eval_every",
    "eval_rows",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep_best",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.clip_norm",
    "mesh.devices",
)
RATIOS = (
    "optim.warmup_ratio",
    "optim.end_lr_ratio",
    "optim.decay_ratio",
    "data.validation_fraction",
    "optim.b1",
    "optim.b2",
)

# Keys that Adafactor does not read, with the only value they may then have: that of mmed_jax/config/defaults.py.
ADAMW_ONLY = {"optim.b1": 0.9, "optim.eps": 1e-8, "optim.mu_dtype": "float32"}

# jax.random.key reads 32 bits of a seed: a larger one would silently give the weights of a smaller one.
MAX_SEED = 2**32 - 1


def validate(config: ConfigDict) -> None:
    """Checks values and combinations that need no file and no device.

    Raises:
      UserError: the first thing wrong, with the key, the value and what is valid.
    """
    flat = flatten(config)
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise UserError(f"config.{key}={flat[key]!r}{nearest(flat[key], choices)}")
    if flat["xla_flags"] not in ("auto", "none"):
        parse_flags(flat["xla_flags"])
    for key, value in flat.items():
        if isinstance(value, float) and math.isinf(value):
            raise UserError(f"config.{key}={value}: must be a finite number")
    if flat["seed"] > MAX_SEED:
        raise UserError(f"config.seed={flat['seed']}: must be at most {MAX_SEED}")
    for key in POSITIVE:
        if not flat[key] > 0:
            raise UserError(f"config.{key}={flat[key]}: must be greater than 0")
    for key in NOT_NEGATIVE:
        if not flat[key] >= 0:
            raise UserError(f"config.{key}={flat[key]}: must not be negative")
    for key in RATIOS:
        if not 0 <= flat[key] < 1:
            raise UserError(f"config.{key}={flat[key]}: must lie in [0, 1)")
    for key in ("run_dir", "data.cache_dir"):
        if not flat[key]:
            raise UserError(f"config.{key} is empty: name a folder")
    if not flat["data.train"]:
        raise UserError("config.data.train is empty: name at least one record file, --config.data.train=FILE.jsonl")
    modes = flat["data.modes"]
    for m in modes:
        if m not in ("rationale", "direct"):
            raise UserError(f"config.data.modes: '{m}'{nearest(m, ('rationale', 'direct'))}")
        if list(modes).count(m) > 1:
            raise UserError(f"config.data.modes: '{m}' is named twice")
    if flat["data.kind"] == "mcq" and not modes:
        raise UserError("config.data.modes is empty: name rationale, direct or both")
    _exactly_one(flat, "batch_size", "batch_tokens", "8 sequences, or --config.batch_tokens=131072")
    _exactly_one(flat, "steps", "epochs", "1000, or --config.epochs=3")
    if flat["optim.warmup_steps"] and flat["optim.warmup_ratio"]:
        raise UserError("config.optim: set warmup_steps or warmup_ratio to 0; both are given")
    for key, default in ADAMW_ONLY.items():
        if flat["optim.name"] == "adafactor" and flat[key] != default:
            raise UserError(f"config.{key}={flat[key]}: adafactor has none; leave it at {default}")
    seq_len = flat["data.seq_len"]
    if flat["batch_tokens"] and flat["batch_tokens"] % seq_len:
        lower = max(1, flat["batch_tokens"] // seq_len) * seq_len
        raise UserError(
            f"config.batch_tokens={flat['batch_tokens']} is not a multiple of data.seq_len={seq_len}; nearest: {lower}"
        )
    if batch_rows(config) % flat["grad_accum"]:
        raise UserError(
            f"config.batch of {batch_rows(config)} sequences does not divide by grad_accum={flat['grad_accum']}"
        )
    own = ("model.preset", "model.ignore_keys")
    sizes = any(v for k, v in flat.items() if k.startswith("model.") and k not in own)
    if flat["init_from"] and (sizes or flat["model.preset"] != "demo"):
        raise UserError(
            "config.model.*: read only for random weights, init_from brings its own sizes; set them to 0 and preset to "
            "its default, or set --config.init_from="
        )
    for key in MAPPINGS:
        for name, weight in flat[f"data.{key}"].items():
            if weight < 0:
                raise UserError(f"config.data.{key}: {name}={weight} must not be negative")


def _exactly_one(flat: dict[str, Any], a: str, b: str, example: str) -> None:
    if bool(flat[a]) == bool(flat[b]):
        state = "both are set" if flat[a] else "neither is set"
        raise UserError(f"config.{a} and config.{b}: {state}, exactly one must be; for example --config.{a}={example}")


def parse_flags(text: str) -> dict[str, str]:
    """Compiler flags of config.xla_flags=flag=value,flag=value; two dashes before a flag may stand.

    Raises:
      UserError: neither of that form nor "auto" or "none".
    """
    out = {}
    for part in text.split(","):
        name, _, value = (x.strip() for x in part.partition("="))
        name = name.removeprefix("--")
        if not re.fullmatch(r"[a-z]\w*", name) or not value:
            raise UserError(f"config.xla_flags={text}: '{part}' is not flag=value; valid: auto, none, flag=value,...")
        if name in out:
            raise UserError(f"config.xla_flags={text}: {name} is given twice")
        out[name] = value
    return out


def batch_rows(config: ConfigDict) -> int:
    """Sequences in the global batch."""
    return config.batch_size or config.batch_tokens // config.data.seq_len


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2, ensure_ascii=False, default=list)


def config_hash(config: dict[str, Any]) -> str:
    """A short hash of a resolved config."""
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
