"""Near duplicates: known parents, innocents, doses, order, an earlier corpus; the hashes against their definition."""

import random
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.corpus.near_duplicates import (
    NearSettings,
    Signatures,
    Signer,
    doses,
    near_duplicates,
    ngram_hashes,
    word_hashes,
)
from data_gen.corpus.removal import id_key
from mmed_jax.common.errors import UserError, WorkError
from tests.data_gen.corpus.corpus_texts import MEDICAL, ORDINARY

ASK = NearSettings()
LEAFLET = (
    "Swallow the tablets whole with a glass of water, if possible always at the same time of the day. Take {} mg "
    "every {} hours for {} days. Do not take more than your doctor has prescribed. If you forget a dose, take it "
    "as soon as you remember, unless it is almost time for the next one. Keep this medicine out of the sight and "
    "reach of children. Do not store above 25 °C. Ask your pharmacist how to throw away medicines that you no "
    "longer use. These measures will help to protect the environment. If you get any side effects, talk to your "
    "doctor, pharmacist or nurse."
)


def words(rng: random.Random, count: int) -> list[str]:
    return [f"word{rng.randrange(5000)}" for _ in range(count)]


def gone(
    documents: list[tuple[str, str, str]], settings=ASK, earlier: frozenset[str] = frozenset(), parts=1
) -> set[str]:
    tables = [Signatures.of(documents[i::parts], settings) for i in range(parts)]
    ordered = [doc for i in range(parts) for doc in documents[i::parts] if len(word_hashes(doc[1]))]
    removals = near_duplicates(
        Signatures.joined(tables), settings, np.array([name in earlier for name, _, _ in ordered], bool)
    ).stays_for()
    return {name for name, _, _ in documents if id_key(name) in removals}


@pytest.fixture(scope="module")
def collection():
    """200 documents, and of every fourth a copy with one of its 150 words changed."""
    rng = random.Random(3)
    documents, copies = [], {}
    for i in range(200):
        text = words(rng, 150)
        documents.append((f"d{i}", " ".join(text), "en"))
        if i % 4 == 0:
            text[rng.randrange(150)] = "changed"
            documents.append((f"copy of d{i}", " ".join(text), "en"))
            copies[f"d{i}"] = f"copy of d{i}"
    return documents, copies


def test_known_copies_go_and_innocents_stay(collection):
    documents, copies = collection
    removed = gone(documents)
    assert len(removed) == 50 and all((one in removed) != (other in removed) for one, other in copies.items())


def test_neither_order_nor_tasks_decide(collection):
    documents, _ = collection
    expected = gone(documents)
    for seed, parts in ((0, 1), (1, 2), (2, 7)):
        assert gone(random.Random(seed).sample(documents, len(documents)), parts=parts) == expected


def test_what_goes_is_like_what_stays_for_it():
    """Windows of one long text, each like its neighbours and unlike the far ones: a chain, of which not all may go."""
    rng = random.Random(9)
    text = words(rng, 1000)
    documents = [(f"w{i}", " ".join(text[i * 10 : i * 10 + 200]), "en") for i in range(80)]
    table = Signatures.of(documents, ASK)
    names = {id_key(name): frozenset(ngram_hashes(word_hashes(part), 5).tolist()) for name, part, _ in documents}
    stays_for = near_duplicates(table, ASK).stays_for()
    shares = [len(names[a] & names[b]) / len(names[a] | names[b]) for a, b in stays_for.items()]
    assert 30 < len(shares) < 78 and min(shares) > 0.55
    assert not set(stays_for.values()) & set(stays_for)


def test_leaflets_that_differ_in_doses_all_stay():
    strengths = [(5, 8, 3), (50, 8, 3), (5, 6, 3), (5, 8, 30)]
    leaflets = [(f"l{i}", LEAFLET.format(*strength), "en") for i, strength in enumerate(strengths)]
    reprint = ("reprint", LEAFLET.format(5, 8, 3).replace("throw away", "dispose of") + " Page 7.", "en")
    assert gone(leaflets) == set()
    removed = gone([*leaflets, reprint])
    assert len(removed) == 1 and removed < {"l0", "reprint"}
    assert len(gone(leaflets, NearSettings(doses=False))) == 3


def test_doses_are_read_in_every_language():
    assert doses("Take 5 mg every 8 hours; 0.5-ml, page 12, in 2024, 37.5 °C, 500mg.") == {
        *("5mg", "8hours", "0.5ml", "37.5°c", "500mg")
    }
    for text in ("2 comprimés", "3 días", "10 мг", "每天3次", "１回２錠", "하루 3회", "5日間", "10%"):
        assert len(doses(text)) >= 1, text
    assert doses("Chapter 3 of 12, room B5, in 1999; 3rd, 12 lines; 2024年5月3日, 3時5分, 5월 3일") == frozenset()


def test_short_documents_and_other_languages():
    short = [("a", "Take two.", "en"), ("b", "take — two", "en"), ("c", "Take two.", "fr"), ("d", "Take three.", "en")]
    assert len(gone(short)) == 1 and gone(short) < {"a", "b"}
    assert gone([("a", "...", "en"), ("b", "...", "en")]) == set() == gone([])
    for code in ("zh", "ja", "ko"):
        text = MEDICAL[code] + ORDINARY[code]
        other = text[:40] + "X" + text[41:]
        assert len(gone([("a", text, code), ("b", other, code), ("c", ORDINARY[code] * 2, code)])) == 1


def test_an_earlier_corpus(collection):
    documents, copies = collection
    old = frozenset(copies.values())
    assert gone(documents, earlier=old) == set(copies)
    assert gone(documents, earlier=old | set(copies)) == set()


def plain_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).lower()
    return re.findall(
        r"[\u3041-\u3096\u30a1-\u30fa\u30fc\u4e00-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff]|[^\W_\u3041-\uffff\U00020000-\U0003ffff]+",
        text,
    )


@given(
    st.lists(
        st.sampled_from(["ab", "Ab", "a", "1", "12", " ", ".", "_", "肝", "炎", "간", "é", "ー", "\U00020000", "😀"])
    )
)
def test_words_are_those_of_the_definition(pieces):
    text = "".join(pieces)
    hashes, expected = word_hashes(text).tolist(), plain_words(text)
    assert len(hashes) == len(expected)
    assert len({*zip(hashes, expected)}) == len({*hashes}) == len({*expected})


def test_agreement_of_hashes_is_the_share_of_common_ngrams():
    rng, signer, errors = random.Random(5), Signer(NearSettings(bands=64, rows=8)), []
    for changed in (0, 3, 8, 20):
        one = words(rng, 300)
        other = list(one)
        for place in rng.sample(range(300), changed):
            other[place] = "x"
        grams = [set(ngram_hashes(word_hashes(" ".join(text)), 5).tolist()) for text in (one, other)]
        share = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        agree = np.mean(signer.hashes(" ".join(one)) == signer.hashes(" ".join(other)))
        errors.append(abs(agree - share))
    assert errors[0] == 0 and max(errors) < 4 * 0.5 / 512**0.5


def test_signatures_are_kept_on_disk(tmp_path):
    table = Signatures.of([("a", LEAFLET, "en"), ("b", "...", "en")], ASK)
    table.save(tmp_path / "s.npz")
    loaded = Signatures.load(tmp_path / "s.npz")
    assert len(loaded.ids) == 1 and np.array_equal(loaded.keys, table.keys) and loaded.checks.shape == (1, 112)
    assert loaded.keys[0, 0] == FIRST_KEY, "signatures of earlier corpora would not fit any more"
    (tmp_path / "s.npz").write_bytes(b"PK")
    with pytest.raises(WorkError, match="no signatures of documents"):
        Signatures.load(tmp_path / "s.npz")
    with pytest.raises(UserError, match="least=2"):
        NearSettings(least=2)


FIRST_KEY = 16931602167864090632
