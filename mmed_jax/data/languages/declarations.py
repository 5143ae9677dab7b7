"""The languages of records, each declared once; what else a language needs, tests/support/language_places.py finds.

A language is one row here, and texts and rules of its own elsewhere: instructions, prompts, words of refusals. The test
of those places names every one that a new row lacks. Order matters: a batch's language numbers count rows from 1.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
      code: of records (ISO 639-1). name: in English, as MMedBench names its files.
      scripts: of scripts.SCRIPTS, those that its own words are written in.
      decimal: what stands before decimals: "." or ","; "" where both are written.
      aliases: what people write instead of the code, besides the name.
    """

    code: str
    name: str
    scripts: tuple[str, ...]
    decimal: str
    aliases: tuple[str, ...] = ()


DECLARATIONS = (
    Language("en", "English", scripts=("latin",), decimal=".", aliases=("eng",)),
    Language("zh", "Chinese", scripts=("han",), decimal=".", aliases=("cn", "chi", "zho")),
    Language("ja", "Japanese", scripts=("kana", "han"), decimal=".", aliases=("jp", "jpn")),
    Language("ko", "Korean", scripts=("hangul",), decimal=".", aliases=("kr", "kor")),
    Language("fr", "French", scripts=("latin",), decimal=",", aliases=("fra", "fre")),
    Language("es", "Spanish", scripts=("latin",), decimal="", aliases=("spa", "sp")),
    Language("ru", "Russian", scripts=("cyrillic",), decimal=",", aliases=("rus",)),
)
