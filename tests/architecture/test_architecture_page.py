"""docs/architecture.md: every file that it names exists, and at least forty behaviours stand in it."""

import re

import pytest


@pytest.fixture(scope="module")
def page(repo):
    return (repo / "docs" / "architecture.md").read_text(encoding="utf-8")


def behaviours(page: str) -> list[tuple[str, str]]:
    """(behaviour, file) of the table."""
    table = page.partition("## Which file does what")[2].partition("\n## ")[0]
    return re.findall(r"^\| (.+?) \| `([^`|]+)` \|$", table, re.MULTILINE)


def test_every_file_and_room_exists(page, repo):
    named = re.findall(r"`((?:mmed_jax|data_gen|configs|scripts|tests|docs)[\w/.-]*)`", page)
    assert len(named) > 80
    assert [name for name in named if not (repo / name).exists()] == []


def test_forty_behaviours_of_all_rooms(page, repo):
    table = behaviours(page)
    assert len(table) >= 40 and len({file for _, file in table}) == len(table)
    rooms = {"/".join(file.split("/")[:2]) for _, file in table}
    there = {f"mmed_jax/{path.name}" for path in (repo / "mmed_jax").iterdir() if (path / "__init__.py").exists()}
    assert there <= rooms and {"data_gen/methods", "data_gen/gates", "data_gen/sets"} <= rooms


def test_files_named_beside_others_exist(page, repo):
    """ "`registry.py` declares ...; `locate.py` beside it"."""
    sections = page.partition("## From a benchmark's file")[2].partition("\n## ")[0]
    names = re.findall(r"`(\w+\.py)`", sections)
    assert names and all(list((repo / "mmed_jax" / "evaluation").rglob(name)) for name in names)
