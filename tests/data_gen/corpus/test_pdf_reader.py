"""PDF files: each page by its layer or its picture, pieces of long books; what is broken costs no more than itself."""

import os
import random
import shutil
import stat
import sys

import numpy as np
import pytest

from data_gen.corpus import ocr, pdf_process
from data_gen.corpus.filter_stage import filter_unit
from data_gen.corpus.ocr import ocr_dependencies
from data_gen.corpus.page_columns import split_columns
from data_gen.corpus.pdf_reader import PdfFile
from data_gen.corpus.pdf_settings import PdfSettings
from data_gen.corpus.readers import Cut, Fields, RawDocument, Reject, reader_of
from data_gen.corpus.units import InputFile, Piece, Unit, stated_language
from mmed_jax.common.errors import UserError, WorkError
from tests.support.corpora import demo_texts
from tests.support.pdf_files import Page, encrypted_pdf, pdf_bytes

WORDS = "the heart is a muscle that pumps blood through vessels of body lungs and kidneys every minute day".split()
SCAN = (60, 80, bytes(255 if (x // 3 + y // 2) % 3 else 0 for y in range(80) for x in range(60)))
READ = [
    f"These words were read from the picture of the {n} page." for n in ("first", "second", "third", "fourth", "last")
]
TESSERACT = """#!/bin/sh
case "$1" in
--version) echo "tesseract $VERSION"; exit;;
--list-langs) printf 'List of available languages in "%s" (2):\\neng\\njpn_vert\\n' "$DATA"; exit;;
esac
echo "$OMP_THREAD_LIMIT $@" >> "$LOG"
head -1 >> "$LOG"; cat > /dev/null
eval "$THEN"
sed -n "$(($(wc -l < "$LOG") / 2))p" "$DATA/read"
"""
RAPIDOCR = """
from types import SimpleNamespace

class RapidOCR:
    def __init__(self, params): assert 1 in params.values()
    def __call__(self, image):
        lines = f"{image.dtype} {image.shape} {image.min()}-{image.max()}", "肺炎是一种感染性疾病需要治疗"
        return SimpleNamespace(txts=lines)
"""


def lines(number: int, count: int = 12) -> list[str]:
    draw = random.Random(number)
    return [" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(count)]


def write(path, pages):
    path.write_bytes(pdf_bytes(pages))
    return path


def read(path, unit_bytes=10**8, language="en", **settings):
    """Documents as (text, pages) and rejects as (reason, place), of all pieces."""
    reader = PdfFile(PdfSettings(**settings), language)
    items = [item for cut in reader.cuts(path, unit_bytes) for item in reader.read(path, cut, Fields())]
    return [(i.text, i.metadata["pages"]) if isinstance(i, RawDocument) else (i.reason, i.place) for i in items]


@pytest.fixture
def tesseract(tmp_path, monkeypatch):
    """A program of that name that says a line of READ for each page; returns its log."""
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(TESSERACT)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "eng.traineddata").write_text("weights")
    (tmp_path / "read").write_text("\n".join(READ))
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    for name, value in {"DATA": tmp_path, "LOG": tmp_path / "log", "VERSION": "5.3.0", "THEN": ""}.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "log"


@pytest.fixture
def mixed(tmp_path):
    """A page of text, a scan, a scan with a layer of a few words, an empty one, a short one, a garbled one."""
    garbled = ["\uf041\uf042\uf043 \ufffd" * 8] * 9
    pages = [Page(lines(1)), Page(image=SCAN), Page(["Downloaded from a library"], SCAN), Page(), Page(["Chapter 2"])]
    return write(tmp_path / "mixed.pdf", [*pages, Page(lines(6, 9), reads_as=garbled)])


def test_each_page_is_judged_for_itself(mixed, tesseract):
    text = "\n".join(lines(1)) + "\n\n"
    rejects = [("image_page", f"page {n}") for n in (2, 3, 6)]
    assert read(mixed) == [*rejects, (f"{text}Chapter 2", "1,5")]
    assert not tesseract.exists()
    text += f"{READ[0]}\n\n{READ[1]}\n\nChapter 2\n\n{READ[2]}"
    assert read(mixed, ocr="tesseract") == [(text, "1-3,5-6")]
    reader = PdfFile(PdfSettings("tesseract"), "en")
    assert next(reader.read(mixed, Cut(0, 1, 0), Fields())).metadata == {"pages": "1"}
    tesseract.unlink()
    assert next(reader.read(mixed, Cut(0, 6, 0), Fields())).metadata["ocr_pages"] == "2-3,6"
    # One thread, English, the whole page as a picture of 300 dots an inch (8.26 by 11.69 of them).
    asked, size = tesseract.read_text().split("\n")[:2]
    assert asked == "1 - - -l eng --psm 3 --dpi 300" and size == "P5 2480 3509 255"


def test_layers_in_all_languages_are_read_as_they_are(tmp_path):
    texts = {d["language"]: d["text"] for d in demo_texts() if d.get("language") and d["id"].endswith("-anemia")}
    assert len(texts) == 7
    for language, text in texts.items():
        rows = [text[i : i + 60].strip() for i in range(0, 300, 60)]
        rows = [row.replace("-", "").replace("\n", " ") for row in rows]
        path = write(tmp_path / f"{language}.pdf", [Page(rows)])
        assert "".join(read(path, language=language)[0][0].split()) == "".join("".join(rows).split())


def test_korean_is_read_column_by_column(tmp_path, tesseract):
    """Others leave the layout to tesseract."""
    printed_hw = np.full((400, 400), 255, np.uint8)
    for top in range(40, 360, 20):  # lines of letters, some dots of which are ink
        printed_hw[top : top + 12, 30:370] = np.where(np.random.default_rng(top).random((12, 340)) < 0.4, 0, 255)
    columns_hw = printed_hw.copy()
    columns_hw[:, 180:220] = 255
    assert [part[:2] for part in split_columns(400, 400, printed_hw.tobytes())] == [(400, 400)]
    parts = split_columns(400, 400, columns_hw.tobytes())
    joined_hw = np.concatenate([np.frombuffer(part[2], np.uint8).reshape(400, -1) for part in parts], 1)
    assert joined_hw.tolist() == columns_hw.tolist()
    assert [part[0] for part in parts] == pytest.approx([200, 200], abs=8)
    path = write(tmp_path / "a.pdf", [Page(image=(400, 400, columns_hw.tobytes()), size=(288, 288))])
    assert len(read(path, language="ko", ocr="tesseract", dpi=100)) == 1
    calls = tesseract.read_text().split("\n")[:-1]
    assert [calls[0], calls[2]] == ["1 - - -l kor --psm 4 --dpi 100"] * 2 and len(calls) == 4
    read(path, language="zh", ocr="tesseract", dpi=100)
    assert tesseract.read_text().split("\n")[4:5] == ["1 - - -l chi_sim --psm 3 --dpi 100"]


def test_rapidocr_reads_a_picture(tmp_path, monkeypatch):
    """A stand-in for the package, which is an extra of its own."""
    (tmp_path / "rapidocr.py").write_text(RAPIDOCR)
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "a.pdf", [Page(image=SCAN)])
    ocr._rapidocr_engine.cache_clear()
    try:
        text = read(path, language="zh", ocr="rapidocr", dpi=100)[0][0]
    finally:
        ocr._rapidocr_engine.cache_clear()
        sys.modules.pop("rapidocr", None)
    assert text == "uint8 (1170, 827, 3) 0-255\n肺炎是一种感染性疾病需要治疗"


@pytest.mark.skipif(not shutil.which("tesseract"), reason="tesseract is not installed (apt-get install tesseract-ocr)")
def test_tesseract_reads_a_drawn_page(tmp_path):
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (900, 260), 255)
    font = ImageFont.load_default(32)
    ImageDraw.Draw(picture).text((40, 40), "The heart pumps blood through\nthe vessels of the body.", 0, font)
    path = write(tmp_path / "a.pdf", [Page(image=(900, 260, picture.tobytes()), size=(216, 62.4))])
    assert read(path, ocr="tesseract") == [("The heart pumps blood through the vessels of the body.", "1")]


def test_a_picture_that_is_not_read_is_one_reject(mixed, tesseract, monkeypatch):
    monkeypatch.setenv("THEN", "echo 'cannot read' >&2; exit 3")
    assert [i[0] for i in read(mixed, ocr="tesseract", dpi=100)[:-1]] == ["ocr_failed"] * 3
    monkeypatch.setenv("THEN", "exit 0")
    # Where the layer has words and the picture none, the layer stays.
    assert [i[0] for i in read(mixed, ocr="tesseract", dpi=100)[:-1]] == ["nothing_recognised"] * 2
    assert "Downloaded" in read(mixed, ocr="tesseract", dpi=100)[-1][0]
    monkeypatch.setenv("THEN", "exec sleep 20")
    scan = write(mixed.with_name("scan.pdf"), [Page(image=SCAN)])
    assert read(scan, ocr="tesseract", timeout_s=0.3) == [("ocr_timeout", "page 1")]


def test_long_books_are_cut_and_running_lines_go(tmp_path):
    pages = [Page([f"Handbook {n + 1}", *lines(n), f"page {n + 1}"]) for n in range(130)]
    path = write(tmp_path / "book.pdf", pages)
    reader = reader_of("pdf")
    cuts = reader.cuts(path, 50_000_000)
    assert [(c.start, c.end) for c in cuts] == [(0, 43), (43, 87), (87, 130)]
    assert [c.bytes for c in cuts] == [43_000_000, 44_000_000, 43_000_000]
    assert len(reader.cuts(path, 1)) == 7, "a piece has about twenty pages at least"
    whole = [read(path, size) for size in (50_000_000, 200_000_000)]
    assert [pages for _, pages in whole[0]] == ["1-43", "44-87", "88-130"] and whole[1][0][1] == "1-130"
    text = "\n\n".join("\n".join(page.lines[1:-1]) for page in pages)
    assert "\n\n".join(text for text, _ in whole[0]) == whole[1][0][0] == text


def test_the_papers_pages(tmp_path, tesseract):
    short, long = (write(tmp_path / f"{n}.pdf", [Page(lines(i)) for i in range(n)]) for n in (99, 101))
    assert [pages for _, pages in read(short, pages="paper")] == ["1-99"]
    assert [pages for _, pages in read(long, pages="paper")] == ["6-50", "51-96"]
    # Two pages of text in five are fewer than 200 letters a page: all five are read from their pictures.
    scans = write(tmp_path / "scans.pdf", [Page(lines(1, 6))] * 2 + [Page(image=SCAN)] * 3)
    assert read(scans, pages="paper") == [("image_page", f"page {n}") for n in range(1, 6)]
    assert read(scans, pages="paper", ocr="tesseract", dpi=100) == [("\n\n".join(READ), "1-5")]


BROKEN = {
    "encrypted": lambda data: encrypted_pdf(),
    "broken_file": lambda data: b"%PDF-1.4 and no more",
    "no_pages": lambda data: pdf_bytes([]),
    "no_text": lambda data: pdf_bytes([Page(), Page()]),
}


def test_broken_files_are_one_reject(tmp_path):
    for reason, make in BROKEN.items():
        path = tmp_path / f"{reason}.pdf"
        path.write_bytes(make(pdf_bytes([Page(lines(1))])))
        assert read(path) == [(reason, "")]


def test_damage_anywhere_raises_nothing(tmp_path):
    data, draw = pdf_bytes([Page(lines(n), SCAN if n == 1 else None) for n in range(3)]), random.Random(0)
    path, whole = tmp_path / "a.pdf", 0
    for _ in range(60):
        cut = draw.randrange(len(data))
        damaged = bytearray(data if draw.random() < 0.5 else data[:cut])
        for _ in range(draw.randrange(6)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        items = read(path)
        assert items and all(isinstance(i[0], str) for i in items)
        whole += len(items) == 1 and items[0][1] == "1-3"
    assert whole < 50


def test_sizes_are_bounded(tmp_path, tesseract):
    """200 inches a side would be 3.6 billion dots."""
    path = write(tmp_path / "a.pdf", [Page(image=SCAN, size=(14400, 14400)), Page(image=SCAN, size=(3400, 2400))])
    assert read(path, ocr="tesseract") == [("page_too_large", "page 1"), (READ[0], "2")]
    width, height = map(int, tesseract.read_text().split("\n")[1].split()[1:3])
    assert 30e6 < width * height <= 36e6


SERVER = """
import os, runpy, signal, sys, time
module = runpy.run_path({program!r})
text = module["Server"].text
def broken(self, number):
    if number == 1:
        {what}
    return text(self, number)
module["Server"].text = broken
module["main"]()
"""


def test_a_page_that_ends_pdfium_or_never_ends_costs_itself(tmp_path, monkeypatch):
    path = write(tmp_path / "a.pdf", [Page(lines(n)) for n in range(3)])
    program, real = tmp_path / "server.py", str(pdf_process._PROGRAM)
    monkeypatch.setattr(pdf_process, "_PROGRAM", program)
    monkeypatch.setattr(pdf_process, "PAGE_TIMEOUT_S", 1.0)
    text = "\n".join(lines(0)) + "\n\n" + "\n".join(lines(2))
    cases = {"page_crashed": "os.kill(os.getpid(), signal.SIGSEGV)", "page_timeout": "time.sleep(60)"}
    try:
        for reason, what in cases.items():
            pdf_process.page_process().close()
            program.write_text(SERVER.format(program=real, what=what))
            assert read(path) == [(reason, "page 2"), (text, "1,3")]
        pdf_process.page_process().close()
        program.write_text(SERVER.format(program=real, what="os.kill(os.getpid(), signal.SIGKILL)"))
        with pytest.raises(WorkError, match=r"a.pdf page 2: the process that reads pages was ended by SIGKILL"):
            read(path)
    finally:
        pdf_process.page_process().close()


def source(language="en", **pdf):
    settings = {"ocr": "tesseract", **pdf}
    return {"language": language, "license": "CC0", "fields": {}, "keywords": False, "quality": False, "pdf": settings}


def books(*names):
    return [InputFile("books", name, f"/raw/{name}", "pdf", 1, 1) for name in names]


REFUSED = {
    ("fr",): "source.books: tesseract has no data for French (fra); apt-get install tesseract-ocr-fra, or --recipe.",
    ("zh",): "tesseract has no data for Chinese (chi_sim); apt-get install tesseract-ocr-chi-sim",
    ("",): "source.books: /raw/x.pdf: has no language, and pictures of pages are read by language; set --recipe.sou",
    ("folder",): "/raw/x.pdf: lies in no folder of a language",
    ("ru", "rapidocr"): "pdf.ocr=rapidocr: not for Russian: the models in its wheel read Cyrillic as Latin letters",
    ("ko", "rapidocr"): "pdf.ocr=rapidocr: not for Korean: the models in its wheel read hangul as other letters",
    ("fr", "tesseract", True): "pdf.vertical: is for Japanese, not for French",
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_cannot_be_read_here_is_refused_before_any_work(case, tesseract):
    language, engine, vertical = (*case, "tesseract", False)[:3] if len(case) == 1 else (*case, False)[:3]
    entry = source(language, ocr=engine, vertical=vertical)
    with pytest.raises(UserError) as e:
        ocr_dependencies({"books": entry}, books("x.pdf"))
    assert REFUSED[case] in str(e.value) and "\n" not in str(e.value)
    assert ocr_dependencies({"books": {**entry, "pdf": {"ocr": "off"}}}, books("x.pdf")) == ({}, {})
    assert ocr_dependencies({"books": entry}, []) == ({}, {}), "only PDF files need it"


def test_what_engines_depend_on(tesseract, monkeypatch, tmp_path):
    versions, data = ocr_dependencies({"books": source("folder")}, books("b/en/x.pdf", "b/en/deep/y.pdf"))
    assert versions == {"books": "tesseract 5.3.0"} and data == {"tesseract/eng": tmp_path / "eng.traineddata"}
    assert ocr_dependencies({"books": source("ja", vertical=True)}, books("x.pdf"))[1] == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no program 'tesseract' on PATH; apt-get install tesseract-ocr, or"):
        ocr_dependencies({"books": source()}, books("x.pdf"))
    names = {"b/fr/en/x.pdf": "en", "b/fr/x": "fr", "fr.pdf": "", "b/English/x": ""}
    assert {name: stated_language("folder", name) for name in names} == names
    assert stated_language("ru", "fr/x.pdf") == "ru"


def test_a_unit_with_a_book(mixed, tesseract, tmp_path):
    """Language by folder, licence by source, pages in the metadata, rejects in the books."""
    (tmp_path / "en").mkdir()
    os.rename(mixed, tmp_path / "en" / "mixed.pdf")
    unit = Unit("books", (Piece("en/mixed.pdf", "pdf", "0", 0, 6, 1),))
    (tmp_path / "out").mkdir()
    settings = {"steps": {}, "sources": {"books": source("folder", ocr="off")}}
    result = filter_unit(unit.as_dict(), settings, {"roots": {"books": str(tmp_path)}}, tmp_path / "out")
    assert result.rows == 1 and result.counts["read"] == [["books", "", 4]]
    rejects = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert len(rejects) == 3 and '"file":"en/mixed.pdf","place":"page 2","reason":"image_page"' in rejects[0]


def test_settings_are_checked():
    for values, problem in (
        ({"ocr": "teseract"}, "pdf.ocr 'teseract', did you mean 'tesseract'?"),
        ({"pages": "all"}, "pdf.pages 'all'"),
        ({"dpi": 30}, "pdf.dpi=30: must be between 100 and 600"),
        ({"timeout_s": 0}, "pdf.timeout_s=0: must be above 0"),
        ({"vertical": True, "ocr": "rapidocr"}, "pdf.vertical: is for pdf.ocr=tesseract"),
    ):
        with pytest.raises(UserError) as e:
            PdfSettings(**values)
        assert str(e.value).startswith(problem)
    assert isinstance(Reject("a"), Reject)
