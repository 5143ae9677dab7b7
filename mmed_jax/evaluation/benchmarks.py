"""Which items are asked: benchmarks found by name or file, turned into prompts."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmed_jax.data import jsonl
from mmed_jax.data.chat import Piece, chat_format, chat_pieces, encode_pieces
from mmed_jax.data.files import locate, members
from mmed_jax.data.prompts import mcq_prompt_pieces
from mmed_jax.data.schema import KINDS, kind_of, load_files, read_records
from mmed_jax.errors import UserError, nearest

# Folders and archives that MMedBench is handed out as; its test split is what the papers report.
_MMEDBENCH = ("MMedBench", "MMedBench.zip", "mmedbench", "mmedbench.zip", "")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A named set of records: `path` as read_records takes it, with ":split" where there are several."""

    name: str
    path: str


@dataclasses.dataclass(frozen=True)
class Item:
    """One question. `prompt` are token ids; `options` is empty for instruction records, whose `answer` is a text."""

    benchmark: str
    id: str
    language: str
    prompt: list[int]
    answer: str
    options: dict[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """What identifies it among the results."""
        return self.benchmark, self.id


def from_files(paths: Iterable[str]) -> list[Benchmark]:
    """Benchmarks named by their files: --data=a.jsonl,b.jsonl -> a, b; splits of one folder by name and split.

    Raises:
      UserError: a file that is missing or named twice, or that holds several splits and none is named.
    """
    found: list[Benchmark] = []
    places = [(path, *locate(path)) for path in paths]
    for path, real, split in places:
        name = real.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".zip")
        if split and [r for _, r, _ in places].count(real) > 1:
            name = f"{name}:{split}"
        if name in [b.name for b in found] and path not in [b.path for b in found]:
            name = f"{real.resolve().parent.name}/{name}"
        found.append(Benchmark(name, path))
    return _checked(found, "--data")


def find(names: Iterable[str], data_dir: str) -> list[Benchmark]:
    """Benchmarks by name in a folder: NAME.jsonl, NAME.jsonl.gz, NAME.zip, a folder NAME, or the one file whose
    records say `source: NAME`. "mmedbench" is the test split of an MMedBench folder or zip.

    Raises:
      UserError: no such folder, no such benchmark (with the nearest), several files of one source, one named twice, or
        one that holds several splits.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"--data_dir={data_dir}: no such folder")
    return _checked([_find(name, folder) for name in names], "--benchmark")


def _checked(found: list[Benchmark], flag: str) -> list[Benchmark]:
    """`found`, when nothing is asked twice and no training data in silence. Raises UserError."""
    names, places = set(), set()
    for b in found:
        real, split = locate(b.path)
        if b.name in names or (real.resolve(), split) in places:
            raise UserError(f"{flag}: '{b.name}' is named twice ({b.path})")
        names.add(b.name)
        places.add((real.resolve(), split))
        # Without a word, read_records would take the training split.
        if split is None and len(present := _splits(real)) > 1:
            like = f"--data={b.path}:{'test' if 'test' in present else present[0]}"
            raise UserError(f"{b.path}: holds several splits ({', '.join(present)}); say which, as {like}")
    return found


def _splits(path: Path) -> list[str]:
    """Names of the splits in a folder or zip, sorted; [] for a file or what has none."""
    if path.is_dir():
        from mmed_jax.data import tfds_io

        if (version := tfds_io.version_folder(path)) is not None:
            return sorted(tfds_io.splits(version))
    elif path.suffix.lower() != ".zip":
        return []
    return sorted({m.split for m in members(path, ".jsonl") if m.split})


def _find(name: str, folder: Path) -> Benchmark:
    if name.lower() == "mmedbench":
        for place in _MMEDBENCH:
            path = folder / place
            if path.exists() and (path.is_file() or any((path / n).is_dir() for n in ("Test", "test"))):
                return Benchmark(name, f"{path}:test")
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz", folder / f"{name}.zip", folder / name):
        if path.exists():
            return Benchmark(name, str(path))
    files = sorted(p for p in folder.iterdir() if p.name.endswith(jsonl.SUFFIXES))
    sources = {p: _source(p) for p in files}
    same = [p for p, s in sources.items() if s == name]
    if len(same) > 1:
        shown = ", ".join(p.name for p in same)
        raise UserError(f"--benchmark={name}: several files of that source ({shown}); name one with --data=FILE")
    if same:
        return Benchmark(name, str(same[0]))
    known = {p.name.removesuffix(".gz").removesuffix(".jsonl") for p in files} | {s for s in sources.values() if s}
    known |= {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    hint = nearest(name, sorted(known)) or ", which holds no record file"
    raise UserError(f"--benchmark={name}: not in {folder}{hint}")


def _source(path: Path) -> str | None:
    """The source that the first record of a file names; None when it can't be read."""
    try:
        return next(read_records(path)).get("source")
    except (UserError, OSError, StopIteration):
        return None


def kind_in(benchmarks: Iterable[Benchmark], kind: str = "auto") -> str:
    """The kind of record that all benchmarks hold. Raises UserError when they differ or are not `kind`."""
    kinds = {}
    for b in benchmarks:
        first = next(read_records(b.path), None)
        if first is None:
            raise UserError(f"{b.path}: holds no records")
        kinds[b.name] = kind_of(first)
    found = set(kinds.values()) if kind == "auto" else {kind}
    if kind != "auto" and kind not in KINDS:
        raise UserError(f"--kind={kind}{nearest(kind, ('auto', *KINDS))}")
    if len(found) > 1:
        shown = ", ".join(f"{n}: {k}" for n, k in kinds.items())
        raise UserError(f"multiple choice and instructions are not mixed in one evaluation ({shown}); run it twice")
    return found.pop()


def load_records(
    benchmark: Benchmark, kind: str, languages: tuple[str, ...] | None, limit: int
) -> tuple[list[dict], int]:
    """(records to ask, how many were left out because they need an image). `limit` is per language; 0 = all."""
    records = load_files([benchmark.path], kind, languages)
    kept, seen = [], {}
    for record in records:
        language = record["language"]
        if record.get("needs_image"):
            continue
        seen[language] = seen.get(language, 0) + 1
        if not limit or seen[language] <= limit:
            kept.append(record)
    if not kept:
        raise UserError(f"{benchmark.path}: every record needs an image; nothing is left to ask")
    return kept, sum(bool(r.get("needs_image")) for r in records)


def make_items(
    tok: Any, benchmark: str, records: list[dict], *, mode: str, family: str, system_prompt: str = ""
) -> list[Item]:
    """The records as prompts, tokenized exactly as in training. `mode` and `family` concern multiple choice only."""
    if "messages" in records[0]:
        pieces = [_conversation(tok, r["messages"][:-1], system_prompt) for r in records]
    else:
        pieces = [mcq_prompt_pieces(tok, r, mode, family, system_prompt=system_prompt) for r in records]
    prompts = [e.ids for e in encode_pieces(tok, pieces)]
    return [
        Item(
            benchmark, r["id"], r["language"], ids,
            r["messages"][-1]["content"] if "messages" in r else r["answer_idx"], r.get("options", {}),
        )
        for r, ids in zip(records, prompts)
    ]  # fmt: skip


def _conversation(tok: Any, messages: list[dict], system_prompt: str) -> list:
    if system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
    return [*chat_pieces(tok, messages), Piece(ids=chat_format(tok).headers["assistant"])]


def prompts_hash(items: Iterable[Item]) -> str:
    """SHA-256 over benchmark, id, token ids and right answer of every item, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.benchmark}\0{item.id}\0{item.prompt}\0{item.answer}\n".encode())
    return digest.hexdigest()


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
