"""Rating sheets for people, out and in, as CSV or XLSX: numbers, or yes and no.

A sheet is blind: a row is a code, the question, the options, the right answer, the reference and one explanation, in an
order drawn by a seed; which run wrote it stands only in SHEET.key.json, which stays with whoever asks for the ratings.
People fill in whole or half numbers, or yes and no (read as 1 and 0); rows may be moved, left out or left empty.
"""

import csv
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import check_file, open_file
from mmed_jax.common.output_files import put_file, write_json
from mmed_jax.common.paths import expand_home
from mmed_jax.evaluation.ratings.explanations import Explanation, Key, draw

CRITERIA = {
    "correctness": "Are its medical statements true?",
    "completeness": "Does it hold what decides the question?",
    "reasoning": "Does it lead, step by step, from the question to the right answer?",
    "language": "Is it clear, fluent medical prose in the language of the question?",
}
# Of a check by yes and no; those of MMedBench's rationales (arXiv 2402.13963).
YES_NO_CRITERIA = {
    "logical consistency": "Does every step follow from the one before, and the answer from the last?",
    "factual accuracy": "Are all its medical statements true?",
    "sound reasoning": "Does it argue from the question to the right answer, and for no other?",
}
_YES, _NO = ("yes", "y", "true", "1"), ("no", "n", "false", "0")
SUFFIXES = (".csv", ".xlsx")
_KEY = ("run", "benchmark", "id")
_SHOWN = ("code", "in", "question", "options", "right answer", "reference", "explanation")
_MOST = 32_000  # characters of a cell; Excel takes 32,767
# Of a sheet that is read: bytes unpacked, cells, and columns that are looked at.
_LARGEST, _MOST_CELLS, _MOST_COLUMNS = 256 << 20, 20_000_000, 1000


class Ratings(NamedTuple):
    """Of one rater: {(run, benchmark, id): {criterion: number}}, and how many rows were left empty."""

    scores: dict[Key, dict[str, float]]
    unrated: int


def write_sheet(
    path: str | os.PathLike,
    explanations: Sequence[Explanation],
    *,
    seed: int = 0,
    scale: int = 5,
    criteria: Sequence[str] = tuple(CRITERIA),
    yes_no: bool = False,
) -> Path:
    """Writes the sheet and its key beside it; returns the key's path.

    Args:
      path: ends in .csv or .xlsx. explanations: what is to be rated. seed: draws codes and order.
      scale: numbers from 1 to this. criteria: the columns to fill in. yes_no: yes or no in those of YES_NO_CRITERIA
        instead; there is no scale then.
    Raises:
      UserError: another suffix, a criterion that there is not, or a scale below 2.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output={path}: must end in {' or '.join(SUFFIXES)}")
    criteria = tuple(YES_NO_CRITERIA) if yes_no else criteria
    for name in criteria:
        if not yes_no and name not in CRITERIA and name != "overall":
            raise UserError(f"--criteria={name}: not a criterion{nearest(name, [*CRITERIA, 'overall'])}")
    if scale < 2:
        raise UserError(f"--scale={scale}: must be 2 or more")
    codes = {e.key: "r" + draw(seed, "code", *e.key)[:10] for e in explanations}
    # Items in one drawn order, the runs of each in another.
    order = sorted(explanations, key=lambda e: (draw(seed, e.benchmark, e.id), draw(seed, "row", *e.key)))
    shown = [c for c in _SHOWN if c != "reference" or any(e.reference for e in explanations)]
    cells = [(codes[e.key], e.language, e.question, _lines(e.options), e.answer, e.reference, e.text) for e in order]
    rows = [[text for name, text in zip(_SHOWN, row) if name in shown] for row in cells]
    head = [*shown, *criteria, "comment"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with put_file(path) as temporary:
        (_write_csv if path.suffix == ".csv" else _write_xlsx)(temporary, head, rows, 0 if yes_no else scale, criteria)
    key = {e_code: {"run": k[0], "benchmark": k[1], "id": k[2]} for k, e_code in codes.items()}
    kept = {"seed": seed, "scale": scale, **({"yes_no": True} if yes_no else {}), "criteria": list(criteria)}
    write_json(key_path(path), {**kept, "rows": key})
    return key_path(path)


def key_path(sheet: Path) -> Path:
    """Where the key of a sheet lies."""
    return sheet.with_name(f"{sheet.name}.key.json")


def read_sheet(path: str | os.PathLike, key: str | os.PathLike | None = None) -> Ratings:
    """Reads a filled-in sheet; `key` is its key file (default: beside it, under the sheet's name).

    Raises UserError, one line with file, row and column, for whatever is wrong in it.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a rating sheet ends in {' or '.join(SUFFIXES)}")
    check_file(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    known = _read_key(path, Path(key) if key else key_path(path))
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_xlsx(path)
    number, head = next(((n, [_name(c) for c in row]) for n, row in rows if any(row)), (1, []))
    for column in ("code", *known["criteria"]):
        if head.count(column) != 1:
            what = "stands twice" if column in head else "is missing"
            raise UserError(f"{path}: row {number}: column '{column}' {what}")
    scores: dict[Key, dict[str, float]] = {}
    seen: dict[str, int] = {}
    scale = 0 if known.get("yes_no") else known["scale"]
    for n, row in rows:
        cells = dict(zip(head, row))
        code, given = cells.get("code", ""), {c: cells.get(c, "") for c in known["criteria"]}
        if not code and not any(given.values()):
            continue
        where = f"{path}: row {n}, column"
        if code not in known["rows"]:
            raise UserError(f"{where} 'code': {code!r} is no code of this sheet")
        if code in seen:
            raise UserError(f"{where} 'code': {code!r} stands already in row {seen[code]}")
        seen[code] = n
        if any(given.values()):
            e = known["rows"][code]
            scores[e["run"], e["benchmark"], e["id"]] = {
                c: _number(text, scale, f"{where} '{c}'") for c, text in given.items()
            }
    if not scores:
        raise UserError(f"{path}: nothing is rated in it")
    return Ratings(scores, len(known["rows"]) - len(scores))


def _number(text: str, scale: int, where: str) -> float:
    """A cell as a number; `scale` 0: of yes and no."""
    if not text:
        raise UserError(f"{where}: empty, while other columns of the row are filled in")
    if not scale:
        word = text.casefold()
        if word not in (*_YES, *_NO):
            raise UserError(f"{where}: {text[:30]!r} is neither yes nor no")
        return float(word in _YES)
    plain = text.replace(",", ".", 1)
    value = float(plain) if re.fullmatch(r"\d+(\.\d+)?", plain) else 0.0
    if not 1 <= value <= scale:
        raise UserError(f"{where}: {text[:30]!r} is not a number from 1 to {scale}")
    return value


def _lines(options: Mapping[str, str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def _name(cell: str) -> str:
    return " ".join(cell.casefold().split())


def _read_key(sheet: Path, path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{sheet}: its key {path} is not there; it was written with the sheet and is needed to read it")
    key = jsonl.parse_json(jsonl.decode(_whole(path), str(path)), str(path))
    if not isinstance(key, dict) or not _is_key(key):
        raise UserError(f"{path}: not the key of a rating sheet")
    return key


# What a spreadsheet may take for the start of a formula, full-width and small forms included (some languages' Excel
# does), also behind blanks, quotes and characters without width.
_FORMULA = re.compile(
    "[\\s\"'`\u2018-\u201f\xab\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\x7f-\x9f]*"
    "[=+@\uff1d\uff0b\uff0d\uff20\ufe62\ufe63\ufe66\ufe6b-]|[\t\r\n]"
)


def _is_key(key: dict) -> bool:
    """Whether it has the fields of a key, of their types."""
    rows, criteria, scale = (key.get(k) for k in ("rows", "criteria", "scale"))
    return (
        isinstance(scale, (int, float))
        and isinstance(criteria, list)
        and all(isinstance(c, str) for c in criteria)
        and isinstance(rows, dict)
        and all(isinstance(r, dict) and all(isinstance(r.get(k), str) for k in _KEY) for r in rows.values())
    )


def _whole(path: Path) -> bytes:
    with open_file(path) as f:
        data = f.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UserError(f"{path}: larger than {_LARGEST >> 20} MiB; not a rating sheet")
    return data


def _safe(text: str) -> str:
    """Characters that a spreadsheet refuses taken out, cut to what a cell holds."""
    text = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", text)
    return text if len(text) <= _MOST else text[:_MOST] + " [...]"


def _write_csv(path: Path, head: list[str], rows: list[list[str]], scale: int, criteria: Sequence[str]) -> None:
    # The mark at the start tells Excel that it is UTF-8. An apostrophe keeps it from taking a text for a formula.
    with path.open("w", encoding="utf-8-sig", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(head)
        for row in rows:
            cells = map(_safe, row)  # first, since what is taken out may hide the sign of a formula
            writer.writerow([("'" if _FORMULA.match(c) else "") + c for c in cells] + [""] * (len(criteria) + 1))


def _read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    text = jsonl.decode(_whole(path), str(path))
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as e:
        raise UserError(f"{path}: not a CSV file: {e}") from None
    return iter([(n, [c.strip() for c in row]) for n, row in enumerate(table, 1)])


def _write_xlsx(path: Path, head: list[str], rows: list[list[str]], scale: int, criteria: Sequence[str]) -> None:
    import openpyxl
    from openpyxl.styles import Alignment, Font
    from openpyxl.utils import get_column_letter
    from openpyxl.worksheet.datavalidation import DataValidation

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "ratings"
    for n, name in enumerate(head, 1):
        cell = sheet.cell(1, n, name)
        cell.font, cell.alignment = Font(bold=True), Alignment(wrap_text=True, vertical="top")
        wide = {"question": 60, "options": 40, "reference": 60, "explanation": 60, "comment": 30}
        sheet.column_dimensions[get_column_letter(n)].width = wide.get(name, 13)
    for r, row in enumerate(rows, 2):
        for n, text in enumerate(row, 1):
            cell = sheet.cell(r, n)
            cell.value = _safe(text)
            cell.data_type = "s"  # never a formula
            cell.alignment = Alignment(wrap_text=True, vertical="top")
    check = DataValidation(type="decimal", operator="between", formula1="1", formula2=str(scale), allow_blank=True)
    check.error = f"a number from 1 to {scale}"
    if not scale:
        check = DataValidation(type="list", formula1='"yes,no"', allow_blank=True)
        check.error = "yes or no"
    sheet.add_data_validation(check)
    column = len(head) - len(criteria)
    last = max(2, len(rows) + 1)
    check.add(f"{get_column_letter(column)}2:{get_column_letter(column + len(criteria) - 1)}{last}")
    sheet.freeze_panes = "B2"
    notes = book.create_sheet("how to rate")
    numbers = f"Numbers from 1 (worst) to {scale} (best)" if scale else "yes or no"
    notes.append([f"{numbers}. Leave a row empty to pass it over."])
    meanings = CRITERIA if scale else YES_NO_CRITERIA
    for name in criteria:
        notes.append([name, meanings.get(name, "All in all, how good is the explanation?")])
    book.save(path)


def _read_xlsx(path: Path) -> Iterator[tuple[int, list[str]]]:
    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST:
                raise UserError(f"{path}: unpacks to more than {_LARGEST >> 20} MiB; not a rating sheet")
        # Row by row: one stray cell at the end of the sheet, XFD1048576, would fill it with 17 thousand million.
        book = openpyxl.load_workbook(path, data_only=True, read_only=True)
        sheet = book["ratings"] if "ratings" in book.sheetnames else book.worksheets[0]
        sheet.reset_dimensions()
        rows, cells = [], 0
        for n, row in enumerate(sheet.iter_rows(values_only=True), 1):
            cells += len(row)
            if cells > _MOST_CELLS:
                raise UserError(f"{path}: more than {_MOST_CELLS:,} cells; not a rating sheet")
            if any(c is not None for c in row):
                rows.append((n, [_cell(c) for c in row[:_MOST_COLUMNS]]))
        book.close()
    except (UserError, MemoryError):
        raise
    except Exception as e:  # the library raises anything at all for what is cut or made up, SyntaxError included
        raise UserError(f"{path}: not an XLSX workbook: {str(e)[:80] or type(e).__name__}") from None
    return iter(rows)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def dump_ratings(scores: Mapping[Key, Mapping[str, float]], **fields: object) -> list[str]:
    """Ratings as lines of JSON: {"run", "benchmark", "id", "scores", ...}; read_ratings reads them."""
    return [
        jsonl.dump_line({"run": k[0], "benchmark": k[1], "id": k[2], "scores": dict(v), **fields})
        for k, v in scores.items()
    ]


def read_ratings(path: str | os.PathLike) -> Ratings:
    """A sheet, or the .jsonl file of a judge. Raises UserError."""
    path = expand_home(path)
    if path.suffix.lower() != ".jsonl":
        return read_sheet(path)
    check_file(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    scores: dict[Key, dict[str, float]] = {}
    with open_file(path) as stream:
        for where, row in jsonl.read_objects(stream, str(path)):
            for field, kind in (("run", str), ("benchmark", str), ("id", str), ("scores", dict)):
                if not isinstance(row.get(field), kind):
                    raise UserError(f"{where}: field '{field}' is missing or of another type")
            numbers = row["scores"].values()
            if not numbers or not all(type(v) in (int, float) and abs(v) < 1e300 for v in numbers):
                raise UserError(f"{where}: field 'scores': must hold numbers")
            scores[row["run"], row["benchmark"], row["id"]] = {k: float(v) for k, v in row["scores"].items()}
    if not scores:
        raise UserError(f"{path}: holds no ratings")
    return Ratings(scores, 0)
