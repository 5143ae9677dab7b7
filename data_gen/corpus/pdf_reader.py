"""PDF: a document is a book, or a hundred pages of a long one. Each page is read from its text layer or its picture.

A book is cut into pieces of equal length, so that a scan of two thousand pages is no single task, and each piece is a
document of its own. Running headers are judged by the ten pages before and behind a page, of its piece: chapter titles
go as book titles do, and a piece needs no page of another. A page that cannot be read is a Reject with its number.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.corpus import ocr, text_layer
from data_gen.corpus.book_pages import BookPage, join_pages, page_ranges
from data_gen.corpus.pdf_process import PageProblem, PageProcess, page_process
from data_gen.corpus.pdf_settings import PdfSettings
from data_gen.corpus.readers import Cut, Fields, RawDocument, Reject

# What a page counts as in a unit of so many bytes: OCR of one takes as long as all steps take for that much text.
PAGE_BYTES = 1_000_000
# A piece has no fewer pages (the last one of a short book excepted): running lines need company.
LEAST_PAGES = 20
# A page is not drawn with more dots.
MAX_PIXELS = 36_000_000
# Fewer letters and digits out of a picture are no text.
LEAST_READ = 20


class PdfFile:
    """A book. language: that pictures of its pages are read in."""

    def __init__(self, settings: PdfSettings | None = None, language: str = "") -> None:
        if importlib.util.find_spec("pypdfium2") is None:
            raise ModuleNotFoundError("no module pypdfium2", name="pypdfium2")
        self._settings, self._language = settings or PdfSettings(), language

    @classmethod
    def of_source(cls, source: Mapping[str, Any]) -> "PdfFile":
        """As a source's entry in a recipe says. Raises UserError."""
        return cls(PdfSettings(**source["pdf"]), source["language"])

    def cuts(self, path: Path, unit_bytes: int) -> list[Cut]:
        try:
            count = page_process().pages(path)
        except PageProblem:
            return [Cut(0, 1, path.stat().st_size)]
        pieces = max(1, -(-count // max(LEAST_PAGES, unit_bytes // PAGE_BYTES)))
        ends = [round(count * n / pieces) for n in range(1, pieces + 1)]
        return [Cut(a, b, (b - a) * PAGE_BYTES) for a, b in zip([0, *ends[:-1]], ends)]

    def read(self, path: Path, cut: Cut, fields: Fields) -> Iterator[RawDocument | Reject]:
        process = page_process()
        try:
            count = process.pages(path)
        except PageProblem as e:
            yield Reject(e.reason, "", e.detail)
            return
        if not count:
            yield Reject("no_pages", "", "a PDF without pages")
            return
        pages, rejects = [], 0
        for page in self._pages(process, path, cut, count):
            if isinstance(page, Reject):
                rejects += 1
                yield page
            elif page.text.strip():
                pages.append(page)
        text = join_pages(pages)
        place = f"pages {cut.start + 1}-{cut.end}" if cut.start or cut.end < count else ""
        if text.strip():
            yield RawDocument(text, "", place, _provenance(pages))
        elif not rejects:
            yield Reject("no_text", place, "all pages are empty, or left out")

    def _pages(self, process: PageProcess, path: Path, cut: Cut, count: int) -> Iterator[BookPage | Reject]:
        """The pages of a piece; empty ones too."""
        if self._settings.pages == "each":
            for number in range(cut.start, cut.end):
                yield self._judged(process, path, number)
            return
        layers = [_layer(process, path, number) for number in range(count)]
        pictures = text_layer.is_image_book([layer for layer in layers if isinstance(layer, str)])
        picked: Sequence[int] = range(count) if pictures else text_layer.picked_pages(count)
        for number in range(cut.start, cut.end):
            layer = layers[number]
            if number in picked:
                if isinstance(layer, Reject):
                    yield layer
                elif pictures:
                    yield self._recognised(process, path, number, "in a book that is taken for pictures")
                else:
                    yield BookPage(number + 1, text_layer.clean(layer))

    def _judged(self, process: PageProcess, path: Path, number: int) -> BookPage | Reject:
        """A page by its layer where that is right and whole, else by its picture."""
        layer = _layer(process, path, number)
        if isinstance(layer, Reject):
            return layer
        text = text_layer.clean(layer)
        if problem := text_layer.garbled(layer):
            return self._recognised(process, path, number, f"its text layer has {problem}")
        letters = text_layer.alnum(text)
        if letters >= text_layer.SPARSE:
            return BookPage(number + 1, text)
        try:
            ink = process.ink(path, number)
        except PageProblem as e:
            return BookPage(number + 1, text) if letters else Reject(e.reason, f"page {number + 1}", e.detail)
        if not text_layer.shows_more(letters, ink):
            return BookPage(number + 1, text)
        page = self._recognised(process, path, number, f"{letters} letters in its text layer, {ink:.1%} of it is ink")
        if isinstance(page, Reject) and page.reason == "nothing_recognised" and letters:
            return BookPage(number + 1, text)
        longer = isinstance(page, Reject) or text_layer.alnum(page.text) > letters
        return page if longer else BookPage(number + 1, text)

    def _recognised(self, process: PageProcess, path: Path, number: int, why: str) -> BookPage | Reject:
        """A page by its picture. why: its layer is not taken, for people."""
        place = f"page {number + 1}"
        if self._settings.ocr == "off":
            return Reject("image_page", place, f"{why}; ocr is off")
        try:
            image = process.image(path, number, self._settings.dpi, MAX_PIXELS, self._settings.timeout_s)
            text = ocr.read_image(image, self._language, self._settings)
        except (PageProblem, ocr.OcrProblem) as e:
            return Reject(e.reason, place, e.detail)
        if text_layer.alnum(text) < LEAST_READ:
            return Reject("nothing_recognised", place, why)
        return BookPage(number + 1, text, by_ocr=True)


def _layer(process: PageProcess, path: Path, number: int) -> str | Reject:
    """The text of a page's layer as pdfium gives it."""
    try:
        return process.text(path, number)
    except PageProblem as e:
        return Reject(e.reason, f"page {number + 1}", e.detail)


def _provenance(pages: Sequence[BookPage]) -> dict[str, Any]:
    """Where in the file a text comes from: numbers of pages, counted from 1."""
    by_ocr = page_ranges(page.number for page in pages if page.by_ocr)
    return {"pages": page_ranges(page.number for page in pages)} | ({"ocr_pages": by_ocr} if by_ocr else {})
