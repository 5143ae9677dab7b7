"""HTML pages from the templates in mmed_jax/assets/templates: every value is escaped, and nothing is fetched.

A page extends base.html, which holds the one style sheet, and is put together from the macros of pieces.html (lists of
facts, tables, charts as SVG). A page's module gathers the values; what they look like is said in its template alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

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
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **values: Any) -> str:
    """A whole page: `template` of the folder, filled in."""
    return environment().get_template(template).render(values)
