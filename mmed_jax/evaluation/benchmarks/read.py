"""Registered benchmarks read from the published files, the hub or record files, and counted against the publication.

Published files are read as they are, by the adapters that make training records, but keep their duplicates: the
published number counts them. A number can be set beside a published one only when the same questions were asked: a
split whose count is off, or whose rows did not all become questions, is one clear line; going on all the same has to be
asked for, and is recorded.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.data.records.reading import language_of, load_files
from mmed_jax.data.sources import Conversion, Drop, Row
from mmed_jax.data.sources.hub import Unreachable, by_hand
from mmed_jax.data.sources.source import UnknownNumbering, text
from mmed_jax.evaluation.benchmarks.locate import HUB, Benchmark, benchmark_hash, list_splits, match_split
from mmed_jax.evaluation.benchmarks.registry import Entry

# Drops that say a row belongs to another set or language, so that it is no row of the benchmark.
_FOREIGN = (
    "not one of the nine medical subjects",
    "machine translation of the same problem",
    "language not supported",
    "another language",
    "also in the file of its split",
)


class _Reading(Conversion):
    """A conversion of all splits that keeps duplicates and counts rows by (split, part or language)."""

    INPUT_FLAG = ""

    def __init__(self, entry: Entry, input: str, encoding: str = ""):
        number = itertools.count()
        source = dataclasses.replace(entry.source, duplicate_key=lambda _: next(number))
        # Which numbering a hub copy has is known, whatever rows it shows; see sources/medmcqa.py.
        base = 0 if entry.source.answer_base and input.startswith("hub:") else None
        super().__init__(source, input, kind="mcq", answer_base=base, encoding=encoding)
        self.entry = entry
        self.rows: Counter[tuple[str, str]] = Counter()
        self.lost: dict[tuple[str, str], list[tuple[str, str]]] = {}  # (split, cell) -> (reason, where)

    def _rows(self) -> Iterator[Row]:
        for row in super()._rows():
            if not any(word in row.file for word in self.entry.skip):
                yield row

    def _one(self, row: Row) -> dict | Drop:
        result = super()._one(row)
        if isinstance(result, dict):
            self.rows[row.split, self.entry.cell(result)] += 1
        elif not result.reason.startswith(_FOREIGN):
            key = row.split, self._cell_of(row)
            self.rows[key] += 1
            self.lost.setdefault(key, []).append((result.reason, row.where))
        return result

    def _cell_of(self, row: Row) -> str:
        """Where a row that became no record belongs, as far as it says."""
        if self.entry.parts:
            return _word(row.raw.get("subject"))
        if len(self.entry.languages) == 1:
            return self.entry.languages[0]
        return language_of(row.file) or _word(row.raw.get("language") or row.raw.get("lang"))


def _word(field: object) -> str:
    """A field of a row that may be anything, as text where it is some."""
    return "" if isinstance(field, list | dict) else text(field)


def read_registered(
    benchmark: Benchmark, split: str, languages: tuple[str, ...] | None, count_mismatch: bool
) -> tuple[list[dict], dict[str, list[dict]], dict]:
    """(records of the split, {other split: records}, info) of a registered benchmark; see select.load_benchmark."""
    entry, name = benchmark.registered, benchmark.name
    cells = _cells(benchmark, languages)
    revision = hub_revision(entry) if benchmark.path == HUB else None
    if benchmark.raw:
        place = benchmark.path
        if place == HUB:
            place = f"hub:{entry.source.hub.repo}" + (f"@{revision}" if revision else "")
        reading = _Reading(entry, place, benchmark.encoding)
        try:
            records = list(reading)
        except UnknownNumbering as e:
            known = e.with_hint("; convert it with --answer_base=0 or --answer_base=1")
            raise UserError(known, place=f"--benchmark={name}") from None
        except UserError as e:
            raise UserError(e, place=f"--benchmark={name}") from None
        except Unreachable as e:
            raise e.with_hint(f"; {by_hand(reading.entry.source, 'name its folder with --data_dir=DIR')}") from None
        rows, lost = reading.rows, reading.lost
    else:
        records = _records(benchmark.path)
        rows, lost = Counter((_split(r), entry.cell(r)) for r in records), {}
    chosen = _choose_split(benchmark, split, tuple(dict.fromkeys(_split(r) for r in records)))
    kept = [r for r in records if (chosen is None or _split(r) == chosen) and entry.cell(r) in cells]
    if not kept:
        have = ", ".join(sorted({entry.cell(r) for r in records}))
        raise UserError(f"--benchmark={name}: {benchmark.path} holds nothing of {', '.join(cells)}; it holds {have}")
    pools = {
        s: there
        for s in entry.examples
        if s != chosen and chosen is not None and (there := [r for r in records if _split(r) == s])
    }
    meant = split or entry.split if chosen in (None, "") else chosen
    info = _count(benchmark, meant, chosen, cells, rows, lost)
    if info["count_mismatch"] and not count_mismatch:
        raise UserError(f"{info['count_mismatch']}; --allow_count_mismatch goes on and notes it in the results")
    info |= {
        "split": meant or "all",
        "licence": ", ".join(sorted({r["license"] for r in kept})),
        "revision": revision,
        "hub": entry.source.hub.repo if benchmark.path == HUB else None,
        "url": entry.source.url,
        "note": entry.note,
        "sha256": records_hash(kept) if benchmark.path == HUB else benchmark_hash(benchmark.path),
    }
    return kept, pools, info


def _records(path: str) -> list[dict]:
    """All records of a file or folder, those of every split of a folder; the split of a folder is the records' own."""
    records = []
    for split in list_splits(Path(path)):
        for record in load_files([f"{path}:{split}"], "mcq"):
            records.append({**record, "provenance": {**record["provenance"], "split": split}})
    return records or load_files([path], "mcq")


def _split(record: dict) -> str:
    return record["provenance"].get("split", "")


def _cells(benchmark: Benchmark, languages: tuple[str, ...] | None) -> tuple[str, ...]:
    """The parts or languages that are asked. Raises UserError for languages the benchmark has not."""
    entry = benchmark.registered
    load_files([], "mcq", languages)  # checks the codes
    spoken = tuple(c for c in entry.languages if not languages or c in languages)
    if not spoken:
        raise UserError(f"--languages={','.join(languages)}: {benchmark.name} is in {', '.join(entry.languages)}")
    if benchmark.part:
        if benchmark.part not in (entry.parts or spoken):
            raise UserError(f"--benchmark={benchmark.name}: is not in the languages {', '.join(languages)}")
        return (benchmark.part,)
    return (entry.asked_parts or entry.parts) if entry.parts else spoken


def _choose_split(benchmark: Benchmark, wanted: str, present: tuple[str, ...]) -> str | None:
    """The split, as records name it, that is asked; None = all of them. Raises UserError when it is not there."""
    entry = benchmark.registered
    if not (wanted or entry.split):
        return None
    split = match_split(wanted or entry.split, present)
    if split is None and present == ("",):
        return ""  # the files name no split: the count decides whether they are the right one
    if split is None:
        known = [s for s in ("validation", "dev", "test", "train", "fewshot") if s in present] or ["no named split"]
        why = f"--split={wanted}" if wanted else f"the reported split is {entry.split}"
        hint = f"; --split={known[0]} asks what is there" if not wanted and any(present) else ""
        raise UserError(f"--benchmark={benchmark.name}: {why}, and {benchmark.path} holds {', '.join(known)}{hint}")
    return split


def _count(benchmark, meant: str, chosen: str | None, cells, rows: Counter, lost: dict) -> dict:
    """{"expected", "counted", "by_cell", "dropped", "count_mismatch"}: rows found against rows published."""
    entry = benchmark.registered
    keys = [k for k in rows if (chosen is None or k[0] == chosen) and k[1] in cells]
    counted = {c: sum(rows[k] for k in keys if k[1] == c) for c in cells}
    if not entry.whole:
        counted = {c: n for c, n in counted.items() if n}
    expected = entry.expected("" if chosen is None else meant, tuple(counted))
    gone = [x for k in keys for x in lost.get(k, ())]
    known = entry.drops.get("" if chosen is None else meant, 0)
    problem = None
    if expected is not None:
        # Record files no longer show which rows were dropped when they were made.
        fits = benchmark.raw or not known or sum(counted.values()) != sum(expected.values()) - known
        off = {c: n for c, n in counted.items() if n != expected[c]} if fits else {}
        if off:
            shown = ", ".join(f"{c} {n:,} instead of {expected[c]:,}" for c, n in off.items())
            problem = (
                f"{benchmark.name}: {benchmark.path} has {sum(counted.values()):,} questions of the {meant or 'whole'} "
                f"set, {sum(expected.values()):,} were published ({shown})"
            )
    if problem is None and len(gone) != known:
        first = dict(reversed(gone))
        reasons = "; ".join(f"{n} x {r}, first {first[r]}" for r, n in Counter(r for r, _ in gone).most_common())
        example = f" ({reasons})" if gone else ""
        if gone or benchmark.raw:
            problem = f"{benchmark.name}: {len(gone)} of {sum(counted.values()):,} rows are no usable question{example}"
    return {
        "expected": None if expected is None else sum(expected.values()),
        "counted": sum(counted.values()),
        "by_cell": counted,
        "dropped": dict(Counter(r for r, _ in gone)),
        "count_mismatch": problem,
    }


def count_splits(benchmark: Benchmark) -> dict[str, tuple[int, int | None]]:
    """{split: (questions found, questions published or None)} of what the benchmark's path holds; "all" for no splits.

    Raises UserError when it cannot be read.
    """
    entry = benchmark.registered
    cells = _cells(benchmark, None)
    if benchmark.raw:
        reading = _Reading(entry, benchmark.path, benchmark.encoding)
        for _ in reading:
            pass
        rows = reading.rows
    else:
        rows = Counter((_split(r), entry.cell(r)) for r in _records(benchmark.path))
    counts = {}
    for split in dict.fromkeys(s for s, _ in rows):
        there = {c: rows[split, c] for c in cells if rows[split, c] or entry.whole}
        expected = entry.expected(split, tuple(there))
        if sum(there.values()):
            counts[split or "all"] = sum(there.values()), None if expected is None else sum(expected.values())
    return counts


def hub_revision(entry: Entry) -> str | None:
    """The commit that the hub copy stands at now, so that what is read is what is named; None without a network.

    A set that is in the local cache can be read offline; it is then known by the hash of its records alone.
    """
    import huggingface_hub

    hub = entry.source.hub
    try:
        return huggingface_hub.HfApi().dataset_info(hub.repo, revision=hub.revision).sha
    except Exception:  # a dozen kinds; when the set cannot be had at all, reading it says so in one line
        return None


def records_hash(records: list[dict]) -> str:
    """SHA-256 over the records that are asked, for sets that are no files here."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(jsonl.dump_line(record).encode() + b"\n")
    return digest.hexdigest()
