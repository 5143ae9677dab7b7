"""The results of a batch that has ended: what each line settles, and which of its requests no line accounts for."""

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import one_line
from mmed_jax.llm_api import client as api
from mmed_jax.llm_api.batch.rows import Batch
from mmed_jax.llm_api.completions import read_json
from mmed_jax.llm_api.failure_words import message_of, number_of, status_of
from mmed_jax.llm_api.failures import Told, settle, settle_status
from mmed_jax.llm_api.ledger.ledger import Answer, Ledger
from mmed_jax.llm_api.ledger.transactions import storable
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.sender import ATTEMPTS, say

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


def read_line(line: bytes, price: Price | None, told: Told) -> tuple[str | None, Answer | api.Again | api.Stop | None]:
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
    if answer.reason == "bad_request" and (how := told.learn(answer.detail, _PARAMS)):
        return key, api.Again(f"{answer.detail}; {how}", cost=answer.cost, responded=responded)
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
