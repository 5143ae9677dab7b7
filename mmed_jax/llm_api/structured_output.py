"""From what a model wrote to an object of the asked form: strict where the endpoint enforces a schema, tolerant else.

Tolerated around a whole JSON object: a code fence, a word before or after it, thinking marks, raw newlines in strings,
a comma before a closing bracket. Never repaired: an object that does not end (a cut answer would pass as complete), two
objects, missing or additional fields, wrong types.
"""

import re
import unicodedata
from typing import Any

from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.llm_api.prompt_guard import INVISIBLE, leaks
from mmed_jax.llm_api.types import Reject

_THINKING = re.compile(r"<(/?)think(?:ing)?>")
_COMMA = re.compile(r",(?=\s*[}\]])")
_TYPES: dict[str, Any] = {"string": str, "boolean": bool, "array": list, "object": dict}


def read_answer(answer: dict | str, schema: dict) -> dict:
    """The answer as an object that satisfies `schema`, its texts cleaned.

    Args:
      answer: an object (already parsed) or the text of the reply.
      schema: JSON schema of the kind object_schema makes: type, properties, required, items, enum.
    Raises Reject("schema") with where and what; Reject("control") for fence marks or control tokens in a text.
    """
    value = answer if isinstance(answer, dict) else _parse(answer)
    _check(value, schema, "answer")
    return _clean(value)


def object_schema(properties: dict[str, dict]) -> dict:
    """A JSON schema of an object with exactly these fields, all required: what strict structured output asks for."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _parse(text: str) -> Any:
    text = _without_thinking(text)
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        raise Reject("schema", "no JSON object in the answer")
    if end < start:
        raise Reject("schema", "the JSON object does not end")
    body = text[start : end + 1]
    for candidate in (body, _without_commas(body)):
        try:
            return loads(candidate, strict=False, object_pairs_hook=_unique)
        except BadJSON as e:
            problem = f"at {e.position}: {e.problem}" if e.position else e.problem
    raise Reject("schema", f"broken JSON: {problem}"[:120])


def _without_thinking(text: str) -> str:
    """`text` without its closed thoughts, in one pass whatever the marks; one that does not end stays."""
    kept, at, opened = [], 0, None
    for mark in _THINKING.finditer(text):
        if not mark[1]:
            opened = mark.start() if opened is None else opened
        elif opened is not None:
            kept.append(text[at:opened])
            at, opened = mark.end(), None
    return "".join([*kept, text[at:]])


def _without_commas(body: str) -> str:
    """Commas before a closing bracket taken out, except inside strings."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', body)
    return "".join(p if i % 2 else _COMMA.sub("", p) for i, p in enumerate(parts))


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Reject("schema", "a field is given twice")
    return found


def _check(value: Any, schema: dict, where: str) -> None:
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]):
        raise Reject("schema", f"{where}: expected {kind}, got {type(value).__name__}")
    if "enum" in schema and value not in schema["enum"]:
        raise Reject("schema", f"{where}: {str(value)[:40]!r} is not one of the values asked for")
    if kind == "object":
        fields = schema["properties"]
        for name in fields:
            if name not in value:
                raise Reject("schema", f"{where}: field '{name}' is missing")
            _check(value[name], fields[name], f"{where}.{name}")
        extra = [name for name in value if name not in fields]
        if extra:
            raise Reject("schema", f"{where}: field '{str(extra[0])[:40]}' was not asked for")
    elif kind == "array":
        for i, item in enumerate(value):
            _check(item, schema["items"], f"{where}[{i}]")


def _clean(value: object) -> Any:
    """NFC, no zero-width or direction marks, outer whitespace cut; anything of a fence or chat format is a Reject."""
    if isinstance(value, str):
        text = value.replace("\r\n", "\n")
        if not text.isascii():
            text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
        text = text.strip()
        if found := leaks(text):
            raise Reject("control", f"the answer holds {found!r}")
        return text
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value
