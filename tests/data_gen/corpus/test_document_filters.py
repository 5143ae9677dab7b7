"""Language, exact duplicates, removal by id."""

import hashlib
import random
import unicodedata

import numpy as np
import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from data_gen.corpus.exact_duplicates import exact_duplicates, text_key
from data_gen.corpus.language import OTHER, LanguageFilter, LanguageSettings, judge_language, sample
from data_gen.corpus.removal import Removals, RemoveDocuments, id_key, key_array
from data_gen.corpus.text_forms import nfkc
from mmed_jax.common.errors import UserError, WorkError
from tests.data_gen.corpus.corpus_texts import MEDICAL, ORDINARY

GERMAN = "Der Patient wurde mit Fieber und Atemnot aufgenommen. Die Untersuchung zeigte eine Entzündung der Lunge. " * 3


@pytest.mark.parametrize("code", MEDICAL)
def test_languages_are_recognised_and_wrong_tags_dropped(code):
    ask = LanguageSettings()
    assert judge_language(MEDICAL[code], None, ask) == (code, None)
    assert judge_language(ORDINARY[code], code, ask) == (code, None)
    wrong = "en" if code != "en" else "fr"
    assert judge_language(MEDICAL[code], wrong, ask) == (wrong, "another language than stated")
    assert judge_language(MEDICAL[code], wrong, LanguageSettings(stated="ignored")) == (code, None)
    assert judge_language(MEDICAL[code], wrong, LanguageSettings(stated="trusted")) == (wrong, None)


def test_other_languages_and_too_little_text():
    ask = LanguageSettings(("fr", "zh"))
    assert judge_language(MEDICAL["en"], None, ask) == ("en", OTHER)
    assert judge_language(GERMAN, None, ask) == (None, "language unknown")
    assert judge_language("12 34", None, ask) == (None, "language unknown")
    assert judge_language("x", "de", ask) == ("de", OTHER)
    traditional = "患者因發熱、咳嗽和呼吸困難入院，實驗室檢查顯示白細胞升高，診斷為肺炎，給予藥物治療。"
    assert judge_language(traditional, "zh", ask) == ("zh", None)
    assert judge_language(traditional, None, LanguageSettings(simplified=True)) == ("zh", OTHER)
    with pytest.raises(UserError, match="'kr': unknown"):
        LanguageSettings(("kr",))


def test_a_long_document_is_judged_by_three_places():
    long = MEDICAL["en"] + 300 * MEDICAL["fr"] + MEDICAL["en"]
    assert len(sample(long)) <= 902 and all(part in long for part in sample(long).split("\n"))
    assert sample(long[:900]) == long[:900] and len(sample(long[:901])) == 902
    assert judge_language(long, None, LanguageSettings()) == ("fr", None)
    docs = [Document(long, "a"), Document(GERMAN, "b")]
    assert [doc.metadata for doc in LanguageFilter().run(iter(docs))] == [{"language": "fr"}]


def found(documents: list[tuple[str, str, str]], earlier: set[str] = frozenset()) -> set[str]:
    """Ids that go, of (id, language, text)."""
    keys = np.frombuffer(b"".join(text_key(t, lang) for _, lang, t in documents), np.uint8).reshape(-1, 32)
    ids = key_array([id_key(name) for name, _, _ in documents])
    removals = exact_duplicates(keys, ids, np.array([name in earlier for name, _, _ in documents], bool))
    gone = removals.stays_for()
    return {name for name, _, _ in documents if id_key(name) in gone}


LEAFLET = "Take {} mg every {} hours for {} days."
DOCUMENTS = [
    ("a", "en", LEAFLET.format(5, 8, 3)),
    ("b", "en", "take  5 MG\nevery 8 hours for 3 days."),
    ("c", "en", "Take ５ mg every 8 hours for 3 days. "),
    ("d", "en", LEAFLET.format(50, 8, 3)),
    ("e", "fr", LEAFLET.format(5, 8, 3)),
    ("f", "en", "x"),
    ("g", "en", "x"),
    ("h", "en", ""),
]


def test_exact_duplicates_whatever_the_order():
    first = found(DOCUMENTS)
    assert len(first & {"a", "b", "c"}) == 2 and len(first & {"f", "g"}) == 1 and not first & {"d", "e", "h"}
    for seed in range(5):
        assert found(random.Random(seed).sample(DOCUMENTS, len(DOCUMENTS))) == first
    assert found([]) == set()


def test_an_earlier_corpus_keeps_what_it_has():
    assert found(DOCUMENTS, {"b"}) >= {"a", "c"} and "b" not in found(DOCUMENTS, {"b"})
    assert not found(DOCUMENTS, {"a", "b", "c"}) & {"a", "b", "c"}


@given(st.text("，？％~＝/e\u0338\u0301\n…①Ａ肝가\u1100\u1161 ", max_size=12))
def test_nfkc_is_that_of_unicode(text):
    assert nfkc(text) == unicodedata.normalize("NFKC", text)


def test_text_keys_are_of_this_form():
    """They are kept on disk between corpora, so that a change of the form has to be noticed."""
    assert text_key("A  b\nÉ", "fr") == hashlib.sha256("fr\na b é".encode()).digest()


def test_removal_is_by_id_and_not_by_position(tmp_path):
    keys = np.frombuffer(b"".join(text_key(t, lang) for _, lang, t in DOCUMENTS), np.uint8)
    removals = exact_duplicates(keys, key_array([id_key(name) for name, _, _ in DOCUMENTS]))
    removals.save(tmp_path / "gone.npy")
    assert Removals.load(tmp_path / "gone.npy").stays_for() == removals.stays_for() and len(removals) == 3
    step = RemoveDocuments(tmp_path / "gone.npy", "exact duplicate")
    docs = [Document(t, name, metadata={"language": lang}) for name, lang, t in DOCUMENTS]
    # A document that was not there when duplicates were looked for stands before all others.
    kept = [doc.id for doc in step.run(iter([Document("new", "new"), *reversed(docs)]))]
    assert kept[0] == "new" and set(kept[1:]) == {name for name, _, _ in DOCUMENTS} - found(DOCUMENTS)
    assert step.stats["dropped_exact duplicate"].total == 3
    assert {doc.metadata.get("duplicate_of") for doc in docs if doc.id in "abc"} > {None}
    (tmp_path / "gone.npy").write_bytes(b"")
    with pytest.raises(WorkError, match="not a list of removals"):
        Removals.load(tmp_path / "gone.npy")
