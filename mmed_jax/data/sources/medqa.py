"""MedQA (Jin et al. 2020, arXiv:2009.13081): exam questions of the USA (English) and mainland China.

Forms of medqa_us:
  official     {question, answer, options {A: ...}, meta_info, answer_idx}            jind11/MedQA, GBaker on the hub
  mediQ        the same with context [sentences] before a short question              stellalisy/mediQ
  sample       {instances: {input: "Question: ...\\nOption A: ...", output: TEXT}}     dmis-lab/self-biorag
Forms of medqa_zh:
  official     as above; bigbio/med_qa on the hub has options as [{key, value}]
  Apollo       {question, options "(A) ....\\n(B) ....", answer "(B)" or "(ACE)", source}    FreedomIntelligence/Apollo
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from mmed_jax.data.records.schema import LETTERS
from mmed_jax.data.sources.answer_keys import UNREADABLE, by_name, key_by_name, named_numbering, same_base
from mmed_jax.data.sources.figures import needs_figure
from mmed_jax.data.sources.raw_file import Download
from mmed_jax.data.sources.raw_rows import objects
from mmed_jax.data.sources.source import (
    Drop,
    Hub,
    Row,
    Source,
    WrongForm,
    fingerprint,
    lettered,
    make_id,
    mcq,
    need,
    origin,
    text,
)

_URL = "https://github.com/jind11/MedQA"
# Apollo mixes four sets in one file and names each row's.
_APOLLO_LICENSES = {
    "medqa-mcmle": "MIT",
    "cmexam": "Apache-2.0",
    "cmb-single": "Apache-2.0",
    "cmmlu-medical": "CC BY-NC-SA 4.0",
}


def rows(given: Download | Path) -> Iterator[Row]:
    return numbered(objects(given, ".jsonl", ".json", ".parquet"))


def numbered(found: Iterator[Row]) -> Iterator[Row]:
    """The rows of files whose keys, where options have numbers, are these; UserError for one that counts otherwise."""
    return same_base(found, "MedQA", lambda raw: named_numbering(_keys(raw["answer_idx"]), raw["options"]))


def convert_us(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    if "instances" in raw:
        return _sample(row)
    need(row, "question", "options", "answer_idx")
    question, license, ident = text(raw["question"]), "MIT", ""
    if isinstance(raw.get("context"), list):
        question = " ".join([*(text(s) for s in raw["context"]), question]).strip()
        license, ident = "CC BY 4.0", f"mediq-{raw['id']}"
    return _official(row, "medqa_us", "en", question, license, ident)


def _official(row: Row, name: str, language: str, question: str, license: str, ident: str) -> dict | Drop:
    named = by_name(row.raw["options"])
    if isinstance(named, Drop):
        return named
    given, names = named
    answer = key_by_name(_keys(row.raw["answer_idx"]), names)
    stated = text(row.raw.get("answer"))
    if isinstance(answer, list) and len(answer) == 1 and stated and given[answer[0]] != stated:
        return Drop("answer letter and answer text disagree")
    return mcq(
        name,
        license,
        ident=make_id(name, row, ident or fingerprint(question, *given.values())),
        language=language,
        question=question,
        options=given,
        answer=answer,
        needs_image=needs_figure(language, question, given),
        provenance=origin(row, row.raw.get("id"), meta_info=row.raw.get("meta_info")),
    )


def _keys(value: object) -> list[str]:
    """The keys in "B", "A,C", "AC", "2", ["A", "C"]."""
    if isinstance(value, list):
        return value
    parts = [part for part in re.split(r"[,;、，\s]+", text(value)) if part]
    if len(parts) == 1 and (together := re.fullmatch(r"[A-Z]+", unicodedata.normalize("NFKC", parts[0]).upper())):
        return list(together[0])
    return parts


def _sample(row: Row) -> dict | Drop:
    """Options stand in the input text; the output is an option's text, so the letter is found by matching."""
    head, *parts = re.split(r"\nOption ([A-Z]): ", str(row.raw["instances"].get("input", "")))
    question = _unquote(text(head.removeprefix("Question:")))
    options = lettered(parts[1::2])
    if len(set(parts[::2])) < len(parts[::2]):
        return Drop("an option's name is given twice")
    if isinstance(options, Drop):
        return options
    wanted = _plain(str(row.raw["instances"].get("output", "")))
    matches = [letter for letter, option in options.items() if _plain(option) == wanted]
    if len(matches) != 1:
        return Drop("answer text matches no option" if not matches else "answer text matches several options")
    return mcq(
        "medqa_us",
        "MIT",
        ident=make_id("medqa_us", row, "sample", fingerprint(question, *options.values())),
        language="en",
        question=question,
        options=options,
        answer=matches,
        needs_image=needs_figure("en", question, options),
        provenance=origin(row, row.raw.get("id"), form="self-biorag sample"),
    )


def _unquote(question: str) -> str:
    """Takes off the one stray quotation mark that CSV left at the end of some questions."""
    return question[:-1].rstrip() if question.endswith('"') and question.count('"') % 2 else question


def _plain(option: str) -> str:
    return " ".join(option.split()).strip(' "').casefold()


def convert_zh(row: Row, kind: str) -> dict | Drop:
    raw = row.raw
    need(row, "question", "options")
    if "answer_idx" in raw:
        return _official(row, "medqa_zh", "zh", text(raw["question"]), "MIT", "")
    need(row, "answer", "source")
    if not isinstance(raw["options"], str):
        raise WrongForm("field 'options': expected text '(A) ...' as Apollo writes it", place=row.where)
    head, *parts = re.split(r"(?m)^\(([A-Z])\)[ \t]*", raw["options"])
    texts = [text(p) for p in parts[1::2]]
    if texts and all(t.endswith(".") for t in texts):
        texts = [t[:-1].rstrip() for t in texts]  # Apollo ends every option with a full stop of its own
    if head.strip() or "".join(parts[::2]) != LETTERS[: len(texts)]:
        return Drop("options not in order")
    part, question = text(raw["source"]), text(raw["question"])
    return mcq(
        "medqa_zh",
        _APOLLO_LICENSES.get(part, "unspecified"),
        language="zh",
        question=question,
        ident=make_id("medqa_zh", row, part, fingerprint(question, *texts)),
        options=lettered(texts),
        answer=_apollo_key(raw["answer"]),
        needs_image=needs_figure("zh", question, {}),
        provenance=origin(row, row.number, part=part),
    )


def _apollo_key(value: object) -> list[str] | Drop:
    """The letters of "(B)" or "(ACE)"."""
    found = re.findall(r"[A-Z]", unicodedata.normalize("NFKC", text(value)).upper())
    return UNREADABLE if text(value) and not found else found


MEDQA_US = Source(
    name="medqa_us",
    kinds=("mcq",),
    languages=("en",),
    license="MIT",
    url=_URL,
    rows=rows,
    convert=convert_us,
    unfold=numbered,
    expects="JSON lines with question, options {A: ...}, answer_idx (official; mediQ with context) or instances",
    hub=Hub("GBaker/MedQA-USMLE-4-options"),
)
MEDQA_ZH = Source(
    name="medqa_zh",
    kinds=("mcq",),
    languages=("zh",),
    license="MIT, Apache-2.0",
    url=_URL,
    rows=rows,
    convert=convert_zh,
    unfold=numbered,
    expects="JSON lines with question, options {A: ...}, answer_idx (official) or Apollo's JSON with options '(A) ...'",
    hub=Hub("bigbio/med_qa", configs=("med_qa_zh_source",), revision="refs/convert/parquet", subdirs=True),
)
