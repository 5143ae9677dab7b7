"""The demo: what becomes of each of its documents, and of what cannot be read."""

import json
from collections import Counter

import pytest

from data_gen.commands.corpus import main
from data_gen.corpus.document_files import read_lines
from scripts.make_demo_book import BOOK as BOOK_FILE
from scripts.make_demo_book import NOTICE, TITLE, book_bytes
from tests.support.corpora import demo_texts, documents

LANGUAGES = ("en", "zh", "ja", "ko", "fr", "es", "ru")
# Of each language. One of a pair stays, whichever has the smaller id.
PAIRS = {"exact duplicate": ("diabetes", "diabetes-copy"), "near duplicate": ("asthma", "asthma-changed")}
DROPPED = {
    **{f"{c}-harbour": ("keywords", "too few keywords") for c in LANGUAGES},
    **{f"{c}-wrong-language": ("language", "another language than stated") for c in LANGUAGES},
    "en-short": ("keywords", "too few keywords"),
    "en-repeats": ("quality", "dup_line_frac"),
    "en-unlicensed": ("licenses", "licence unknown"),
}
BOOK, PAGE = "corpus/demo/book/blood_pressure.pdf", "corpus/demo/pages/otitis.html"
KEPT = {*(f"{c}-anemia" for c in LANGUAGES), "corpus/demo/leaflets/fievre.txt", PAGE, BOOK}
REJECTS = {
    ("web.ndjson", "line 10", "not_utf8"),
    ("web.ndjson", "line 21", "broken_json"),
    ("vacunas.txt", "line 4", "not_utf8"),
    ("blood_pressure.pdf", "page 5", "image_page"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    main(["build", "--recipe=mmedc:demo", f"--output={output}", "--workers=2"])
    return output


def dropped(output) -> dict[str, tuple[str, str]]:
    """{name of a document: (step, reason)}."""
    stages = json.loads((output / "corpus.json").read_bytes())["stages"]
    found = {}
    for stage in ("filter", "clean"):
        for part in sorted((output / "work" / stages[stage] / "parts").iterdir()):
            for line in read_lines(part, "dropped.jsonl.zst"):
                found[line["original_id"]] = line["step"], line["reason"]
    return found


def test_every_document_has_its_verdict(demo):
    gone, kept = dropped(demo), {d.get("original_id", d["file"]): d for d in documents(demo)}
    assert {name: gone[name] for name in DROPPED} == DROPPED and KEPT <= set(kept)
    for code in LANGUAGES:
        for reason, pair in PAIRS.items():
            names = [f"{code}-{name}" for name in pair]
            # Its language is not stated; it is French, and so almost the same as a French document.
            names += ["unstated"] if (code, reason) == ("fr", "near duplicate") else []
            assert [gone[n][1] for n in names if n in gone] == [reason] * (len(names) - 1), names
    assert len(gone) + len(kept) == 56 and not set(gone) & set(kept)


def test_a_test_question_is_taken_out_and_an_address_masked(demo):
    """What stands around them stays."""
    texts = {d["original_id"]: d["text"] for d in documents(demo) if "original_id" in d}
    notes = json.loads((demo / "corpus.json").read_bytes())["books"]["clean"]["notes"]
    assert ["decontamination", "test items mcq", 7] in notes
    raw = {d["id"]: d["text"] for d in demo_texts()}
    for code in LANGUAGES:
        name = f"{code}-anemia"
        text, question, asking = raw[name].split("\n\n")
        assert texts[name].startswith(text) and question not in texts[name]
        assert "name@example.org" in texts[name] and "anemi" not in texts[name].split("\n\n")[-1]


def test_a_page_is_its_main_text_with_what_the_table_beside_it_says(demo):
    (page,) = [d for d in documents(demo) if d["source"] == "pages"]
    assert (page["url"], page["date"]) == ("https://demo.example.org/otitis", "2026-01-01")
    lines = page["text"].split("\n")
    assert len(lines) == 6 and lines[0] == "Otitis media aguda" and lines[-1].startswith("Las complicaciones son raras")


def test_a_book_is_read_by_pages(demo):
    """The file is the one that its script makes; running lines are gone, divided words are whole."""
    assert BOOK_FILE.read_bytes() == book_bytes()
    (book,) = (d for d in documents(demo) if d["file"] == BOOK)
    assert book["pages"] == "1-4"
    assert TITLE not in book["text"] and NOTICE not in book["text"] and "severe infection" in book["text"]
    assert book["text"].startswith("1. What blood pressure is\nThe heart pumps blood into the arteries")


def test_what_cannot_be_read_is_named(demo):
    rejects = [json.loads(line) for line in (demo / "rejects.jsonl").read_bytes().splitlines()]
    assert {(r["file"].rpartition("/")[2], r["place"], r["reason"]) for r in rejects} == REJECTS


def test_books_and_report(demo):
    summary = json.loads((demo / "corpus.json").read_bytes())
    read = sum(row[-1] for row in summary["books"]["filter"]["read"])
    gone = sum(row[-1] for stage in ("filter", "clean") for row in summary["books"][stage]["dropped"])
    assert read == 60 == gone + len(documents(demo))
    languages = Counter(d["language"] for d in documents(demo))
    assert languages == {c: 4 if c in ("en", "es", "fr") else 3 for c in LANGUAGES}
    page = (demo / "report.html").read_text(encoding="utf-8")
    for text in ("4 lines, rows or files could not be read", "10.56", "too few keywords", "not for clinical"):
        assert text in page
    assert all("Apache-2.0" == d["license"] for d in documents(demo))
