"""PDF files written by hand: text with or without a right table of characters, scanned pages, broken ones.

Fonts are not embedded; a text in any script is found in the layer by its ToUnicode table, however it may look.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, MARGIN, LEADING, SIZE = 595, 842, 60, 15, 11


@dataclass(frozen=True)
class Page:
    """A page. lines: of its text layer. image: grey bytes with width and height, shown over the whole page.
    size: in points. reads_as: what the layer says instead of `lines`, character for character."""

    lines: Sequence[str] = ()
    image: tuple[int, int, bytes] | None = None
    size: tuple[float, float] = (WIDTH, HEIGHT)
    reads_as: Sequence[str] | None = None


def pdf_bytes(pages: Sequence[Page]) -> bytes:
    """A file with these pages; the same pages give the same bytes."""
    objects: list[bytes] = [b"", b""]  # the catalogue and the tree of pages, which come last

    def add(data: bytes) -> int:
        objects.append(data)
        return len(objects)

    numbers = []
    for page in pages:
        codes: dict[str, int] = {}
        meant: dict[int, str] = {}
        content = [b"BT /F1 %d Tf %d TL 1 0 0 1 %d %d Tm" % (SIZE, LEADING, MARGIN, page.size[1] - MARGIN)]
        for line, reading in zip(page.lines, page.reads_as or page.lines):
            shown = bytes(_code(c, r, codes, meant) for c, r in zip(line, reading))
            content.append(b"<%s> Tj T*" % shown.hex().encode())
        content.append(b"ET")
        resources = b""
        if page.lines:
            table = add(_stream(_to_unicode(meant)))
            font = add(
                b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding /ToUnicode %d 0 R >>"
                % table
            )
            resources += b"/Font << /F1 %d 0 R >> " % font
        if page.image:
            width, height, grey = page.image
            kind = b"/Type /XObject /Subtype /Image /ColorSpace /DeviceGray /BitsPerComponent 8"
            picture = add(_stream(grey, kind + b" /Width %d /Height %d" % (width, height)))
            resources += b"/XObject << /I1 %d 0 R >> " % picture
            content.insert(0, b"q %g 0 0 %g 0 0 cm /I1 Do Q" % page.size)
        stream = add(_stream(b"\n".join(content)))
        box = b"[0 0 %g %g]" % page.size
        numbers.append(
            add(
                b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Resources << %s>> /Contents %d 0 R >>"
                % (box, resources, stream)
            )
        )
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (
        len(numbers),
        b" ".join(b"%d 0 R" % n for n in numbers),
    )
    return _file(objects)


def encrypted_pdf() -> bytes:
    """A file of one page whose password is not known."""
    data = pdf_bytes([Page(["secret"])])
    keys = b"/O <%s> /U <%s>" % (b"1a" * 32, b"2b" * 32)
    return data.replace(b"/Root", b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 %s >> /ID [<00> <00>] /Root" % keys)


def _code(character: str, reading: str, codes: dict[str, int], meant: dict[int, str]) -> int:
    """The byte of a character in a page's font: its own in WinAnsi where it has one, and it is free."""
    if character + reading in codes:
        return codes[character + reading]
    own = character.encode("cp1252", "replace")[0]
    free = own if own not in meant and own >= 32 else next(n for n in range(33, 256) if n not in meant)
    codes[character + reading] = free
    meant[free] = reading
    return free


def _to_unicode(meant: dict[int, str]) -> bytes:
    rows = [b"<%02x> <%s>" % (code, text.encode("utf-16-be").hex().encode()) for code, text in sorted(meant.items())]
    blocks = [rows[i : i + 100] for i in range(0, len(rows), 100)]
    maps = b"".join(b"%d beginbfchar\n%s\nendbfchar\n" % (len(block), b"\n".join(block)) for block in blocks)
    return (
        b"/CIDInit /ProcSet findresource begin\nbegincmap\n/CMapName /A def\n/CMapType 2 def\n"
        b"1 begincodespacerange\n<00> <ff>\nendcodespacerange\n" + maps + b"endcmap\n"
    )


def _stream(data: bytes, entries: bytes = b"") -> bytes:
    packed = zlib.compress(data, 9)
    return b"<< %s /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (entries, len(packed), packed)


def _file(objects: Sequence[bytes]) -> bytes:
    data, places = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % place for place in places)
    data += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(data)
