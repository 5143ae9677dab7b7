"""Which questions are asked: benchmarks found by name or file, read, counted and cut to what is wanted.

A registered name (registry.py) is looked up as a record file, as a folder or zip of the published files, or on the hub;
any other name as a record file. Published files are read as they are, by the adapters that make training records, but
keep their duplicates: the published number counts them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import stem, suffix
from mmed_jax.common.paths import expand_home
from mmed_jax.data.records.reading import SPLIT_NAMES, load_files, locate, read_records
from mmed_jax.data.records.schema import KINDS, kind_of, question_key
from mmed_jax.evaluation.benchmarks import read
from mmed_jax.evaluation.benchmarks.locate import (
    HUB,
    Benchmark,
    file_hash,
    locate_entry,
    same_split,
    source_of,
    splits_in,
)
from mmed_jax.evaluation.benchmarks.registry import ENTRIES, GROUPS, Entry, expand, lookup
from mmed_jax.evaluation.prompts.items import Item

__all__ = ["Benchmark", "Item", "Loaded", "find", "from_files", "kind_in", "load"]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """`records` to ask; `pools` {split: records} that few-shot examples may come from; `info` for results.json."""

    records: list[dict]
    pools: dict[str, list[dict]]
    info: dict


def from_files(paths: Iterable[str]) -> list[Benchmark]:
    """Benchmarks named by their files: --data=a.jsonl,b.jsonl -> a, b; splits of one folder by name and split.

    Raises:
      UserError: a file that is missing or named twice, or that holds several splits and none is named.
    """
    found: list[Benchmark] = []
    places = [(path, *locate(path)) for path in paths]
    for path, real, split in places:
        name = stem(real, ".jsonl", ".zip")
        if split and [r for _, r, _ in places].count(real) > 1:
            name = f"{name}:{split}"
        if name in [b.name for b in found] and path not in [b.path for b in found]:
            name = f"{real.resolve().parent.name}/{name}"
        found.append(Benchmark(name, path))
    return _checked(found, "--data")


def find(names: Iterable[str], data_dir: str, split: str = "") -> list[Benchmark]:
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
        return _checked([_on_hub(name, known) for name, known in wanted], "--benchmark", split)
    folder = expand_home(data_dir)
    if not folder.is_dir():
        raise UserError(f"--data_dir={data_dir}: no such folder")
    told = {n.lower() for n in names}
    missing = [n for n, known in wanted if n not in told and known and locate_entry(known[0], folder) is None]
    if missing:
        group = next(n for n in names if n.lower() in GROUPS)
        raise UserError(
            f"--benchmark={group}: {', '.join(missing)} not found in {folder}; "
            f"`python -m mmed_jax.evaluate list --data_dir={data_dir}` shows what is there"
        )
    return _checked([_find(name, known, folder) for name, known in wanted], "--benchmark", split)


def _on_hub(name: str, known: tuple[Entry, str, str] | None) -> Benchmark:
    with_copy = [e.name for e in ENTRIES.values() if e.source.hub.repo]
    if known is None:
        raise UserError(f"--benchmark={name}: no registered benchmark{_meant(name) or nearest(name, with_copy)}")
    entry, part, split = known
    if not entry.source.hub.repo:
        raise UserError(
            f"--benchmark={name}: no hub copy of it is known; download it from {entry.source.url} and name its folder "
            "with --data_dir=DIR"
        )
    return Benchmark(name, HUB, entry, part, raw=True, split=split)


def _meant(name: str) -> str:
    """ ", did you mean 'x'?" where `name` is another name of a registered benchmark; else ""."""
    head = name.lower().partition(":")[0].partition("/")[0]
    known = next((e.name for e in ENTRIES.values() if head in e.aliases), "")
    return f", did you mean '{known}{name[len(head) :]}'?" if known else ""


def _checked(found: list[Benchmark], flag: str, split: str = "") -> list[Benchmark]:
    """`found`, when nothing is asked twice and no training data in silence. Raises UserError."""
    for k, b in enumerate(found):
        for other in found[:k]:
            if b.name == other.name:
                raise UserError(f"{flag}: '{b.name}' is named twice ({b.path})")
            if _questions(b, split) & _questions(other, split):
                raise _twice(other, b, flag)
        # Without a word, read_records would take the training split.
        if b.entry is None and locate(b.path)[1] is None and len(present := splits_in(locate(b.path)[0])) > 1:
            like = f"--data={b.path}:{'test' if 'test' in present else present[0]}"
            raise UserError(f"{b.path}: holds several splits ({', '.join(present)}); say which, as {like}")
    return found


def _questions(b: Benchmark, split: str) -> set[tuple]:
    """What of which place a benchmark asks, as far as its name tells: (place, split, part or language)."""
    if b.entry is None:
        real, own = locate(b.path)
        present = splits_in(real)
        if own and (found := same_split(own, present)):
            own = found
        return {(real.resolve(), own or (present[0] if len(present) == 1 else ""), "")}
    known = b.entry.counts
    wanted = b.split or split or b.entry.split
    wanted = same_split(wanted, tuple(known)) or SPLIT_NAMES.get(wanted.lower(), wanted)
    cells = (b.part,) if b.part else b.entry.asked_parts or b.entry.parts or b.entry.languages
    return {(b.entry.name, wanted, cell) for cell in cells}


def _twice(first: Benchmark, second: Benchmark, flag: str) -> UserError:
    part, whole = (first, second) if first.part and not second.part else (second, first)
    if part.part and not whole.part:
        return UserError(f"{flag}: '{part.name}' is a part of '{whole.name}', the same questions: named twice")
    return UserError(f"{flag}: '{first.name}' and '{second.name}' are the same questions: named twice")


def check_apart(loaded: Iterable[tuple[Benchmark, Loaded]]) -> None:
    """Whatever names and files say: all questions of one are not those of another as well. Raises UserError."""
    seen: list[tuple[Benchmark, object, set]] = []
    for b, there in loaded:
        place = b.entry.name if b.entry else locate(b.path)[0].resolve()
        asked = {(r["id"], r["language"], question_key(r)) for r in there.records}
        for other, where, questions in seen:
            if place == where and (asked <= questions or questions <= asked):
                raise _twice(other, b, "--benchmark" if b.entry else "--data")
        seen.append((b, place, asked))


def _find(name: str, known: tuple[Entry, str, str] | None, folder: Path) -> Benchmark:
    if known is not None and (there := locate_entry(known[0], folder)) is not None:
        return dataclasses.replace(there, name=name, part=known[1], split=known[2])
    hint = _meant(name)
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


def kind_in(benchmarks: Iterable[Benchmark], kind: str = "auto") -> str:
    """The kind of record that all benchmarks hold. Raises UserError when they differ or are not `kind`."""
    kinds = {}
    for b in benchmarks:
        if b.raw:
            kinds[b.name] = "mcq"
            continue
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


def load(
    benchmark: Benchmark,
    kind: str = "mcq",
    *,
    split: str = "",
    languages: tuple[str, ...] | None = None,
    limit: int = 0,
    images: str = "",
    count_mismatch: bool = False,
    pools: bool = False,
) -> Loaded:
    """Reads a benchmark.

    Args:
      split: another one than the reported one; registered benchmarks only.
      limit: at most so many a language and part; 0 = all.
      images: "ask" or "skip" questions that need an image; "" = as the papers count: asked where the benchmark is a
        registered one, left out of other files.
      count_mismatch: go on when the number of questions is not the published one.
      pools: also read the other splits.

    Raises:
      UserError: unreadable or malformed files, no such split, a count that is off, nothing left to ask.
    """
    if benchmark.entry is not None and kind == "mcq":
        records, others, info = read.load(benchmark, benchmark.split or split, languages, count_mismatch)
    else:
        if split:
            raise UserError(
                f"--split={split}: is for registered benchmarks; say the split of {benchmark.name} as "
                f"--data={locate(benchmark.path)[0]}:{split}"
            )
        records = load_files([benchmark.path], kind, languages)
        others = _other_splits(benchmark.path, kind) if pools else {}
        info = {
            "split": locate(benchmark.path)[1],
            "expected": None,
            "counted": len(records),
            "dropped": {},
            "licence": ", ".join(sorted({r["license"] for r in records})),
            "revision": None,
            "sha256": file_hash(benchmark.path),
        }
    ask_images = (images or ("ask" if benchmark.entry else "skip")) == "ask"
    field = benchmark.entry.part_field if benchmark.entry else ""
    kept, seen, left = [], {}, 0
    for record in records:
        if record.get("needs_image") and not ask_images:
            left += 1
            continue
        key = (record["language"], record["provenance"].get(field, ""))
        seen[key] = seen.get(key, 0) + 1
        if not limit or seen[key] <= limit:
            kept.append(record)
    if not kept:
        raise UserError(f"{benchmark.path}: every record needs an image; nothing is left to ask")
    asked_images = sum(bool(r.get("needs_image")) for r in kept)
    about = {"asked": len(kept), "needs_image": left, "needs_image_asked": asked_images, "path": benchmark.path}
    about |= {"duplicates": _repeated(kept)}
    return Loaded(kept, others, {**info, **about})


def _repeated(records: Iterable[dict]) -> int:
    """How many questions are there more than once: passage, wording and options alike, in whatever order."""
    met = Counter((r["language"], question_key(r)) for r in records)
    return sum(n > 1 for n in met.values())


def _other_splits(path: str, kind: str) -> dict[str, list[dict]]:
    """Records of the training and validation splits beside the one that is asked, where the path has splits."""
    real, split = locate(path)
    present = splits_in(real)
    asked = SPLIT_NAMES.get(split, split) if split and split not in present else split
    others = [s for s in ("train", "validation") if s in present and s != asked] if split else []
    return {s: load_files([f"{real}:{s}"], kind) for s in others}
