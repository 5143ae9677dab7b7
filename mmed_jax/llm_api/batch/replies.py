"""What an endpoint says of a batch: its state, its files, and the lines of its results.

The client hands on whatever shape a reply came in, so none is relied on. Of a batch that has ended: what each line
settles, and which of its requests no line accounts for.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import WorkError, one_line
from mmed_jax.llm_api import client as api
from mmed_jax.llm_api.batch.table import Batch
from mmed_jax.llm_api.completions import read_json, token_count
from mmed_jax.llm_api.error_status import message_of, number_of, status_of
from mmed_jax.llm_api.failures import RefusedParameters, settle, settle_status
from mmed_jax.llm_api.ledger.ledger import Answer, Ledger
from mmed_jax.llm_api.ledger.transactions import storable
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.sender import ATTEMPTS, say

_STATES = {
    "canceled": "cancelled",
    "succeeded": "completed",
    "success": "completed",
    "finished": "completed",
    "ended": "completed",
    "done": "completed",
    "error": "failed",
    "errored": "failed",
    "timeout": "expired",
    "timed_out": "expired",
    "timeout_exceeded": "expired",
}
_FILES = ("output_file_id", "error_file_id")


def state_of(found: Any) -> str:
    """The state of a batch as the endpoint shows it. Raises WorkError for what is no batch."""
    state = getattr(found, "status", None)
    if not isinstance(state, str):
        raise WorkError(f"the endpoint's answer on a batch is none ({_shown(found)}); the same command goes on")
    return _STATES.get(state.lower(), state.lower())


def id_of(found: Any) -> str:
    """The id of a file or batch that was made. Raises WorkError when the endpoint's answer has none."""
    name = getattr(found, "id", None)
    if isinstance(name, str) and name and name == storable(name):
        return name
    raise WorkError(
        f"the endpoint's answer to a step of the Batch API has no id ({_shown(found)}); the same command goes on"
    )


def count_of(found: Any, name: str) -> int | None:
    """A number of the batch's request_counts; None where it is not told."""
    counts = _plain(getattr(found, "request_counts", None))
    # No batch is empty: a total of none means that they are not filled in.
    if not isinstance(counts, dict) or token_count(counts.get("total")) == 0:
        return None
    return token_count(counts.get(name))


def files_of(found: Any) -> tuple[list[str], list[str]]:
    """The ids of the files of results and of errors."""
    output, errors = (_ids(_plain(getattr(found, name, None))) for name in _FILES)
    return output, errors


def errors_of(found: Any) -> list[str]:
    """Why a batch failed, an error each: "code: message", as far as that is said."""
    errors = _plain(getattr(found, "errors", None) or getattr(found, "error", None))
    if isinstance(errors, dict) and errors.get("data") is not None:
        errors = errors["data"]
    said = map(_error, errors if isinstance(errors, list) else [errors])
    return [text for text in said if text]


def find_batch(client: Any, file_id: str) -> Any | None:
    """The batch that was made from a file and has not failed, among the newest; None where there is none.

    Raises WorkError when the endpoint's list cannot be read.
    """
    try:
        recent = list(islice(client.batches.list(limit=100), 500))
    except (AttributeError, LookupError, TypeError) as e:  # the client's own reading of a list of another shape
        said = api.redact(one_line(e))[:80]
        raise WorkError(f"the endpoint's list of batches cannot be read ({said}); the same command goes on") from None
    made = (b for b in recent if getattr(b, "input_file_id", None) == file_id)
    return next((b for b in made if state_of(b) != "failed"), None)


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` with dicts in place of the client's objects."""
    if depth > 5:
        return None
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value[:100]]
    if hasattr(value, "model_extra"):
        value = {**vars(value), **(value.model_extra or {})}
    return {str(k): _plain(v, depth + 1) for k, v in value.items()} if isinstance(value, dict) else value


def _ids(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    ids = [item.get("id") if isinstance(item, dict) else item for item in items]
    # One that no address can hold names no file.
    return [name for name in ids if isinstance(name, str) and name and name == storable(name)]


def _error(item: Any) -> str:
    code, message = (item.get("code"), message_of(item)) if isinstance(item, dict) else ("", item)
    return ": ".join(str(text) for text in (code, message) if isinstance(text, str | int) and text)


def _shown(found: Any) -> str:
    return api.redact(one_line(Exception(str(found))))[:80]


# A line without a response says so of a request that was never worked on.
_NOT_SENT = ("batch_expired", "batch_cancelled", "batch_canceled", "expired", "cancelled", "canceled")
_PARAMS = ("seed", "max_completion_tokens", "max_tokens", "temperature", "top_p", "response_format")


class Results:
    """Reads the files of results of one batch into the ledger.

    Args:
      answer: reads a line (see `read_line`). size: lines a transaction.

    Attributes:
      again: requests that are to be asked again. answered, worked, used: requests for which there is an answer, a
      response whatever is in it, a line. said: why a request was not answered, of the first line that says so.
    """

    def __init__(self, ledger: Ledger, batch: Batch, folder: Path, answer: Callable[[bytes], tuple], size: int):
        self.ledger, self.batch, self.folder, self.answer, self.size = ledger, batch, folder, answer, size
        self.again, self.said = 0, ""
        self.answered, self.worked, self.used = set[str](), set[str](), set[str]()
        self._failed: dict[str, api.Again] = {}
        self._odd: Counter[str] = Counter()
        self._unfetched = ""

    def fetch(self, client: Any, file_id: str) -> None:
        """Reads a file of results; answers of requests that the batch still holds are stored, once."""
        import openai

        path = self.folder / f"{self.batch.id:06d}.results"
        try:
            reply = client.files.with_streaming_response.content(file_id)
            with reply as found, jsonl.naming(path), open(path, "wb") as out:
                for data in found.iter_bytes(1 << 20):
                    out.write(data)
        except openai.APIStatusError as e:
            if e.status_code != 404 and not api.may_pass(e):
                raise
            self._unfetched = f"its file {api.redact(file_id)[:60]} cannot be had ({e.status_code})"
        except api.connection_errors() as e:  # cut on its way: what came is read all the same
            self._unfetched = f"the download of its results was cut ({api.redact(one_line(e.__cause__ or e))[:80]})"
        if path.exists():
            self._store(path)
            path.unlink()

    def _store(self, path: Path) -> None:
        sql = "SELECT key FROM requests WHERE state = 'sent' AND owner = ?"
        held = {key for (key,) in self.ledger.query(sql, self.batch.owner)}
        with open(path, "rb") as lines:
            while chunk := [line for _, line in zip(range(self.size), lines)]:
                found = [(line, *self.answer(line)) for line in filter(bytes.strip, chunk)]
                known, waiting = self.ledger.rows({key for _, key, _ in found if key is not None}), []
                for line, key, answer in found:
                    if key not in known:
                        self._odd["unreadable" if key is None else "for requests that nobody made"] += 1
                        self.said = self.said or _said(line)
                        continue
                    self.used.add(key)
                    if isinstance(answer, Answer) or answer.responded:
                        self.worked.add(key)
                    if isinstance(answer, Answer):
                        self.answered.add(key)
                        self._failed.pop(key, None)
                        if key in held:
                            waiting.append(self.ledger.finish_held(self.batch.owner, key, answer))
                        held.discard(key)  # the second of two answers is none
                    elif key in held:  # an answer may come yet, in another line
                        self._failed[key] = answer
                        self.said = self.said or answer.detail
                for future in waiting:
                    future.result()

    def settle(self) -> None:
        """When all files are read: what failed is pending again, or failed for good after too many attempts."""
        found = [
            self.ledger.fail_held(self.batch.owner, key, e.detail, ATTEMPTS, uncertain=e.uncertain, cost=e.cost)
            for key, e in self._failed.items()
        ]
        self.again = sum(future.result() for future in found)
        self._failed.clear()

    def missing(self, state: str, completed: int | None) -> str:
        """In words what no line accounts for though it was or may have been worked on; "" when nothing is."""
        left = self.left()
        if not left:
            return ""
        whole = not self._unfetched and not self._odd["unreadable"]
        if state != "completed" and whole:
            # An expired or cancelled batch leaves requests alone; what it has worked on, it counts.
            if self.worked and completed is None or completed is not None and len(self.worked) >= completed:
                return ""
        why = self._unfetched or ("its results are not whole" if self.worked else "there are no results yet")
        return f"{state}, but {left:,} of its {self.batch.requests:,} results cannot be read ({why})"

    def refused(self, completed: int | None, output: bool) -> bool:
        """Whether a batch that failed never began: no line is on any of its requests, and nothing says that one was
        worked on. output: it has a file of results."""
        return not (self.used or self._unfetched or completed) and (completed == 0 or not output)

    def left(self) -> int:
        """Requests that the batch still holds."""
        sql = "SELECT count(*) FROM requests WHERE state = 'sent' AND owner = ?"
        return self.ledger.query(sql, self.batch.owner)[0][0]

    def tell(self) -> None:
        """Says what was not used of the results."""
        if odd := ", ".join(f"{n:,} {what}" for what, n in self._odd.items()):
            say(f"batch {self.batch.id} ({self.batch.batch_id}): lines of its results were not used: {odd}")


def read_line(
    line: bytes, price: Price | None, refused: RefusedParameters
) -> tuple[str | None, Answer | api.Again | api.Stop | None]:
    """(key, what it settles) of a line of results; (None, None) for one that cannot be read."""
    try:
        found = read_json(line)
        # The keys of others may be anything, also what SQLite cannot look up.
        key, response = storable(str(found["custom_id"])), found.get("response")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None
    responded = bool(response) and isinstance(response, dict)
    try:
        answer = _settled(found, response if isinstance(response, dict) else {}, price)
    except (api.Again, api.Stop) as e:
        e.responded = responded
        return key, e
    if answer.reason == "bad_request" and (remedy := refused.learn(answer.detail, _PARAMS)):
        return key, api.Again(f"{answer.detail}; {remedy}", cost=answer.cost, responded=responded)
    return key, answer


def _said(line: bytes) -> str:
    """What a line that belongs to no request says, as the reason of a batch that failed."""
    try:
        return api.redact(message_of(read_json(line)))
    except ValueError:
        return ""


def _settled(found: dict, response: dict, price: Price | None) -> Answer:
    """The answer in a line. Raises Again or Stop."""
    body, error = response.get("body"), found.get("error")
    if isinstance(body, str):
        with contextlib.suppress(ValueError):
            body = read_json(body)
    if not response:
        code = str(error.get("code") if isinstance(error, dict) else error).lower()
        status = None if code in _NOT_SENT else status_of(error)
        if status is None:
            raise api.Again(api.redact(f"no response ({code})"))
        return settle_status(status, error, {})
    request_id = api.redact(str(response.get("request_id") or ""))
    status = number_of(response.get("status_code"))
    if status is not None and status >= 400:
        return settle_status(status, error or body, {}, request_id)
    if body is None and error:
        body = {"error": error}
    # Without a status that can be read, the body tells.
    return settle(body, price, {}, request_id, batch=True)
