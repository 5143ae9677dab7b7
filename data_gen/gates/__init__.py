"""Gates: each takes (job, record), raises Reject(reason code) or returns a soft finding for provenance.flags, or None.

They see generated rows only; verdicts are never stored, they are found anew from the ledger's answers at every run, so
that a changed threshold costs nothing. What needs the whole set (duplicates, contamination, balance of the letters) is
in data_gen.sets.dedup, data_gen.sets.contamination and data_gen.gates.letter_balance.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from data_gen.gates import answer_key, faithfulness, text_quality
from mmed_jax.llm_api.types import Job

Gate = Callable[[Job, dict], None | str]

# Every threshold, with the value used where a recipe says nothing.
THRESHOLDS: dict[str, Any] = {
    # Share of letters in scripts of other languages from which a text counts as mixed.
    "foreign_script": 0.25,
    # An answer that is this share of its passage, or more, is a copy of it.
    "quoted_passage": 0.9,
    # Letters (a Han, kana or hangul character counts 2.5) of the answer or rationale, by method: those of the methods
    # are set by their classes.
    "shortest": {"original": 2},
    "longest": {"original": 40000},
    # Length of a translation by that of its source, both counted as above.
    "length_ratio": (0.35, 2.8),
    # Less than this share of different n-grams is a loop.
    "distinct_ngrams": 0.35,
    # Share of an option's text by which a rationale without letters names it, and whether one must be named.
    "key_stated": 0.6,
    "key_required": True,
    # Share of the given answer's wording that an expanded one must hold.
    "facts_kept": 0.5,
    # Numbers that a long translated text may lack, flagged.
    "numbers_tolerated": 1,
}


# What explains more comes first: a refusal in English is a refusal, not a wrong language.
TEXT = (
    text_quality.refusal,
    text_quality.boilerplate,
    text_quality.copy,
    text_quality.language,
    text_quality.length,
    text_quality.repetition,
)
# Of rows as the sources give them.
SOURCE = (text_quality.language, text_quality.length)


def with_thresholds(gates: Iterable[Callable], thresholds: dict) -> list[Gate]:
    """The gates with their thresholds; `thresholds` has every key of THRESHOLDS."""
    t = thresholds
    settings: dict[Callable, dict] = {
        text_quality.language: {"foreign": t["foreign_script"]},
        text_quality.copy: {"quoted": t["quoted_passage"]},
        text_quality.length: {"shortest": t["shortest"], "longest": t["longest"], "ratio": tuple(t["length_ratio"])},
        text_quality.repetition: {"distinct": t["distinct_ngrams"]},
        answer_key.key: {"stated": t["key_stated"], "required": t["key_required"]},
        faithfulness.facts: {"kept": t["facts_kept"]},
        faithfulness.numbers: {"tolerated": t["numbers_tolerated"]},
    }
    return [partial(gate, **settings[gate]) if gate in settings else gate for gate in gates]
