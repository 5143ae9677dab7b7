"""Two copies of MMedBench beside each other: which questions both have, by normalised text, and with which answer.

A question is its text without case, spaces and punctuation (NFKC), within its language. Where several questions of a
language have one text, those with the same options are put together first. Options may stand in another order: answers
are compared by their texts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.reading import nearest_sibling
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.sources import Conversion, get_source
from mmed_jax.data.sources.source import content_of

SPLITS = ("train", "test")
# What may become of a question, in the order of the tables.
OUTCOMES = ("matched", "other answer", "in the other split", "missing", "only ours")
_SHOWN = 20  # examples of an outcome and language


def read_copy(path: Path, flag: str) -> tuple[list[dict], dict[str, int]]:
    """(records, rows dropped by reason) of a folder or zip of MMedBench, duplicates kept. Raises UserError."""
    if not path.exists():
        raise UserError(f"{flag}={path}: no such file or folder{nearest_sibling(path)}")
    conversion = Conversion(get_source("mmedbench"), path, keep_duplicates=True)
    records = [r for r in conversion if r["provenance"].get("split") in SPLITS]
    return records, dict(conversion.report.dropped)


def compare_questions(ours: Sequence[dict], theirs: Sequence[dict]) -> dict[str, Any]:
    """What became of every question of theirs, and which are only ours.

    Returns {"counts": [{"language", "split", "ours", "theirs", outcome: n, ...}], "examples": {outcome: [...]}}; of
    each language and split theirs == matched + other answer + in the other split + missing. "other options" counts,
    among the matched ones, those whose wrong options are not the same.
    """
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    examples: dict[str, list[dict]] = {name: [] for name in OUTCOMES}
    seen: Counter = Counter()
    for records, side in ((ours, "ours"), (theirs, "theirs")):
        for record in records:
            counts[_cell(record)][side] += 1
    for outcome, mine, other in _outcomes(ours, theirs):
        cell = _cell(other or mine or {})
        counts[cell][outcome] += 1
        if mine and other and outcome == "matched" and _options(mine) != _options(other):
            counts[cell]["other options"] += 1
        seen[outcome, cell[0]] += 1
        if outcome != "matched" and seen[outcome, cell[0]] <= _SHOWN:
            examples[outcome].append(_example(mine, other))
    columns = ("ours", "theirs", *OUTCOMES, "other options")
    rows = [
        {"language": code, "split": split, **{name: counts[code, split][name] for name in columns}}
        for code in LANGUAGES
        for split in SPLITS
        if (code, split) in counts
    ]
    return {"counts": rows, "examples": {name: found for name, found in examples.items() if found}}


def _outcomes(ours: Iterable[dict], theirs: Iterable[dict]) -> Iterator[tuple[str, dict | None, dict | None]]:
    """(outcome, ours, theirs) of every question, each once."""
    mine, other = _by_question(ours), _by_question(theirs)
    for key in {**other, **mine}:
        yield from _pair(mine.get(key, []), other.get(key, []))


def _pair(mine: list[dict], other: list[dict]) -> Iterator[tuple[str, dict | None, dict | None]]:
    """Puts questions of one text together: the most alike first, those of the same split before others."""
    looks = (
        ("matched", lambda r: (_split(r), _options(r), _answers(r))),
        ("matched", lambda r: (_split(r), _answers(r))),
        ("other answer", lambda r: (_split(r), _options(r))),
        ("in the other split", lambda r: (_options(r), _answers(r))),
        ("in the other split", lambda r: _answers(r)),
        ("other answer", lambda r: _split(r)),
        ("in the other split", lambda r: ()),
    )
    for outcome, look in looks:
        left, mine = mine, []
        waiting: dict[object, list[dict]] = defaultdict(list)
        for record in reversed(other):
            waiting[look(record)].append(record)
        taken = set()
        for record in left:
            if found := waiting.get(look(record)):
                partner = found.pop()
                taken.add(id(partner))
                yield outcome, record, partner
            else:
                mine.append(record)
        other = [r for r in other if id(r) not in taken]
    yield from (("missing", None, record) for record in other)
    yield from (("only ours", record, None) for record in mine)


def _by_question(records: Iterable[dict]) -> Mapping[tuple[str, str], list[dict]]:
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for record in records:
        groups[record["language"], content_of(record["question"])[0]].append(record)
    return groups


def _options(record: dict) -> tuple[str, ...]:
    return content_of("", record["options"].values())[2]


def _answers(record: dict) -> tuple[str, ...]:
    return content_of("", (record["options"][letter] for letter in record["answer_idx"].split(",")))[2]


def _split(record: dict) -> str:
    return record["provenance"]["split"]


def _cell(record: dict) -> tuple[str, str]:
    return record["language"], _split(record)


def _example(mine: dict | None, other: dict | None) -> dict[str, Any]:
    record = other or mine or {}
    lines = {"ours": mine, "theirs": other}
    return {
        "language": record["language"],
        "question": record["question"],
        **{
            side: {"id": r["id"], "split": _split(r), "answer": [r["options"][x] for x in r["answer_idx"].split(",")]}
            for side, r in lines.items()
            if r
        },
    }
