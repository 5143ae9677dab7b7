"""From what a model wrote to option letters: ordered, anchored rules for seven languages. Pure text, no jax.

Order (the first stage that finds something decides):
  1. statements: "Answer: B", "the correct answer is (B)", "答案：B", "正解はB", "정답은 B", "La réponse est la B",
     "Respuesta: B", "Ответ: В", "###Answer: OPTION A,C IS CORRECT.", "B is the correct answer", \\boxed{B}, or the same
     with an option's text in place of its letter. The LAST one in the text wins, so a restated option list or an
     earlier guess never does; if the last one hedges ("A or B", "yes or no"), there is no answer.
  2. the reply is an option's text that itself speaks of options ("A and D"); it is nothing but letters; its first
     line is; it opens with "B. ..." (and is not a restated list)
  3. verdicts, "B is correct", all of them together
  4. the last line is nothing but letters, or "yes", "no", "да", ... where those are the options
  5. the reply, or its first line, is exactly one option's text
Nothing found is None: scored as wrong and counted as unparsed. There is no "any letter will do" rule.

A letter counts only where something that may follow an answer follows it: the end, punctuation, "because", the
option's own text. "The answer is A patient...", "C. difficile", "B cell", "Réponse : C'est..." are not answers.
NFKC is applied here only, to a copy. Cyrillic А В С Е are read as Latin in Russian context only. Several answers
("A,C", "A et C", "A、C", "ACD") are sets, returned sorted and joined by commas.

split_rationale gives what was written before the statement that decided.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mmed_jax.evaluation import answer_patterns as P
from mmed_jax.evaluation import answer_rules as R
from mmed_jax.evaluation.answer_text import fold as _fold
from mmed_jax.evaluation.answer_text import prepare

RULES_VERSION = 2  # goes into results; raise it when a rule changes

_NEGATED_BEFORE, _FOLLOWS, _CONNECTIVE, _NOISE, _WRONG, _COPULA, _HEDGE, _LEAD_IN, _MARK = (
    re.compile(p, re.IGNORECASE)
    for p in (
        R.NEGATED_BEFORE, R.FOLLOWS, R.CONNECTIVE, rf"\W*{R.NOISE}", R.WRONG_AFTER, R.COPULA, R.HEDGE, R.LEAD_IN,
        R.RATIONALE_MARK,
    )
)  # fmt: skip


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
    found = _decide(prepare(text).text, options, language)
    return Extraction(found.letters, found.rule) if found else Extraction(None, "none")


def split_rationale(
    text: str, options: Mapping[str, str] | Sequence[str] = "ABCDE", language: str | None = None
) -> str:
    """What was written before the statement that decides the answer, as it was written: the generated rationale.

    "Therefore, the" and the like go with the statement; the mark "###Rationale:" of the mmedbench family is left out.
    Where no statement decides (nothing found, or verdicts on one option after the other), it is the whole text up to an
    invented next question; where the answer comes first, it is "".

    Args: as of `extract`.
    """
    copy = prepare(text, aligned=True)
    found = _decide(copy.text, options, language)
    end = copy.end
    if found and found.start is not None:
        line = max(0, copy.text.rfind("\n", 0, found.start) + 1, found.start - 80)
        at = line + _LEAD_IN.search(copy.text[line : found.start]).start()
        end = copy.offsets[at] if at < len(copy.offsets) else end
    text = re.sub(r"<\|[a-z_]+\|>|</s>", "", text[:end])
    mark = _MARK.match(text)
    return text[mark.end() if mark else 0 :].strip().rstrip("*#_` \n")


def normalise(letters: str) -> str:
    """ "C, a" -> "A,C": the form in which answers are compared (sets, sorted)."""
    return ",".join(sorted({part.strip().upper() for part in letters.split(",") if part.strip()}))


def is_correct(extracted: str | None, answer_idx: str) -> bool:
    """Whether the extracted letters are exactly the answer's set of letters; None never is."""
    return extracted is not None and normalise(extracted) == normalise(answer_idx)


class _Found(NamedTuple):
    """An answer in the prepared text: its letters (None for a hedge), the rule, and where its statement begins (None
    where no one statement decides)."""

    letters: str | None
    rule: str
    start: int | None = 0


def _decide(text: str, options: Mapping[str, str] | Sequence[str], language: str | None) -> _Found | None:
    """The first stage that finds something in the prepared text."""
    texts = {k: _fold(v) for k, v in options.items()} if isinstance(options, Mapping) else {}
    reader = _Reader("".join(options), texts, language == "ru")
    if not text:
        return None
    return (
        reader.statements(text) or reader.opening(text) or reader.verdicts(text) or reader.last_line(text)
        or reader.option_text(text)
    )  # fmt: skip


class _Reader:
    """The rules for one item's letters and option texts (casefolded; empty when unknown)."""

    def __init__(self, letters: str, texts: dict[str, str], russian: bool):
        self.letters, self.texts, self.russian = letters, texts, russian

    def statements(self, text: str) -> _Found | None:
        """Stage 1: the last statement of the answer."""
        found: list[tuple[int, str | None, str, int]] = []  # (end position, letters, rule, start)
        for rule, anchor in P.anchors():
            for m in anchor.finditer(text):
                hit = self._after_anchor(text, m, self.russian or rule in R.RUSSIAN)
                if hit and not (rule == "conclusion" and not self._closes(text, hit)):
                    found.append((hit[0], hit[1], "ambiguous" if hit[1] is None else rule + hit[2], m.start()))
        found += [(m.end(), self._join(m["s"]), "is_answer", m.start()) for m in self._suffixed(text, R.ANSWER_AFTER)]
        if not found:  # weaker than a letter: "aspirin is the best choice in other patients"
            spans = self._texts_suffixed(text, R.ANSWER_AFTER)
            found = [(m.end(), k, "is_answer:text", m.start()) for k, m in spans]
        if not found:
            return None
        _, letters, rule, start = max(found, key=lambda f: f[0])
        return _Found(letters, rule, start)

    def _closes(self, text: str, hit: tuple[int, str | None, str]) -> bool:
        """After "therefore" only letters that end the line, or their option's text, are a statement."""
        after, own = text[hit[0] :], self.texts.get(hit[1] or "", "")
        ends = re.match(r"\W*(?:$|\n)", after) or (own and _fold(after.lstrip(" .:)-")).startswith(own))
        return not hit[2] and bool(ends)

    def _after_anchor(self, text: str, anchor: re.Match, russian: bool) -> tuple[int, str | None, str] | None:
        """What stands after it: (end, letters or None for a hedge, "" or ":text"); None if it is no answer."""
        pos = anchor.end()
        # "La réponse est la rougeole": the article may be the option's own.
        by_text = self._option_at(text, pos) or self._option_at(text, anchor.start("noise"))
        m = P.letter_set(self.letters, russian).match(text, pos)
        # An option that speaks of options, "AとCの両方", goes before the letters in it.
        if m and self._join(m["s"]) and not (by_text and by_text[1] >= m.end()):
            if P.hedge(self.letters, russian).match(text, m.end()):
                return m.end(), None, ""
            if self._may_end(text, m) and not self._restated(text, m):
                return m.end(), self._join(m["s"]), ""
        if by_text:
            letter, end = by_text
            other = _HEDGE.match(text, end)
            if other and (hedged := self._option_at(text, other.end())) and hedged[0] != letter:
                return end, None, ""
            return pos + 1, letter, ":text"
        return None

    def opening(self, text: str) -> _Found | None:
        """Stage 2: the whole reply, its first line, or its opening is letters."""
        same = [k for k, v in self.texts.items() if v == _fold(text) and len(re.findall(r"\w", v)) > 1]
        if len(same) == 1:
            return _Found(same[0], "option_text")
        if letters := self._bare(text):
            return _Found(letters, "bare")
        first, _, rest = text.partition("\n")
        if (letters := self._bare(first)) and not self._bare(rest.strip().partition("\n")[0]):
            return _Found(letters, "first_line")
        m = P.letter_set(self.letters, self.russian).match(text, _NOISE.match(text).end())
        if m and self._join(m["s"]) and self._may_end(text, m) and not self._restated(text, m):
            after = text[m.end() :].lstrip()
            marked = after[:1] in tuple(".:)、-–—(,") or m["s"].strip()[-1:] in ")]】」"
            if marked and self._option_at(text, 0) is None and not _WRONG.match(text, m.end()):
                return _Found(self._join(m["s"]), "leading")
        return None

    def verdicts(self, text: str) -> _Found | None:
        """Stage 3: "B is correct"; several of them make a set, since options are judged one by one."""
        found = [self._join(m["s"]) for m in self._suffixed(text, R.VERDICT_AFTER)]
        return _Found(normalise(",".join(found)), "verdict", None) if found else None

    def last_line(self, text: str) -> _Found | None:
        """Stage 4: the last line is only letters (not the torn end of a restated list), or yes or no."""
        lines = [m for m in re.finditer(r"[^\n]+", text) if m[0].strip()]
        if len(lines) < 2:
            return None
        last, before = lines[-1][0].strip(), lines[-2][0].strip()
        said = [k for k, v in self.texts.items() if v == _fold(last) and v in R.YES_NO]
        if len(said) == 1:
            return _Found(said[0], "last_line", lines[-1].start())
        letters = self._bare(last)
        if not letters or re.match(rf"\W*[{self.letters}]\W", before + " ", re.IGNORECASE):
            return None
        return _Found(letters, "last_line", lines[-1].start())

    def option_text(self, text: str) -> _Found | None:
        """Stage 5: the reply or its first line is one option's text; "yes, ..." for yes/no options."""
        for part in (text, text.partition("\n")[0]):
            same = [k for k, v in self.texts.items() if v == _fold(part)]
            if len(same) == 1:
                return _Found(same[0], "option_text")
        m = re.match(r"\W*(\w+)(\W?)", text)
        word, mark = (_fold(m[1]), m[2]) if m else ("", "")
        # "No difference was seen" answers nothing.
        said = word in R.YES_NO and (mark in ("", *".,;:!—–-。、\n)") or word in R.YES)
        same = [k for k, v in self.texts.items() if said and v == word]
        return _Found(same[0], "yes_no") if len(same) == 1 else None

    def _bare(self, line: str) -> str | None:
        ends = r"(?:\s*(?:번|项|选项|です|입니다|이다))?\W*$"
        s = P.letter_set(self.letters, self.russian).match(line, _NOISE.match(line).end())
        return self._join(s["s"]) if s and re.match(ends, line[s.end() :]) else None

    def _suffixed(self, text: str, suffix: str) -> Iterator[re.Match]:
        for m in P.letter_suffix(self.letters, self.russian, suffix).finditer(text):
            if self._join(m["s"]) and not _NEGATED_BEFORE.search(text[max(0, m.start() - 30) : m.start()]):
                yield m

    def _texts_suffixed(self, text: str, suffix: str) -> Iterator[tuple[str, re.Match]]:
        """(letter, match) of option texts with `suffix` right after them, "warfarin is the correct answer"."""
        words = {v: k for k, v in self.texts.items() if len(v) > 1 and v not in R.YES_NO}
        if not words or len(words) < sum(len(v) > 1 and v not in R.YES_NO for v in self.texts.values()):
            return
        for m in P.text_suffix(tuple(sorted(words, key=len, reverse=True)), suffix).finditer(text):
            if not _NEGATED_BEFORE.search(text[max(0, m.start() - 30) : m.start()]):
                yield words[_fold(m["s"])], m

    def _join(self, span: str) -> str:
        """Letters of a matched span, sorted; "" when it is no set of letters ("CAD", "be", an option's acronym)."""
        found: list[str] = []
        for part in re.split(rf"{R.SEPARATOR}|\s[-–]\s", span, flags=re.IGNORECASE):
            run = "".join(R.LOOKALIKES.get(c, c) for c in re.sub(r"\W", "", part))
            if len(run) > 1:
                acronym = any(re.search(rf"\b{run.lower()}\b", t) for t in self.texts.values())
                if not run.isupper() or list(run) != sorted(set(run)) or acronym:
                    return ""
            found += run.upper()
        if len(set(found)) < len(found):  # "of A, B, C and D, B is the best"
            found = found[-1:]
        return ",".join(sorted(found))

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
        second = f"[{P.capitals(self.letters[1], True)}]"
        return re.search(rf"(?:^|[\s(\[。;,、.]){second}\s*[.:、)\]](?!(?<=\.)[A-Za-z])\s*\S", window) is not None

    def _option_at(self, text: str, pos: int) -> tuple[str, int] | None:
        """(letter, end) of the one option whose whole text stands at `pos` (longest wins); None otherwise."""
        fits: list[tuple[int, int, str]] = []  # (length, end, letter)
        for k, v in self.texts.items():
            m = P.text_pattern(v).match(text, pos) if len(v) > 1 else None
            if m and (not re.match(r"[\w-]", text[m.end() :]) or _COPULA.match(text, m.end())):
                fits.append((len(v), m.end(), k))
        fits = [f for f in fits if f[0] == max(fits)[0]]
        return (fits[0][2], fits[0][1]) if len(fits) == 1 else None
