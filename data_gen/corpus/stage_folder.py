"""Folders of stages: named by all that decides their contents, filled part by part, each part whole or not there.

    STAGE-3f2a.../stage.json           what the name stands for, and the parts
    STAGE-3f2a.../parts/00017/         a part: its files, and marker.json with rows, counts, sizes and checksums
    STAGE-3f2a.../parts/.00017.*.tmp   a part that is being written, or was when its process died
    STAGE-3f2a.../logs/                what its tasks wrote to stdout and stderr

Where the output of a build lies in a bucket, the parts are kept there too (bucket_parts.py).

The name has a hash of settings, code (the import closure of the stage's function), files such as keyword lists,
versions of libraries, the stages before and the parts (for the first stage: input files with checksums). So a change is
another folder and never a silent skip; what is unchanged is there already. The number of tasks is not in it, because a
part does not depend on which task made it.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from data_gen.corpus.bucket_parts import MARKER, sync_parts, upload_part
from data_gen.corpus.requirements import library_versions
from mmed_jax.common.code_hash import code_hash
from mmed_jax.common.errors import ReportedError, UserError, WorkError, one_line, warn
from mmed_jax.common.hashes import file_hash, json_hash
from mmed_jax.common.output_files import write_json

# What decides nothing of a part's contents.
_NOT_CODE = (
    "data_gen.corpus.bucket_parts",
    "mmed_jax.common.buckets",
    "mmed_jax.common.console",
    "mmed_jax.common.html_page",
    "mmed_jax.common.progress",
)


@dataclass(frozen=True)
class Stage:
    """What a stage does.

    Attributes:
      name: of the folder, before its hash.
      function: "module:name"; called as function(part, settings, context, folder) -> Result in a process of its own,
        writes its files to `folder`.
      parts: one JSON object a part: what its function needs to know.
      settings: decide the contents, and count in the hash. before: the hashes of the stages whose parts it reads.
      files: name -> a file whose contents count as well (a keyword list). modules: code that is imported by name.
      context: paths and the like, which decide nothing.
    """

    name: str
    function: str
    parts: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    context: dict[str, Any] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """All that the name of the folder stands for."""
        return {
            "stage": self.name,
            "function": self.function,
            "settings": self.settings,
            "code": _code_hash((self.function.partition(":")[0], *self.modules)),
            "libraries": library_versions(),
            "files": {name: file_hash(path) for name, path in sorted(self.files.items())},
            "before": self.before,
            "parts": self.parts,
        }


@functools.cache
def _code_hash(modules: tuple[str, ...]) -> str:
    return code_hash(modules, leave_out=_NOT_CODE)


@dataclass
class Result:
    """What the function of a stage returns: rows written, and counts for the books."""

    rows: int = 0
    counts: dict[str, Any] = field(default_factory=dict)


class StageFolder:
    """One stage. `path` ends in the first 16 digits of `hash`; `store` is its address in a bucket, or ""."""

    def __init__(self, path: Path) -> None:
        """Raises WorkError where it has no stage.json that can be read."""
        self.path, self._parts = path, path / "parts"
        try:
            value = json.loads((path / "stage.json").read_bytes())
            self.key, self.context, self.store = value["key"], value["context"], value.get("store", "")
        except (OSError, ValueError, KeyError) as e:
            raise WorkError(f"{path}: no folder of a stage ({e})") from e
        self.hash = path.name.rpartition("-")[2]

    @classmethod
    def make(cls, work: Path, stage: Stage, store: str = "") -> "StageFolder":
        """The folder of a stage below `work`, made unless it is there; `store`: address of `work` in a bucket, or "".

        Raises WorkError where it cannot be written.
        """
        key = stage.key()
        path = work / f"{stage.name}-{json_hash(key, 16)}"
        try:
            (path / "parts").mkdir(parents=True, exist_ok=True)
            (path / "logs").mkdir(exist_ok=True)
        except OSError as e:
            raise WorkError(f"{path}: cannot be written ({e.strerror or e})") from e
        kept = {"store": f"{store}/{path.name}"} if store else {}
        write_json(path / "stage.json", {"key": key, "context": stage.context, **kept})
        return cls(path)

    @property
    def parts(self) -> list[dict[str, Any]]:
        return self.key["parts"]

    def part(self, number: int) -> Path:
        return self._parts / f"{number:06d}"

    def pending(self) -> list[int]:
        """Numbers of the parts that are not there."""
        there = set(os.listdir(self._parts))
        return [n for n in range(len(self.parts)) if f"{n:06d}" not in there]

    def sync(self) -> None:
        """Has the same parts here and in the bucket, where they are kept in one. Raises UserError, WorkError."""
        if self.store:
            away = set(self.pending())
            names = [self.part(n).name for n in range(len(self.parts))]
            here = {names[n]: self.marker(n)["files"] for n in range(len(names)) if n not in away}
            sync_parts(self.store, self._parts, here, names)

    def clean(self) -> None:
        """Removes what dead processes left half-written. Only where none is at work on this stage."""
        for left in self._parts.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def put(self, number: int) -> Iterator[tuple[Path, Result]]:
        """Yields (a folder to write files into, the Result to fill); when the block ends the part is on the disk.

        A part that another process has put meanwhile has the same contents: it stays. That it cannot be put into the
        bucket yet is a warning: `sync` will do it. Raises OSError.
        """
        temporary = self._parts / f".{number:06d}.{socket.gethostname()}-{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        result = Result()
        try:
            yield temporary, result
            files = {path.name: _flush(path) for path in sorted(temporary.iterdir())}
            marker = {"rows": result.rows, "counts": result.counts, "files": files}
            write_json(temporary / MARKER, marker)
            _flush_folder(temporary)
            try:
                temporary.rename(self.part(number))
            except OSError:
                if not (self.part(number) / MARKER).is_file():
                    raise
            _flush_folder(self._parts)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if self.store:
            try:
                upload_part(self.store, self.part(number), files)
            except (OSError, ReportedError) as e:
                warn(f"{self.part(number)}: could not be put into {self.store} yet ({one_line(e)})")

    def marker(self, number: int) -> dict[str, Any]:
        """{"rows", "counts", "files": {name: [bytes, sha256]}} of a part. Raises WorkError where it is not whole."""
        return read_marker(self.part(number))

    def check(self) -> None:
        """Raises WorkError where a part is missing or a file of one has another size than its marker says."""
        for number in range(len(self.parts)):
            part = self.part(number)
            for name, (size, _) in read_marker(part)["files"].items():
                there = (part / name).stat().st_size if (part / name).is_file() else -1
                if there != size:
                    raise _damaged(part, f"{name} has {there} bytes instead of {size}" if there >= 0 else f"no {name}")


def read_marker(part: Path) -> dict[str, Any]:
    """The marker of a part's folder. Raises WorkError where there is none that can be read."""
    try:
        return json.loads((part / MARKER).read_bytes())
    except (OSError, ValueError) as e:
        raise _damaged(part, f"no {MARKER} that can be read ({e})") from e


def open_file(part: Path, name: str) -> IO[bytes]:
    """A file of a part for reading, after its checksum was compared. Raises WorkError where it differs."""
    entry = read_marker(part)["files"].get(name)
    if entry is None:
        raise _damaged(part, f"its marker has no {name}")
    try:
        f = open(part / name, "rb")
        if hashlib.file_digest(f, "sha256").hexdigest() != entry[1]:
            f.close()
            raise _damaged(part, f"{name} has another checksum than when it was written")
    except OSError as e:
        raise _damaged(part, f"{name}: {e.strerror or e}") from e
    f.seek(0)
    return f


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Holds the folder of all stages: two builds in it would remove each other's parts. Raises UserError."""
    with open(work / "lock", "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{work}: another build is at work here; wait for it, or name another --output") from None
        yield


def _damaged(part: Path, problem: str) -> WorkError:
    return WorkError(f"{part}: {problem}; remove this folder and run the same command again")


def _flush(path: Path) -> list[Any]:
    """[bytes, sha256] of a file, which is on the disk then."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        return [os.fstat(f.fileno()).st_size, hashlib.file_digest(f, "sha256").hexdigest()]


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a finished file a second name, where the disk allows without writing it again; makes the folder of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
