"""Which language a text is in: by script first, by statistics for long text, by words for short.

Short text is where statistical identifiers fail, and a script says more than they do: kana is Japanese, hangul Korean,
Cyrillic Russian (or a neighbour, told by its letters and words). What remains is text in Latin letters, which goes to
py3langid (4.6 MB, no pickle, 9,000 texts a second) among the languages a model may slip into; below MIN_LATIN letters
it is not asked, and below LONG_LATIN it has to be sure (SURE nats) of a language that is not the project's own, because
close neighbours (Catalan, Portuguese) are hard to tell there. On 4,493 texts of 60 to 149 letters of seven public sets
this costs one, which is in English indeed; Portuguese questions of that length stand 65 nats and more from Spanish.

language_problem says whether a text is in the language asked for (the gates of data_gen), language_of which of the
seven it is in (the reports of evaluations; traditional characters are Chinese there), and never one that
language_problem would refuse without being asked for simplified characters. Of 96,549 questions,
passages, explanations, messages and lists of options of sixteen public sets (60 characters and more, 20 in Chinese and
Japanese) it gives 96.4 % their language, 91 another one, and leaves the rest open.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from mmed_jax.data.languages.scripts import SCRIPTS, SCRIPTS_OF, WEIGHT

# Letters of a text too few to judge by.
MIN_LATIN = 60
LONG_LATIN = 150
MIN_OTHER = 6
SURE = 20.0
# The same for a list of names, whose Latin looks Italian or Catalan.
SURE_OF_NAMES = 45.0
# The languages of records in Latin letters, and with them those that their texts are told from.
_OWN_LATIN = tuple(code for code, scripts in SCRIPTS_OF.items() if scripts == ("latin",))
_NEIGHBOURS = ("de", "it", "pt", "nl", "ca", "ro", "pl", "cs", "tr", "id", "vi", "sv")
_LATIN = (*_OWN_LATIN, *(code for code in _NEIGHBOURS if code not in _OWN_LATIN))
# Scripts that say which language it is.
_BY_SCRIPT = {
    script: code for code, scripts in SCRIPTS_OF.items() for script in scripts if script not in ("latin", "han")
}
# Letters Russian has not: Ukrainian, Belarusian, Serbian, Macedonian, Kazakh.
_NOT_RUSSIAN = re.compile(r"[іїєґўјљњћђџѓќѕәғқңөұүһІЇЄҐЎЈЉЊЋЂЏ]")
# "ъ" other than before е, ё, ю, я, and words of Bulgarian and its neighbours that Russian has not.
_BULGARIAN = re.compile(
    r"ъ(?![еёюя])|\b(?:са|се|който|която|което|които|това|този|тази|като|също|поради|трябва|най-\w+|отговор\w*"
    r"|одговор\w*|има|имат|беше|дека|треба|(?-i:е))\b",
    re.IGNORECASE,
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


# The commonest words, with those that answers are marked with: of the three, and of languages that look like them.
_WORDS = {
    "en": "the of and to is in that with for as are this which by be not it from or was on can an most patient "
    "answer correct option because has have therefore explanation",
    "fr": "le la les des du et est une un dans que qui pour pas par sur au aux ce cette avec sont plus il elle ne se "
    "réponse bonne option donc car patient je de en",
    "es": "el la los las de del y es una un en que por para no con se su al lo como más son este esta respuesta "
    "correcta opción porque paciente",
    "pt": "o a os as de do da dos das no na nos nas em e é um uma que por para não com se ao à como mais são este "
    "esta resposta correta opção porque paciente tem você foi pelo pela também",
    "it": "il lo la i gli le di del della dei delle in è e un una che per non con si al alla come più sono questo "
    "questa risposta corretta opzione perché paziente nel nella da ha",
    "ca": "el la els les de del i és una un en que per no amb es al com més són aquest aquesta resposta correcta opció "
    "perquè pacient dels amb seva té",
    "gl": "o a os as de do da dos das no na e é un unha que por para non con se ao como máis son este esta resposta "
    "correcta opción porque paciente ten polo pola",
    "ro": "și este un o în la cu de din pe pentru nu se care sunt mai că ce al ale răspuns răspunsul corect opțiunea "
    "pacientul deoarece are sau",
    "de": "der die das und ist in zu mit den von für nicht ein eine dem auf im als auch richtig antwort patient weil "
    "hat bei ich wird sind",
    "nl": "de het een en is in van met op te dat voor niet zijn aan als ook bij antwoord juiste patiënt omdat heeft "
    "door wordt ik",
}
_COMMON = {lang: frozenset(words.split()) for lang, words in _WORDS.items()}
# Letters that only some of them have.
_MARKS = {
    "fr": re.compile(r"[àèêëâîïôûùœç]|\b[ldcjnsm]['’]"),
    "es": re.compile(r"[ñ¿¡íóáú]"),
    "pt": re.compile(r"[ãõçâêà]"),
    "it": re.compile(r"[àèéìòù]\b|\b(?:l|dell|un|all)['’]"),
    "ro": re.compile(r"[ăâîșțşţ]"),
    "gl": re.compile(r"[ñíóáú]"),
    "ca": re.compile(r"[çàèò]|l·l|\b[ld]['’]"),
    "de": re.compile(r"[äöüß]"),
    "nl": re.compile(r"ij|ë"),
    "others": re.compile(r"[ąćęłńśźżčďěňřšťůžğışđőűåøæ\u01a0-\u01b0\u1ea0-\u1ef9]"),
}
_HAN_MARKS = {"正解": "ja", "解答": "ja", "答案": "zh"}


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters, weighted so that one Han, kana or hangul character counts for three."""
    counts = {name: WEIGHT[name] * len(pattern.findall(text)) for name, pattern in SCRIPTS.items()}
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
    letters = {name: len(pattern.findall(text)) for name, pattern in SCRIPTS.items()}
    own = SCRIPTS_OF[language]
    enough = sum(letters.values()) >= (MIN_LATIN if own == ("latin",) else MIN_OTHER)
    if not shares or not enough and letters["latin"] >= sum(letters.values()):
        return None
    strange = {n: s for n, s in shares.items() if n not in own and n != "latin"}
    worst = max(strange, key=strange.__getitem__)
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


@lru_cache(maxsize=2)
def _scores(text: str) -> dict[str, float]:
    """Log-likelihood of the text in each of `_LATIN`, in nats."""
    return {str(code): float(score) for code, score in _identifier().rank(text)}


def _identify_latin(text: str, language: str, sure: float) -> str:
    """The code of the likeliest language: of _OWN_LATIN, or of all in `_LATIN` where that is `sure` nats likelier than
    `language`."""
    scores = _scores(text)
    best = max(scores, key=scores.__getitem__)
    if scores[best] - scores[language] > sure:
        return best
    return language if sure > SURE else max(_OWN_LATIN, key=scores.__getitem__)


def language_of(text: str) -> str | None:
    """The code of schema.LANGUAGES that `text` is written in; None for too little or mixed text, or another language.

    Short text is told by its words, and by those that answers are marked with: "Réponse : A".
    """
    shares = script_shares(unicodedata.normalize("NFKC", text))
    if not shares:
        return None
    text = unicodedata.normalize("NFKC", text)
    east, first = shares["kana"] + shares["han"], max(shares, key=shares.__getitem__)
    code: str | None
    if shares["kana"] >= 0.05 and east > 0.5:
        code = "ja"
    elif shares[first] <= 0.5 or first == "other":
        return None
    elif first == "han":
        code = next((lang for mark, lang in _HAN_MARKS.items() if mark in text), "zh")
    else:
        code = _BY_SCRIPT.get(first) or _latin(text)
    if code == "ja" and not shares["kana"]:
        return code  # an answer in Han that is marked as Japanese
    if code == "ru" and (_NOT_RUSSIAN.search(text) or _BULGARIAN.search(text)) and not _NOT_BULGARIAN.search(text):
        return None
    return code if code and not language_problem(text, code) else None


def _latin(text: str) -> str | None:
    """English, French or Spanish; None where it is another language, or as much of one as of the other."""
    words = Counter(re.findall(r"[^\W\d_]+", text.casefold()))
    counts = {lang: sum(n for w, n in words.items() if w in common) for lang, common in _COMMON.items()}
    for lang, pattern in _MARKS.items():
        counts[lang] = counts.get(lang, 0) + (2 if lang == "others" else 1) * len(pattern.findall(text.casefold()))
    if len(SCRIPTS["latin"].findall(text)) >= MIN_LATIN:
        (best, most), (_, second), *_ = sorted(_scores(text).items(), key=lambda s: -s[1])
        if most - second > SURE:
            # Galician is not among those asked for: it would take lists of Spanish names.
            return best if best in _OWN_LATIN and not (best == "es" and counts["gl"] > counts["es"]) else None
    best = max(_OWN_LATIN, key=counts.__getitem__)
    most = counts.pop(best)
    alone = all(most > counts[lang] for lang in _OWN_LATIN if lang != best)
    return best if alone and most >= max(counts.values()) else None
