"""The copy of a model's output in which answers are looked for, and the way back from it to the output itself."""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from mmed_jax.evaluation.extraction import rules

_RUN_ON = re.compile(rules.RUN_ON, re.IGNORECASE)
# Where the first line is the answer, a vignette in a paragraph of its own is another question's.
_ANSWERED = re.compile(r"\W{0,12}(?:answer\W{1,4})?\(?[A-J]\b[).]?[^\n]{0,200}\n[^\S\n]*\n", re.IGNORECASE)
_NEXT_CASE = re.compile(r"(?<=\S)[^\S\n]*+\n[^\S\n]*+\n\s*+An?\s\d+[- ](?:year|month|week|day)s?[- ]old\b[^\n]*\?")
_NAMES = r"(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|inner_monologue|seed:think)"
_THOUGHT = re.compile(
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|START_THINKING)\|>|<\|channel\|>\s?(?:analysis|commentary)\b|"
    r"<unused94>",
    re.IGNORECASE,
)
_THOUGHT_END = re.compile(
    rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|END_THINKING)\|>|"
    r"<\|channel\|>\s?final\s?(?:<\|message\|>)?|(?<=[.!?\s])assistantfinal|<unused95>",
    re.IGNORECASE,
)
# Of longer texts, what stands between the first HEAD and the last TAIL characters is left out: a model that loops.
HEAD, TAIL = 8_000, 24_000
# Runs of one sign and of white space: no pattern has to look at more of them.
_RUN = re.compile(r"([^\w\s])\1{15,}")
_SPACE = re.compile(r"\s{20,}")
_TAG = r"(?:answer|choice|答案|回答|正解|解答|정답|답변|r[ée]ponse|respuesta|ответ)"
_SET_JOINT = r"\s{0,4}(?:[,;、&+/]|\b(?:and|et|y|и)\b|[和与及と])?\s{0,4}"
_BOXES = rf"(?:\s{{1,4}}[$*]{{0,2}}{_SET_JOINT}[$*]{{0,2}}\s{{1,4}}⟦boxed⟧\s{{1,4}})"
# (pattern, replacement), in this order: runs, characters without width, control tokens and tags, <answer>, TeX (a set
# in several boxes), mark-up.
_CHANGES: tuple[tuple[re.Pattern, str | Callable[[re.Match], str]], ...] = (
    (_RUN, lambda m: m[1] * 16),
    (_SPACE, lambda m: "\n\n" if "\n" in m[0] else " "),
    (re.compile(r"[\u200b-\u200d\u2060\ufeff]"), ""),
    (re.compile(r"<\|[a-z_]{1,40}\|>|</s>|</?(?:b|i|u|p|em|br|strong)\s{0,4}/?>"), " "),
    (
        re.compile(rf"</?(?:(?:final|correct|my|best)[ _-]?)?{_TAG}(?:[ _-]?(?:choice|letter))?>", re.IGNORECASE),
        lambda m: "\n" if m[0][1] == "/" else "\nanswer: ",
    ),
    (re.compile(r"\\(?:text|math|mbox)\w{0,12}\s{0,4}\{([^{}]{0,400})\}"), lambda m: m[1]),
    (
        re.compile(r"\\boxed\s{0,4}(?:\{\s{0,4}){1,4}(?:\\\w{1,12}\s{0,4}\{\s{0,4})?([^{}]{0,400})\}{1,4}"),
        lambda m: f" ⟦boxed⟧ {m[1]} ",
    ),
    (re.compile(rf"(?<=⟦boxed⟧ [A-Z]){_BOXES}(?=[A-Z]\b)"), ", "),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\(?=[%&_])"), ""),
    (re.compile(r"[*`$#]|__"), ""),
)


# Letters of the Russian alphabet as labels of options: "Б)", "ответ: Б". Б and Г look like no Latin letter; where they
# stand, В is the third and С none.
_ALPHABET = {"А": "A", "Б": "B", "В": "C", "Г": "D"}
_NAMED_RUSSIAN = re.compile(r"(?:вариант\w*|ответ\w*|пункт)\W{1,3}[БГ](?![^\W_])", re.IGNORECASE)
_STANDING = re.compile(r"(?<![^\W_])[АБВГ](?![^\W_])|(?<=ответ: )[абвг](?=\W{0,3}$)")
_CYRILLIC = re.compile(
    r"(?<![^\W_])([АБВГ])(?=\s?[.):;,»\"]|\s{0,3}(?:$|\n|[—–-]\s|и\s[АБВГ]\b))|"
    r"(?<=ответ: )([абвг])(?=\W{0,3}$)"
)


class Prepared(NamedTuple):
    """`text` to search; `offsets[i]` is where its character i comes from in the output, `end` where the output ends for
    us (before an invented next question). Offsets are None when they were not asked for. `thinking`: the text is a
    thought without an end; `run_on`: something was cut off at `end`."""

    text: str
    offsets: list[int] | None
    end: int
    thinking: bool = False
    run_on: bool = False


def prepare(text: str, aligned: bool = False) -> Prepared:
    """NFKC copy without mark-up, control tokens and finished thoughts, cut where the model begins to invent the next
    question.

    Args:
      text: the output as it is. aligned: also tell where each character comes from (slower).
    """
    end = len(text)
    if aligned:
        text, offsets = _nfkc(text)
    else:
        text, offsets = unicodedata.normalize("NFKC", text), []
    first = _THOUGHT_END.search(text)  # a thought may quote questions
    begin = first.end() if first else 0
    if cut := _NEXT_CASE.search(text, begin) if _ANSWERED.match(text, begin) else None:
        cut = min(cut, _RUN_ON.search(text, begin) or cut, key=lambda m: m.start())
    if cut := cut or _RUN_ON.search(text, begin):
        end = offsets[cut.start()] if aligned else 0
        text = text[: cut.start()]
    start, stop, thinking = _without_thoughts(text)
    keep = [(start, stop)] if stop - start <= HEAD + TAIL else [(start, start + HEAD), (stop - TAIL, stop)]
    text, offsets = "".join(text[a:b] for a, b in keep), [i for a, b in keep for i in offsets[a:b]]
    for pattern, new in _CHANGES:
        if aligned:
            text, offsets = _substitute(pattern, new, text, offsets)
        else:
            text = pattern.sub(new, text)
    start = len(text) - len(text.lstrip())
    return Prepared(text.strip(), offsets[start:] if aligned else None, end, thinking, cut is not None)


def in_latin(text: str) -> str:
    """The text with the labels of options, А, Б, В, Г, in Latin letters of the same places, if those of them that look
    like no Latin letter show that they are Russian."""
    labels = {(m[1] or m[2]).upper() for m in _CYRILLIC.finditer(text)}
    if not labels & {"Б", "Г"} and not _NAMED_RUSSIAN.search(text):
        return text
    return _STANDING.sub(lambda m: _ALPHABET[m[0].upper()], text)


def _without_thoughts(text: str) -> tuple[int, int, bool]:
    """(start, end, whether it is a thought) of what is read: what follows the last thought, or stands before the first;
    the thought itself where nothing else was written."""
    start, stop = 0, len(text)
    ends = [m.end() for m in _THOUGHT_END.finditer(text)]
    if ends and text[ends[-1] :].strip():
        start = ends[-1]
    opened = _THOUGHT.search(text, start)
    if opened is None:
        return start, stop, False
    written = re.search(r"\w", text[start : opened.start()]) is not None
    if ends and ends[-1] > opened.start():  # it has its end, and nothing follows
        return start, stop, not written
    return (start, opened.start(), False) if written else (opened.end(), stop, True)


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
