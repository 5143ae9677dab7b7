"""A program that reads pages of PDF files for another process: pdfium is C++, and a broken page may end it.

    python -P pdf_server.py     requests on stdin, answers on stdout, each a line of JSON; ends with its stdin

["open", path] -> pages          ["text", page] -> text of its layer          ["ink", page] -> 0 to 1
["image", page, dpi, pixels] -> [width, height, dpi]                          pages are counted from 0

An answer is {"value": ..., "bytes": n} with so many bytes behind it (rows of grey of an image, else none), or
{"reason": ..., "detail": ...} where the file or page cannot be read. Whatever a page makes of pdfium, its answer is
data alone. The program imports nothing of this project, so that it starts in a tenth of a second.
"""

import json
import os
import sys
from collections import Counter
from typing import Any

import pypdfium2

# Of FPDF_GetLastError: the file needs a password.
_PASSWORD = 4
# Of the picture that ink is looked for in: dots an inch, and dots in all.
_INK_DPI, _INK_PIXELS = 36, 200_000
# A dot is ink if it differs so much from the commonest grey of its page.
_CONTRAST = 60
# Below so many dots an inch nothing is read from a picture.
_LEAST_DPI = 70


class Unreadable(Exception):
    """reason, detail: what is wrong with a file or page."""


class Server:
    """Holds one open file."""

    def __init__(self) -> None:
        self._file: Any = None

    def open(self, path: str) -> int:
        if self._file is not None:
            self._file.close()
            self._file = None
        try:
            self._file = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError as e:
            if e.err_code == _PASSWORD:
                raise Unreadable("encrypted", "needs a password") from e
            if not e.err_code:  # "success": the file is right, and has none
                return 0
            raise Unreadable("broken_file", f"no PDF that can be read ({e})") from e
        return len(self._file)

    def text(self, number: int) -> str:
        page = self._file[number]
        try:
            layer = page.get_textpage()
            try:
                return layer.get_text_range()
            finally:
                layer.close()
        finally:
            page.close()

    def ink(self, number: int) -> float:
        width, height, _, grey = self._render(number, _INK_DPI, _INK_PIXELS)
        counts = Counter(grey)
        paper = max(counts, key=lambda value: (counts[value], value))
        return sum(n for value, n in counts.items() if abs(value - paper) >= _CONTRAST) / (width * height)

    def image(self, number: int, dpi: int, pixels: int) -> tuple[int, int, int, bytes]:
        width, height, dpi, grey = self._render(number, dpi, pixels)
        if dpi < _LEAST_DPI:
            raise Unreadable("page_too_large", f"{width} x {height} dots at {dpi} an inch are all that may be drawn")
        return width, height, dpi, grey

    def _render(self, number: int, dpi: int, pixels: int) -> tuple[int, int, int, bytes]:
        """Width, height, dots an inch (fewer than `dpi` where the page has more than `pixels`), rows of grey."""
        page = self._file[number]
        try:
            inches = page.get_width() / 72 * page.get_height() / 72
            if inches <= 0:
                raise Unreadable("broken_page", "has no size")
            dpi = min(dpi, int((pixels / inches) ** 0.5))
            if not dpi:
                raise Unreadable("page_too_large", f"{inches:,.0f} square inches")
            bitmap = page.render(scale=dpi / 72, grayscale=True)
            width, height, stride = bitmap.width, bitmap.height, bitmap.stride
            rows = memoryview(bitmap.buffer).cast("B")
            grey = b"".join(rows[y * stride : y * stride + width] for y in range(height))
            bitmap.close()
            return width, height, dpi, grey
        finally:
            page.close()


def main() -> None:
    """Answers requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may be written between answers
    server = Server()
    for line in sys.stdin.buffer:
        name, *arguments = json.loads(line)
        grey = b""
        answer: dict[str, Any]
        try:
            value = getattr(server, name)(*arguments)
            if name == "image":
                *value, grey = value
            answer = {"value": value, "bytes": len(grey)}
        except Unreadable as e:
            answer = dict(zip(("reason", "detail"), e.args, strict=True))
        except Exception as e:  # of pdfium or of Python, whatever the page made it raise
            answer = {"reason": "broken_page", "detail": f"{type(e).__name__}: {e}"[:200]}
        answers.write(json.dumps(answer).encode() + b"\n" + grey)
        answers.flush()


if __name__ == "__main__":
    main()
