"""Records: what is accepted, how it is normalised, what every fault says, which belong together."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.sets.groups import Families
from mmed_jax.data.records import schema
from mmed_jax.data.records.schema import RecordError, validate_record

INSTRUCTION = {
    "id": "i1",
    "language": "en",
    "messages": [{"role": "user", "content": "What is a fever?"}, {"role": "assistant", "content": "A raised heat."}],
}
MCQ = {
    "id": "m1",
    "language": "fr",
    "question": "Quel organe ?",
    "options": {"A": "foie", "B": "rate", "C": "rein"},
    "answer_idx": "B",
}


def without(record: dict, name: str) -> dict:
    return {k: v for k, v in record.items() if k != name}


def talk(*roles: str) -> dict:
    return {**INSTRUCTION, "messages": [{"role": r, "content": f"said by {r}"} for r in roles]}


def test_defaults_are_filled_and_fields_ordered():
    checked = validate_record(dict(reversed(MCQ.items())), "f:1")
    assert tuple(checked) == tuple(f for f in schema.FIELDS["mcq"] if f not in ("context", "needs_image"))
    assert (checked["source"], checked["rationale"], checked["human_checked"]) == ("user", "", False)
    checked["provenance"]["x"] = 1
    assert validate_record(MCQ, "f:1")["provenance"] == {}  # no shared default


@pytest.mark.parametrize("answer", ["A,C", "C,A", "C, A", ["C", "A"], ["A", "C", "A"]])
def test_several_answers_become_sorted_letters(answer):
    assert validate_record({**MCQ, "answer_idx": answer}, "f:1")["answer_idx"] == "A,C"


def test_options_come_out_in_order_of_letters():
    shuffled = {**MCQ, "options": {"C": "3", "A": "1", "B": "2"}}
    assert list(validate_record(shuffled, "f:1")["options"].items()) == [("A", "1"), ("B", "2"), ("C", "3")]


def test_text_is_nfc_and_never_nfkc():
    decomposed = unicodedata.normalize("NFD", "fièvre élevée 두통")
    kept = "5 m² ① Ａ ﬁ ½ µg"  # all of them change under NFKC
    record = validate_record(
        {**MCQ, "question": decomposed, "rationale": kept, "provenance": {"n": [decomposed]}}, "f:1"
    )
    assert record["question"] == "fièvre élevée 두통" and record["rationale"] == kept
    assert record["provenance"]["n"] == ["fièvre élevée 두통"]
    assert schema.question_key({**MCQ, "question": "Ａ  ﬁN\n"}) == schema.question_key({**MCQ, "question": "a fin"})


@pytest.mark.parametrize("roles", [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 3])
def test_sensible_dialogues_pass(roles):
    assert [m["role"] for m in validate_record(talk(*roles), "f:1")["messages"]] == list(roles)


BAD = [
    ({"id": "x", "mesages": []}, "field 'messages': missing"),
    (without(MCQ, "id"), "field 'id': must be text, got nothing"),
    ({**MCQ, "id": " "}, "field 'id': must not be empty"),
    ({**MCQ, "id": 7}, "field 'id': must be text, got 7"),
    (without(MCQ, "language"), "field 'language': missing; valid: en, zh, ja, ko, fr, es, ru"),
    ({**MCQ, "language": "English"}, "'English' is not supported, did you mean 'en'?"),
    ({**MCQ, "language": "jp"}, "did you mean 'ja'?"),
    ({**MCQ, "language": "zh-CN"}, "did you mean 'zh'?"),
    ({**MCQ, "language": "kr"}, "did you mean 'ko'?"),
    ({**MCQ, "language": "de"}, "'de' is not supported; valid: en"),
    ({**MCQ, "langage": "fr"}, "field 'langage': not a field of mcq records, did you mean 'language'?"),
    ({**MCQ, "mine": 1}, "field 'mine': not a field of mcq records; fields of your own belong under 'provenance'"),
    ({**INSTRUCTION, "options": {}}, "field 'options': not a field of instruction records"),
    ({**MCQ, "question": "  "}, "field 'question': must not be empty"),
    ({**MCQ, "question": None}, "field 'question': must be text, got nothing"),
    (without(MCQ, "options"), "field 'options': must be an object"),
    ({**MCQ, "options": ["a", "b"]}, "field 'options': must be an object"),
    ({**MCQ, "options": {"A": "only"}}, "field 'options': must hold 2 to 26 options, got 1"),
    ({**MCQ, "options": {"A": "x", "C": "y"}}, "keys must be the letters A to B, got A, C"),
    ({**MCQ, "options": {"1": "x", "2": "y"}}, "keys must be the letters A to B, got 1, 2"),
    ({**MCQ, "options": {"A": "x", "B": " "}}, "field 'options.B': must not be empty"),
    ({**MCQ, "options": {"A": "x", "B": 5}}, "field 'options.B': must be text, got 5"),
    (without(MCQ, "answer_idx"), "field 'answer_idx': must be"),
    ({**MCQ, "answer_idx": []}, "field 'answer_idx': must be"),
    ({**MCQ, "answer_idx": ""}, "field 'answer_idx': '' is not among the options"),
    ({**MCQ, "answer_idx": "D"}, "'D' is not among the options; valid: A to C"),
    ({**MCQ, "answer_idx": "b"}, "'b' is not among the options, did you mean 'B'?"),
    ({**MCQ, "answer_idx": "2"}, "did you mean 'B' (letters, not numbers)?"),
    ({**MCQ, "answer_idx": [["A"]]}, "is not among the options"),
    ({**MCQ, "answer_idx": 1}, "field 'answer_idx': must be"),
    ({**MCQ, "rationale": 3}, "field 'rationale': must be text, got 3"),
    ({**MCQ, "context": ""}, "field 'context': must not be empty"),
    ({**MCQ, "human_checked": "yes"}, "field 'human_checked': must be true or false, got 'yes'"),
    ({**MCQ, "needs_image": 1}, "field 'needs_image': must be true or false"),
    ({**MCQ, "method": "translated"}, "field 'method': 'translated' is unknown, did you mean 'translation'?"),
    ({**MCQ, "provenance": "web"}, "field 'provenance': must be an object"),
    ({**MCQ, "provenance": {"group": 3}}, "field 'provenance.group': must be text"),
    ({**MCQ, "provenance": {"x": float("nan")}}, "field 'provenance': nan is not a number"),
    ({**MCQ, "source": ""}, "field 'source': must not be empty"),
    ({**MCQ, "question": "bad \ud83d half"}, "field 'question': holds half of a surrogate pair"),
    ({**INSTRUCTION, "messages": []}, "field 'messages': must be a non-empty list"),
    ({**INSTRUCTION, "messages": "hello"}, "field 'messages': must be a non-empty list"),
    ({**INSTRUCTION, "messages": ["hi"]}, "field 'messages[0]': must be an object"),
    ({**INSTRUCTION, "messages": [{"rol": "user", "content": "x"}]}, "field 'messages[0].rol': not a field of a"),
    (talk("human", "assistant"), "field 'messages[0].role': 'human' is unknown"),
    ({**INSTRUCTION, "messages": [{"role": "user"}]}, "field 'messages[0].content': must be text, got nothing"),
    ({**INSTRUCTION, "messages": [{"role": "user", "content": " "}]}, "field 'messages[0].content': must not be empty"),
    (talk("user"), "field 'messages': the last message must be the assistant's answer"),
    (talk("system"), "field 'messages': the last message must be the assistant's answer"),
    (talk("assistant"), "field 'messages[0].role': 'assistant' where 'user' was expected"),
    (talk("user", "assistant", "assistant"), "field 'messages[2].role': 'assistant' where 'user' was expected"),
    (talk("user", "user", "assistant"), "field 'messages[1].role': 'user' where 'assistant' was expected"),
    (talk("system", "assistant"), "field 'messages[1].role': 'assistant' where 'user' was expected"),
    (talk("user", "system", "assistant"), "'system' where 'assistant' was expected (system only comes first)"),
]


@pytest.mark.parametrize(("record", "says"), BAD, ids=range(len(BAD)))
def test_every_fault_names_place_field_and_remedy(record, says):
    with pytest.raises(RecordError) as caught:
        validate_record(record, "data/x.jsonl:12")
    assert str(caught.value).startswith("data/x.jsonl:12: field '") and says in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_groups_are_the_connected_components(pairs):
    records = [{**MCQ, "question": f"Q {q}", "provenance": {"group": f"g{g}"} if g else {}} for q, g in pairs]
    numbers = schema.group_ids(records)
    # Reference: spread labels along shared keys until nothing changes.
    labels = list(range(len(pairs)))
    for _ in pairs:
        for i, (q, g) in enumerate(pairs):
            for j, (r, h) in enumerate(pairs):
                if q == r or (g == h and g):
                    labels[i] = labels[j] = min(labels[i], labels[j])
    assert [numbers[i] == numbers[j] for i in range(len(pairs)) for j in range(i)] == [
        labels[i] == labels[j] for i in range(len(pairs)) for j in range(i)
    ]


def chat(*turns, system=""):
    roles = ("user", "assistant") * 9
    messages = [{"role": "system", "content": system}] * bool(system)
    messages += [{"role": role, "content": text} for role, text in zip(roles, turns)]
    return {**INSTRUCTION, "messages": messages}


def mcq(question, *options, answer="A", **fields):
    return {**MCQ, "question": question, "options": dict(zip("ABCDEF", options)), "answer_idx": answer, **fields}


CASE = "A man of 50 has gout and stones of the kidney. Which of these lowers his uric acid in the long run?"
STEM, DRUGS = "Which of these lowers uric acid?", ("allopurinol", "aspirin", "heparin", "digoxin", "insulin")
GREETED = ("Hello", "Good morning, what can I do for you?")
DOSE = "How often may an adult take paracetamol in a day?"
SAME = [
    (mcq(STEM, *DRUGS), mcq(STEM, *DRUGS, answer="B", rationale="Other words.")),
    (mcq(STEM, *DRUGS), mcq(f" {STEM.upper()}\n", *reversed(DRUGS), answer="E")),
    # Published with five options and with four, with a slip and without.
    (mcq(CASE, *DRUGS), mcq(CASE, *DRUGS[:2], *DRUGS[3:])),
    (mcq(CASE, *DRUGS), mcq(CASE, *DRUGS[:4], "insuline")),
    (mcq("下列药物中能降低血尿酸的是", *DRUGS), mcq("下列药物中能降低血尿酸的是", *DRUGS[:4])),
    (mcq(STEM, *DRUGS, context="A passage."), mcq(STEM, *DRUGS, context="a  PASSAGE.", answer="C")),
    (chat(DOSE, "Four times."), chat(f"{DOSE} ".lower(), "Every six hours.")),
    (chat("What is gout?", "A crystal arthritis."), chat("What is  GOUT?", "Arthritis by crystals.")),
    (chat(*GREETED, DOSE, "Four times."), chat(*GREETED[:1], "Yes?", DOSE, "Every six hours.")),
    (
        chat("痛风的首选治疗药物是什么？", "x", "别嘌醇每天应该服用多少毫克？", "y"),
        chat("痛风的首选治疗药物是什么？", "z", "别嘌醇每天应该服用多少毫克？", "w"),
    ),
    (chat("Sum up.", "x", system="Note: fever, two days."), chat("Sum up.", "y", system="Note: fever, TWO days.")),
]
OTHERS = [
    (mcq(STEM, *DRUGS), mcq(STEM, "febuxostat", *DRUGS[1:])),
    (mcq(STEM, *DRUGS), mcq(STEM, *DRUGS[:4], "warfarin")),
    (mcq(STEM, *DRUGS[:4]), mcq(STEM, *DRUGS[:3], "warfarin")),
    (mcq(CASE, *DRUGS), mcq(CASE, *DRUGS[1:])),  # without the answer it is another question
    (mcq("Is it so?", "yes", "no"), mcq("Is it so?", "yes", "no", "perhaps")),
    (mcq(STEM, *DRUGS, context="One passage."), mcq(STEM, *DRUGS, context="Another passage.")),
    (chat("Sum up.", "x", system="Note: fever for two days."), chat("Sum up.", "x", system="Note: a sore knee.")),
    (chat(*GREETED, DOSE, "Four times."), chat(*GREETED, DOSE.replace("adult", "infant"), "Four times.")),
    (chat(DOSE, "Four times.", "And a child?", "x"), chat(DOSE, "Four times.", "And in pregnancy?", "x")),
    (chat("Start.", "A man of 40 with fever.", "Next?", "x"), chat("Start.", "A woman with a rash.", "Next?", "x")),
    (chat("病例总结", "x", system="患者发热两天。"), chat("病例总结", "x", system="患者膝盖疼痛。")),
]


@pytest.mark.parametrize(("one", "other", "same"), [(*p, True) for p in SAME] + [(*p, False) for p in OTHERS])
def test_what_makes_two_records_one_question(one, other, same):
    """Everything that is told and asked counts, answers do not; so in both splitters."""
    pair = [{**one, "id": "q-one", "provenance": {}}, {**other, "id": "q-two", "provenance": {}}]
    for records in (pair, pair[::-1]):
        families = Families()
        for record in records:
            families.add(record)
        assert families.numbers().tolist() == schema.group_ids(records) == ([0, 0] if same else [0, 1])
