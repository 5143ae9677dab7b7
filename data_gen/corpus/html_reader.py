"""A page of HTML as a file, plain or packed. Its address: of a table beside it (page_addresses.py), else its own."""

from collections.abc import Iterator
from pathlib import Path

from data_gen.corpus.lines_reader import BrokenFile, open_unpacked
from data_gen.corpus.main_content import MAX_PAGE, read_page
from data_gen.corpus.page_addresses import address_of
from data_gen.corpus.readers import Cut, Fields, RawDocument, Reject


class HtmlFile:
    """A whole file as one page."""

    def cuts(self, path: Path, unit_bytes: int) -> list[Cut]:
        size = path.stat().st_size
        return [Cut(0, size, size)]

    def read(self, path: Path, cut: Cut, fields: Fields) -> Iterator[RawDocument | Reject]:
        try:
            with open_unpacked(path) as f:
                data = f.read(MAX_PAGE + 1)
        except BrokenFile as e:
            yield Reject("broken_file", "", str(e))
            return
        page = read_page(data)
        if isinstance(page, Reject):
            yield page
            return
        metadata = {"url": page.url} | address_of(path)
        yield RawDocument(page.text, metadata={name: value for name, value in metadata.items() if value})
