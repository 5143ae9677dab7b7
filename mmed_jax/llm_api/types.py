"""What the parts of data_gen hand to each other: requests, jobs, outcomes, and the reasons for which a row is lost."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

# code -> what it means. Every row that is lost is counted under one of these.
REASONS: dict[str, str] = {
    "length": "the answer was cut off at the token limit",
    "refusal": "the model refused",
    "content_filter": "the endpoint's content filter stopped the answer",
    "schema": "the answer does not have the form that was asked for",
    "api_error": "the endpoint failed, again and again",
    "bad_request": "the endpoint does not accept the request",
    "language": "the answer is not in the language asked for",
    "boilerplate": "phrases of an assistant about itself, or remains of the prompt",
    "control": "control tokens or the fence of the source text in the answer",
    "copy": "the answer repeats the input",
    "too_short": "shorter than the recipe allows",
    "too_long": "longer than the recipe allows",
    "key": "the explanation does not lead to the right option",
    "options": "options or letters were not kept",
    "numbers": "numbers or units were not kept",
    "repetition": "the text goes round in circles",
    "facts": "facts of the source were not kept",
    "duplicate": "the same text as an earlier row",
    "near_duplicate": "almost the same text as an earlier row",
    "contamination": "overlaps with a benchmark's test set",
    "license": "the licence of the source does not allow it",
}


@dataclass(frozen=True)
class Request:
    """What is paid for: sent to the endpoint as it stands.

    Attributes:
      messages: [{"role", "content"}].
      params: temperature, max_completion_tokens, seed, ..., as the endpoint knows them.
      schema: {"name", "schema"} with a JSON schema for the answer, or None for free text.
      prompt_version: "rationale/3"; a changed prompt file is another request.
    """

    model: str
    messages: tuple[dict, ...]
    params: dict
    schema: dict | None
    prompt_version: str

    @functools.cached_property
    def key(self) -> str:
        """SHA-256, 32 hex digits, over all of the above."""
        facts = [self.model, list(self.messages), self.params, self.schema, self.prompt_version]
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Job:
    """One input of one method.

    Attributes:
      row_id: stable and unique within a method of a run: the id of the parent record, with "#2" or "@ko" after it.
      method: "answer_expanding", "qa_generation", "translation", "rationale" or "topics".
      parent: the input record or passage.
      target: the method's own facts, for example {"language": "ko"}.
    """

    row_id: str
    method: str
    request: Request
    parent: dict
    target: dict


class Reject(Exception):
    """A row that is not used. reason: a code of REASONS; detail: one line."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
      state: "accepted", "rejected", "failed" or "pending".
      reason: a code of REASONS, "" when accepted or pending.
      records: of an accepted job; a passage may give several.
      flags: soft findings of the gates, kept in provenance.flags.
    """

    job: Job
    state: str
    reason: str = ""
    detail: str = ""
    records: tuple[dict, ...] = ()
    flags: tuple[str, ...] = ()


class Method(Protocol):
    """A way of making records with a model."""

    name: str

    def jobs(self, inputs: Iterable[dict], settings: Any) -> Iterator[Job]:
        """The jobs of the inputs, in their order."""

    def parse(self, job: Job, answer: dict | str) -> list[dict]:
        """Records of a complete answer. Raises Reject."""

    def retry(self, job: Job, reason: str, attempt: int) -> Job | None:
        """The job to ask instead after `reason` (another request, so another key), or None to give up."""


# Looks at a record that a job gave: raises Reject, or returns the text of a flag, or None.
Gate = Callable[[Job, dict], "str | None"]
