"""Numbers with units as they are written in seven languages, for telling whether a text keeps another's quantities."""

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from data_gen.gates.units import TIMES, mentions, same_unit, unit_after
from mmed_jax.data.languages.declarations import DECLARATIONS

# Full-width digits, points and signs as ASCII, Roman numerals of one character as letters. Superscripts stay: 10⁹ is
# not 109.
_ROMAN_SIGNS = dict(zip(range(0x2160, 0x216C), "I II III IV V VI VII VIII IX X XI XII".split()))
_PLAIN = str.maketrans(
    {
        **{0xFF10 + i: str(i) for i in range(10)},
        **_ROMAN_SIGNS,
        "．": ".",
        "，": ",",
        "％": "%",
        "〜": "~",
        "～": "~",
        "＜": "<",
        "＞": ">",
        "／": "/",
        "−": "-",
        "\u2009": "\u202f",
    }
)
_HARD, _SPACES = "\u00a0\u202f", " \u00a0\u202f"
_GROUPED = re.compile(rf"\d{{1,3}}(?:[.,{_SPACES}]\d{{3}})+(?!\d)(?:[.,]\d+)?")
_NUMBER = re.compile(rf"(?<!\d)(?:{_GROUPED.pattern}|\d+(?:[.,]\d+)?)|\.\d+")
# Words and characters that multiply the number before them.
_TIMES = (
    (r"千(?!克|卡)|천|thousand|mille\b|mil\b|тыс", 1000),
    (r"百万|백만|million(?:s|es)?\b|millón|millones|млн|миллион\w*", 10**6),
    (r"億|亿|억", 10**8),
    (r"万|萬|만", 10**4),
)
_MULTIPLIER = re.compile("|".join(f"(?P<x{i}>{pattern})" for i, (pattern, _) in enumerate(_TIMES)), re.IGNORECASE)
# Which mark stands before decimals. Spanish is written with either comma or point, after country.
_POINT, _COMMA = ({language.code for language in DECLARATIONS if language.decimal == mark} for mark in ".,")
# Between numbers that share the unit of the last: "5 to 10 mg", "2, 4 and 6 h", "120/80 mmHg".
_CHAIN = re.compile(
    r"\s*(?:[-–—~/,、;]|to|and|or|a|à|al?|y|e|et|o|ou|u|de|by|x|×|hasta|jusqu['’]à|до|и|или|на|от|から|と|や|または|至|到|和|与|"
    r"或|에서|내지|및|와|과|또는|,?\s?(?:and|or|et|ou|y|o|и|или)(?:\s(?:de|from))?|から約)\s*",
    re.IGNORECASE,
)
_BELOW = (
    r"[<≤]|\b(?:less than|fewer than|under|below|at most|up to|moins de|inférieure?s? (?:à|ou égale? à)|au plus|"
    r"menos del?|menor(?:es)? (?:del?|que|al?)|inferior(?:es)? al?|менее|меньше|ниже|до|не более)|小于|少于|低于|不超过"
)
_ABOVE = (
    r"[>≥]|\b(?:more than|greater than|over|above|at least|plus de|supérieure?s? (?:à|ou égale? à)|au moins|"
    r"más del?|mayor(?:es)? (?:del?|que|al?)|superior(?:es)? al?|al menos|более|больше|выше|свыше|не менее)"
    r"|大于|多于|高于|超过|至少"
)
_SIGN_BEFORE = re.compile(
    rf"(?:(?:\b(?:not?|pas|ne|не)\s|不)(?:{_BELOW}|{_ABOVE})|(?P<below>{_BELOW})|(?P<above>{_ABOVE}))\s*=?\s*$",
    re.IGNORECASE,
)
_SIGN_AFTER = re.compile(r"\s?(?:(?P<below>以下|未満|以内|이하|미만|以内)|(?P<above>以上|超|を超|이상|초과))")
_PREFIX = re.compile(r"(?:(?P<c>摄氏|섭씨|摂氏)|(?P<f>华氏|화씨|華氏)|(?P<p>百分之))\s?$")
_ROMAN = re.compile(r"(?<![A-Za-z0-9_'’.-])(?:X{0,3})(?:IX|IV|V?I{0,3})(?![A-Za-z0-9_'’])(?<=[IVX])")
_STAGE = re.compile(
    r"(?:stage|grade|type|class|phase|level|factor|nerve|lead|stade|grade|classe|niveau|facteur|estadio|grado|tipo|clase|fase|"
    r"nivel|factor|стади\w+|степен\w+|тип\w*|класс\w*|фаз\w+|фактор\w*|第|[,/、-]|and|et|y|и|[IVX])\s*$",
    re.IGNORECASE,
)
_STAGE_AFTER = re.compile(r"\s?(?:期|级|級|型|度|类|類|相|기|형|급|상|도)")


class Quantity(NamedTuple):
    """A number as written and every value it may mean, its unit ("mg/kg", "" if none), the unit it shares with the
    numbers after it, "<" or ">" where it is a bound, and the numbers it is if its spaces separate ("4 350" may be 4 and
    350). A Roman numeral has the unit "roman"."""

    text: str
    values: frozenset[Decimal]
    unit: str = ""
    shared: str = ""
    sign: str = ""
    parts: tuple["Quantity", ...] = ()

    @property
    def small(self) -> bool:
        """Whether it is a whole number up to twelve, bare or of time, which languages also write in words."""
        return self.unit in ("", "roman", *TIMES) and all(v <= 12 and v == int(v) for v in self.values)


def quantities(text: str, language: str = "") -> list[Quantity]:
    """The numbers of a text in order, with their units; `language` decides what points and commas mean ("": both)."""
    text = text.translate(_PLAIN)
    found: list[Quantity] = []
    spans: list[tuple[int, int]] = []
    for match in _NUMBER.finditer(text):
        number, end = match.group(), match.end()
        values = set(_values(number, language))
        times = _MULTIPLIER.match(text[end : end + 16].lstrip())
        if times:
            factor = next(f for i, (_, f) in enumerate(_TIMES) if times.group(f"x{i}"))
            values |= {v * factor for v in values}
            end += len(text[end : end + 16]) - len(text[end : end + 16].lstrip()) + times.end()
        unit, after = unit_after(text, end)
        before = text[max(0, match.start() - 24) : match.start()]
        if not unit and text[after : after + 1] == "º" and all(v >= 30 for v in values):
            unit = "deg"  # otherwise an ordinal
        if unit == "year" and all(1800 <= v <= 2100 for v in values):
            unit = ""  # a date
        if prefix := _PREFIX.search(before):
            unit = "%" if prefix["p"] else "c" if prefix["c"] else "f"
        sign = _SIGN_AFTER.match(text, after) or _SIGN_BEFORE.search(before)
        sign = "" if sign is None else "<" if sign["below"] else ">" if sign["above"] else ""
        parts: tuple[Quantity, ...] = ()
        if " " in number:
            *firsts, last = (part for part in re.split(" ", number))
            parts = (
                *(Quantity(p, frozenset(_values(p, language))) for p in firsts),
                Quantity(last, frozenset(_values(last, language)), unit),
            )
        found.append(Quantity(number, frozenset(values), unit, "", sign, parts))
        spans.append((match.start(), after))
    for i in range(len(found) - 2, -1, -1):  # from the end: the unit goes back along the chain
        shared = found[i + 1].unit or found[i + 1].shared
        if not found[i].unit and shared and _CHAIN.fullmatch(text[spans[i][1] : spans[i + 1][0]]):
            found[i] = found[i]._replace(shared=shared)
    return found + _romans(text)


def _romans(text: str) -> list[Quantity]:
    found = []
    for m in _ROMAN.finditer(text):
        marked = _STAGE.search(text[max(0, m.start() - 14) : m.start()]) or _STAGE_AFTER.match(text, m.end())
        # "I" is a word, "V" and "X" are letters, "IV" is intravenous.
        if m[0] and (marked or m[0] not in ("I", "V", "X", "IV")):
            found.append(Quantity(m[0], frozenset({Decimal(_roman(m[0]))}), "roman"))
    return found


def _roman(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[c] for c in text]
    return sum(-v if any(w > v for w in values[i + 1 :]) else v for i, v in enumerate(values))


def _values(text: str, language: str) -> Iterable[Decimal]:
    """Every value a number may have in a language."""
    if not _GROUPED.fullmatch(text):
        yield Decimal(text.replace(",", "."))
        return
    *groups, last = re.split(rf"[.,{_SPACES}]", text)
    separators = re.sub(r"\d", "", text)
    if separators[-1] in ".," and (len(last) != 3 or len(set(separators)) > 1):
        yield Decimal(f"{''.join(groups)}.{last}")  # 1.234,5
        return
    whole = Decimal("".join((*groups, last)))
    if separators not in (".", ","):
        yield whole
        return
    decimal = Decimal(f"{groups[0]}.{last}")
    if groups[0].startswith("0"):
        yield decimal
    elif language in _POINT:
        yield whole if separators == "," else decimal
    elif language in _COMMA and separators == ",":
        yield decimal
    elif language == "es" and separators == ".":
        yield whole
    else:
        yield from (whole, decimal)


def missing(wanted: Iterable[Quantity], present: Iterable[Quantity]) -> list[Quantity]:
    """Those of `wanted` whose value stands nowhere in `present`, whatever the unit; each value once."""
    values = {v for q in _flat(present) for v in q.values}
    seen: set[frozenset] = set()
    out = []
    for quantity in wanted:
        there = quantity.values & values or (quantity.parts and all(p.values & values for p in quantity.parts))
        if not there and quantity.values not in seen:
            seen.add(quantity.values)
            out.append(quantity)
    return out


def changed(wanted: Iterable[Quantity], present: Iterable[Quantity], text: str) -> list[tuple[Quantity, str]]:
    """Quantities whose value stands in `present` (the numbers of `text`), but never with the same unit or bound, and as
    what it stands there: (5 mg, "g"), (500 mg, "no unit"), (<5 %, ">")."""
    present = list(_flat(present))
    out = []
    for quantity in wanted:
        if quantity.unit == "roman":
            continue
        same = [p for p in present if p.values & quantity.values and p.unit != "roman"]
        if not same:
            continue
        fitting = [p for p in same if _fits(quantity, p, text)]
        if not fitting and not (quantity.parts and not changed(quantity.parts, present, text)):
            out.append((quantity, same[0].unit or "no unit"))
        elif fitting and quantity.sign and all(p.sign and p.sign != quantity.sign for p in fitting):
            out.append((quantity, fitting[0].sign))
    return out


def _fits(wanted: Quantity, found: Quantity, text: str) -> bool:
    if not wanted.unit:
        return True
    if any(unit and same_unit(wanted.unit, unit, text) for unit in (found.unit, found.shared)):
        return True
    # "day 3" for "3日目": the unit of time may stand before, or once for several.
    bare = not found.unit and (not found.shared or found.shared in TIMES)
    return bare and wanted.unit in TIMES and mentions(wanted.unit, text)


def _flat(found: Iterable[Quantity]) -> Iterable[Quantity]:
    for quantity in found:
        yield quantity
        yield from quantity.parts
