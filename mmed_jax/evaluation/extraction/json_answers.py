"""Answers in fields of JSON, or of what was meant to be JSON: {"answer_choice": "B"}, {'答案': ['A', 'C']}.

Models write objects that no parser takes (a second brace, text around them, a quote too few, single quotes, an end cut
off), so fields are looked for one by one, by the names that stand for an answer.
"""

import re
from typing import NamedTuple

_S = r"[\s_-]?"
_FINAL_EN = (
    r"(?:the|my|your|final|correct|right|best|chosen|selected|predicted|model|most|likely|overall|mcq|llm|"
    r"gpt|ai|assistant|pred|output|generated)"
)
# Names of a field that holds the answer; the weak ones are read only where none of the others stands.
_STRONG = (
    rf"(?:{_FINAL_EN}{_S}){{0,3}}(?:answers?|ans|choice)"
    rf"(?:{_S}(?:choices?|letters?|options?|idx|index|ids?|key|label|value|code)){{0,2}}|"
    rf"(?:{_FINAL_EN}{_S}){{1,3}}(?:options?|letters?|choices?|responses?|alternative|selection|prediction|decision)|"
    r"selected|selection|"
    rf"(?:(?:la|ma){_S})?(?:bonnes?{_S})?r[ée]ponses?(?:{_S}(?:finale|correcte|exacte|choisie|juste|attendue)s?)?|"
    rf"(?:bon{_S})?choix(?:{_S}(?:final|correct))?|(?:option|proposition)s?{_S}(?:correcte|choisie|exacte)s?|"
    rf"(?:(?:la|mi){_S})?respuestas?(?:{_S}(?:final|correcta|elegida|seleccionada)(?:e?s)?)?|"
    rf"(?:opci[óo]n(?:es)?|alternativa){_S}(?:correcta|elegida|seleccionada|final)s?|elecci[óo]n(?:{_S}(?:final|correcta))?|"
    rf"(?:(?:правильн|верн|окончательн|итогов|финальн|выбранн)\w{{1,4}}{_S})?ответы?|"
    rf"(?:правильн|верн|выбранн)\w{{1,4}}{_S}(?:вариант|выбор|опция)(?:{_S}ответа)?|вариант{_S}ответа|выбор|"
    r"(?:最终|正确|最佳|参考|标准|您的|你的|我的|所选)?的?(?:答案|选择|回答)(?:选项|字母|编号)?|(?:最终|正确|最佳|所选)的?选项|"
    r"(?:最終)?(?:的な)?(?:回答|解答|答え|正解|正答|選択)(?:番号|記号)?|(?:正しい|最終|選んだ|選択した)選択肢|"
    r"(?:최종|올바른|정확한|맞는)?\s?(?:정답|답변|답안|답|선택)(?:\s?번호)?|(?:최종|올바른|선택한)\s?선택지"
)
_WEAK = (
    r"option|letter|response|result|output|prediction|label|conclusion|decision|final|solution|"
    r"lettre|option|proposition|conclusion|letra|opci[óo]n|alternativa|soluci[óo]n|буква|вариант|решение|"
    r"选项|结论|選択肢|結論|선택지|결론"
)
_FIELD = re.compile(
    rf"(?:(?P<open>[\"'“])|(?<!\w)|(?<=\\n))(?:(?P<key>{_STRONG})|(?P<weak>{_WEAK}))"
    r"(?P<close>[\"'”]?)\s{0,8}[:=]\s{0,200}",
    re.IGNORECASE,
)
_STRING = re.compile(
    r"\"(?P<double>(?:[^\"\\]|\\.){0,4000}+)(?P<end1>\"?)|"
    r"“(?P<smart>[^”]{0,4000}+)(?P<end2>”?)|"
    r"'(?P<single>(?:[^'\\]|\\.|'(?=[^\W_])){0,4000}+)(?P<end3>'?)",
    re.DOTALL,
)
_LIST = re.compile(r"\[(?P<items>[^\[\]{}]{0,2000}+)(?P<end>\]?)")
_ITEM = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|“([^”]*)”|([^,\"'“]+))\s*(?:,|$)")
_BARE = re.compile(r"[^\s,}\"'\[{][^,}\n\"'\[{]{0,200}+(?:,\s{0,3}[A-Z]\b(?!\"))*+")
_PROSE = re.compile(r"\}[^{]*?\w[^{]*?\w[^{]*\{")  # between two objects
_LONGER = re.compile(r"[\"'“][\w -]{1,38}$|(?:wrong|incorrect|false|other)\W{1,3}$", re.IGNORECASE)  # of a longer name
_NO_ANSWER = re.compile(r"\W*(?:null|none|nan|n/?a|true|false|unknown|[\d.,\s-]*)\W*", re.IGNORECASE)


class Field(NamedTuple):
    """A field that names an answer: where it begins and its value ends, its texts (several for a list; None where the
    value is no text: null, a number), and whether the value's end is there."""

    start: int
    end: int
    values: list[str] | None
    whole: bool


class Fields(NamedTuple):
    """The fields of a text, and the span of the object or objects they stand in."""

    fields: list[Field]
    start: int
    end: int


def answer_fields(text: str) -> Fields | None:
    """The fields of the prepared `text` that name its answer; None where there are none.

    Fields of an object that follows on a sentence written after the one before replace its: a correction.
    """
    found: list[tuple[bool, Field]] = []
    for m in _FIELD.finditer(text):
        name = m["key"] or m["weak"]
        # Without quotes only names that no sentence has: "answer_choice: B". Half a pair of quotes will do.
        if not m["close"] and "_" not in name:
            continue
        if not m["open"] and _LONGER.search(text[max(0, m.start() - 40) : m.start()]):
            continue
        field = _read(text, m)
        if field:
            found.append((bool(m["key"]), field))
    strong = [f for is_strong, f in found if is_strong]
    fields = strong or [f for _, f in found]
    if not fields:
        return None
    last = 0
    for i in range(1, len(fields)):
        between = text[fields[i - 1].end : fields[i].start]
        if _PROSE.search(between if len(between) < 600 else between[:300] + between[-300:]):
            last = i
    opened, close = text.find("{", 0, fields[0].start), text.rfind("}", fields[-1].end)
    if opened < 0 and close < 0:
        return Fields(fields[last:], fields[0].start, fields[-1].end)
    return Fields(fields[last:], max(opened, 0), close + 1 if close >= 0 else len(text))


def is_torn(text: str) -> bool:
    """Whether the text is an object whose end is missing."""
    opened = re.match(r"\s{0,200}(?:json\b)?\s{0,200}\{\s{0,200}[\"'“]", text)
    return bool(opened) and "}" not in text


def no_answer(value: str) -> bool:
    """Whether the value says that there is none, or is a number: options may be counted from 0 or from 1."""
    return _NO_ANSWER.fullmatch(value) is not None


def _read(text: str, key: re.Match) -> Field | None:
    """The field whose name is `key`; None for one that holds an object."""
    start, pos = key.start(), key.end()
    if text.startswith("{", pos):
        return None
    if m := _STRING.match(text, pos):
        value = next(v for v in (m["double"], m["smart"], m["single"]) if v is not None)
        value = re.sub(r"\\[nrt]", "\n", value).replace('\\"', '"').replace("\\'", "'").replace("\\\\", "\\")
        return Field(start, m.end(), [value], bool(m["end1"] or m["end2"] or m["end3"]))
    if m := _LIST.match(text, pos):
        items = ["".join(filter(None, i.groups())).strip() for i in _ITEM.finditer(m["items"])]
        return Field(start, m.end(), [i for i in items if i] or None, bool(m["end"]))
    if m := _BARE.match(text, pos):
        return Field(start, m.end(), None if no_answer(m[0]) else [m[0].strip()], True)
    return Field(start, pos, None, False)
