"""Finding the texts of a question's options in what a model wrote."""

import re
from collections.abc import Iterator

from mmed_jax.evaluation.extraction import negation, patterns, rules
from mmed_jax.evaluation.extraction.prepare_text import fold

_COPULA, _HEDGE, _AND, _NEGATED_BEFORE, _FOLLOWS = (
    re.compile(p, re.IGNORECASE)
    for p in (rules.COPULA, rules.HEDGE, rules.SEPARATOR, rules.NEGATED_BEFORE, rules.FOLLOWS)
)
_JOINED_BEFORE = re.compile(
    r"(?:[\w)]\s{0,2}[,;、]|\b(?:and|or|et|ou|y|o|и|или)|[和与及或と]|および|または|및|과|와|또는)\s{1,3}(?:\w{1,3}\s)?"
    r"(?:[(\[]?[A-ZАВСЕ][.:)\]、]\s{0,2})?$|[和与及或と、](?:[A-Z][.:)、]?\s{0,2})?$",
    re.IGNORECASE,
)
# An opening phrase and its comma: "Out of the options given, B. aspirin is the best".
_OPENED = re.compile(
    r"^\W*(?:(?:out\s+)?of|among|given|based|from|in|for|considering|therefore|thus|hence|so|with|since|because|as)\b"
    r"[^,;]*,\s{1,3}(?:[(\[]?[A-Z][.:)\]]\s{0,2})?$",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\W*(?:the|an?|la|le|les|el|los|las|une?)\s+|\W*l['’]\s?", re.IGNORECASE)
# After an option's text that is the whole reply: a copula, an abbreviation, or its letter.
_ENDS = re.compile(
    r"\s?(?:です|である|だ|입니다|이다|이에요|예요)?\W{0,6}|\s?\([A-Z][\w-]{1,7}\)\W{0,6}", re.IGNORECASE
)
_NAMED = rf"[\s,:;(\[–—-]{{1,4}}{rules.NOISE}\W{{0,2}}(?P<l>[A-J])\W{{0,4}}$"
_NAMED_AFTER, _NAMED_LAST = re.compile(_NAMED, re.IGNORECASE), re.compile(_NAMED.replace("[A-J]", "(?-i:[A-J])"), re.I)
# What a last sentence says that gives the answer and no other.
_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|consistent|likely|choice|diagnosis|first[- ]line|recommended|appropriate|indicated|"
    r"best|preferred|suggests?|points?\s+to|donc|probable|choix|traitement|diagnostic|s['’]agit|tratamiento|diagnóstico|"
    r"elección|indicad[oa]|adecuad[oa]|trata|препарат\w*|диагноз\w*|следовательно|поэтому|лечени\w+)\b|"
    r"因此|所以|首选|诊断|最|したがって|診断|最も|따라서|가장|진단",
    re.IGNORECASE,
)
_CONTRAST = re.compile(
    r"\b(?:not?|n['’]t|unlike|than|instead|rather|except|without|rules?|excludes?|less|never|consider|remember|but|although|if|unless|differential|"
    r"pas|sauf|non|moins|mais|si|exclu\w*|élimin\w*|différentiel|sin|menos|pero|descarta\w*|diferencial|не|без|кроме|если|исключ\w*)\b|"
    r"不|非|排除|但|如果|除|ない|除外|もし|않|아니|제외|만약",
    re.IGNORECASE,
)
_SO = re.compile(r",\s+(?:so|therefore|thus|hence|donc|por\s+lo\s+que|поэтому)\b", re.IGNORECASE)
# What that option's text follows on: "is aspirin", "with an infarction".
_LEADS = re.compile(
    r"(?:\b(?:is|be|with|to|suggests?|indicates?|use|give|start|receive|choose|select|recommend|prescribe|est|serait|"
    r"s['’]agit\s+de|es|sería|являет\w+|это)\b|[:—–-]|は|은|는|为|是|首选|选择|选用|使用|该用|risk\s+is)"
    r"\s{0,3}(?:\b(?:an?|the|la|le|les|el|los|une?|una)\s|l['’])?\s{0,3}$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[^\W_]{2})[.!?]\s|[。\n]|(?<=\))\.\s")
_OTHER_ENDS = re.compile(r"\s*(?:$|[^\w\s]|(?:and|or)\b)", re.IGNORECASE)


class OptionTexts:
    """The texts of one question's options by letter, folded; empty when only the letters are known."""

    def __init__(self, texts: dict[str, str]):
        self.texts = texts

    def at(self, text: str, pos: int) -> tuple[str, int] | None:
        """(letter, end) of the one option whose whole text stands at `pos` (longest wins); None otherwise."""
        fits: list[tuple[int, int, str]] = []  # (length, end, letter)
        for k, v in self.texts.items():
            m = patterns.text_pattern(v).match(text, pos) if len(v) > 1 or v.isdigit() else None
            # "10" is not in "10,000", nor "aspirin" in "aspirin-induced".
            if m and (not re.match(r"[\w-]|[.,]\d", text[m.end() :]) or _COPULA.match(text, m.end())):
                fits.append((len(v), m.end(), k))
        fits = [f for f in fits if f[0] == max(fits)[0]]
        return (fits[0][2], fits[0][1]) if len(fits) == 1 else None

    def whole(self, part: str) -> str | None:
        """The letter of the one option that `part` is: its text, with an article, a copula or its own letter."""
        article = _ARTICLE.match(part)
        option = self.at(part, 0) or (self.at(part, article.end()) if article else None)
        if not option:
            return None
        letter, end = option
        named = _NAMED_AFTER.fullmatch(part, end)
        if _ENDS.fullmatch(part, end) and not (named and named["l"].upper() != letter):
            return letter
        return letter if named and named["l"].upper() == letter else None

    def conclusion(self, text: str) -> tuple[str, int] | None:
        """(letter, start) of a last sentence that concludes with one option's text and its letter, "it is aspirin (A)",
        and speaks of no other."""
        ends = [m.end() for m in _SENTENCE_END.finditer(text, max(0, len(text) - 600), len(text) - 1)]
        start = ends[-1] if ends else 0
        last = text[start:]
        named = _NAMED_LAST.search(last[-60:]) if len(last) < 400 else None
        own = self.texts.get(named["l"], "") if named else ""
        words = fold(last[: len(last) - len(last[-60:]) + named.start()]) if own else ""
        if so := list(_SO.finditer(words)):
            words = words[so[-1].start() :]
        leads = words.endswith(own) and _LEADS.search(words[: len(words) - len(own)])
        if len(own) < 2 or not leads or _CONTRAST.search(words) or not _CONCLUDES.search(words):
            return None
        others = any(len(v) > 1 and v in words for k, v in self.texts.items() if k != named["l"] and v not in own)
        return None if others else (named["l"], start)

    def is_named_by(self, text: str, letter: str, m: re.Match) -> bool:
        """Whether the letter of `m` stands in brackets after its option's text: "aspirin (A) is ..."."""
        own = self.texts.get(letter, "")
        before = text[max(0, m.start() - 2 * len(own)) : m.start()]
        return len(own) > 1 and m["s"][:1] in "([" and fold(before).endswith(own)

    def may_end(self, text: str, end: int) -> bool:
        """Whether an option's text that ends at `end` may be an answer, by what follows ("heparin induced ...")."""
        return bool(_FOLLOWS.match(text, end)) or not negation.goes_on(text, end)

    def another(self, text: str, end: int, letter: str) -> bool:
        """Whether another option's text stands beside the one that ends at `end`: "or", "and", "yes/no", "A, B."."""
        if self.texts[letter] in rules.YES_NO:
            others = {v for k, v in self.texts.items() if k != letter}
            m = re.match(
                rf"({rules.HEDGE}|{rules.SEPARATOR}|\W*)\W*(\w+)(\s*(?:$|[^\w\s]))?", text[end : end + 60], re.I
            )
            joined = m is not None and (m[3] is not None or re.search(r"[\w/]", m[1]))
            return bool(joined) and fold(m[2]) in others
        for joint in (_HEDGE.match(text, end), _AND.match(text, end)):
            other = self.at(text, joint.end()) if joint else None
            if other and other[0] != letter:
                return "," not in joint[0] or _OTHER_ENDS.match(text, other[1]) is not None
        return False

    def before(self, text: str, suffix: str) -> Iterator[tuple[str, re.Match]]:
        """(letter, match) of option texts with `suffix` right after them, "warfarin is the correct answer"."""
        words = {v: k for k, v in self.texts.items() if len(v) > 1 and v not in rules.YES_NO}
        if not words or len(words) < sum(len(v) > 1 and v not in rules.YES_NO for v in self.texts.values()):
            return
        for m in patterns.text_suffix(tuple(sorted(words, key=len, reverse=True)), suffix).finditer(text):
            before = text[max(0, m.start() - 30) : m.start()]
            # "aspirin and warfarin are the right answers": more than one is meant.
            negated = _NEGATED_BEFORE.search(before) or self._is_joined(text, m.start())
            if not (negated or negation.is_withheld(text, m.start(), m.end()) or negation.goes_on(text, m.end())):
                yield words[fold(m["s"])], m

    def _is_joined(self, text: str, start: int) -> bool:
        """Whether the option's text at `start` is one of several: what is before it is "and" or a comma."""
        if not _JOINED_BEFORE.search(text[max(0, start - 30) : start]):
            return False
        sentence = re.split(r"[.!?。;\n](?!\s?$)", text[max(0, start - 200) : start])[-1]
        return not _OPENED.match(sentence) or any(len(v) > 1 and v in sentence.casefold() for v in self.texts.values())
