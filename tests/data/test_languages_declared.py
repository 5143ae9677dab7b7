"""A language is a declaration with texts and rules of its own: every place that an eighth one lacks is named."""

import subprocess
import sys
import textwrap

import pytest

from mmed_jax.data.languages.declarations import DECLARATIONS, Language
from tests.support import language_places
from tests.support.language_places import REPO, missing_places, places

POLISH = Language("pl", "Polish", scripts=("latin",), decimal=",")
HINDI = Language("hi", "Hindi", scripts=("devanagari",), decimal=".")
UKRAINIAN = Language("uk", "Ukrainian", scripts=("cyrillic",), decimal=",")

# What every language needs.
EVERY = [
    "data_gen/corpus/corpus_report.py:TOKENS_PER_BYTE",
    "data_gen/corpus/keywords.py:THRESHOLDS",
    "data_gen/corpus/ocr.py:TESSERACT",
    "data_gen/corpus/personal_data.py:_PHONES",
    "data_gen/corpus/quality_thresholds.py:THRESHOLDS",
    "data_gen/gates/refusals.py:ABOUT_THE_TASK",
    "data_gen/gates/refusals.py:DISCLAIMER",
    "data_gen/gates/refusals.py:NEGATION",
    "data_gen/gates/refusals.py:PREAMBLE",
    "data_gen/gates/refusals.py:REFUSAL",
    "data_gen/gates/units.py:",
    "data_gen/handcrafted/instructions.jsonl:",
    "data_gen/handcrafted/mcq.jsonl:",
    "data_gen/prompts/answer_expanding.toml:",
    "data_gen/prompts/qa_generation.toml:",
    "data_gen/prompts/rationale.toml:",
    "data_gen/prompts/translation.toml:",
    "mmed_jax/assets/documents/demo.jsonl:",
    "mmed_jax/data/multiple_choice.py:ANSWER_MARKS",
    "mmed_jax/data/multiple_choice.py:_INSTRUCTIONS",
    "mmed_jax/data/sources/encodings.py:_LIKELY",
    "mmed_jax/evaluation/extraction/rules.py:",
    "mmed_jax/evaluation/metrics/word_split.py:WORDS_OF",
    "mmed_jax/evaluation/prompts/option_order.py:has_references",
    "mmed_jax/llm_api/prompt_guard.py:_STEERING",
    "mmed_jax/llm_api/prompt_guard.toml:",
]


@pytest.mark.parametrize("language", DECLARATIONS, ids=lambda language: language.code)
def test_the_declared_languages_lack_nothing(language):
    assert missing_places(language) == []


@pytest.mark.parametrize(
    "language, further",
    [
        (POLISH, ["mmed_jax/data/languages/identify.py:_WORDS"]),
        (HINDI, [f"mmed_jax/data/languages/scripts.py:{name} (devanagari)" for name in ("SCRIPTS", "WEIGHT")]),
        (UKRAINIAN, ["mmed_jax/data/languages/identify.py:_BY_SCRIPT (cyrillic is also ru)"]),
    ],
    ids=lambda x: x.code if isinstance(x, Language) else None,
)
def test_every_place_that_an_eighth_language_lacks_is_named(monkeypatch, language, further):
    monkeypatch.setattr(language_places, "DECLARATIONS", (*DECLARATIONS, language))
    lacking = missing_places(language)
    assert [place for place in lacking if not place.startswith("tests/")] == sorted([*EVERY, *further])
    # So are examples of the tests, and what the stand-in of a model says.
    assert "tests/support/fake_model.py:_SAY" in lacking and "tests/data/test_languages.py:SAMPLES" in lacking


def test_rules_for_all_languages_read_a_text_of_each_and_no_other():
    for code, samples in language_places.SAMPLES.items():
        assert [n for n, (_, reads) in language_places.RULES.items() if not reads(samples[n])] == [], code
    plain = "Vitamin C prevents scurvy."
    assert [name for name, (_, reads) in language_places.RULES.items() if reads(plain)] == []


def test_a_new_dictionary_of_languages_is_noticed(tmp_path, monkeypatch):
    """One that has not all of them fails the first test above, until PARTIAL says why."""
    file = tmp_path / "mmed_jax" / "data" / "new.py"
    file.parent.mkdir(parents=True)
    file.write_text('GREETINGS = {"en": "Hello", "fr": "Bonjour"}\n', encoding="utf-8")
    monkeypatch.setattr(language_places, "REPO", tmp_path)
    assert [place.where for place in places()] == ["mmed_jax/data/new.py:GREETINGS"]
    assert "mmed_jax/data/new.py:GREETINGS (not all languages, and no reason in PARTIAL)" in missing_places(
        DECLARATIONS[0]
    )


def test_what_follows_from_a_declaration():
    """Its code and name, its tokens' slot in the loss, its records, its letters and its decimals."""
    program = """
        from mmed_jax.data.languages import declarations
        declarations.DECLARATIONS += (declarations.Language("pl", "Polish", ("latin",), ",", ("pol",)),)
        from data_gen.gates import quantities
        from mmed_jax.data.languages.identify import language_of
        from mmed_jax.data.languages.scripts import wrong_script
        from mmed_jax.data.records import schema
        from mmed_jax.training import step
        assert schema.LANGUAGES[7] == "pl" and schema.LANGUAGE_NAMES["pl"] == "Polish"
        assert step.LANGUAGE_SLOTS == 9
        ask = {"id": "1", "language": "pl", "messages": [{"role": "user", "content": "Co leczy szkorbut?"},
                                                         {"role": "assistant", "content": "Witamina C."}]}
        assert schema.validate_record(ask, "here")["language"] == "pl"
        assert "did you mean 'pl'" in schema.language_problem("pol")
        assert not wrong_script("pl", "Co leczy szkorbut?") and wrong_script("pl", "Что лечит цингу?")
        assert "pl" in quantities._COMMA and "pl" not in quantities._POINT
        text = "Pacjent zgłosił się do lekarza z powodu bólu w klatce piersiowej, który trwał od trzech dni. "
        assert language_of(2 * text) == "pl"
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
