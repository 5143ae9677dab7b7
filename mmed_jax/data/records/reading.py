"""Where records lie: single files, folders, zips, TFDS folders, and which split of them is meant."""

import gzip
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import check_file, is_packed, open_file, stem, suffix, what_is
from mmed_jax.data.records import tfds
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.schema import (
    LANGUAGE_NAMES,
    LANGUAGES,
    RecordError,
    kind_of,
    language_problem,
    mmedbench_record,
    validate_record,
)

SPLIT_NAMES = {
    "train": "train",
    "test": "test",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_LANGUAGE_FILES = {name.lower(): code for code, name in LANGUAGE_NAMES.items()}


@dataclass(frozen=True)
class Member:
    """One file of an input: `label` is what messages call it, `name` its path below the input.

    A folder called by a split ("Train") stays in the name of what lies in it, the input's own folder included.
    """

    label: str
    name: str
    opener: Callable[[], IO[bytes]]

    @property
    def split(self) -> str | None:
        """The split that folder names say, nearest folder first: "MMedBench/Train/x.jsonl" -> "train"."""
        folders = PurePosixPath(self.name).parts[:-1]
        return next((SPLIT_NAMES[f.lower()] for f in reversed(folders) if f.lower() in SPLIT_NAMES), None)

    def open(self) -> IO[bytes]:
        """The unpacked bytes as a stream. Raises UserError: no regular file, a damaged or an encrypted archive."""
        try:
            stream = self.opener()
            return cast(IO[bytes], gzip.open(stream)) if is_packed(self.name) else stream
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as e:
            raise UserError(f"{self.label}: can't be unpacked: {e}") from None


def members(path: Path, *suffixes: str) -> list[Member]:
    """The files of a file, folder or zip whose name ends in one of `suffixes` (or that and .gz), sorted by name."""
    if path.is_file() and suffix(path) == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if not n.endswith("/"))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
            raise UserError(f"{path}: damaged zip file: {e}") from None
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror or e})") from None
        found = [Member(f"{path}/{n}", n, partial(_open_inside, path, n)) for n in names]
    elif path.is_dir():
        own = _split_folder(path)
        # What is no regular file stays in the list, so that one which is asked for is said and not passed over.
        inside = sorted(p for p in path.rglob("*") if not p.is_dir())
        found = [Member(str(p), own + p.relative_to(path).as_posix(), partial(open_file, p)) for p in inside]
    else:
        found = [Member(str(path), _split_folder(path.absolute().parent) + path.name, partial(open_file, path))]
    return [m for m in found if suffix(m.name) in suffixes and not _is_hidden(m.name)]


def _open_inside(archive: Path, name: str) -> IO[bytes]:
    return zipfile.ZipFile(archive).open(name)


def _split_folder(folder: Path) -> str:
    name = folder.resolve().name
    return f"{name}/" if name.lower() in SPLIT_NAMES else ""


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[-1].startswith(".") or "__MACOSX" in parts


def language_of(name: str) -> str | None:
    """MMedBench's files are named by language: "Train/English.jsonl" -> "en"; None for any other name."""
    return _LANGUAGE_FILES.get(stem(name, ".jsonl").lower())


def locate(path: str | os.PathLike) -> tuple[Path, str | None]:
    """PATH or PATH:SPLIT as an existing path and a split. Raises UserError with the nearest name in that folder."""
    text = os.fspath(path)
    if os.path.exists(text):
        return Path(text), None
    head, _, split = text.rpartition(":")
    if head and os.path.exists(head):
        return Path(head), split
    check_file(text)  # a link to nowhere
    raise UserError(f"{text}: no such file or folder{nearest_sibling(text)}")


def nearest_sibling(path: str | os.PathLike) -> str:
    """Hint for a path that is not there: the closest name in its folder."""
    parent = Path(path).parent
    if not parent.is_dir():
        return f" (there is no folder {parent})"
    return nearest(Path(path).name, sorted(p.name for p in parent.iterdir()))


def choose_split(path: object, present: list[str], wanted: str | None) -> str | None:
    """The split to read: the wanted one, else the only one, else train. None means everything. Raises UserError."""
    if wanted is not None:
        for name in (wanted, SPLIT_NAMES.get(wanted.lower())):
            if name in present:
                return name
        raise UserError(f"{path}: no split '{wanted}'{nearest(wanted, present) or ' (it has no splits)'}")
    if len(present) <= 1:
        return present[0] if present else None
    if "train" in present:
        return "train"
    raise UserError(f"{path}: several splits and none is train; say one of them as {path}:{present[0]}")


def read_records(path: str | os.PathLike, kind: str | None = None) -> Iterator[dict]:
    """Checked records of a .jsonl, .jsonl.gz, MMedBench folder or zip, or TFDS folder, in file order.

    Where a folder or zip holds several splits (Train/ and Test/, or TFDS splits) the train split is read; PATH:SPLIT
    asks for another. `kind` makes a record of the other kind an error. Raises UserError on the first fault.
    """
    return (record for _, record in read_with_place(path, kind))


def load_files(paths: Iterable[str], kind: str, languages: Iterable[str] | None = None) -> list[dict]:
    """`checked_records` as a list."""
    return list(checked_records(paths, kind, languages))


def checked_records(paths: Iterable[str], kind: str | None, languages: Iterable[str] | None = None) -> Iterator[dict]:
    """The records of several files, one by one, with the checks that need the whole: no id twice, no empty file, known
    languages.

    `kind` None takes records of both kinds. `languages` keeps only those (and must leave something of the whole). Ids
    are compared when all are read; of each eight bytes are held. Raises UserError.
    """
    paths = list(paths)
    wanted = None if languages is None else tuple(languages)
    for code in wanted or ():
        if code not in LANGUAGES:
            raise UserError(f"language {language_problem(code)}")
    ids, found, kept = array("Q"), set[str](), 0
    for path in paths:
        before = len(ids)
        for _, record in read_with_place(path, kind):
            ids.append(stable_hash(record["id"]))
            found.add(record["language"])
            if wanted is None or record["language"] in wanted:
                kept += 1
                yield record
        if len(ids) == before:
            raise UserError(f"{path}: holds no records")
    _refuse_copies(ids, paths, kind)
    if not kept and ids and wanted is not None:
        raise UserError(f"no record in the languages {', '.join(wanted)}; the files hold {', '.join(sorted(found))}")


def _refuse_copies(ids: array, paths: list[str], kind: str | None) -> None:
    """Raises RecordError for the first id that stands twice; `ids`: their hashes, in order."""
    hashes = np.frombuffer(ids, np.uint64)
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    pairs = np.stack([order[same], order[same + 1]], axis=1)
    for earlier, later in pairs[np.argsort(pairs[:, 1])].tolist():
        records = enumerate(chain.from_iterable(read_with_place(path, kind) for path in paths))
        first, second = (entry for number, entry in islice(records, later + 1) if number in (earlier, later))
        if first[1]["id"] == second[1]["id"]:  # and not only their hashes
            raise RecordError(second[0], "id", f"{second[1]['id']!r} was already used at {first[0]}")


def read_with_place(path: str | os.PathLike, kind: str | None = None) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", checked record) as read_records does."""
    real, wanted = locate(path)
    for where, record in _read_any(real, wanted):
        if kind is not None and kind_of(record) != kind:
            need = {"instruction": "instruction ('messages')", "mcq": "multiple-choice ('question')"}[kind]
            raise UserError(f"{where}: a record of kind {kind_of(record)} where {need} records were expected")
        yield where, record


def _read_any(path: Path, wanted: str | None) -> Iterator[tuple[str, dict]]:
    if path.is_dir():
        version = tfds.version_folder(path)
        if version is not None:
            split = choose_split(path, tfds.splits(version), wanted)
            if split is None:
                raise UserError(f"{path}: this TFDS set has no split")
            for number, record in enumerate(tfds.read_tfds(version, split), 1):
                where = f"{version}:{split}:{number}"
                yield where, validate_record(record, where)
            return
    if what_is(path) != "a folder":
        check_file(path)
    found = members(path, ".jsonl")
    if not found and path.is_file() and suffix(path) != ".zip":
        raise UserError(
            f"{path}: expected a .jsonl or .jsonl.gz file of records, a folder or a zip of them; "
            "raw data sets go through `python -m data_gen convert` first"
        )
    if not found:
        raise UserError(f"{path}: holds no .jsonl or .jsonl.gz file")
    split = choose_split(path, sorted({m.split for m in found if m.split}), wanted)
    if split and wanted is None and any(m.split is None for m in found):
        raise UserError(f"{path}: holds files both inside and outside of split folders; say which, as {path}:{split}")
    for member in found:
        if split is None or member.split == split:
            yield from _read_member(member)


def _read_member(member: Member) -> Iterator[tuple[str, dict]]:
    language = language_of(member.name)
    with member.open() as stream:
        for where, raw in jsonl.read_objects(stream, member.label):
            # A record of the schema, and not a line of MMedBench's own file; a benchmark of ours may have ids.
            record_line = "language" in raw or "question" not in raw or "id" in raw and "human_checked" not in raw
            if language is None or record_line:
                yield where, validate_record(raw, where)
                continue
            line, file = int(where.rpartition(":")[2]), PurePosixPath(member.name).name
            record = mmedbench_record(raw, language=language, file=file, line=line, split=member.split)
            try:
                yield where, validate_record(record, where)
            except RecordError as e:
                hint = "python -m data_gen convert --source=mmedbench drops such rows and counts them"
                raise UserError(f"{e} ({hint})") from None
