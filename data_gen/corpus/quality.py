"""Quality by the rules of FineWeb and FineWeb-2 (repetition, lines, words), and a hook for a scorer of one's own.

The rules are those of datatrove's GopherRepetitionFilter, FineWebQualityFilter and GopherQualityFilter, with the
thresholds of quality_thresholds.py and datatrove's names as reasons. Words are numbers and runs of letters, an
apostrophe goes with the word in front of it, any other sign is a word of its own: close to the tokenizers that the
thresholds were set with in languages with spaces. FineWeb's C4 step, which edits lines, is not here.

Chinese, Japanese and Korean were measured in words of statistical tokenizers, which this has not. What is done there:
  taken over  rules of lines: dup_line_frac, line_punct_ratio, char_dup_ratio; hashes, ellipses and bullets
  re-derived  by CHARS_A_WORD letters to a word, a figure of ours: the least length, list_ratio, and n-grams of 5 to 10
              words as n-grams of so many letters; stop words count wherever they stand in the text
  left out    commonest n-grams, word length, share of words with a letter
"""

import importlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

from data_gen.corpus.document_steps import DocumentFilter
from data_gen.corpus.quality_thresholds import THRESHOLDS, Thresholds
from mmed_jax.common.errors import UserError

# Letters of an average word of Chinese, Japanese and Korean (there: a morpheme).
CHARS_A_WORD = 1.6
DENSE = ("zh", "ja", "ko")
_WORD = re.compile(r"\d+(?:[.,:]\d+)+|[^\W_]+(?:['’](?=[^\W_]))?|[^\w\s]|_")
_LETTER = re.compile(r"[^\W_]")
_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_ENDINGS = tuple(TERMINAL_PUNCTUATION)
_SHORT_LINE = 30


@dataclass(frozen=True)
class QualitySettings:
    """What the quality filter's verdicts depend on; JSON-able.

    rules: whether the rules are applied. thresholds: language -> changed fields of Thresholds ({"en": {"least_words":
    20}}). scorer: "module:function", called with (text, language), gives a number; documents below `least_score` are
    dropped. "" for none.
    """

    rules: bool = True
    thresholds: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    scorer: str = ""
    least_score: float = 0.0


def split_words(text: str) -> list[str]:
    """Words of a language with spaces, signs as words of their own."""
    return _WORD.findall(text)


def judge_quality(text: str, language: str, thresholds: Thresholds) -> str | None:
    """The first rule that a document breaks, by datatrove's name of it; None for none."""
    if not text.strip():
        return "empty"
    units: Sequence[str] = _LETTER.findall(text) if language in DENSE else split_words(text)
    if not units:
        return "gopher_short_doc"
    dense = language in DENSE
    return (
        _repeated_lines(text, thresholds)
        or _repeated_words(text, units, thresholds, dense)
        or _lines(text, len(units) / (CHARS_A_WORD if dense else 1), thresholds)
        or _words(text, units, thresholds, dense)
    )


def _duplicates(pieces: Sequence[str]) -> tuple[int, int]:
    """How many pieces repeat an earlier one, and their characters."""
    counts = Counter(pieces)
    return len(pieces) - len(counts), sum(len(piece) * (number - 1) for piece, number in counts.items())


def _repeated_lines(text: str, limits: Thresholds) -> str | None:
    if limits.dup_paragraphs is not None and limits.dup_paragraph_chars is not None:
        paragraphs = _PARAGRAPHS.split(text.strip())
        count, letters = _duplicates(paragraphs)
        if count / len(paragraphs) > limits.dup_paragraphs:
            return "dup_para_frac"
        if letters / len(text) > limits.dup_paragraph_chars:
            return "dup_para_char_frac"
    lines = _LINES.split(text)
    count, letters = _duplicates(lines)
    if count / len(lines) > limits.dup_lines:
        return "dup_line_frac"
    if limits.dup_line_chars is not None and letters / len(text) > limits.dup_line_chars:
        return "dup_line_char_frac"
    return None


def _repeated_words(text: str, units: Sequence[str], limits: Thresholds, dense: bool) -> str | None:
    # Hashes stand for n-grams: two that are equal by chance are one in 2^64.
    hashes = np.fromiter(map(hash, units), np.int64, len(units)).view(np.uint64)
    ends = np.cumsum([0, *map(len, units)])
    if not dense:
        for size, share in limits.top_n_grams:
            if size <= len(units):
                _, first, counts = np.unique(_ngrams(hashes, size), return_index=True, return_counts=True)
                # Of the commonest ones, the one that comes first.
                place = int(first[counts == counts.max()].min())
                letters = ends[place + size] - ends[place] + size - 1
                if letters * counts.max() / len(text) > share:
                    return f"top_{size}_gram"
    for size, share in limits.dup_n_grams:
        length = round(size * CHARS_A_WORD) if dense else size
        if _repeats_more(_ngrams(hashes, length), ends, length, share * len(text)):
            return f"duplicated_{size}_n_grams"
    return None


def _ngrams(hashes: np.ndarray, size: int) -> np.ndarray:
    """A hash for each n-gram of `size` units in order, uint64."""
    count = max(0, len(hashes) - size + 1)
    grams = np.zeros(count, np.uint64)
    for i in range(size):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + count]
    return grams


def _repeats_more(grams: np.ndarray, ends: np.ndarray, size: int, most: float) -> bool:
    """Whether n-grams that stood before have more than `most` characters, none counted twice.

    grams: of _ngrams. ends: of the units, in characters, int [n + 1].
    """
    _, first = np.unique(grams, return_index=True)
    if len(first) == len(grams):
        return False
    # What all repeated n-grams cover together is an upper bound, and mostly settles it.
    again = np.ones(len(grams), bool)
    again[first] = False
    starts = np.flatnonzero(again)
    after = np.minimum(np.r_[starts[1:], len(ends)], starts + size)
    if (ends[after] - ends[starts]).sum() <= most:
        return False
    seen: set[int] = set()
    total = place = 0
    listed = grams.tolist()
    while place < len(listed):
        if listed[place] in seen:
            total += int(ends[place + size] - ends[place])
            place += size
        else:
            seen.add(listed[place])
            place += 1
    return total > most


def _lines(text: str, words: float, limits: Thresholds) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if sum(line.endswith(_ENDINGS) for line in lines) / len(lines) < limits.line_punct:
        return "line_punct_ratio"
    if limits.short_lines is not None:
        if sum(len(line) <= _SHORT_LINE for line in lines) / len(lines) > limits.short_lines:
            return "short_line_ratio"
    if _duplicates(lines)[1] / len(text.replace("\n", "")) > limits.char_duplicates:
        return "char_dup_ratio"
    return "list_ratio" if text.count("\n") / words > limits.new_lines else None


def _words(text: str, units: Sequence[str], limits: Thresholds, dense: bool) -> str | None:
    scale = CHARS_A_WORD if dense else 1
    counts = Counter(units)
    real = {
        word: number for word, number in counts.items() if word[0].isalnum() or not PUNCTUATION_SET.issuperset(word)
    }
    total = sum(real.values())
    if total < limits.least_words * scale:
        return "gopher_short_doc"
    mean = sum(len(word) * number for word, number in real.items()) / total
    if not dense and mean < limits.word_length[0]:
        return "gopher_below_avg_threshold"
    if not dense and mean > limits.word_length[1]:
        return "gopher_above_avg_threshold"
    words = len(units) / scale
    if text.count("#") / words > limits.symbols:
        return "gopher_too_many_hashes"
    if (text.count("...") + text.count("…")) / words > limits.symbols:
        return "gopher_too_many_ellipsis"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > limits.bullets:
        return "gopher_too_many_bullets"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > limits.ellipses:
        return "gopher_too_many_end_ellipsis"
    if not dense and sum(any(map(str.isalpha, word)) for word in units) / len(units) < limits.alpha_words:
        return "gopher_below_alpha_threshold"
    there = (
        {word for word in limits.stop_words if word in text} if dense else set(limits.stop_words).intersection(units)
    )
    return "gopher_enough_stop_words" if len(there) < limits.least_stop_words else None


def changed_thresholds(settings: QualitySettings) -> dict[str, Thresholds]:
    """THRESHOLDS with what the settings change. Raises UserError for a language or a field that there is not."""
    changed = dict(THRESHOLDS)
    for language, fields in settings.thresholds.items():
        if language not in THRESHOLDS:
            raise UserError(f"quality thresholds: no language {language!r}")
        try:
            changed[language] = Thresholds(**{**vars(THRESHOLDS[language]), **fields})
        except TypeError as error:
            names = ", ".join(sorted(set(fields) - set(vars(THRESHOLDS[language]))))
            raise UserError(f"quality thresholds of {language}: no field {names}") from error
    return changed


def load_scorer(name: str) -> Callable[[str, str], float]:
    """The function of "module:function". Raises UserError where there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if module and function else None
    except (ImportError, AttributeError) as error:
        raise UserError(f"scorer {name!r}: {error}") from error
    if not callable(found):
        raise UserError(f"scorer {name!r} is not written module:function")
    return found


class QualityFilter(DocumentFilter):
    """Step: keeps documents that break no rule and that the scorer gives enough.

    A scorer's number is left as `quality_score` in the metadata. Raises UserError where it gives something else.
    """

    name = "quality"
    _lazy = ("_scorer", "_thresholds")

    def __init__(self, settings: QualitySettings | None = None, exclusion_writer=None) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings or QualitySettings()
        self._thresholds: dict[str, Thresholds] | None = changed_thresholds(self.settings)
        self._scorer: Callable[[str, str], float] | None = None

    def judge(self, doc) -> str | None:
        language = doc.metadata.get("language", "")
        if self.settings.rules:
            if self._thresholds is None:
                self._thresholds = changed_thresholds(self.settings)
            if language not in self._thresholds:
                return "no quality thresholds for its language"
            if reason := judge_quality(doc.text, language, self._thresholds[language]):
                return reason
        return self._judge_score(doc, language) if self.settings.scorer else None

    def _judge_score(self, doc, language: str) -> str | None:
        self._scorer = self._scorer or load_scorer(self.settings.scorer)
        try:
            score = float(self._scorer(doc.text, language))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"scorer {self.settings.scorer!r} gives no number for document {doc.id}: {error}"
            ) from error
        doc.metadata["quality_score"] = score
        # A score that is not a number (nan) is below every threshold.
        return None if score >= self.settings.least_score else "low quality score"
