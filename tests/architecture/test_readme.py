"""README and docs: short, and every link and every named file leads somewhere."""

import re

import pytest

# Files that do not exist: examples of what would be added.
EXAMPLES = {
    "mmed_jax/data/sources/city_clinic.py",
    "data_gen/methods/simplify.py",
    "data_gen/prompts/plain_words.toml",
    "data_gen/prompts/METHOD.toml",
}


def pages(repo):
    return [repo / "README.md", repo / "CONTRIBUTING.md", repo / "SECURITY.md", *sorted((repo / "docs").glob("*.md"))]


def test_readme_is_short_and_links_every_page(repo):
    text = (repo / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    linked = set(re.findall(r"\]\(([\w./]+)\)", text))
    assert linked >= {f"docs/{page.name}" for page in (repo / "docs").glob("*.md")} | {"CONTRIBUTING.md", "SECURITY.md"}


@pytest.mark.parametrize("kind", ["links", "files"])
def test_what_pages_name_is_there(repo, kind):
    pattern = {
        "links": r"\]\(([\w./-]+)\)",
        "files": r"`((?:mmed_jax|data_gen|configs|scripts|tests|docs)/[\w/.-]*\.(?:py|md|sh|toml|json|jsonl|txt|csv))`",
    }[kind]
    lost = []
    for page in pages(repo):
        base = page.parent if kind == "links" else repo
        for name in re.findall(pattern, page.read_text(encoding="utf-8")):
            if name not in EXAMPLES and not (base / name).exists():
                lost.append(f"{page.name}: {name}")
    assert lost == []
