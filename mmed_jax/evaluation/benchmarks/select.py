"""Which questions of a located benchmark are asked: read, and cut to the wanted split, languages and number."""

import dataclasses
from collections import Counter
from collections.abc import Iterable

from mmed_jax.common.buckets.download import address_of
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.reading import SPLIT_NAMES, load_files, locate, read_records
from mmed_jax.data.records.schema import KINDS, kind_of, question_key
from mmed_jax.evaluation.benchmarks.locate import Benchmark, benchmark_hash, list_splits, named_twice
from mmed_jax.evaluation.benchmarks.read import read_registered


@dataclasses.dataclass(frozen=True)
class Selection:
    """`records` to ask; `pools` {split: records} that few-shot examples may come from; `info` for results.json."""

    records: list[dict]
    pools: dict[str, list[dict]]
    info: dict


def check_disjoint(loaded: Iterable[tuple[Benchmark, Selection]]) -> None:
    """Whatever names and files say: all questions of one are not those of another as well. Raises UserError."""
    seen: list[tuple[Benchmark, object, set]] = []
    for b, selected in loaded:
        place = b.entry.name if b.entry else locate(b.path)[0].resolve()
        wanted = {(r["id"], r["language"], question_key(r)) for r in selected.records}
        for other, where, questions in seen:
            if place == where and (wanted <= questions or questions <= wanted):
                raise named_twice(other, b, "--benchmark" if b.entry else "--data")
        seen.append((b, place, wanted))


def common_kind(benchmarks: Iterable[Benchmark], kind: str = "auto") -> str:
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
    different = set(kinds.values()) if kind == "auto" else {kind}
    if kind != "auto" and kind not in KINDS:
        raise UserError(f"--kind={kind}{nearest(kind, ('auto', *KINDS))}")
    if len(different) > 1:
        shown = ", ".join(f"{n}: {k}" for n, k in kinds.items())
        raise UserError(f"multiple choice and instructions are not mixed in one evaluation ({shown}); run it twice")
    return different.pop()


def load_benchmark(
    benchmark: Benchmark,
    kind: str = "mcq",
    *,
    split: str = "",
    languages: tuple[str, ...] | None = None,
    limit: int = 0,
    images: str = "",
    count_mismatch: bool = False,
    pools: bool = False,
) -> Selection:
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
        records, others, info = read_registered(benchmark, benchmark.split or split, languages, count_mismatch)
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
            "sha256": benchmark_hash(benchmark.path),
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
    path = address_of(benchmark.path) or benchmark.path
    counts = {"asked": len(kept), "needs_image": left, "needs_image_asked": asked_images, "path": path}
    counts |= {"duplicates": _count_repeated(kept)}
    return Selection(kept, others, {**info, **counts})


def _count_repeated(records: Iterable[dict]) -> int:
    """How many questions are there more than once: passage, wording and options alike, in whatever order."""
    counts = Counter((r["language"], question_key(r)) for r in records)
    return sum(n > 1 for n in counts.values())


def _other_splits(path: str, kind: str) -> dict[str, list[dict]]:
    """Records of the training and validation splits beside the one that is asked, where the path has splits."""
    real, split = locate(path)
    present = list_splits(real)
    own = SPLIT_NAMES.get(split, split) if split and split not in present else split
    others = [s for s in ("train", "validation") if s in present and s != own] if split else []
    return {s: load_files([f"{real}:{s}"], kind) for s in others}
