"""MedQuAD (Ben Abacha and Demner-Fushman 2019, arXiv:1901.08079): questions and long answers of NIH web sites.

XML (the repository's own)   <Document source url><Focus/><QAPairs><QAPair><Question qid qtype/><Answer/></QAPair>
JSON lines                   {qid, qtype, source, url, focus, question, answer}
lavita/MedQuAD on the hub    {question_id, question_type, document_source, document_url, question_focus, ...}

Three of the sets have no answers any more (copyright) and are dropped as such. Questions are printed as "... ?"; the
space is taken out. Some qids stand for several questions, so ids have a fingerprint of the question. Where an answer
begins by repeating the question, the repetition is taken off. Group: the focus.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from mmed_jax.common.errors import UserError, one_line
from mmed_jax.data.sources.encodings import WrongEncoding
from mmed_jax.data.sources.raw_file import Download, RawFile, files, holds
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import Drop, Hub, Row, Source, dialogue, fingerprint, make_id, need, origin, text

_HUB_NAMES = {
    "question_id": "qid",
    "question_type": "qtype",
    "document_source": "source",
    "document_url": "url",
    "question_focus": "focus",
}


def rows(given: Download | Path) -> Iterator[Row]:
    if not holds(given, ".xml"):
        yield from objects(given, ".jsonl", ".json", ".parquet")
        return
    for file in files(given, ".xml"):
        document = _parse(file)
        about = {"source": document.get("source"), "url": document.get("url"), "focus": document.findtext("Focus")}
        for number, pair in enumerate(document.iter("QAPair"), 1):
            question = pair.find("Question")
            asked = {} if question is None else {"question": question.text, **question.attrib}
            raw = {"qid": None, "question": None, **about, **asked, "answer": pair.findtext("Answer")}
            where = f"{file.label}: pair {number}"
            if twice := next((n for n in ("Question", "Answer") if len(pair.findall(n)) > 1), None):
                file.lose(where, number, f"<{twice}> given twice in a pair")
                continue
            yield Row(raw, where, file.name, file.split, number)


def _parse(file: RawFile) -> ElementTree.Element:
    """The document. Raises UserError when it is broken, or in an encoding that is not known."""
    declared = re.match(rb"\s*<\?xml[^>]*encoding\s*=\s*[\"']([\w.-]+)", file.data[:200].removeprefix(b"\xef\xbb\xbf"))
    utf16 = file.data[:2] in (b"\xff\xfe", b"\xfe\xff")
    plain = not utf16 and (declared is None or declared[1].lower() == b"utf-8")
    try:
        # As text when the encoding is UTF-8 or told: the message about other bytes is then that of every file.
        return ElementTree.fromstring(file.text() if plain or file.download.encoding else file.data)
    except ElementTree.ParseError as e:
        raise UserError(f"{file.label}:{e.position[0]}: broken XML: {e}") from None
    except (LookupError, ValueError) as e:  # an encoding that Python or expat has not
        name = declared[1].decode() if declared else "?"
        problem = f"XML in encoding '{name}', which can't be read ({one_line(e)}); save it as UTF-8 or add "
        raise WrongEncoding(problem, "NAME", place=file.label) from None


def convert(row: Row, kind: str) -> dict | Drop:
    raw = {_HUB_NAMES.get(name, name): value for name, value in row.raw.items()}
    need(row._replace(raw=raw), "qid", "question", "answer")
    question = re.sub(r"\s+\?", "?", " ".join(text(raw["question"]).split()))
    answer = text(raw["answer"])
    if question and answer.casefold().startswith(question.casefold()):
        answer = answer[len(question) :].strip()
    focus = " ".join(text(raw.get("focus")).casefold().split())
    return dialogue(
        "medquad",
        "CC BY 4.0",
        ident=make_id("medquad", row, raw.get("source"), raw["qid"], fingerprint(question)),
        language="en",
        question=question,
        answer=answer,
        provenance=origin(
            row,
            raw["qid"],
            f"medquad:{focus}" if focus else None,
            url=raw.get("url"),
            site=raw.get("source"),
            qtype=raw.get("qtype"),
        ),
    )


MEDQUAD = Source(
    name="medquad",
    kinds=("instruction",),
    languages=("en",),
    license="CC BY 4.0",
    url="https://github.com/abachaa/MedQuAD",
    rows=rows,
    convert=convert,
    hub=Hub("lavita/MedQuAD"),
    expects="the repository's XML files, or JSON lines with qid, question, answer, focus",
)
