"""Reads published files as they are: JSON, JSON lines, CSV, xlsx, parquet; single, in folders, gzipped or zipped.

Lenient where publications are (NaN in JSON is null), strict where leniency would move a key or lose a row: a name given
twice, a CSV row of another width, bytes that are not UTF-8 (see encodings.py). Never silent: a file that can't be read
is an error naming file and line, a row that can't be is counted by whoever reads (Download.lost).
"""

import gzip
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import check_file, suffix
from mmed_jax.data.records.delimited import header_of, read_lines, width_problem
from mmed_jax.data.records.reading import SPLIT_NAMES, members
from mmed_jax.data.sources import encodings
from mmed_jax.data.sources.source import Row, WrongForm

_SPLITS = {
    **SPLIT_NAMES,
    **{name + more: split for name, split in SPLIT_NAMES.items() for more in ("set", "data")},
    "training": "train",
    "testing": "test",
    "fewshot": "fewshot",
}
# Of two splits that a row is said to be of, the one that must not be learned from counts.
RANK = {"test": 0, "validation": 1, "dev": 1}
# Files that come with every download and are never rows.
_IGNORED = {"provenance.json", "dataset_info.json", "dataset_infos.json", "package.json", "state.json"}
# No published file unpacks to more: what does is of another kind, or malice.
_MOST_BYTES = 2 << 30
# Names with these would be obeyed by a terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Download:
    """What an adapter reads: a file, folder or zip, and how.

    Attributes:
      encoding: of its text files, "" for UTF-8. languages, gb18030: see encodings.decode.
      lost: rows that are none, each with its `problem`; whoever reads takes them out and counts them. None: errors.
      named: whether files with (True) and without (False) a split in their names were met.
    """

    path: Path
    encoding: str = ""
    languages: tuple[str, ...] = ()
    gb18030: bool = False
    lost: list[Row] | None = None
    named: set[bool] = field(default_factory=set)

    def lose(self, row: Row) -> None:
        """Hands a row on that could not be read. Raises UserError when nobody counts it."""
        if self.lost is None:
            raise UserError(f"{row.where}: {row.problem}")
        self.lost.append(row)


@dataclass(frozen=True)
class RawFile:
    """One file of a download: `label` for messages, `name` its path below the input, `data` its unpacked bytes."""

    label: str
    name: str
    data: bytes
    download: Download

    @property
    def split(self) -> str:
        """The split its name speaks of, last word first: "data/val/anatomy_val.csv" -> "validation"; "" for none."""
        return split_of(self.name)

    def text(self) -> str:
        """The file as text. Raises UserError when its bytes are none; see encodings.decode."""
        d = self.download
        return encodings.decode(self.data, self.label, d.encoding, languages=d.languages, gb18030=d.gb18030)

    def lose(self, where: str, number: int, problem: str, raw: dict | None = None) -> None:
        """Counts a row of this file that can't be read."""
        self.download.lose(Row(raw or {}, where, self.name, self.split, number, problem))


def split_of(name: str) -> str:
    """The split that the words of a file's path speak of, the last one first; "" for none."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return next((_SPLITS[w] for w in reversed(words) if w in _SPLITS), "")


def shown(name: str) -> str:
    """A name with its control characters escaped."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", name)


def as_download(given: Download | Path) -> Download:
    """What an adapter is given as a download."""
    return given if isinstance(given, Download) else Download(Path(given))


def _members(download: Download, suffixes: tuple[str, ...]) -> list:
    if not download.path.is_dir():
        check_file(download.path, shown(str(download.path)))
    return [m for m in members(download.path, *suffixes) if PurePosixPath(m.name).name.lower() not in _IGNORED]


def holds(given: Download | Path, *suffixes: str) -> bool:
    """Whether there is a file with one of these suffixes."""
    return bool(_members(as_download(given), suffixes))


def files(given: Download | Path, *suffixes: str) -> Iterator[RawFile]:
    """The files below a path (a file, folder or zip) with one of these suffixes, sorted; .gz is unpacked.

    Raises WrongForm when there is none, UserError when one is damaged or too large.
    """
    download = as_download(given)
    found = _members(download, suffixes)
    if not found:
        problem = "is no" if download.path.is_file() else "holds no"
        raise WrongForm(f"{shown(str(download.path))}: {problem} {' or '.join(suffixes)} file")
    download.named |= {bool(split_of(m.name)) for m in found}
    for member in found:
        label = shown(member.label)
        try:
            with member.open() as stream:
                data = stream.read(_MOST_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as e:
            raise UserError(f"{label}: damaged: {e}") from None
        except OSError as e:
            raise UserError(f"{label}: cannot be read ({e.strerror or e})") from e
        except UserError as e:
            raise UserError(shown(str(e))) from None
        if len(data) > _MOST_BYTES:
            raise UserError(f"{label}: unpacks to more than {_MOST_BYTES >> 30} GiB; no published file is that large")
        yield RawFile(label, shown(member.name), data, download)


def _loads(text: str, place: str) -> object:
    """JSON of a publication: NaN is null, a name given twice an error, as for records (jsonl.parse_json)."""

    def once(pairs: list) -> dict:
        out = dict(pairs)
        if len(out) < len(pairs):
            twice = jsonl.given_twice(pairs)
            begins = shown(", ".join(f"{k}: {str(v)[:30]}" for k, v in pairs[:2]))
            at = place.removesuffix(":LINE")
            raise UserError(f"{at}: field '{shown(twice)}' is given twice in one object (it begins {begins})")
        return out

    try:
        return jsonl.loads(text, object_pairs_hook=once, parse_constant=lambda _: None)
    except jsonl.BadJSON as e:
        line = re.search(r"at line (\d+)", str(e)) if "broken JSON" in str(e) else None
        place = place.replace(":LINE", f":{line[1] if line else 1}" if "broken JSON" in str(e) else "")
        raise WrongForm(f"{place}: {e}") from None


def json_value(file: RawFile) -> object:
    """The whole file as one JSON value."""
    return _loads(file.text(), f"{file.label}:LINE")


def json_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(number, object) of a file of JSON lines or of one JSON array, whatever its name ends in."""
    content = file.text()
    if re.match(r"\s*\[", content):
        values = enumerate(_loads(content, f"{file.label}:LINE"), 1)
    else:
        values = _json_lines(file, content)
    for number, value in values:
        if not isinstance(value, dict):
            raise WrongForm(f"{file.label}:{number}: expected an object, got {type(value).__name__}")
        yield number, value


def _json_lines(file: RawFile, content: str) -> Iterator[tuple[int, object]]:
    start = number = 0
    while start < len(content):
        end = content.find("\n", start)
        end = len(content) if end < 0 else end
        number += 1
        if end - start > jsonl.MAX_LINE:
            size = f"{(end - start) >> 20} MiB, more than {jsonl.MAX_LINE >> 20}"
            raise WrongForm(f"{file.label}:{number}: a line of {size}; no row is that long")
        line, start = content[start:end], end + 1
        if line.strip():
            yield number, _loads(line, f"{file.label}:{number}")


def csv_lists(file: RawFile) -> Iterator[tuple[int, list[str]]]:
    """(line number where it ends, cells) of each CSV row that is not blank; rows that are broken go to `lost`."""
    for line in read_lines(file.text(), file.label):
        if line.problem:
            file.lose(f"{file.label}:{line.first}", line.last, line.problem)
        else:
            yield line.last, line.cells


def csv_objects(file: RawFile) -> Iterator[tuple[int, dict]]:
    """(line number, row as an object) of a CSV file with a header; rows of another width go to `lost`."""
    header: list[str] | None = None
    for line in read_lines(file.text(), file.label):
        where = f"{file.label}:{line.first}"
        if header is None:
            if line.problem:
                raise UserError(f"{where}: {line.problem}, in the header")
            header = header_of(line.cells, where)
            continue
        problem = line.problem or width_problem(line.cells, header)
        row = {name: cell for name, cell in zip(header, line.cells) if name}
        if problem:
            file.lose(where, line.last, problem, row)
        else:
            yield line.last, row


def rows_of(file: RawFile, numbered: Iterable[tuple[int, dict]]) -> Iterator[Row]:
    """Numbered objects of a file as rows, each with its split."""
    for number, value in numbered:
        yield Row(value, f"{file.label}:{number}", file.name, split_in(file.split, value.get("split")), number)


def split_in(split: str, field: object) -> str:
    """The split of a row in a file of `split` ("" unknown), whose own field `split` may say one too."""
    own = split_of(field) if isinstance(field, str) else ""
    return min((s for s in (split, own) if s), key=lambda s: RANK.get(s, 2), default="")


def objects(given: Download | Path, *suffixes: str) -> Iterator[Row]:
    """Rows of every file with one of these suffixes below a path, read by what the name ends in."""
    from mmed_jax.data.sources.sheets import parquet_objects, xlsx_rows

    readers = {".json": json_objects, ".jsonl": json_objects, ".csv": csv_objects, ".parquet": parquet_objects}
    for file in files(given, *suffixes):
        kind = suffix(file.name)
        if kind == ".xlsx":
            yield from xlsx_rows(file)
        else:
            yield from rows_of(file, readers[kind](file))
