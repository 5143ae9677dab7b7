"""Quality rules: equal to datatrove's with the same words, published thresholds, other scripts, a scorer."""

import pickle

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.corpus.quality import QualityFilter, QualitySettings, judge_quality, split_words
from data_gen.corpus.quality_thresholds import THRESHOLDS
from mmed_jax.common.errors import UserError
from tests.data_gen.corpus.corpus_texts import MEDICAL, ORDINARY

CODES = list(THRESHOLDS)
PIECES = [
    *(
        "the patient has a fever.",
        "and with",
        "of",
        "well-being isn't",
        "#",
        "...",
        "…",
        "- item",
        "• item",
        "12 34 5",
        "3.5",
    ),
    *("\n", "\n", "\n\n", "The patient was admitted to the ward with fever and that was all.", "internationalisation"),
    "A second sentence of the same document, which is long enough to be a line of its own!",
]


def datatrove_verdict(text: str, limits) -> str | None:
    """Of datatrove's three filters, in FineWeb-2's order, given our words."""
    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        module.split_into_words = lambda text, language: split_words(text)
    filters = (
        GopherRepetitionFilter(
            limits.dup_lines,
            limits.dup_paragraphs,
            limits.dup_line_chars,
            limits.dup_paragraph_chars,
            limits.top_n_grams,
            limits.dup_n_grams,
        ),
        FineWebQualityFilter(
            line_punct_thr=limits.line_punct,
            short_line_thr=limits.short_lines or 999,
            char_duplicates_ratio=limits.char_duplicates,
            new_line_ratio=limits.new_lines,
        ),
        GopherQualityFilter(
            min_doc_words=limits.least_words,
            max_doc_words=None,
            min_avg_word_length=limits.word_length[0],
            max_avg_word_length=limits.word_length[1],
            max_non_alpha_words_ratio=limits.alpha_words,
            stop_words=list(limits.stop_words),
        ),
    )
    for step in filters:
        verdict = step.filter(Document(text, "0"))
        if verdict is not True:
            return verdict[1]
    return None


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """datatrove's modules get their function back after a test."""
    for module in (fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter):
        monkeypatch.setattr(module, "split_into_words", module.split_into_words)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=40), st.sampled_from(["en", "fr", "es", "ru"]))
def test_the_rules_are_those_of_datatrove(pieces, language):
    text = " ".join(pieces)
    if text.strip():
        limits = THRESHOLDS[language]
        assert judge_quality(text, language, limits) == datatrove_verdict(text, limits)


PAGES = {code: "\n".join((MEDICAL[code], ORDINARY[code])) for code in CODES}


@pytest.mark.parametrize("code", CODES)
def test_plain_pages_pass_and_broken_ones_do_not(code):
    limits = THRESHOLDS[code]
    assert judge_quality(PAGES[code], code, limits) is None
    assert judge_quality(MEDICAL[code][:30], code, limits) is not None
    line = MEDICAL[code]
    assert judge_quality("\n".join([line] * 6), code, limits) in ("dup_line_frac", "dup_para_frac")
    again = (line[: len(line) // 2] + " ") * 6
    assert judge_quality(again, code, limits).startswith(("duplicated_", "top_"))
    menu = "\n".join(f"{word}{i}" for i, word in enumerate([ORDINARY[code][5:9]] * 60))
    assert judge_quality(menu, code, limits) is not None
    assert judge_quality(" \n", code, limits) == "empty"


def test_short_documents_pass_where_asked_for():
    short = {"language": "en"}
    page = MEDICAL["en"].partition(" Comorbid")[0] + " And of course the ward is open to visitors."
    assert QualityFilter().judge(Document(page, "0", metadata=short)) == "gopher_short_doc"
    step = QualityFilter(QualitySettings(thresholds={"en": {"least_words": 10}}))
    assert pickle.loads(pickle.dumps(step)).judge(Document(page, "0", metadata=short)) is None
    assert QualityFilter().judge(Document(page, "0")) == "no quality thresholds for its language"
    with pytest.raises(UserError, match="no field min_words"):
        QualityFilter(QualitySettings(thresholds={"en": {"min_words": 10}}))
    with pytest.raises(UserError, match="no language 'pl'"):
        QualityFilter(QualitySettings(thresholds={"pl": {}}))


def test_a_scorer_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "toy_scorer.py").write_text(
        "def vowels(text, language):\n    return sum(c in 'aeiou' for c in text) / len(text)\n"
        "def nothing(text, language):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    step = QualityFilter(QualitySettings(rules=False, scorer="toy_scorer:vowels", least_score=0.5))
    good, bad = Document("aaab", "g"), Document("abbb", "b")
    assert [doc.id for doc in step.run(iter([good, bad]))] == ["g"]
    assert good.metadata["quality_score"] == 0.75 and step.stats["dropped_low quality score"].total == 1
    assert pickle.loads(pickle.dumps(step)).judge(bad) == "low quality score"
    for name, problem in (
        ("toy_scorer:gone", "no attribute 'gone'"),
        ("no_such_module:f", "No module named"),
        ("toy_scorer", "not written module:function"),
        ("toy_scorer:nothing", "gives no number for document g"),
    ):
        with pytest.raises(UserError, match=problem):
            QualityFilter(QualitySettings(rules=False, scorer=name)).judge(good)
