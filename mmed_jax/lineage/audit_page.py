"""The page of an audit, as text, Markdown or HTML: what was found, what it rests on, and where to sign."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mmed_jax
from mmed_jax.common.errors import UserError, printable
from mmed_jax.common.html_page import render
from mmed_jax.common.output_files import put_file
from mmed_jax.lineage.audit_result import Section, Trail

_WIDTH = 110
FORMS = (".html", ".md", ".txt")
_NOTICE = "For research. Not for clinical use. Nothing here has been validated for the care of patients."
_STATEMENT = (
    "I have read this page. It says what the model was made from, as far as its files tell and could be compared; it "
    "does not say that the model is fit for any use."
)
_SIGN = ("Name", "Function", "Institution", "Date", "Signature")


def verdict(trail: Trail) -> str:
    """One sentence."""
    links, broken = trail.links, trail.broken
    if not broken:
        return f"All {len(links):,} links hold: what is at hand is what was written down."
    return f"{len(broken):,} of {len(links):,} links are broken or missing."


def write_page(path: Path, trail: Trail, title: str) -> None:
    """Writes the page in the form of the file's name. Raises UserError: another form; OSError."""
    forms = {".html": html_page, ".md": markdown_page, ".txt": text_page}
    if path.suffix.lower() not in forms:
        raise UserError(f"--output={path}: name a file that ends in {', '.join(FORMS)}")
    content = forms[path.suffix.lower()](trail, title)
    with put_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def text_page(trail: Trail, title: str) -> str:
    """Plain text, for a terminal or a printer."""
    lines = [title, "=" * len(title), f"mmed_jax {mmed_jax.__version__}", "", verdict(trail)]
    lines += [f"  {link.state:<8} {link.text}" for link in trail.broken]
    for section in trail.sections:
        lines += ["", section.title, "-" * len(section.title)]
        width = max((len(name) for name, _ in section.facts), default=0)
        lines += [line for name, value in section.facts for line in _wrapped(f"{name:<{width}}  ", value)]
        for name, head, rows in section.tables:
            lines += ["", *([f"{name}:"] if name else []), *_columns(head, rows)]
        if section.links:
            lines += ["", *(f"  {link.state:<8} {link.text}" for link in section.links)]
    lines += ["", _NOTICE, "", *_wrapped("", _STATEMENT), "", *(f"{name + ':':<13} {'_' * 50}\n" for name in _SIGN)]
    return "\n".join(printable(line) for text in lines for line in text.split("\n")).rstrip() + "\n"


def markdown_page(trail: Trail, title: str) -> str:
    """Markdown, for a repository or a converter to PDF."""
    parts = [f"# {_cell(title)}", f"mmed_jax {mmed_jax.__version__}", f"**{verdict(trail)}**"]
    parts += ["\n".join(f"- **{link.state}** {_cell(link.text)}" for link in trail.broken)] if trail.broken else []
    for section in trail.sections:
        parts.append(f"## {_cell(section.title)}")
        if section.facts:
            parts.append("\n".join(f"- {_cell(name)}: {_cell(value)}" for name, value in section.facts))
        for name, head, rows in section.tables:
            parts += [f"{name}:"] if name else []
            parts.append(_table(head, rows))
        if section.links:
            parts.append(_table(("", "link", "expected", "found"), _link_rows(section)))
    parts += [_NOTICE, _STATEMENT, _table(("", ""), [(name, "&nbsp;" * 60) for name in _SIGN], raw=True)]
    return "\n\n".join(parts) + "\n"


def html_page(trail: Trail, title: str) -> str:
    """One printable page without any other file."""
    sections = [
        {"title": s.title, "facts": s.facts, "tables": s.tables, "links": _link_rows(s)} for s in trail.sections
    ]
    return render(
        "audit.html",
        title=title,
        version=mmed_jax.__version__,
        verdict=verdict(trail),
        broken=[(link.state, link.text) for link in trail.broken],
        sections=sections,
        notice=_NOTICE,
        statement=_STATEMENT,
        fields=_SIGN,
    )


def _wrapped(start: str, text: str) -> list[str]:
    """Lines of a page's width, the later ones below the text of the first."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _link_rows(section: Section) -> list[tuple[str, str, str, str]]:
    return [(link.state, link.what, link.expected, link.found) for link in section.links]


def _columns(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table of text; numbers stand to the right."""
    cells = [list(head), *([f"{x:,}" if isinstance(x, int) else str(x) for x in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    numbers = [all(isinstance(row[i], int) for row in rows) for i in range(len(head))]
    return [
        "  " + "  ".join(x.rjust(w) if n else x.ljust(w) for x, w, n in zip(line, widths, numbers)).rstrip()
        for line in cells
    ]


def _table(head: Iterable[str], rows: Iterable[Sequence[object]], raw: bool = False) -> str:
    lines: list[list[Any]] = [list(head)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join(
        "| " + " | ".join(str(x) if raw or x == "---" else _cell(x) for x in line) + " |" for line in lines
    )


def _cell(value: object) -> str:
    """Foreign text as a piece of one line of Markdown."""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(printable(text).replace("<", "&lt;").split()))
