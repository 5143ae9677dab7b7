"""--config=two_stage:8b becomes a study: its recipe, with the settings of the command line."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.config.overrides import set_override
from mmed_jax.config.recipes import CONFIG_DIR, read_recipe, recipe_mistake, recipe_names, recipe_path
from mmed_jax.studies.design import Design, Study

_SEEDS = 2**32


def open_study(name: str, overrides: Mapping[str, str]) -> Study:
    """The study of `configs/NAME.py` or of a path, with an optional :VARIANT.

    Args:
      overrides: {key of its settings: text of the command line}.

    Raises:
      UserError: no such study, variant or key, or a mistake in the recipe.
    """
    stem, path, names = name.partition(":")[0], recipe_path(name), recipe_names("study")
    if path.parent == CONFIG_DIR and stem in recipe_names():
        raise UserError(f"--config={name}: is a recipe of a training, for `python -m mmed_jax.train --config={name}`")
    if not path.is_file() or (path.parent == CONFIG_DIR and stem not in names):
        raise UserError(f"--config={name}: no study '{stem}'{nearest(stem, names)}")
    study: Study = read_recipe(name, "study", returns=Study)
    for key, text in overrides.items():
        set_override(study.settings, key, text)
    study.settings.seeds = tuple(map(str, seeds_of(study)))
    study.settings.lock()
    return dataclasses.replace(study, design=_checked(study.design, f"--config={name}", path))


def _checked(design: Callable[[ConfigDict], Design], place: str, path: Path) -> Callable[[ConfigDict], Design]:
    """`design` of a recipe, whose mistakes are one line with that of the file."""

    def make(c: ConfigDict) -> Design:
        try:
            made = design(c)
        except UserError:
            raise
        except Exception as e:
            raise recipe_mistake(place, path, e) from e
        if not isinstance(made, Design):
            raise UserError(f"{place}: design must return a Design, got {type(made).__name__}")
        return made

    return make


def seeds_of(study: Study) -> tuple[int, ...]:
    """The seeds of a study, each once. Raises UserError: none, one twice, or no seed of a training."""
    texts = [str(s) for s in study.settings.seeds]
    for text in texts:
        if not text.isdecimal() or len(text) > len(str(_SEEDS)) or int(text) >= _SEEDS:
            raise UserError(f"config.seeds: '{text}' is no whole number from 0 to {_SEEDS - 1}; for example 1,2,3")
        if texts.count(text) > 1:
            raise UserError(f"config.seeds: {text} is named twice")
    if not texts:
        raise UserError("config.seeds is empty; for example --seeds=1,2,3")
    return tuple(map(int, texts))
