"""Families stay whole, and licences say who may have a row."""

import numpy as np
import pytest

from data_gen.sets.groups import Families, validation_rows
from data_gen.sets.licenses import allowed, terms
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import LANGUAGES, group_ids
from mmed_jax.data.sources import SOURCES


def record(ident: str, question: str, language: str = "en", **provenance) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "x"}]
    return {"id": ident, "language": language, "messages": messages, "provenance": provenance}


def numbers(records: list[dict]) -> list[int]:
    families = Families()
    for r in records:
        families.add(r)
    return families.numbers().tolist()


def test_parents_groups_and_questions_tie_rows():
    rows = [
        record("a", "What is gout?"),
        record("b", "What is asthma?"),
        record("a@ko", "통풍이란?", "ko", parent="a", group="a"),
        record("a@ko@fr", "La goutte ?", "fr", parent="a@ko"),
        record("c", "what is  ASTHMA?"),
        record("d", "Autre", "fr", group="g"),
        record("e", "Otra", "es", group="g"),
    ]
    assert numbers(rows) == [0, 1, 0, 0, 1, 2, 2]


def test_without_parents_they_are_the_groups_of_the_schema():
    rng = np.random.default_rng(0)
    rows = [record(f"r{i}", f"q{rng.integers(60)}", group=f"g{rng.integers(60)}") for i in range(80)]
    assert numbers(rows) == group_ids(rows)


def test_a_passage_and_what_was_asked_of_it():
    passage = {"id": "p-1", "language": "ru", "text": "...", "provenance": {}}
    assert numbers([passage, record("p-1#1", "Q?", "ru", parent="p-1", group="p-1")]) == [0, 0]


def test_validation_takes_whole_families_of_every_language():
    rng = np.random.default_rng(1)
    families = np.sort(rng.integers(0, 900, 3000))
    _, families = np.unique(families, return_inverse=True)
    languages = rng.integers(0, len(LANGUAGES), 3000)
    hashes = np.array([stable_hash(0, i) for i in range(3000)], np.uint64)
    held = validation_rows(families, languages, hashes, 0.05)
    assert not set(families[held]) & set(families[~held])
    for language in range(len(LANGUAGES)):
        share = held[languages == language].mean()
        assert 0.049 <= share < 0.13
    assert np.array_equal(held, validation_rows(families, languages, hashes, 0.05))
    assert not validation_rows(families, languages, hashes, 0.0).any()
    assert not validation_rows(np.zeros(60, int), np.zeros(60, int), hashes[:60], 0.1).any()  # one family: training


def test_the_split_does_not_depend_on_the_order_of_rows():
    families, languages = np.arange(200) // 2, np.zeros(200, int)
    hashes = np.array([stable_hash(3, i) for i in range(200)], np.uint64)
    order = np.random.default_rng(0).permutation(200)
    held = validation_rows(families, languages, hashes, 0.1)
    assert np.array_equal(validation_rows(families[order], languages[order], hashes[order], 0.1), held[order])


@pytest.mark.parametrize(
    "text, kind",
    [
        ("MIT", "open"),
        ("Apache-2.0", "open"),
        ("CC BY 4.0", "open"),
        ("public domain (US Government work)", "open"),
        ("CC BY-SA 4.0", "share-alike"),
        ("CC BY-NC 4.0", "non-commercial"),
        ("CC BY-NC-SA 3.0 IGO", "non-commercial"),
        ("none stated", "none"),
        ("unspecified", "none"),
        ("MIT, CC BY-NC 2.0", "non-commercial"),
        ("Korean public-sector data (MFDS), licence line unverified", "unverified"),
        ("GPL-3.0", "share-alike"),
        ("submitted by a user", "none"),
    ],
)
def test_terms(text: str, kind: str):
    assert terms(text).kind == kind


def test_filters():
    assert allowed("MIT", "open") and allowed("CC BY-SA 4.0", "open")
    assert not allowed("CC BY-NC 2.0", "open") and not allowed("none stated", "open")
    assert allowed("CC BY-NC 2.0", "research") and not allowed("none stated", "research")
    assert allowed("none stated", "research", also=("none stated",))
    with pytest.raises(UserError, match="did you mean 'open'"):
        allowed("MIT", "opn")


def test_every_source_has_terms_that_are_known():
    strict = {name for name, s in SOURCES.items() if terms(s.license).kind == "none"}
    assert strict == {"igakuqa"}


def test_licences_without_derivatives_are_not_open():
    for text in ("CC BY-ND 4.0", "CC BY-NC-ND 4.0", "Creative Commons Attribution-NoDerivatives"):
        assert terms(text).kind == "no-derivatives" and not allowed(text, "open") and not allowed(text, "research")
        assert allowed(text, "open", also=(text,))
    assert allowed("CC BY 4.0", "open")
