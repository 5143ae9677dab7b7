"""What the text layer of a PDF's page is worth: used as it is, or read from the picture of the page instead.

Each page is judged for itself, because books are mixed of scans and text. MMedC's own rule, of whole books, stands here
too (arXiv 2402.13963, data_collection/pdf_ocr/PDFParser.py).
"""

import unicodedata

# A page with fewer letters and digits is looked at: a picture, or only a short page?
SPARSE = 200
# More of these characters among those that are no spaces, and the layer has no right table of characters.
STRANGE = 0.05
# The same of letters that Latin-1 shows where another alphabet was meant ("Ìåäèöèíà").
MOJIBAKE = 0.3
# Fewer letters and digits among those that are no spaces. Rows of dots in a table of contents do not count.
LEAST_ALNUM = 0.5
# Less ink is an empty page.
BLANK = 0.0005
# Ink of a printed letter, as a share of its page, at most: with more ink than that for all its letters a sparse page
# shows something that its layer does not say.
INK_A_LETTER = 0.0003

_LINE_HYPHEN = "\ufffe"  # what pdfium gives for a hyphen and the end of the line behind it


def clean(layer: str) -> str:
    """The text of a layer with plain line ends, and with the hyphens at them that pdfium takes out."""
    text = layer.replace(_LINE_HYPHEN, "-\n").replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def alnum(text: str) -> int:
    """Letters and digits of a text."""
    return sum(map(str.isalnum, text))


def garbled(layer: str) -> str:
    """Why the layer of a page says something else than the page shows, in a few words; "" where it seems right.

    layer: as pdfium gives it.
    """
    characters = [c for c in layer.replace(_LINE_HYPHEN, "-") if not c.isspace()]
    if not characters:
        return ""
    if sum(map(_strange, characters)) > STRANGE * len(characters):
        return "characters without a meaning"
    letters = [c for c in characters if c.isalpha()]
    if len(letters) > 20 and sum("\u00c0" <= c <= "\u00ff" for c in letters) > MOJIBAKE * len(letters):
        return "letters of a wrong encoding"
    counted = [c for c in characters if c not in ".·…․_-–—=*"]
    if len(counted) > 20 and sum(map(str.isalnum, counted)) < LEAST_ALNUM * len(counted):
        return "few letters among its signs"
    return ""


def _strange(character: str) -> bool:
    """Whether it stands for no character: U+FFFD, private use, a control code, not assigned."""
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs")


def shows_more(letters: int, ink: float) -> bool:
    """Whether a page of so few letters has more ink (a share of the page) than they are printed with."""
    return ink > max(BLANK, letters * INK_A_LETTER)


def is_image_book(layers: list[str]) -> bool:
    """MMedC's rule of a whole book, over the layers of all its pages: less than half of all characters are letters or
    digits, or there are fewer than 200 of them a page."""
    characters, letters = sum(map(len, layers)) + 1, sum(map(alnum, layers))
    return letters / characters < 0.5 or letters < 200 * len(layers)


def picked_pages(count: int) -> range:
    """MMedC's pages of a book with a text layer, counted from 0: all of fewer than 100, else those n with
    n > 0.018 count + 3 and n < count - 5, without cover, contents and index."""
    if count < 100:
        return range(count)
    return range(int(0.018 * count + 3) + 1, count - 5)
