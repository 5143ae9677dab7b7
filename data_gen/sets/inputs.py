"""The inputs of a build: every row of every source is kept or counted with the reason why not."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_gen.gates import Gate
from data_gen.methods import default_gates
from data_gen.passages import read_passages
from data_gen.sets.contamination import Benchmarks, Hit
from data_gen.sets.groups import Families, family_keys
from data_gen.sets.licenses import allowed
from data_gen.sets.make_splits import divided
from data_gen.sets.option_shuffle import shuffle_record
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import stem, suffix
from mmed_jax.common.paths import expand_home
from mmed_jax.common.row_buffer import RowBuffer
from mmed_jax.data.records.linked_rows import stable_hash
from mmed_jax.data.records.reading import SPLIT_NAMES, read_records
from mmed_jax.data.records.schema import kind_of
from mmed_jax.data.sources import SOURCES, Conversion, get_source
from mmed_jax.data.sources.encodings import WrongEncoding
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.source import Row, Source
from mmed_jax.llm_api.types import Reject

HERE = Path(__file__).parents[1]


@dataclass
class Inputs:
    """What was read: rows in `buffer`, `entry[i]` the index of row i's source in the recipe's `sources`.

    `dropped[name][reason]` counts what was left out, `missing[name]` says why a source was not read; `hits[i]` tells
    which benchmark item row i gives away, `blocked[i]` whether its family has such a row. `licenses` counts the rows
    that were left out for their licence by its text.
    """

    buffer: RowBuffer
    entry: list[int] = field(default_factory=list)
    read: Counter = field(default_factory=Counter)
    dropped: dict[str, Counter] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    hits: dict[int, Hit] = field(default_factory=dict)
    blocked: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    rejects: list[dict] = field(default_factory=list)
    licenses: Counter = field(default_factory=Counter)  # of the rows left out for them
    places: dict[str, tuple[Path, str]] = field(default_factory=dict)  # of sources that are files: where, and its name

    def rows_of(self, index: int) -> Iterator[int]:
        """Numbers of the rows of one source that are not blocked."""
        return (i for i, e in enumerate(self.entry) if e == index and not self.blocked[i])


def collect(recipe, data_dir: str, licenses: str, benchmarks: Benchmarks, folder: Path, progress) -> Inputs:
    """Reads all sources of a recipe. `progress(n)` is called as rows come.

    Raises UserError for a source that is not there (unless recipe.missing is "skip") or breaks its form.
    """
    inputs = Inputs(RowBuffer(folder / "inputs.jsonl"))
    if recipe.missing == "error":
        _all_there(recipe, data_dir)
    lineage, gates = Families(), default_gates("original", dict(recipe.gates))
    kept_ids: dict[int, str] = {}
    for index, name in enumerate(recipe.sources):
        entry = recipe.source[name]
        inputs.dropped[name] = Counter()
        ids: set[int] = set()
        try:
            rows = _sample(recipe, name, _rows(recipe, entry, data_dir, inputs, name))
            for row in rows:
                progress(1)
                reason = _left_out(recipe, entry, row, licenses, gates)
                if reason:
                    inputs.dropped[name][reason.reason] += 1
                    _list(inputs, name, row, reason)
                    continue
                row = _own_id(row, ids)
                if recipe.shuffle_options:
                    row = shuffle_record(row, recipe.seed)
                if entry.keep:
                    _unique(kept_ids, row["id"], name)
                number = inputs.buffer.add(row)
                inputs.entry.append(index)
                lineage.link(*(k for k in family_keys(row) if k[0] == "id"))
                hit = benchmarks.check(as_record(row))
                if hit:
                    inputs.hits[number] = hit
        except UserError as e:
            if recipe.missing == "skip" and not inputs.read[name]:
                inputs.missing[name] = _nameless(str(e), data_dir)
                continue
            hint = "" if inputs.read[name] else " (--recipe.missing=skip builds without it)"
            raise UserError(f"source.{name}: {e}{hint}") from None
    inputs.blocked = blocked_families(lineage, inputs.hits) >= 0
    return inputs


def blocked_families(lineage: Families, hits: Iterable[int]) -> np.ndarray:
    """For each row the first of `hits` in its family (by id, parent, group), or -1 where there is none; int [rows]."""
    if not lineage.count:
        return np.zeros(0, np.int64)
    families = lineage.numbers()
    guilty = np.full(families.max() + 1, -1, np.int64)
    for row in sorted(hits, reverse=True):
        guilty[families[row]] = row
    return guilty[families]


def as_record(row: dict) -> dict:
    """A passage in the form of a record, for looks that only read text."""
    if "text" not in row:
        return row
    content = f"{row.get('title', '')}\n{row['text']}"
    return {**row, "messages": [{"role": "user", "content": content}]}


def _rows(recipe, entry, data_dir: str, inputs: Inputs, name: str) -> Iterator[dict]:
    """All rows of one source as they come; what its adapter drops is counted."""
    place = _place(entry, data_dir)
    if isinstance(place, Path):
        # As an audit can find it again: below data_dir, or in the checkout.
        root = HERE.parent if entry.path.startswith("@") else expand_home(data_dir)
        inputs.places[name] = place, place.relative_to(root).as_posix()
    if entry.kind == "passage":
        for row in read_passages(str(place), language=entry.language or None, license=entry.license or None):
            inputs.read[name] += 1
            yield {**row, "source": name}
        return
    split = None if entry.divide else entry.split or None
    if not entry.adapter:
        for row in _part(recipe, entry, read_records(f"{place}:{split}" if split else place, entry.kind or None)):
            inputs.read[name] += 1
            yield row
        return
    conversion = Conversion(
        _without_files(get_source(entry.adapter), entry.skip),
        place,
        kind=entry.kind or None,
        split=split,
        encoding=entry.get("encoding", ""),
        keep_duplicates=recipe.format == "mmedbench",  # the published counts include them
    )
    try:
        for row in _part(recipe, entry, conversion):
            inputs.read[name] += 1
            yield row
    except WrongEncoding as e:
        raise e.for_flag(f"--recipe.source.{name}.encoding") from None
    if entry.divide and entry.split != "train":
        return  # what is dropped belongs to no part: it is counted once, with the training part
    for reason, count in conversion.report.dropped.items():
        if reason != "another split":
            inputs.read[name] += count
            inputs.dropped[name][reason] += count


def _part(recipe, entry, rows: Iterable[dict]) -> Iterator[dict]:
    """The rows of the entry's part, where it divides them itself; without passages where it is closed book."""
    for row in divided(rows, entry.divide, entry.split, recipe.seed) if entry.divide else rows:
        yield {k: v for k, v in row.items() if k != "context"} if entry.closed_book else row


def _without_files(source: Source, names: tuple[str, ...]) -> Source:
    """The source without the rows of files whose name holds one of `names`."""
    if not names:
        return source

    def rows(given: Download, **options: int) -> Iterator[Row]:
        return (row for row in source.rows(given, **options) if not any(name in row.file for name in names))

    return replace(source, rows=rows)


def _all_there(recipe, data_dir: str) -> None:
    """Raises UserError that names every source which is not there, before the first is read."""
    lacking = []
    for name in recipe.sources:
        try:
            _place(recipe.source[name], data_dir)
        except UserError as e:
            lacking.append((name, str(e)))
    if lacking:
        others = f"; nor are {', '.join(n for n, _ in lacking[1:])}" if lacking[1:] else ""
        raise UserError(f"source.{lacking[0][0]}: {lacking[0][1]}{others} (--recipe.missing=skip builds without)")


def _place(entry, data_dir: str) -> Path | str:
    """Where a source lies. Raises UserError when it is not there or is not one place."""
    if entry.path.startswith("@"):
        return HERE / entry.path[1:]
    if entry.path.startswith("hub"):
        return entry.path
    root = expand_home(data_dir)
    if not root.is_dir():
        raise UserError(f"--data_dir={data_dir}: no such folder")
    matches = sorted(root.glob(entry.path)) if entry.path else _by_name(root, entry.adapter)
    if len(matches) == 1:
        inner = sorted(p for p in matches[0].rglob(entry.prefer) if p.is_dir()) if entry.prefer else []
        return inner[0] if inner else matches[0]
    wanted = entry.path or f"{entry.adapter}*"
    if matches:
        raise UserError(f"{root}: several places match '{wanted}' ({', '.join(p.name for p in matches[:4])}); set path")
    hub = f"; or set its path to hub, which reads {SOURCES[entry.adapter].hub.repo}" if _on_hub(entry) else ""
    raise UserError(f"{root}: nothing here is named '{wanted}'{hub}")


def _on_hub(entry) -> bool:
    return bool(entry.adapter and SOURCES[entry.adapter].hub.repo)


def _by_name(root: Path, adapter: str) -> list[Path]:
    """Folders and files called after an adapter; those that another adapter's longer name fits better do not count."""
    same = [p for p in sorted(root.iterdir()) if p.name.lower().startswith(adapter)]
    longer = [other for other in SOURCES if other != adapter and other.startswith(adapter)]
    return [p for p in same if not any(p.name.lower().startswith(other) for other in longer)]


def _sample(recipe, name: str, rows: Iterator[dict]) -> Iterator[dict]:
    """The first rows by hash when there is a limit, in their own order; memory is that of the sample."""
    limit = recipe.source[name].limit
    if not limit:
        yield from rows
        return
    import heapq

    best: list[tuple[int, int, dict]] = []
    for number, row in enumerate(rows):
        item = (-stable_hash(recipe.seed, name, row["id"]), number, row)
        if len(best) < limit:
            heapq.heappush(best, item)
        elif item[:2] > best[0][:2]:
            heapq.heapreplace(best, item)
    yield from (row for _, _, row in sorted(best, key=lambda item: item[1]))


def _left_out(recipe, entry, row: dict, licenses: str, gates: list[Gate]) -> Reject | None:
    if row["language"] not in (entry.languages or recipe.languages):
        # Material for translation may be in any language; what is kept may not.
        if entry.languages or entry.keep:
            return Reject("another_language", row["language"])
    if not allowed(row["license"], licenses, tuple(recipe.licenses_also)):
        return Reject("license", row["license"])
    if recipe.format == "mmedbench":  # the published questions, whatever is wrong with them
        return None
    if row.get("needs_image"):
        return Reject("needs_image")
    if "text" in row:
        return None
    if entry.keep and kind_of(row) != recipe.kind:
        raise UserError(f"source of kind {kind_of(row)} where the recipe keeps {recipe.kind}; set keep to False")
    job = SimpleNamespace(method="original", parent=row, target={"language": row["language"]})
    for gate in gates:
        try:
            gate(job, row)
        except Reject as e:
            return e
    return None


def _list(inputs: Inputs, name: str, row: dict, reason: Reject) -> None:
    if reason.reason == "license":
        inputs.licenses[reason.detail] += 1
    if reason.reason not in ("another_language", "license", "needs_image"):
        line = {"id": row["id"], "stage": f"source {name}", "reason": reason.reason, "detail": reason.detail}
        inputs.rejects.append(line)


def _nameless(text: str, data_dir: str) -> str:
    """A message without the folders of this machine: what is published says what is missing, not where it was."""
    for folder in (str(expand_home(data_dir)), data_dir, str(HERE)):
        if folder not in (".", ""):
            text = text.replace(f"{folder}/", "").replace(folder, "data_dir")
    return text


def _own_id(row: dict, ids: set[int]) -> dict:
    """The row under an id that its source has not had: "q1-2" for the second "q1"."""
    name, number = row["id"], 1
    while stable_hash(name) in ids:
        number += 1
        name = f"{row['id']}-{number}"
    ids.add(stable_hash(name))
    return row if number == 1 else {**row, "id": name}


def _unique(kept: dict[int, str], ident: str, name: str) -> None:
    earlier = kept.setdefault(stable_hash(ident), name)
    if earlier != name:
        raise UserError(f"source.{name}: id '{ident}' is also in source.{earlier}; keep only one of them")


def read_benchmarks(folder: str, benchmarks: Benchmarks) -> dict[str, int]:
    """Adds every test set in a folder; returns {name: items}.

    Record files (.jsonl, .jsonl.gz), MMedBench folders and zips, TFDS folders (the test split where there are several),
    and published files or folders whose name begins with that of an adapter (see `python -m data_gen convert --list`).
    Raises UserError when one of them can't be read: a test set that is not looked at would be no check.
    """
    root = expand_home(folder)
    if not root.is_dir():
        raise UserError(f"--benchmarks={folder}: no such folder")
    counts: dict[str, int] = {}
    for path in sorted(p for p in root.iterdir() if not p.name.startswith(".")):
        name = stem(path, ".jsonl", ".zip")
        adapters = [a for a in SOURCES if path.name.lower().startswith(a)]
        if suffix(path) == ".jsonl" and not adapters or path.is_dir() and (path / "Test").is_dir():
            rows = read_records(f"{path}:test" if path.is_dir() else path)
        elif adapters:
            rows = _test_rows(path, max(adapters, key=len))
        elif suffix(path) in (".md", ".txt"):
            continue
        elif path.is_dir() or suffix(path) == ".zip":
            rows = _with_test_split(path)
        else:
            raise UserError(
                f"--benchmarks: {path.name} is neither records nor named after a source{nearest(path.name, SOURCES)}"
            )
        counts[name] = benchmarks.add(name, rows)
    if not sum(counts.values()):
        raise UserError(f"--benchmarks={folder}: holds no test items")
    return counts


def _test_rows(path: Path, adapter: str) -> Iterator[dict]:
    """Records of that name, or published files of that adapter; the test split where they name it."""
    if suffix(path) == ".jsonl":
        try:
            yield from list(read_records(path))
            return
        except UserError:
            pass  # published files may be JSON lines as well
    conversion = Conversion(get_source(adapter), path)
    rows = list(conversion)
    splits = {SPLIT_NAMES.get(r["provenance"].get("split", ""), "") for r in rows}
    yield from (r for r in rows if "test" not in splits or r["provenance"].get("split") == "test")


def _with_test_split(path: Path) -> Iterator[dict]:
    try:
        yield from read_records(f"{path}:test")
    except UserError:
        yield from read_records(path)
