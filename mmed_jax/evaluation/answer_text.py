"""The copy of a model's output in which answers are looked for, and the way back from it to the output itself."""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from mmed_jax.evaluation import answer_rules as R

_RUN_ON = re.compile(R.RUN_ON, re.IGNORECASE)
# (pattern, replacement), in this order: thoughts that an answer follows, characters without width, control tokens and
# tags, <answer>, TeX, mark-up.
_CHANGES: tuple[tuple[re.Pattern, str | Callable[[re.Match], str]], ...] = (
    (re.compile(r"^.*</think>(?=\s*\S)", re.DOTALL), ""),
    (re.compile(r"[\u200b-\u200d\u2060\ufeff]"), ""),
    (re.compile(r"<\|[a-z_]+\|>|</s>|</?(?:b|i|u|p|em|br|strong)\s*/?>"), " "),
    (re.compile(r"</?answer>"), lambda m: "\n" if m[0][1] == "/" else "\nanswer: "),
    (re.compile(r"\\(?:text|math|mbox)\w*\s*\{([^{}]*)\}"), lambda m: m[1]),
    (re.compile(r"\\boxed\s*(?:\{\s*)+(?:\\\w+\s*\{\s*)?([^{}]*)\}+"), lambda m: f" ⟦boxed⟧ {m[1]} "),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"[*`$#]|__"), ""),
)


class Prepared(NamedTuple):
    """`text` to search; `offsets[i]` is where its character i comes from in the output, `end` where the output ends for
    us (before an invented next question). Offsets are None when they were not asked for."""

    text: str
    offsets: list[int] | None
    end: int


def prepare(text: str, aligned: bool = False) -> Prepared:
    """NFKC copy without mark-up and control tokens, cut where the model begins to invent the next question.

    Args:
      text: the output as it is. aligned: also tell where each character comes from (slower).
    """
    end = len(text)
    if aligned:
        text, offsets = _nfkc(text)
    else:
        text, offsets = unicodedata.normalize("NFKC", text), None
    if cut := _RUN_ON.search(text):
        end = offsets[cut.start()] if aligned else 0
        text = text[: cut.start()]
    for pattern, new in _CHANGES:
        if aligned:
            text, offsets = _substitute(pattern, new, text, offsets)
        else:
            text = pattern.sub(new, text)
    start = len(text) - len(text.lstrip())
    return Prepared(text.strip(), offsets[start:] if aligned else None, end)


def fold(text: str) -> str:
    """Casefolded NFKC, whitespace squeezed, outer quotes and end punctuation removed: for comparing option texts."""
    text = re.sub(r"[*`$#]|__", "", unicodedata.normalize("NFKC", text).casefold())
    text = " ".join(text.split())
    return text.strip(" .。,;:!\"'“”「」«»")


def _nfkc(text: str) -> tuple[str, list[int]]:
    """NFKC, normalised piece by piece, so that every character of the result knows the piece it comes from."""
    out, offsets, i = [], [], 0
    while i < len(text):
        j = i + 1
        while j < len(text) and not text[j].isascii() and _joins(text[j]):
            j += 1
        piece = unicodedata.normalize("NFKC", text[i:j])
        out.append(piece)
        offsets += [i] * len(piece)
        i = j
    return "".join(out), offsets


def _joins(char: str) -> bool:
    """Whether a character may melt into the one before it: marks, and the vowels and finals of Hangul syllables."""
    first = unicodedata.normalize("NFKD", char)[0]
    return unicodedata.combining(first) != 0 or "\u1160" <= first <= "\u11ff"


def _substitute(
    pattern: re.Pattern, new: str | Callable[[re.Match], str], text: str, offsets: list[int]
) -> tuple[str, list[int]]:
    """pattern.sub(new, text), offsets with it; what replaces a match comes from where the match began."""
    out, kept, last = [], [], 0
    for m in pattern.finditer(text):
        put = new if isinstance(new, str) else new(m)
        out += [text[last : m.start()], put]
        kept += offsets[last : m.start()] + [offsets[m.start()]] * len(put)
        last = m.end()
    return "".join([*out, text[last:]]), kept + offsets[last:]
