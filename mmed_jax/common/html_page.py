"""HTML pages from the templates in mmed_jax/assets/templates: every value is escaped, and nothing is fetched.

A page extends base.html, which holds the one style sheet, and is put together from the macros of pieces.html (lists of
facts, tables, charts as SVG). A page's module gathers the values; what they look like is said in its template alone.

A template that sets `scripts` gets those files of the folder, each as one element. The page's Content-Security-Policy
names their hashes and forbids every other script and all that is fetched, so that a text that found its way into a page
as markup would still do nothing.
"""

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parent.parent / "assets" / "templates"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell with a second, small line, a background share (0 to 1) or a class; spans `span` columns."""

    text: object
    small: str = ""
    shade: float = 0.0
    kind: str = ""
    span: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A table row of a class of the style sheet: "head", "all" (a total) or "run"."""

    kind: str
    cells: Sequence[Any]


@functools.cache
def environment() -> jinja2.Environment:
    """The templates. A value that a template does not get, or that is misspelt there, is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals |= {"script": _script, "policy": _policy}
    return made


@functools.cache
def _script(name: str) -> Markup:
    """A script of ours, as it stands in a page."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _policy(scripts: Sequence[str], connect: str) -> str:
    """The Content-Security-Policy of a page. connect: "'self'" where it asks the server it came from, else ""."""
    hashes = [base64.b64encode(hashlib.sha256(_script(name).encode()).digest()).decode() for name in scripts]
    allowed = {
        "default-src": ["'none'"],
        "style-src": ["'unsafe-inline'"],
        "script-src": [f"'sha256-{h}'" for h in hashes] or ["'none'"],
        "connect-src": [connect or "'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(" ".join([name, *values]) for name, values in allowed.items())


def render(template: str, **values: Any) -> str:
    """A whole page: `template` of the folder, filled in; half of a surrogate pair, which no file holds, becomes "?"."""
    return environment().get_template(template).render(values).encode(errors="replace").decode()
