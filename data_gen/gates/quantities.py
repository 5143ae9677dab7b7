"""Numbers and units as they are written in seven languages, for telling whether a text keeps another's quantities."""

import re
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

# Full-width digits, points and signs as ASCII. Superscripts stay: 10⁹ is not 109.
_FULL_WIDTH = str.maketrans({**{0xFF10 + i: str(i) for i in range(10)}, "．": ".", "，": ",", "％": "%", "〜": "~"})
_SEPARATOR = "[.,\u00a0\u202f ]"
_GROUPED = re.compile(rf"\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)(?:[.,]\d+)?")
_NUMBER = re.compile(rf"(?<!\d)(?:{_GROUPED.pattern}|\d+(?:[.,]\d+)?)|\.\d+")
# Words and characters that multiply the number before them.
_TIMES = (
    (r"千|천|thousand|mille\b|mil\b|тыс", 1000),
    (r"百万|백만|million|millón|millones|млн|миллион", 10**6),
    (r"億|亿|억", 10**8),
    (r"万|萬|만", 10**4),
)
_MULTIPLIER = re.compile("|".join(f"(?P<x{i}>{pattern})" for i, (pattern, _) in enumerate(_TIMES)), re.IGNORECASE)

# One canonical name per unit, with its spellings; longer spellings are tried first.
_UNITS = {
    "mg": "mg мг 毫克 ミリグラム 밀리그램 밀리그람 milligrams milligram milligrammes miligramos",
    "g": "g г 克 グラム 그램 grams grammes gramos",
    "kg": "kg кг 公斤 千克 キログラム 킬로그램",
    "ug": "µg μg mcg ug мкг 微克 マイクログラム 마이크로그램 micrograms microgrammes microgramos",
    "ml": "ml мл 毫升 ミリリットル 밀리리터 cc mililitros millilitres milliliters",
    "dl": "dl дл 分升 デシリットル 데시리터",
    "l": "l л 升 リットル 리터 litres liters litros",
    "mmhg": "mmhg 毫米汞柱 水銀柱ミリメートル 수은주밀리미터",
    "mm": "mm мм 毫米 ミリメートル ミリ 밀리미터",
    "cm": "cm см 厘米 公分 センチメートル センチ 센티미터",
    "%": "% percent パーセント 퍼센트 pour\u00a0cent процентов процента",
    "c": "°c ℃ 摄氏度 °с 섭씨",
    "mmol": "mmol ммоль 毫摩尔 ミリモル 밀리몰",
    "umol": "µmol μmol umol мкмоль 微摩尔",
    "meq": "meq мэкв 毫当量",
    "iu": "iu ui ме 国际单位 國際單位 国際単位 국제단위",
    "bpm": "bpm lpm",
}
_UNIT_OF = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings.split(" ")}
_UNIT = re.compile(
    r"[\s\u00a0-]{0,2}(мм\s*рт\.?\s*ст|"
    + "|".join(re.escape(s) for s in sorted(_UNIT_OF, key=len, reverse=True))
    + r")(?![a-zа-яё])",
    re.IGNORECASE,
)


class Quantity(NamedTuple):
    """A number as written, every value it may mean (1.500 is 1.5 or 1500), and its unit's canonical name or ""."""

    text: str
    values: frozenset[Decimal]
    unit: str

    @property
    def small(self) -> bool:
        """Whether it is a bare whole number up to twelve, which languages also write in words."""
        return not self.unit and all(v <= 12 and v == int(v) for v in self.values)


def quantities(text: str) -> list[Quantity]:
    """The numbers of a text in order, with their units."""
    text = text.translate(_FULL_WIDTH)
    found = []
    for match in _NUMBER.finditer(text):
        values = set(_values(match.group()))
        after = text[match.end() : match.end() + 24]
        times = _MULTIPLIER.match(after.lstrip())
        if times:
            factor = next(f for i, (_, f) in enumerate(_TIMES) if times.group(f"x{i}"))
            values |= {v * factor for v in values}
        unit = _UNIT.match(after)
        name = "" if unit is None else _UNIT_OF.get(unit.group(1).lower(), "mmhg")
        found.append(Quantity(match.group(), frozenset(values), name))
    return found


def _values(text: str) -> Iterable[Decimal]:
    if not _GROUPED.fullmatch(text):
        yield Decimal(text.replace(",", "."))
        return
    *groups, last = re.split(_SEPARATOR, text)
    separators = re.sub(r"\d", "", text)
    if separators[-1] in ".," and (len(last) != 3 or len(set(separators)) > 1):
        yield Decimal(f"{''.join(groups)}.{last}")  # 1.234,5
        return
    yield Decimal("".join((*groups, last)))
    if separators in (".", ","):
        yield Decimal(f"{groups[0]}.{last}")


def missing(wanted: Iterable[Quantity], present: Iterable[Quantity]) -> list[Quantity]:
    """Those of `wanted` whose value stands nowhere in `present`, each value once."""
    values = {v for q in present for v in q.values}
    seen: set[frozenset] = set()
    out = []
    for quantity in wanted:
        if not quantity.values & values and quantity.values not in seen:
            seen.add(quantity.values)
            out.append(quantity)
    return out


def other_units(wanted: Iterable[Quantity], present: Iterable[Quantity]) -> list[tuple[Quantity, str]]:
    """Quantities whose value stands in `present` with units only, and none of them the same: 5 mg became 5 g.

    A value that also stands there without a unit, or with one not known here, is not counted.
    """
    units: dict[Decimal, set[str]] = defaultdict(set)
    for quantity in present:
        for value in quantity.values:
            units[value].add(quantity.unit)
    out = []
    for quantity in wanted:
        theirs = set().union(*(units[v] for v in quantity.values if v in units)) if quantity.unit else set()
        if theirs and "" not in theirs and quantity.unit not in theirs:
            out.append((quantity, min(theirs)))
    return out
