"""Which language a text is in: by script first, by statistics for long text in Latin letters.

Short text is where statistical identifiers fail, and a script says more than they do: kana is Japanese, hangul Korean,
Cyrillic Russian (or a neighbour, told by its letters). What remains is text in Latin letters, which goes to py3langid
(4.6 MB, no pickle, 9,000 texts a second) among the languages a model may slip into; below MIN_LATIN letters it is
not asked, and below LONG_LATIN it has to be sure (SURE nats) of a language that is not the project's own, because close
neighbours (Catalan, Portuguese) are hard to tell there. On 4,493 texts of 60 to 149 letters of seven public sets this
costs one, which is in English indeed; Portuguese questions of that length stand 65 nats and more from Spanish.
"""

import re
import unicodedata
from functools import lru_cache

# Letters of a text too few to judge by.
MIN_LATIN = 60
LONG_LATIN = 150
MIN_OTHER = 6
SURE = 20.0
# The same for a list of names, whose Latin looks Italian or Catalan.
SURE_OF_NAMES = 45.0
# What a Han, kana or hangul character says against one of an alphabet.
_WEIGHT = {"han": 3, "kana": 3, "hangul": 3, "latin": 1, "cyrillic": 1, "other": 1}
_SCRIPTS = {
    "han": re.compile(r"[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
    "kana": re.compile(r"[\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d]"),
    "hangul": re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7af]"),
    "cyrillic": re.compile(r"[\u0400-\u052f]"),
    "latin": re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff]"),
    # Arabic, Devanagari, Thai, ...: scripts no language here uses. Greek stays out: symbols in medicine.
    "other": re.compile(r"[\u0530-\u08ff\u0900-\u0fff\u1200-\u13ff\u1780-\u17ff]"),
}  # fmt: skip
SCRIPTS_OF = {
    "en": ("latin",), "fr": ("latin",), "es": ("latin",), "ru": ("cyrillic",), "ko": ("hangul",), "zh": ("han",),
    "ja": ("kana", "han"),
}  # fmt: skip
_LATIN = ("en", "fr", "es", "de", "it", "pt", "nl", "ca", "ro", "pl", "cs", "tr", "id", "vi", "sv")
# Letters Russian has not: Ukrainian, Belarusian, Serbian, Macedonian, Kazakh.
_NOT_RUSSIAN = re.compile(r"[іїєґўјљњћђџѓќѕәғқңөұүһІЇЄҐЎЈЉЊЋЂЏ]")
# "ъ" other than before е, ё, ю, я, and words of Bulgarian that Russian has not.
_BULGARIAN = re.compile(
    r"ъ(?![еёюя])|\b(?:са|се|който|която|което|които|това|този|тази|като|също|поради|трябва|най-\w+)\b", re.IGNORECASE
)
_NOT_BULGARIAN = re.compile(r"[ыэё]", re.IGNORECASE)
# Frequent characters that only one of the two ways of writing Chinese has.
_TRADITIONAL = re.compile(
    "[們個這來時說為國學後會對發過還開關點無長門問間東車見現從當將與種樣實處體醫療術藥診斷壓腎臟腦細檢驗測應變轉運經結組織統給"
    "續終線縮總繼類題項預領頭顯風飲於該並讓認識論證評調請議記設計許試護變質資賓購費貧環節約級紅純絡絲氣滅滿濕準漸減溫熱燒營異"
    "疊瘡癥癢癱盡監盤確礙禮積穩窮竅筆範簡糾紐緩罰羅聯聲聽腫腸膚膠膽臉舉藝蘇蟲衛補製複覺觀觸訊訓貼賴贏軟較輕輸適遲遷選遺鄰鈣鈉鉀"
    "鐵鎮鏡針銳錯鍵陰陽際隨險雙雜離難電靜響順頸顆顱飽養驅體髒鬆鮮鹽齡齊]"
)
_SIMPLIFIED = re.compile(
    "[们个这来时说为国学会对发过还开关点无长门问间东车见现从当将与种样实处体医疗术药诊断压肾脏脑细检验测应变转运经结组织统给"
    "续终线缩总继类题项预领头显风饮该让认识论证评调请议记设计许试护质资购费贫环节约级红纯络丝气灭满湿准渐减温热烧营异"
    "疮瘫尽监盘确碍积稳笔范简缓罗联声听肿肠肤胶胆脸举艺虫卫补复觉观触训软较轻输适迟选遗邻钙钠钾铁镇镜针锐错阴阳际随险双杂离难电静响"
    "顺颈颗颅饱养驱鲜盐龄齐]"
)


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters, weighted so that one Han, kana or hangul character counts for three."""
    counts = {name: _WEIGHT[name] * len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}


def language_problem(
    text: str, language: str, foreign: float = 0.25, *, sure: float = SURE, simplified: bool = False
) -> str | None:
    """Why `text` is not in `language`, in a few words; None when it is, or is too short to tell.

    `foreign`: the share (script_shares) of scripts that are neither the language's nor Latin from which the text counts
    as mixed. Latin letters are allowed anywhere up to one half: names, units and abbreviations are written in them.
    `sure`: how sure the identifier has to be of a text in Latin letters that is not long, in nats; `simplified`:
    Chinese has to be in simplified characters.
    """
    text = unicodedata.normalize("NFC", text)
    shares = script_shares(text)
    letters = {name: len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    own = SCRIPTS_OF[language]
    enough = sum(letters.values()) >= (MIN_LATIN if own == ("latin",) else MIN_OTHER)
    if not shares or not enough and letters["latin"] >= sum(letters.values()):
        return None
    strange = {n: s for n, s in shares.items() if n not in own and n != "latin"}
    worst = max(strange, key=strange.get)
    if strange[worst] > foreign:
        return f"{strange[worst]:.0%} {worst}"
    if own != ("latin",):
        if sum(shares[name] for name in own) < 0.5 and letters["latin"] >= MIN_LATIN:
            return f"{shares['latin']:.0%} Latin letters"
        return _within_script(text, language, letters, simplified)
    if letters["latin"] < MIN_LATIN:
        return None
    found = _identify_latin(text, language, 0.0 if letters["latin"] >= LONG_LATIN and sure == SURE else sure)
    return None if found == language else f"reads as {found}"


def _within_script(text: str, language: str, letters: dict[str, int], simplified: bool) -> str | None:
    if language == "ja" and not letters["kana"] and letters["han"] >= 20:
        return "Han without kana"
    if language == "zh" and letters["kana"] > 0.1 * letters["han"]:
        return "kana among Han"
    if language == "ru" and 50 * len(_NOT_RUSSIAN.findall(text)) > letters["cyrillic"]:
        return "Cyrillic letters that Russian has not"
    if language == "ru" and letters["cyrillic"] >= 30 and not _NOT_BULGARIAN.search(text):
        if len(_BULGARIAN.findall(text)) >= 2:
            return "reads as bg"
    if language == "zh" and simplified and len(_TRADITIONAL.findall(text)) > max(1, len(_SIMPLIFIED.findall(text))):
        return "Traditional characters"
    return None


@lru_cache(maxsize=1)
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=False)
    identifier.set_languages(list(_LATIN))
    return identifier


def _identify_latin(text: str, language: str, sure: float) -> str:
    """The code of the likeliest language: of en, fr, es, or of all in `_LATIN` where that is `sure` nats likelier than
    `language`."""
    scores = {str(code): float(score) for code, score in _identifier().rank(text)}
    best = max(scores, key=scores.get)
    if scores[best] - scores[language] > sure:
        return best
    return language if sure > SURE else max(_LATIN[:3], key=scores.get)
