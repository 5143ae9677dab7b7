"""JSON lines: strict reading with file and line in every message, atomic writing. Knows nothing of records.

Tolerated: a UTF-8 byte-order mark, CRLF line ends, blank lines, a missing last newline. Refused, each with one clear
message: other encodings, broken JSON, a key given twice, NaN and Infinity (not JSON), lines that are not objects.
"""

import contextlib
import gzip
import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.input_files import is_packed
from mmed_jax.common.output_files import put_file

SUFFIXES = (".jsonl", ".jsonl.gz")  # of what is written; read by `inputs.suffix`
# No record comes near either; what does is no JSON lines (or is packed to fill the memory of whoever opens it).
MAX_LINE = 64 << 20
MAX_BLANK_LINES = 1_000_000
# Deeper values can be read and then neither walked through nor written again: Python's own limit is at 1,000 calls.
MAX_DEPTH = 200


def decode(data: bytes, where: str) -> str:
    """Bytes of one line (or file) as text. Raises UserError when they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        hint = "; it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UserError(
            f"{where}: not UTF-8 (byte 0x{data[e.start]:02x} at position {e.start}){hint}; save the file as UTF-8"
        ) from None


def whole_text(text: str, where: str) -> str:
    r"""`text` itself. Raises UserError for half of a surrogate pair (JSON's "\ud800"), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        half = f"\\u{ord(text[e.start]):04x}"
        raise UserError(f"{where}: character {e.start + 1} is {half}, half of a pair; no text") from None
    return text


class BadJSON(ValueError):
    """Text from outside that is no JSON which can be used; the message says why, without the place.

    problem: what is wrong. position: "line 3 column 5", "" unless the syntax is broken; line: its number there.
    """

    def __init__(self, problem: str, *, position: str = "", line: int | None = None) -> None:
        super().__init__(f"broken JSON at {position}: {problem}" if position else problem)
        self.problem, self.position, self.line = problem, position, line


def loads(text: str | bytes, kind: type | tuple[type, ...] | None = None, **options: Any) -> Any:
    """json.loads for text that somebody else wrote: whatever is wrong with it is one kind of error.

    json.loads itself raises JSONDecodeError for broken text, a plain ValueError for an integer of more than 4,300
    digits, RecursionError for deep nesting and UnicodeDecodeError for bytes; a reader that catches only the first ends
    with a traceback on the others.

    Args:
      kind: the type that is expected, as dict.
      options: as of json.loads.

    Raises:
      BadJSON: broken, nested too deeply, a number of too many digits, not text, or not of the `kind` expected.
    """
    try:
        if not isinstance(text, str):
            text = text.decode("utf-8-sig")  # json.loads would take UTF-16 and UTF-32 as well
        value = json.loads(text, **options)
        # Every level needs a bracket: most texts have too few for a second look.
        if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
            raise RecursionError
    except json.JSONDecodeError as e:
        line = e.lineno if "\n" in e.doc.rstrip() else 1
        position = f"line {line} column {e.colno}" if "\n" in e.doc.rstrip() else f"column {e.colno}"
        raise BadJSON(e.msg, position=position, line=line) from None
    except UnicodeDecodeError as e:
        raise BadJSON(f"not UTF-8 (byte 0x{e.object[e.start]:02x} at position {e.start})") from None
    except RecursionError:
        raise BadJSON("JSON nested too deeply") from None
    except BadJSON:  # of a hook
        raise
    except ValueError:  # Python's guard against huge integers; every other one is a JSONDecodeError
        raise BadJSON(f"a number of more than {sys.get_int_max_str_digits()} digits") from None
    if kind is not None and not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise BadJSON(f"expected a JSON {wanted}, got {type(value).__name__}")
    return value


def is_deep(value: object, most: int = MAX_DEPTH) -> bool:
    """Whether lists and objects stand in each other more than `most` deep."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list, tuple))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list, tuple))
        ]
        if not level:
            return False
    return True


def given_twice(pairs: list[tuple[str, Any]]) -> str:
    """The first name that stands more than once in an object's pairs."""
    names = [k for k, _ in pairs]
    return next(k for k in names if names.count(k) > 1)


def parse_json(text: str, where: str) -> object:
    """Strict JSON: a key given twice, NaN and Infinity are errors. Raises UserError naming `where`."""

    def no_duplicates(pairs: list) -> dict:
        out = dict(pairs)
        if len(out) < len(pairs):
            raise UserError(f"{where}: field '{given_twice(pairs)}' is given twice in one object")
        return out

    def no_constant(name: str) -> None:
        raise UserError(f"{where}: {name} is not valid JSON; write null or a number")

    try:
        return loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except BadJSON as e:
        raise UserError(f"{where}: {e}") from None


def read_objects(stream: IO[bytes], label: str) -> Iterator[tuple[str, dict]]:
    """Yields ("label:line", object) for each non-blank line of `stream`. Raises UserError on the first bad line."""
    number = blank = 0
    try:
        for number, raw in enumerate(lines_of(stream, label), 1):
            where = f"{label}:{number}"
            text = decode(raw, where).strip()
            blank = 0 if text else blank + 1
            if blank > MAX_BLANK_LINES:
                raise UserError(f"{where}: more than {MAX_BLANK_LINES:,} blank lines in a row; not a file of records")
            if not text:
                continue
            if number == 1 and text.startswith("[") and not text.endswith("]"):
                raise UserError(f"{where}: the file is one JSON array; write one JSON object a line (JSON Lines)")
            value = parse_json(text, where)
            if not isinstance(value, dict):
                kind = "an array" if isinstance(value, list) else f"a {type(value).__name__}"
                raise UserError(f"{where}: expected a JSON object, got {kind}; write one object a line (JSON Lines)")
            yield where, value
    except zipfile.BadZipFile as e:
        raise UserError(f"{label}: damaged in its zip file: {e}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UserError(f"{label}: damaged gzip file after line {number}: {e}") from None
    except OSError as e:  # of storage; the system does not say which file
        raise UserError(f"{label}: cannot be read after line {number} ({e.strerror or e})") from e


def lines_of(stream: IO[bytes], label: str) -> Iterator[bytes]:
    """The lines of a stream with their line ends, of at most MAX_LINE bytes each. Raises UserError on a longer one."""
    if isinstance(stream, zipfile.ZipExtFile):  # its own readline is slow when it has a limit
        stream = io.BufferedReader(stream, 1 << 16)
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise UserError(
                f"{label}:{number}: a line of more than {MAX_LINE >> 20} MiB; write one JSON object a line (JSON Lines)"
            )
        yield raw


def dump_line(value: dict) -> str:
    """One object as one line of JSON, text unescaped except the Unicode line separators some readers split at."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> int:
    """Writes lines to `path` (gzip when it ends in .gz) under a temporary name, then renames. Returns the count.

    A failure of any kind, the iterable's own included, leaves an older file at `path` as it was and no temporary.

    Raises:
        UserError: there is no place for it. WorkError: writing failed (disk full, ...).
    """
    path = Path(path)
    count = 0
    with put_file(path) as temporary:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = open(temporary, "wb")
        except OSError as e:
            raise UserError(f"{path}: cannot be written ({e.strerror or e})") from e
        try:
            # mtime=0 and no name: the same records give the same bytes.
            packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if is_packed(path) else None
            out = packed or raw
            for line in lines:
                with naming(path):
                    out.write(line.encode("utf-8") + b"\n")
                count += 1
            with naming(path):
                if packed:
                    packed.close()
                raw.flush()
                os.fsync(raw.fileno())
        finally:  # what could not be flushed fails here again, without the file's name
            with contextlib.suppress(OSError):
                raw.close()
    return count


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file that cannot be written."""
    try:
        yield
    except OSError as e:
        raise WorkError(f"{path}: cannot be written ({e.strerror or e})") from e
