"""Character error rates of OCR by language: known text, drawn as scanned pages of a PDF, read by the corpus reader.

    python -m scripts.bench_ocr --engines=tesseract,rapidocr

Spaces and line ends do not count. "noisy": turned by 0.7 degrees, two thirds of the resolution, Gaussian noise.
"columns": two of them. "vertical": Japanese in columns from right to left. Needs Pillow, Debian's fonts-dejavu-core and
fonts-noto-cjk, and tesseract's data.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from data_gen.corpus.ocr import RAPIDOCR_REFUSED, check_engine  # noqa: E402
from data_gen.corpus.pdf_reader import PdfFile  # noqa: E402
from data_gen.corpus.pdf_settings import PdfSettings  # noqa: E402
from data_gen.corpus.readers import Fields, RawDocument  # noqa: E402
from mmed_jax.common.command_line import Parser  # noqa: E402
from mmed_jax.common.errors import UserError, run_command  # noqa: E402
from mmed_jax.data.records.schema import LANGUAGES  # noqa: E402
from tests.support.corpora import demo_texts  # noqa: E402
from tests.support.pdf_files import Page, pdf_bytes  # noqa: E402

DEJAVU = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
NOTO = "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc"
FACES = {"ja": 0, "ko": 1, "zh": 2}  # of Noto's collection
# An A5 page of 300 dots an inch, letters of 11 points.
WIDTH, HEIGHT, MARGIN, SIZE, LEADING = 1748, 2480, 150, 46, 74
PAGES = 2
FORMS = ("clean", "noisy", "columns", "vertical")


def known_pages(language: str) -> list[str]:
    """Texts of a language, one a page."""
    texts = [d["text"] for d in demo_texts() if d.get("language") == language and "wrong" not in d["id"]]
    longest = sorted(dict.fromkeys(t.replace("\n", " ") for t in texts), key=len, reverse=True)
    return [" ".join([text] * 3)[:1200] for text in longest[:PAGES]]


def draw_page(text: str, language: str, form: str, noto: str) -> tuple[str, Image.Image]:
    """(what stands on the page, its picture)."""
    face = (noto, SIZE, FACES[language]) if language in FACES else (DEJAVU, SIZE)
    font = ImageFont.truetype(*face)
    picture = Image.new("L", (WIDTH, HEIGHT), 255)
    pen = ImageDraw.Draw(picture)
    if form == "vertical":
        return _draw_columns(text, font, pen), picture
    gap = 100 if form == "columns" else 0
    width = (WIDTH - 2 * MARGIN - gap) // (2 if gap else 1)
    rows = (HEIGHT - 2 * MARGIN) // LEADING
    lines = _wrap(text, font, width)
    rows = min(rows, -(-len(lines) // 2)) if gap else rows
    lines = lines[: rows * (2 if gap else 1)]
    for number, line in enumerate(lines):
        column, row = divmod(number, rows)
        pen.text((MARGIN + column * (width + gap), MARGIN + row * LEADING), line, 0, font)
    return "\n".join(lines), _noisy(picture) if form == "noisy" else picture


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines that fit; between words, or anywhere where there are none."""
    lines, line = [], ""
    space = " " if text.count(" ") > len(text) / 20 else ""
    for piece in text.split(" ") if space else list(text):
        if line and font.getlength(line + space + piece) > width:
            lines.append(line)
            line = ""
        line += (space if line else "") + piece
    return [*lines, line]


def _draw_columns(text: str, font: ImageFont.FreeTypeFont, pen: ImageDraw.ImageDraw) -> str:
    """Letters below each other, punctuation at the upper right; what needs turned letters is left out."""
    shown = [c for c in text if c not in "ーー（）()「」…— " and ord(c) > 0x2000]
    rows, columns = (HEIGHT - 2 * MARGIN) // (SIZE + 4), (WIDTH - 2 * MARGIN) // LEADING
    shown = shown[: rows * columns]
    for place, letter in enumerate(shown):
        column, row = divmod(place, rows)
        shift = (SIZE // 2, -SIZE // 2) if letter in "、。" else (0, 0)
        x, y = WIDTH - MARGIN - (column + 1) * LEADING + shift[0], MARGIN + row * (SIZE + 4) + shift[1]
        pen.text((x, y), letter, 0, font)
    return "".join(shown)


def _noisy(picture: Image.Image) -> Image.Image:
    turned = picture.rotate(0.7, Image.Resampling.BICUBIC, fillcolor=255)
    small = turned.resize((WIDTH * 2 // 3, HEIGHT * 2 // 3), Image.Resampling.BICUBIC)
    noise_hw = np.random.default_rng(0).normal(0, 25, (small.height, small.width))
    return Image.fromarray(np.clip(np.asarray(small) + noise_hw, 0, 255).astype(np.uint8))


def error_rate(text: str, read: str) -> float:
    """Levenshtein distance over the length of `text`, without spaces."""
    ours, theirs = "".join(text.split()), "".join(read.split())
    row = np.arange(len(theirs) + 1)
    letters = np.array(list(theirs))
    for number, letter in enumerate(ours, 1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (letters != letter))
        row = np.concatenate([[number], changed])
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))
    return float(row[-1]) / max(1, len(ours))


def measure(engine: str, language: str, form: str, noto: str, folder: Path) -> tuple[float, float]:
    """(error rate, seconds a page) of an engine."""
    drawn = [draw_page(text, language, form, noto) for text in known_pages(language)]
    size = WIDTH * 72 / 300, HEIGHT * 72 / 300
    path = folder / f"{random.random()}.pdf"
    path.write_bytes(pdf_bytes([Page(image=(*p.size, p.tobytes()), size=size) for _, p in drawn]))
    reader = PdfFile(PdfSettings(ocr=engine, vertical=form == "vertical"), language)
    start = time.perf_counter()
    items = list(reader.read(path, reader.cuts(path, 10**8)[0], Fields()))
    seconds = (time.perf_counter() - start) / len(drawn)
    read = "".join(item.text for item in items if isinstance(item, RawDocument))
    return error_rate("\n".join(text for text, _ in drawn), read), seconds


def main() -> None:
    """The command."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", default="tesseract")
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--forms", default=",".join(FORMS), help="of pages")
    parser.add_argument("--font", default=NOTO, help="a collection with Japanese, Korean, Chinese faces")
    parser.add_argument("--refused", action="store_true", help="rapidocr for languages that recipes refuse it for, too")
    args = parser.parse_args()
    if not Path(args.font).is_file():
        raise UserError(f"--font={args.font}: no such file", hint="; apt-get install fonts-noto-cjk")
    print("| engine, pages | language | error rate | s a page |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for engine in args.engines.split(","):
            for language in args.languages.split(","):
                for form in args.forms.split(","):
                    refused = engine == "rapidocr" and language in RAPIDOCR_REFUSED and not args.refused
                    if refused or form == "vertical" and (language != "ja" or engine == "rapidocr"):
                        continue
                    if not args.refused:
                        check_engine(PdfSettings(ocr=engine, vertical=form == "vertical"), [language])
                    rate, seconds = measure(engine, language, form, args.font, Path(folder))
                    print(f"| {engine}, {form} | {language} | {rate:.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    run_command(main)
