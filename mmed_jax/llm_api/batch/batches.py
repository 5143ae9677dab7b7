"""The Batch API, one step at a time: each is in the ledger before the next begins, so that any of them can be resumed.

    open (requests are claimed, their file grows) -> ready (it is whole) -> uploaded -> created -> done
    void: given up before anything was sent, or refused as a whole; its requests are pending again

Between two steps lies either nothing that costs, or something that can be found again: a batch that was created just
before a kill is recognised by its input file. Results are joined by custom_id, which is the request's key
(batch/replies.py). A batch is done when each of its requests is accounted for: what was worked on and cannot
be read is looked for again, and nothing is sent a second time meanwhile.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

from mmed_jax.common import jsonl
from mmed_jax.common.errors import WorkError
from mmed_jax.llm_api import client as api
from mmed_jax.llm_api.batch import table
from mmed_jax.llm_api.batch.replies import (
    Results,
    count_of,
    errors_of,
    files_of,
    find_batch,
    id_of,
    read_line,
    state_of,
)
from mmed_jax.llm_api.batch.table import UNSENT, Batch
from mmed_jax.llm_api.failures import RefusedParameters
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.prices import Price
from mmed_jax.llm_api.rate_limits import backoff
from mmed_jax.llm_api.sender import say
from mmed_jax.llm_api.token_counts import counter_for, most_cost, prompt_tokens
from mmed_jax.llm_api.types import Request

# The endpoint's limits of one batch (50,000 requests, 200 MB), with some air in the bytes.
MAX_REQUESTS, MAX_BYTES = 50_000, 190_000_000
_PATH = "/v1/chat/completions"
_ENDED = ("completed", "expired", "cancelled", "failed")
_LINES = 500  # claims and results a transaction
_LOOKS = 8  # at the results of a batch that has ended, before it is left for the next run


class _File:
    """The file of an open batch: lines whose requests are being claimed wait, so that many claims share a commit."""

    def __init__(self, batch: Batch, out: BinaryIO):
        self.batch, self.out = batch, out
        self.requests = self.tokens = self._planned = self._bytes = self._planned_tokens = 0
        self.capped = self.elsewhere = False
        self._waiting: list[tuple[Future, bytes, int]] = []

    def holds(self, size: int, tokens: int, most_tokens: int) -> bool:
        """Whether one more request fits."""
        fits = self._planned < MAX_REQUESTS and self._bytes + size <= MAX_BYTES
        return fits and self._planned_tokens + tokens <= most_tokens

    def add(self, claim: Future, data: bytes, tokens: int) -> None:
        """A line to write once its claim is granted."""
        self._waiting.append((claim, data, tokens))
        self._planned, self._bytes = self._planned + 1, self._bytes + len(data)
        self._planned_tokens += tokens
        if len(self._waiting) >= _LINES:
            self.flush()

    def flush(self) -> None:
        """Writes the lines whose claims were granted."""
        for claim, data, tokens in self._waiting:
            said = claim.result()
            self.capped = self.capped or said in ("cap", "full")
            self.elsewhere = self.elsewhere or said == "batch"
            if said == "go":
                with jsonl.naming(Path(self.out.name)):
                    self.out.write(data)
                self.requests, self.tokens = self.requests + 1, self.tokens + tokens
        self._waiting.clear()
        with jsonl.naming(Path(self.out.name)):
            self.out.flush()


class Batches:
    """The batches of one ledger and endpoint; a context manager, one process at a time.

    Attributes:
      capped: a limit (max_usd, max_requests) kept requests out. elsewhere: some are in other batches.
      most_tokens: prompt tokens of one batch at most.
    """

    def __init__(self, ledger: Ledger, settings, price: Price | None):
        self.ledger, self.settings, self.price = ledger, settings, price
        self.endpoint = api.endpoint_name(settings.base_url)
        self.client = api.make_client(settings.base_url, settings.timeout_s, asynchronous=False)
        self.folder = table.folder_of(ledger)
        self.most_tokens = settings.enqueued_tokens or 10**12
        self.capped = self.elsewhere = False
        self.parameters = RefusedParameters(say)
        self._stop: api.Stop | None = None
        # So far: answers, responses, lines that are to be asked again, batches cut into smaller ones.
        self.answered = self.worked = self.failed = self.cut = 0
        self.last = ""  # the end of the last one
        self._looks: dict[int, tuple[int, float, str]] = {}  # batch -> looks without results, the next, what was seen

    def __enter__(self) -> "Batches":
        self._lock = table.lock_batches(self.ledger)
        self._lock.__enter__()
        for batch in table.batches_of(self.ledger, *UNSENT):
            # Killed while its file was written, or meant for another address: nothing was sent.
            if batch.state == "open" or batch.endpoint != self.endpoint:
                self._give_up(batch)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._lock.__exit__(None, None, None)

    def all(self, *states: str) -> list[Batch]:
        """Batches of this endpoint in these states."""
        return table.batches_of(self.ledger, *states, endpoint=self.endpoint)

    def file(self, batch: Batch) -> Path:
        """Where the requests of a batch lie."""
        return table.file_of(self.ledger, batch)

    # Building.

    def build(self, requests: Iterable[Request]) -> int:
        """Claims the requests (all are in the ledger) and writes them to files of ready batches; returns how many."""
        count = counter_for(self.settings.model).count
        file: _File | None = None
        claimed = 0
        for request in requests:
            body = api.body_of(self.parameters.request(request))
            line = {"custom_id": request.key, "method": "POST", "url": _PATH, "body": body}
            data, tokens = jsonl.dump_line(line).encode() + b"\n", prompt_tokens(request, count)
            if file is not None and not file.holds(len(data), tokens, self.most_tokens):
                claimed, file = claimed + self._close_file(file), None
            if file is None:
                batch = self.ledger.write(self._new).result()
                with jsonl.naming(self.file(batch)):
                    file = _File(batch, open(self.file(batch), "wb"))
            file.add(self._claim(request, file.batch), data, tokens)
        return claimed + (self._close_file(file) if file is not None else 0)

    def _new(self, c: sqlite3.Connection) -> Batch:
        sql = "INSERT INTO batches (state, requests, tokens, endpoint, created) VALUES ('open', 0, 0, ?, ?)"
        number = c.execute(sql, (self.endpoint, time.time())).lastrowid
        assert number is not None  # it was an INSERT
        return Batch(number, "open", 0, 0, "", "", self.endpoint)

    def _claim(self, request: Request, batch: Batch) -> Future:
        reserve = most_cost(request, self.price, batch=True, hard=self.ledger.claims.max_usd is not None)
        return self.ledger.claim(request.key, reserve, batch.owner)

    def _close_file(self, file: "_File") -> int:
        file.flush()
        with jsonl.naming(self.file(file.batch)):
            os.fsync(file.out.fileno())
            file.out.close()
        self.capped, self.elsewhere = self.capped or file.capped, self.elsewhere or file.elsewhere
        if file.requests:
            self._set(file.batch, state="ready", requests=file.requests, tokens=file.tokens)
        else:
            self._give_up(file.batch)
        return file.requests

    def _give_up(self, batch: Batch) -> None:
        table.give_up(self.ledger, batch)

    def _set(self, batch: Batch, **values: Any) -> Batch:
        names = ", ".join(f"{name} = ?" for name in values)
        row = (*values.values(), batch.id)
        self.ledger.write(lambda c: c.execute(f"UPDATE batches SET {names} WHERE id = ?", row) and None).result()
        return batch._replace(**{k: v for k, v in values.items() if k in Batch._fields})

    # Sending and fetching.

    def step(self) -> list[str]:
        """One look at every batch under way: uploads, creates, polls, fetches. Returns a line on each that is open.

        Raises Stop for what the user has to mend, WorkError when the endpoint does not answer.
        """
        try:
            with api.plain_errors():
                return [line for line in self._steps() if line]
        except (api.Stop, WorkError):
            for batch in self.all(*UNSENT):  # the user may come back with another address, or without batches
                self._give_up(batch)
            raise

    def _steps(self) -> Iterator[str]:
        yield from [self._look(batch) for batch in self.all("created")]
        queued = sum(b.tokens for b in self.all("created") if b.id not in self._looks)  # those have ended
        limit = self.settings.enqueued_tokens
        for batch in self.all("ready", "uploaded"):
            if limit is not None and queued and queued + batch.tokens > limit:
                yield f"batch {batch.id}: waits for room ({queued:,} tokens enqueued)"
                continue
            queued += batch.tokens
            yield self._send(batch)
        left = self.all("ready", "uploaded", "created")
        if left and all(self._looks.get(batch.id, (0,))[0] >= _LOOKS for batch in left):
            raise self._unreadable(left)

    def _unreadable(self, left: list[Batch]) -> WorkError:
        """The end of a run that can only wait for results that do not come."""
        first = left[0]
        more = f" (and {len(left) - 1} more batches)" if len(left) > 1 else ""
        return WorkError(
            f"batch {first.id} ({first.batch_id}){more}: {self._looks[first.id][2]}, after {_LOOKS} looks; what was "
            "not read may have been billed and counts with its upper bound; the same command looks again, python -m "
            f"data_gen ledger --ledger={self.ledger.path} --release gives it up, to be asked for anew"
        )

    def _send(self, batch: Batch) -> str:
        import openai

        try:
            found = None
            if batch.state == "ready":
                with open(self.file(batch), "rb") as f:
                    file_id = id_of(self.client.files.create(file=f, purpose="batch"))
                batch = self._set(batch, file_id=file_id, state="uploaded")
            else:  # perhaps created by a process that was killed before it could say so
                found = find_batch(self.client, batch.file_id)
        except openai.NotFoundError:  # an endpoint without a Batch API holds no batch
            self._give_up(batch._replace(state="ready"))
            raise
        if found is None:
            # A creation that is repeated blindly could be billed twice; it is looked for at the next step instead.
            once = self.client.with_options(max_retries=0).batches
            try:
                found = once.create(input_file_id=batch.file_id, endpoint=_PATH, completion_window="24h")
            except openai.APIStatusError as e:
                if not api.may_pass(e):  # refused, so there is none
                    self._give_up(batch._replace(state="ready"))
                raise
        batch = self._set(batch, batch_id=id_of(found), state="created")
        return f"batch {batch.id}: {batch.requests:,} requests sent ({batch.batch_id})"

    def _look(self, batch: Batch) -> str:
        import openai

        looks, after, seen = self._looks.get(batch.id, (0, 0.0, ""))
        if looks >= _LOOKS or time.monotonic() < after:
            return f"batch {batch.id}: {seen}; looked {looks} times"
        try:
            found = self.client.batches.retrieve(batch.batch_id)
        except openai.NotFoundError:
            raise api.Stop(
                f"batch {batch.id} ({batch.batch_id}, {batch.requests:,} rows) is not known to {batch.endpoint}; use "
                f"the API key that made it, or give it up: python -m data_gen ledger --ledger={self.ledger.path} "
                "--release"
            ) from None
        state = state_of(found)
        if state not in _ENDED:
            done, total = count_of(found, "completed"), count_of(found, "total")
            return f"batch {batch.id}: {state}" + (f", {done:,} of {total:,}" if done is not None and total else "")
        output, errors = files_of(found)
        completed = count_of(found, "completed")
        results = Results(self.ledger, batch, self.folder, self._answer, _LINES)
        for file_id in (*output, *errors):
            self._fetch(results, file_id)
        if state == "failed" and results.refused(completed, bool(output)):
            return self._failed(batch, errors_of(found), results.said)
        results.settle()
        self.failed, self.answered = self.failed + results.again, self.answered + len(results.answered)
        self.worked += len(results.worked)
        self.last = f"batch {batch.id}, {state}" + (f": {results.said}" if results.said else "")
        if missing := results.missing(state, completed):
            # Ended, and not to be read: perhaps not yet. Nothing is sent again for it.
            self.ledger.doubt(batch.owner).result()
            next_look = time.monotonic() + backoff(looks + 1, self.settings.poll_s, most=600.0)
            self._looks[batch.id] = (looks + 1, next_look, missing)
            return f"batch {batch.id}: {missing}"
        # What an expired or cancelled batch has not answered was not billed and is asked for again.
        self.ledger.release_owner(batch.owner, uncertain=completed is None).result()
        self._set(batch, state="done", detail=state)
        self._looks.pop(batch.id, None)
        self.file(batch).unlink(missing_ok=True)
        results.tell()
        if self._stop:
            raise self._stop
        return ""

    def _fetch(self, results: Results, file_id: str) -> None:
        results.fetch(self.client, file_id)

    def _answer(self, line: bytes) -> tuple:
        """What a line of results settles, as `read_line`; a Stop is kept till the other answers are stored."""
        key, answer = read_line(line, self.price, self.parameters)
        if isinstance(answer, api.Stop):
            self._stop = answer
            return key, api.Again(str(answer), cost=answer.cost, responded=answer.responded)
        return key, answer

    def _failed(self, batch: Batch, errors: list[str], lines: str) -> str:
        """A batch that was refused as a whole. lines: what those of its file of errors say, where it has no reason."""
        said = api.redact("; ".join(errors[:3])) or lines or "no reason given"
        if not any("token_limit_exceeded" in error for error in errors):
            self._give_up(batch)
            raise api.Stop(f"the endpoint refused batch {batch.batch_id}: {said}")
        if len(self.all("created")) > 1:  # room comes with the end of the others
            self._set(batch, state="uploaded", batch_id="")
            return f"batch {batch.id}: waits for room"
        if batch.requests <= 1:
            self._give_up(batch)
            raise api.Stop(f"the account's limit of enqueued tokens does not hold one request: {said}")
        self.most_tokens = max(1, batch.tokens // 2)
        self.cut += 1
        self._give_up(batch)
        return f"batch {batch.id}: above the limit of enqueued tokens, cut into smaller ones"
