"""Pages of a book joined into running text: without running headers and footers, words and sentences put together."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A line at the edge of a page is a running one if more than this share of a stretch of pages have it there, and at
# least so many; a stretch: the page with this many before it, or with as many behind it.
RUNNING = 0.3
LEAST_PAGES, STRETCH = 3, 10
# Lines at the top and at the bottom that may be running ones.
_EDGE = 3
_ROMAN = re.compile(r"(?<![^\W\d_])[ivxlc]{1,7}(?![^\W\d_])")
_DIGITS = re.compile(r"\d+")
# A line of which more may follow has at least this share of the letters that three lines of four have at most.
_FULL = 0.75
# A hyphen at the end of a line between letters of an alphabet with case: Latin or Cyrillic.
_HYPHENS = "-\u2010\u00ad"
_BROKEN = re.compile(rf"([^\W\d_]+(?:-[^\W\d_]+)*)([{_HYPHENS}])\n[ \t]*([^\W\d_]+(?:-[^\W\d_]+)*)")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


@dataclass
class BookPage:
    """A page that was read. number: from 1. by_ocr: from its picture."""

    number: int
    text: str
    by_ocr: bool = False


def join_pages(pages: Sequence[BookPage]) -> str:
    """The text of pages that follow each other."""
    lines = [[line.strip() for line in page.text.split("\n")] for page in pages]
    kept = drop_running_lines(lines)
    return join_lines(join_words(_joined(kept)))


def drop_running_lines(pages: Sequence[Sequence[str]]) -> list[list[str]]:
    """Pages (lists of lines) without the lines that repeat at the edges of pages nearby, all numbers being equal."""
    pages = [_trimmed(page) for page in pages]
    folded = [_edges(page) for page in pages]
    kept = []
    for number, page in enumerate(pages):
        stretches = folded[max(0, number - STRETCH) : number + 1], folded[number : number + STRETCH + 1]
        gone = {
            index
            for side in (0, 1)
            for index, line in folded[number][side].items()
            if any(_runs(line, [set(edges[side].values()) for edges in stretch]) for stretch in stretches)
        }
        kept.append(_trimmed([line for index, line in enumerate(page) if index not in gone]))
    return kept


def _runs(line: str, pages: Sequence[set[str]]) -> bool:
    count = sum(line in page for page in pages)
    return count >= LEAST_PAGES and count > RUNNING * len(pages)


def _edges(page: Sequence[str]) -> tuple[dict[int, str], dict[int, str]]:
    """{index: folded line} of the first and of the last lines of a page that say something."""
    full = [index for index, line in enumerate(page) if line]
    top, bottom = full[:_EDGE], full[-_EDGE:]
    return {i: fold(page[i]) for i in top}, {i: fold(page[i]) for i in bottom}


def fold(line: str) -> str:
    """A line with every number (Roman ones too) as 0, without case and spaces."""
    text = unicodedata.normalize("NFKC", line).casefold()
    return "".join(_DIGITS.sub("0", _ROMAN.sub("0", text)).split())


def _trimmed(lines: Iterable[str]) -> list[str]:
    """Lines without empty ones at both ends."""
    return "\n".join(lines).strip("\n").split("\n")


def _joined(pages: Iterable[Sequence[str]]) -> str:
    """Pages below each other; where a sentence goes on there is no empty line between them."""
    text = ""
    for page in pages:
        part = "\n".join(page)
        if text and part:
            text += "\n" if _goes_on(text[-1], part[0]) else "\n\n"
        text += part
    return re.sub(r"\n{3,}", "\n\n", text)


def _goes_on(last: str, first: str) -> bool:
    """Whether a page that begins with `first` goes on with the sentence of one that ends in `last`."""
    return last in _HYPHENS or first.islower() or last.isalnum() and unicodedata.category(first) == "Lo"


def join_words(text: str) -> str:
    """Words that a hyphen divides at the end of a line, in one; scripts without case are left alone.

    A hyphen stays where the same text has the word with it elsewhere, and not without.
    """
    if not any(f"{hyphen}\n" in text for hyphen in _HYPHENS):
        return text.replace("\u00ad", "")
    whole = Counter(word.casefold() for word in _WORD.findall(_BROKEN.sub(" ", text)))

    def join(match: re.Match[str]) -> str:
        before, hyphen, behind = match.groups()
        if not (before[-1].islower() and behind[0].islower()) or _alphabet(before[-1]) != _alphabet(behind[0]):
            return match.group()
        parted, joined = f"{before}-{behind}", before + behind
        keeps = hyphen != "\u00ad" and whole[parted.casefold()] > whole[joined.casefold()]
        return parted if keeps else joined

    # Twice, for a word that is divided at two lines in a row.
    return _BROKEN.sub(join, _BROKEN.sub(join, text)).replace("\u00ad", "")


def join_lines(text: str) -> str:
    """Lines of a sentence in one. What is no full line, or may begin another sentence, stays as it is printed.

    A line goes on where the next one begins with a small letter (Latin, Cyrillic), or where both are Chinese or
    Japanese and no sentence ends between them. Korean has no case, and spaces anyway: its lines stay.
    """
    lines = text.split("\n")
    lengths = sorted(len(line) for line in lines if line)
    full = _FULL * lengths[len(lengths) * 3 // 4] if lengths else 0
    joined: list[str] = []
    last = 0  # letters of the line that was printed last
    for line in lines:
        if joined and last >= full and line and (glue := _glue(joined[-1][-1], line)) is not None:
            joined[-1] += glue + line
        else:
            joined.append(line)
        last = len(line)
    return "\n".join(joined)


def _glue(last: str, line: str) -> str | None:
    """What stands between the end of a line and the next one; None where they are apart."""
    if line[0].islower():
        marks_item = len(line) > 1 and line[1] in ").]"
        return None if last in ":;!?" or marks_item else " "
    if _is_dense(last) and line[0] in "。、，」）":
        return ""
    return "" if _is_dense(line[0]) and (_is_dense(last) or last in "、，,") else None


def _is_dense(letter: str) -> bool:
    """Whether it is written without spaces: Han or kana."""
    return unicodedata.name(letter, "").startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA"))


def _alphabet(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def page_ranges(numbers: Iterable[int]) -> str:
    """Numbers in order as ranges: "3-5,9"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
