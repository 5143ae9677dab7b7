"""Where records lie: single files, folders, zips, TFDS folders, and which split of them is meant."""

import gzip
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mmed_jax.data import jsonl
from mmed_jax.data.schema import LANGUAGE_NAMES, RecordError, kind_of, mmedbench_record, validate_record
from mmed_jax.errors import UserError, nearest

_SPLITS = {
    "train": "train", "test": "test", "dev": "validation", "val": "validation", "valid": "validation",
    "validation": "validation",
}  # fmt: skip
_LANGUAGE_FILES = {name.lower(): code for code, name in LANGUAGE_NAMES.items()}


@dataclass(frozen=True)
class Member:
    """One JSON-lines file: `label` is what messages call it, `name` its file name, `split` by its folder's name."""

    label: str
    name: str
    split: str | None
    open: Callable[[], BinaryIO]


def split_of(parts: tuple[str, ...]) -> str | None:
    """The split that folder names say, nearest folder first: ("MMedBench", "Train") -> "train"."""
    return next((_SPLITS[p.lower()] for p in reversed(parts) if p.lower() in _SPLITS), None)


def language_of(name: str) -> str | None:
    """MMedBench's files are named by language: "English.jsonl" -> "en"; None for any other name."""
    return _LANGUAGE_FILES.get(name.removesuffix(".gz").removesuffix(".jsonl").lower())


def locate(path: str | os.PathLike) -> tuple[Path, str | None]:
    """PATH or PATH:SPLIT as an existing path and a split. Raises UserError with the nearest name in that folder."""
    text = os.fspath(path)
    if os.path.exists(text):
        return Path(text), None
    head, _, split = text.rpartition(":")
    if head and os.path.exists(head):
        return Path(head), split
    parent = Path(text).parent
    near = nearest(Path(text).name, [p.name for p in parent.iterdir()]) if parent.is_dir() else f" (no folder {parent})"
    raise UserError(f"{text}: no such file or folder{near}")


def members(path: Path) -> list[Member]:
    """The JSON-lines files in a file, folder or zip, sorted by name. Raises UserError when there is none."""
    if path.is_file() and zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        names = [PurePosixPath(n) for n in sorted(archive.namelist()) if n.endswith(jsonl.SUFFIXES)]
        found = [
            Member(f"{path}/{n}", n.name, split_of(n.parent.parts), lambda n=n: _unpack(archive.open(str(n)), n.name))
            for n in names
            if not n.name.startswith(".") and "__MACOSX" not in n.parts
        ]
    elif path.is_file():
        if path.suffix == ".zip":
            raise UserError(f"{path}: damaged zip file")
        if not path.name.endswith(jsonl.SUFFIXES):
            raise UserError(f"{path}: expected a .jsonl or .jsonl.gz file of records, a folder or a zip of them; "
                            "raw data sets go through `python -m data_gen convert` first")  # fmt: skip
        parent = path.resolve().parent
        return [Member(str(path), path.name, split_of((parent.name,)), lambda: jsonl.open_binary(path))]
    else:
        files = sorted(p for p in path.rglob("[!.]*.jsonl*") if p.name.endswith(jsonl.SUFFIXES))
        own = (path.resolve().name,)
        found = [
            Member(str(p), p.name, split_of(own + p.relative_to(path).parent.parts), lambda p=p: jsonl.open_binary(p))
            for p in files
        ]
    if not found:
        raise UserError(f"{path}: holds no .jsonl or .jsonl.gz file")
    return found


def _unpack(stream: BinaryIO, name: str) -> BinaryIO:
    return gzip.open(stream) if name.endswith(".gz") else stream


def choose_split(path: object, present: list[str], wanted: str | None) -> str | None:
    """The split to read: the wanted one, else the only one, else train. None means everything. Raises UserError."""
    if wanted is not None:
        for name in (wanted, _SPLITS.get(wanted.lower())):
            if name in present:
                return name
        raise UserError(f"{path}: no split '{wanted}'{nearest(wanted, present) or ' (it has no splits)'}")
    if len(present) <= 1:
        return present[0] if present else None
    if "train" in present:
        return "train"
    raise UserError(f"{path}: several splits and none is train; say one of them as {path}:{present[0]}")


def read_with_place(path: str | os.PathLike, kind: str | None = None) -> Iterator[tuple[str, dict]]:
    """Yields ("file:line", checked record); see schema.read_records."""
    real, wanted = locate(path)
    for where, record in _read_any(real, wanted):
        if kind is not None and kind_of(record) != kind:
            need = {"instruction": "instruction ('messages')", "mcq": "multiple-choice ('question')"}[kind]
            raise UserError(f"{where}: a record of kind {kind_of(record)} where {need} records were expected")
        yield where, record


def _read_any(path: Path, wanted: str | None) -> Iterator[tuple[str, dict]]:
    if path.is_dir():
        from mmed_jax.data import tfds_io

        version = tfds_io.version_folder(path)
        if version is not None:
            split = choose_split(path, tfds_io.splits(version), wanted)
            for number, record in enumerate(tfds_io.read_tfds(version, split), 1):
                where = f"{version}:{split}:{number}"
                yield where, validate_record(record, where)
            return
    found = members(path)
    split = choose_split(path, sorted({m.split for m in found if m.split}), wanted)
    if split and wanted is None and any(m.split is None for m in found):
        raise UserError(f"{path}: holds files both inside and outside of split folders; say which, as {path}:{split}")
    for member in found:
        if split is None or member.split == split:
            yield from _read_member(member)


def _open(member: Member) -> BinaryIO:
    try:
        return member.open()
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as e:  # damaged, encrypted, unknown compression
        raise UserError(f"{member.label}: can't be unpacked: {e}") from None


def _read_member(member: Member) -> Iterator[tuple[str, dict]]:
    language = language_of(member.name)
    with _open(member) as stream:
        for where, raw in jsonl.read_objects(stream, member.label):
            theirs = language is not None and "id" not in raw and "language" not in raw and "question" in raw
            if not theirs:
                yield where, validate_record(raw, where)
                continue
            line = int(where.rpartition(":")[2])
            record = mmedbench_record(raw, language=language, file=member.name, line=line, split=member.split)
            try:
                yield where, validate_record(record, where)
            except RecordError as e:
                hint = "python -m data_gen convert --source=mmedbench drops such rows and counts them"
                raise UserError(f"{e} ({hint})") from None
