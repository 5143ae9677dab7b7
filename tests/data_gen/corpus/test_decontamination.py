"""Test questions in documents: found on running text, taken out by paragraph, named; common phrases are none."""

import pickle
import random

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from data_gen.corpus.decontamination import (
    TOO_LITTLE,
    BenchmarkIndex,
    Decontaminate,
    DecontaminationSettings,
    paragraphs,
    take_out,
)
from mmed_jax.common.errors import UserError
from tests.data_gen.corpus.corpus_texts import MEDICAL, ORDINARY

ASK = DecontaminationSettings()


def mcq(ident: str, language: str, question: str, *options: str, context: str = "") -> dict:
    record = {"id": ident, "language": language, "question": question, "rationale": "", "provenance": {}, "source": "x"}
    record["options"] = dict(zip("ABCDE", options))
    return {**record, "context": context} if context else record


QUESTION = (
    "A 57-year-old woman has had burning pain behind the breastbone for three weeks, mostly after meals and when she "
    "lies down. Which of the following drugs lowers the secretion of acid most strongly?"
)
ITEMS = [
    mcq("q1", "en", QUESTION, "Omeprazole", "Ranitidine", "Sucralfate", "Magnesium hydroxide"),
    mcq(
        "q2",
        "zh",
        "男，45岁。反复上腹痛三年，饥饿时加重，进食后缓解，首先考虑的诊断是什么？",
        "胃溃疡",
        "十二指肠溃疡",
        "胃癌",
        "胆石症",
    ),
    mcq(
        "q3",
        "ja",
        "次のうち、胸痛を訴える六十歳の男性に最初に行うべき検査はどれか、一つ選べ。",
        "心電図",
        "血液検査",
        "胸部造影",
        "内視鏡",
    ),
    mcq(
        "q4",
        "en",
        "Which of the following is wrong?",
        "Insulin lowers glucose",
        "Glucagon lowers glucose",
        "Cortisol raises it",
    ),
    mcq("q5", "en", "Why?", "A", "B"),
    mcq(
        *("q6", "ru", "Верно ли, что препарат противопоказан?", "да", "нет"),
        context="Препарат не следует применять у больных с тяжёлой недостаточностью печени: он выводится с желчью.",
    ),
]


@pytest.fixture(scope="module")
def index():
    index = BenchmarkIndex()
    assert index.add("first_exam", ITEMS[:3]) == 3 and index.add("second_exam", ITEMS[3:]) == 3
    return index


def page(code: str, *inserted: str) -> str:
    return "\n".join([MEDICAL[code], ORDINARY[code], *inserted, MEDICAL[code], ORDINARY[code]])


@pytest.mark.parametrize("number, code", [(0, "en"), (1, "zh"), (2, "ja")])
def test_a_leaked_question_is_taken_out_and_named(index, number, code):
    text, found, reason = take_out(page(code, ITEMS[number]["question"]), index, ASK)
    assert text == page(code) and reason is None
    assert [(hit.benchmark, hit.item) for hit in found] == [("first_exam", ITEMS[number]["id"])] and found[0].share == 1


@pytest.mark.parametrize("width", [9, 30, 70])
def test_wrapping_punctuation_and_case_hide_nothing(index, width):
    asked = QUESTION.upper().replace(",", " —").replace("-", " - ")
    wrapped = "\n".join(asked[i : i + width] for i in range(0, len(asked), width))
    text, found, _ = take_out(page("en", wrapped), index, ASK)
    assert text == page("en") and [hit.item for hit in found] == ["q1"]
    chinese = ITEMS[1]["question"]
    text, found, _ = take_out(page("zh", "\n".join(chinese)), index, ASK)
    assert text == page("zh") and [hit.item for hit in found] == ["q2"]


def test_of_a_paragraph_without_line_ends_its_sentences_go(index):
    flowing = page("en", QUESTION, "The answer is below.").replace("\n", " ")
    text, found, reason = take_out(flowing, index, ASK)
    assert [hit.item for hit in found] == ["q1"] and reason is None
    assert "breastbone" not in text and "secretion of acid" not in text
    assert text.replace(" The answer is below.", "").split() == page("en").split()


def test_part_of_a_question_or_another_one_is_no_hit(index):
    half = QUESTION.partition(". ")[0][:80]
    other = (
        QUESTION.replace("A 57-year-old woman", "A child")
        .replace("burning pain behind the breastbone", "ear ache")
        .replace("mostly after meals and when she lies down", "which began after swimming")
    )
    for inserted in (half, other.partition(". ")[0], "Which of the following is wrong?", "Why?", ITEMS[5]["question"]):
        assert take_out(page("en", inserted), index, ASK) == (page("en", inserted), [], None)


def test_a_question_that_names_nothing_needs_its_options(index):
    alone = "Which of the following is wrong?"
    asked = f"{alone}\n(a) Insulin lowers glucose.\n(b) Glucagon lowers glucose."
    text, found, _ = take_out(page("en", asked), index, ASK)
    assert [hit.item for hit in found] == ["q4"] and text == page("en")
    far = page("en", alone) + 20 * page("en") + "Insulin lowers glucose. Glucagon lowers glucose."
    assert take_out(far, index, ASK)[1] == []
    assert dict(index.unfindable) == {"second_exam": 1}  # q5


def test_a_passage_counts_with_its_question(index):
    assert [hit.item for hit in take_out(page("ru", ITEMS[5]["context"]), index, ASK)[1]] == ["q6"]


def test_ngrams_scattered_over_a_book_are_no_hit():
    """Every piece of the question stands in the book, pages apart."""
    index = BenchmarkIndex()
    index.add("exam", ITEMS[:1])
    pieces = [QUESTION[i : i + 60] for i in range(0, len(QUESTION), 40)]
    book = "\n".join(f"{piece}\n{page('fr')}" for piece in pieces)
    assert take_out(book, index, ASK)[1] == []
    assert take_out("\n".join(pieces), index, ASK)[1] != []


def test_of_a_short_document_too_little_is_left(index):
    assert take_out(QUESTION, index, ASK) == ("", [("first_exam", "q1", 1.0)], TOO_LITTLE)
    assert take_out(f"{QUESTION}\n{ORDINARY['en'][:150]}", index, ASK)[2] == TOO_LITTLE
    lenient = DecontaminationSettings(least_letters=50, least_share=0.1)
    assert take_out(f"{QUESTION}\n{ORDINARY['en'][:150]}", index, lenient)[2] is None


@given(st.text("ab. \n。！é", max_size=300).map(lambda text: text * 8))
def test_paragraphs_are_the_text(text):
    assert "".join(paragraphs(text)) == text


def test_many_items_against_brute_force():
    """Random questions of a small vocabulary: those that were put in are found, and no other."""
    rng = random.Random(11)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(3, 9))) for _ in range(300)]
    questions = [" ".join(rng.choices(words, k=20)) for _ in range(200)]
    index = BenchmarkIndex()
    index.add("exam", [mcq(str(i), "en", question, "yes", "no") for i, question in enumerate(questions)])
    for seed in range(8):
        rng = random.Random(seed)
        chosen = rng.sample(range(200), 2)
        lines = [" ".join(rng.choices(words, k=25)) for _ in range(60)]
        plain = list(lines)
        for number in chosen:
            lines.insert(rng.randrange(len(lines)), questions[number])
        text, found, _ = take_out("\n".join(lines), index, ASK)
        assert {hit.item for hit in found} == set(map(str, chosen))
        assert text.strip("\n") == "\n".join(plain)


def test_the_step_reads_an_index_from_disk(index, tmp_path):
    index.save(tmp_path / "index")
    loaded = BenchmarkIndex.load(tmp_path / "index")
    assert loaded.items == index.items and loaded.unfindable == index.unfindable
    step = pickle.loads(pickle.dumps(Decontaminate(ASK, tmp_path / "index")))
    docs = [Document(page("en", QUESTION), "a"), Document(page("fr"), "b"), Document(QUESTION, "c")]
    kept = list(step.run(iter(docs)))
    assert [doc.id for doc in kept] == ["a", "b"] and [doc.text for doc in kept] == [page("en"), page("fr")]
    assert docs[2].metadata["test_items"] == [["first_exam", "q1", 1.0]] and "test_items" not in docs[1].metadata
    assert step.stats["test items first_exam"].total == 2 and step.stats[f"dropped_{TOO_LITTLE}"].total == 1
    with pytest.raises(UserError, match="no index of benchmarks"):
        BenchmarkIndex.load(tmp_path)
    with pytest.raises(UserError, match="threshold=0 is not"):
        DecontaminationSettings(threshold=0)


def test_an_empty_index_finds_nothing(tmp_path):
    BenchmarkIndex().save(tmp_path)
    assert take_out(QUESTION, BenchmarkIndex.load(tmp_path), ASK) == (QUESTION, [], None)
