"""Where benchmarks lie, by name or by file: record files, folders and zips of published files, the hub.

A registered name (registry.py) is looked up as a record file, as a folder or zip of the published files, or on the hub;
any other name as a record file.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.hashes import file_hash
from mmed_jax.common.input_files import stem, suffix
from mmed_jax.common.paths import expand_home
from mmed_jax.data.records.reading import SPLIT_NAMES, locate, members, read_records
from mmed_jax.data.sources import SOURCES
from mmed_jax.evaluation.benchmarks.registry import ENTRIES, GROUPS, Entry, expand, lookup

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

    @property
    def registered(self) -> Entry:
        """The entry of a benchmark that has one."""
        assert self.entry is not None, self.name
        return self.entry


def locate_files(paths: Iterable[str]) -> list[Benchmark]:
    """Benchmarks named by their files: --data=a.jsonl,b.jsonl -> a, b; splits of one folder by name and split.

    Raises:
      UserError: a file that is missing or named twice, or that holds several splits and none is named.
    """
    benchmarks: list[Benchmark] = []
    places = [(path, *locate(path)) for path in paths]
    for path, real, split in places:
        name = stem(real, ".jsonl", ".zip")
        if split and [r for _, r, _ in places].count(real) > 1:
            name = f"{name}:{split}"
        if name in [b.name for b in benchmarks] and path not in [b.path for b in benchmarks]:
            name = f"{real.resolve().parent.name}/{name}"
        benchmarks.append(Benchmark(name, path))
    return _check_named_once(benchmarks, "--data")


def locate_benchmarks(names: Iterable[str], data_dir: str, split: str = "") -> list[Benchmark]:
    """Benchmarks by name, or by a group's name ("papers"), in a folder or on the hub (data_dir "hub"). NAME/PART asks a
    part of a registered one, NAME:SPLIT another split; `split` is that of names without one.

    In a folder: NAME.jsonl, NAME.jsonl.gz, NAME.zip, a folder NAME (or NAME_anything, for registered names), or the one
    file whose records say `source: NAME`.

    Raises:
      UserError: no such folder, no such benchmark (with the nearest), several files of one source, questions named
        twice, or one that holds several splits.
    """
    names = tuple(names)
    wanted = [(name, lookup(name)) for name in expand(names)]
    if data_dir == HUB:
        return _check_named_once([_on_hub(name, known) for name, known in wanted], "--benchmark", split)
    folder = expand_home(data_dir)
    if not folder.is_dir():
        raise UserError(f"--data_dir={data_dir}: no such folder")
    named = {n.lower() for n in names}
    missing = [n for n, known in wanted if n not in named and known and locate_entry(known[0], folder) is None]
    if missing:
        group = next(n for n in names if n.lower() in GROUPS)
        raise UserError(
            f"--benchmark={group}: {', '.join(missing)} not found in {folder}; "
            f"`python -m mmed_jax.evaluate list --data_dir={data_dir}` shows what is there"
        )
    return _check_named_once([_in_folder(name, known, folder) for name, known in wanted], "--benchmark", split)


def _on_hub(name: str, known: tuple[Entry, str, str] | None) -> Benchmark:
    with_copy = [e.name for e in ENTRIES.values() if e.source.hub.repo]
    if known is None:
        raise UserError(f"--benchmark={name}: no registered benchmark{_alias_hint(name) or nearest(name, with_copy)}")
    entry, part, split = known
    if not entry.source.hub.repo:
        raise UserError(
            f"--benchmark={name}: no hub copy of it is known; download it from {entry.source.url} and name its folder "
            "with --data_dir=DIR"
        )
    return Benchmark(name, HUB, entry, part, raw=True, split=split)


def _in_folder(name: str, known: tuple[Entry, str, str] | None, folder: Path) -> Benchmark:
    if known is not None and (located := locate_entry(known[0], folder)) is not None:
        return dataclasses.replace(located, name=name, part=known[1], split=known[2])
    hint = _alias_hint(name)
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz", folder / f"{name}.zip", folder / name):
        # A folder of published files may be called by the other name; it is read under the registered one.
        if known is None and path.exists() and not (hint and not path.is_file()):
            return Benchmark(name, str(path))
    files = sorted(p for p in folder.iterdir() if suffix(p) == ".jsonl")
    sources = {p: source_of(p) for p in files}
    same = [p for p, s in sources.items() if s == (known[0].name if known else name)]
    if len(same) > 1:
        shown = ", ".join(p.name for p in same)
        raise UserError(f"--benchmark={name}: several files of that source ({shown}); name one with --data=FILE")
    if same:
        entry, part, split = known or (None, "", "")
        return Benchmark(name, str(same[0]), entry, part, split=split)
    if known is not None:
        raise UserError(
            f"--benchmark={name}: not in {folder}: neither a folder or zip '{known[0].name}' of the published files "
            f"({known[0].source.expects}) nor {known[0].name}.jsonl"
        )
    there = {stem(p, ".jsonl") for p in files} | {s for s in sources.values() if s}
    there |= {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    there |= {n for n, e in ENTRIES.items() if locate_entry(e, folder)}
    hint = hint or nearest(name, sorted(there)) or ", which holds no record file"
    raise UserError(f"--benchmark={name}: not in {folder}{hint}")


def locate_entry(entry: Entry, folder: Path) -> Benchmark | None:
    """Where a registered benchmark lies in a folder; None when it does not. Raises UserError when several fit."""
    names = {_plain(n) for n in (entry.name, *entry.aliases)}
    for path in (folder / f"{entry.name}.jsonl", folder / f"{entry.name}.jsonl.gz"):
        if path.is_file():
            return Benchmark(entry.name, str(path), entry)
    places = [p for p in sorted(folder.iterdir()) if p.is_dir() or suffix(p) == ".zip"]
    exact = [p for p in places if _plain(stem(p, ".zip")) in names]
    like = [p for p in places if _plain(p.name).startswith(entry.name + "_") and not _is_other(p, entry)]
    candidates = exact[:1] or like
    if len(candidates) > 1:
        shown = ", ".join(p.name for p in candidates)
        raise UserError(f"--benchmark={entry.name}: several folders of that name ({shown}) in {folder}; keep one")
    if not candidates and any((folder / name).is_dir() for name in entry.subfolders):
        candidates = [folder]
    if candidates:
        path = candidates[0]
        if path.is_dir() and entry.prefer:
            path = next((p for p in sorted(path.rglob(entry.prefer)) if p.is_dir()), path)
        return Benchmark(entry.name, str(path), entry, raw=not _holds_records(path))
    return None


def _alias_hint(name: str) -> str:
    """ ", did you mean 'x'?" where `name` is another name of a registered benchmark; else ""."""
    head = name.lower().partition(":")[0].partition("/")[0]
    known = next((e.name for e in ENTRIES.values() if head in e.aliases), "")
    return f", did you mean '{known}{name[len(head) :]}'?" if known else ""


def _check_named_once(benchmarks: list[Benchmark], flag: str, split: str = "") -> list[Benchmark]:
    """`benchmarks`, when nothing is asked twice and no training data in silence. Raises UserError."""
    for k, b in enumerate(benchmarks):
        for other in benchmarks[:k]:
            if b.name == other.name:
                raise UserError(f"{flag}: '{b.name}' is named twice ({b.path})")
            if _question_set(b, split) & _question_set(other, split):
                raise named_twice(other, b, flag)
        # Without a word, read_records would take the training split.
        if b.entry is None and locate(b.path)[1] is None and len(present := list_splits(locate(b.path)[0])) > 1:
            like = f"--data={b.path}:{'test' if 'test' in present else present[0]}"
            raise UserError(f"{b.path}: holds several splits ({', '.join(present)}); say which, as {like}")
    return benchmarks


def _question_set(b: Benchmark, split: str) -> set[tuple]:
    """What of which place a benchmark asks, as far as its name tells: (place, split, part or language)."""
    if b.entry is None:
        real, own = locate(b.path)
        present = list_splits(real)
        if own and (split_there := match_split(own, present)):
            own = split_there
        return {(real.resolve(), own or (present[0] if len(present) == 1 else ""), "")}
    known = b.entry.counts
    wanted = b.split or split or b.entry.split
    wanted = match_split(wanted, tuple(known)) or SPLIT_NAMES.get(wanted.lower(), wanted)
    cells = (b.part,) if b.part else b.entry.asked_parts or b.entry.parts or b.entry.languages
    return {(b.entry.name, wanted, cell) for cell in cells}


def named_twice(first: Benchmark, second: Benchmark, flag: str) -> UserError:
    """The error for two names of the same questions, a part and its whole among them."""
    part, whole = (first, second) if first.part and not second.part else (second, first)
    if part.part and not whole.part:
        return UserError(f"{flag}: '{part.name}' is a part of '{whole.name}', the same questions: named twice")
    return UserError(f"{flag}: '{first.name}' and '{second.name}' are the same questions: named twice")


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


def list_splits(path: Path) -> list[str]:
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


def benchmark_hash(path: str) -> str:
    """SHA-256 (hex) of the record file that a benchmark's path stands for, or over names and bytes of a folder's."""
    real, _ = locate(path)
    if real.is_file():
        return file_hash(real)
    digest = hashlib.sha256()
    for p in sorted(p for p in real.rglob("*") if p.is_file()):
        digest.update(os.fspath(p.relative_to(real)).encode())
        with p.open("rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def match_split(name: str, present: Sequence[str]) -> str | None:
    """The name of `present` that is meant by `name` ("dev" is "validation" where there is no dev split); or None."""
    return next((s for s in (name, SPLIT_NAMES.get(name.lower())) if s in present), None)
