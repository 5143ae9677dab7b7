"""Settings of a source's PDF files: source.NAME.pdf.KEY of a recipe."""

from dataclasses import dataclass

from mmed_jax.common.errors import UserError, nearest

ENGINES = ("off", "tesseract", "rapidocr")
PAGES = ("each", "paper")


@dataclass(frozen=True)
class PdfSettings:
    """How PDF files are read; JSON-able.

    ocr: what reads pages that are pictures: "tesseract" (a program of the system), "rapidocr" (meant for Chinese and
      Japanese), or "off": such pages are counted as rejects.
    pages: "each": every page is judged for itself; "paper": MMedC's rule, by book: all its pages are read from their
      pictures, or the text layer is, without the first and last pages of long books.
    vertical: Japanese is printed in columns from right to left (tesseract).
    dpi: dots an inch that pages are drawn with for OCR; fewer where a page would have more than 36 million.
    timeout_s: for drawing a page, and for reading its picture; a page that takes longer is a reject.
    """

    ocr: str = "off"
    pages: str = "each"
    vertical: bool = False
    dpi: int = 300
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name, value, valid in (("ocr", self.ocr, ENGINES), ("pages", self.pages, PAGES)):
            if value not in valid:
                raise UserError(f"pdf.{name} '{value}'{nearest(value, valid)}")
        if not 100 <= self.dpi <= 600:
            raise UserError(f"pdf.dpi={self.dpi}: must be between 100 and 600")
        if not self.timeout_s > 0:
            raise UserError(f"pdf.timeout_s={self.timeout_s}: must be above 0")
        if self.vertical and self.ocr == "rapidocr":
            raise UserError("pdf.vertical: is for pdf.ocr=tesseract")
