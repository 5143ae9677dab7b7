"""The stand-in model: good answers pass every gate in every language, each kind of wrong one is told by its reason."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from data_gen.methods import default_gates
from data_gen.methods.expand import Expand
from data_gen.methods.qa import QA
from data_gen.methods.rationale import Rationale
from data_gen.methods.translate import Translate
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.llm_api.types import Reject
from tests.support.fake_model import WRONG, FakeModel, answer, foreign_text

SETTINGS = SimpleNamespace(model="m", params={"temperature": 0, "seed": 1})
METHODS = {
    "answer_expanding": Expand(),
    "rationale": Rationale(replace=True),
    "translation": Translate(LANGUAGES),
    "qa_generation": QA(min_chars=20),
}
# What each fault is called in the end; a method that is not listed can't have that fault.
EXPECTED = {
    "refusal": {"*": {"refusal"}},
    "prose": {"*": {"schema"}},
    "json": {"*": {"schema"}},
    "field": {"*": {"schema"}},
    "language": {"*": {"language"}},
    "key": {"rationale": {"key"}},
    "hidden_key": {"rationale": {"key"}},
    "copy": {"*": {"copy", "too_short", "key", "facts"}},
    "numbers": {"translation": {"numbers"}},
    "options": {"translation": {"numbers"}},
    "boilerplate": {"*": {"boilerplate"}},
    "leak": {"*": {"control"}},
    "short": {"*": {"too_short"}},
    "long": {"*": {"too_long", "repetition"}},
    "ungrounded": {"qa_generation": {"facts"}},
    "doubt": {},
}


@pytest.fixture(scope="module")
def inputs(repo) -> dict[str, list[dict]]:
    mcq = sorted(read_records(repo / "data_gen/handcrafted/mcq.jsonl"), key=lambda r: r["id"])[:42]
    instructions = sorted(read_records(repo / "data_gen/handcrafted/instructions.jsonl"), key=lambda r: r["id"])[:42]
    return {
        "answer_expanding": [*mcq, *instructions],
        "rationale": mcq,
        "translation": [*mcq[:14], *instructions[:14]],
        "qa_generation": instructions,
    }


def verdicts(method, items, wrong="") -> Counter:
    counts = Counter()
    for job in method.jobs(items, SETTINGS):
        try:
            for record in method.parse(job, answer(job.request.messages, wrong)):
                for gate in default_gates(method.name):
                    gate(job, record)
            counts["accepted"] += 1
        except Reject as e:
            counts[e.reason] += 1
    return counts


@pytest.mark.parametrize("name", METHODS)
def test_good_answers_pass_the_gates(inputs, name):
    counts = verdicts(METHODS[name], inputs[name])
    assert counts["accepted"] >= 0.99 * counts.total() > 20, counts


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_answers_are_caught_by_their_reason(inputs, wrong):
    dose = {
        **inputs["rationale"][0],
        "question": "Which is the usual first dose of the drug for adults of 70 kg weight?",
        "options": {"A": "125 mg twice", "B": "250 mg once", "C": "1500 mg", "D": "20 ml"},
    }
    assert set(EXPECTED) == set(WRONG)
    for name, reasons in EXPECTED[wrong].items():
        for method in METHODS if name == "*" else (name,):
            items = [dose] if wrong in ("numbers", "options") else inputs[method][:14]
            if (wrong, method) == ("short", "translation"):  # of a long text; short ones are given some slack
                items = [{**dose, "context": "The patient has been treated for high blood pressure. " * 10}]
            counts = verdicts(METHODS[method], items, wrong)
            caught = sum(counts[r] for r in reasons)
            assert caught >= 0.9 * counts.total() > 0, (method, counts)


def test_text_of_another_language_keeps_what_must_be_kept():
    source = "Give 2.5 mg/kg (max. 1,500 mL) at 37.5 °C.\nSee option B: p = .04, 10–20 %."
    for language in LANGUAGES[1:]:
        made = foreign_text(source, language)
        assert made == foreign_text(source, language) and made.count("\n") == 1
        for kept in ("2.5 mg/kg", "1500 ml", "37.5 °C", "B", ".04", "10–20 %"):
            assert kept in made, (kept, made)


def test_rates_are_kept_and_a_second_draw_may_be_right(inputs):
    model = FakeModel({"language": 0.2, "json": 0.1}, seed=3)
    jobs = list(METHODS["translation"].jobs(inputs["translation"], SETTINGS))
    bodies = [{"messages": list(j.request.messages), **j.request.params} for j in jobs]
    faults = Counter(model.fault(b) for b in bodies)
    assert 0.12 < faults["language"] / len(bodies) < 0.28 and 0.04 < faults["json"] / len(bodies) < 0.17
    bad = next(b for b in bodies if model.fault(b))
    assert any(not model.fault({**bad, "seed": seed}) for seed in range(2, 8))
    good = next(b for b in bodies if not model.fault(b))
    assert model(good) == answer(good["messages"]) and json.loads(model(good))


def test_other_prompts_get_plain_text():
    assert "data_gen" in answer([{"role": "user", "content": "hi"}])
    with pytest.raises(ValueError, match="valid: refusal"):
        answer([{"role": "user", "content": "hi"}], wrong="nonsense")
