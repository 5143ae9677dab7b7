"""The patterns of rules.py, compiled for the letters and option texts of a question."""

import re
from functools import lru_cache

from mmed_jax.evaluation.extraction import rules

WORD = "A-Za-zÀ-ÿА-яЁё0-9"  # what must not touch a letter; Chinese and Japanese characters may


def capitals(letters: str, russian: bool) -> str:
    """The letters in capitals with their Cyrillic lookalikes, for a character class that minds case."""
    return letters + "".join(c for c, latin in rules.LOOKALIKES.items() if russian and latin in letters)


def _one(letters: str, russian: bool) -> str:
    """Pattern of one letter, or several capitals written together, as a word of its own."""
    run = rf"(?:(?-i:[{capitals(letters, russian)}]){{1,{len(letters)}}}|[{letters.lower()}])"
    return rf"(?<![{WORD}]){run}(?![{WORD}]|['’][A-Za-zÀ-ÿА-я]|-[^\W\d]|\+(?!\s?[A-Z]\b))"


@lru_cache(maxsize=64)
def hedge(letters: str, russian: bool) -> re.Pattern:
    """ "or B", right after a letter."""
    return re.compile(rules.HEDGE + _one(letters, russian), re.IGNORECASE)


@lru_cache(maxsize=64)
def letter_set(letters: str, russian: bool) -> re.Pattern:
    """One letter or several, with what stands around and between them; group "s"."""
    one = rf"[{rules.OPEN}]{{0,6}}+{_one(letters, russian)}(?:\s?[{rules.CLOSE}]){{0,6}}+"
    # With dashes from three on: "A - C" may be a range.
    dashed = rf"{one}(?:\s[-–]\s{one}){{2,25}}+"
    return re.compile(rf"(?P<s>{dashed}|{one}(?:{rules.SEPARATOR}{one}){{0,25}}+)", re.IGNORECASE)


@lru_cache(maxsize=256)
def text_pattern(folded: str) -> re.Pattern:
    """Matches an option's text by its folded form, with what folding takes away around it and between words."""
    words = r"\s+".join(re.escape(w) for w in folded.split())
    return re.compile(rf"[\s.。,;:!{rules.OPEN}]{{0,12}}{words}", re.IGNORECASE)


@lru_cache(maxsize=64)
def text_suffix(folded: tuple[str, ...], suffix: str) -> re.Pattern:
    """One of the folded option texts (group "s"; longest first) with `suffix` after it."""
    one = "|".join(r"\s+".join(re.escape(w) for w in f.split()) for f in folded)
    return re.compile(rf"(?<![^\W_の项項]|-)(?P<s>{one})[{rules.CLOSE}]{{0,6}}(?:{suffix})", re.IGNORECASE)


@lru_cache(maxsize=128)
def letter_suffix(letters: str, russian: bool, suffix: str) -> re.Pattern:
    """Letters (group "s") with `suffix` after them."""
    # Capitals only, but "bが正解" as Japanese examinations write it.
    low = rf"(?-i:[{letters.lower()}])"
    small = rf"{low}(?=(?:\s{{0,3}}[、,と]\s{{0,3}}{low}){{0,9}}+\s{{0,3}}(?:が|は)(?:正|答|最も))"
    one = rf"(?:(?-i:[{capitals(letters, russian)}])|{small})"
    one = rf"[{rules.OPEN}]{{0,6}}+(?<![{WORD}'’-]){one}(?![{WORD}])[{rules.CLOSE}]{{0,6}}+"
    return re.compile(rf"(?P<s>{one}(?:{rules.SEPARATOR}{one}){{0,25}}+)(?:{suffix})", re.IGNORECASE)
