"""The keyword filter: its counts against brute force, MMedC's way of counting, thresholds, the project's lists."""

import pickle
import unicodedata

import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.corpus.keyword_lists import Keyword, normal, own_list, parse_keyword, read_folder, read_keywords
from data_gen.corpus.keywords import (
    THRESHOLDS,
    ExactMatcher,
    KeywordFilter,
    KeywordRule,
    KeywordSettings,
    PaperMatcher,
    Score,
)
from mmed_jax.common.errors import UserError
from mmed_jax.data.languages.declarations import DECLARATIONS
from mmed_jax.data.languages.scripts import SCRIPTS
from tests.data_gen.corpus.corpus_texts import MEDICAL, ORDINARY

CODES = [language.code for language in DECLARATIONS]


def joins(left: str, right: str) -> bool:
    """Whether a word goes on from one character to the next, in writing with spaces."""
    dense = [any(SCRIPTS[name].match(c) for name in ("han", "kana", "hangul")) for c in (left, right)]
    return left.isalnum() and right.isalnum() and not any(dense)


def brute_force(text: str, keywords: list[Keyword]) -> tuple[int, int, int]:
    """Distinct keywords, letters of all finds, letters of the text: every keyword at every place."""
    text = unicodedata.normalize("NFKC", text).lower().replace("ё", "е")
    forms: dict[str, bool] = {}
    for keyword in keywords:
        form = " ".join(normal(keyword.stem or keyword.word).split())
        forms[form] = forms.get(form, False) or keyword.stem != ""
    unique, letters = set(), 0
    for form, goes_on in forms.items():
        for start in range(len(text) - len(form) + 1):
            end = start + len(form)
            if text[start:end] != form or start and joins(text[start - 1], form[0]):
                continue
            if goes_on or end == len(text) or not joins(form[-1], text[end]):
                unique.add(form)
                letters += len(form)
    return len(unique), letters, len(text)


LETTERS = "，…aabB -é́İıßﬁ肝炎ガ간염Ёеx1_."


@settings(max_examples=300, deadline=None)
@given(
    st.text(LETTERS, max_size=60),
    st.lists(st.tuples(st.text(LETTERS, min_size=1, max_size=4), st.booleans()), min_size=1, max_size=8),
)
def test_counts_equal_brute_force(text, words):
    keywords = [Keyword(word, word if goes_on else "") for word, goes_on in words if word.strip()]
    unique, letters, length = brute_force(text, keywords)
    score = ExactMatcher(keywords).score(text)
    assert score == Score(unique, letters / length if length else 0.0)


def test_exact_and_paper_count_differently():
    keywords = [Keyword("fever"), Keyword("gastrointestinal"), Keyword("kidney stone"), Keyword("biopsy", "biops")]
    text = "Fever, fever; biopsies of kidney stones. Nongastrointestinal feverfew."
    exact, paper = ExactMatcher(keywords).score(text), PaperMatcher(keywords, spaces=True).score(text)
    assert exact == Score(2, (5 + 5 + 5) / len(text))
    # Of the paper: substrings of the long ones, and no short one, since none stands between spaces alone.
    assert paper == Score(2, (len("gastrointestinal") + len("kidney stone")) / len(text))
    assert PaperMatcher([Keyword("肝炎"), Keyword("炎")], spaces=False).score("急性肝炎") == Score(2, 3 / 4)
    assert ExactMatcher([Keyword("肝炎"), Keyword("炎")]).score("急性肝炎") == Score(2, 3 / 4)


def published_way(text: str, words: list[str], unique_least: int, share_least: float) -> bool:
    """The published rule for languages with spaces, with its early accept, step by step."""
    lowered, unique, letters = text.lower(), 0, 0
    long = [w for w in words if len(w) > 10 or len(w) > 5 and len(w.split()) > 1]
    for word in long:
        unique += word in lowered
        letters += lowered.count(word) * len(word)
    if unique >= unique_least and letters / len(text) >= share_least:
        return True
    pieces = lowered.split()
    for word in set(words) - set(long):
        unique += word in pieces
        letters += pieces.count(word) * len(word)
    return unique >= unique_least and letters / len(text) >= share_least


@given(st.lists(st.sampled_from("renal failure kidney stone gastrointestinal of, the . stones".split()), min_size=1))
def test_paper_mode_is_the_published_rule(pieces):
    text = " ".join(pieces)
    words = ["renal", "renal failure", "kidney stone", "gastrointestinal", "stone", "failure"]
    rule = KeywordRule(KeywordSettings("paper", {}, {"en": (2, 0.3)}))
    rule._matchers["en"] = PaperMatcher(map(Keyword, words), spaces=True)
    assert (rule.judge(text, "en") is None) == published_way(text, words, 2, 0.3)


@pytest.fixture(scope="module")
def rule():
    return KeywordRule(KeywordSettings())


@pytest.mark.parametrize("code", CODES)
def test_a_medical_page_is_kept_and_an_ordinary_one_has_no_keyword(rule, code):
    assert rule.judge(MEDICAL[code], code) is None
    assert rule.score(ORDINARY[code], code) == Score(0, 0.0)
    assert rule.judge(ORDINARY[code], code) == "too few keywords"


@pytest.mark.parametrize("code", CODES)
def test_the_own_lists(code):
    """Two hundred words a language, in its script, each once, none of it an inflected form that another stem finds."""
    keywords = read_keywords(own_list(code), code)
    lines = [x for x in own_list(code).read_text(encoding="utf-8").splitlines() if x and not x.startswith("#")]
    assert len(keywords) == len(lines) == 200
    scripts = dict(zip(CODES, (language.scripts for language in DECLARATIONS)))[code]
    for keyword in keywords:
        letters = [c for c in keyword.word if c.isalpha()]
        assert len(letters) >= (2 if code in ("zh", "ja", "ko") else 3), keyword
        assert all(any(SCRIPTS[s].match(c) or c == "ー" for s in scripts) for c in letters), keyword
        assert unicodedata.is_normalized("NFKC", keyword.word) and keyword.word.startswith(keyword.stem)
    assert len({normal(keyword.word) for keyword in keywords}) == 200


def test_published_thresholds_and_their_borders(rule):
    assert THRESHOLDS["ru"] == (4, 0.02) and THRESHOLDS["zh"] == (5, 0.05) and THRESHOLDS["fr"] == (4, 0.04)
    assert rule.reason(Score(5, 0.04), "en") is None
    assert rule.reason(Score(4, 0.9), "en") == "too few keywords"
    assert rule.reason(Score(9, 0.0399), "en") == "too small a share of keywords"
    assert [rule.is_borderline(s, "en") for s in (Score(5, 0.5), Score(4, 0.05), Score(9, 0.2), Score(0, 0.0))] == [
        True,
        True,
        False,
        False,
    ]
    assert rule.judge(MEDICAL["en"], "de") == rule.judge("", None) == "no keyword list for its language"


def test_the_step_marks_documents_and_survives_pickling():
    step = KeywordFilter()
    assert step.filter(Document(MEDICAL["en"], "0", metadata={"language": "en"})) is True
    step = pickle.loads(pickle.dumps(step))
    documents = [
        Document(MEDICAL["en"], "a", metadata={"language": "en"}),
        Document(ORDINARY["en"], "b", metadata={"language": "en"}),
        Document(MEDICAL["en"], "c"),
    ]
    kept = list(step.run(iter(documents)))
    assert [doc.id for doc in kept] == ["a"] and kept[0].metadata["keywords"] >= 5
    assert documents[1].metadata["keywords"] == 0 and documents[1].metadata["borderline"] is False
    dropped = {name for name in step.stats.stats if name.startswith("dropped_")}
    assert dropped == {"dropped_too few keywords", "dropped_no keyword list for its language"}


def test_settings_are_checked():
    with pytest.raises(UserError, match="'exakt': unknown, did you mean 'exact'"):
        KeywordSettings("exakt")
    with pytest.raises(UserError, match="keyword lists: no language 'frr', did you mean 'fr'"):
        KeywordSettings(lists={"frr": "a.txt"})
    with pytest.raises(UserError, match="keyword lists: fr: 5 is no file's name"):
        KeywordSettings(lists={"fr": 5})
    with pytest.raises(UserError, match="not both at least 0"):
        KeywordSettings(thresholds={"en": (-1, 0.1)})
    with pytest.raises(UserError, match="no list of keywords for language 'pl'"):
        KeywordSettings(thresholds={"pl": (5, 0.04)}).files()


FILES = {
    "own.txt": ("# comment\nbiops|y\n\nHépatite\nBiops|ies\n", [("biopsy", "biops"), ("Hépatite", "")]),
    "fr.dic": ("3\nfoie/S.()\nbilan\\/tour/X\tpo:nom\nFoie\n", [("foie", ""), ("bilan/tour", "")]),
    "mesh.bin": (
        "*NEWRECORD\nRECTYPE = D\nMH = Abdomen, Acute\nENTRY = Belly\n\n*NEWRECORD\nMH = Asthma\nAQ = BL\n",
        [("Acute Abdomen", ""), ("Asthma", "")],
    ),
    "desc.xml": (
        "<DescriptorRecordSet><DescriptorRecord><DescriptorUI>D1</DescriptorUI><DescriptorName><String>Calcimycin"
        "</String></DescriptorName><SeeRelatedList><DescriptorReferredTo><DescriptorName><String>Other</String>"
        "</DescriptorName></DescriptorReferredTo></SeeRelatedList></DescriptorRecord></DescriptorRecordSet>",
        [("Calcimycin", "")],
    ),
    "keywords.py": (
        "raise SystemExit\njp_medical_words = ['肝炎', '肺炎']\nfr_medical_words = ['rein']\nfr_other = ['pas moi']\n"
        "fr_medical_biology_words = ['foie', 'rein']",
        [("rein", ""), ("foie", "")],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_lists_of_a_user(tmp_path, name):
    text, expected = FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [tuple(keyword) for keyword in read_keywords(tmp_path / name, "fr")] == expected


def test_lists_by_alias_encoding_and_folder(tmp_path):
    (tmp_path / "keywords.py").write_text(FILES["keywords.py"][0], encoding="utf-8")
    assert [k.word for k in read_keywords(tmp_path / "keywords.py", "ja")] == ["肝炎", "肺炎"]
    (tmp_path / "ru.aff").write_bytes(b"SET KOI8-R\n")
    (tmp_path / "ru.dic").write_bytes("1\nпечень/A\n".encode("koi8-r"))
    assert [k.word for k in read_keywords(tmp_path / "ru.dic", "ru")] == ["печень"]
    assert read_folder(tmp_path) == {"ru": tmp_path / "ru.dic"}
    assert KeywordSettings(lists={"ru": str(tmp_path / "ru.dic")}).files()["ru"] == tmp_path / "ru.dic"


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.csv", b"x", "not a list of keywords: .csv"),
        ("a.txt", b"# nothing\n", "no keyword of language 'fr' in it"),
        ("a.txt", b"caf\xe9\n", "byte 3 is not utf-8; save it as UTF-8"),
        ("a.xml", b"<x>", "not XML"),
        ("a.py", b"x = [", "not Python"),
        ("a.py", b"en_medical_words = ['liver']", "no keyword of language 'fr' in it"),
        ("gone.txt", None, "no such file"),
    ],
)
def test_bad_lists_are_one_line(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_keywords(tmp_path / name, "fr")
    assert problem in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


def test_keyword_lines():
    assert parse_keyword("biops|y") == Keyword("biopsy", "biops")
    assert parse_keyword("patient|") == Keyword("patient", "patient")
    assert parse_keyword("kidney stone") == Keyword("kidney stone")
