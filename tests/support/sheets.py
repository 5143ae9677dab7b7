"""People who fill in sheets."""

import csv
import json
from collections.abc import Callable
from pathlib import Path


def fill_in(path: Path, says: Callable[[str, str], str]) -> None:
    """Fills in a CSV sheet: `says(id, criterion)` is what goes into the cell."""
    key = json.loads(path.with_name(f"{path.name}.key.json").read_text())
    with path.open(encoding="utf-8-sig", newline="") as stream:
        head, *rows = csv.reader(stream)
    for row in rows:
        for criterion in key["criteria"]:
            row[head.index(criterion)] = says(key["rows"][row[0]]["id"], criterion)
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
