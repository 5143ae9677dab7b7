"""Replies that were cut off: whether one was, and which of its statements is its end."""

import re

from mmed_jax.evaluation.extraction import json_answers, rules
from mmed_jax.evaluation.extraction.prepare_text import Prepared
from mmed_jax.llm_api import finish_reasons

LONG = 1000  # characters from which a text that ends inside a sentence is taken as cut where nothing else is known
_LISTED = re.compile(r"[-•|>\d(\[]|[A-Z][.:)]")
_BUT = re.compile(
    r"\W*(?:but|wait|however|hmm|although|mais|pero|но|однако|但|不过|しかし|ただ|하지만|그러나)", re.IGNORECASE
)
# A list of options: "A. ... B. ..." on a line, or with B on the next.
_OPTIONS = re.compile(
    r"(?:^|[\s(])A\s?[.:)、]\s{0,3}(?=[^\n]{1,200}?\sB\s?[.:)、]|[^\n]{1,200}\n{1,3}\s{0,3}B\s?[.:)、])"
)
_ONE_SENTENCE = re.compile(r"(?:[^.!?。\n]|\.(?=\S)){0,160}[.!?。]?\W{0,20}")
_LEAD_IN = re.compile(rules.LEAD_IN, re.IGNORECASE)


def is_cut(copy: Prepared, finish_reason: str | None) -> bool:
    """Whether the prepared reply ends before its end."""
    text = copy.text
    if (
        copy.thinking
        or json_answers.is_torn(text)
        or finish_reason is not None
        and finish_reasons.is_cut(finish_reason)
    ):
        return True
    if finish_reason is not None or len(text) < LONG or not text[-1].isalnum():
        return False
    last = text[text.rfind("\n") + 1 :].strip()
    return not _LISTED.match(last)


def closes(text: str, end: int, thinking: bool) -> bool:
    """Whether what is said up to `end` is the end of a cut text: at most the rest of its sentence follows, and after a
    thought without its end nothing."""
    line, _, rest = text[end:].partition("\n")
    if re.search(r"\w", rest):
        return False
    if thinking or not re.search(r"\w", line):
        return not re.search(r"\w", line)
    return len(line) <= 160 and _ONE_SENTENCE.fullmatch(line) is not None and not _BUT.match(line)


def opens(text: str, start: int) -> bool:
    """Whether a statement that begins at `start` is the first thing said."""
    return start < 200 and not re.search(r"\w", text[: _LEAD_IN.search(text[:start]).start()])


def follows_foreign_list(text: str, start: int, options: dict[str, str]) -> bool:
    """Whether the statement at `start` follows a list of options that are not the question's `options` (folded)."""
    if not options:
        return False
    before = text[max(0, start - 800) : start]
    lists = list(_OPTIONS.finditer(before))
    if not lists:
        return False
    words = before[lists[-1].end() :].casefold()
    return not any(len(v) > 1 and v in " ".join(words.split()) for v in options.values())
