"""Overrides on the command line: --config=NAME[:VARIANT] --config.KEY=VALUE, checked before any device is touched.

An unknown key, a wrong type or an impossible combination is one line and exit code 2.
"""

import contextlib
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.place_flags import check_text
from mmed_jax.config.checks import validate
from mmed_jax.config.defaults import KEYS, base
from mmed_jax.config.lora_keys import write_out
from mmed_jax.config.recipes import OWN_MODEL, choose_open_values, load_config
from mmed_jax.config.values import flatten, nearest_key, to_json


def set_override(config: ConfigDict, key: str, text: str, flag: str = "--config") -> None:
    """Sets one key from its command-line text, in the type of its default.

    Args:
      flag: what stands before the key on the command line.

    Raises:
      UserError: unknown key (with the nearest), or a text that is not of the type.
    """
    flat = flatten(config)
    if key not in flat:
        groups = {k.rsplit(".", 1)[0] for k in flat if "." in k}
        if key in groups:
            raise UserError(f"{flag}.{key}: is a group of keys{nearest('', [k for k in flat if k.startswith(key)])}")
        raise UserError(f"{flag}.{key}: no such key{nearest_key(key, flat)}")
    words = KEYS[key].words if key in KEYS else ()
    value = text if text in words else _parse(text, KEYS[key].default if words else flat[key], f"{flag}.{key}", words)
    node = config
    *parents, leaf = key.split(".")
    for p in parents:
        node = node[p]
    with node.unlocked(), node.ignore_type() if words else contextlib.nullcontext():
        node[leaf] = ConfigDict(value, allow_dotted_keys=True) if isinstance(value, dict) else value


def split_overrides(argv: Sequence[str], flag: str) -> tuple[list[str], dict[str, str]]:
    """The other flags, and `flag`.KEY=VALUE as {KEY: VALUE}. Raises UserError for a key without a value."""
    flags, overrides = [], {}
    for arg in argv:
        if arg.startswith(f"{flag}."):
            key, eq, value = arg.removeprefix(f"{flag}.").partition("=")
            if not eq:
                raise UserError(f"{arg}: give a value, as {flag}.{key}=VALUE")
            if value.startswith("gs:/"):
                check_text(value, f"{flag}.{key}")
            overrides[key] = value
        else:
            flags.append(arg)
    return flags, overrides


def _parse(text: str, default: Any, key: str, words: Sequence[str] = ()) -> Any:
    def bad(kind: str, example: str) -> UserError:
        return UserError(f"{key}={text}: must be {kind}, for example {example} (default {default!r})")

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
            raise bad(" or ".join(["a number", *words]), "1e-5" if not words else words[0]) from None
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
    argv: list[str] | None,
    *,
    description: str = "",
    extra: dict[str, tuple[Any, str]] | None = None,
    accelerator: bool | None = None,
    complete: bool = True,
) -> tuple[ConfigDict, SimpleNamespace]:
    """Parses `--config=NAME[:VARIANT] [--config.KEY=VALUE ...]` and a command's own flags; validates the config.

    Args:
      argv: arguments without the program name; None = sys.argv[1:].
      description: shown by --help.
      extra: name -> (default, help) of further `--name=value` flags, typed by their default; False = a switch.
      accelerator: whether the run is on one, where the recipe is of one's own model; None = as this machine looks.
      complete: False = the caller completes the config (complete_config) where that may fail.

    Returns:
      (locked config, namespace of the extra flags, with `given`, the keys that were set, and `chosen`, lines that say
      what was chosen for one's own model)

    Raises:
      UserError: see set_override, load_config, validate.
    """
    extra = extra or {}
    parser = Parser(description=description)
    parser.add_argument("--config", required=True, metavar="NAME[:VARIANT]", help="a recipe in configs/, or a .py file")
    parser.add_argument("--print_config", action="store_true", help="print the resolved config and stop")
    for name, (default, text) in extra.items():
        kind = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
        parser.add_argument(f"--{name}", help=text, **kind)
    parser.epilog = "--config.KEY=VALUE sets any key; mmed_jax/config/defaults.py explains each."

    plain, given = _take_overrides(argv)
    overrides = [(key, value) for key, value in given if value is not None]
    if without := [key for key, value in given if value is None]:
        raise UserError(f"--config.{without[0]}: needs a value, as --config.{without[0]}=VALUE")
    flags = parser.parse_args(plain)
    config = load_config(flags.config)
    for key, value in overrides:
        set_override(config, key, value)
    write_out(config)
    flags.given, flags.chosen = tuple(key for key, _ in overrides), []
    is_open = config.variant in OWN_MODEL
    if flags.print_config:
        if is_open:
            complete_config(config, flags, accelerator)
        print(to_json(config))
        sys.exit(0)
    if complete and is_open:
        complete_config(config, flags, accelerator)
    elif not is_open:
        validate(config)
    return config, flags


def _take_overrides(argv: Sequence[str] | None) -> tuple[list[str], list[tuple[str, str | None]]]:
    """(other arguments, (KEY, VALUE) of --config.KEY=VALUE and --config.KEY VALUE; VALUE None where there is none)."""
    plain: list[str] = []
    overrides: list[tuple[str, str | None]] = []
    args = list(sys.argv[1:] if argv is None else argv)
    while args:
        arg = args.pop(0)
        if not arg.startswith("--config."):
            plain.append(arg)
            continue
        key, eq, text = arg.removeprefix("--config.").partition("=")
        value: str | None = text
        if not eq:
            value = args.pop(0) if args and not args[0].startswith("--") else None
        overrides.append((key, value))
    return plain, overrides


def parse_distributed(argv: Sequence[str] | None) -> ConfigDict:
    """Where the other processes are, as far as a command line says it, even one that cannot be read as a whole.

    Returns:
      A config of defaults in which the keys of `distributed` are as given; those with no valid value are left as they
      are. Raises nothing.
    """
    config = base()
    for key, value in _take_overrides(argv)[1]:
        if key.startswith("distributed.") and value is not None:
            with contextlib.suppress(UserError):
                set_override(config, key, value)
    return config


def complete_config(config: ConfigDict, flags: Any, accelerator: bool | None = None, base_dir: str = "") -> None:
    """Sets what a recipe of one's own model leaves open, says it in flags.chosen, and validates the config.

    Arguments and errors as of recipes.choose_open_values and validate; nothing for other recipes, which are valid.
    """
    if config.variant in OWN_MODEL:
        flags.chosen = choose_open_values(config, flags.given, accelerator, base_dir)
        validate(config)
