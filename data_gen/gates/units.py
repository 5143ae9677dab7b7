"""Units as seven languages write them: one symbol for every spelling, denominators told apart."""

import re
from functools import cache

# Spellings by symbol; "_" stands for a space, a spelling that ends in ~ goes on in any letters. Longer ones first.
UNITS = {
    "mg": "mg mgs мг 毫克 ミリグラム 밀리그램 밀리그람 milligram~ miligramo~ миллиграмм~",
    "g": "g gr г гр 克 グラム 그램 그람 gram grams gramme grammes gramo gramos грамм~",
    "kg": "kg kgs кг 公斤 千克 キログラム キロ 킬로그램 킬로 kilo kilos kilogram~ kilogramo~ килограмм~",
    "ug": "µg μg mcg ug мкг 微克 マイクログラム 마이크로그램 microgram~ microgramo~ микрограмм~",
    "ng": "ng нг 纳克 ナノグラム 나노그램 nanogram~",
    "pg": "pg пг 皮克 ピコグラム 피코그램 picogram~",
    "ml": "ml мл 毫升 ミリリットル 밀리리터 cc mililitro~ millilit~ миллилитр~",
    "ul": "µl μl ul мкл 微升 マイクロリットル 마이크로리터 mm³ mm3 мм3 мм³",
    "dl": "dl дл 分升 デシリットル 데시리터 decilit~",
    "l": "l л 升 リットル 리터 litre litres liter liters litro litros литр~",
    "fl": "fl фл",
    "mmhg": "mmhg mm_hg mm_de_hg mm_de_mercurio mm_of_mercury mm_de_mercure мм_рт_ст мм_рт._ст мм.рт.ст "
    "毫米汞柱 水銀柱ミリメートル 수은주밀리미터 mmde_hg",
    "cmh2o": "cmh2o cm_h2o cm_de_h2o см_вод 厘米水柱",
    "mm": "mm мм 毫米 ミリメートル ミリ 밀리미터 millimet~ milímetro~ millimètre~ миллиметр~",
    "cm": "cm cms см 厘米 公分 センチメートル センチ 센티미터 centimet~ centímetro~ centimètre~ сантиметр~",
    "m": "m м 米 メートル 미터 metre metres meter meters metro metros mètre mètres метр~",
    "um": "µm μm um мкм 微米 マイクロメートル 마이크로미터 micra micras",
    "nm": "nm нм 纳米 ナノメートル 나노미터",
    "%": "% percent per_cent パーセント 퍼센트 프로 pour_cent por_ciento por_cien процент~",
    "c": "°c ℃ ºc °с º_c ° c摄氏度 摄氏度 degrees_c degrees_celsius degrés_celsius degrés_c grados_centígrados "
    "grados_celsius grados_c градус~_цельсия °_c °_celsius",
    "f": "°f ℉ ºf °_f degrees_f degrees_fahrenheit degrés_fahrenheit grados_fahrenheit 华氏度 градус~_фаренгейта",
    "deg": "° 度 도 degree degrees degré degrés grado grados градус градуса градусов",
    "mmol": "mmol ммоль 毫摩尔 毫摩 ミリモル 밀리몰 milimol~ millimol~",
    "umol": "µmol μmol umol мкмоль 微摩尔 マイクロモル 마이크로몰",
    "nmol": "nmol нмоль 纳摩尔 ナノモル",
    "pmol": "pmol пмоль",
    "mosm": "mosm mosmol мосм мосмоль",
    "meq": "meq mval мэкв 毫当量 ミリ当量",
    "iu": "iu ui ме u units unit unidades unidad unités unité ед единиц~ 国际单位 國際單位 单位 国際単位 単位 "
    "국제단위 단위",
    "kcal": "kcal ккал 千卡 キロカロリー 킬로칼로리 kilocalor~ килокалор~",
    "kpa": "kpa кпа",
    "hz": "hz гц",
    "gy": "gy гр_",
    "mci": "mci",
    "kv": "kv кв",
    "ms": "ms msec мс 毫秒 ミリ秒 밀리초",
    "sec": "s sec secs second seconds seconde secondes segundo segundos seg с сек секунд~ 秒 秒間 초 초간",
    "min": "min mins minute minutes minuto minutos мин минут~ 分钟 分間 分 분 분간",
    "h": "h hr hrs hs hour hours heure heures hora horas ч час часа часов 小时 個小時 个小时 時間 시간",
    "day": "day days jour jours día días dia dias день дня дней сутки суток сут 天 日間 日 일간 일",
    "week": "week weeks wk wks semaine semaines semana semanas недел~ 周 星期 週間 週 주간 주 礼拜",
    "month": "month months mois mes meses месяц~ мес 个月 個月 か月 ヶ月 カ月 ヵ月 ケ月 箇月 개월 달",
    "year": "year years yr yrs yo y.o. an ans année années año años год года лет ~летн~ 岁 歲 年 歳 才 年間 세 살 "
    "년 년간",
}
TIMES = ("ms", "sec", "min", "h", "day", "week", "month", "year")
_ALSO = {  # where the unit may hide when no number stands before it
    "day": r"daily|diari[oa]s?|quotidien\w*|ежедневн\w+|сут\w+|24\s?(?:h|ч|小时|時間|시간)|j\b|d\b|매일|하루",
    "week": r"weekly|hebdomadaires?|еженедельн\w+",
    "month": r"monthly|mensuel\w*|mensual\w*|ежемесячн\w+|月|월",
    "year": r"yearly|annual\w*|annuel\w*|anual\w*|ежегодн\w+|\bage[ds]?\b"
    r"|\bâgée?s?\b|\bâge\b|\bedad\b|возраст\w*|年龄|年齢|나이|연령",
    "h": r"hourly|horari\w+|horaire\w*",
    "min": r"bpm|lpm|rpm",
    "c": r"摄氏|섭씨|摂氏",
    "f": r"华氏|화씨|華氏",
    "%": r"百分之",
}
_COUNTED = (
    r"(?:beats?|breaths?|latidos?|respiraciones?|battements?|respirations?|puls\w+|cycles?|уд\w*|次|回|회|박동|拍)"
)
_PER = r"(?:\s?/\s?|\s(?:per|par|por|al|a\s+la|chaque|cada|each|an|a|на|в)\s(?:1\s)?|[每毎]|·)"


def _spelling(text: str) -> str:
    stem, more = text.strip("~"), r"[^\W\d_]*"
    body = re.escape(stem.rstrip("_")).replace("_", r"\s?")
    return (more if text.startswith("~") else "") + body.replace("\\~", more) + (more if text.endswith("~") else "")


def _symbols() -> list[tuple[str, str]]:
    pairs = [(s, unit) for unit, spellings in UNITS.items() for s in spellings.split()]
    return sorted(pairs, key=lambda p: -len(p[0]))


# A unit in letters ends where the word does; one in Han, kana or hangul needs no end.
_END = r"(?![A-Za-zÀ-ɏа-яёА-ЯЁ])"
_ANY = "|".join(_spelling(s) for s, _ in _symbols())
_ONE = re.compile(rf"(?:{_ANY}){_END}", re.IGNORECASE)
_DENOMINATOR = re.compile(rf"{_PER}(?:24\s?(?:h|ч|小时|時間)\b|(?:{_ANY}|j|d){_END})", re.IGNORECASE)
_GAP = re.compile(r"[\s\u00a0\u202f-]{0,2}")
_BPM = re.compile(rf"\s?(?:bpm|lpm|rpm)\b|\s?{_COUNTED}\s?(?={_PER})|(?=\s?/\s?(?:min|мин|分|분))", re.IGNORECASE)


@cache
def symbol(spelling: str) -> str:
    """The symbol of a unit as it stands in a text ("miligramos" is "mg")."""
    found = " ".join(spelling.split()).lower()
    for text, unit in _symbols():
        if re.fullmatch(_spelling(text), found, re.IGNORECASE):
            return unit
    return ""


def unit_after(text: str, start: int) -> tuple[str, int]:
    """(unit, end) of what stands at `start`, right after a number: "mg/day/kg", denominators sorted; ("", start) where
    no known unit stands there."""
    if bpm := _BPM.match(text, start):
        name, end = "", bpm.end()
        if not bpm[0].strip().lower().endswith("pm"):
            denominators, end = _denominators(text, end)
            return "/".join(["", *denominators]), end
        return "/min", end
    begin = _GAP.match(text, start).end()
    found = _ONE.match(text, begin)
    if not found:
        return "", start
    name, end = symbol(found[0]), found.end()
    if name in TIMES or name == "deg":
        return name, end
    denominators, end = _denominators(text, end)
    return "/".join([name, *denominators]), end


def _denominators(text: str, end: int) -> tuple[list[str], int]:
    found = []
    while m := _DENOMINATOR.match(text, end):
        body = re.sub(rf"^{_PER}", "", m[0], flags=re.IGNORECASE).strip()
        day = body.lower() in ("j", "d") or body.startswith("24")
        found.append("day" if day else symbol(body))
        end = m.end()
    return sorted(filter(None, found)), end


@cache
def _word(unit: str) -> re.Pattern:
    spellings = "|".join(_spelling(s) for s in UNITS[unit].split())
    also = f"|{_ALSO[unit]}" if unit in _ALSO else ""
    return re.compile(rf"(?<![A-Za-zÀ-ɏа-яё])(?:{spellings}){_END}{also}", re.IGNORECASE)


def mentions(unit: str, text: str) -> bool:
    """Whether a text writes a unit anywhere, also without a number ("daily" for "day")."""
    return _word(unit).search(text) is not None


def same_unit(wanted: str, found: str, text: str) -> bool:
    """Whether two units are one. A denominator that `found` lacks may stand elsewhere in its text ("每日 5 mg/kg")."""
    (ours, *dens), (theirs, *others) = wanted.split("/"), found.split("/")
    if ours != theirs and not ({ours, theirs} <= {"deg", "c"} or {ours, theirs} <= {"deg", "f"}):
        return False
    lacking, extra = set(dens) - set(others), set(others) - set(dens)
    return not (lacking and extra) and all(mentions(unit, text) for unit in lacking)
