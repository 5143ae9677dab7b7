"""The stages in which an answer is looked for in a prepared text; their order is in extract.py."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from mmed_jax.evaluation.extraction import anchors, answer_sets, json_answers, negation, patterns, rules, truncation
from mmed_jax.evaluation.extraction.option_texts import OptionTexts
from mmed_jax.evaluation.extraction.prepare_text import fold as _fold

_NEGATED_BEFORE, _FOLLOWS, _CONNECTIVE, _NOISE, _WRONG, _WEAK = (
    re.compile(p, re.IGNORECASE)
    for p in (
        rules.NEGATED_BEFORE,
        rules.FOLLOWS,
        rules.CONNECTIVE,
        rf"\W{{0,40}}{rules.NOISE}",
        rules.WRONG_AFTER,
        anchors.WEAK,
    )
)

# The number of a question, or a guess.
_BEFORE_BARE = re.compile(
    r"\s{0,4}(?:(?:q(?:uestion)?\s?)?\d{1,3}\s?[.):]|probably|(?:most\s+)?likely|definitely|clearly|probablement|"
    r"uniquement|probablemente|вероятно)\s",
    re.IGNORECASE,
)
_FAR = 1500  # characters after a letter that are looked at


def normalise(letters: str) -> str:
    """ "C, a" -> "A,C": the form in which answers are compared (sets, sorted)."""
    return ",".join(sorted({part.strip().upper() for part in letters.split(",") if part.strip()}))


class Answer(NamedTuple):
    """An answer in the prepared text: its letters (None for a hedge), the rule, and where its statement begins (None
    where no one statement decides)."""

    letters: str | None
    rule: str
    start: int | None = 0


class _Statement(NamedTuple):
    """A statement: its place among statements, letters (None for a hedge), rule, span, whether it yields to others."""

    place: int
    letters: str | None
    rule: str
    start: int
    end: int
    weak: bool = False
    field: bool = False  # of JSON


class _Hit(NamedTuple):
    """What follows an anchor: its place among statements, letters (None for a hedge), "" or ":text", where it ends."""

    place: int
    letters: str | None
    suffix: str
    end: int


class AnswerReader:
    """The rules for one item's letters and option texts (casefolded; empty when unknown)."""

    def __init__(self, letters: str, texts: dict[str, str], russian: bool):
        self.letters, self.texts, self.russian, self.options = letters, texts, russian, OptionTexts(texts)
        self._verdict = patterns.letter_suffix(letters, russian, rules.VERDICT_AFTER)
        self._joined: dict[str, str] = {}  # spans of letters that were read before

    def statements(self, text: str, cut: bool = False, thinking: bool = False) -> Answer | None:
        """Stage 1: the last statement of the answer; of a cut text only one that opens or closes it."""
        statements = self._statements_after_anchors(text)
        for m in self._letters_before(text, rules.ANSWER_AFTER):
            statements.append(self._statement_before(text, m))
        for m in self._letters_before(text, rules.BEST_AFTER):
            if not negation.goes_on(text, m.end()):
                statements.append(self._statement_before(text, m))
        if not statements:  # weaker than a letter: "aspirin is the best choice in other patients"
            spans = self.options.before(text, f"{rules.ANSWER_AFTER}|{rules.BEST_AFTER}")
            statements = [_Statement(m.end(), k, "is_answer:text", m.start(), m.end()) for k, m in spans]
        statements = self._with_fields(text, statements, cut)
        strong = [f for f in statements if not f.weak]
        if not strong and len({f.letters for f in statements}) != 1:  # nothing, or notes on one option after the other
            return None
        statement = max(strong or statements, key=lambda f: (f.place, f.letters is None))
        if cut and not self._stands(text, statement, strong or statements, thinking):
            return Answer(None, "cut", None)
        return Answer(statement.letters, statement.rule, statement.start)

    def _statements_after_anchors(self, text: str) -> list[_Statement]:
        """Statements that begin with an anchor."""
        statements = []
        for rule, anchor in anchors.anchor_patterns():
            for m in anchor.finditer(text):
                hit = self._after_anchor(text, m, self.russian or rule in anchors.RUSSIAN)
                if not hit or "\n" in m[0] and negation.is_verdict(text, m.start()):
                    continue
                if rule == "conclusion" and not self._closes(text, hit):
                    continue
                if not negation.is_withheld(text, m.start(), hit.end, rule.startswith("choose")):
                    name = "ambiguous" if hit.letters is None else rule + hit.suffix
                    weak = self._weak(text, m, rule, hit)
                    statements.append(_Statement(hit.place, hit.letters, name, m.start(), hit.end, weak))
        return statements

    def _statement_before(self, text: str, m: re.Match) -> _Statement:
        """The statement whose letters stand before its words."""
        return _Statement(
            m.end(), self._join(m["s"]), "is_answer", m.start(), m.end(), negation.is_conditional(text, m.start())
        )

    def _with_fields(self, text: str, statements: list[_Statement], cut: bool) -> list[_Statement]:
        """`found` with the answer fields of JSON, which go before what is said in the same object."""
        fields = json_answers.answer_fields(text)
        if fields is None:
            return statements
        read = [(f, self._field(f, cut)) for f in fields.fields]
        readings = {r.letters for _, r in read if r.rule != "none"}
        # Two names for one answer, "answer" and "answer_text", of which one can be read, are one.
        letters = next(iter(readings)) if len(readings) == 1 else None
        rule = "json" if letters else "ambiguous" if readings else "none"
        at, end = read[-1][0].start, read[-1][0].end
        # An anchor that reads the same there has named the rule before.
        named = [f.rule for f in statements if f.letters == letters and at - 2 <= f.start < end and letters]
        rule = named[-1] if named else rule
        outside = [
            f
            for f in statements
            if f.start < fields.start or f.start >= fields.end and not negation.is_hypothetical(text, f.start, f.end)
        ]
        return [*outside, _Statement(at, letters, rule, at, end, field=True)]

    def _field(self, field: json_answers.Field, cut: bool) -> Answer:
        """What a field says: Answer(None, "none") where it can't be read."""
        none = Answer(None, "none")
        if field.values is None:
            return none
        if len(field.values) > 1:
            if not field.whole:
                return none
            each = [self._value(v) for v in field.values]
            if all(f.letters for f in each):
                letters = normalise(",".join(f.letters for f in each))
                return none if letters.count(",") + 1 == len(self.letters) > 2 else Answer(letters, "json")
            return Answer(None, "ambiguous") if any(f.letters for f in each) else none
        value = field.values[0]
        if not field.whole and not re.match(rf"\W{{0,3}}[{self.letters}]\s?[.:)]", value):
            return none  # the beginning of a word
        return self._value(value)

    def _value(self, value: str) -> Answer:
        """An answer that is the value of a field, or one of a list."""
        value, none = value.strip(), Answer(None, "none")
        if not value or json_answers.no_answer(value):
            return none
        same = [k for k, v in self.texts.items() if v == _fold(value)]
        if len(same) == 1:
            return Answer(same[0], "json")
        m = patterns.letter_set(self.letters, self.russian).match(value, _NOISE.match(value).end())
        if m and self._join(m["s"]):
            if m["s"].strip().isupper() or self._bare(value):
                if self._or_another(value, m.end(), None):
                    return Answer(None, "ambiguous")
                if further := self._further(value, m, self.russian, False):
                    return Answer(further.letters, "json" if further.letters else "ambiguous")
            marked = re.match(r"\s{0,2}(?:[.:)、(-]|$)", value[m.end() :]) or m["s"].strip()[-1:] in ")]"
            own = self.options.at(value, m.end())
            marked = marked or own and own[0] == self._join(m["s"])
            if re.search(rf"(?<![^\W_])(?!{m['s'].strip()[:1]})[{self.letters}]\s?[.:)]", value[m.end() :]):
                return Answer(None, "ambiguous")  # every option is spoken of
            if self._bare(value) or marked and not self._genus(value, m):
                return Answer(self._join(m["s"]), "json")
        stages = (self.statements, self.opening, self.verdicts, self.option_text)
        return next((answer for stage in stages if (answer := stage(value))), none)

    def _genus(self, value: str, m: re.Match) -> bool:
        """Whether the letter is that of a species, "E. coli", and not an option's."""
        if not re.match(r"\. ?[a-z]", value[m.end() :]):
            return False
        own, rest = self.options.at(value, m.end()), _fold(value[m.start() :])
        if own and own[0] == self._join(m["s"]):
            return False
        if own or any(v.startswith(rest) or rest.startswith(v) for v in self.texts.values() if len(v) > 1):
            return True
        return re.match(rules.SPECIES, value[m.end() :]) is not None

    def _stands(self, text: str, statement: _Statement, statements: list[_Statement], thinking: bool) -> bool:
        """Whether `said` counts though the text is cut."""
        if statement.field:
            return True
        if thinking and len({f.letters for f in statements}) > 1:  # it has changed its mind, and may again
            return False
        if truncation.closes(text, statement.end, thinking):
            return not truncation.follows_foreign_list(text, statement.start, self.texts)
        return (
            not thinking
            and {f.letters for f in statements} == {statement.letters}
            and any(truncation.opens(text, f.start) for f in statements)
        )

    def _weak(self, text: str, anchor: re.Match, rule: str, hit: _Hit) -> bool:
        """Whether a statement yields to any other: "Answer A: not in pregnancy", "Select C for males", "if ...: C"."""
        note = re.match(r"[ \t]*[:–—-][ \t]*([^\n]+)", text[hit.place : hit.place + _FAR])
        labels = rule == "mark:en" and not re.search(r"[:=→–—-]", anchor[0]) and note
        if labels and _fold(note[1]) != self.texts.get(hit.letters or ""):
            return True
        words = text[max(0, anchor.start() - 1) : anchor.end()]
        return bool(_WEAK.match(f"{rule} {words}")) or negation.is_conditional(text, anchor.start())

    def _closes(self, text: str, hit: _Hit) -> bool:
        """After "therefore" only letters that end the line, or their option's text, are a statement."""
        after, own = text[hit.place : hit.place + _FAR], self.texts.get(hit.letters or "", "")
        ends = re.match(r"(?:입니다|이다|です|である|だ)?\W*(?:$|\n)", after)
        return not hit.suffix and bool(ends or own and _fold(after.lstrip(" .:)(-")).startswith(own))

    def _after_anchor(self, text: str, anchor: re.Match, russian: bool) -> _Hit | None:
        """What stands after it; None if it is no answer."""
        pos = anchor.end()
        # "La réponse est la rougeole": the article may be the option's own.
        by_text = self.options.at(text, pos) or self.options.at(text, anchor.start("noise"))
        m = patterns.letter_set(self.letters, russian).match(text, pos)
        # An option that speaks of options, "AとCの両方", goes before the letters in it.
        if m and self._join(m["s"]) and not (by_text and by_text[1] >= m.end()):
            own = self.options.at(text, m.end())
            own_end = own[1] if own and own[0] == self._join(m["s"]) else None
            if end := self._or_another(text, m.end(), own_end):
                return _Hit(end, None, "", end)
            if further := self._further(text, m, russian, "\n" in anchor[0]):
                return _Hit(further.end, further.letters, "", further.end)
            every = self._join(m["s"]).count(",") + 1 == len(self.letters)  # "Answer choices: A, B, C, D, E"
            listed = self._is_restated_list(text, m) or every and re.search(r"choice|option", anchor[0], re.IGNORECASE)
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
        if m := patterns.hedge(self.letters, self.russian).match(text, end):
            return m.end()
        m = patterns.hedge(self.letters, self.russian).match(text, own_end) if own_end else None
        return m.end() if m and m[0][-1].isupper() else None  # "or a calcium blocker"

    def _further(self, text: str, m: re.Match, russian: bool, listed: bool) -> answer_sets.AnswerSet | None:
        """Further letters, with their texts, after those of `m`."""
        return answer_sets.further_letters(
            text, m.end(), self._join(m["s"]), self.letters, self.options, russian, listed
        )

    def opening_of_cut(self, text: str) -> Answer | None:
        """Stage 2 for a cut text: its first line, or all of it, is the answer; a list of options may have begun so."""
        first, newline, _ = text.partition("\n")
        m = patterns.letter_set(self.letters, self.russian).match(first, _NOISE.match(first).end())
        begun = m and not self._bare(first) and self._join(m["s"]) == self.letters[0] and not newline
        return None if begun else self.opening(text) or self.option_text(first)

    def opening(self, text: str) -> Answer | None:
        """Stage 2: the whole reply, its first line, or its opening is letters."""
        same = [k for k, v in self.texts.items() if v == _fold(text) and len(re.findall(r"\w", v)) > 1]
        if len(same) == 1:
            return Answer(same[0], "option_text")
        before = _BEFORE_BARE.match(text)
        if letters := self._bare(text[before.end() :] if before else text) or self._apart(text):
            return Answer(letters, "bare")
        first, _, rest = text.partition("\n")
        if (letters := self._bare(first)) and not self._bare(rest.strip().partition("\n")[0]):
            return Answer(letters, "first_line")
        m = patterns.letter_set(self.letters, self.russian).match(text, _NOISE.match(text).end())
        own = m and self.options.at(text, 0)
        # "A, B, C, D: none is right", "A: true. B: false"
        listed = m and (negation.of_none(text, m.start("s"), m.end("s")) or self._verdict.match(text, m.start("s")))
        if listed or m and self._join(m["s"]).count(",") + 1 == len(self.letters) > 2:
            return None
        if m and self._join(m["s"]) and not (own and own[1] > m.end()):
            if further := self._further(text, m, self.russian, False):
                return Answer(further.letters, "leading" if further.letters else "ambiguous")
        if m and self._join(m["s"]) and self._may_end(text, m) and not self._is_restated_list(text, m):
            after = text[m.end() :].lstrip()
            marked = after[:1] in tuple(".:)、-–—(,") or m["s"].strip()[-1:] in ")]】」"
            marked = marked or self._said_of(text, m)
            marked = marked and not negation.is_aside(text)
            if marked and self.options.at(text, 0) is None and not _WRONG.match(text, m.end()):
                return Answer(self._join(m["s"]), "leading")
        return None

    def _said_of(self, text: str, m: re.Match) -> bool:
        """Whether the letter that opens the text is followed by its option's text alone, or by "because"."""
        after = text[m.end() :].partition("\n")[0]
        own = self.texts.get(self._join(m["s"]), "")
        because = m["s"].strip().isupper() and re.match(rules.REASON, after, re.IGNORECASE)
        return bool(own and _fold(after) == own or because)

    def verdicts(self, text: str) -> Answer | None:
        """Stage 3: "B is correct"; several of them make a set, since options are judged one by one."""
        right = [
            self._join(m["s"])
            for m in self._letters_before(text, rules.VERDICT_AFTER)
            if not negation.goes_on(text, m.end())
        ]
        if not right:
            return None
        true = set(",".join(right).split(","))
        false = {k for m in self._letters_before(text, rules.FALSE_AFTER) for k in self._join(m["s"]).split(",")} - true
        if len(false) == 1 and len(true) > 1:  # asked which is not true, the answer is the one; nobody can tell
            return Answer(None, "ambiguous")
        return Answer(normalise(",".join(true)), "verdict", None)

    def last_line(self, text: str) -> Answer | None:
        """Stage 4: the last line is only letters (not the torn end of a restated list), or yes or no."""
        lines = [m for m in re.finditer(r"[^\n]+", text) if m[0].strip()]
        if len(lines) < 2:
            return None
        last, before = lines[-1][0].strip(), lines[-2][0].strip()
        same = [k for k, v in self.texts.items() if v == _fold(last) and v in rules.YES_NO]
        if len(same) == 1:
            return Answer(same[0], "last_line", lines[-1].start())
        letters = self._bare(last)
        if not letters or re.match(rf"\W*[{self.letters}]\W", before + " ", re.IGNORECASE):
            return None
        return Answer(letters, "last_line", lines[-1].start())

    def closing(self, text: str) -> Answer | None:
        """Stage 6: the last sentence concludes with an option's text and its letter, "... is aspirin (A)"."""
        conclusion = self.options.conclusion(text)
        return Answer(conclusion[0], "closing", conclusion[1]) if conclusion else None

    def option_text(self, text: str) -> Answer | None:
        """Stage 5: the reply or its first line is one option's text; "yes, ..." for yes/no options."""
        for part in (text, text.partition("\n")[0]):
            same = [k for k, v in self.texts.items() if v == _fold(part)]
            if letter := same[0] if len(same) == 1 else self.options.whole(part):
                return Answer(letter, "option_text")
        m = re.match(r"\W*(\w+)(\W?)", text)
        word, mark = (_fold(m[1]), m[2]) if m else ("", "")
        # "No difference was seen" answers nothing.
        said = word in rules.YES_NO and (mark in ("", *".,;:!—–-。、\n)") or word in rules.YES)
        same = [k for k, v in self.texts.items() if said and v == word and not self.options.another(text, m.end(1), k)]
        return Answer(same[0], "yes_no") if len(same) == 1 else None

    def _bare(self, line: str) -> str | None:
        ends = r"\s*번?(?:项|选项|です|だ?と思います|と考えられます|である|입니다|이다|(?:이)?라고 생각합니다)?\W*$"
        s = patterns.letter_set(self.letters, self.russian).match(line, _NOISE.match(line).end())
        return self._join(s["s"]) if s and re.match(ends, line[s.end() :]) else None

    def _apart(self, text: str) -> str | None:
        """A reply of nothing but letters with white space between, in order and not all of them: "B E"."""
        words = [w.strip(" .,;-•()") for w in text.split()] if len(text) < 200 else []
        found = [rules.LOOKALIKES.get(k, k) if self.russian else k for k in words if k]
        ordered = 1 < len(found) < len(self.letters) and all(a < b for a, b in pairwise(found))
        return ",".join(found) if ordered and all(len(k) == 1 and k in self.letters for k in found) else None

    def _letters_before(self, text: str, suffix: str) -> Iterator[re.Match]:
        for m in patterns.letter_suffix(self.letters, self.russian, suffix).finditer(text):
            negated = _NEGATED_BEFORE.search(text[max(0, m.start() - 30) : m.start()])
            if not self._join(m["s"]) or negated or negation.of_none(text, m.start("s"), m.end("s")):
                continue
            if negation.shares_its_verb(text, m.start("s"), m.end("s"), "," not in self._join(m["s"])):
                continue
            name = negation.is_label(text, m.start()) and not self.options.is_named_by(text, self._join(m["s"]), m)
            if not (name or negation.is_withheld(text, m.start(), m.end())):
                yield m

    def _join(self, span: str) -> str:
        """Letters of a matched span, sorted; "" when it is no set of letters ("CAD", "be", an option's acronym)."""
        if span not in self._joined:
            self._joined[span] = self._letters_of(span)
        return self._joined[span]

    def _letters_of(self, span: str) -> str:
        """As `_join`, read anew."""
        found: list[str] = []
        for part in re.split(rf"{rules.SEPARATOR}|\s[-–]\s", span, flags=re.IGNORECASE):
            run = "".join(rules.LOOKALIKES.get(c, c) for c in re.sub(r"\W", "", part))
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
        after = text[m.end() : m.end() + _FAR]
        letters = self._join(m["s"])
        own = self.texts.get(letters, "")
        following = _fold(re.sub(r"^[\s.:)、-]+", "", after))
        if (own and following.startswith(own)) or m["s"].rstrip()[-1:] in tuple(")]】」"):
            return True
        if re.match(r"\. ?[^\W\d_]\.", after):  # initials: "A. C., 45 years old"
            return False
        if re.match(r"\.\s?[^\W\d_]", after) and after[1:].lstrip()[:1].islower():
            word = re.match(r"\.\s?(\w{4,})", after)  # "B. labetalol" of "labetalol tablets"; but "C. difficile"
            return bool(_CONNECTIVE.match(after) or word and m["s"].isupper() and word[1] in own.split())
        return _FOLLOWS.match(after) is not None

    def _is_restated_list(self, text: str, m: re.Match) -> bool:
        """Whether `m` is the head of a restated option list: "A. ... B. ..." with B on this line or the next."""
        letters, after = self._join(m["s"]), text[m.end() : m.end() + _FAR]
        marked = re.match(r"\s*[.:、)]", after) or m["s"].rstrip()[-1:] in ")]"
        if letters != self.letters[0] or not marked:
            return False
        own = self.texts.get(letters, "")
        rest = _fold(re.sub(r"^[\s.:)、-]+", "", after))
        if own and rest.startswith(own) and not re.match(r"\W*\w", rest[len(own) :]):
            return False  # "A. <text of A>" and nothing more
        window = "\n".join(after.lstrip("\n").split("\n")[:2])
        second = f"[{patterns.capitals(self.letters[1], True)}]"
        if own and rest.startswith(own) and (other := self.texts.get(self.letters[1], "")):
            return re.search(rf"(?<!\w){second.casefold()}\W{{1,4}}{re.escape(other)}", _fold(window)) is not None
        return re.search(rf"(?:^|[\s(\[。;,、.]){second}\s*[.:、)\]](?!(?<=\.)[A-Za-z])\s*\S", window) is not None
