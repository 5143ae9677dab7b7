"""From what a model wrote to option letters: ordered, anchored rules for seven languages. Pure text, no jax.

Order (the first stage that finds something decides):
  1. statements: "Answer: B", "the correct answer is (B)", "答案：B", "正解はB", "정답은 B", "La réponse correcte est la B",
     "Respuesta: B", "Ответ: В", "###Answer: OPTION A,C IS CORRECT.", "B is the correct answer", \\boxed{B}, or the same
     with an option's text in place of its letter. The LAST one in the text wins, so a restated option list or an
     earlier guess never does; if the last one hedges ("A or B"), there is no answer.
  2. the reply is nothing but letters; its first line is; it opens with "B. ..." (and is not a restated list)
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

RULES_VERSION = 1

_LOOKALIKES = {"А": "A", "В": "B", "С": "C", "Е": "E"}  # Cyrillic capitals -> Latin
_OPEN, _CLOSE = r"(\[{【「『〈《<\"'“‘«|", r")\]}】」』〉》>\"'”’»|"

# Words that may stand between an anchor and the letter.
_NOISE = (
    r"(?:[\s:]|(?:the|option|options|choice|letter|answer|la|le|les|el|los|las|lettre|réponse|réponses|proposition|"
    r"propositions|item|items|opción|opciones|letra|respuesta|alternativa|вариант|варианты|вариантом|вариантами|ответ|"
    r"буква|под буквой|пункт|опция)\b|l['’]|选项|答案|選択肢|선택지|보기|옵션)*+"
)
# Anchors: what comes right before the letters (or the option's text) of a statement. Case is ignored.
_ANCHORS: tuple[tuple[str, str], ...] = (
    ("boxed", r"⟦boxed⟧\s*"),
    # "Answer: B"; a bare "Options:" or "Choices:" opens a restated list and is no anchor.
    ("mark:en", r"\b(?:answers?|ans|(?:correct|final|best|right|chosen|selected|my)\s+(?:option|choice|response))"
                r"(?:\s+(?:letter|choice|option|index))?\s*(?:[:=→]|\s[-–—]+\s)"),
    ("mark:en", r"(?:^|\n)\W*(?:final\s+|correct\s+)?answer\s+(?=\S)"),
    ("sentence:en", r"\b(?:answers?|(?:correct|best|right|appropriate|suitable|likely|final|only)\s+"
                    r"(?:option|choice|response|statement|one)s?)(?:\s+(?:to|for|in)\s+(?:this|the)\s+(?:question|case))?"
                    r"\s+(?:is|are|would\s+be|should\s+be|must\s+be|will\s+be)\s*:?\s*(?:therefore|thus|clearly|most\s+"
                    r"likely|probably|likely|definitely|indeed)?,?(?:\s*not\s+[A-Z],?\s+but)?"),
    ("choose:en", r"\b(?:i|we)(?:\s+would|\s+will|['’]d|['’]ll)?\s+(?:choose|pick|select|chose|go\s+(?:with|for))\s"),
    ("mark:fr", r"\br[ée]ponses?(?:\s+(?:correctes?|exactes?|justes?|finales?|vraies?|attendues?))?\s*(?:[:=→]|[-–—])"),
    ("sentence:fr", r"\b(?:r[ée]ponses?(?:\s+(?:correctes?|exactes?|justes?|finales?|appropriées?|attendues?))?|(?:option|"
                    r"proposition|item|affirmation)s?\s+(?:correcte?|exacte?|vraie?|juste)s?|bons?\s+choix)"
                    r"\s+(?:est|sont|serait|seraient)(?:\s+donc)?\s"),
    ("choose:fr", r"\bje\s+(?:choisis|retiens|réponds|sélectionne)\s"),
    ("mark:es", r"\brespuestas?(?:\s+(?:correctas?|finale?s?|adecuadas?))?\s*(?:[:=→]|[-–—])"),
    ("sentence:es", r"\b(?:respuestas?(?:\s+(?:correctas?|final|(?:más\s+)?adecuada|acertada|verdadera))?|(?:opci[óo]n|"
                    r"alternativa|afirmaci[óo]n)(?:es|s)?\s+(?:correcta|(?:más\s+)?adecuada|verdadera|acertada)s?)"
                    r"\s+(?:es|son|sería|serían)(?:,?\s+por\s+(?:lo\s+)?tanto,?)?\s"),
    ("choose:es", r"\b(?:elijo|escojo|selecciono|elegiría)\s"),
    ("mark:ru", r"\bответы?\s*(?:[:=→]|[-–—])"),
    ("mark:ru", r"(?:^|\n)\W*(?:правильный\s+|верный\s+)?ответ\s+(?=\S)"),
    ("sentence:ru", r"\b(?:(?:правильн|верн)\w+\s+(?:(?:вариант|утвержден|ответ)\w*)(?:\s+ответа)?|ответом?)"
                    r"\s*(?:является|являются|будет|это|[:–—-])(?:\s+(?:это|является))?"),
    ("choose:ru", r"\bя\s+(?:выбираю|бы\s+выбрала?|выберу)\s"),
    ("mark:zh", r"答案\s*[】\]]?\s*(?:应该|应当|应|就|即|只能)?\s*(?:是|为|选择|选)?\s*[:=→]?(?:不是\s*[A-Z]\s*[,、]?\s*而是)?"),
    ("sentence:zh", r"(?:正确|最佳|合适|可能|恰当|适合|适当|准确)的?(?:选项|选择|说法|一项|诊断选项)\s*(?:应该|应)?(?:是|为|:)"),
    ("choose:zh", r"(?<![不未可首备待若如误])(?:选择|选)\s*:?"),
    ("mark:ja", r"(?:正解|正答|答え|解答|回答|(?<![解回])答)\s*[】\]]?\s*(?:の選択肢)?(?:として)?(?:は|が|:|=|→)?"
                r"(?:\s*[A-Z]\s*ではなく[,、]?)?"),
    ("sentence:ja", r"(?:正しい|適切な|適当な|該当する|可能性が高い|考えられる|誤っている)(?:選択肢|もの|答え|記述|組み合わせ|"
                    r"診断|解答|の)\s*(?:は|:)"),
    ("mark:ko", r"(?:정답|해답|답안?|올바른\s*(?:선택지|보기|것|선택)|맞는\s*(?:것|보기)|선택\s*(?=:))\s*[】\]]?\s*(?:은|는|이|:|=|→)?"
                r"\s*:?(?:\s*[A-Z]\s*(?:가|이)\s*아니라)?"),
    ("conclusion", r"(?:\b(?:therefore|thus|hence|donc|ainsi|(?:por\s+)?(?:lo\s+)?tanto|следовательно|поэтому)|因此|所以|"
                   r"したがって|よって|따라서|그러므로)\s*[:,、]?"),
)  # fmt: skip
_RUSSIAN = ("mark:ru", "sentence:ru", "choose:ru")
_SEPARATOR = (
    r"\s*+(?:[,、;&+]\s*+(?:(?:and|et|y|и)\b)?|(?:and|et|y|и)\b|和|与|及|と|および|및|과|와)\s*+"  # possessive: linear
)
# Suffixes: what comes right after the letters. Of the answer: a statement. Of correctness: a verdict (stage 3).
_BE_EN = r"\s+(?:is|are|would\s+be)\s+(?:therefore\s+|thus\s+|clearly\s+|indeed\s+|also\s+)?"
_ANSWER_AFTER = (
    rf"{_BE_EN}(?:the\s+|our\s+|my\s+)?(?:most\s+)?(?:correct|best|right|final|appropriate|likely|only)\s+(?:correct\s+)?"
    rf"(?:answer|option|choice|response)|{_BE_EN}(?:the|our|my)\s+answer|\s+(?:est|sont)\s+(?:donc\s+)?(?:la|les)\s+"
    r"(?:bonnes?\s+)?réponses?|\s+(?:es|son)\s+(?:por\s+tanto\s+)?las?\s+respuestas?|\s*(?:—|-|является|являются)\s*"
    r"(?:правильн|верн)\w+\s+(?:ответ|вариант)|\s*(?:选项)?(?:是|为)(?:正确|最佳|最终)的?(?:答案|选项|选择)|"
    r"\s*(?:が|は)(?:正解|正答|答え)|\s*を(?:選択|選ぶ|選び|選ん)|\s*번?(?:가|이)\s*(?:정답|답)(?!이?\s*아)"
)
_VERDICT_AFTER = (
    rf"{_BE_EN}(?:correct|right|true)\b|\s+(?:est|sont)\s+(?:donc\s+)?(?:correct|exact|vrai|just)e?s?\b|"
    r"\s+(?:es|son)\s+(?:correct|verdader|ciert|adecuad)[oa]s?\b|\s*(?:—|-|является)?\s*(?:верн|правильн)(?:ый|о|ая|ы|ым)\b|"
    r"\s*(?:选项|项)?(?:是)?正确(?!的?是|吗)|\s*(?:が|は)(?:正しい|適切(?!で(?:は)?な))|\s*번?(?:가|이)\s*(?:맞|옳|올바르|적절)"
)
_NEGATED_BEFORE = re.compile(
    r"(?:\b(?:nor|neither|not|no|n't|whether|if|ni|si|sauf|excepto|ни|не|если|type|group|class|grade|stage|factor|"
    r"vitamin|vitamine|vitamina|hepatitis|hépatite|groupe|tipo|grupo|гепатит\w*|витамин\w*|групп\w+|тип\w*|influenza|"
    r"statement)\s+(?:the\s+)?(?:option\s+)?|[不非型肝])$", re.IGNORECASE,
)  # fmt: skip
_HEDGE = r"\s*(?:\bor\b|\bou\b|\bo\b|\bu\b|\bили\b|\bлибо\b|或者?|または|もしくは|か|또는|혹은|나|이나|/)\s*(?:[{o}]*|option\s+)"
# What may follow an answer letter besides the option's own text.
_FOLLOWS = re.compile(
    r"\s*(?:$|\n|[.。,、;:!?…(\[【「『〈《|⟦]|\s[-–—→]\s|[–—→])|"
    r"\s+(?:because|since|as|due|given|which|based|for|is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best)|are\s+correct|car|"
    r"parce|puisque|est\s+(?:la|correcte?|exacte?)|sont\s+(?:les|correct|exact|vrai)\w*|porque|ya\s+que|pues|dado|debido|es\s+(?:la|correct"
    r"[ao])|son\s+(?:las|correct[ao]s)|так\s+как|потому|поскольку|является|верн\w+)\b|"
    r"\s*(?:因为|由于|选项|项|是正确|正确|です|でし|である|であり|だ|となる|と考え|と思|と判断|になる|が正|を選|が適|입니다|이다|이며|이고|이라|"
    r"임|번|로|예요|이에요|가\s*정답|이\s*정답|라고|야)", re.IGNORECASE,
)  # fmt: skip
_CONNECTIVE = re.compile(r"[.,]\s*(?:because|since|as|due|the|this|it|car|parce|puisque|porque|ya que|так как|потому)\b")
_RUN_ON = re.compile(
    r"(?<=\S)\s*(?:#{2,}\s*(?:question|instruction|input)\b|\n\s*(?:question|instruction|问题|質問|問題|문제|질문|pregunta|вопрос"
    r")\s*\d*\s*[:：]|<\|(?:start_header_id|begin_of_text)\|>)", re.IGNORECASE,
)  # fmt: skip
_YES_NO = frozenset("yes no maybe да нет oui non sí si là 是 否 はい いいえ 예 네 아니오 아니요".split())


class Extraction(NamedTuple):
    """Letters found ("B", "A,C") or None, and the name of the rule that decided ("none", "ambiguous" for None)."""

    letters: str | None
    rule: str


def extract(
    text: str, options: Mapping[str, str] | Sequence[str] = "ABCDE", language: str | None = None
) -> Extraction:
    """Finds the answer in `text` (see the module's head for the rules).

    Args:
      text: the model's reply, without the prompt.
      options: {"A": text, ...}, or only the letters; with texts, "E. coli" and "the answer is warfarin" can be read.
      language: of the question, one of schema.LANGUAGES; "ru" lets Cyrillic lookalikes stand for Latin letters anywhere.
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
                hit = self._after_anchor(text, m.end(), self.russian or rule in _RUSSIAN)
                if hit and not (rule == "conclusion" and hit[2]):
                    found.append((hit[0], hit[1], "ambiguous" if hit[1] is None else rule + hit[2]))
        found += [(m.end(), self._join(m["s"]), "is_answer") for m in self._suffixed(text, _ANSWER_AFTER)]
        if not found:
            return None
        _, letters, rule = max(found, key=lambda f: f[0])
        return Extraction(letters, rule)

    def _after_anchor(self, text: str, pos: int, russian: bool) -> tuple[int, str | None, str] | None:
        """What stands at `pos`: (end, letters or None for a hedge, "" or ":text"); None if it is no answer."""
        by_text = self._option_at(text, pos)
        m = _letter_set(self.letters, russian).match(text, pos)
        if m and self._join(m["s"]):
            if re.compile(_HEDGE.format(o=_OPEN) + _one(self.letters, russian), re.IGNORECASE).match(text, m.end()):
                return m.end(), None, ""
            if self._may_end(text, m) and not self._restated(text, m):
                return m.end(), self._join(m["s"]), ""
        if by_text:
            return pos + 1, by_text, ":text"
        return None

    def opening(self, text: str) -> Extraction | None:
        """Stage 2: the whole reply, its first line, or its opening is letters."""
        if letters := self._bare(text):
            return Extraction(letters, "bare")
        first, _, rest = text.partition("\n")
        if (letters := self._bare(first)) and not self._bare(rest.strip().partition("\n")[0]):
            return Extraction(letters, "first_line")
        m = _letter_set(self.letters, self.russian).match(text, re.match(rf"\W*{_NOISE}", text, re.IGNORECASE).end())
        if m and self._join(m["s"]) and self._may_end(text, m) and not self._restated(text, m):
            after = text[m.end() :].lstrip()
            if self._option_at(text, 0) is None and (after[:1] in tuple(".:)、-–—(,") or m["s"].strip()[-1:] in ")]】」"):
                return Extraction(self._join(m["s"]), "leading")
        return None

    def verdicts(self, text: str) -> Extraction | None:
        """Stage 3: "B is correct"; several of them make a set, since options are judged one by one."""
        found = [self._join(m["s"]) for m in self._suffixed(text, _VERDICT_AFTER)]
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
        same = [k for k, v in self.texts.items() if v == word and v in _YES_NO]
        return Extraction(same[0], "yes_no") if len(same) == 1 else None

    def _bare(self, line: str) -> str | None:
        ends = r"(?:\s*(?:번|项|选项|です|입니다|이다))?\W*$"
        m = re.match(rf"\W*{_NOISE}", line, re.IGNORECASE)
        s = _letter_set(self.letters, self.russian).match(line, m.end())
        return self._join(s["s"]) if s and re.match(ends, line[s.end() :]) else None

    def _suffixed(self, text: str, suffix: str) -> Iterator[re.Match]:
        for m in _suffix_pattern(self.letters, self.russian, suffix).finditer(text):
            if self._join(m["s"]) and not _NEGATED_BEFORE.search(text[max(0, m.start() - 30) : m.start()]):
                yield m

    def _join(self, span: str) -> str:
        """Letters of a matched span, sorted; "" when it is no set of letters ("CAD", "be", an option's acronym)."""
        found: list[str] = []
        for part in re.split(_SEPARATOR, span, flags=re.IGNORECASE):
            run = "".join(_LOOKALIKES.get(c, c) for c in re.sub(r"\W", "", part))
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
        if re.match(r"\.\s?[^\W\d_]", after) and after[1:].lstrip()[:1].islower():
            return bool(_CONNECTIVE.match(after))  # otherwise "C. difficile"
        return _FOLLOWS.match(after) is not None

    def _restated(self, text: str, m: re.Match) -> bool:
        """Whether `m` is the head of a restated option list: "A. ... B. ..." with B on this line or the next."""
        letters, after = self._join(m["s"]), text[m.end() :]
        marked = re.match(r"\s*[.:、)]", after) or m["s"].rstrip()[-1:] in ")]"
        if letters != self.letters[0] or not marked:
            return False
        window = "\n".join(after.lstrip("\n").split("\n")[:2])
        second = self.letters[1]
        return re.search(rf"(?:^|[\s(\[]){second}\s*[.:、)\]]\s*\S", window) is not None

    def _option_at(self, text: str, pos: int) -> str | None:
        """The letter of the one option whose whole text stands at `pos` (longest wins); None otherwise."""
        here = _fold(re.sub(rf"^[\s{_OPEN}]+", "", text[pos : pos + 400]))
        fits = [k for k, v in self.texts.items() if v and re.match(re.escape(v) + r"(?![\w-])", here)]
        if not fits:
            return None
        longest = max(len(self.texts[k]) for k in fits)
        fits = [k for k in fits if len(self.texts[k]) == longest]
        return fits[0] if len(fits) == 1 else None


@lru_cache(maxsize=1)
def _anchors() -> tuple[tuple[str, re.Pattern], ...]:
    return tuple((rule, re.compile(pattern + _NOISE, re.IGNORECASE)) for rule, pattern in _ANCHORS)


def _one(letters: str, russian: bool) -> str:
    """Pattern of one letter, or several written together, as a word of its own."""
    cyrillic = "".join(c for c, latin in _LOOKALIKES.items() if latin in letters) if russian else ""
    run = rf"(?:(?-i:[{letters}{cyrillic}]){{1,{len(letters)}}}|[{letters.lower()}])"
    return rf"(?<![A-Za-zÀ-ÿА-яЁё0-9]){run}(?![A-Za-zÀ-ÿА-яЁё0-9]|['’][^\W\d]|-[^\W\d]|\+)"


@lru_cache(maxsize=64)
def _letter_set(letters: str, russian: bool) -> re.Pattern:
    one = rf"[{_OPEN}]*+{_one(letters, russian)}(?:\s?[{_CLOSE}])*+"
    return re.compile(rf"(?P<s>{one}(?:{_SEPARATOR}{one}){{0,25}}+)", re.IGNORECASE)


@lru_cache(maxsize=128)
def _suffix_pattern(letters: str, russian: bool, suffix: str) -> re.Pattern:
    cyrillic = "".join(c for c, latin in _LOOKALIKES.items() if latin in letters) if russian else ""
    lower = rf"|[{letters.lower()}](?=\s*(?:が|は)(?:正|答))"
    one = rf"[{_OPEN}]*(?<![A-Za-zÀ-ÿА-яЁё0-9'’-])(?:(?-i:[{letters}{cyrillic}]){lower})(?![A-Za-zÀ-ÿА-яЁё0-9])[{_CLOSE}]*"
    return re.compile(rf"(?P<s>{one}(?:{_SEPARATOR}{one}){{0,25}}+)(?:{suffix})", re.IGNORECASE)


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
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .。,;:!\"'“”「」«»")
