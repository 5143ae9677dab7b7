"""Recipes: config files that give the whole config of a run, by name or path, with variants."""

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, nearest, one_line

REPO = Path(__file__).resolve().parents[2]
CONFIG_DIR = REPO / "configs"
# Recipes of data sets lie beside those of training; data_gen reads them.
DATA_RECIPES = ("mmed_ift", "mmed_ift_mc")
MAPPINGS = ("source_weights", "language_weights")


def load_config(name: str) -> ConfigDict:
    """Loads `configs/NAME.py` or a path to a config file, with an optional `:VARIANT`.

    Raises:
      UserError: no such config or variant (the nearest valid name is given), or a mistake in the config file: broken
        code, a value of another type, a key that mmed_jax/config/defaults.py does not have or that was taken away.
    """
    stem, _, variant = name.partition(":")
    path = recipe_path(name)
    others = ("__init__", "base", "hardware", *DATA_RECIPES)
    names = sorted(p.stem for p in CONFIG_DIR.glob("*.py") if p.stem not in others)
    if stem in DATA_RECIPES:
        raise UserError(f"--config={name}: is a recipe of a data set, for `python -m data_gen build --recipe={name}`")
    if not path.is_file():
        raise UserError(f"--config={name}: no config '{stem}'{nearest(stem, names)}")
    file = path.resolve()
    if file in _LOADING:
        loop = [p.name for p in (*_LOADING[_LOADING.index(file) :], file)]
        raise RecipeLoop(f"--config={name}: the recipe loads itself: {' -> '.join(loop)}")
    _LOADING.append(file)
    _READ.append(file)
    try:
        return _load(name, path, stem, variant, names)
    finally:
        _LOADING.pop()


class RecipeLoop(UserError):
    """A recipe that loads itself."""


# The recipes that are being loaded, each by the one before; all that were.
_LOADING: list[Path] = []
_READ: list[Path] = []


def recipe_path(name: str) -> Path:
    """The file of a --config value; it need not be there."""
    stem = name.partition(":")[0]
    return Path(stem) if stem.endswith(".py") or "/" in stem else CONFIG_DIR / f"{stem}.py"


def recipe_files(name: str) -> list[Path]:
    """The files that a --config value reads: its own, and those that recipes load with load_config. Loads it."""
    before = len(_READ)
    load_config(name)
    return _READ[before:]


def _load(name: str, path: Path, stem: str, variant: str, names: list[str]) -> ConfigDict:
    if str(REPO) not in sys.path:
        sys.path.insert(0, str(REPO))  # so that a config can say `from mmed_jax.config.defaults import base`
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config={name}: {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except RecipeLoop:
        raise
    except Exception as e:
        raise _mistake(name, path, e) from e
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={name}: {path} has no get_config; recipes: {', '.join(names)}")
    variants = tuple(getattr(module, "VARIANTS", ()))
    if variant and variants and variant not in variants:
        raise UserError(f"--config={name}: {stem} has no variant '{variant}'{nearest(variant, variants)}")
    if variant and not inspect.signature(module.get_config).parameters:
        raise UserError(f"--config={name}: {path.name} has no variants; leave ':{variant}' out")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except RecipeLoop:
        raise
    except Exception as e:
        raise _mistake(name, path, e) from e
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={name}: get_config must return a ConfigDict, got {type(config).__name__}")
    _check_keys(name, config)
    config.lock()
    return config


def _mistake(name: str, path: Path, error: Exception) -> UserError:
    """What went wrong in a config file, with the line of that file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    at = f"line {line}: " if line else ""
    return UserError(f"--config={name}: {at}{type(error).__name__}: {one_line(error)}")


def _check_keys(name: str, config: ConfigDict) -> None:
    """A config file may change values only: a misspelt key would be a value that nothing reads."""
    from mmed_jax.config.defaults import base

    known, found = flatten(base()), flatten(config)
    for key in found:
        if key not in known:
            raise UserError(f"--config={name}: {key}: no such key{nearest_key(key, known)}")
    for key in known:
        if key not in found:
            raise UserError(
                f"--config={name}: {key} is missing; begin with mmed_jax.config.defaults.base() and change values"
            )


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 1e-5, ...}; mappings meant as values (source_weights, language_weights) stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict) and key not in MAPPINGS:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = dict(value) if isinstance(value, ConfigDict) else value
    return flat


def nearest_key(key: str, flat: dict[str, Any]) -> str:
    """As errors.nearest: the key that has the same last part, else the most similar one."""
    same_leaf = [k for k in flat if k.split(".")[-1] == key.split(".")[-1]]
    return nearest(key, flat) if not same_leaf else f", did you mean '{same_leaf[0]}'?"
