"""The main text of a page of HTML, by trafilatura with its preference for precision: no menu, no footer, no comments.

What a page may cost is bounded before it is looked at: bytes, elements and depth, which depend on the page alone. The
limit of processor time behind them is for what nobody has thought of; no page within the bounds came near it.
"""

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin

import lxml.html
import trafilatura

from data_gen.corpus.page_charset import decode_page
from data_gen.corpus.readers import Reject

MAX_PAGE = 10 << 20  # bytes
MAX_ELEMENTS = 50_000
MAX_SECONDS = 60.0  # of processor time
_NO_HTML = (b"%PDF-", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"{\\rtf")
_TAG = re.compile(r"<[a-zA-Z!]")

logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it has to say of a page is a Reject here


@dataclass(frozen=True)
class Page:
    """A page's main text, paragraphs as lines, and the address that the page gives itself, "" for none."""

    text: str
    url: str = ""


class _TooSlow(BaseException):
    """Not an Exception, which trafilatura would catch and go on."""


def read_page(data: bytes, charset: str = "") -> Page | Reject:
    """The page in some bytes of HTML; raises nothing for what they are. A Reject has no place.

    Args:
      charset: what HTTP said it is in, "" for nothing.
    """
    if len(data) > MAX_PAGE:
        return Reject("page_too_long", "", f"more than {MAX_PAGE >> 20} MB")
    if data.startswith(_NO_HTML) or b"\0" in data[:1024] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        return Reject("not_html", "", f"begins with {data[:8]!r}")
    html = decode_page(data, charset)
    if html is None:
        return Reject("unknown_charset", "", f"nothing fits; said: {charset}" if charset else "nothing fits")
    if not _TAG.search(html):
        return Reject("empty_page" if not html.strip() else "not_html", "", "no tag")
    try:
        with _limited(MAX_SECONDS):
            return _extracted(html)
    except _TooSlow:
        return Reject("page_too_slow", "", f"more than {MAX_SECONDS:.0f} s of processor time")
    except Exception as e:  # of lxml and trafilatura: a page that they cannot take is no fault of the build
        return Reject("extraction_failed", "", f"{type(e).__name__}: {e}"[:200])


def _extracted(html: str) -> Page | Reject:
    # As trafilatura makes it. Without huge_tree, depth ends at 256.
    parser = lxml.html.HTMLParser(
        collect_ids=False, default_doctype=False, encoding="utf-8", remove_comments=True, remove_pis=True
    )
    tree = lxml.html.document_fromstring(html.replace("\0", "").encode("utf-8", "replace"), parser=parser)
    if any("depth" in error.message.lower() for error in parser.error_log):
        return Reject("nested_too_deep")
    elements = sum(1 for _ in tree.iter())
    if elements > MAX_ELEMENTS:
        return Reject("too_many_elements", "", f"{elements:,}")
    url = _own_address(tree)
    text = trafilatura.extract(tree, favor_precision=True, include_comments=False)
    return Page(text, url) if text and text.strip() else Reject("no_main_text")


def _own_address(tree: lxml.html.HtmlElement) -> str:
    """<link rel=canonical>, else <base>; "" for what is no address of the web."""
    base = next((e.get("href", "") for e in tree.iter("base")), "").strip()
    links = (e for e in tree.iter("link") if "canonical" in (e.get("rel") or "").lower().split())
    canonical = next((e.get("href", "") for e in links), "").strip()
    try:
        url = urljoin(base, canonical)
    except ValueError:
        return ""
    return url if re.match(r"https?://\S+$", url) else ""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _TooSlow in the block after so much processor time; only the main thread can be stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
