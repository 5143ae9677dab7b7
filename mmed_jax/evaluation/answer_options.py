"""Finding the texts of a question's options in what a model wrote."""

import re
from collections.abc import Iterator

from mmed_jax.evaluation import answer_context as C
from mmed_jax.evaluation import answer_patterns as P
from mmed_jax.evaluation import answer_rules as R
from mmed_jax.evaluation.answer_text import fold

_COPULA, _HEDGE, _AND, _NEGATED_BEFORE, _FOLLOWS = (
    re.compile(p, re.IGNORECASE) for p in (R.COPULA, R.HEDGE, R.SEPARATOR, R.NEGATED_BEFORE, R.FOLLOWS)
)
_JOINED_BEFORE = re.compile(
    r"(?:[\w)]\s{0,2}[,;、]|\b(?:and|or|et|ou|y|o|и|или)|[和与及或と]|および|または|및|과|와|또는)\s{1,3}(?:\w{1,3}\s)?"
    r"(?:[(\[]?[A-ZАВСЕ][.:)\]、]\s{0,2})?$|[和与及或と、](?:[A-Z][.:)、]?\s{0,2})?$",
    re.IGNORECASE,
)
_OTHER_ENDS = re.compile(r"\s*(?:$|[^\w\s]|(?:and|or)\b)", re.IGNORECASE)


class OptionTexts:
    """The texts of one question's options by letter, folded; empty when only the letters are known."""

    def __init__(self, texts: dict[str, str]):
        self.texts = texts

    def at(self, text: str, pos: int) -> tuple[str, int] | None:
        """(letter, end) of the one option whose whole text stands at `pos` (longest wins); None otherwise."""
        fits: list[tuple[int, int, str]] = []  # (length, end, letter)
        for k, v in self.texts.items():
            m = P.text_pattern(v).match(text, pos) if len(v) > 1 or v.isdigit() else None
            # "10" is not in "10,000", nor "aspirin" in "aspirin-induced".
            if m and (not re.match(r"[\w-]|[.,]\d", text[m.end() :]) or _COPULA.match(text, m.end())):
                fits.append((len(v), m.end(), k))
        fits = [f for f in fits if f[0] == max(fits)[0]]
        return (fits[0][2], fits[0][1]) if len(fits) == 1 else None

    def may_end(self, text: str, end: int) -> bool:
        """Whether an option's text that ends at `end` may be an answer, by what follows ("heparin induced ...")."""
        return bool(_FOLLOWS.match(text, end)) or not C.goes_on(text, end)

    def another(self, text: str, end: int, letter: str) -> bool:
        """Whether another option's text stands beside the one that ends at `end`: "or", "and", "yes/no", "A, B."."""
        if self.texts[letter] in R.YES_NO:
            others = {v for k, v in self.texts.items() if k != letter}
            m = re.match(rf"({R.HEDGE}|{R.SEPARATOR}|\W*)\W*(\w+)(\s*(?:$|[^\w\s]))?", text[end : end + 60], re.I)
            joined = m is not None and (m[3] is not None or re.search(r"[\w/]", m[1]))
            return bool(joined) and fold(m[2]) in others
        for joint in (_HEDGE.match(text, end), _AND.match(text, end)):
            other = self.at(text, joint.end()) if joint else None
            if other and other[0] != letter:
                return "," not in joint[0] or _OTHER_ENDS.match(text, other[1]) is not None
        return False

    def before(self, text: str, suffix: str) -> Iterator[tuple[str, re.Match]]:
        """(letter, match) of option texts with `suffix` right after them, "warfarin is the correct answer"."""
        words = {v: k for k, v in self.texts.items() if len(v) > 1 and v not in R.YES_NO}
        if not words or len(words) < sum(len(v) > 1 and v not in R.YES_NO for v in self.texts.values()):
            return
        for m in P.text_suffix(tuple(sorted(words, key=len, reverse=True)), suffix).finditer(text):
            before = text[max(0, m.start() - 30) : m.start()]
            # "aspirin and warfarin are the right answers": more than one is meant.
            negated = _NEGATED_BEFORE.search(before) or _JOINED_BEFORE.search(before)
            if not (negated or C.withheld(text, m.start(), m.end()) or C.goes_on(text, m.end())):
                yield words[fold(m["s"])], m
