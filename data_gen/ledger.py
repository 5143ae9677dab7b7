"""The ledger: every request with its answer and price, every row with its verdict, in one SQLite file (WAL).

A request is known by its key (data_gen.types.Request.key) and goes pending -> sent -> done | rejected | failed.
Verdicts of gates are not states of requests: they belong to jobs and are found anew from the stored answers.

All writing is done by one thread, which commits what has gathered while the commit before was on its way to the disk
(synchronous=FULL): an answer counts once it is on the disk, and hundreds a second still fit. Several processes may
share a ledger; a request that one has claimed is not sent by another while its owner lives.
"""

import os
import queue
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from data_gen.types import Request
from mmed_jax.errors import UserError, WorkError

LEASE_SECONDS = 90.0
FINAL = ("done", "rejected")
_CHUNK = 500  # keys in one SELECT
_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  key TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '',
  attempts INTEGER NOT NULL DEFAULT 0, model TEXT NOT NULL, prompt TEXT NOT NULL, retry_of TEXT NOT NULL DEFAULT '',
  owner TEXT NOT NULL DEFAULT '', reserved REAL NOT NULL DEFAULT 0, request_id TEXT NOT NULL DEFAULT '', response TEXT,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER, cost REAL,
  created REAL NOT NULL, sent REAL, finished REAL);
CREATE INDEX IF NOT EXISTS requests_sent ON requests(owner) WHERE state = 'sent';
CREATE TABLE IF NOT EXISTS jobs (
  run TEXT NOT NULL, method TEXT NOT NULL, row_id TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL,
  reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', PRIMARY KEY (run, method, row_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (
  owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, lease REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
  id INTEGER PRIMARY KEY, state TEXT NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
  endpoint TEXT NOT NULL, file_id TEXT NOT NULL DEFAULT '', batch_id TEXT NOT NULL DEFAULT '',
  detail TEXT NOT NULL DEFAULT '', created REAL);
CREATE TABLE IF NOT EXISTS totals (
  id INTEGER PRIMARY KEY CHECK (id = 1), requests INTEGER NOT NULL, spent REAL NOT NULL, reserved REAL NOT NULL,
  uncertain REAL NOT NULL);
INSERT OR IGNORE INTO totals VALUES (1, 0, 0, 0, 0);
"""


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


class Totals(NamedTuple):
    """requests: attempts sent. spent: by the endpoint's usage. reserved: upper bound of what is under way.
    uncertain: upper bound of attempts without an answer (time-outs, killed processes) that may have been billed."""

    requests: int
    spent: float
    reserved: float
    uncertain: float


class Answer(NamedTuple):
    """What an endpoint answered: state "done", "rejected" or "failed"; cost None where no price is known."""

    state: str
    reason: str = ""
    detail: str = ""
    response: str | None = None
    request_id: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None


class Ledger:
    """A ledger file, made when it is not there; a context manager.

    Args:
      path: the SQLite file. max_usd, max_requests: no request is claimed beyond these totals of the ledger.

    Raises UserError for a file that is not a ledger or cannot be written.
    """

    def __init__(self, path: str | os.PathLike, *, max_usd: float | None = None, max_requests: int | None = None):
        self.path, self.max_usd, self.max_requests = Path(path), max_usd, max_requests
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._broken: WorkError | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._reading, self._writing = self._connect(), self._connect()
            self._writing.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as e:
            raise UserError(f"--ledger={self.path}: cannot be used as a ledger ({e})") from None
        self._thread = threading.Thread(target=self._write_loop, name="ledger", daemon=True)
        self._thread.start()
        self.write(self._enter).result()

    def _connect(self) -> sqlite3.Connection:
        # One thread at a time uses each connection; the check of sqlite3 would forbid handing it over.
        c = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        if c.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise sqlite3.OperationalError("this file system has no shared memory for SQLite's WAL; use a local disk")
        c.execute("PRAGMA synchronous=FULL")
        c.execute("PRAGMA cache_size=-32768")
        return c

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what this process had claimed, waits for the last commit."""
        if self._thread.is_alive():
            if not self._broken:
                self.write(self._leave)
            self._work.put(None)
            self._thread.join()
        self._reading.close()

    # Reading, in the caller's thread.

    def rows(self, keys: Iterable[str]) -> dict[str, Row]:
        """The rows of those keys that the ledger has."""
        keys, found = list(keys), {}
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            sql = f"SELECT {','.join(Row._fields)} FROM requests WHERE key IN ({marks})"
            found.update((r[0], Row(*r)) for r in self._reading.execute(sql, chunk))
        return found

    def verdicts(self, run: str, method: str, row_ids: list[str]) -> dict[str, tuple[str, str, str]]:
        """{row_id: (key, state, reason)} of the jobs that are there."""
        found = {}
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

    def write(self, operation: Callable[[sqlite3.Connection], Any]) -> Future:
        """Has `operation` run inside the next transaction."""
        future: Future = Future()
        if self._broken:
            future.set_exception(self._broken)
        else:
            self._work.put((operation, future))
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
        return self.write(lambda c: c.executemany("INSERT OR REPLACE INTO jobs VALUES (?,?,?,?,?,?,?)", rows) and None)

    def claim(self, key: str, reserve: float) -> Future:
        """Claims a request for sending: "go", "final" (answered), "busy" (another's), "cap" (a limit is reached) or
        "full" (a limit would be reached if all that is under way cost as much as it can).

        reserve: upper bound of its price in dollars, held until it is finished.
        """
        return self.write(lambda c: self._claim(c, key, reserve))

    def again(self, key: str, *, uncertain: bool) -> Future:
        """Another attempt at a claimed request: True, or False where a limit forbids it (it is pending then).

        uncertain: the attempt before may have been billed.
        """

        def operation(c: sqlite3.Connection) -> bool:
            reserved = c.execute("SELECT reserved FROM requests WHERE key=?", (key,)).fetchone()[0]
            if uncertain:
                c.execute("UPDATE totals SET uncertain = uncertain + ?", (reserved,))
            if self._capped(c, 0.0) == "cap":
                self._release(c, "key = ?", key)
                return False
            c.execute("UPDATE requests SET attempts = attempts + 1, sent = ? WHERE key = ?", (time.time(), key))
            c.execute("UPDATE totals SET requests = requests + 1")
            return True

        return self.write(operation)

    def finish(self, key: str, answer: Answer) -> Future:
        """Stores an answer (or a failure) and what it cost."""
        return self.write(lambda c: self._finish(c, key, answer))

    def fail(self, key: str, detail: str, *, uncertain: bool) -> Future:
        """Gives a request up for this time; `uncertain` as in again()."""

        def operation(c: sqlite3.Connection) -> None:
            self._release(c, "key = ?", key, uncertain=uncertain)
            self._finish(c, key, Answer("failed", "api_error", detail))

        return self.write(operation)

    def release(self, key: str, *, uncertain: bool) -> Future:
        """Makes a claimed request pending again; `uncertain` as in again()."""
        return self.write(lambda c: self._release(c, "key = ?", key, uncertain=uncertain))

    # Inside transactions.

    def _claim(self, c: sqlite3.Connection, key: str, reserve: float) -> str:
        state, owner = c.execute("SELECT state, owner FROM requests WHERE key=?", (key,)).fetchone()
        if state in FINAL:
            return "final"
        if state == "sent":
            if owner == self.owner or owner.startswith("batch:") or self._lives(c, owner):
                return "busy"
            self._release(c, "key = ?", key, uncertain=True)
        if capped := self._capped(c, reserve):
            return capped
        self.mark_sent(c, key, reserve, self.owner)
        return "go"

    def mark_sent(self, c: sqlite3.Connection, key: str, reserve: float, owner: str) -> None:
        """Inside a transaction: a pending request is under way, and counted."""
        sql = "UPDATE requests SET state='sent', owner=?, reserved=?, attempts=attempts+1, sent=? WHERE key=?"
        c.execute(sql, (owner, reserve, time.time(), key))
        c.execute("UPDATE totals SET requests = requests + 1, reserved = reserved + ?", (reserve,))

    def _capped(self, c: sqlite3.Connection, reserve: float) -> str:
        t = Totals(*c.execute("SELECT requests, spent, reserved, uncertain FROM totals").fetchone())
        if self.max_requests is not None and t.requests + 1 > self.max_requests:
            return "cap"
        if self.max_usd is None or t.spent + t.uncertain + t.reserved + reserve <= self.max_usd:
            return ""
        return "cap" if t.spent + t.uncertain + reserve > self.max_usd else "full"

    def _finish(self, c: sqlite3.Connection, key: str, a: Answer) -> None:
        state, reserved = c.execute("SELECT state, reserved FROM requests WHERE key=?", (key,)).fetchone()
        c.execute("UPDATE totals SET spent = spent + ?", (a.cost or 0.0,))
        if state in FINAL:  # the same answer came twice (a lease ran out meanwhile): both are paid, the first stays
            return
        if state == "sent":
            c.execute("UPDATE totals SET reserved = max(0, reserved - ?)", (reserved,))
        c.execute(
            "UPDATE requests SET state=?, reason=?, detail=?, response=?, request_id=?, prompt_tokens=?, "
            "cached_tokens=?, completion_tokens=?, cost=?, owner='', reserved=0, finished=? WHERE key=?",
            (*a, time.time(), key),
        )

    def _release(self, c: sqlite3.Connection, where: str, *values: object, uncertain: bool = False) -> None:
        held = c.execute(f"SELECT total(reserved) FROM requests WHERE state='sent' AND {where}", values).fetchone()[0]
        c.execute(f"UPDATE requests SET state='pending', owner='', reserved=0 WHERE state='sent' AND {where}", values)
        c.execute(
            "UPDATE totals SET reserved = max(0, reserved - ?), uncertain = uncertain + ?",
            (held, held if uncertain else 0.0),
        )

    def _lives(self, c: sqlite3.Connection, owner: str) -> bool:
        row = c.execute("SELECT host, pid, lease FROM owners WHERE owner=?", (owner,)).fetchone()
        if row is None or row[2] < time.time():
            return False
        host, pid, _ = row
        if host != socket.gethostname():
            return True
        if pid == os.getpid():
            return owner == self.owner or owner in _OWNERS_HERE
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def _enter(self, c: sqlite3.Connection) -> None:
        for (owner,) in c.execute("SELECT DISTINCT owner FROM requests WHERE state='sent'").fetchall():
            if not owner.startswith("batch:") and not self._lives(c, owner):
                self._release(c, "owner = ?", owner, uncertain=True)
        c.execute("DELETE FROM owners WHERE lease < ?", (time.time() - 86400,))
        _OWNERS_HERE.add(self.owner)
        self._renew(c)

    def _leave(self, c: sqlite3.Connection) -> None:
        self._release(c, "owner = ?", self.owner, uncertain=True)
        c.execute("DELETE FROM owners WHERE owner=?", (self.owner,))
        _OWNERS_HERE.discard(self.owner)

    def _renew(self, c: sqlite3.Connection) -> None:
        row = (self.owner, socket.gethostname(), os.getpid(), time.time() + LEASE_SECONDS)
        c.execute("INSERT OR REPLACE INTO owners VALUES (?,?,?,?)", row)

    def _write_loop(self) -> None:
        c, renewed, closing = self._writing, time.monotonic(), False
        while not closing:
            items = self._gather(LEASE_SECONDS / 3)
            closing = None in items
            items = [i for i in items if i is not None]
            if time.monotonic() - renewed > LEASE_SECONDS / 3:
                items.append((self._renew, Future()))
                renewed = time.monotonic()
            if not items:
                continue
            try:
                c.execute("BEGIN IMMEDIATE")
                results = [operation(c) for operation, _ in items]
                c.execute("COMMIT")
            except Exception as e:  # whatever it was, nobody may wait for this thread for ever
                if c.in_transaction:
                    c.execute("ROLLBACK")
                self._broken = WorkError(f"{self.path}: the ledger cannot be written ({e}); what it holds is whole")
                self._broken.__cause__ = e
                for _, future in items:
                    future.set_exception(self._broken)
                continue
            for (_, future), result in zip(items, results):
                future.set_result(result)
        c.close()

    def _gather(self, seconds: float) -> list:
        """What waits to be written; waits itself for the first of it."""
        items = []
        try:
            items.append(self._work.get(timeout=seconds))
            while True:
                items.append(self._work.get_nowait())
        except queue.Empty:
            return items


# Owners of this process that live: two ledgers may be open in one process.
_OWNERS_HERE: set[str] = set()
