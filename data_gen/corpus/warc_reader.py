"""WARC files: the pages among their records, one document each. No crawler: what archives and crawlers of others write.

A page is a response of text/html with status 200. Every other response is a Reject that says what it is; requests,
metadata and repeated captures (revisit) are no pages and are passed over. A piece is a range of offsets of records.
"""

import io
from collections.abc import Iterator
from pathlib import Path

from warcio.bufferedreaders import BufferedReader, ChunkedDataReader
from warcio.statusandheaders import StatusAndHeaders, StatusAndHeadersParser

from data_gen.corpus.main_content import MAX_PAGE, read_page
from data_gen.corpus.readers import Cut, Fields, RawDocument, Reject
from data_gen.corpus.warc_records import Record, read_records

_HTML = ("text/html", "application/xhtml+xml")
_MAX_BLOCK = MAX_PAGE + (1 << 16)
_HTTP = StatusAndHeadersParser(["HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/2.0", "HTTP/3"], verify=True)
_PLAIN = ("", "identity", "none", "utf-8")


class WarcFile:
    """Records, plain or each a gzip member. `bytes` of a piece are unpacked ones."""

    def cuts(self, path: Path, unit_bytes: int) -> list[Cut]:
        cuts, start, held, before = [], 0, 0, -1
        for record in read_records(path, 0, 1 << 62, lambda headers: False, 0):
            if record.offset != before and held and held + record.size > unit_bytes:
                cuts.append(Cut(start, record.offset, held))
                start, held = record.offset, 0
            held, before = held + record.size, record.offset
        return [*cuts, Cut(start, path.stat().st_size, held)]

    def read(self, path: Path, cut: Cut, fields: Fields) -> Iterator[RawDocument | Reject]:
        if path.suffix.lower() == ".zst":
            yield Reject("broken_file", "", "WARC packed with zstd is not read; pack it with gzip, record by record")
            return
        for record in read_records(path, cut.start, cut.end, _is_response, _MAX_BLOCK):
            if record.problem:
                yield Reject("broken_record", record.place, record.problem)
            elif _is_response(record.headers):
                item = _document(record)
                yield Reject(item.reason, record.place, item.detail) if isinstance(item, Reject) else item


def _is_response(headers: dict[str, str]) -> bool:
    return headers.get("warc-type") == "response" and not headers.get("warc-target-uri", "").startswith("dns:")


def _document(record: Record) -> RawDocument | Reject:
    """The page of a response; a Reject without its place."""
    url = record.headers.get("warc-target-uri", "").strip("<>")
    if record.block is None:
        return Reject("page_too_long", "", f"more than {MAX_PAGE >> 20} MB; {url}")
    stream = io.BytesIO(record.block)
    try:
        http = _HTTP.parse(stream)
    except Exception as e:  # of warcio: its own, EOFError, IndexError
        return Reject("no_http", "", f"{type(e).__name__}; {url}")
    status = (http.get_statuscode() or "").strip()
    if status != "200":
        return Reject("http_status", "", f"{status[:20]} {url}")
    kind, _, parameters = (http.get_header("content-type") or "").lower().partition(";")
    if kind.strip() not in _HTML:
        return Reject("not_html", "", f"{kind.strip()[:60] or 'no content type'}; {url}")
    data = _body(http, stream)
    if isinstance(data, Reject):
        return Reject(data.reason, "", f"{data.detail}; {url}")
    page = read_page(data, _charset(parameters))
    if isinstance(page, Reject):
        return Reject(page.reason, "", "; ".join(filter(None, (page.detail, url))))
    metadata = {"url": url or page.url, "date": record.headers.get("warc-date", "")}
    ident = record.headers.get("warc-record-id", "").strip("<>")
    return RawDocument(page.text, ident, metadata={name: value for name, value in metadata.items() if value})


def _body(http: StatusAndHeaders, stream: io.BytesIO) -> bytes | Reject:
    """The page's bytes out of the pieces and the packing of HTTP."""
    packing = (http.get_header("content-encoding") or "").strip().lower()
    chunked = (http.get_header("transfer-encoding") or "").strip().lower() == "chunked"
    known = packing in BufferedReader.get_supported_decompressors()
    if packing not in _PLAIN and not known:
        return Reject("content_encoding", "", f"{packing[:20]}")
    reader = (ChunkedDataReader if chunked else BufferedReader)(stream, decomp_type=packing if known else None)
    data = bytearray()
    try:
        while len(data) <= MAX_PAGE and (block := reader.read(1 << 16)):
            data += block
    except Exception as e:  # of warcio and zlib
        return Reject("content_encoding", "", f"{type(e).__name__}: {e}"[:100])
    return bytes(data)


def _charset(parameters: str) -> str:
    """The charset of a Content-Type's parameters, "" for none."""
    for part in parameters.split(";"):
        name, _, value = part.partition("=")
        if name.strip() == "charset":
            return value.strip().strip("\"'")
    return ""
