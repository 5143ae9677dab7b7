"""One hash over the requests behind a set's rows and their answers, as the ledger has them: what an audit compares."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import WorkError

_PART = 500  # keys of one query


def request_keys(record: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the requests that a record came from: its own step and earlier ones."""
    about = record.get("provenance") or {}
    for step in (about, *(about.get("history") or ())):
        if isinstance(step.get("key"), str) and step["key"]:
            yield step["key"]


def answers_digest(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    """{"requests": how many keys, "found": of these in the ledger, "sha256": over key, model, prompt, answer of each}.

    Other rows of the ledger do not count, so that it may go on growing. Opened for reading alone; a file that is not
    there holds none of them.

    Raises:
      WorkError: the ledger cannot be read.
    """
    wanted = sorted(set(keys))
    digest, found = hashlib.sha256(), 0
    if wanted and file.is_file():
        try:
            connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
            try:
                for start in range(0, len(wanted), _PART):
                    part = wanted[start : start + _PART]
                    sql = (
                        "SELECT key, model, prompt, response FROM requests "
                        f"WHERE key IN ({','.join('?' * len(part))}) ORDER BY key"
                    )
                    for row in connection.execute(sql, part):
                        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                        found += 1
            finally:
                connection.close()
        except sqlite3.Error as e:
            raise WorkError(f"--ledger={file}: cannot be read ({e})") from e
    return {"requests": len(wanted), "found": found, "sha256": digest.hexdigest()}
