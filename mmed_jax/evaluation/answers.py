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
What is denied, conditional or of the wrong answers is no statement ("incorrect answer: C"; see answer_context).
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

from mmed_jax.evaluation import answer_context as C
from mmed_jax.evaluation import answer_patterns as P
from mmed_jax.evaluation import answer_rules as R
from mmed_jax.evaluation.answer_options import OptionTexts
from mmed_jax.evaluation.answer_text import fold as _fold
from mmed_jax.evaluation.answer_text import prepare

RULES_VERSION = 3  # goes into results; raise it when a rule changes

_NEGATED_BEFORE, _FOLLOWS, _CONNECTIVE, _NOISE, _WRONG, _LEAD_IN, _MARK, _WEAK = (
    re.compile(p, re.IGNORECASE)
    for p in (
        R.NEGATED_BEFORE, R.FOLLOWS, R.CONNECTIVE, rf"\W*{R.NOISE}", R.WRONG_AFTER, R.LEAD_IN,
        R.RATIONALE_MARK, R.WEAK,
    )
)  # fmt: skip

_SPECIAL = re.compile(r"<\|[a-z_]+\|>|</s>")


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
    invented next question; where the answer comes first, it is "". A text with the marks of the mmedbench family,
    "###Rationale:" or "###Answer: OPTION", is split as the scripts of MMedLM do, to the letter: metrics are theirs.

    Args: as of `extract`.
    """
    before, family, _ = text.partition("###Answer: OPTION ")
    if family:
        text = _SPECIAL.sub("", before).replace("###Rationale: ", "").strip()
        return _MARK.sub("", text, count=1).strip() if _MARK.match(text) else text
    copy = prepare(text, aligned=True)
    found = _decide(copy.text, options, language)
    end = copy.end
    opened = _MARK.match(text)
    if found and found.start is not None and (not opened or found.rule.startswith("mark")):
        line = max(0, copy.text.rfind("\n", 0, found.start) + 1, found.start - 80)
        at = line + _LEAD_IN.search(copy.text[line : found.start]).start()
        if _torn(copy.text, at, found):
            at = found.start
        end = copy.offsets[at] if at < len(copy.offsets) else end
    text = _SPECIAL.sub("", text[:end])
    return text[opened.end() :].strip() if opened else text.strip().rstrip("*#_` \n")


def _torn(text: str, lead: int, found: "_Found") -> bool:
    """Whether the statement is a mark of its own, "### Answer: B" or "Answer: B", behind a sentence that breaks off:
    the words from `lead` on are that sentence's."""
    own = text[: found.start].rstrip().endswith("#") or text[found.start : found.start + 1].isupper()
    return found.rule.startswith("mark") and own and text[:lead].rstrip()[-1:] not in ("", *".!?:;…。！？：")


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


class _Hit(NamedTuple):
    """What follows an anchor: its place among statements, letters (None for a hedge), "" or ":text", where it ends."""

    place: int
    letters: str | None
    how: str
    end: int


def _decide(text: str, options: Mapping[str, str] | Sequence[str], language: str | None) -> _Found | None:
    """The first stage that finds something in the prepared text."""
    texts = {k: _fold(v) for k, v in options.items()} if isinstance(options, Mapping) else {}
    reader = _Reader("".join(options), texts, language == "ru")
    stages = (reader.statements, reader.opening, reader.verdicts, reader.last_line, reader.option_text)
    return next((found for stage in stages if text and (found := stage(text))), None)


class _Reader:
    """The rules for one item's letters and option texts (casefolded; empty when unknown)."""

    def __init__(self, letters: str, texts: dict[str, str], russian: bool):
        self.letters, self.texts, self.russian, self.options = letters, texts, russian, OptionTexts(texts)

    def statements(self, text: str) -> _Found | None:
        """Stage 1: the last statement of the answer."""
        found: list[tuple[int, str | None, str, int, bool]] = []  # (place, letters, rule, start, weak)
        for rule, anchor in P.anchors():
            for m in anchor.finditer(text):
                hit = self._after_anchor(text, m, self.russian or rule in R.RUSSIAN)
                if not hit or rule == "conclusion" and not self._closes(text, hit):
                    continue
                if not C.withheld(text, m.start(), hit.end, rule.startswith("choose")):
                    name = "ambiguous" if hit.letters is None else rule + hit.how
                    found.append((hit.place, hit.letters, name, m.start(), self._weak(text, m, rule, hit)))
        for m in self._suffixed(text, R.ANSWER_AFTER):
            found.append((m.end(), self._join(m["s"]), "is_answer", m.start(), C.conditional(text, m.start())))
        if not found:  # weaker than a letter: "aspirin is the best choice in other patients"
            spans = self.options.before(text, R.ANSWER_AFTER)
            found = [(m.end(), k, "is_answer:text", m.start(), False) for k, m in spans]
        strong = [f for f in found if not f[4]]
        if not strong and len({f[1] for f in found}) != 1:  # nothing, or notes on one option after the other
            return None
        _, letters, rule, start, _ = max(strong or found, key=lambda f: (f[0], f[1] is None))
        return _Found(letters, rule, start)

    def _weak(self, text: str, anchor: re.Match, rule: str, hit: _Hit) -> bool:
        """Whether a statement yields to any other: "Answer A: not in pregnancy", "Select C for males", "if ...: C"."""
        note = re.match(r"[ \t]*[:–—-][ \t]*([^\n]+)", text[hit.place :])
        labels = rule == "mark:en" and not re.search(r"[:=→–—-]", anchor[0]) and note
        if labels and _fold(note[1]) != self.texts.get(hit.letters or ""):
            return True
        words = text[max(0, anchor.start() - 1) : anchor.end()]
        return bool(_WEAK.match(f"{rule} {words}")) or C.conditional(text, anchor.start())

    def _closes(self, text: str, hit: _Hit) -> bool:
        """After "therefore" only letters that end the line, or their option's text, are a statement."""
        after, own = text[hit.place :], self.texts.get(hit.letters or "", "")
        ends = re.match(r"\W*(?:$|\n)", after) or (own and _fold(after.lstrip(" .:)-")).startswith(own))
        return not hit.how and bool(ends)

    def _after_anchor(self, text: str, anchor: re.Match, russian: bool) -> _Hit | None:
        """What stands after it; None if it is no answer."""
        pos = anchor.end()
        # "La réponse est la rougeole": the article may be the option's own.
        by_text = self.options.at(text, pos) or self.options.at(text, anchor.start("noise"))
        m = P.letter_set(self.letters, russian).match(text, pos)
        # An option that speaks of options, "AとCの両方", goes before the letters in it.
        if m and self._join(m["s"]) and not (by_text and by_text[1] >= m.end()):
            own = self.options.at(text, m.end())
            own_end = own[1] if own and own[0] == self._join(m["s"]) else None
            if end := self._or_another(text, m.end(), own_end):
                return _Hit(end, None, "", end)
            every = len(re.findall(r"\w", m["s"])) == len(self.letters)  # "Answer choices: A, B, C, D, E"
            listed = self._restated(text, m) or every and re.search(r"choice|option", anchor[0], re.IGNORECASE)
            if self._may_end(text, m) and not listed:
                return _Hit(m.end(), self._join(m["s"]), "", own_end or m.end())
        if by_text:
            letter, end = by_text
            if self.options.another(text, end, letter):
                return _Hit(end, None, "", end)
            if self.options.may_end(text, end):
                return _Hit(pos + 1, letter, ":text", end)
        return None

    def _or_another(self, text: str, end: int, own_end: int | None) -> int | None:
        """Where "or C" ends that follows the letters, or the option's text that follows them; None if none does."""
        if m := P.hedge(self.letters, self.russian).match(text, end):
            return m.end()
        m = P.hedge(self.letters, self.russian).match(text, own_end) if own_end else None
        return m.end() if m and m[0][-1].isupper() else None  # "or a calcium blocker"

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
            if marked and self.options.at(text, 0) is None and not _WRONG.match(text, m.end()):
                return _Found(self._join(m["s"]), "leading")
        return None

    def verdicts(self, text: str) -> _Found | None:
        """Stage 3: "B is correct"; several of them make a set, since options are judged one by one."""
        found = [self._join(m["s"]) for m in self._suffixed(text, R.VERDICT_AFTER) if not C.goes_on(text, m.end())]
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
        same = [k for k, v in self.texts.items() if said and v == word and not self.options.another(text, m.end(1), k)]
        return _Found(same[0], "yes_no") if len(same) == 1 else None

    def _bare(self, line: str) -> str | None:
        ends = r"(?:\s*(?:번|项|选项|です|입니다|이다))?\W*$"
        s = P.letter_set(self.letters, self.russian).match(line, _NOISE.match(line).end())
        return self._join(s["s"]) if s and re.match(ends, line[s.end() :]) else None

    def _suffixed(self, text: str, suffix: str) -> Iterator[re.Match]:
        for m in P.letter_suffix(self.letters, self.russian, suffix).finditer(text):
            negated = _NEGATED_BEFORE.search(text[max(0, m.start() - 30) : m.start()])
            if self._join(m["s"]) and not (negated or C.label(text, m.start()) or C.withheld(text, m.start(), m.end())):
                yield m

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
