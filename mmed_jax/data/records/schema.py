"""Records: what one training or evaluation item is, checked on the way in and on the way out.

A record is a plain dict, one JSON object a line in a file.

Instruction (stage 1):
    {"id", "language", "messages": [{"role": "system|user|assistant", "content"}], "source", "license",
     "method": "original|answer_expanding|qa_generation|translation|handcrafted", "provenance": {...}}
Multiple choice (stage 2):
    {"id", "language", "question", "options": {"A": ..., ...}, "answer_idx": "A" | "A,C", "rationale", "source",
     "license", "method", "provenance", "human_checked", "human_check_passed"}
Optional in both: "needs_image" (bool). Optional in multiple choice: "context" (a passage the question is about).
`provenance` is free-form; `provenance["group"]` is shared by parallel translations of one question.

Required are id, language, and messages or question/options/answer_idx; the rest has defaults (DEFAULTS). Text is
normalised to NFC, never NFKC (which would change units, superscripts and full-width answers).
"""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.languages.declarations import DECLARATIONS
from mmed_jax.data.records.linked_rows import LinkedRows

LANGUAGES = tuple(language.code for language in DECLARATIONS)
LANGUAGE_NAMES = {language.code: language.name for language in DECLARATIONS}
# Others are valid where `provenance` names a prompt of theirs: a method of data_gen needs no entry here.
METHODS = ("original", "answer_expanding", "qa_generation", "translation", "handcrafted")
ROLES = ("system", "user", "assistant")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = ("instruction", "mcq")

DEFAULTS: dict[str, dict[str, Any]] = {
    "instruction": {"source": "user", "license": "unspecified", "method": "original", "provenance": {}},
    "mcq": {
        "rationale": "",
        "source": "user",
        "license": "unspecified",
        "method": "original",
        "provenance": {},
        "human_checked": False,
        "human_check_passed": False,
    },
}
FIELDS = {
    "instruction": ("id", "language", "messages", "source", "license", "method", "provenance", "needs_image"),
    "mcq": (
        "id",
        "language",
        "context",
        "question",
        "options",
        "answer_idx",
        "rationale",
        "source",
        "license",
        "method",
        "provenance",
        "human_checked",
        "human_check_passed",
        "needs_image",
    ),
}
_OPTIONAL = ("context", "needs_image")
# What people write instead of the codes.
_LANGUAGE_ALIASES = {
    alias: language.code for language in DECLARATIONS for alias in (*language.aliases, language.name.lower())
}


class RecordError(UserError):
    """A record that breaks the schema; the message is "file:line: field 'x': ...". `field` names the culprit."""

    def __init__(self, where: str, field: str, problem: str):
        super().__init__(f"field '{field}': {problem}", place=where)
        self.field = field


def kind_of(record: dict) -> str:
    """The kind by the fields present, "instruction" or "mcq". Raises KeyError when neither fits."""
    if "messages" in record:
        return "instruction"
    if "question" in record or "options" in record:
        return "mcq"
    raise KeyError("neither 'messages' nor 'question'")


def validate_record(record: dict, where: str) -> dict:
    """A checked copy of `record`: NFC text, defaults filled, fields, options and answer letters in order.

    `where` ("file:line") opens every message. answer_idx may come as "A", "A,C" or ["A", "C"]. Raises RecordError.
    """
    try:
        kind = kind_of(record)
    except KeyError:
        close = [k for k in record if nearest(k, ("messages", "question", "options")).startswith(", did")]
        hint = f" (found '{close[0]}')" if close else ""
        problem = f"missing; instruction records have 'messages', multiple choice 'question'{hint}"
        raise RecordError(where, "messages", problem) from None
    for name in record:
        if name not in FIELDS[kind]:
            field = nearest(name, FIELDS[kind])
            hint = field if field.startswith(", did") else "; fields of your own belong under 'provenance'"
            raise RecordError(where, name, f"not a field of {kind} records{hint}")
    may_be_null = (*DEFAULTS[kind], *_OPTIONAL)
    given = {k: v for k, v in record.items() if v is not None or k not in may_be_null}
    record = {**DEFAULTS[kind], **given}
    record = {name: _clean(record[name], where, name) for name in FIELDS[kind] if name in record}
    _text(record, "id", where)
    if record.get("language") not in LANGUAGES:
        raise RecordError(where, "language", language_problem(record.get("language")))
    (_check_instruction if kind == "instruction" else _check_mcq)(record, where)
    for name in ("source", "license"):
        _text(record, name, where)
    if record["method"] not in METHODS and not _names_its_prompt(record):
        raise RecordError(where, "method", f"{record['method']!r} is unknown{nearest(record['method'], METHODS)}")
    if not isinstance(record["provenance"], dict):
        raise RecordError(where, "provenance", f"must be an object, got {_show(record['provenance'])}")
    group = record["provenance"].get("group")
    if group is not None and not isinstance(group, str):
        raise RecordError(where, "provenance.group", f"must be text, got {_show(group)}")
    for name in ("human_checked", "human_check_passed", "needs_image"):
        if name in record and not isinstance(record[name], bool):
            raise RecordError(where, name, f"must be true or false, got {_show(record[name])}")
    return record


def _names_its_prompt(record: dict) -> bool:
    """Whether a step behind the record was asked for by a prompt of the record's method, as "translation/3"."""
    last = record["provenance"] if isinstance(record["provenance"], dict) else {}
    history = last.get("history")
    steps = [last, *(history if isinstance(history, list) else [])]
    prompts = [step.get("prompt") for step in steps if isinstance(step, dict)]
    return any(isinstance(p, str) and p.partition("/")[0] == record["method"] and "/" in p for p in prompts)


def _check_instruction(record: dict, where: str) -> None:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise RecordError(where, "messages", f"must be a non-empty list, got {_show(messages)}")
    turns = []
    for i, message in enumerate(messages):
        name = f"messages[{i}]"
        if not isinstance(message, dict):
            raise RecordError(where, name, f"must be an object with 'role' and 'content', got {_show(message)}")
        for key in message:
            if key not in ("role", "content"):
                hint = nearest(key, ("role", "content"))
                raise RecordError(where, f"{name}.{key}", f"not a field of a message{hint}")
        if message.get("role") not in ROLES:
            role = message.get("role")
            raise RecordError(where, f"{name}.role", f"{_show(role)} is unknown{nearest(role, ROLES)}")
        _text(message, "content", where, f"{name}.content")
        turns.append(message["role"])
    dialogue = turns[1:] if turns[0] == "system" else turns
    for i, role in enumerate(dialogue, len(turns) - len(dialogue)):
        expected = ("user", "assistant")[(i - len(turns) + len(dialogue)) % 2]
        if role != expected:
            why = "system only comes first" if role == "system" else "user and assistant take turns, user first"
            raise RecordError(where, f"messages[{i}].role", f"'{role}' where '{expected}' was expected ({why})")
    if not dialogue or dialogue[-1] != "assistant":
        raise RecordError(where, "messages", "the last message must be the assistant's answer")


def _check_mcq(record: dict, where: str) -> None:
    _text(record, "question", where)
    options = record.get("options")
    if not isinstance(options, dict):
        raise RecordError(where, "options", f'must be an object {{"A": text, ...}}, got {_show(options)}')
    if not 2 <= len(options) <= len(LETTERS):
        raise RecordError(where, "options", f"must hold 2 to {len(LETTERS)} options, got {len(options)}")
    expected = LETTERS[: len(options)]
    if sorted(options) != list(expected):
        raise RecordError(where, "options", f"keys must be the letters A to {expected[-1]}, got {', '.join(options)}")
    record["options"] = {letter: options[letter] for letter in expected}
    for letter in expected:
        _text(options, letter, where, f"options.{letter}")
    answer = record.get("answer_idx")
    letters = [part.strip() for part in answer.split(",")] if isinstance(answer, str) else answer
    if not isinstance(letters, list) or not letters:
        raise RecordError(where, "answer_idx", f'must be "A", "A,C" or a list of letters, got {_show(answer)}')
    for letter in letters:
        if not isinstance(letter, str) or letter not in record["options"]:
            hint = _nearest_letter(letter, expected)
            raise RecordError(where, "answer_idx", f"{_show(letter)} is not among the options{hint}")
    record["answer_idx"] = ",".join(sorted(set(letters)))
    if not isinstance(record["rationale"], str):
        raise RecordError(where, "rationale", f"must be text, got {_show(record['rationale'])}")
    if "context" in record:
        _text(record, "context", where)


def _nearest_letter(letter: object, letters: str) -> str:
    """Hint for a wrong answer letter: its upper case, the 1-based letter of a number, or the range."""
    text = str(letter).strip().upper()
    if text in letters and text:
        return f", did you mean '{text}'?"
    if text.isdecimal() and 1 <= int(text) <= len(letters):
        return f", did you mean '{letters[int(text) - 1]}' (letters, not numbers)?"
    return f"; valid: {letters[0]} to {letters[-1]}"


def language_problem(value: object) -> str:
    """Why `value` is none of LANGUAGES, with the code that was probably meant."""
    if value is None:
        files = ", ".join(LANGUAGE_NAMES.values())
        return f"missing; valid: {', '.join(LANGUAGES)} (MMedBench's own files need none: {files}.jsonl)"
    text = str(value).strip().lower()
    code = _LANGUAGE_ALIASES.get(text, text.replace("_", "-").split("-")[0])
    hint = f", did you mean '{code}'?" if code in LANGUAGES else f"; valid: {', '.join(LANGUAGES)}"
    return f"{_show(value)} is not supported{hint}"


def _show(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(holder: dict, name: str, where: str, shown: str | None = None) -> None:
    value = holder.get(name)
    if not isinstance(value, str):
        raise RecordError(where, shown or name, f"must be text, got {_show(value)}")
    if not value.strip():
        raise RecordError(where, shown or name, "must not be empty")


def _clean(value: object, where: str, name: str) -> object:
    """NFC through the whole value; what could not be written again is refused."""
    if isinstance(value, str) and value.isascii():
        return value
    if isinstance(value, (dict, list, tuple)) and jsonl.is_deep(value):
        raise RecordError(where, name, f"lists and objects stand more than {jsonl.MAX_DEPTH} deep in each other")
    return _normalised(value, where, name)


def _normalised(value: object, where: str, name: str) -> object:
    if isinstance(value, str):
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RecordError(where, name, "holds half of a surrogate pair (broken text)") from None
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list | tuple):
        return [_normalised(v, where, name) for v in value]
    if isinstance(value, dict):
        return {_normalised(k, where, name): _normalised(v, where, name) for k, v in value.items()}
    if isinstance(value, float) and not (value - value == 0):
        raise RecordError(where, name, f"{value} is not a number JSON can hold")
    return value


def mmedbench_record(raw: dict, *, language: str, file: str, line: int, split: str | None) -> dict:
    """One line of MMedBench's own files (English.jsonl, ...) as an unchecked record; their extra keys are tolerated.

    Keys by the data set's card: question, options, answer_idx (text or list), rationale, human_checked,
    human_check_passed; some files also carry answer, meta_info and metamap_phrases of the set they came from. Empty
    options at the end are left out. Of the extra keys that `data_gen build` can write, the licence, needs_image, id,
    source and topic are kept, the last three in provenance.
    """
    name = LANGUAGE_NAMES[language]
    provenance = {"file": file, "line": line}
    if split:
        provenance["split"] = split
    if raw.get("meta_info"):
        provenance["meta_info"] = raw["meta_info"]
    for kept_as, field in (("original_id", "id"), ("original_source", "source"), ("topic", "topic")):
        if raw.get(field):
            provenance[kept_as] = raw[field]
    kept = ("question", "options", "answer_idx", "rationale", "human_checked", "human_check_passed")
    answer, options = raw.get("answer_idx"), raw.get("options")
    if isinstance(options, dict):
        options = dict(sorted(options.items()))
        while options and options[max(options)] in ("", None):
            del options[max(options)]
        raw = {**raw, "options": options}
    if isinstance(answer, str) and len(answer) > 1 and set(answer) <= set(LETTERS):
        raw = {**raw, "answer_idx": list(answer)}  # "AC" for "A,C", as the authors' own code reads it
    return {
        "id": "-".join(filter(None, ("mmedbench", split, name, str(line)))),
        "language": language,
        **{k: raw[k] for k in kept if k in raw},
        "source": "mmedbench",
        "license": raw.get("license") or "CC BY-NC 4.0",
        "provenance": provenance,
        **({"needs_image": True} if raw.get("needs_image") else {}),
    }


def question_key(record: dict) -> str:
    """What makes two records one question, whatever its answer: NFKC, case and white space aside.

    Multiple choice: the passage, the question and the set of its options, in whatever order. A dialogue: the system
    message and all that the user says; where that is too short to tell anything ("Yes."), also what the assistant said
    before its last message.
    """
    if kind_of(record) == "mcq":
        return _mcq_key(record, record["options"].values())
    messages = record["messages"]
    told = [fold_text(m["content"]) for m in messages if m["role"] == "system"]
    asked = [fold_text(m["content"]) for m in messages if m["role"] == "user"]
    if _letters(" ".join(asked)) < _TELLS_ENOUGH:
        asked = [fold_text(m["content"]) for m in messages[:-1] if m["role"] != "system"]
    return "\n".join([*(f"system {text}" for text in told), *asked])


def wording_key(record: dict) -> str:
    """The words of the question alone, without its options and what stands around it; a dialogue's first user message.

    For sets written by hand, where two questions should not read alike.
    """
    if kind_of(record) == "mcq":
        return fold_text(record["question"])
    return fold_text(next(m["content"] for m in record["messages"] if m["role"] == "user"))


def question_keys(record: dict) -> list[str]:
    """question_key and further keys: of one question printed twice with small changes, one is shared.

    The further ones are of multiple choice with a long question: what stands around it, the right options, and two of
    the wrong ones. Sets are published with five options and with four, and with a slip in one of them mended.
    """
    key = question_key(record)
    if kind_of(record) != "mcq" or _letters(fold_text(record["question"])) < _TELLS_A_CASE:
        return [key]
    right = record["answer_idx"].split(",")
    wrong = sorted({fold_text(text) for k, text in record["options"].items() if k not in right})
    known = _mcq_key(record, (record["options"][k] for k in right))
    return [key, *(f"{known}\nnot {one}\nnot {other}" for one, other in combinations(wrong, 2))]


# Letters (see _letters) below which what the user says tells no question, "Hello. / Yes. / And now?", and from which a
# question is about one case.
_TELLS_ENOUGH, _TELLS_A_CASE = 40, 50


def _letters(text: str) -> int:
    """How many letters and digits, one of Chinese, Japanese or Korean counting for five; a long text is cut first."""
    text = text[:200]
    if text.isascii():
        return sum(map(str.isalnum, text))
    return sum(5 if c > "\u2e7f" else 1 for c in text if c.isalnum())


def fold_text(text: str) -> str:
    """For comparing texts: NFKC, casefolded, whitespace squeezed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _mcq_key(record: dict, options: Iterable[str]) -> str:
    context = [f"context {fold_text(record['context'])}"] if record.get("context") else []
    return "\n".join([*context, fold_text(record["question"]), *sorted(map(fold_text, options))])


def group_ids(records: Sequence[dict]) -> list[int]:
    """A number per record; records that share provenance.group or one of question_keys, directly or through others,
    share it.

    Splits into training and validation go by these numbers, never by row. They count up from 0 in order of first
    appearance.
    """
    rows = LinkedRows()
    for record in records:
        link_record(rows, record)
    return rows.numbers().tolist()


def link_record(rows: LinkedRows, record: dict) -> None:
    """Adds a record to rows that are linked by provenance.group and question_keys."""
    keys = [("question", key) for key in question_keys(record)]
    group = record["provenance"].get("group")
    rows.link(*keys, *([("group", group)] if group else []))


def write_records(path: str | os.PathLike, records: Iterable[dict]) -> int:
    """Checks and writes records as JSON lines (gzip when the name ends in .gz), atomically. Returns how many."""
    if not str(path).endswith(jsonl.SUFFIXES):
        raise UserError(f"{path}: record files end in {' or '.join(jsonl.SUFFIXES)}")
    checked = (validate_record(r, f"record {i} for {path}") for i, r in enumerate(records, 1))
    return jsonl.write_lines(path, map(jsonl.dump_line, checked))
