"""Words of a text, language by language, as the MMedLM code cuts them for BLEU (metrics/rationale_similarity.py).

    en es fr ru   NLTK: sentences, then NLTKWordTokenizer on each, which is what nltk.word_tokenize does
    zh            jieba, accurate mode with its HMM (jieba.cut's default)
    ja            janome, surface forms
    ko            as en: words between spaces, punctuation apart. MMedBench has no Korean; particles stay on their
                  words, so word overlap is lower than for other languages and chrF is the fairer number.

rouge 1.0.1 (2021), jieba 0.42.1 (2020) and janome are old; they are what the papers used.

Nothing is downloaded. nltk.word_tokenize cuts sentences with a Punkt model trained on English, a download; here the
same class is used untrained (PunktSentenceTokenizer()), which knows no abbreviations: "Dr. Smith" becomes three
words, not two. On 989 explanations of CasiMedicos (en, fr, es) 952 gave the same words as a Punkt that knows the
common English abbreviations, and mean BLEU-1 differed by 0.0001 or less. Without sentences (word_tokenize with
preserve_line=True) a full stop stays on the last word of every sentence but the last, and mean BLEU-1 is 0.0045
lower.
"""

import logging
import tempfile
from collections.abc import Callable
from functools import cache, lru_cache

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.schema import LANGUAGES

# What results name beside the numbers.
WORDS_OF = {
    **dict.fromkeys(("en", "es", "fr", "ru", "ko"), "nltk words in untrained punkt sentences"),
    "zh": "jieba",
    "ja": "janome surface forms",
}


@lru_cache(maxsize=16384)
def words(text: str, language: str) -> tuple[str, ...]:
    """The words of `text`, punctuation marks among them; spaces only where jieba or janome give them as words.

    Args:
      language: of schema.LANGUAGES.
    Raises:
      UserError: a language that there is not, or the library for it is not installed.
    """
    if language not in WORDS_OF:
        raise UserError(f"language '{language}' has no word segmentation{nearest(language, LANGUAGES)}")
    return tuple(_cutter(WORDS_OF[language])(text))


def join_words(text: str, language: str) -> str:
    """The text as ROUGE gets it: Chinese and Japanese cut and joined by spaces, the others as they are."""
    return " ".join(words(text, language)) if language in ("zh", "ja") else text


def missing(library: str, purpose: str) -> UserError:
    """The complaint about a library of the metrics extra that is not installed."""
    return UserError(f"{purpose} needs {library}, which is not installed: pip install -e '.[metrics]'")


@cache
def _cutter(name: str) -> Callable[[str], list[str]]:
    if name == "jieba":
        return _jieba()
    return _janome() if name.startswith("janome") else _nltk()


def _nltk() -> Callable[[str], list[str]]:
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktSentenceTokenizer
    except ImportError:
        raise missing("nltk", "BLEU") from None
    sentences, inside = PunktSentenceTokenizer(), NLTKWordTokenizer()
    return lambda text: [word for sentence in sentences.tokenize(text) for word in inside.tokenize(sentence)]


def _jieba() -> Callable[[str], list[str]]:
    try:
        import jieba
    except ImportError:
        raise missing("jieba", "BLEU or ROUGE of Chinese text") from None
    jieba.setLogLevel(logging.WARNING)
    # Its own cache is a file of a fixed name in /tmp that anyone may have put there: the dictionary is read anew.
    with tempfile.TemporaryDirectory() as folder:
        cutter = jieba.Tokenizer()
        cutter.tmp_dir = folder
        cutter.initialize()
    return lambda text: list(cutter.cut(text))


def _janome() -> Callable[[str], list[str]]:
    try:
        from janome.tokenizer import Tokenizer
    except ImportError:
        raise missing("janome", "BLEU or ROUGE of Japanese text") from None
    cutter = Tokenizer()
    return lambda text: [token.surface for token in cutter.tokenize(text)]
