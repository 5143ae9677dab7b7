"""The language of a document, by the project's identifier: mmed_jax.data.languages.identify.

Script first, statistics for long text in Latin letters, words for short; its figures stand in that module. It gives no
score between 0 and 1, so FineWeb-2's thresholds of GlotLID's score have no counterpart: it says a language or none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_gen.corpus.document_steps import DocumentFilter
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.languages.identify import language_of, language_problem
from mmed_jax.data.records.schema import LANGUAGES

# Characters that are looked at, in three places of a longer document: six times what Latin text needs.
SAMPLE = 900
OTHER = "not in a language of the corpus"


@dataclass(frozen=True)
class LanguageSettings:
    """What the language filter's verdicts depend on; JSON-able.

    languages: those that are kept.
    stated: what becomes of a document whose metadata name a language: "checked" (dropped where its text is in another
      one), "trusted" (not looked at) or "ignored" (the identifier's word counts).
    simplified: Chinese in traditional characters, which the keywords do not know, is dropped.
    """

    languages: Sequence[str] = LANGUAGES
    stated: Literal["checked", "trusted", "ignored"] = "checked"
    simplified: bool = False

    def __post_init__(self) -> None:
        for language in self.languages:
            if language not in LANGUAGES:
                raise UserError(f"language {language!r}: unknown{nearest(language, LANGUAGES)}")
        if self.stated not in (known := ("checked", "trusted", "ignored")):
            raise UserError(f"stated languages {self.stated!r}: unknown{nearest(self.stated, known)}")


def sample(text: str, length: int = SAMPLE) -> str:
    """At most `length` characters of a text: around a sixth, a half and five sixths of it, so that the menu and the
    notices at the ends of a page do not speak for it."""
    if len(text) <= length:
        return text
    third = length // 3
    return "\n".join(text[start : start + third] for start in (len(text) * k // 6 - third // 2 for k in (1, 3, 5)))


def judge_language(text: str, stated: str | None, settings: LanguageSettings) -> tuple[str | None, str | None]:
    """(language, None) of a document that is kept, (language or None, reason) of one that is dropped.

    stated: the language that came with the document, None for none.
    """
    part = sample(text)
    if settings.stated == "ignored":
        stated = None
    if stated is not None and stated not in settings.languages:
        return stated, OTHER
    if stated is not None and settings.stated == "trusted":
        return stated, None
    if stated is not None:
        # A document may be too short to tell: its stated language then stands.
        return (stated, "another language than stated") if _refused(part, stated, settings) else (stated, None)
    language = language_of(part)
    if language is None:
        return None, "language unknown"
    # What language_of names, language_problem refuses only where asked for simplified characters.
    if language not in settings.languages or settings.simplified and _refused(part, language, settings):
        return language, OTHER
    return language, None


def _refused(part: str, language: str, settings: LanguageSettings) -> bool:
    return language_problem(part, language, simplified=settings.simplified) is not None


class LanguageFilter(DocumentFilter):
    """Step: keeps documents in the languages of the corpus, and writes `language` into their metadata."""

    name = "language"

    def __init__(self, settings: LanguageSettings | None = None, exclusion_writer=None) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings or LanguageSettings()

    def judge(self, doc) -> str | None:
        language, reason = judge_language(doc.text, doc.metadata.get("language"), self.settings)
        if language is not None:
            doc.metadata["language"] = language
        return reason
