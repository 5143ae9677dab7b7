"""Scripts: which letters a language is written in, and whether a text's letters are its language's.

This tells mojibake and rows of another set from text; which language a text in the right script is in, it does not say.
What has to pass is as important as what is caught: drug names, units and abbreviations in Latin letters anywhere,
answers that are numbers, and the Cyrillic letters that look like Latin ones which stand in a question of MedQA.
"""

import re

from mmed_jax.data.languages.declarations import DECLARATIONS

SCRIPTS = {
    "han": re.compile(r"[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "kana": re.compile(r"[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]"),
    "hangul": re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7af]"),
    "cyrillic": re.compile(r"[\u0400-\u052f]"),
    "latin": re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]"),
    # Arabic, Devanagari, Thai, ...: scripts no language here uses. Greek stays out: symbols in medicine.
    "other": re.compile(r"[\u0530-\u08ff\u0900-\u0fff\u1200-\u13ff\u1780-\u17ff]"),
}
SCRIPTS_OF = {language.code: language.scripts for language in DECLARATIONS}
# What a Han, kana or hangul character says against one of an alphabet.
WEIGHT = {"han": 3, "kana": 3, "hangul": 3, "latin": 1, "cyrillic": 1, "other": 1}
# Latin letters in a question from which it is written in them, and those with marks, which mojibake is full of.
_LATIN_TEXT = 25
_ACCENTED = re.compile(r"[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]")
# Cyrillic letters that are met in Latin text because they look like its own.
_LOOKALIKES = re.compile(r"[АВЕКМНОРСТУХІЈЅаеорсухіјѕԁһӏԛԝ]")
# "patient抯", "cuбl": a letter of another script within a word of Latin letters is a byte read in a wrong encoding.
# "rÃ©ponse": UTF-8 that was read as Windows-1252 or Latin-1 and stored as UTF-8 again.
_TWICE = re.compile("Ã[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œžŸ]|Â[\x80-\xbf]")
_LATIN = SCRIPTS["latin"].pattern
_STRANGE = "[" + "".join(SCRIPTS[name].pattern[1:-1] for name in ("han", "kana", "hangul", "cyrillic")) + "]"
_GLUED = re.compile(rf"{_LATIN}{_STRANGE}|{_STRANGE}{_LATIN}")
# The characters of which two thirds of any Chinese text consist, here with those of medicine.
_COMMON = frozenset(
    "的一是不了在有人我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去"
    "法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无力它与长把机十第此公已工使情明性知全三又关点正业"
    "外将两高间由问很最重并物手应向头文体相见被利什二等产或新己制身果加西月话合回特代内信表化老给位次度门任常先原东提立及比员解水名真论"
    "处走义各入几口认条平系气题别打女变四神总何电数安少报才结反受目量再感建务做接必场件计管期直德区保至队形社便空治基眼非则听白却界达光"
    "这個們來時說為國學後會對發過還開關點無長門問間見現從當將與種樣實體"
    "病痛药醫医检查治疗症炎血肝胃肺肾肠癌热咳嗽休息喝服患者验诊断术状染肿瘤细胞骨皮肤糖尿压低液脏脑死亡率引起增减少腹胸呼吸急慢性男女岁"
    "藥檢療腎腸熱嗎診斷術腫細膚壓臟腦率減歲选项错误确選項錯誤怎办请"
)


def letters(text: str) -> dict[str, int]:
    """How many letters of each script a text has."""
    if text.isascii():
        return dict.fromkeys(SCRIPTS, 0) | {"latin": len(SCRIPTS["latin"].findall(text))}
    return {name: len(pattern.findall(text)) for name, pattern in SCRIPTS.items()}


def common_chinese(text: str) -> float:
    """The share of common characters among the Han characters of a text; 0 without any."""
    han = SCRIPTS["han"].findall(text)
    return sum(map(_COMMON.__contains__, han)) / len(han) if han else 0.0


def _outside(han: list[str], encoding: str) -> float:
    """The share of characters that a national standard has not."""
    return 1 - len("".join(han).encode(encoding, "ignore")) / 2 / len(han)  # two bytes a character in each of them


def wrong_script(language: str, asked: str, *rest: str, latin: bool = False) -> bool:
    """Whether the letters of a record are not those of its language, whatever the reason.

    Args:
      asked: the question with its passage. rest: options, answers, explanations; these may be in Latin letters.
      latin: let questions pass that are in Latin letters altogether.
    """
    whole = "\n".join((asked, *rest))
    if not whole.isascii() and _strange(language, (asked, *rest)):
        return True
    own = SCRIPTS_OF[language]
    if own == ("latin",):
        return len(_TWICE.findall(whole)) >= 2
    found = letters(asked)
    mine = sum(WEIGHT[name] * found[name] for name in own)
    if not mine and found["latin"] >= _LATIN_TEXT and not latin:
        return True
    if len(_ACCENTED.findall(whole)) >= 4 and mine < found["latin"] and _accented(asked):
        return True
    han = SCRIPTS["han"].findall(whole)
    if language == "ja" and han:
        return _no_japanese(whole, han)
    return language == "zh" and _no_chinese(whole, han)


def _accented(text: str) -> bool:
    """Whether letters with marks stand as they do in no language: more of them than of plain ones."""
    return 2 * len(_ACCENTED.findall(text)) > len(SCRIPTS["latin"].findall(text))


def _strange(language: str, texts: tuple[str, ...]) -> bool:
    """Whether letters that are neither Latin nor of the language's script stand within words, or are too many, in one
    of the texts or in all together."""
    own = SCRIPTS_OF[language]
    strange_in_all = mine_in_all = 0
    for text in texts:
        if text.isascii() and "latin" not in own:
            continue
        if own == ("latin",) and not text.isascii():
            text = _LOOKALIKES.sub("", text)
            if _GLUED.search(text):
                return True
        found = letters(text)
        strange = sum(WEIGHT[n] * k for n, k in found.items() if n not in own and n != "latin")
        mine = sum(WEIGHT[name] * found[name] for name in own)
        strange_in_all, mine_in_all = strange_in_all + strange, mine_in_all + mine
        if _outnumbered(language, strange, mine):
            return True
    return _outnumbered(language, strange_in_all, mine_in_all)


def _outnumbered(language: str, strange: int, mine: int) -> bool:
    """Whether there are too many strange letters beside those of the language's own script, by weight."""
    # One character can be a symbol; of Korean, whose words have no Han spelling here, Han may not be the greater part.
    return strange > 3 and strange > (2.0 if language == "ko" else 0.4) * mine


def _no_japanese(text: str, han: list[str]) -> bool:
    """Han without any kana, or Han that Japanese has not: Chinese, or kana read in another encoding.

    Findings and diseases in a row need no kana; characters that no Chinese text has show that they are Japanese.
    """
    outside = _outside(han, "cp932")
    if not SCRIPTS["kana"].search(text):
        only = any(_outside([c], "gb2312") and _outside([c], "big5") for c in han)
        return outside > 0 or len(han) >= 10 and not only
    # One may be a rarer form of a character; of several, or of most, there is no such text.
    return outside > (0.1 if outside * len(han) > 1.5 else 0.5)


def _no_chinese(text: str, han: list[str]) -> bool:
    """Han that no Chinese text has: neither simplified nor traditional, or no common ones among many."""
    if len(han) < 8:
        return False
    if min(_outside(han, "gb2312"), _outside(han, "big5")) > 0.3:
        return True
    return len(han) >= 16 and common_chinese(text) < 0.06
