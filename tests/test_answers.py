"""Answer extraction on outputs as models really write them."""

import json
import time
from pathlib import Path

import pytest

from mmed_jax.data.prompts import answer_text
from mmed_jax.data.schema import read_records
from mmed_jax.evaluation.answers import Extraction, extract, is_correct, normalise

DRUGS = {"A": "Aspirin", "B": "Warfarin", "C": "Heparin", "D": "Clopidogrel", "E": "None of the above"}
BUGS = {"A": "S. aureus", "B": "Klebsiella pneumoniae", "C": "E. coli", "D": "C. difficile", "E": "B. fragilis"}
YES_NO = {"A": "yes", "B": "no", "C": "maybe"}
DA_NET = {"A": "да", "B": "нет"}

# One output a line: {"language": of the question, "output": what the model wrote, "letters": expected, or null}.
_CORPUS = [json.loads(line) for line in (Path(__file__).parent / "data" / "answers.jsonl").open(encoding="utf-8")]
LETTERS_ONLY = [(c["language"], c["output"], c["letters"]) for c in _CORPUS]

WITH_OPTIONS = [
    ("en", DRUGS, "Warfarin", "B", "option_text"),
    ("en", DRUGS, "warfarin.", "B", "option_text"),
    ("en", DRUGS, "Heparin\nIt does not cross the placenta.", "C", "option_text"),
    ("en", DRUGS, "The correct answer is heparin.", "C", "sentence:en:text"),
    ("en", DRUGS, "Answer: Clopidogrel", "D", "mark:en:text"),
    ("en", DRUGS, "Answer: B Warfarin", "B", "mark:en"),
    ("en", DRUGS, "None of the above", "E", "option_text"),
    ("en", DRUGS, "none of these", None, "none"),
    ("en", DRUGS, "Aspirin and warfarin are both used.", None, "none"),
    ("en", DRUGS, "Answer: Aspirin-like drugs", None, "none"),
    ("en", BUGS, "The answer is C. difficile.", "D", "sentence:en:text"),
    ("en", BUGS, "The answer is C. E. coli", "C", "sentence:en"),
    ("en", BUGS, "E. coli is the most common cause.", None, "none"),
    ("en", BUGS, "E. coli", "C", "option_text"),
    ("en", BUGS, "E. B. fragilis", "E", "leading"),
    ("en", BUGS, "Answer: A. S. aureus\nIt is coagulase positive.", "A", "mark:en"),
    ("en", YES_NO, "Yes, statins reduce mortality.", "A", "yes_no"),
    ("en", YES_NO, "No", "B", "option_text"),
    ("en", YES_NO, "Nobody knows.", None, "none"),
    ("en", YES_NO, "The answer is maybe.", "C", "sentence:en:text"),
    ("ru", DA_NET, "Да", "A", "option_text"),
    ("ru", DA_NET, "Нет, разрыв происходит в другой фазе.", "B", "yes_no"),
    ("ru", DA_NET, "Ответ: нет", "B", "mark:ru:text"),
    ("zh", {"A": "肝硬化", "B": "肝癌"}, "答案：肝癌", "B", "mark:zh:text"),
    ("zh", {"A": "肝炎", "B": "肝癌", "C": "A和B"}, "A和B", "C", "option_text"),
    ("fr", {"A": "B.C.G", "B": "Hépatite B"}, "A. B.C.G", "A", "leading"),
    ("fr", {"A": "Une hémophilie B.", "B": "Autre"}, "La bonne réponse est A. Une hémophilie B.", "A", "sentence:fr"),
    ("en", {"A": "# 1-2", "B": "# 5-16"}, "# 5-16", "B", "option_text"),
    ("en", {"A": "x", "B": "y"}, "Answer: C", None, "none"),
    ("en", dict.fromkeys("ABCDEFGH", "t"), "The answer is H.", "H", "sentence:en"),
    ("en", {"A": "ACE inhibitors", "B": "beta blockers", "C": "c", "D": "d", "E": "e"}, "ACE", None, "none"),
]


@pytest.mark.parametrize(("language", "text", "expected"), LETTERS_ONLY)
def test_letters(language, text, expected):
    assert extract(text, "ABCDE", language).letters == expected


@pytest.mark.parametrize(("language", "options", "text", "expected", "rule"), WITH_OPTIONS)
def test_with_option_texts(language, options, text, expected, rule):
    assert extract(text, options, language) == Extraction(expected, rule)


@pytest.mark.parametrize(("language", "text", "expected"), [c for c in LETTERS_ONLY if c[2] and c[2] != "A,C,E"])
def test_option_texts_do_not_disturb_letters(language, text, expected):
    """The same outputs read the same when the options' (unrelated) texts are known."""
    options = {k: f"unrelated text {k.lower()}x" for k in "ABCDE"}
    assert extract(text, options, language).letters == expected


@pytest.mark.parametrize("letter", "ABCDE")
@pytest.mark.parametrize(
    "mark", ["Answer: {}", "答案：{}", "正解：{}", "정답: {}", "Réponse : {}", "Respuesta: {}", "Ответ: {}"]
)
def test_mark_line_after_any_rationale(mark, letter):
    """The line that ends a trained answer decides, whatever letters the rationale names before it."""
    rationale = "Option A is incorrect. B is correct in children. The answer is C in adults. 答案是D。正解はEです。"
    found = extract(f"{rationale}\n\n{mark.format(letter)}", "ABCDE")
    assert found.letters == letter and found.rule.startswith("mark:")
    assert extract(mark.format("A,C"), "ABCDE").letters == "A,C"


def test_scoring_is_set_equality():
    assert normalise("c, A") == "A,C"
    assert is_correct("C,A", "A,C") and is_correct("B", "B")
    assert not is_correct("A", "A,C") and not is_correct("A,C", "A") and not is_correct(None, "A")


def test_unparsed_names_its_reason():
    assert extract("The answer is A or B.") == Extraction(None, "ambiguous")
    assert extract("no idea") == Extraction(None, "none")


@pytest.mark.parametrize("filler", ["lorem ", "A ", "A, ", "( ", "答案", "answer is ", "option A "])
def test_long_repetitive_output_is_read_in_time(filler):
    """A looping model writes thousands of repeats; no rule may take quadratic time over them."""
    start = time.perf_counter()
    extract(filler * 2000, DRUGS, "en")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("family", ["llama3", "mmedbench"])
@pytest.mark.parametrize("mode", ["direct", "rationale"])
def test_every_trained_answer_is_read_back(repo, family, mode):
    """What stage 2 trains the model to write is what extraction reads, for every record of the embedded demo."""
    records = list(read_records(repo / "data_gen" / "handcrafted" / "mcq.jsonl", "mcq"))
    assert len(records) >= 140
    for record in records:
        found = extract(answer_text(record, mode, family), record["options"], record["language"])
        assert found.letters == record["answer_idx"], (record["id"], found)
