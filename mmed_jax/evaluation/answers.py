"""From what a model wrote to option letters: ordered, anchored rules for seven languages. Pure text, no jax.

Order (the first stage that finds something decides):
  1. statements: "Answer: B", "the correct answer is (B)", "答案：B", "正解はB", "정답은 B", "La réponse est la B",
     "Respuesta: B", "Ответ: В", "###Answer: OPTION A,C IS CORRECT.", "B is the correct answer", \\boxed{B}, or the same
     with an option's text in place of its letter. The LAST one in the text wins, so a restated option list or an
     earlier guess never does; if the last one hedges ("A or B"), there is no answer.
  2. the reply is an option's text that itself speaks of options ("A and D"); it is nothing but letters; its first
     line is; it opens with "B. ..." (and is not a restated list)
  3. verdicts, "B is correct", all of them together
  4. the last line is nothing but letters
  5. the reply, or its first line, is exactly one option's text
Nothing found is None: scored as wrong and counted as unparsed. There is no "any letter will do" rule.

A letter counts only where something that may follow an answer follows it: the end, punctuation, "because", the
option's own text. "The answer is A patient...", "C. difficile", "B cell", "Réponse : C'est..." are not answers.
NFKC is applied here only, to a copy. Cyrillic А В С Е are read as Latin in Russian context only. Several answers
("A,C", "A et C", "A、C", "ACD") are sets, returned sorted and joined by commas.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from mmed_jax.evaluation import answer_rules as R

RULES_VERSION = 1  # goes into results; raise it when a rule changes

_NEGATED_BEFORE, _FOLLOWS, _CONNECTIVE, _RUN_ON, _NOISE = (
    re.compile(p, re.IGNORECASE) for p in (R.NEGATED_BEFORE, R.FOLLOWS, R.CONNECTIVE, R.RUN_ON, rf"\W*{R.NOISE}")
)


class Extraction(NamedTuple):
    """Letters found ("B", "A,C") or None, and the name of the rule that decided ("none", "ambiguous" for None)."""

    letters: str | None
    rule: str


def extract(text: str, options: Mapping[str, str] | Sequence[str] = "ABCDE", language: str | None = None) -> Extraction:
    """Finds the answer in `text` (see the module's head for the rules).

    Args:
      text: the model's reply, without the prompt.
      options: {"A": text, ...}, or only the letters; with texts, "E. coli" and "the answer is warfarin" can be read.
      language: of the question (schema.LANGUAGES); "ru" lets Cyrillic lookalikes stand for Latin letters anywhere.
    """
    texts = {k: _fold(v) for k, v in options.items()} if isinstance(options, Mapping) else {}
    reader = _Reader("".join(options), texts, language == "ru")
    text = _prepare(text)
    if not text:
        return Extraction(None, "none")
    return (
        reader.statements(text) or reader.opening(text) or reader.verdicts(text) or reader.last_line(text)
        or reader.option_text(text) or Extraction(None, "none")
    )  # fmt: skip


def normalise(letters: str) -> str:
    """ "C, a" -> "A,C": the form in which answers are compared (sets, sorted)."""
    return ",".join(sorted({part.strip().upper() for part in letters.split(",") if part.strip()}))


def is_correct(extracted: str | None, answer_idx: str) -> bool:
    """Whether the extracted letters are exactly the answer's set of letters; None never is."""
    return extracted is not None and normalise(extracted) == normalise(answer_idx)


class _Reader:
    """The rules for one item's letters and option texts (casefolded; empty when unknown)."""

    def __init__(self, letters: str, texts: dict[str, str], russian: bool):
        self.letters, self.texts, self.russian = letters, texts, russian

    def statements(self, text: str) -> Extraction | None:
        """Stage 1: the last statement of the answer."""
        found: list[tuple[int, str | None, str]] = []  # (end position, letters, rule)
        for rule, anchor in _anchors():
            for m in anchor.finditer(text):
                hit = self._after_anchor(text, m.end(), self.russian or rule in R.RUSSIAN)
                if hit and not (rule == "conclusion" and not self._closes(text, hit)):
                    found.append((hit[0], hit[1], "ambiguous" if hit[1] is None else rule + hit[2]))
        found += [(m.end(), self._join(m["s"]), "is_answer") for m in self._suffixed(text, R.ANSWER_AFTER)]
        if not found:
            return None
        _, letters, rule = max(found, key=lambda f: f[0])
        return Extraction(letters, rule)

    def _closes(self, text: str, hit: tuple[int, str | None, str]) -> bool:
        """After "therefore" only letters that end the line, or their option's text, are a statement."""
        after, own = text[hit[0] :], self.texts.get(hit[1] or "", "")
        ends = re.match(r"\W*(?:$|\n)", after) or (own and _fold(after.lstrip(" .:)-")).startswith(own))
        return not hit[2] and bool(ends)

    def _after_anchor(self, text: str, pos: int, russian: bool) -> tuple[int, str | None, str] | None:
        """What stands at `pos`: (end, letters or None for a hedge, "" or ":text"); None if it is no answer."""
        by_text = self._option_at(text, pos)
        m = _letter_set(self.letters, russian).match(text, pos)
        if m and self._join(m["s"]):
            if _hedge(self.letters, russian).match(text, m.end()):
                return m.end(), None, ""
            if self._may_end(text, m) and not self._restated(text, m):
                return m.end(), self._join(m["s"]), ""
        if by_text:
            return pos + 1, by_text, ":text"
        return None

    def opening(self, text: str) -> Extraction | None:
        """Stage 2: the whole reply, its first line, or its opening is letters."""
        same = [k for k, v in self.texts.items() if v == _fold(text) and len(re.findall(r"\w", v)) > 1]
        if len(same) == 1:
            return Extraction(same[0], "option_text")
        if letters := self._bare(text):
            return Extraction(letters, "bare")
        first, _, rest = text.partition("\n")
        if (letters := self._bare(first)) and not self._bare(rest.strip().partition("\n")[0]):
            return Extraction(letters, "first_line")
        m = _letter_set(self.letters, self.russian).match(text, _NOISE.match(text).end())
        if m and self._join(m["s"]) and self._may_end(text, m) and not self._restated(text, m):
            after = text[m.end() :].lstrip()
            marked = after[:1] in tuple(".:)、-–—(,") or m["s"].strip()[-1:] in ")]】」"
            if marked and self._option_at(text, 0) is None:
                return Extraction(self._join(m["s"]), "leading")
        return None

    def verdicts(self, text: str) -> Extraction | None:
        """Stage 3: "B is correct"; several of them make a set, since options are judged one by one."""
        found = [self._join(m["s"]) for m in self._suffixed(text, R.VERDICT_AFTER)]
        return Extraction(normalise(",".join(found)), "verdict") if found else None

    def last_line(self, text: str) -> Extraction | None:
        """Stage 4: the last line is only letters, and not the torn end of a restated list."""
        lines = [line for line in text.split("\n") if line.strip()]
        letters = self._bare(lines[-1]) if len(lines) > 1 else None
        if not letters or re.match(rf"\W*[{self.letters}]\W", lines[-2].strip() + " ", re.IGNORECASE):
            return None
        return Extraction(letters, "last_line")

    def option_text(self, text: str) -> Extraction | None:
        """Stage 5: the reply or its first line is one option's text; "yes, ..." for yes/no options."""
        for part in (text, text.partition("\n")[0]):
            same = [k for k, v in self.texts.items() if v == _fold(part)]
            if len(same) == 1:
                return Extraction(same[0], "option_text")
        word = _fold(re.split(r"[.,;:!\s。、，]", text, maxsplit=1)[0])
        same = [k for k, v in self.texts.items() if v == word and v in R.YES_NO]
        return Extraction(same[0], "yes_no") if len(same) == 1 else None

    def _bare(self, line: str) -> str | None:
        ends = r"(?:\s*(?:번|项|选项|です|입니다|이다))?\W*$"
        s = _letter_set(self.letters, self.russian).match(line, _NOISE.match(line).end())
        return self._join(s["s"]) if s and re.match(ends, line[s.end() :]) else None

    def _suffixed(self, text: str, suffix: str) -> Iterator[re.Match]:
        for m in _suffix_pattern(self.letters, self.russian, suffix).finditer(text):
            if self._join(m["s"]) and not _NEGATED_BEFORE.search(text[max(0, m.start() - 30) : m.start()]):
                yield m

    def _join(self, span: str) -> str:
        """Letters of a matched span, sorted; "" when it is no set of letters ("CAD", "be", an option's acronym)."""
        found: list[str] = []
        for part in re.split(R.SEPARATOR, span, flags=re.IGNORECASE):
            run = "".join(R.LOOKALIKES.get(c, c) for c in re.sub(r"\W", "", part))
            if len(run) > 1:
                acronym = any(re.search(rf"\b{run.lower()}\b", t) for t in self.texts.values())
                if not run.isupper() or list(run) != sorted(set(run)) or acronym:
                    return ""
            found += run.upper()
        return ",".join(sorted(set(found)))

    def _may_end(self, text: str, m: re.Match) -> bool:
        """Whether the letters of `m` may be an answer, by what follows them (the option's text always may)."""
        after = text[m.end() :]
        letters = self._join(m["s"])
        own = self.texts.get(letters, "")
        following = _fold(re.sub(r"^[\s.:)、-]+", "", after))
        if (own and following.startswith(own)) or m["s"].rstrip()[-1:] in tuple(")]】」"):
            return True
        if re.match(r"\. ?[^\W\d_]\.", after):  # initials: "A. C., 45 years old"
            return False
        if re.match(r"\.\s?[^\W\d_]", after) and after[1:].lstrip()[:1].islower():
            return bool(_CONNECTIVE.match(after))  # otherwise "C. difficile"
        return _FOLLOWS.match(after) is not None

    def _restated(self, text: str, m: re.Match) -> bool:
        """Whether `m` is the head of a restated option list: "A. ... B. ..." with B on this line or the next."""
        letters, after = self._join(m["s"]), text[m.end() :]
        marked = re.match(r"\s*[.:、)]", after) or m["s"].rstrip()[-1:] in ")]"
        if letters != self.letters[0] or not marked:
            return False
        own = self.texts.get(letters, "")
        rest = _fold(re.sub(r"^[\s.:)、-]+", "", after))
        if own and rest.startswith(own) and not re.match(r"\W*\w", rest[len(own) :]):
            return False  # "A. <text of A>" and nothing more
        window = "\n".join(after.lstrip("\n").split("\n")[:2])
        second = self.letters[1]
        return re.search(rf"(?:^|[\s(\[]){second}\s*[.:、)\]](?!(?<=\.)[A-Za-z])\s*\S", window) is not None

    def _option_at(self, text: str, pos: int) -> str | None:
        """The letter of the one option whose whole text stands at `pos` (longest wins); None otherwise."""
        here = _fold(re.sub(rf"^[\s{R.OPEN}]+", "", text[pos : pos + 400]))
        texts = {k: v for k, v in self.texts.items() if len(v) > 1}
        fits = [k for k, v in texts.items() if re.match(re.escape(v) + r"(?![\w-])", here)]
        if not fits:
            return None
        longest = max(len(self.texts[k]) for k in fits)
        fits = [k for k in fits if len(self.texts[k]) == longest]
        return fits[0] if len(fits) == 1 else None


@lru_cache(maxsize=1)
def _anchors() -> tuple[tuple[str, re.Pattern], ...]:
    return tuple((rule, re.compile(pattern + R.NOISE, re.IGNORECASE)) for rule, pattern in R.ANCHORS)


_WORD = "A-Za-zÀ-ÿА-яЁё0-9"  # what must not touch a letter; Chinese and Japanese characters may


def _capitals(letters: str, russian: bool) -> str:
    """The letters in capitals with their Cyrillic lookalikes, for a character class that minds case."""
    return letters + "".join(c for c, latin in R.LOOKALIKES.items() if russian and latin in letters)


def _one(letters: str, russian: bool) -> str:
    """Pattern of one letter, or several capitals written together, as a word of its own."""
    run = rf"(?:(?-i:[{_capitals(letters, russian)}]){{1,{len(letters)}}}|[{letters.lower()}])"
    return rf"(?<![{_WORD}]){run}(?![{_WORD}]|['’][A-Za-zÀ-ÿА-я]|-[^\W\d]|\+)"


@lru_cache(maxsize=64)
def _hedge(letters: str, russian: bool) -> re.Pattern:
    return re.compile(R.HEDGE + _one(letters, russian), re.IGNORECASE)


@lru_cache(maxsize=64)
def _letter_set(letters: str, russian: bool) -> re.Pattern:
    one = rf"[{R.OPEN}]*+{_one(letters, russian)}(?:\s?[{R.CLOSE}])*+"
    return re.compile(rf"(?P<s>{one}(?:{R.SEPARATOR}{one}){{0,25}}+)", re.IGNORECASE)


@lru_cache(maxsize=128)
def _suffix_pattern(letters: str, russian: bool, suffix: str) -> re.Pattern:
    # Capitals only, but "bが正解" as Japanese examinations write it.
    one = rf"(?:(?-i:[{_capitals(letters, russian)}])|[{letters.lower()}](?=\s*(?:が|は)(?:正|答)))"
    one = rf"[{R.OPEN}]*(?<![{_WORD}'’-]){one}(?![{_WORD}])[{R.CLOSE}]*"
    return re.compile(rf"(?P<s>{one}(?:{R.SEPARATOR}{one}){{0,25}}+)(?:{suffix})", re.IGNORECASE)


def _prepare(text: str) -> str:
    """NFKC copy without mark-up and control tokens, cut where the model begins to invent the next question."""
    text = unicodedata.normalize("NFKC", text)
    if cut := _RUN_ON.search(text):
        text = text[: cut.start()]
    text = re.sub(r"<\|[a-z_]+\|>|</s>|</?(?:b|i|u|p|em|br|strong)\s*/?>", " ", text)
    text = re.sub(r"</?answer>", lambda m: "\n" if m[0][1] == "/" else "\nanswer: ", text)
    text = re.sub(r"\\boxed\s*\{\s*(?:\\\w+\s*\{\s*)?([^{}]*)\}+", r" ⟦boxed⟧ \1 ", text)
    return re.sub(r"[*`$#]|__", "", text).strip()


def _fold(text: str) -> str:
    """Casefolded NFKC, whitespace squeezed, outer quotes and end punctuation removed: for comparing option texts."""
    text = re.sub(r"[*`$#]|__", "", unicodedata.normalize("NFKC", text).casefold())
    text = " ".join(text.split())
    return text.strip(" .。,;:!\"'“”「」«»")
