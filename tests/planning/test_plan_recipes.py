"""Recipes in files: one that loads itself, a search that would write over what it reads, variants, XLA flags."""

from pathlib import Path

import pytest

from mmed_jax import train
from mmed_jax.common.errors import UserError
from mmed_jax.config.recipes import load_config, recipe_files
from mmed_jax.planning.found_config import MARK
from tests.support.planning import arithmetic_compiler, run_plan
from tests.support.training import call


def recipe(path: Path, loads: str) -> Path:
    """A config file as a search writes it."""
    code = f"from mmed_jax.config import load_config\n\n\ndef get_config():\n    return load_config({loads!r})\n"
    path.write_text(f'{MARK}"""\n{code}')
    return path


def test_a_search_does_not_write_over_what_it_reads(tmp_path):
    """Neither the recipe, nor one that it loads, nor a link to either."""
    first = recipe(tmp_path / "first.py", "stage1:8b")
    second = recipe(tmp_path / "second.py", str(first))
    (tmp_path / "link.py").symlink_to(first)
    assert recipe_files(str(second))[:2] == [second.resolve(), first.resolve()]
    for output in (second, first, tmp_path / "link.py"):
        before = output.read_text()
        with arithmetic_compiler() as compiled:
            outcome = run_plan("v6e-64", "--search", f"--output={output}", config=str(second))
        assert outcome.code == 2 and "is read by --config" in outcome.error and not compiled
        assert output.read_text() == before


def test_a_recipe_that_loads_itself_is_one_line(tmp_path):
    alone = tmp_path / "alone.py"
    recipe(alone, str(alone))
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    recipe(one, str(two))
    recipe(two, str(one))
    for path, shown in ((alone, "alone.py -> alone.py"), (one, "one.py -> two.py -> one.py")):
        with pytest.raises(UserError, match=f"loads itself: {shown}"):
            load_config(str(path))
        outcome = call(train.main, f"--config={path}")
        assert outcome.code == 2 and "loads itself" in outcome.error
    assert load_config("stage1:8b").variant == "8b"


def test_a_file_without_variants_says_so(tmp_path):
    path = recipe(tmp_path / "found.py", "stage1:8b")
    outcome = call(train.main, f"--config={path}:8b")
    assert outcome.code == 2 and outcome.error == f"--config={path}:8b: found.py has no variants; leave ':8b' out"
    own = tmp_path / "own.py"
    own.write_text("from configs.stage1 import get_config\n")
    assert load_config(f"{own}:8b").variant == "8b"
