"""Duplicates within a set: exact, near, and what only looks like one."""

import random
import tracemalloc

import numpy as np
import pytest

from data_gen.gates.ngrams import normal_text, shingles, text_key
from data_gen.sets.dedup import Deduplicator


def dialogue(ident: str, question: str, answer: str, language: str = "en") -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": ident, "language": language, "messages": messages, "provenance": {}}


def mcq(ident: str, question: str, options: list[str], answer: str, language: str = "en", rationale: str = "") -> dict:
    return {
        "id": ident,
        "language": language,
        "question": question,
        "options": dict(zip("ABCDE", options)),
        "answer_idx": answer,
        "rationale": rationale,
        "provenance": {},
    }


def words(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(count)]


def found(records: list[dict], **options) -> list[tuple[int, int]]:
    dedup = Deduplicator(**options)
    for record in records:
        dedup.add(record)
    return [(row, earlier) for row, earlier, _ in dedup.duplicates()]


def test_exact_copies_in_other_writing():
    text = "Aspirin inhibits COX-1 and COX-2."
    a, b = dialogue("a", "How does aspirin work?", text), dialogue("b", "HOW does  aspirin work", text.replace("-", ""))
    assert found([a, b], threshold=0.0) == [(1, 0)]
    assert found([a, {**b, "language": "fr"}], threshold=0.0) == []
    dedup = Deduplicator()
    assert (dedup.add(a), dedup.add(b), len(dedup)) == (None, 0, 2)


def test_full_width_and_composed_forms_are_one_text_but_accents_are_not():
    assert text_key("Ｃafé １０ mg") == text_key("cafe\u0301 10mg") != text_key("cafe 10 mg")
    assert text_key("a", "b") != text_key("ab", "") and text_key("a\u0301") == text_key("á")


def test_near_duplicates_are_found_at_every_place_and_only_above_the_threshold():
    base = words(0, 120)
    near, far = list(base), list(base)
    near[60] = "changed"
    for i in range(0, 120, 3):
        far[i] = f"other{i}"
    rows = [dialogue("a", "What?", " ".join(base)), dialogue("b", "What?", " ".join(near))]
    rows += [dialogue("c", "What?", " ".join(far))]
    assert found(rows) == [(1, 0)]
    assert found(rows[::-1]) == [(2, 1)]  # the earlier row stays
    assert found(rows, threshold=0.99) == []


def test_same_case_or_options_with_another_answer_is_no_duplicate():
    case = " ".join(words(1, 300))
    asked = [dialogue("a", case + " Diagnosis?", "Anaemia"), dialogue("b", case + " Treatment?", "Iron by mouth")]
    assert found(asked) == []
    options = [" ".join(words(i, 12)) for i in range(5)]
    choice = [mcq("a", "Ratio of bran frying?", options, "A"), mcq("b", "Ratio of clam frying?", options, "D")]
    assert found(choice) == []
    assert found([choice[0], mcq("c", "Ratio of bran frying??", options, "A")]) == [(1, 0)]


def test_chains_keep_what_is_different_and_order_is_by_row():
    base = words(2, 400)
    rows = [list(base)]
    for step in range(1, 6):
        rows.append([f"s{step}x{i}" if i % 40 == step else w for i, w in enumerate(rows[-1])])
    records = [dialogue(str(i), "Q", " ".join(r)) for i, r in enumerate(rows)]
    pairs = found(records)
    gone = {row for row, _ in pairs}
    assert pairs == sorted(pairs) and all(earlier not in gone for _, earlier in pairs)
    assert 0 not in gone and 0 < len(gone) < len(rows) - 1


@pytest.mark.parametrize("similarity, least", [(0.9, 0.98), (0.95, 0.99)])
def test_recall_of_the_bands(similarity: float, least: float):
    """Pairs of known Jaccard similarity, far from the threshold's own uncertainty."""
    rng = np.random.default_rng(0)
    dedup, pairs = Deduplicator(threshold=0.8), 300
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    for i in range(pairs):
        text = rng.choice(list(alphabet), 800)
        # One changed character costs 8 of the n-grams on both sides: J = (n - 8k) / (n + 8k).
        changed = round(793 * (1 - similarity) / (1 + similarity) / 8)
        other = text.copy()
        places = 20 + np.arange(changed) * (760 // max(1, changed))
        other[places] = [alphabet[(alphabet.index(c) + 7) % 36] for c in other[places]]
        for name, row in (("a", text), ("b", other)):
            dedup.add(dialogue(f"{name}{i}", "question", "".join(row)))
    hit = {row for row, _, _ in dedup.duplicates()}
    assert len(hit) >= least * pairs and all(row % 2 for row in hit)


def test_memory_stays_small():
    dedup = Deduplicator()
    tracemalloc.start()
    for i in range(3000):
        dedup.add(dialogue(str(i), f"question {i}", f"{i * 7919} " * 10))
    list(dedup.duplicates())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / 4096 < 1500  # bytes a row, of the array's first size: 300 MiB at 200,000 rows


def test_shingles():
    assert len(shingles("", 5, 3)) == 0 and len(shingles("abc", 5, 3)) == 1
    assert len(shingles("abcdef", 5, 3)) == 2 and len(shingles("糖尿病の治療", 5, 3)) == 4
    assert np.array_equal(shingles("A-B c", 3, 2), shingles("abc", 3, 2))
    assert normal_text("10⁻³ M (①)") == "103m1"
