"""Published files as bytes and text: single, in folders, gzipped or zipped; their splits by name (rows: raw_rows.py).

Bytes that are not UTF-8 are an error or decoded as said (see encodings.py); a file that cannot be read is an error
naming it, and a row that can't be is counted by whoever reads (Download.lost).
"""

import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import check_file
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
        raise WrongForm(f"{problem} {' or '.join(suffixes)} file", place=shown(str(download.path)))
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
