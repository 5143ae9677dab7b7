"""Reading answers: what may surround JSON is tolerated, what would change its meaning is not repaired."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed_jax.llm_api.structured_output import object_schema, read_answer
from mmed_jax.llm_api.types import Reject

TEXT = {"type": "string"}
SCHEMA = object_schema(
    {
        "answer": TEXT,
        "letters": {"type": "array", "items": TEXT},
        "doubt": {"type": "boolean"},
        "options": object_schema({"A": TEXT, "B": TEXT}),
        "topic": {"type": "string", "enum": ["x", "y"]},
    }
)
GOOD = {
    "answer": 'He said "5 {mg}, ] }".',
    "letters": ["A"],
    "doubt": False,
    "options": {"A": "1", "B": "é"},
    "topic": "x",
}
PLAIN = json.dumps(GOOD, ensure_ascii=False)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2),
        f"```json\n{PLAIN}\n```",
        f"Here it is:\n\n{PLAIN}\nDone.",
        f"<think>Maybe {{B}}?</think>\n{PLAIN}",
        PLAIN.replace('"x"}', '"x",}').replace('["A"]', '["A" ,\n]'),
        f"\ufeff{PLAIN}",
        PLAIN.replace("é", "e\u0301").replace('"1"', '" 1\u200b\\n"'),
        GOOD,
    ],
)
def test_tolerated(text):
    assert read_answer(text, SCHEMA) == GOOD


def test_a_raw_newline_in_a_string():
    assert read_answer(PLAIN.replace("He said", "He\nsaid"), SCHEMA)["answer"].startswith("He\nsaid")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(PLAIN) - 1))
def test_a_cut_answer_never_passes(length):
    """Finishing cut JSON would pass half an answer as whole."""
    with pytest.raises(Reject) as e:
        read_answer(PLAIN[:length], SCHEMA)
    assert e.value.reason == "schema"


@pytest.mark.parametrize(
    "change,problem",
    [
        ({"doubt": "false"}, "answer.doubt: expected boolean, got str"),
        ({"letters": "A"}, "expected array"),
        ({"letters": [1]}, r"answer.letters\[0\]: expected string"),
        ({"topic": "z"}, "'z' is not one of"),
        ({"options": {"A": "1"}}, "answer.options: field 'B' is missing"),
        ({"options": {"A": "1", "B": "2", "C": "3"}}, "field 'C' was not asked for"),
        ({"note": "x"}, "'note' was not"),
        ({"answer": None}, "expected string, got NoneType"),
    ],
)
def test_wrong_forms(change, problem):
    with pytest.raises(Reject, match=problem) as e:
        read_answer(json.dumps(GOOD | change), SCHEMA)
    assert e.value.reason == "schema"


@pytest.mark.parametrize(
    "text",
    ["", "no", "[]", f"[{PLAIN}, {PLAIN}]", PLAIN + PLAIN, PLAIN.replace('"doubt"', '"answer"'), "{" * 9999 + "}"],
)
def test_no_single_object(text):
    with pytest.raises(Reject) as e:
        read_answer(text, SCHEMA)
    assert e.value.reason == "schema" and len(e.value.detail) < 200


@pytest.mark.parametrize("leak", ["<|eot_id|>", "DATA>>> 0123456789ab", "<<<DATA 01", "[/INST]", "a\u0000b", "</s>"])
def test_marks_and_control_tokens_are_refused_wherever_they_stand(leak):
    for change in ({"answer": f"x {leak}"}, {"letters": [leak]}, {"options": {"A": leak, "B": "2"}}):
        with pytest.raises(Reject) as e:
            read_answer(json.dumps(GOOD | change), SCHEMA)
        assert e.value.reason == "control"


@pytest.mark.parametrize(
    "text",
    [
        "1" * 5000,
        "-" + "1" * 5000,
        "[" * 30000 + "]" * 30000,
        '{"a":' * 30000 + "1" + "}" * 30000,
        "1e999",
        "NaN",
        "[]",
        "1" * 4000,
    ],
    ids=["integer", "negative", "lists", "objects", "float", "nan", "list", "long"],
)
def test_json_of_any_kind_is_an_answer_of_wrong_form(text):
    for answer in (PLAIN.replace('"1"', text), f'{{"letters": {text}}}', text):
        with pytest.raises(Reject) as e:
            read_answer(answer, SCHEMA)
        assert e.value.reason == "schema" and len(str(e.value)) < 300


def test_thinking_marks_are_read_in_one_pass():
    """Closed thoughts go, also of two kinds in one another; one that does not end is no thought."""
    assert read_answer(f"<think>{{1<think>2</thinking>{PLAIN}", SCHEMA) == GOOD
    assert read_answer(f"</think><thinking>{{</thinking> <think>{{}}</think>{PLAIN}", SCHEMA) == GOOD
    with pytest.raises(Reject):
        read_answer(f"<think>{{ {PLAIN}", SCHEMA)
    times = []
    for count in (100_000, 400_000):
        began = time.perf_counter()
        with pytest.raises(Reject):
            read_answer("</think>" + "<think>" * count, SCHEMA)
        times.append(time.perf_counter() - began)
    assert times[1] < 12 * times[0] + 0.1, "four times the text, not sixteen times the work"
