"""Pages are made by templates alone: one folder, one style sheet, everything escaped, nothing fetched."""

import base64
import hashlib
import html
import re
from pathlib import Path

import jinja2
import pytest

from mmed_jax.common.html_page import TEMPLATES, environment, render

EVIL = '<img src=x onerror="alert(1)">&'
# A tag that is closed: what a chat template or an endpoint's odd answer quotes is none.
MARKUP = re.compile(r"</(?:table|tr|td|th|svg|html|body|style|div|p|h[1-6]|ul|li|dl|details|article|figure)>")


def comparison(**values):
    return render(
        "comparison.html", **{"title": "t", "note": "n", "models_head": [], "models": [], "boards": [], **values}
    )


def test_no_python_file_writes_markup(repo):
    files = [p for room in ("mmed_jax", "data_gen", "configs", "scripts") for p in (repo / room).rglob("*.py")]
    assert len(files) > 200
    assert [str(p.relative_to(repo)) for p in files if MARKUP.search(p.read_text(encoding="utf-8"))] == []


def test_one_style_sheet_and_nothing_is_passed_unescaped():
    templates = {p.name: p.read_text(encoding="utf-8") for p in TEMPLATES.iterdir()}
    assert [name for name in templates if Path(name).suffix == ".css"] == ["style.css"]
    assert {Path(name).suffix for name in templates} == {".html", ".css", ".js"}
    for tag in ("<style", "<script"):
        assert [name for name, text in templates.items() if tag in text] == ["base.html"]
    for name, text in templates.items():
        assert not re.search(r"\|\s*safe|autoescape|@import|url\(|https?:", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        if name.endswith(".html"):
            environment().get_template(name)  # every one of them can be compiled


def test_what_comes_from_outside_is_escaped():
    table = {"title": EVIL, "head": [EVIL], "rows": [[EVIL]], "notes": [EVIL], "differences": []}
    page = comparison(title=EVIL, note=EVIL, models_head=[EVIL], models=[[EVIL]], boards=[(EVIL, [table])])
    assert "<img" not in page and page.count("&lt;img") == 10


def test_only_scripts_of_ours_run():
    """The policy of a page holds the hash of every script in it, as a browser takes it, and allows nothing else."""
    for names in ([], ["curves.js"]):
        source = '{% extends "base.html" %}{% set scripts = names %}{% block body %}{{ text }}{% endblock %}'
        page = (
            environment().from_string(source).render(title="t", names=names, text="</script><script>alert(1)</script>")
        )
        policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1])
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        assert len(scripts) == len(names) and "alert(1)" not in "".join(scripts)
        hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
        assert rules["script-src"].split() == ([f"'sha256-{h}'" for h in hashes] or ["'none'"])
        assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == "'none'"


def test_a_page_prints_and_fits_a_phone():
    page = comparison()
    assert page.startswith("<!doctype html>") and 'content="width=device-width,initial-scale=1"' in page
    assert "@media print" in page and "@media (max-width: 40rem)" in page


def test_words_of_a_table_are_not_broken():
    """What may be broken anywhere are headings, lines of text and blocks; a table scrolls in its own box."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    breaking = [rule.partition("{")[0].strip() for rule in re.findall(r"[^{}]+\{[^{}]*\}", style) if "anywhere" in rule]
    assert breaking and not any(re.search(r"\b(table|tr|td|th)\b", selectors) for selectors in breaking)
    assert "word-break" not in style and ".scroll { overflow-x: auto" in style


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="note"):
        render("comparison.html", title="t", models_head=[], models=[], boards=[])


def test_plots_scale():
    pieces = environment().get_template("pieces.html").module
    cell = {"accuracy": 0.5, "interval95": [0.25, 0.75], "count": 8}
    bars = pieces.interval_bars(EVIL, [(EVIL, cell)], EVIL)
    stacked = pieces.stacked_bars(EVIL, ["en", "fr"], {EVIL: [3, 0], "b": [1, 2_000]})
    for drawn in (bars, stacked):
        assert re.search(r'<svg role="img" viewBox="0 0 480 \d+"', drawn) and "<img" not in drawn
        assert not re.search(r"<svg[^>]* (?:width|height)=", drawn)
    assert "2,000</title>" in stacked and stacked.count("<rect") == 3  # an empty part is not drawn
    assert 'width="360.0"' in stacked  # the longest bar takes all the room
