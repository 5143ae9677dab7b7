"""A benchmark in the files of MMedBench (arXiv 2402.13963), and what is kept beside them.

    Train/English.jsonl, ..., Test/English.jsonl, ...   lines of exactly the published keys, and of extra ones if asked
    records/train.ndjson, records/test.ndjson           the same questions as whole records, in the same order
    near_duplicates.ndjson                              test questions that the training split has almost alike
    checks.ndjson                                       what people said of rationales (data_gen/sets/check_sheets.py)

Nothing but Train/ and Test/ ends in .jsonl, so that whoever reads MMedBench's folder reads this one.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import open_file
from mmed_jax.data.records.schema import LANGUAGE_NAMES, validate_record

PUBLISHED = ("question", "options", "answer_idx", "rationale", "human_checked", "human_check_passed")
SPLITS = ("train", "test")
CHECKS = "checks.ndjson"
Check = Mapping[str, object]
Checks = Mapping[tuple[str, str], Check]  # by (split, id)
EXTRA: dict[str, Callable[[dict], object]] = {
    "id": lambda r: r["id"],
    "topic": lambda r: r["provenance"].get("topic", ""),
    "source": lambda r: r["source"],
    "license": lambda r: r["license"],
    "needs_image": lambda r: bool(r.get("needs_image")),
    "flags": lambda r: list(r["provenance"].get("flags", ())),
    "provenance": lambda r: r["provenance"],
}


def language_file(split: str, language: str) -> str:
    """Where the questions of a split and language lie: ("train", "en") -> "Train/English.jsonl"."""
    return f"{split.capitalize()}/{LANGUAGE_NAMES[language]}.jsonl"


def published_line(record: dict, extra: Iterable[str] = ()) -> dict:
    """A record as a line of MMedBench: the published keys in their order, then keys of EXTRA."""
    return {name: record[name] for name in PUBLISHED} | {name: EXTRA[name](record) for name in extra}


def write_benchmark(
    folder: Path, read: Callable[[str], Iterator[dict]], languages: Iterable[str], extra: Iterable[str]
) -> dict[str, int]:
    """Writes Train/, Test/ and records/. `read(split)` gives the records. Returns {"SPLIT/LANGUAGE": rows}."""
    counts = {}
    for split in SPLITS:
        jsonl.write_lines(records_file(folder, split), map(jsonl.dump_line, read(split)))
        for code in languages:
            lines = [jsonl.dump_line(published_line(r, extra)) for r in read(split) if r["language"] == code]
            if lines:
                counts[f"{split}/{code}"] = jsonl.write_lines(folder / language_file(split, code), lines)
    return counts


def records_file(folder: Path, split: str) -> Path:
    """Where the whole records of a split lie."""
    return folder / "records" / f"{split}.ndjson"


def read_built(folder: Path, split: str, flag: str = "--input") -> Iterator[dict]:
    """The whole records of one split of a built benchmark. Raises UserError where there are none."""
    path = records_file(folder, split)
    if not path.is_file():
        raise UserError(
            f"{flag}={folder}: is not what `python -m data_gen build --recipe=mmedbench` writes ({path} is missing)"
        )
    return _records(path)


def _records(path: Path) -> Iterator[dict]:
    with open_file(path) as stream:
        for where, row in jsonl.read_objects(stream, str(path)):
            yield validate_record(row, where)


def extra_keys(folder: Path) -> tuple[str, ...]:
    """The keys beside the published ones that a built benchmark was written with, by its recipe.json."""
    path = folder / "recipe.json"
    if not path.is_file():
        raise UserError(f"{folder}: its recipe.json is missing")
    with open_file(path) as stream:
        recipe = jsonl.parse_json(jsonl.decode(stream.read(), str(path)), str(path))
    given = recipe.get("extra", []) if isinstance(recipe, dict) else None
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{path}: not a recipe")
    return tuple(name for name in given if name in EXTRA)


def text_hash(rationale: str) -> str:
    """16 hex digits that stand for a rationale: what was checked is this text and no later one."""
    return hashlib.sha256(rationale.encode()).hexdigest()[:16]


def read_checks(folder: Path) -> dict[tuple[str, str], Check]:
    """{(split, id): check} of a built benchmark's checks.ndjson; {} where there is none. Raises UserError."""
    path = folder / CHECKS
    checks: dict[tuple[str, str], Check] = {}
    if path.is_file():
        with open_file(path) as stream:
            for where, row in jsonl.read_objects(stream, str(path)):
                for name, kind in (("split", str), ("id", str), ("rationale", str), ("passed", bool)):
                    if not isinstance(row.get(name), kind):
                        raise UserError(f"{where}: field '{name}' is missing or of another type")
                checks[row["split"], row["id"]] = row
    return checks


def apply_checks(records: Iterable[dict], split: str, checks: Checks) -> Iterator[dict]:
    """The records with their two booleans as the checks say; those of another text than was checked are unchecked."""
    for record in records:
        check = checks.get((split, record["id"]))
        if check is not None and check["rationale"] == text_hash(record["rationale"]):
            yield {**record, "human_checked": True, "human_check_passed": check["passed"]}
        else:
            yield record


def count_by_language(records: Iterable[dict]) -> Counter:
    """Records by language."""
    return Counter(r["language"] for r in records)
