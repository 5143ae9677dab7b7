"""Units of work: every input file cut into pieces, small ones laid together, about 100 MB each.

A unit is a task's smallest share, so that a killed task costs minutes. Units follow from the sorted names, sizes and
contents of the inputs alone: neither the order in which a disk lists files nor the number of tasks changes them.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_gen.corpus import page_addresses
from data_gen.corpus.readers import Cut, format_of, reader_of
from data_gen.corpus.stage_folder import Result
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import what_is
from mmed_jax.data.records.schema import LANGUAGES

DESCRIPTIONS = "descriptions.json"
# As the language of a source: each file's is the name of the nearest folder above it that is a language's code.
BY_FOLDER = "folder"
# Of input files that one task describes.
_BATCH_FILES, _BATCH_BYTES = 1000, 2_000_000_000


@dataclass(frozen=True)
class InputFile:
    """A file of a source. `name`: below the folder of inputs, with /; `format`: of readers.FORMATS."""

    source: str
    name: str
    path: str
    format: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Piece:
    """A part of a file that one task reads; [start, end) in the measure of its reader."""

    name: str
    format: str
    sha256: str
    start: int
    end: int
    bytes: int

    @property
    def cut(self) -> Cut:
        return Cut(self.start, self.end, self.bytes)


@dataclass(frozen=True)
class Unit:
    """Pieces of one source that one task reads, one after the other."""

    source: str
    pieces: tuple[Piece, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Unit":
        return cls(value["source"], tuple(Piece(**p) for p in value["pieces"]))

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.pieces)


def find_files(
    source: str, root: Path, pattern: str, format: str = "", passed_over: list[str] | None = None
) -> list[InputFile]:
    """The files of a source, sorted by name; hidden ones and those of no known format are left out.

    Args:
      root: folder of all inputs. pattern: a file, a folder or a glob (with **) below it; links to folders are followed.
      format: of readers.FORMATS, for files whose name says none; "" = by suffix.
      passed_over: takes the names of the files of no known format.

    Raises:
      UserError: files are there and none is of a format that can be read; one is no regular file, or may not be read;
        a folder may not, or links to one that it lies in; a name is no UTF-8; the pattern is none, or not below `root`.
    """
    files, unknown = [], []
    for path in _list_paths(source, root, pattern):
        name = path.relative_to(root).as_posix()
        kind = format or format_of(path.name)
        if not kind:
            unknown.append(name)
            continue
        if what_is(path) != "file" or not os.access(path, os.R_OK):
            problem = what_is(path) if what_is(path) != "file" else "not to be read by this user"
            raise UserError(f"source.{source}: {path}: is {problem}")
        if not _is_utf8(name):
            raise UserError(f"source.{source}: {ascii(str(path))}: its name is no UTF-8; rename it")
        reader_of(kind)  # its extra may be missing
        stat = path.stat()
        files.append(InputFile(source, name, str(path), kind, stat.st_size, stat.st_mtime_ns))
    if any(f.format == "html" for f in files):  # what says where the pages come from is no input of its own
        files = [f for f in files if Path(f.name).name not in page_addresses.NAMES]
        unknown = [name for name in unknown if Path(name).name not in page_addresses.NAMES]
    if unknown and not files:
        raise UserError(
            f"source.{source}: {root / unknown[0]}: no format by its name; set source.{source}.format, or name other "
            "files"
        )
    if passed_over is not None:
        passed_over += unknown
    return sorted(files, key=lambda f: f.name)


def _list_paths(source: str, root: Path, pattern: str) -> list[Path]:
    """What is no folder and not hidden below `root`, by its pattern; errors as of `find_files`."""
    wrong = f"source.{source}.path={pattern}"
    if ".." in Path(pattern).parts or Path(pattern).is_absolute() and not Path(pattern).is_relative_to(root):
        raise UserError(f"{wrong}: must lie below --data_dir={root}")
    pattern = os.path.relpath(pattern, root) if Path(pattern).is_absolute() else pattern
    try:
        matches = [root / pattern] if os.path.lexists(root / pattern) else list(root.glob(pattern) if pattern else [])
    except ValueError as e:
        raise UserError(f"{wrong}: {e}") from None
    paths = set[Path]()
    for match in matches:
        if not any(part.startswith(".") for part in match.relative_to(root).parts):
            paths.update(_walk(source, match) if match.is_dir() else [match])
    return sorted(paths)


def _walk(source: str, top: Path) -> Iterator[Path]:
    """The files below a folder, through links to folders, without hidden ones."""

    def fail(e: OSError) -> None:
        raise UserError(f"source.{source}: {e.filename}: can't be read ({e.strerror})")

    for folder, folders, names in os.walk(top, onerror=fail, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            link = os.path.join(folder, name)
            if os.path.islink(link) and Path(folder).resolve().is_relative_to(os.path.realpath(link)):
                raise UserError(f"source.{source}: {link}: is a link to a folder that it lies in; remove it")
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def stated_language(language: str, name: str) -> str:
    """The language of a file as the recipe states it: of the whole source, or by the file's folder; "" for none.

    language: of the source's entry. name: of the file below the folder of inputs, with /.
    """
    if language != BY_FOLDER:
        return language
    return next((folder for folder in reversed(name.split("/")[:-1]) if folder in LANGUAGES), "")


def describe_files(part: dict[str, Any], settings: dict[str, Any], context: dict[str, Any], folder: Path) -> Result:
    """A stage's function: descriptions.json, a list of `describe_file` in the order of part["files"]."""
    files = [InputFile(**f, path=str(Path(context["roots"][f["source"]]) / f["name"])) for f in part["files"]]
    described = [describe_file(file, settings["unit_bytes"]) for file in files]
    (folder / DESCRIPTIONS).write_text(json.dumps(described))
    return Result(len(described))


def describe_file(file: InputFile, unit_bytes: int) -> dict[str, Any]:
    """{"sha256", "cuts": [[start, end, bytes], ...]} of a file: reads all of it. Raises OSError."""
    with open(file.path, "rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    cuts = reader_of(file.format).cuts(Path(file.path), unit_bytes)
    return {"sha256": sha256, "cuts": [[c.start, c.end, c.bytes] for c in cuts]}


def batch_files(files: Sequence[InputFile]) -> list[list[InputFile]]:
    """Files in batches that a task describes: a few thousand small ones, or a single large one."""
    batches: list[list[InputFile]] = []
    held = 0
    for file in files:
        if batches and len(batches[-1]) < _BATCH_FILES and held + file.size <= _BATCH_BYTES:
            batches[-1].append(file)
            held += file.size
        else:
            batches.append([file])
            held = file.size
    return batches


def plan_units(files: Iterable[InputFile], descriptions: Iterable[dict[str, Any]], unit_bytes: int) -> list[Unit]:
    """Units of all files: pieces in the order of source and name, several of a source together up to `unit_bytes`."""
    units: list[Unit] = []
    pieces: list[Piece] = []
    source, held = "", 0
    described = sorted(zip(files, descriptions), key=lambda pair: (pair[0].source, pair[0].name))
    for file, description in described:
        for start, end, size in description["cuts"]:
            if pieces and (file.source != source or held + size > unit_bytes):
                units.append(Unit(source, tuple(pieces)))
                pieces, held = [], 0
            pieces.append(Piece(file.name, file.format, description["sha256"], start, end, size))
            source, held = file.source, held + size
    return [*units, Unit(source, tuple(pieces))] if pieces else units
