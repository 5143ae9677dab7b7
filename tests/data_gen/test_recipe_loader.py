"""Recipes of data sets are loaded as those of training are: by name or path, with variants, every mistake one line."""

import pytest

from data_gen.sets.recipes import load_recipe
from mmed_jax.common.errors import UserError

HEAD = "from data_gen.sets.recipes import base, source\n\n\n"


def complaint(name: str, **overrides: str) -> str:
    with pytest.raises(UserError) as e:
        load_recipe(name, {k.replace("__", "."): v for k, v in overrides.items()})
    return str(e.value)


def test_names_and_variants():
    assert load_recipe("mmed_ift_mc:open", {}).name == "mmed_ift_mc"
    assert complaint("mmed_if") == "--recipe=mmed_if: no recipe of a data set 'mmed_if', did you mean 'mmed_ift'?"
    assert (
        complaint("stage1")
        == "--recipe=stage1: no recipe of a data set 'stage1'; valid: mmed_ift, mmed_ift_mc, mmedbench"
    )
    assert complaint("mmed_ift:dmo") == "--recipe=mmed_ift:dmo: no variant 'dmo', did you mean 'demo'?"


def test_overrides_name_the_flag_that_they_came_with():
    assert complaint("mmed_ift", sead="1") == "--recipe.sead: no such key, did you mean 'seed'?"
    assert complaint("mmed_ift", seed="x") == ("--recipe.seed=x: must be a whole number, for example 8 (default 0)")
    assert complaint("mmed_ift", source__medquad="1").startswith("--recipe.source.medquad: is a group of keys; valid")


@pytest.mark.parametrize(
    "body, text",
    [
        ("def get_config(variant):\n    return base(1)\n", "line 5: TypeError: base() takes 0 positional"),
        ("def get_config(variant):\n    return source('medqa', bogus=1)\n", "source: no key 'bogus'"),
        ("def get_config(variant):\n    return 3\n", "get_config must return a ConfigDict, got int"),
        ("recipe = base()\n", "has no get_config; recipes: mmed_ift, mmed_ift_mc"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(tmp_path, body, text):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + body)
    message = complaint(str(path))
    assert text in message and "\n" not in message


def test_a_recipe_takes_the_empty_variant(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "def get_config(variant):\n    c = base()\n    c.name = 'mine' + variant\n    return c\n")
    assert load_recipe(str(path), {}).name == "mine"


def test_recipes_that_name_the_former_home_are_loaded(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from data_gen.recipes import base, source, step\n\n\n"
        "def get_config(variant):\n    c = base()\n    c.name = 'mine'\n"
        "    c.source.own = source(path='own.jsonl')\n    c.step.more = step('answer_expanding', ('own',))\n"
        "    return c\n"
    )
    config = load_recipe(str(path), {})
    assert (config.name, config.source.own.path, config.step.more.method) == ("mine", "own.jsonl", "answer_expanding")
