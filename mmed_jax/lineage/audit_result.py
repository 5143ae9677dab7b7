"""What an audit has found: sections with facts, and links that hold, are broken or are missing."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmed_jax.common.errors import one_line
from mmed_jax.common.paths import resolve_path
from mmed_jax.common.places import is_bucket

HOLDS, BROKEN, MISSING = "holds", "BROKEN", "MISSING"
_SHOWN = 16  # digits of a hash on the page


@dataclasses.dataclass(frozen=True)
class Link:
    """One thing that was compared. what: in words. expected: as it was written down. found: now; "" = not there."""

    what: str
    expected: str
    found: str
    state: str

    @property
    def text(self) -> str:
        """A line that names it: which, expected, found."""
        if self.state == HOLDS:
            return f"{self.what}: {shorten(self.expected)}"
        return f"{self.what}: expected {shorten(self.expected)}, found {shorten(self.found) or 'nothing'}"


@dataclasses.dataclass
class Section:
    """A model, run, base, data set or ledger. facts: (name, value). tables: (title, head, rows)."""

    title: str
    facts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = dataclasses.field(default_factory=list)
    links: list[Link] = dataclasses.field(default_factory=list)

    def compare(self, what: str, expected: str, found: str) -> bool:
        """Adds the link between what was written down and what is there now; whether it holds."""
        state = MISSING if not expected or not found else HOLDS if expected == found else BROKEN
        self.links.append(Link(what, expected or "a record of it", found, state))
        return state == HOLDS

    def missing(self, what: str, expected: str, found: str = "") -> None:
        """Adds a link whose other end is not at hand."""
        self.links.append(Link(what, expected, found, MISSING))

    def check(self, what: str, expected: str, problem: str) -> None:
        """Adds a link that a check of its own has compared; problem: "" where it holds."""
        self.links.append(Link(what, expected, problem or expected, BROKEN if problem else HOLDS))

    @contextlib.contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """A record that is read inside and has not the form that this program writes is a broken link."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as e:
            self.check(what, "as it was written", f"another form ({type(e).__name__}: {one_line(e)[:100]})")

    def fact(self, name: str, value: object) -> None:
        """Adds a fact, where it is known."""
        if value not in (None, "", [], {}):
            self.facts.append((name, str(value)))


@dataclasses.dataclass
class Trail:
    """Sections in the order in which they were walked; places: folders to look in for what has moved."""

    places: list[Path] = dataclasses.field(default_factory=list)
    sections: list[Section] = dataclasses.field(default_factory=list)

    def section(self, title: str) -> Section:
        """A new section."""
        self.sections.append(Section(title))
        return self.sections[-1]

    @property
    def links(self) -> list[Link]:
        """Of all sections."""
        return [link for section in self.sections for link in section.links]

    @property
    def broken(self) -> list[Link]:
        """Those that do not hold."""
        return [link for link in self.links if link.state != HOLDS]

    def find(self, name: str) -> Path | None:
        """Where something lies that was written down as `name`: there, or below one of `places`; None = not at hand."""
        if not name:
            return None
        if is_bucket(name):
            candidates = [place / name.rstrip("/").rpartition("/")[2] for place in self.places]
        else:
            own = Path(name)
            candidates = [resolve_path(name)]
            for place in self.places:
                candidates += [] if own.is_absolute() else [place / own]
                candidates += [place / own.name] if own.name else []
        return next((path for path in candidates if path.exists()), None)


def shorten(text: str) -> str:
    """A hash by its first digits; other texts as they are."""
    is_hash = len(text) >= 40 and all(c in "0123456789abcdef" for c in text)
    return f"{text[:_SHOWN]}…" if is_hash else text
