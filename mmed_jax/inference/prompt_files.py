"""What `generate` is asked to continue, from the command line or a file, as token ids."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import check_file, is_packed, suffix
from mmed_jax.common.paths import expand_home
from mmed_jax.data.chat import chat_prompt_ids
from mmed_jax.data.multiple_choice import mcq_prompt_ids
from mmed_jax.data.plain_text import text_start
from mmed_jax.data.records.reading import language_of, locate, members, read_with_place
from mmed_jax.data.records.schema import validate_record
from mmed_jax.data.tokenizers.tokenizer import encode_text


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """How text becomes a prompt: --raw, --system, and mode and family for multiple choice."""

    raw: bool = False
    system: str = ""
    mode: str = "rationale"
    family: str = "llama3"


def read_prompts(path: str) -> Iterator[tuple[str, str, dict]]:
    """Yields (where, id, object) for every prompt of a file.

    .txt: a prompt a line, blank lines left out; ids are line numbers. .jsonl, .jsonl.gz: {"prompt": text}, instruction
    records (also without the last answer) and multiple-choice records, in any order; objects without an id get their
    line number. Anything else that holds records (folders, zips) is read as such.

    Raises:
      UserError: missing, empty, malformed, an id twice.
    """
    seen: dict[str, str] = {}
    for where, name, value in _read(path):
        if name in seen:
            raise UserError(f"{where}: field 'id': {name!r} was already used at {seen[name]}")
        seen[name] = where
        yield where, name, value
    if not seen:
        raise UserError(f"{path}: holds no prompts")


def _read(path: str) -> Iterator[tuple[str, str, dict]]:
    file = expand_home(path)
    locate(file)
    if not file.is_dir():
        check_file(file)
    if file.is_file() and suffix(file) == ".txt" and not is_packed(file):
        # Not splitlines(), which also ends a line at separators that may stand inside a text (U+2028, form feed).
        for number, line in enumerate(jsonl.decode(file.read_bytes(), path).split("\n"), 1):
            if line.strip():
                yield f"{path}:{number}", str(number), {"prompt": line.removesuffix("\r")}
    elif file.is_file() and suffix(file) == ".jsonl" and language_of(file.name) is None:
        with members(file, ".jsonl")[0].open() as stream:
            for where, value in jsonl.read_objects(stream, path):
                yield where, str(value.get("id", where.rpartition(":")[2])), value
    else:
        for where, record in read_with_place(path):
            yield where, record["id"], record


def prompt_ids(tok: Any, value: dict, where: str, prompt_format: PromptFormat) -> list[int]:
    """The token ids of one prompt, ready to be continued. Raises UserError."""
    if "prompt" in value:
        text = value["prompt"]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: field 'prompt': must be text that is not empty")
        if prompt_format.raw:
            return [*text_start(tok), *encode_text(tok, text)]
        return chat_prompt_ids(tok, _with_system([{"role": "user", "content": text}], prompt_format.system))
    if prompt_format.raw:
        raise UserError(f"{where}: --raw continues plain text (a .txt file or 'prompt' fields), and this is a record")
    record = dict(value)
    messages = isinstance(record.get("messages"), list) and record["messages"]
    if messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "user":
        record["messages"] = [*messages, {"role": "assistant", "content": "-"}]  # records end with an answer
    record = validate_record({"id": "prompt", "language": "en", **record}, where)
    if "messages" in record:
        return chat_prompt_ids(tok, _with_system(record["messages"][:-1], prompt_format.system))
    return mcq_prompt_ids(tok, record, prompt_format.mode, prompt_format.family, system_prompt=prompt_format.system)


def _with_system(messages: list[dict], system: str) -> list[dict]:
    """A record's own system message stays."""
    if system and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages
