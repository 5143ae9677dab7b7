"""Prompt files: a TOML file per task, a section per language, with a version that goes into every request.

A prompt is a system message that depends on task and language alone (so that an endpoint can cache it) and a user
message that holds the fenced data. `prompt_guard.toml` holds what all prompts say about source text.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.llm_api.prompt_guard import fence
from mmed_jax.llm_api.types import Request

_GUARD = Path(__file__).with_name("prompt_guard.toml")
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_USER = "{{data}}\n\n{{reminder}}"


@dataclass(frozen=True)
class Prompt:
    """The words of one task in one language; `user` still has its places {{data}} and the like."""

    version: str  # "rationale/3"
    language: str
    system: str
    user: str

    def messages(self, data: str | dict | list, **values: object) -> tuple[dict, ...]:
        """System and user message. `data` is fenced; `values` are the operator's own (counts), never source text."""
        filled = {"data": fence(data), **{k: str(v) for k, v in values.items()}}
        return ({"role": "system", "content": self.system}, {"role": "user", "content": _fill(self.user, filled)})

    def request(
        self, settings: Any, data: str | dict | list, *, schema: dict | None, max_tokens: int, **values: object
    ) -> Request:
        """The request for `data`. settings has `model` and `params`; `max_tokens` is the answer's room where they set
        none; schema: of the answer, or None for endpoints without structured output."""
        params = dict(settings.params)
        if not {"max_tokens", "max_completion_tokens"} & set(params):
            params["max_completion_tokens"] = max_tokens
        return Request(
            model=settings.model,
            messages=self.messages(data, **values),
            params=params,
            schema={"name": self.version.partition("/")[0], "schema": schema} if schema else None,
            prompt_version=self.version,
        )


def _fill(template: str, values: Mapping[str, str]) -> str:
    """One pass: what is filled in is never searched for places again."""
    return _PLACE.sub(lambda m: values[m[1]], template)


@cache
def _sections(file: Path) -> dict:
    return tomllib.loads(file.read_text(encoding="utf-8"))


@cache
def load_prompt(file: Path, language: str, places: tuple[tuple[str, str], ...] = ()) -> Prompt:
    """The prompt of a file "<task>.toml" in `language`; a file without that section serves all languages with "en".

    places: (name, text) of what stands for {{name}} in every message. Raises KeyError for a file or a language that
    there is not.
    """
    if language not in LANGUAGES or not file.is_file():
        raise KeyError(f"{file.stem}, {language}")
    sections = _sections(file)
    language = language if language in sections else "en"
    section, guard = sections[language], _sections(_GUARD)[language]
    fixed = {"reminder": guard["reminder"].strip(), **dict(places)}
    system = _fill(section["system"], fixed).strip() + "\n\n" + guard["notice"].strip()
    user = _PLACE.sub(lambda m: fixed.get(m[1], m[0]), section.get("user", _USER))
    return Prompt(f"{file.stem}/{sections['version']}", language, system, user)
