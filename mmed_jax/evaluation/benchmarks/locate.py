"""Where benchmarks lie: folders and zips of published files, record files, and which of their splits is meant."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import stem, suffix
from mmed_jax.data.records.reading import SPLIT_NAMES, locate, members, read_records
from mmed_jax.data.sources import SOURCES
from mmed_jax.evaluation.benchmarks.registry import Entry

HUB = "hub"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A named set of questions.

    `path`: as read_records takes it, with ":split" where there are several; published files when `raw`; or "hub".
    `entry` and `part` for a registered one, `split` when another one than the reported is asked by name. `encoding` of
    published text files that are not UTF-8.
    """

    name: str
    path: str
    entry: Entry | None = None
    part: str = ""
    raw: bool = False
    split: str = ""
    encoding: str = ""


def locate_entry(entry: Entry, folder: Path) -> Benchmark | None:
    """Where a registered benchmark lies in a folder; None when it does not. Raises UserError when several fit."""
    names = {_plain(n) for n in (entry.name, *entry.aliases)}
    for path in (folder / f"{entry.name}.jsonl", folder / f"{entry.name}.jsonl.gz"):
        if path.is_file():
            return Benchmark(entry.name, str(path), entry)
    places = [p for p in sorted(folder.iterdir()) if p.is_dir() or suffix(p) == ".zip"]
    exact = [p for p in places if _plain(stem(p, ".zip")) in names]
    like = [p for p in places if _plain(p.name).startswith(entry.name + "_") and not _is_other(p, entry)]
    found = exact[:1] or like
    if len(found) > 1:
        shown = ", ".join(p.name for p in found)
        raise UserError(f"--benchmark={entry.name}: several folders of that name ({shown}) in {folder}; keep one")
    if not found and entry.name == "mmedbench" and any((folder / n).is_dir() for n in ("Test", "test")):
        found = [folder]
    if found:
        path = found[0]
        if path.is_dir() and entry.prefer:
            path = next((p for p in sorted(path.rglob(entry.prefer)) if p.is_dir()), path)
        return Benchmark(entry.name, str(path), entry, raw=not _holds_records(path))
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.lower())


def _is_other(path: Path, entry: Entry) -> bool:
    """Whether a folder is called by another set whose name begins like this one's."""
    return any(_plain(path.name).startswith(n) for n in SOURCES if n != entry.name and n.startswith(entry.name))


def _holds_records(path: Path) -> bool:
    """Whether a folder or zip holds record files, and not published ones."""
    if path.is_dir():
        from mmed_jax.data.records import tfds

        if tfds.version_folder(path) is not None:
            return True
    for member in members(path, ".jsonl")[:1]:
        with member.open() as stream:
            try:
                _, first = next(iter(jsonl.read_objects(stream, member.label)))
            except (UserError, StopIteration):
                return False
            return "language" in first and ("answer_idx" in first or "messages" in first)
    return False


def splits_in(path: Path) -> list[str]:
    """Names of the splits in a folder or zip of records, sorted; [] for a file or what has none."""
    if path.is_dir():
        from mmed_jax.data.records import tfds

        if (version := tfds.version_folder(path)) is not None:
            return sorted(tfds.splits(version))
    elif suffix(path) != ".zip":
        return []
    return sorted({m.split for m in members(path, ".jsonl") if m.split})


def source_of(path: Path) -> str | None:
    """The source that the first record of a file names; None when it can't be read."""
    try:
        return next(read_records(path)).get("source")
    except (UserError, OSError, StopIteration):
        return None


def file_hash(path: str) -> str:
    """SHA-256 over the record files that a benchmark's path stands for."""
    real, _ = locate(path)
    files = [real] if real.is_file() else sorted(p for p in real.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for p in files:
        if real.is_dir():
            digest.update(os.fspath(p.relative_to(real)).encode())
        with p.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def same_split(asked: str, present: Sequence[str]) -> str | None:
    """The name of `present` that is meant by `asked` ("dev" is "validation" where there is no dev split); or None."""
    return next((s for s in (asked, SPLIT_NAMES.get(asked.lower())) if s in present), None)
