"""The prompt files: complete over methods and languages, in the right script, pinned to their versions."""

import json
import re

import pytest

from data_gen.methods.topics import TOPICS
from data_gen.prompts import versions as pins
from data_gen.prompts.versions import NAMES, load_prompt, versions, words_hash
from mmed_jax.common.errors import UserError
from mmed_jax.data.languages.identify import language_problem
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.llm_api import prompt_file

FIELDS = {
    "answer_expanding": ("answer", "doubt"),
    "qa_generation": ("pairs", "question", "answer", "evidence"),
    "translation": ("untranslatable",),
    "rationale": ("rationale", "answer", "doubt"),
    "topics": ("topic",),
    "reanswer": ("answer", "sure"),
    "rationale_judge": ("correctness", "completeness", "reasoning", "language"),
}
RULES = {
    "answer_expanding": 6,
    "qa_generation": 7,
    "translation": 7,
    "rationale": 6,
    "topics": 4,
    "reanswer": 3,
    "rationale_judge": 7,
}
ENGLISH = ("topics", "reanswer", "rationale_judge")  # one wording for all languages


def test_which_prompts_have_a_wording_per_language():
    assert {load_prompt(name, "ko").language for name in ENGLISH} == {"en"}
    assert {load_prompt(name, "ko").language for name in set(FIELDS) - set(ENGLISH)} == {"ko"}


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_prompt_is_complete(method, language):
    prompt = load_prompt(method, language)
    assert re.fullmatch(rf"{method}/\d+", prompt.version)
    assert "{{" not in prompt.system and "<<<DATA" in prompt.system
    assert set(re.findall(r"\{\{(\w+)\}\}", prompt.user)) == {"data", *(["pairs"] if method == "qa_generation" else [])}
    for name in FIELDS.get(method, ()):
        assert f'"{name}"' in prompt.system or f"« {name} »" in prompt.system, name
    words = re.sub(r"<<<DATA|DATA>>>|\{.*?\}|\"\w+\"", " ", prompt.system)
    assert language_problem(words, prompt.language) is None
    numbers = re.findall(r"^(\d)\. ", prompt.system, re.MULTILINE)
    assert numbers == [str(i) for i in range(1, RULES.get(method, len(numbers)) + 1)]


def test_the_words_of_each_version_are_pinned():
    """A changed prompt under an old version would hide in the provenance of rows: raise `version`, then
    `python -m data_gen.prompts`."""
    for method in NAMES:
        assert versions().get(load_prompt(method, "en").version) == words_hash(method), method


def test_a_change_without_a_new_version_is_refused(tmp_path, monkeypatch):
    for file in pins.FOLDER.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    topics = tmp_path / "topics.toml"
    monkeypatch.setattr(pins, "FOLDER", tmp_path)

    def change(old, new):
        clear()
        topics.write_text(topics.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    try:
        change("Prefer the narrower", "Take the narrower")
        with pytest.raises(UserError, match=r"topics\.toml: the words of topics/1 were changed"):
            pins.main([])
        change("version = 1", "version = 2")
        pins.main([])
        pinned = json.loads((tmp_path / "versions.json").read_text(encoding="utf-8"))
        assert {"topics/1", "topics/2"} <= set(pinned) and pinned["topics/2"] == words_hash("topics")
    finally:
        monkeypatch.undo()
        clear()


def clear():
    prompt_file._sections.cache_clear()
    prompt_file.load_prompt.cache_clear()


def test_what_is_filled_in_is_not_filled_again():
    text = load_prompt("qa_generation", "en").messages("{{pairs}} {{reminder}} {{data}}", pairs=2)[1]["content"]
    assert "{{pairs}} {{reminder}} {{data}}" in text and "Pairs to write: 2" in text


def test_topics_are_those_of_mmedbench():
    assert len(set(TOPICS)) == 21
    assert all(f"\n{t}\n" in load_prompt("topics", "ko").system for t in TOPICS)
    assert load_prompt("topics", "ko").language == "en"


def test_unknown_prompts():
    for method, language in (("summaries", "en"), ("rationale", "de")):
        with pytest.raises(KeyError):
            load_prompt(method, language)
