"""Options in another order: the key moves along, and the letters of a rationale where it is certain what they mean."""

import pytest

from data_gen.sets.option_shuffle import move_letters, shuffle_record

TEXTS = ("aspirin", "bed rest", "surgery", "vitamin D")
MOVED = {"A": "C", "B": "A", "C": "D", "D": "B"}


def record(rationale: str, language: str = "en", answer: str = "A", texts=TEXTS) -> dict:
    return {
        "id": "q1",
        "language": language,
        "question": "What helps?",
        "options": dict(zip("ABCD", texts)),
        "answer_idx": answer,
        "rationale": rationale,
        "source": "mine",
        "provenance": {},
    }


def moved(rationale: str, language: str = "en", answer: str = "A") -> str | None:
    old = record(rationale, language, answer)
    new = {MOVED[k]: v for k, v in old["options"].items()}
    return move_letters(old, MOVED, {**old, "options": dict(sorted(new.items()))})


# language: rationales with the letters of options as {A}, and letters that mean something else as they are.
RATIONALES = (
    ("en", "Option {B} does not help. Therefore, the correct answer is {A}."),
    ("en", "({B}) and ({D}) are slow, so the answers are {A}, {C}."),
    ("en", "{A}. Aspirin thins the blood; vitamin B is not meant. The answer is {A}."),
    ("en", "T-cells and B-cells matter here. The answer is ({D})."),
    ("zh", "选项{B}不符合。因此，正确答案是{A}。"),
    ("ja", "選択肢{B}は当てはまらない。したがって、正解は{A},{C}である。"),
    ("ko", "보기 {B}는 맞지 않다. 따라서 정답은 {A}이다."),
    ("fr", "La proposition {B} ne convient pas. Par conséquent, les bonnes réponses sont {A},{C}."),
    ("es", "La opción {B} no encaja. Por tanto, la respuesta correcta es {A}."),
    ("ru", "Вариант {B} не подходит. Следовательно, правильный ответ — {A}."),
    ("en", "Nothing is named here."),
)


@pytest.mark.parametrize("language, template", RATIONALES)
def test_letters_move(language, template):
    old, new = (template.format(**names) for names in ({letter: letter for letter in MOVED}, MOVED))
    assert moved(old, language) == new


@pytest.mark.parametrize(
    "rationale",
    [
        "A patient with scurvy needs it. The answer is A.",
        "The second option is wrong. The answer is A.",
        "Option 2 is wrong. The answer is A.",
        "The blood type was B before. The drug B is slow.",
        "The answer is E.",
    ],
)
def test_what_is_not_certain_stays(rationale):
    assert moved(rationale) is None
    assert all(shuffle_record(record(rationale), seed)["options"] == record(rationale)["options"] for seed in range(5))
    assert any("order_kept" in shuffle_record(record(rationale), s)["provenance"].get("flags", ()) for s in range(5))


def test_the_right_option_stays_right_and_orders_are_even():
    """Of two options, as Russian has them, either comes first about as often."""
    firsts = 0
    for n in range(200):
        old = {**record("", "ru", texts=("да", "нет")), "id": f"q{n}"}
        new = shuffle_record(old, 0)
        assert new["options"][new["answer_idx"]] == "да"
        firsts += new["answer_idx"] == "A"
        assert new == shuffle_record(old, 0)
    assert 70 < firsts < 130
    tied = record("", texts=("aspirin", "rest", "surgery", "Both A and B"))
    assert all(shuffle_record(tied, seed) == tied for seed in range(5))
