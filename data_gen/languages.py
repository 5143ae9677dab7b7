"""Which language a text is in: by script first, by statistics for long text in Latin letters.

Short text is where statistical identifiers fail, and a script says more than they do: kana is Japanese, hangul Korean,
Cyrillic Russian (or a neighbour, told by its letters). What remains is text in Latin letters, which goes to py3langid
(4.6 MB, no pickle, 9,000 texts a second) among the languages a model may slip into; below MIN_LATIN letters it is
not asked, and below LONG_LATIN only which of the project's own languages it is, because close neighbours (Catalan,
Portuguese) are hard to tell there. On the questions and explanations of CasiMedicos, HEAD-QA, FrenchMedMCQA and MedQuAD
it errs in 1 of 2,547 texts of 60 characters and more.
"""

import re
import unicodedata
from functools import lru_cache

# Letters of a text too few to judge by.
MIN_LATIN = 60
LONG_LATIN = 150
MIN_OTHER = 6
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


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters, weighted so that one Han, kana or hangul character counts for three."""
    counts = {name: _WEIGHT[name] * len(pattern.findall(text)) for name, pattern in _SCRIPTS.items()}
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}


def language_problem(text: str, language: str, foreign: float = 0.25) -> str | None:
    """Why `text` is not in `language`, in a few words; None when it is, or is too short to tell.

    `foreign`: the share (script_shares) of scripts that are neither the language's nor Latin from which the text counts
    as mixed. Latin letters are allowed anywhere up to one half: names, units and abbreviations are written in them.
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
        return _within_script(text, language, letters)
    if letters["latin"] < MIN_LATIN:
        return None
    found = _identify_latin(text, letters["latin"] >= LONG_LATIN)
    return None if found == language else f"reads as {found}"


def _within_script(text: str, language: str, letters: dict[str, int]) -> str | None:
    if language == "ja" and not letters["kana"] and letters["han"] >= 20:
        return "Han without kana"
    if language == "zh" and letters["kana"] > 0.1 * letters["han"]:
        return "kana among Han"
    if language == "ru" and 50 * len(_NOT_RUSSIAN.findall(text)) > letters["cyrillic"]:
        return "Cyrillic letters that Russian has not"
    return None


@lru_cache(maxsize=2)
def _identifier(neighbours: bool):
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=False)
    identifier.set_languages(list(_LATIN if neighbours else _LATIN[:3]))
    return identifier


def _identify_latin(text: str, neighbours: bool) -> str:
    """The code of the likeliest language: en, fr, es, or (`neighbours`) any of `_LATIN`."""
    return str(_identifier(neighbours).classify(text)[0])
