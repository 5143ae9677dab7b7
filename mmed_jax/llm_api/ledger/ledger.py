"""The ledger: every request with its answer and price, every row with its verdict, in one SQLite file (WAL).

A request is known by its key (mmed_jax.llm_api.types.Request.key) and goes pending -> sent -> done | rejected | failed.
Verdicts of gates are not states of requests: they belong to jobs and are found anew from the stored answers.

All writing is done by one thread, which commits what has gathered while the commit before was on its way to the disk
(synchronous=FULL): an answer counts once it is on the disk, and hundreds a second still fit. Several processes may
share a ledger; a request that one has claimed is not sent by another while its owner lives.
"""

import contextlib
import functools
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.llm_api.ledger.transactions import (
    FINAL,
    LATER,
    LEASE_SECONDS,
    SCHEMA,
    VERSION,
    Answer,
    Claims,
    Totals,
    storable,
)
from mmed_jax.llm_api.types import Request

__all__ = ["FINAL", "Answer", "Ledger", "Row", "Totals"]

_CHUNK = 500  # keys in one SELECT


class Row(NamedTuple):
    """What the ledger knows about a request; `response` is the text of the answer, costs are US dollars."""

    key: str
    state: str
    reason: str
    detail: str
    attempts: int
    owner: str
    response: str | None
    request_id: str
    cost: float | None


def _set_wal(c: sqlite3.Connection) -> str:
    """The journal mode that the file has now. Two runs that make a ledger at one moment: SQLite does not wait here."""
    last = time.monotonic() + 5
    while True:
        try:
            return c.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as e:
            if "locked" not in str(e) or time.monotonic() > last:
                raise
            time.sleep(0.05)


class Ledger:
    """A ledger file, made when it is not there; a context manager.

    Args:
      path: the SQLite file. max_usd, max_requests: no request is claimed beyond these totals of the ledger.

    Raises UserError for a file that is not a ledger or cannot be written.
    """

    def __init__(self, path: str | os.PathLike, *, max_usd: float | None = None, max_requests: int | None = None):
        self.path, self.claims = Path(path), Claims(max_usd, max_requests)
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._broken: WorkError | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._reading, self._writing = self._connect(), self._connect()
            self._check_format()
            self._writing.executescript(SCHEMA)
            self._add_columns()
        except (sqlite3.Error, OSError) as e:
            raise UserError(f"--ledger={self.path}: cannot be used as a ledger ({e})") from None
        self._thread = threading.Thread(target=self._write_loop, name="ledger", daemon=True)
        self._thread.start()
        self.write(self.claims.enter).result()

    def _connect(self) -> sqlite3.Connection:
        # One thread at a time uses each connection; the check of sqlite3 would forbid handing it over.
        c = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        if _set_wal(c) != "wal":
            raise sqlite3.OperationalError("this file system has no shared memory for SQLite's WAL; use a local disk")
        c.execute("PRAGMA synchronous=FULL")
        c.execute("PRAGMA cache_size=-32768")
        return c

    def _check_format(self) -> None:
        have = _tables(self._writing)
        version = self._writing.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise sqlite3.DatabaseError(f"it was made by a newer version, format {version}")
        with contextlib.closing(sqlite3.connect(":memory:")) as c:
            c.executescript(SCHEMA)
            ours = _tables(c)
        # Some of our tables: a ledger that was not finished (disk full, killed), which is completed.
        strange = [t for t, found in have.items() if t not in ours or not ours[t] - set(LATER) <= found]
        if strange:
            raise sqlite3.DatabaseError(f"it is another database, with tables {', '.join(sorted(strange)[:3])}")

    def _add_columns(self) -> None:
        """What a ledger of an earlier version lacks; that version can still use it."""
        c = self._writing
        if set(LATER) <= _tables(c)["requests"]:
            return
        c.execute("BEGIN IMMEDIATE")
        for name in set(LATER) - _tables(c)["requests"]:  # another process may have been faster
            c.execute(f"ALTER TABLE requests ADD COLUMN {name} {LATER[name]}")
        c.execute("COMMIT")

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what this process had claimed, waits for the last commit."""
        if self._thread.is_alive():
            if not self._broken:
                self.write(self.claims.leave)
            self._work.put(None)
            self._thread.join()
        self._reading.close()

    # Reading, in the caller's thread.

    def rows(self, keys: Iterable[str]) -> dict[str, Row]:
        """The rows of those keys that the ledger has."""
        wanted = list(keys)
        found: dict[str, Row] = {}
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            sql = f"SELECT {','.join(Row._fields)} FROM requests WHERE key IN ({marks})"
            found.update((r[0], Row(*r)) for r in self._reading.execute(sql, chunk))
        return found

    def verdicts(self, run: str, method: str, row_ids: list[str]) -> dict[str, tuple[str, str, str]]:
        """{row_id: (key, state, reason)} of the jobs that are there."""
        found: dict[str, tuple[str, str, str]] = {}
        for start in range(0, len(row_ids), _CHUNK):
            chunk = row_ids[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            sql = f"SELECT row_id, key, state, reason FROM jobs WHERE run=? AND method=? AND row_id IN ({marks})"
            found.update((r[0], r[1:]) for r in self._reading.execute(sql, [run, method, *chunk]))
        return found

    def totals(self) -> Totals:
        """Requests and money of the whole ledger."""
        return Totals(*self._reading.execute("SELECT requests, spent, reserved, uncertain FROM totals").fetchone())

    def query(self, sql: str, *values: object) -> list[tuple]:
        """Rows of a SELECT."""
        return self._reading.execute(sql, values).fetchall()

    # Writing: each returns a Future that is done when the change is on the disk.

    def write(
        self,
        operation: Callable[[sqlite3.Connection], Any],
        instead: Callable[[sqlite3.Connection, Exception], Any] | None = None,
    ) -> Future:
        """Has `operation` run inside the next transaction; `instead` when its values cannot be written."""
        future: Future = Future()
        future.set_running_or_notify_cancel()  # a waiter that is cancelled leaves the change to be made
        if self._broken:
            future.set_exception(self._broken)
        else:
            self._work.put((operation, instead, future))
        return future

    def add(self, requests: list[tuple[Request, str]]) -> Future:
        """Enters requests that are not there yet, each with the key of the one that it retries ("" for none)."""
        now = time.time()
        rows = [(r.key, r.model, r.prompt_version, before, now) for r, before in requests]
        sql = (
            "INSERT OR IGNORE INTO requests (key, state, model, prompt, retry_of, created) VALUES (?,'pending',?,?,?,?)"
        )
        return self.write(lambda c: c.executemany(sql, rows) and None)

    def judge(self, rows: list[tuple[str, str, str, str, str, str, str]]) -> Future:
        """Enters what became of jobs: (run, method, row_id, key, state, reason, detail)."""
        texts = [tuple(map(storable, row)) for row in rows]
        return self.write(lambda c: c.executemany("INSERT OR REPLACE INTO jobs VALUES (?,?,?,?,?,?,?)", texts) and None)

    def claim(self, key: str, reserve: float, owner: str = "") -> Future:
        """Claims a request for sending: "go", "final" (answered), "busy" (another's), "batch" (in a batch under way),
        "cap" (a limit is reached) or "full" (a limit would be reached if all that is under way cost as much as it can).

        reserve: upper bound of its price in dollars, held until it is finished. owner: this process, or "batch:3".
        """
        return self.write(lambda c: self.claims.claim(c, key, reserve, owner or self.claims.owner))

    def again(self, key: str, *, uncertain: bool) -> Future:
        """Another attempt at a claimed request: True, or False where a limit forbids it (it is pending then).

        uncertain: the attempt before may have been billed.
        """
        return self.write(lambda c: self.claims.again(c, key, uncertain))

    def finish(self, key: str, answer: Answer) -> Future:
        """Stores an answer (or a failure) and what it cost; one that cannot be stored is rejected with that reason."""

        def instead(c: sqlite3.Connection, error: Exception) -> None:
            self.claims.finish(c, key, Answer("rejected", "schema", f"the answer cannot be stored ({one_line(error)})"))

        return self.write(lambda c: self.claims.finish(c, key, answer), instead)

    def fail(self, key: str, detail: str, *, uncertain: bool) -> Future:
        """Gives a request up for this time; `uncertain` as in again()."""

        def operation(c: sqlite3.Connection) -> None:
            self.claims.release(c, "key = ?", key, uncertain=uncertain)
            self.claims.finish(c, key, Answer("failed", "api_error", detail))

        return self.write(operation)

    def release(self, key: str, *, uncertain: bool) -> Future:
        """Makes a claimed request pending again; `uncertain` as in again()."""
        return self.write(lambda c: self.claims.release(c, "key = ?", key, uncertain=uncertain))

    def release_owner(self, owner: str, *, uncertain: bool = False, unsent: bool = False) -> Future:
        """Makes all that `owner` has claimed pending again; returns how many. uncertain: it may have been billed.
        unsent: it never left, so it is no attempt."""
        return self.write(lambda c: self.claims.release(c, "owner = ?", owner, uncertain=uncertain, unsent=unsent))

    def finish_held(self, owner: str, key: str, answer: Answer) -> Future:
        """finish() for a request that `owner` holds, nothing for any other."""

        def store(c: sqlite3.Connection, found: Answer) -> None:
            if self._attempts(c, owner, key):
                self.claims.finish(c, key, found)

        def instead(c: sqlite3.Connection, error: Exception) -> None:
            store(c, Answer("rejected", "schema", f"the answer cannot be stored ({one_line(error)})"))

        return self.write(lambda c: store(c, answer), instead)

    def fail_held(self, owner: str, key: str, detail: str, most: int, *, uncertain: bool, cost: float | None) -> Future:
        """A request that `owner` holds was not answered: it is pending again, and failed after `most` attempts; True,
        False where it held no such request. uncertain: as in again(). cost: what the attempt cost, where known."""

        def operation(c: sqlite3.Connection) -> bool:
            attempts = self._attempts(c, owner, key)
            if not attempts:
                return False
            self.claims.spend(c, cost)
            self.claims.release(c, "key = ?", key, uncertain=uncertain)
            if attempts >= most:
                self.claims.finish(c, key, Answer("failed", "api_error", f"failed in every batch: {detail}", cost=0.0))
            return True

        return self.write(operation)

    @staticmethod
    def _attempts(c: sqlite3.Connection, owner: str, key: str) -> int:
        """Attempts at a request that `owner` holds; 0 when it holds no such request."""
        sql = "SELECT attempts FROM requests WHERE key=? AND state='sent' AND owner=?"
        return (c.execute(sql, (storable(key), owner)).fetchone() or (0,))[0]

    def doubt(self, owner: str) -> Future:
        """What `owner` has sent may have been billed, and its answers cannot be read yet (Claims.doubt)."""
        return self.write(lambda c: self.claims.doubt(c, owner))

    def spend(self, cost: float | None) -> Future:
        """Books what an attempt cost that brought no answer."""
        return self.write(lambda c: self.claims.spend(c, cost))

    def _write_loop(self) -> None:
        c, renewed, closing = self._writing, time.monotonic(), False
        while not closing:
            items = self._gather(LEASE_SECONDS / 3)
            closing = None in items
            items = [i for i in items if i is not None]
            if time.monotonic() - renewed > LEASE_SECONDS / 3:
                items.append((self.claims.renew, None, Future()))
                renewed = time.monotonic()
            if items and not self._commit(c, items):
                # One that cannot be written takes no other with it.
                for item in items:
                    self._commit(c, [item], alone=True)
        # So that the file alone is whole, and can be copied without its -wal, as far as others that use it let us.
        with contextlib.suppress(sqlite3.Error):
            c.execute("PRAGMA busy_timeout = 1000")
            c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        c.close()

    def _commit(self, c: sqlite3.Connection, items: list[tuple], *, alone: bool = False) -> bool:
        """Writes items in one transaction; False when one has values that cannot be written. alone: it is known to."""
        try:
            if self._broken:
                raise self._broken
            c.execute("BEGIN IMMEDIATE")
            results = [operation(c) for operation, _, _ in items]
            c.execute("COMMIT")
        except Exception as e:  # whatever it was, nobody may wait for this thread for ever
            if c.in_transaction:
                c.execute("ROLLBACK")
            ours = isinstance(e, WorkError) or type(e) in (sqlite3.OperationalError, sqlite3.DatabaseError, MemoryError)
            if not ours and not alone:
                return False
            _, instead, future = items[0]
            if not ours and instead is not None:
                return self._commit(c, [(functools.partial(instead, error=e), None, future)], alone=True)
            error = WorkError(f"{self.path}: the ledger cannot be written ({one_line(e)}); what it holds is whole")
            error = e if isinstance(e, WorkError) else error
            error.__cause__ = None if error is e else e
            self._broken = self._broken or (error if ours else None)
            for *_, future in items:
                future.set_exception(error)
            return True
        for (*_, future), result in zip(items, results):
            future.set_result(result)
        return True

    def _gather(self, seconds: float) -> list:
        """What waits to be written; waits itself for the first of it."""
        items = []
        try:
            items.append(self._work.get(timeout=seconds))
            while True:
                items.append(self._work.get_nowait())
        except queue.Empty:
            return items


def _tables(c: sqlite3.Connection) -> dict[str, set[str]]:
    """{table: its columns} of a database."""
    names = [name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: {row[0] for row in c.execute("SELECT name FROM pragma_table_info(?)", (name,))} for name in names}
