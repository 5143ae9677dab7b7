"""The hand-crafted instruction records: valid, complete over the languages, in the right scripts, rightly marked."""

import collections
import re
import unicodedata
from pathlib import Path

import pytest

from mmed_jax.common import jsonl
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGES, wording_key

FILE = Path("data_gen/handcrafted/instructions.jsonl")
# Letters that a text of the language must hold, and scripts that it must not.
SCRIPTS = {
    "en": (r"[a-z]", r"[\u0100-\uffff]"),
    "zh": (r"[\u4e00-\u9fff]", r"[\u3040-\u30ff\uac00-\ud7a3\u0400-\u04ff]"),
    "ja": (r"[\u3040-\u30ff]", r"[\uac00-\ud7a3\u0400-\u04ff]"),
    "ko": (r"[\uac00-\ud7a3]", r"[\u3040-\u30ff\u4e00-\u9fff\u0400-\u04ff]"),
    "fr": (r"[a-zà-ÿœ]", r"[\u0250-\u1fff\u3000-\uffff]"),
    "es": (r"[a-zà-ÿ]", r"[\u0250-\u1fff\u3000-\uffff]"),
    "ru": (r"[а-яё]", r"[\u3000-\uffff]"),
}
# Latin letters inside a non-Latin text: units, genus names, vitamins. Anything else is a stray or a homoglyph.
LATIN_WORDS = {"Anopheles", "C", "K", "cm"}


@pytest.fixture(scope="module")
def records(repo: Path) -> list[dict]:
    return list(read_records(repo / FILE, kind="instruction"))


def texts(record: dict) -> list[str]:
    return [m["content"] for m in record["messages"]]


def test_at_least_twenty_per_language_and_unique_ids(records):
    counts = collections.Counter(r["language"] for r in records)
    assert set(counts) == set(LANGUAGES) and min(counts.values()) >= 20
    assert len({r["id"] for r in records}) == len(records)
    assert len({(r["language"], wording_key(r)) for r in records}) == len(records)


def test_groups_are_parallel_over_all_languages(records):
    groups = collections.defaultdict(list)
    for r in records:
        assert r["id"] == f"{r['provenance']['group']}-{r['language']}"
        groups[r["provenance"]["group"]].append(r)
    for members in groups.values():
        assert sorted(r["language"] for r in members) == sorted(LANGUAGES)
        assert len({r["provenance"]["topic"] for r in members}) == 1
    assert len({members[0]["provenance"]["topic"] for members in groups.values()}) == len(groups)


def test_marked_as_handcrafted_with_notice(records, repo):
    for r in records:
        assert (r["source"], r["method"], r["license"]) == ("handcrafted", "handcrafted", "Apache-2.0")
        assert "not for clinical use" in r["provenance"]["notice"]
    assert "not for clinical use" in (repo / FILE).with_name("README.md").read_text(encoding="utf-8")


def test_file_is_stored_as_it_is_read(records, repo):
    """NFC and field order on disk already: reading changes nothing, so rewriting would give the same bytes."""
    raw = (repo / FILE).read_bytes().decode("utf-8")
    assert raw == unicodedata.normalize("NFC", raw)
    assert raw == "".join(jsonl.dump_line(r) + "\n" for r in records)


def test_one_question_one_short_answer(records):
    """The demo model has to memorise them; exact match is taken on the trimmed text."""
    limits = {"zh": (35, 70), "ja": (45, 110), "ko": (55, 110)}
    for r in records:
        assert [m["role"] for m in r["messages"]] == ["user", "assistant"]
        question, answer = texts(r)
        assert question == question.strip() and answer == answer.strip()
        assert len(question) <= limits.get(r["language"], (90, 200))[0], r["id"]
        assert len(answer) <= limits.get(r["language"], (90, 200))[1], r["id"]
        assert len(re.findall(r"[.!?。！？](?=\s|$|(?<=[。！？]))", answer)) <= 3, r["id"]


def test_no_control_strings_or_invisible_characters(records):
    for text in (t for r in records for t in texts(r)):
        assert not re.search(r"<\||\|>|\bA\. |http|[\n\t]", text)
        assert all(unicodedata.category(c)[0] not in "CM" and c not in "\xa0\u202f\u3000" for c in text), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_script_of_each_language(records, language):
    present, absent = SCRIPTS[language]
    for r in (r for r in records if r["language"] == language):
        for text in texts(r):
            assert re.search(present, text), (r["id"], text)
            assert not re.search(absent, text), (r["id"], re.findall(absent, text))
            if language in ("zh", "ja", "ko", "ru"):
                assert set(re.findall(r"[A-Za-zÀ-ÿ]+", text)) <= LATIN_WORDS, (r["id"], text)


def test_questions_of_a_language_open_differently(records):
    """Near-identical prompts would make exact match depend on a few tokens far back."""
    openings = collections.Counter((r["language"], texts(r)[0][:12]) for r in records)
    assert [k for k, n in openings.items() if n > 1] == []


def test_translations_are_not_copies(records):
    answers = collections.Counter(texts(r)[1] for r in records)
    assert max(answers.values()) == 1
