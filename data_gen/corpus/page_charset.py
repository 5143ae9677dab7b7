"""The characters of a page out of its bytes: byte-order mark, UTF-8 where it is, what the page says of itself, a guess.

The order is that of the HTML standard but for three things that pages get wrong. Bytes that are right UTF-8 are UTF-8
whatever is said of them. ISO-8859-1 in the HTTP header, which servers send of themselves, counts only where the page
says nothing else. Where nothing that is said fits, the encoding is taken in which the letters beyond ASCII look most
like a language's (mmed_jax.data.sources.encodings).
"""

import re

from mmed_jax.common.errors import UserError
from mmed_jax.data.sources.encodings import known_encoding, reads_as

# Of characters, how many may be bytes that fit nothing; they stay in the text as U+FFFD.
_BAD_SHARE = 1 / 200
_LOOKED_AT = 4096  # where a page says its encoding; the standard asks for the first 1024 bytes
_SAID = (
    re.compile(rb"<meta[^>]{1,300}?charset\s*=\s*[\"']?\s*([\w:.-]{2,40})", re.IGNORECASE),
    re.compile(rb"<\?xml[^>]{1,300}?encoding\s*=\s*[\"']([\w:.-]{2,40})", re.IGNORECASE),
)
_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# What names on the web mean (encoding.spec.whatwg.org), where Python's codec of that name knows fewer characters.
_MEANT = {
    "cp1252": "iso-8859-1 iso8859-1 latin1 l1 ascii us-ascii",
    "cp1254": "iso-8859-9 latin5",
    "gb18030": "gb2312 gbk gb_2312-80 x-gbk chinese",
    "cp932": "shift_jis shift-jis sjis x-sjis ms_kanji windows-31j",
    "cp949": "euc-kr euckr ks_c_5601-1987 ksc5601 ksc_5601 korean windows-949",
    "big5hkscs": "big5 big5-hkscs cn-big5 x-x-big5",
    "koi8-r": "koi8 koi",
    "utf-8": "utf8 unicode-1-1-utf-8 utf-16 utf-16le utf-16be",  # a page whose head can be read so is not UTF-16
}
_BY_NAME = {name: meant for meant, names in _MEANT.items() for name in names.split()}
# Encodings whose bytes are all ASCII, and so right UTF-8 as well.
_SEVEN_BIT = ("iso-2022-jp", "iso-2022-kr", "hz-gb-2312", "hz")
_TAG = re.compile(rb"<[^<>]{0,2000}>")
# What is tried where nothing is said: the letters that it must look like, the encoding, how much from 0 to 1. Of equals
# the first wins: French with a few accents looks like Russian in Windows-1251, and not the other way round.
_GUESSES = (
    ("fr", "cp1252", 0.3),
    ("ko", "cp949", 0.3),
    ("ja", "cp932", 0.3),
    ("ja", "euc_jp", 0.3),
    ("zh", "gb18030", 0.3),
    ("zh", "big5hkscs", 0.3),
    ("ru", "cp1251", 0.7),
    ("ru", "koi8-r", 0.7),
)
_GUESSED_FROM = 1 << 18  # bytes, without tags


def decode_page(data: bytes, header: str = "") -> str | None:
    """The text of a page; None where no encoding fits.

    Args:
      header: the charset that came with it over HTTP, "" for none.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding)
    said = [header.strip().lower(), *_said(data[:_LOOKED_AT])]
    if not any(name in _SEVEN_BIT for name in said):
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            pass
    encodings = [_codec(name) for name in said if name]
    if len(encodings) > 1 and encodings[0] == "cp1252" and header:
        encodings = encodings[1:]
    for encoding in filter(None, encodings):
        if (text := _decoded(data, encoding)) is not None:
            return text
    guessed = _guessed(data)
    return _decoded(data, guessed) if guessed else None


def _said(head: bytes) -> list[str]:
    return [m[1].decode("ascii", "ignore").lower() for pattern in _SAID if (m := pattern.search(head))]


def _codec(name: str) -> str:
    """Python's name of an encoding as the web means it; "" for none."""
    name = _BY_NAME.get(name, name)
    try:
        return known_encoding(name)
    except UserError:
        return ""


def _guessed(data: bytes) -> str:
    """The encoding of _GUESSES that bytes look most like, "utf-8" where they nearly are; "" for none."""
    if _decoded(data, "utf-8") is not None:
        return "utf-8"
    words = _TAG.sub(b" ", data)[:_GUESSED_FROM]
    best, most = "", 0.0
    for language, encoding, least in _GUESSES:
        score = reads_as(language, _decoded(words, encoding) or "")
        if score >= least and score > most + 1e-9:
            best, most = encoding, score
    return best


def _decoded(data: bytes, encoding: str) -> str | None:
    """The text, None where more than a few bytes are none of the encoding."""
    try:
        text = data.decode(encoding, "replace")
    except UnicodeError:  # a codec that knows no "replace"
        return None
    return text if text.count("\ufffd") <= _BAD_SHARE * len(text) else None
