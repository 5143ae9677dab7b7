"""The hand-crafted multiple-choice records: valid, parallel, balanced letters, rationales that name the answer."""

import collections
import re
import unicodedata
from pathlib import Path

import pytest

from mmed_jax.common import jsonl
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGES, wording_key

FILE = Path("data_gen/handcrafted/mcq.jsonl")
# The 21 topics by which MMedBench (arXiv 2402.13963) classifies its questions.
TOPICS = {
    "Internal Medicine",
    "Biochemistry",
    "Pharmacology",
    "Psychiatry",
    "Pediatrics",
    "Microbiology",
    "Physiology",
    "Pathology",
    "Immunology",
    "Obstetrics and Gynecology",
    "Public Health",
    "Hematology",
    "Surgery",
    "Emergency Medicine",
    "Orthopedics",
    "Neurology",
    "Anatomy",
    "Medical Genetics",
    "Radiology",
    "Dermatology",
    "Endocrinology",
}
# Letters that a question and a rationale of the language must hold, and scripts that no text of it may hold.
SCRIPTS = {
    "en": (r"[a-z]", r"[\u0080-\uffff]"),
    "zh": (r"[\u4e00-\u9fff]", r"[\u3040-\u30ff\uac00-\ud7a3\u0400-\u04ff]"),
    "ja": (r"[\u3040-\u30ff]", r"[\uac00-\ud7a3\u0400-\u04ff]"),
    "ko": (r"[\uac00-\ud7a3]", r"[\u3040-\u30ff\u4e00-\u9fff\u0400-\u04ff]"),
    "fr": (r"[a-zà-ÿœ]", r"[\u0250-\u1fff\u3000-\uffff]"),
    "es": (r"[a-zà-ÿ]", r"[\u0250-\u1fff\u3000-\uffff]"),
    "ru": (r"[а-яё]", r"[\u3000-\uffff]"),
}
# Latin letters inside a non-Latin text: species, antibody classes, a name, a chromosome. Anything else is a homoglyph.
LATIN_WORDS = {
    "Helicobacter",
    "pylori",
    "Clostridium",
    "tetani",
    "Vibrio",
    "cholerae",
    "Bordetella",
    "pertussis",
    "IgG",
    "IgM",
    "IgA",
    "IgE",
    "IgD",
    "Lachman",
    "R",
    "S",
    "X",
}


@pytest.fixture(scope="module")
def records(repo: Path) -> list[dict]:
    return list(read_records(repo / FILE, kind="mcq"))


@pytest.fixture(scope="module")
def groups(records) -> dict[str, list[dict]]:
    by_group = collections.defaultdict(list)
    for r in records:
        by_group[r["provenance"]["group"]].append(r)
    return by_group


def texts(record: dict) -> list[str]:
    return [record["question"], *record["options"].values(), record["rationale"]]


def letters_of(record: dict) -> list[str]:
    return record["answer_idx"].split(",")


def names(rationale: str, option: str, language: str) -> bool:
    """Whether the rationale holds the option word for word; as whole words except in zh, ja and ko."""
    pattern = re.escape(option.casefold())
    if language not in ("zh", "ja", "ko"):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return re.search(pattern, rationale.casefold()) is not None


def test_at_least_twenty_per_language_and_unique(records):
    counts = collections.Counter(r["language"] for r in records)
    assert set(counts) == set(LANGUAGES) and min(counts.values()) >= 20
    assert len({r["id"] for r in records}) == len(records)
    assert len({(r["language"], wording_key(r)) for r in records}) == len(records)
    assert len({r["rationale"] for r in records}) == len(records)


def test_groups_are_parallel_over_all_languages(groups):
    for group, members in groups.items():
        assert sorted(r["language"] for r in members) == sorted(LANGUAGES), group
        assert {r["id"] for r in members} == {f"{group}-{language}" for language in LANGUAGES}
        for same in (lambda r: r["provenance"]["topic"], lambda r: len(r["options"]), lambda r: len(letters_of(r))):
            assert len({same(r) for r in members}) == 1, group


def test_topics_and_kinds_of_questions(groups):
    firsts = [members[0] for members in groups.values()]
    topics = [r["provenance"]["topic"] for r in firsts]
    assert set(topics) <= TOPICS and len(set(topics)) >= 15
    assert sum(len(letters_of(r)) > 1 for r in firsts) >= 2
    assert {len(r["options"]) for r in firsts} == {4, 5}


def test_marked_as_handcrafted_with_notice(records):
    for r in records:
        assert (r["source"], r["method"], r["license"]) == ("handcrafted", "handcrafted", "Apache-2.0")
        assert r["provenance"]["method"] == "handcrafted"
        assert "not for clinical use" in r["provenance"]["notice"]
        assert r["human_checked"] is False and r["human_check_passed"] is False


def test_file_is_stored_as_it_is_read(records, repo):
    """NFC, field order and sorted letters on disk already: rewriting would give the same bytes."""
    raw = (repo / FILE).read_bytes().decode("utf-8")
    assert raw == unicodedata.normalize("NFC", raw)
    assert raw == "".join(jsonl.dump_line(r) + "\n" for r in records)


@pytest.mark.parametrize("language", LANGUAGES)
def test_letters_are_balanced_within_a_language(records, language):
    """Else a model could score by always writing one letter."""
    letters = [x for r in records if r["language"] == language for x in letters_of(r)]
    for letter in "ABCD":
        assert 0.15 <= letters.count(letter) / len(letters) <= 0.35, (letter, collections.Counter(letters))


def test_letters_change_between_the_languages_of_a_group(groups):
    """Else the letter could be carried over from another language without reading the options."""
    for group, members in groups.items():
        counts = collections.Counter(r["answer_idx"] for r in members)
        assert len(counts) >= 4 and max(counts.values()) <= 2, (group, counts)


def test_the_rationale_names_the_right_options_and_no_other(records):
    """Ties letter, option and rationale together: a letter pointing at another option fails here."""
    for r in records:
        named = [x for x, option in r["options"].items() if names(r["rationale"], option, r["language"])]
        assert named == letters_of(r), (r["id"], named)


def test_the_question_does_not_give_the_answer_away(records):
    for r in records:
        assert not [o for o in r["options"].values() if names(r["question"], o, r["language"])], r["id"]


def test_options_are_distinct_and_short(records):
    for r in records:
        options = [unicodedata.normalize("NFKC", o).casefold() for o in r["options"].values()]
        assert len(set(options)) == len(options), r["id"]
        assert all(len(o) <= 30 and len(o.split()) <= 4 for o in options), r["id"]


def test_question_and_rationale_are_one_short_sentence(records):
    """The demo model has to memorise them."""
    limits = {"zh": (30, 45), "ja": (45, 60), "ko": (45, 70), "en": (80, 130)}
    ends = re.compile(r"[.!?](?=\s|$)|[。！？]")
    for r in records:
        question, rationale = limits.get(r["language"], (100, 150))
        assert len(r["question"]) <= question and len(r["rationale"]) <= rationale, r["id"]
        assert len(ends.findall(r["question"])) == len(ends.findall(r["rationale"])) == 1, r["id"]
        assert r["question"][-1] in "?？.。" and r["rationale"][-1] in ".。", r["id"]


def test_no_control_strings_marks_or_invisible_characters(records):
    for r in records:
        for text in texts(r):
            assert text == text.strip()
            assert not re.search(r"<\||\|>|\b[A-E]\. |http|[\n\t]", text), text
            assert not re.search(r"Answer:|答案|正解|정답|Réponse|Respuesta|Ответ", text), text
            assert all(unicodedata.category(c)[0] not in "CM" and c not in "\xa0\u202f\u3000" for c in text), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_script_of_each_language(records, language):
    present, absent = SCRIPTS[language]
    for r in (r for r in records if r["language"] == language):
        assert re.search(present, r["question"]) and re.search(present, r["rationale"]), r["id"]
        for text in texts(r):
            assert not re.search(absent, text), (r["id"], re.findall(absent, text))
            if language in ("zh", "ja", "ko", "ru"):
                assert set(re.findall(r"[A-Za-zÀ-ÿ]+", text)) <= LATIN_WORDS, (r["id"], text)


def test_questions_of_a_language_open_differently(records):
    openings = collections.Counter((r["language"], r["question"][:12]) for r in records)
    assert [k for k, n in openings.items() if n > 1] == []


def test_no_question_is_also_an_instruction(records, repo):
    """The two demo files share topics, not questions, so that stage 2 has something to learn."""
    instructions = list(read_records((repo / FILE).with_name("instructions.jsonl"), kind="instruction"))
    assert not {wording_key(r) for r in records} & {wording_key(r) for r in instructions}
