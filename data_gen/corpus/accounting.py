"""Books of a stage: documents in = kept + dropped by reason, per source and language, summed over all its parts.

Three counts are taken at three places: what readers give (`read`, by source; of later stages `read` has the language
too), what the last step lets through (`kept`) and what each step drops, with its reason. They are compared, never
derived from one another.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmed_jax.common.errors import WorkError

# (source, language) and (source, language, step, reason); a language that is not known is "".
Place = tuple[str, str]
Fate = tuple[str, str, str, str]
BORDER = 4  # samples kept a reason, source and language


@dataclass
class Books:
    """Counts of documents and of characters (`chars`) and UTF-8 bytes (`bytes`) kept.

    `notes`: other counts by name (e-mails replaced, paragraphs removed).
    """

    read: Counter[Place] = field(default_factory=Counter)
    kept: Counter[Place] = field(default_factory=Counter)
    dropped: Counter[Fate] = field(default_factory=Counter)
    chars: Counter[Place] = field(default_factory=Counter)
    bytes: Counter[Place] = field(default_factory=Counter)
    notes: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, list[list[Any]]]:
        """As JSON holds it: lists of [*key, count], sorted."""
        return {name: [[*key, n] for key, n in sorted(counts.items())] for name, counts in vars(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Books":
        """The inverse of `as_dict`."""
        books = cls()
        books.add(value)
        return books

    def add(self, value: Mapping[str, Any]) -> None:
        """Adds the counts of a part, as `as_dict` gives them."""
        for name, rows in value.items():
            counts = getattr(self, name)
            for *key, n in rows:
                counts[tuple(key)] += n

    def check(self, stage: str) -> None:
        """Raises WorkError where a source has other numbers read than kept and dropped together."""
        read, gone = by_source(self.read), by_source(self.kept) + by_source(self.dropped)
        for source in sorted({*read, *gone}):
            if read[source] != gone[source]:
                raise WorkError(
                    f"stage {stage}: source {source}: {read[source]:,} documents read, {gone[source]:,} kept or "
                    "dropped; this is a fault of the program"
                )


def by_source(counts: Mapping[Any, int]) -> Counter[str]:
    """Sums by the first part of the key."""
    sums: Counter[str] = Counter()
    for key, n in counts.items():
        sums[key[0]] += n
    return sums


def total(parts: Iterable[Mapping[str, Any]], stage: str) -> Books:
    """The books of a stage out of those of its parts, checked."""
    books = Books()
    for part in parts:
        books.add(part)
    books.check(stage)
    return books


def check_follows(before: Books, after: Books, stage: str) -> None:
    """Raises WorkError where a stage has read other documents than the one before it kept."""
    if +before.kept != +after.read:
        places = sorted(k for k in {*before.kept, *after.read} if before.kept[k] != after.read[k])
        raise WorkError(
            f"stage {stage}: {', '.join(map(str, places[:3]))}: read {after.read[places[0]]:,} of "
            f"{before.kept[places[0]]:,} documents; this is a fault of the program"
        )
