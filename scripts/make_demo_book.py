"""Makes the PDF file of the corpus demo: data_gen/corpus/demo/book/blood_pressure.pdf, always the same bytes.

    python -m scripts.make_demo_book

Four pages of text in English with a running title, page numbers and words divided at line ends, written for this
project (scripts/demo_book.txt), and a page that is a picture only.
"""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.support.pdf_files import Page, pdf_bytes  # noqa: E402

TEXT = Path(__file__).with_name("demo_book.txt")
BOOK = ROOT / "data_gen" / "corpus" / "demo" / "book" / "blood_pressure.pdf"
TITLE = "Blood pressure: a short chapter of physiology"
NOTICE = "Textbook knowledge for research and software testing. Not for clinical use."


def book_bytes() -> bytes:
    """The file."""
    pages = []
    for number, text in enumerate(TEXT.read_text(encoding="utf-8").split("\f"), 1):
        pages.append(Page([f"{TITLE}    {number}", "", *text.rstrip("\n").split("\n"), "", NOTICE]))
    return pdf_bytes([*pages, Page(image=(210, 297, _curve(210, 297)))])


def _curve(width: int, height: int) -> bytes:
    """Grey dots (a byte each): three waves of arterial pressure and an axis."""
    rows = [bytearray(b"\xff" * width) for _ in range(height)]
    for x in range(20, width - 20):
        phase = (x - 20) % 57 / 57
        wave = math.exp(-(((phase - 0.22) / 0.12) ** 2)) + 0.35 * math.exp(-(((phase - 0.55) / 0.1) ** 2))
        for y in (*range(round(190 - 80 * wave), round(190 - 80 * wave) + 3), 230, 231):
            rows[y][x] = 0
    return b"".join(rows)


def main() -> None:
    """The command."""
    BOOK.parent.mkdir(parents=True, exist_ok=True)
    BOOK.write_bytes(book_bytes())
    print(f"written: {BOOK.relative_to(ROOT)} ({BOOK.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
