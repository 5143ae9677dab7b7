"""Pages of websites: main text without menu and footer, encodings, WARC in pieces, what is broken, what is too much."""

import gzip
import json
import os
import tracemalloc
import zlib

import hypothesis
import hypothesis.strategies as st
import pytest

from data_gen.commands import corpus
from data_gen.corpus import main_content, warc_records
from data_gen.corpus.main_content import read_page
from data_gen.corpus.page_charset import decode_page
from data_gen.corpus.readers import Fields, RawDocument, format_of, reader_of
from data_gen.corpus.run_task import run_parts
from mmed_jax.common.errors import UserError
from tests.support.corpora import documents
from tests.support.web_pages import ARTICLES, page, record, warc


def read(path, unit_bytes=1 << 30):
    """(documents, [(reason, place)]) of all pieces."""
    reader = reader_of(format_of(path.name))
    items = [i for cut in reader.cuts(path, unit_bytes) for i in reader.read(path, cut, Fields())]
    documents = [i for i in items if isinstance(i, RawDocument)]
    return documents, [(i.reason, i.place) for i in items if not isinstance(i, RawDocument)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("language", ARTICLES)
def test_all_paragraphs_stay_and_no_menu_sidebar_or_footer(language):
    title, paragraphs, menu, aside, footer = ARTICLES[language]
    text = read_page(page(language)).text
    assert [line for line in text.split("\n") if line != title] == list(paragraphs)
    for outside in (*menu, aside, footer):
        assert outside not in text


CHARSETS = [("ru", "windows-1251"), ("ru", "koi8-r"), ("zh", "gb18030"), ("ja", "shift_jis"), ("ja", "euc-jp")]
CHARSETS += [("ko", "euc-kr"), ("fr", "iso-8859-1"), ("ja", "iso-2022-jp"), ("en", "utf-16")]


@pytest.mark.parametrize("language, charset", CHARSETS)
def test_encodings_said_by_http_by_the_page_or_by_none(language, charset):
    """One byte that is none of the encoding costs a character; what servers say of themselves counts least."""
    want = read_page(page(language)).text
    plain = page(language, charset=charset)
    said = page(language, f'<meta http-equiv="Content-Type" content="text/html; charset={charset}">', charset)
    assert read_page(plain, charset).text == read_page(said).text == read_page(said, "iso-8859-1").text == want
    if charset not in ("iso-2022-jp",):  # whose bytes are right ASCII
        assert read_page(plain).text == want
    if charset in ("windows-1251", "euc-kr", "gb18030"):
        broken = plain.replace(b"</article>", b"<p>\xff!</p></article>")
        assert read_page(broken, charset).text.startswith(want) and read_page(broken).text.startswith(want)
    if charset.startswith("windows"):
        assert read_page(page(language), charset).text == want  # it says so and is UTF-8


def test_bytes_of_no_encoding():
    assert decode_page(bytes(range(128, 256)) * 9, "utf-8") is None
    assert decode_page(b"caf\xe9 " * 9, "no-such-charset") == "café " * 9
    assert read_page(b"<p>\xff\xfe\x81\x00").reason == "not_html"


def mixed() -> list[bytes]:
    """Records of a crawl: three pages among what is none."""
    return [
        record(type="warcinfo"),
        record(type="request", kind=""),
        record(page("fr"), "https://example.org/fr"),
        record(b"gone", status="404 Not Found"),
        record(gzip.compress(page("es")), "https://example.org/es", content_encoding="gzip"),
        record(b"%PDF-1.7", kind="application/pdf"),
        record(b"%PDF-1.7 text/html it is not"),
        record(b""),
        record(b"<html><body><script>menu()</script></body></html>"),
        record(page("ru", charset="windows-1251"), "https://example.org/ru", kind="text/html; charset=windows-1251"),
        record(b"\x0b\x00", kind="text/html", content_encoding="br"),
    ]


NO_PAGES = ["http_status", "not_html", "not_html", "empty_page", "no_main_text", "content_encoding"]


@pytest.mark.parametrize("packed", [False, True])
def test_any_pieces_of_a_warc_are_the_whole(tmp_path, packed):
    records = mixed()
    path = write(tmp_path / ("a.warc.gz" if packed else "a.warc"), warc(records, packed))
    whole, rejects = read(path)
    assert [d.metadata["url"] for d in whole] == [f"https://example.org/{c}" for c in ("fr", "es", "ru")]
    for document, language in zip(whole, ("fr", "es", "ru")):
        assert document.text.endswith(ARTICLES[language][1][-1]) and document.metadata["date"] == "2026-01-31T00:00:00Z"
        assert document.id.startswith("urn:uuid:")
    assert [reason for reason, _ in rejects] == NO_PAGES
    offset = len(warc(records[:3], packed))
    assert rejects[0] == ("http_status", f"offset {offset}")
    for unit_bytes in (1, 3000):
        assert len(reader_of("warc").cuts(path, unit_bytes)) > 2
        assert read(path, unit_bytes) == (whole, rejects)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    data=st.data(),
    packed=st.booleans(),
    kind=st.sampled_from(["cut", "flip", "insert", "remove"]),
    unit=st.integers(1, 900),
)
def test_damage_costs_the_records_that_it_touches(tmp_path_factory, data, packed, kind, unit):
    """Records before and behind are read whole, whatever the pieces are; nothing is raised."""
    bodies = [bytes([65 + i]) * 40 for i in range(6)]
    parts = [warc([record(body, f"https://example.org/{i}")], packed) for i, body in enumerate(bodies)]
    file, hurt = b"".join(parts), data.draw(st.integers(0, 5))
    place = sum(map(len, parts[:hurt])) + data.draw(st.integers(1, len(parts[hurt]) - 1))
    if kind == "cut":
        file = file[:place]
    elif kind == "flip":
        file = file[:place] + bytes([file[place] ^ 0xFF]) + file[place + 1 :]
    elif kind == "insert":
        file = file[:place] + b"\x00junk" + file[place:]
    else:
        file = file[:place] + file[place + 3 :]
    path = write(tmp_path_factory.mktemp("w") / ("a.warc.gz" if packed else "a.warc"), file)

    def blocks(start, end):
        return [
            (r.offset, r.problem, r.block and r.block[-40:])
            for r in warc_records.read_records(path, start, end, lambda h: True, 1 << 20)
        ]

    whole = blocks(0, 1 << 62)
    kept = bodies[:hurt] if kind == "cut" else bodies[:hurt] + bodies[hurt + 2 :]
    assert [b for b in kept if b not in [block for _, _, block in whole]] == []
    # A plain record is whole that is cut behind its block, without the two ends of line there or with one.
    behind = place - sum(map(len, parts[: hurt + 1]))
    is_whole = kind == "cut" and not packed and behind in (-len("\r\n\r\n"), -len("\r\n"))
    assert is_whole or any(problem for _, problem, _ in whole) or len(whole) >= 5
    cuts = reader_of("warc").cuts(path, unit)
    assert [row for cut in cuts for row in blocks(cut.start, cut.end)] == whole


def test_broken_members_and_files(tmp_path):
    whole = warc(mixed(), True)
    cut = write(tmp_path / "cut.warc.gz", whole[:-30])
    documents, rejects = read(cut)
    assert (
        len(documents) == 3
        and rejects[-1][0] == "broken_record"
        and rejects[:-1] == read(write(tmp_path / "whole.warc.gz", whole))[1][:-1]
    )
    assert read(write(tmp_path / "no.warc.gz", b"no such thing"))[1] == [("broken_record", "offset 0")]
    assert read(write(tmp_path / "no.warc", b"<html>"))[1] == [("broken_record", "offset 0")]
    assert read(write(tmp_path / "zeros.warc.gz", whole + bytes(600)))[0] == documents
    assert read(write(tmp_path / "no.warc.zst", b"x"))[1] == [("broken_file", "")]
    one = write(tmp_path / "one.warc.gz", gzip.compress(warc(mixed(), False)))  # a single member, which is not allowed
    assert [d.text for d in read(one, 1)[0]] == [d.text for d in documents]
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page("fr")), page("fr"))
    chunked = write(tmp_path / "c.warc", record(chunks, transfer_encoding="chunked") + record(b"x", status="no status"))
    assert len(read(chunked)[0]) == 1 and read(chunked)[1][0][0] == "http_status"


def test_html_files_and_where_they_come_from(tmp_path):
    canonical = '<link rel="canonical" href="/a"><base href="https://own.example.org/x/">'
    plain = write(tmp_path / "site" / "deep" / "a.html", page("fr", canonical))
    packed = write(tmp_path / "site" / "b.htm.gz", gzip.compress(page("es")))
    assert read(plain)[0][0].metadata == {"url": "https://own.example.org/a"} and read(packed)[0][0].metadata == {}
    rows = "\ufefffile,url,date,license\ndeep/a.html,https://example.org/a,2026-01-31,CC BY 4.0\nb.htm.gz,https://example.org/b,,\n"
    table = tmp_path / "site" / "urls.csv"
    table.write_text(rows, encoding="utf-8")
    want = {"url": "https://example.org/a", "date": "2026-01-31", "license": "CC BY 4.0"}
    assert read(plain)[0][0].metadata == want and read(packed)[0][0].metadata == {"url": "https://example.org/b"}
    nearer = write(plain.parent / "urls.jsonl", json.dumps({"file": "a.html", "url": "https://nearer.org"}).encode())
    assert read(plain)[0][0].metadata == {"url": "https://nearer.org"}
    nearer.unlink()
    for text, problem in {
        "file,uri\n": "line 1: column 'uri', did you mean 'url'",
        "file,url\na.html\n": "line 2: has no url",
        "file,url\na,b\na,b\n": "line 3: names a a second time",
    }.items():
        table.write_text(text)
        os.utime(table, ns=(1, len(text)))
        with pytest.raises(UserError, match=f"urls.csv: {problem}"):
            read(plain)
    table.unlink()
    assert read(write(tmp_path / "c.html.gz", gzip.compress(page("fr"))[:-9]))[1] == [("broken_file", "")]
    assert read(write(tmp_path / "d.html", b" "))[1] == [("empty_page", "")]


SENTENCE = "The patient was admitted with fever; treatment began. "
PATHOLOGICAL = {
    "nested_too_deep": "<div>" * 1_000 + SENTENCE,
    "too_many_elements": ("<p>x</p>" * 30_000 + "<b>x</b>" * 30_000),
    "page_too_long": "<p>" + "x" * main_content.MAX_PAGE,
    "no_main_text": "<p class='" + "x " * 100_000 + "'>",
}


@pytest.mark.parametrize("reason", PATHOLOGICAL)
def test_a_pathological_page_is_a_reject(reason):
    assert read_page(f"<html><body>{PATHOLOGICAL[reason]}".encode()).reason == reason


def test_a_page_beyond_all_measure_is_not_held(tmp_path):
    """A page of 30 MB in a WARC file of 30 kB, and the page behind it."""
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" % (30_000_000 + 19)
    pack = zlib.compressobj(1, wbits=31)
    huge = pack.compress(head) + b"".join(pack.compress(bytes(1_000_000)) for _ in range(30))
    huge += pack.compress(b"\r\n\r\n") + pack.flush()
    path = write(tmp_path / "a.warc.gz", huge + gzip.compress(record(page("fr"))))
    tracemalloc.start()
    documents, rejects = read(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert len(documents) == 1 and rejects == [("page_too_long", "offset 0")]


def test_what_takes_too_long_is_stopped(monkeypatch):
    def loop(*_, **__):
        while True:
            try:
                sum(range(1000))
            except Exception:  # as trafilatura goes on after one
                continue

    monkeypatch.setattr(main_content, "MAX_SECONDS", 0.05)
    monkeypatch.setattr("trafilatura.extract", loop)
    assert read_page(page("fr")).reason == "page_too_slow"
    monkeypatch.setattr("trafilatura.extract", lambda *_, **__: 1 / 0)
    assert read_page(page("fr")).reason == "extraction_failed"


class Inline:
    """Runs the parts of a stage in this process."""

    def run(self, folder):
        run_parts(folder, folder.pending())


def test_a_build_of_websites(tmp_path, capsys, monkeypatch):
    """Folders of HTML and WARC files together, by the recipe; a changed table of addresses is another corpus."""
    monkeypatch.setattr(corpus, "make_executor", lambda *_: Inline())
    write(tmp_path / "websites" / "site" / "a.html", page("fr"))
    write(tmp_path / "websites" / "crawl" / "b.warc.gz", warc(mixed(), True))
    flags = ["--recipe=mmedc", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}"]
    flags += ["--recipe.steps=language,exact_duplicates", "--licenses=all"]
    for url in ("https://one.example.org", "https://two.example.org"):
        write(tmp_path / "websites" / "urls.jsonl", json.dumps({"file": "site/a.html", "url": url}).encode())
        corpus.main(["build", *flags])
        kept = documents(tmp_path / "out")
        # The French page is in both, and one of the two goes as an exact duplicate.
        assert {d["language"] for d in kept} == {"fr", "es", "ru"} and len(kept) == 3
        rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_bytes().splitlines()]
        assert [(r["file"], r["reason"]) for r in rejects] == [("websites/crawl/b.warc.gz", r) for r in NO_PAGES]
    assert capsys.readouterr().out.count("filter-") == 2
    work = tmp_path / "out" / "work"
    assert len(list(work.glob("filter-*"))) == 2 and len(list(work.glob("inputs-*"))) == 1
    write(tmp_path / "websites" / "urls.jsonl", b'{"file": "site/a.html"}')
    with pytest.raises(UserError, match="urls.jsonl: line 1: has no url"):
        corpus.main(["build", *flags])
