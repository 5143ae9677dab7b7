"""Small published files and adapter runs for the tests of the sources."""

import csv
import io
import json
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import kind_of, validate_record
from mmed_jax.data.sources import SOURCES, Conversion, get_source


def put(path: Path, content: object, encoding: str = "utf-8") -> Path:
    """Writes JSON lines for a list in a .jsonl, one JSON value for .json, text otherwise; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    elif path.suffix == ".json":
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode(encoding))
    return path


def table(path: Path, header: list, *rows: list) -> Path:
    """A CSV, xlsx or parquet file with a header."""
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in (header, *rows):
            book.active.append(row)
        book.save(path)
    elif path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(zip(header, r)) for r in rows]), path)
    else:
        out = io.StringIO()
        csv.writer(out).writerows([header, *rows] if header else rows)
        put(path, out.getvalue())
    return path


def convert(name: str, path: Path, kind: str | None = None, **options) -> tuple[list[dict], Conversion]:
    """All records of an adapter run, with the promises that hold for each of them checked."""
    conversion = Conversion(get_source(name), path, kind=kind, **options)
    records = list(conversion)
    report = conversion.report
    assert report.read == report.kept + report.dropped.total() and report.kept == len(records)
    assert len({r["id"] for r in records}) == len(records)
    for record in records:
        assert record == validate_record(record, "x") and kind_of(record) == conversion.kind
        assert record["source"] == name and record["language"] in SOURCES[name].languages
        assert record["license"] not in ("", "unspecified") and record["provenance"]["file"]
        assert record["id"].startswith(f"{name}-{record['provenance'].get('split') or 'all'}-") or name == "mmedbench"
    return records, conversion


def say(record: dict) -> tuple[str, str]:
    user, assistant = record["messages"]
    return user["content"], assistant["content"]


def chosen(record: dict) -> list[str]:
    return [record["options"][letter] for letter in record["answer_idx"].split(",")]


def medmcqa(cop: int, **more: object) -> dict:
    """One MedMCQA row with that answer number."""
    return {
        "id": f"id{cop}",
        "question": f"Q{cop}",
        "opa": "a",
        "opb": "b",
        "opc": "c",
        "opd": "d",
        "cop": cop,
        "exp": "An explanation that is long enough.",
        **more,
    }


# ---- Rows for files with a fault: row `n` of a set, with this key ----

LETTERED = {"A": "gout", "B": "asthma", "C": "anaemia", "D": "scurvy"}
KORMED = ["subject", "year", "period", "q_number", "question", *"ABCDE", "answer"]


def kormed_row(n: int, answer: object, question: str = "진단은?") -> list:
    return ["doctor", 2022, 1, n, f"{n} {question}", *"가나다라마", answer]


def french_row(n: int, right: list, answers: object = None, **more: object) -> dict:
    answers = dict(zip("abcde", ("un", "deux", "trois", "quatre", "cinq"))) if answers is None else answers
    return {"id": str(n), "question": f"Question {n} ?", "answers": answers, "correct_answers": right, **more}


def casimedicos_row(n: int, answer: object, names: str = "12345") -> dict:
    options = dict(zip(names, ("uno", "dos", "tres", "cuatro", "cinco")))
    return {
        "id": f"train-{n}",
        "lang": "es",
        "question": f"¿Pregunta {n}?",
        "options": options,
        "answer": answer,
        "rationale": "Por esto.",
    }


def headqa_row(ra: object, aids: tuple = (1, 2, 3, 4), n: int = 1, **more: object) -> dict:
    answers = [{"aid": a, "atext": f"opción {i}"} for i, a in enumerate(aids)]
    return {"name": "E", "qid": n, "qtext": f"¿Cuál {n}?", "ra": ra, "answers": answers, **more}


def drops(source: str, path: Path, kind: str | None = None, **options: object) -> dict:
    """The drops of a run, also of one that leaves no record and therefore is an error."""
    try:
        return dict(convert(source, path, kind, **options)[1].report.dropped)
    except UserError as e:
        assert "none of" in str(e) and "; first: " in str(e)
        return {str(e).partition("record (")[2].rpartition(":")[0].rpartition("; first")[0].rpartition(": ")[0]: 1}


def medqa_row(n: int, **more: object) -> dict:
    return {
        "question": f"Which drug helps case {n}?",
        "options": {"A": f"drug {n}", "B": "rest"},
        "answer_idx": "A",
        **more,
    }
