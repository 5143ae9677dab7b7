"""The search for near duplicates beside datatrove's MinHash: the same n-grams, the same bands, the same curve.

The hash functions are others (there SHA-1 of each n-gram and a prime of 61 bits, here one multiplication a word), so
the numbers of a signature differ. What they decide must not: which n-grams a text has, which documents meet in a band
where the hashes are the same ones, and how often two of a given similarity do. What this project does beyond it (doses,
comparison by all hashes, no chains) has its tests in test_near_duplicates.py.
"""

import random
from itertools import combinations

import numpy as np
import pytest
from datatrove.pipeline.dedup.minhash import HashConfig, MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import TextNormConfig

from data_gen.corpus.near_duplicates import (
    NearSettings,
    Signer,
    candidate_pairs,
    ngram_hashes,
    word_hashes,
)
from tests.data_gen.corpus.corpus_texts import MEDICAL, ORDINARY
from tests.support.datatrove_words import Words

SETTINGS = NearSettings(doses=False, least=0)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Their step with 14 x 8 hashes of 64 bits by SHA-1; numbers and accents stay."""
    norm = TextNormConfig(norm_numbers=False, norm_unicode_diacritics=False)
    config = MinhashConfig(norm_config=norm, hash_config=HashConfig(precision=64, hash_fc="sha1"))
    step = MinhashDedupSignature(str(tmp_path_factory.mktemp("sigs")), config, language=Words())
    return step


def variants() -> list[str]:
    """Texts of seven languages, each with copies of which more and more is another text's."""
    rng, texts = random.Random(0), []
    for language, text in MEDICAL.items():
        for other in (ORDINARY[language], text.replace("3", "4"), text):
            at = rng.randrange(len(text))
            texts.append(text[:at] + other[:40] + text[at:])
        texts += [text, text[: len(text) // 2], ORDINARY[language]]
    return texts


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def test_texts_have_the_same_n_grams(theirs):
    """Similarities of all pairs, exactly."""
    texts = variants()
    ours = [set(ngram_hashes(word_hashes(t), SETTINGS.n_grams).tolist()) for t in texts]
    reference = [set(theirs.get_shingles(t).ravel().tolist()) for t in texts]
    assert [len(grams) for grams in ours] == [len(grams) for grams in reference]
    pairs = list(combinations(range(len(texts)), 2))
    assert [jaccard(ours[i], ours[j]) for i, j in pairs] == [jaccard(reference[i], reference[j]) for i, j in pairs]
    assert sum(0.3 < jaccard(ours[i], ours[j]) < 1 for i, j in pairs) > 40


def joined(pairs, count: int) -> list[int]:
    """For each document the smallest that it is connected with."""
    group = list(range(count))
    for one, other in sorted(map(sorted, pairs)):
        a, b = group[one], group[other]
        group = [min(a, b) if g in (a, b) else g for g in group]
    return group


def test_the_same_hashes_meet_in_the_same_bands(theirs):
    """Their signatures through our bands: the documents that share a bucket there, and no others."""
    texts, signer = variants(), Signer(SETTINGS)
    signatures = [theirs.get_signature(theirs.get_shingles(t)) for t in texts]
    reference = {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if any(a == b for a, b in zip(signatures[i], signatures[j]))
    }
    keys = np.array([signer.keys(np.array(s, np.uint64).ravel(), "", None) for s in signatures])
    pairs = {tuple(pair) for pair in candidate_pairs(keys).tolist()}
    assert pairs <= reference and joined(pairs, len(texts)) == joined(reference, len(texts))
    assert 10 < len(reference) < len(texts) ** 2 / 4


def test_pairs_of_a_similarity_meet_as_often(theirs):
    """Pairs of 0.55 to 0.95, the same ones for both; within four standard deviations of 1 - (1 - s^8)^14."""
    rng, signer = random.Random(1), Signer(SETTINGS)
    counts, expected, variance = np.zeros(2), 0.0, 0.0
    for number in range(100):
        words = [f"word{rng.randrange(10**6)}" for _ in range(120)]
        other = list(words)
        for place in rng.sample(range(0, 120, 8), 1 + number % 6):
            other[place] = "changed"
        texts = " ".join(words), " ".join(other)
        grams = [set(theirs.get_shingles(t).ravel().tolist()) for t in texts]
        meet = 1 - (1 - jaccard(*grams) ** SETTINGS.rows) ** SETTINGS.bands
        expected, variance = expected + meet, variance + meet * (1 - meet)
        one, two = (theirs.get_signature(theirs.get_shingles(t)) for t in texts)
        counts[0] += any(a == b for a, b in zip(one, two))
        keys = [signer.keys(signer.hashes(t), t, None) for t in texts]
        counts[1] += (keys[0] == keys[1]).any()
    assert 30 < expected < 90 and np.all(np.abs(counts - expected) < 4 * variance**0.5), (counts, expected)
