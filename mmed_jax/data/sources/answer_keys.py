"""Answer keys and option letters of published rows: read, or the reason why they can't be.

A key and its options only mean something together, so nothing here letters options anew while the key stays, and the
numbering of keys is decided over a whole file, not row by row: one read from the wrong number gives a full set of
answers, every one of them wrong.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LETTERS
from mmed_jax.data.sources.source import Drop, Row, lettered, text

UNREADABLE = Drop("key is neither a letter nor a number")


def number_of(value: object) -> int | None:
    """The whole number that a cell holds: 2, "2", "2.0", "(2)", "２", "②"; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    found = re.fullmatch(r"\(?([+-]?\d{1,9})(?:\.0*)?\)?", unicodedata.normalize("NFKC", str(value)).strip(), re.ASCII)
    return int(found[1]) if found else None


def letter_of(value: object) -> str | None:
    """The letter that a cell holds: "b", "B.", "(B)", "Ｂ"; None for anything else."""
    found = re.fullmatch(r"\(?([A-Z])[.)]?", unicodedata.normalize("NFKC", text(value)).strip().upper())
    return found[1] if found else None


def key_at(values: Iterable[object], base: int) -> list[str] | Drop | None:
    """Letters of keys that are numbers, `base` the first option's, or letters. None for no key (empty, negative)."""
    found = []
    for value in values:
        number, letter = number_of(value), letter_of(value)
        if letter is not None:
            found.append(letter)
        elif number is None:
            return UNREADABLE if text(value) else None
        elif number < 0:
            return None
        elif not 0 <= number - base < len(LETTERS):
            return Drop("key is not among the options")
        else:
            found.append(LETTERS[number - base])
    return found or None


def by_name(options: Any) -> tuple[dict[str, str], dict[str, str]] | Drop:
    """Options under names ({"A": ..}, {"1": ..} or [{"key", "value"}]) as (options by letter, letter by name).

    Names must be the letters from A, or the numbers from 0 or 1, without a gap; empty options at the end are left out.
    """
    pairs = [(o["key"], o["value"]) for o in options] if isinstance(options, list) else list(options.items())
    names = [_name(key) for key, _ in pairs]
    if len(set(names)) < len(names):
        return Drop("an option's name is given twice")
    ordered = sorted(zip(names, (value for _, value in pairs)), key=lambda pair: (len(pair[0]), pair[0]))
    while ordered and not text(ordered[-1][1]):
        ordered.pop()
    names = [name for name, _ in ordered]
    given = lettered(value for _, value in ordered)
    if isinstance(given, Drop):
        return given
    right = [list(LETTERS[: len(names)]), *([str(n + base) for n in range(len(names))] for base in (0, 1))]
    if names not in right:
        return Drop("options not in order")
    return given, dict(zip(names, given))


def _name(key: object) -> str:
    number = number_of(key)
    return str(number) if number is not None else letter_of(key) or text(key)


def key_by_name(values: Iterable[object], names: Mapping[str, str]) -> list[str] | Drop | None:
    """Letters of keys that are names of options, as by_name gives them. None for no key."""
    found = []
    for value in values:
        name = _name(value)
        if not name or name.startswith("-"):
            return None
        if name not in names:
            known = number_of(value) is not None or letter_of(value) is not None
            return Drop("key is not among the options") if known else UNREADABLE
        found.append(names[name])
    return found or None


Numbering = Callable[[dict], tuple[Iterable[object], int, int]]


def named_numbering(keys: Iterable[object], options: Any) -> tuple[Iterable[object], int, int]:
    """The Numbering of keys that are names of options (see by_name), where these are numbers."""
    pairs = [(o["key"], o["value"]) for o in options] if isinstance(options, list) else options.items()
    found = [number_of(name) for name, value in pairs if text(value)]
    names = [name for name in found if name is not None]
    return ([], 0, 0) if len(names) < len(found) else (keys, min(names), len(names))


def same_base(found: Iterable[Row], source: str, numbering: Numbering) -> Iterator[Row]:
    """The rows, once no row of their file shows that its keys count from another number than they should.

    Args:
      numbering: (keys, the number of the first option, how many options) of a raw row.
    Raises:
      UserError: a 0 where keys count from 1, or the number of options where they count from 0.
    """
    for _, group in groupby(found, key=lambda row: row.where.rpartition(":")[0]):
        whole = list(group)
        for row in whole:
            _check_base(row, source, numbering)
        yield from whole


def _check_base(row: Row, source: str, numbering: Numbering) -> None:
    try:
        keys, base, count = numbering(row.raw)
        numbers = [number_of(key) for key in keys]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):  # malformed: counted when it is converted
        return
    for number in numbers:
        if base == 1 and number == 0 or base == 0 and count and number == count:
            raise UserError(
                f"{row.where}: the key is {number}, and {source} numbers its {count} options from {base}: this file "
                f"counts from {1 - base}, which would make every answer another one; renumber its keys from {base}"
            )
