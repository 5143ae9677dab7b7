"""What an adapter is: rows of a published data set in, checked records or counted drops out."""

import datetime
import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmed_jax.common.errors import UserError
from mmed_jax.data.records.schema import LETTERS, question_key


class Row(NamedTuple):
    """One raw row: its fields, where it stands ("file:line"), its file name, split ("" unknown) and number from 1.

    `problem`: why it could not be read as a row; it is counted as dropped and no adapter sees it.
    """

    raw: dict
    where: str
    file: str
    split: str
    number: int
    problem: str = ""


class Drop(NamedTuple):
    """A row that becomes no record, and why; reasons are counted, so they name a class of rows, not one row.

    `content`: what it asks (content_of), where that could be read.
    """

    reason: str
    content: tuple = ()


class WrongForm(UserError):
    """The file is not in a form this source is published in; the problem names a class of rows, the hint this one."""


class UnknownNumbering(UserError):
    """Answers are numbers, and nothing shows whether they count from 0 or 1."""


@dataclass(frozen=True)
class Hub:
    """Where the set lies on huggingface.co/datasets.

    `repo` "" means that no copy is known. `files` are fetched as they are and read like a local input (sets published
    as a zip); else `configs` go through datasets.load_dataset, None for the default one. `subdirs` says that the
    repository is an old loading script: its parquet conversion is read, where configs are folders. `splits` False: the
    split names of the hub copy are not those of the set.
    """

    repo: str = ""
    configs: tuple[str | None, ...] = (None,)
    revision: str | None = None
    files: tuple[str, ...] = ()
    subdirs: bool = False
    splits: bool = True


def content_key(record: dict) -> tuple:
    """What two records must share to be one twice: language, question, passage, options, answers and explanation."""
    if "messages" in record:
        said = tuple(m["content"] for m in record["messages"] if m["role"] == "assistant")
        return record["language"], question_key(record), said
    options = tuple(record["options"].values())
    return record["language"], question_key(record), options, record["answer_idx"], record["rationale"]


def content_of(question: str, options: Iterable[str] = (), context: str = "") -> tuple:
    """What makes two rows one question wherever they stand: its text, passage and options, not how they are typed."""
    return _plain(question), _plain(context), tuple(sorted(map(_plain, options)))


def _plain(value: str) -> str:
    return re.sub(r"""[\s.,;:!?¿¡。，；：？！"'“”‘’«»`]+""", "", unicodedata.normalize("NFKC", value).casefold())


def record_content(record: dict) -> tuple:
    """content_of a record."""
    if "messages" in record:
        return content_of(record["messages"][0]["content"])
    return content_of(record["question"], record["options"].values(), record.get("context", ""))


@dataclass(frozen=True)
class Source:
    """A public data set. `rows` reads the published files; `convert(row, kind)` turns a row into a record or a Drop.

    `kinds`: what it can become, the default first. `license` is that of most rows; each record carries its own.
    `expects` says in words what the files look like. Of two records with equal `duplicate_key` the later is dropped.
    `unfold` turns table rows into rows where one holds several (a question per column or language); `rows` applies it
    to files, the hub reader to its tables. `answer_base` True: the numbering of answers differs between publications
    (see medmcqa); `rows` and `unfold` then take it as an argument. `gb18030`: the set is published in that encoding.
    `latin`: some of its questions are in English, whatever their language (the Japanese exam asks a few so).
    """

    name: str
    kinds: tuple[str, ...]
    languages: tuple[str, ...]
    license: str
    url: str
    expects: str
    rows: Callable[..., Iterator[Row]]
    convert: Callable[[Row, str], dict | Drop]
    hub: Hub = field(default_factory=Hub)
    unfold: Callable[..., Iterator[Row]] = iter
    duplicate_key: Callable[[dict], object] = content_key
    answer_base: bool = False
    gb18030: bool = False
    latin: bool = False


def need(row: Row, *names: str) -> None:
    """Raises WrongForm unless the row has these fields."""
    for name in names:
        if name not in row.raw:
            found = ", ".join(str(k) for k in list(row.raw)[:12])
            raise WrongForm(f"field '{name}' is missing", place=row.where, hint=f"; found: {found}")


def text(value: object) -> str:
    """A cell as text: None and NaN are "", outer whitespace is cut, line ends are \\n.

    Raises TypeError for a list or an object, whose brackets and quotation marks nobody wrote as text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | tuple | dict | bytes):
        raise TypeError(f"{'an object' if isinstance(value, dict) else 'a list'} where text should be")
    return str(value).replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "").strip()


# What Excel shows where a formula failed (#REF!, in other languages #NOM?, #¡VALOR!, #ИМЯ?, #Н/Д) or a column is too
# narrow, and LibreOffice (Err:502).
_EXCEL_ERROR = re.compile(r"#[¡¿]?[^\W\d_a-zа-я]+(?:/0)?[!?]|#N/[AD]|#Н/Д|#GETTING_DATA|#{4,}|Err:\d{3}")


_DATES = (datetime.date, datetime.time, datetime.timedelta)
DATE = Drop("a date where text should be")


def cell_problem(value: object) -> Drop | None:
    """Why a cell that should hold text holds something else: an error of Excel's, or a date it made of a text."""
    if isinstance(value, _DATES):
        return DATE
    if isinstance(value, str):
        value = value.strip()
        if _EXCEL_ERROR.fullmatch(value):
            return Drop("an Excel error where text should be")
        if re.fullmatch(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?", value):
            return DATE
    return None


def fingerprint(*parts: str) -> str:
    """A short stable name for texts that have no id: 12 hex digits of SHA-256."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8")).hexdigest()[:12]


def make_id(source: str, row: Row, *parts: object) -> str:
    """The id "<source>-<split>-<original id>"; split "all" where none is known, spaces become _."""
    return "-".join(re.sub(r"\s+", "_", str(p).strip()) for p in (source, row.split or "all", *parts) if str(p).strip())


def origin(row: Row, original_id: object = None, group: str | None = None, **more: object) -> dict:
    """Where a record comes from; empty entries are left out."""
    found = {"original_id": None if original_id is None else str(original_id), "file": row.file, "split": row.split}
    return {k: v for k, v in {**found, "group": group, **more}.items() if v not in (None, "", [])}


def lettered(options: Iterable[object]) -> dict[str, str] | Drop:
    """Option texts as {"A": ...}. Empty ones at the end are left out; one in between would shift the letters: Drop."""
    if isinstance(options, str | Mapping):  # of which a list would be the characters, or the names
        return Drop("options are no list")
    options = list(options)
    if any(isinstance(o, _DATES) for o in options):
        return DATE
    texts = [text(o) for o in options]
    while texts and not texts[-1]:
        texts.pop()
    if len(texts) < 2:
        return Drop("no options")
    if "" in texts:
        return Drop("empty option")
    if len(texts) > len(LETTERS):
        return Drop("more than 26 options")
    return dict(zip(LETTERS, texts))


def mcq(
    source: str,
    license: str,
    *,
    ident: str,
    language: str,
    question: object,
    options: dict[str, str] | Drop,
    answer: Iterable[str] | Drop | None,
    rationale: object = "",
    context: object = "",
    needs_image: bool = False,
    provenance: dict,
) -> dict | Drop:
    """A multiple-choice record, or why there is none."""
    if problem := cell_problem(question) or cell_problem(context):
        return problem
    if cell_problem(rationale):
        rationale = ""  # none is a state of its own; the question stays what it is
    question = text(question)
    if not question:
        return Drop("no question")
    if isinstance(options, Drop):
        return options
    content = content_of(question, options.values(), text(context))
    if isinstance(answer, Drop):
        return answer._replace(content=content)
    answer = list(answer or ())
    if not answer:
        return Drop("no key", content)
    if not set(answer) <= set(options):
        return Drop("key is not among the options", content)
    # A wrong option that is none does no harm, and published counts include such questions.
    if problem := next(filter(None, (cell_problem(options[letter]) for letter in answer)), None):
        return problem._replace(content=content)
    record: dict[str, Any] = {
        "id": ident,
        "language": language,
        "question": question,
        "options": options,
        "answer_idx": answer,
        "rationale": text(rationale),
        "source": source,
        "license": license,
        "provenance": provenance,
    }
    if text(context):
        record["context"] = text(context)
    if needs_image:
        record["needs_image"] = True
    return record


def dialogue(
    source: str,
    license: str,
    *,
    ident: str,
    language: str,
    question: object,
    answer: object,
    needs_image: bool = False,
    provenance: dict,
) -> dict | Drop:
    """An instruction record of one question and one answer, or why there is none."""
    if problem := cell_problem(question) or cell_problem(answer):
        return problem
    if not text(question):
        return Drop("no question")
    if not text(answer):
        return Drop("no answer", content_of(text(question)))
    record: dict[str, Any] = {
        "id": ident,
        "language": language,
        "source": source,
        "license": license,
        "messages": [{"role": "user", "content": text(question)}, {"role": "assistant", "content": text(answer)}],
        "method": "original",
        "provenance": provenance,
    }
    if needs_image:
        record["needs_image"] = True
    return record
