"""Recipes: Python files with get_config(variant), by name or path. Those of training give the whole config of a run.

Recipes of data sets and of corpora lie beside them and are read by data_gen; they are known by what they import. Those
of studies have get_study(variant) and are read by mmed_jax/studies.
"""

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, nearest, one_line
from mmed_jax.common.paths import REPO
from mmed_jax.config.defaults import base
from mmed_jax.config.values import flatten, nearest_key

CONFIG_DIR = REPO / "configs"
# What recipes of other kinds import, and one of training does not (the first that fits); what takes them.
PACKAGES = {"data_gen.corpus": "corpus", "data_gen": "data"}
_COMMANDS = {
    "corpus": ("a corpus", "python -m data_gen corpus build"),
    "data": ("a data set", "python -m data_gen build"),
    "study": ("a study", "python -m mmed_jax.study"),
}
# The function of a recipe, by kind; all others have get_config.
_FUNCTIONS = {"study": "get_study"}


# Variants for one's own model: what they leave open is chosen from it by configs/custom.py.
OWN_MODEL = ("custom", "custom-lora", "custom-qlora")


def choose_open_values(
    config: ConfigDict, given: Collection[str], accelerator: bool | None = None, base_dir: str = ""
) -> list[str]:
    """Sets in place what a recipe of one's own model leaves open; nothing in other recipes.

    Args:
      given: keys that were set on the command line. accelerator: whether it will run on one; None = as this machine
        looks. base_dir: where the weights beneath an adapter lie now, "" = where they lay.

    Returns:
      A line for each value that was chosen, with what it was chosen from.

    Raises:
      UserError: it names no model, or none that can be read.
    """
    if config.variant not in OWN_MODEL:
        return []
    return load_module(CONFIG_DIR / "custom.py").choose(config, given, accelerator, base_dir)


def load_config(name: str) -> ConfigDict:
    """Loads `configs/NAME.py` or a path to a config file, with an optional `:VARIANT`.

    Raises:
      UserError: no such config or variant (the nearest valid name is given), or a mistake in the config file: broken
        code, a value of another type, a key that mmed_jax/config/defaults.py does not have or that was taken away.
    """
    stem = name.partition(":")[0]
    path = recipe_path(name)
    for kind, (product, command) in _COMMANDS.items():
        if stem in recipe_names(kind):
            flag = recipe_flag(kind)
            raise UserError(f"--config={name}: is a recipe of {product}, for `{command} {flag}={name}`")
    if not path.is_file():
        raise UserError(f"--config={name}: no config '{stem}'{nearest(stem, recipe_names())}")
    file = path.resolve()
    if file in _LOADING:
        loop = [p.name for p in (*_LOADING[_LOADING.index(file) :], file)]
        raise RecipeLoop(f"--config={name}: the recipe loads itself: {' -> '.join(loop)}")
    _LOADING.append(file)
    _READ.append(file)
    try:
        config = read_recipe(name)
    finally:
        _LOADING.pop()
    _check_keys(name, config)
    config.lock()
    return config


class RecipeLoop(UserError):
    """A recipe that loads itself."""


# The recipes that are being loaded, each by the one before; all that were.
_LOADING: list[Path] = []
_READ: list[Path] = []


def recipe_flag(kind: str) -> str:
    """The flag that names a recipe of this kind."""
    return "--config" if kind in ("training", "study") else "--recipe"


def recipe_path(name: str) -> Path:
    """The file of a --config value; it need not be there."""
    stem = name.partition(":")[0]
    return Path(stem) if stem.endswith(".py") or "/" in stem else CONFIG_DIR / f"{stem}.py"


def recipe_files(name: str) -> list[Path]:
    """The files that a --config value reads: its own, and those that recipes load with load_config. Loads it."""
    before = len(_READ)
    load_config(name)
    return _READ[before:]


def recipe_names(kind: str = "training") -> list[str]:
    """Names of the recipes in configs/, sorted: those of "training", of "data" sets, of a "corpus" or of a "study"."""
    return sorted(p.stem for p in CONFIG_DIR.glob("*.py") if _kind(p) == kind)


def _kind(path: Path) -> str:
    """ "training", "data", "corpus" or "study"; "" for what recipes share. Nothing is run."""
    try:
        statements = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return "training"  # loading it says what is wrong
    names = {s.name for s in statements if isinstance(s, ast.FunctionDef)}
    packages = set()
    for s in statements:
        if isinstance(s, ast.Import | ast.ImportFrom):
            names |= {a.asname or a.name for a in s.names}
            packages |= {s.module or ""} if isinstance(s, ast.ImportFrom) else {a.name for a in s.names}
    if "get_study" in names:
        return "study"
    if "get_config" not in names:
        return ""
    kinds = (kind for top, kind in PACKAGES.items() if any(f"{p}.".startswith(f"{top}.") for p in packages))
    return next(kinds, "training")


def load_module(path: Path) -> ModuleType:
    """Runs a recipe file, or a part of recipes such as configs/hardware.py. Raises whatever it raises."""
    if str(REPO) not in sys.path:
        sys.path.insert(0, str(REPO))  # so that a config can say `from mmed_jax.config import base`
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ImportError(f"{path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def read_recipe(name: str, kind: str = "training", returns: type = ConfigDict) -> Any:
    """What the get_config (of a study: get_study) of a recipe file gives, unchecked.

    Args:
      name: NAME or FILE.py with an optional :VARIANT.
      kind: as in recipe_names; recipe_flag says by which flag it comes.
      returns: what the function must give.

    Raises:
      UserError: no such function or variant, code that fails (with the line), or something else than `returns`.
        One that the recipe of another kind than training raises comes through as it is.
    """
    stem, _, variant = name.partition(":")
    data = kind != "training"
    function = _FUNCTIONS.get(kind, "get_config")
    path, place = recipe_path(name), f"{recipe_flag(kind)}={name}"
    through = UserError if data else RecipeLoop
    if path.suffix != ".py":
        raise UserError(f"{place}: {path} is not a Python file (.py)")
    try:
        module = load_module(path)
    except through:
        raise
    except Exception as e:
        raise recipe_mistake(place, path, e) from e
    if not hasattr(module, function):
        raise UserError(f"{place}: {path} has no {function}; recipes: {', '.join(recipe_names(kind))}")
    make = getattr(module, function)
    variants = tuple(v for v in getattr(module, "VARIANTS", ()) if v)
    if variant and variants and variant not in variants:
        subject = f"{stem} has " if recipe_flag(kind) == "--config" else ""
        raise UserError(f"{place}: {subject}no variant '{variant}'{nearest(variant, variants)}")
    if variant and not inspect.signature(make).parameters:
        raise UserError(f"{place}: {path.name} has no variants; leave ':{variant}' out")
    try:
        config = make(variant) if variant or (data and kind != "study") else make()
    except through:
        raise
    except Exception as e:
        raise recipe_mistake(place, path, e) from e
    if not isinstance(config, returns):
        raise UserError(f"{place}: {function} must return a {returns.__name__}, got {type(config).__name__}")
    return config


def open_recipe(
    name: str,
    kind: str,
    overrides: dict[str, str],
    set_key: Callable[[ConfigDict, str, str], None],
    check: Callable[[ConfigDict, str], None],
) -> ConfigDict:
    """The --recipe value `name` with overrides, checked and locked.

    Args:
      kind: as in recipe_names, another than "training". overrides: {key: text}, each set by set_key(recipe, key, text).
      check: called as check(recipe, name).

    Raises UserError: no such recipe, and as read_recipe, set_key and check do.
    """
    stem, path, names = name.partition(":")[0], recipe_path(name), recipe_names(kind)
    if not path.is_file() or path.parent == CONFIG_DIR and stem not in names:
        raise UserError(f"--recipe={name}: no recipe of {_COMMANDS[kind][0]} '{stem}'{nearest(stem, names)}")
    recipe = read_recipe(name, kind)
    for key, text in overrides.items():
        set_key(recipe, key, text)
    check(recipe, name)
    recipe.lock()
    return recipe


def recipe_mistake(place: str, path: Path, error: Exception) -> UserError:
    """What went wrong in a config file, with the line of that file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    at = f"line {line}: " if line else ""
    return UserError(f"{place}: {at}{type(error).__name__}: {one_line(error)}")


def _check_keys(name: str, config: ConfigDict) -> None:
    """A config file may change values only: a misspelt key would be a value that nothing reads."""
    known, given = flatten(base()), flatten(config)
    for key in given:
        if key not in known:
            raise UserError(f"--config={name}: {key}: no such key{nearest_key(key, known)}")
    for key in known:
        if key not in given:
            raise UserError(
                f"--config={name}: {key} is missing; begin with mmed_jax.config.defaults.base() and change values"
            )
