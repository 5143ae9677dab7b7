"""Validation records beside a packed table, for what needs more of them than rows: questions and prompts."""

from pathlib import Path

import numpy as np

from mmed_jax.common.jsonl import dump_line, loads, write_lines
from mmed_jax.data.records.schema import LANGUAGES, kind_of
from mmed_jax.data.records.store import RecordStore

FILE = "held_out.jsonl"
# Records of each kind that are kept, at most: as many as config.eval_questions may ask for.
MOST = 2000


def write_held_out(folder: Path, records: RecordStore, chosen: np.ndarray) -> None:
    """Writes up to MOST questions of the records `chosen` (int64 [n]), then up to MOST instructions.

    Languages take turns, each with its records in the order of their draws, so that the first n are spread over the
    languages and the same for one seed, whatever the order of the files. Records that need an image are left out.

    Raises:
      WorkError: the file cannot be written.
    """
    languages, draws = records.languages[chosen], records.draws[chosen]
    turns = np.zeros(len(chosen), np.int64)
    for language in range(len(LANGUAGES)):
        own = np.flatnonzero(languages == language)
        turns[own[np.argsort(draws[own], kind="stable")]] = np.arange(len(own))
    lines: dict[str, list[str]] = {"instruction": [], "mcq": []}
    for place in np.lexsort((languages, turns)).tolist():
        record = records[int(chosen[place])]
        own_kind = lines[kind_of(record)]
        if len(own_kind) < MOST and not record.get("needs_image"):
            own_kind.append(dump_line(record))
        elif all(len(each) >= MOST for each in lines.values()):
            break
    write_lines(folder / FILE, [*lines["mcq"], *lines["instruction"]])


def read_held_out(folder: Path) -> list[dict]:
    """The records of write_held_out, in their order. Raises OSError, ValueError: the folder is not a whole table."""
    return [loads(line, dict) for line in (folder / FILE).read_bytes().split(b"\n") if line]
