"""The keyword filter: is a document medical? By how many keywords stand in it, and how much of it they are.

With K the keywords of the document's language and t the text,
  U  distinct keywords found
  R  sum over K of (times found x letters of the keyword) / letters of t
a document is kept when U and R reach the thresholds of its language. Rule and thresholds are those of MMedC (arXiv
2402.13963, data_collection/filtering/filter.py of its repository). Two ways of counting:

exact  Words end where words end: a letter or digit may stand next to a keyword only where the writing has no spaces
       (Han, kana, hangul). Keywords that overlap count each. Texts are compared in NFKC, lower case (`normal`). Of a
       keyword with an ending ("biops|y") every form counts, with the letters of its stem.
paper  As MMedC's code counts: languages with spaces in lower case, keywords of more than ten letters (or more than
       five in several words) anywhere, even within words, the others only as whole pieces between spaces, so that
       "fever," is not "fever"; Chinese and Japanese as the text is, without NFKC. Stems mean nothing to it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from ahocorasick_rs import AhoCorasick, Implementation

from data_gen.corpus.document_steps import DocumentFilter
from data_gen.corpus.keyword_lists import Keyword, normal, own_list, read_keywords
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.languages.scripts import SCRIPTS

MODES = ("exact", "paper")
# (least U, least R). As published; Korean, which MMedC has not, is ours: words of two or three characters as in Chinese
# and Japanese, but spaces between them, which are part of the text's length as they are in English.
THRESHOLDS = {
    "en": (5, 0.04),
    "zh": (5, 0.05),
    "ja": (5, 0.05),
    "fr": (4, 0.04),
    "ru": (4, 0.02),
    "es": (4, 0.04),
    "ko": (5, 0.04),
}
# A verdict is borderline where it changes when both thresholds are moved by this share, up or down.
BORDER = 0.25
_DENSE = ("han", "kana", "hangul")
# Of mode `paper`. Korean has spaces, but glues its particles to the words in front of them.
ANYWHERE = ("zh", "ja", "ko")


class Score(NamedTuple):
    """U and R of a text."""

    unique: int
    share: float


@dataclass(frozen=True)
class KeywordSettings:
    """What the filter's verdicts depend on; JSON-able.

    mode: one of MODES. lists: language -> file (read_keywords), the project's own for languages that are not in it.
    thresholds: language -> (least U, least R).
    """

    mode: str = "exact"
    lists: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, tuple[int, float]] = field(default_factory=lambda: dict(THRESHOLDS))

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"keyword mode {self.mode!r}: unknown{nearest(self.mode, MODES)}")
        for language, (unique, share) in self.thresholds.items():
            if unique < 0 or not 0 <= share:
                raise UserError(f"keyword thresholds of {language}: {unique} and {share} are not both at least 0")
        for language, file in self.lists.items():
            if language not in self.thresholds:
                raise UserError(f"keyword lists: no language {language!r}{nearest(language, self.thresholds)}")
            if not isinstance(file, str) or not file:
                raise UserError(f"keyword lists: {language}: {file!r} is no file's name")

    def files(self) -> dict[str, Path]:
        """The file of each language's keywords. Their contents decide as the settings do."""
        return {code: Path(self.lists[code]) if code in self.lists else own_list(code) for code in self.thresholds}

    def as_json(self) -> dict:
        return asdict(self)


class ExactMatcher:
    """U and R with word borders, by one pass of an Aho-Corasick automaton over the text."""

    def __init__(self, keywords: Iterable[Keyword]) -> None:
        forms: dict[str, bool] = {}  # what is looked for -> whether a word may go on behind it
        for keyword in keywords:
            if form := keyword.form:
                forms[form] = forms.get(form, False) or bool(keyword.stem)
        self._lengths = [len(form) for form in forms]
        # (a border is needed before it, behind it)
        self._borders = [(_has_border(f[0]), _has_border(f[-1]) and not goes_on) for f, goes_on in forms.items()]
        self._automaton = AhoCorasick(list(forms), implementation=Implementation.DFA)

    def score(self, text: str) -> Score:
        """U and R of a text; (0, 0.0) of an empty one."""
        text = normal(text)
        if not text:
            return Score(0, 0.0)
        found: set[int] = set()
        letters = 0
        lengths, borders = self._lengths, self._borders
        # Ends of the text are borders: a space stands before and behind it.
        padded = f" {text} "
        for pattern, start, end in self._automaton.find_matches_as_indexes(padded, overlapping=True):
            before, behind = borders[pattern]
            if before and _has_border(padded[start - 1]) or behind and _has_border(padded[end]):
                continue
            found.add(pattern)
            letters += lengths[pattern]
        return Score(len(found), letters / len(text))


class PaperMatcher:
    """U and R as MMedC's code counts them (its early accept of long keywords changes no verdict: both only grow)."""

    def __init__(self, keywords: Iterable[Keyword], spaces: bool) -> None:
        words = list(dict.fromkeys(keyword.word.lower() for keyword in keywords))
        self._spaces = spaces
        self._anywhere = [w for w in words if not spaces or len(w) > 10 or len(w) > 5 and len(w.split()) > 1]
        self._pieces = frozenset(words).difference(self._anywhere)

    def score(self, text: str) -> Score:
        """U and R of a text; (0, 0.0) of an empty one, by which the published code divides."""
        if not text:
            return Score(0, 0.0)
        lowered = text.lower() if self._spaces else text
        counts = Counter({word: lowered.count(word) for word in self._anywhere if word in lowered})
        if self._spaces:
            counts.update(piece for piece in lowered.split() if piece in self._pieces)
        return Score(len(counts), sum(n * len(word) for word, n in counts.items()) / len(text))


class KeywordRule:
    """Verdicts of the keyword filter on documents of every language that has a threshold."""

    def __init__(self, settings: KeywordSettings) -> None:
        self.settings = settings
        self._matchers = {
            language: _matcher(settings.mode, language, read_keywords(path, language))
            for language, path in settings.files().items()
        }

    def score(self, text: str, language: str) -> Score | None:
        """U and R by the list of a language; None for a language without one."""
        matcher = self._matchers.get(language)
        return matcher.score(text) if matcher else None

    def judge(self, text: str, language: str) -> str | None:
        """Why a document is left out, None where it is kept."""
        score = self.score(text, language)
        return self.reason(score, language) if score else "no keyword list for its language"

    def reason(self, score: Score, language: str, scale: float = 1.0) -> str | None:
        """The same from a score; `scale` moves both thresholds."""
        unique, share = self.settings.thresholds[language]
        if score.unique < unique * scale:
            return "too few keywords"
        return "too small a share of keywords" if score.share < share * scale else None

    def is_borderline(self, score: Score, language: str) -> bool:
        """Whether thresholds moved by BORDER, up or down, would give the other verdict."""
        kept = self.reason(score, language) is None
        return kept != (self.reason(score, language, 1 + BORDER if kept else 1 - BORDER) is None)


class KeywordFilter(DocumentFilter):
    """Step: keeps documents that KeywordRule keeps, by `language` of their metadata.

    Leaves U, R and whether the verdict is borderline as `keywords`, `keyword_share` and `borderline` in the metadata of
    kept and of dropped documents.
    """

    name = "keywords"
    _lazy = ("_rule",)

    def __init__(self, settings: KeywordSettings | None = None, exclusion_writer=None) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings or KeywordSettings()
        self._rule: KeywordRule | None = None

    def judge(self, doc) -> str | None:
        rule = self._rule = self._rule or KeywordRule(self.settings)
        language = doc.metadata.get("language")
        score = rule.score(doc.text, language)
        if score is None:
            return rule.judge(doc.text, language)
        doc.metadata.update(keywords=score.unique, keyword_share=round(score.share, 6))
        if borderline := rule.is_borderline(score, language):
            self.stat_update("borderline")
        doc.metadata["borderline"] = borderline
        return rule.reason(score, language)


def _matcher(mode: str, language: str, keywords: list[Keyword]) -> ExactMatcher | PaperMatcher:
    if mode == "paper":
        return PaperMatcher(keywords, spaces=language not in ANYWHERE)
    return ExactMatcher(keywords)


def _has_border(character: str) -> bool:
    """Whether it is a letter or digit that words in writing with spaces are made of: not Han, kana or hangul."""
    if not character.isalnum():
        return False
    return character < "\u1100" or not any(SCRIPTS[name].match(character) for name in _DENSE)
