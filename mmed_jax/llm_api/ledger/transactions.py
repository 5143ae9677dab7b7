"""What happens to requests inside the ledger's transactions: claims, answers, money, and which owners live."""

import math
import os
import socket
import sqlite3
import time
import uuid
from typing import Any, NamedTuple

LEASE_SECONDS = 90.0
FINAL = ("done", "rejected")
VERSION = 1
# In one transaction: a full disk or a kill leaves all of it or nothing.
SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS requests (
  key TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '',
  attempts INTEGER NOT NULL DEFAULT 0, model TEXT NOT NULL, prompt TEXT NOT NULL, retry_of TEXT NOT NULL DEFAULT '',
  owner TEXT NOT NULL DEFAULT '', reserved REAL NOT NULL DEFAULT 0, request_id TEXT NOT NULL DEFAULT '', response TEXT,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER, cost REAL,
  created REAL NOT NULL, sent REAL, finished REAL, served TEXT, finish TEXT, doubted REAL NOT NULL DEFAULT 0);
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
INSERT OR IGNORE INTO totals
  SELECT 1, coalesce(sum(attempts), 0), total(cost), total(reserved), 0 FROM requests;
COMMIT;
"""
# Columns that came later, with their definitions; a ledger of an earlier version gets them.
LATER = {"served": "TEXT", "finish": "TEXT", "doubted": "REAL NOT NULL DEFAULT 0"}
# Owners of this process that live: two ledgers may be open in one process.
_OWNERS_HERE: set[str] = set()


class Totals(NamedTuple):
    """requests: attempts sent. spent: by the endpoint's usage. reserved: upper bound of what is under way.
    uncertain: upper bound of attempts that may have been billed without our knowing what: no answer came (time-outs,
    killed processes), or one without usage."""

    requests: int
    spent: float
    reserved: float
    uncertain: float


def storable(text: str) -> str:
    """`text` as SQLite and UTF-8 can hold it: halves of surrogate pairs become the replacement character."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(value: object) -> int | None:
    """A count that fits into a column, or None."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53:
        return value
    return None


class Answer(NamedTuple):
    """What an endpoint answered: state "done", "rejected" or "failed". cost: None where nobody knows it (no price, no
    usage in the reply), 0 where nothing was billed. served: the model that the endpoint says it was, with its
    fingerprint. finish: why the answer ended, in the endpoint's words."""

    state: str
    reason: str = ""
    detail: str = ""
    response: str | None = None
    request_id: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    served: str | None = None
    finish: str | None = None

    def stored(self) -> "Answer":
        """The same with every value such that it can be written."""
        values: list[Any] = [None if t is None else storable(str(t)) for t in self[:5]]
        values += [_count(n) for n in self[5:8]]
        cost = self.cost
        values.append(float(cost) if isinstance(cost, int | float) and math.isfinite(cost) and cost >= 0 else None)
        values += [None if t is None else storable(str(t)) for t in (self.served, self.finish)]
        return Answer(*values)


class Claims:
    """The rules, for one process; every method runs inside a transaction on the connection it is given.

    Args:
      max_usd, max_requests: no request is claimed beyond these totals of the ledger.
    """

    def __init__(self, max_usd: float | None, max_requests: int | None):
        self.max_usd, self.max_requests = max_usd, max_requests
        # The most that an answer has cost of its bound (reasoning beside the limit of an answer), and by how much the
        # bounds of requests under way were raised for it.
        self._over = 1.0
        self._raised: dict[str, float] = {}
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

    def claim(self, c: sqlite3.Connection, key: str, reserve: float, owner: str) -> str:
        """See Ledger.claim."""
        # Whole multiples of 2^-36 dollars add up and cancel exactly: when nothing is under way, nothing is held.
        reserve = math.ceil(reserve * self._over * 2**36) / 2**36
        state, holder = c.execute("SELECT state, owner FROM requests WHERE key=?", (key,)).fetchone()
        if state in FINAL:
            return "final"
        if state == "sent":
            if holder.startswith("batch:"):
                return "batch"
            if holder == self.owner or self._lives(c, holder):
                return "busy"
            self.release(c, "key = ?", key, uncertain=True)
        if capped := self._capped(c, reserve):
            return capped
        if self._over > 1:
            self._raised[key] = self._over
        sql = "UPDATE requests SET state='sent', owner=?, reserved=?, attempts=attempts+1, sent=? WHERE key=?"
        c.execute(sql, (owner, reserve, time.time(), key))
        c.execute("UPDATE totals SET requests = requests + 1, reserved = reserved + ?", (reserve,))
        return "go"

    def again(self, c: sqlite3.Connection, key: str, uncertain: bool) -> bool:
        """See Ledger.again."""
        reserved = c.execute("SELECT reserved FROM requests WHERE key=?", (key,)).fetchone()[0]
        if uncertain:
            c.execute("UPDATE totals SET uncertain = uncertain + ?", (reserved,))
        if self._capped(c, 0.0) == "cap":
            self.release(c, "key = ?", key)
            return False
        c.execute("UPDATE requests SET attempts = attempts + 1, sent = ? WHERE key = ?", (time.time(), key))
        c.execute("UPDATE totals SET requests = requests + 1")
        return True

    def _capped(self, c: sqlite3.Connection, reserve: float) -> str:
        t = Totals(*c.execute("SELECT requests, spent, reserved, uncertain FROM totals").fetchone())
        if self.max_requests is not None and t.requests + 1 > self.max_requests:
            return "cap"
        if self.max_usd is None or t.spent + t.uncertain + t.reserved + reserve <= self.max_usd:
            return ""
        return "cap" if t.spent + t.uncertain + reserve > self.max_usd else "full"

    def finish(self, c: sqlite3.Connection, key: str, a: Answer) -> None:
        """Stores an answer and what it cost, or where nobody says that, its upper bound as uncertain."""
        a = a.stored()
        sql = "SELECT state, reserved, doubted FROM requests WHERE key=?"
        state, reserved, doubted = c.execute(sql, (key,)).fetchone()
        c.execute("UPDATE totals SET spent = spent + ?", (a.cost or 0.0,))
        if a.cost is None and state == "sent":
            c.execute("UPDATE totals SET uncertain = uncertain + ?", (reserved,))
        if a.cost is not None and doubted:  # it came after all, and is no longer in doubt
            c.execute("UPDATE totals SET uncertain = max(0, uncertain - ?)", (doubted,))
        bound = (reserved or doubted) / self._raised.pop(key, 1.0)
        if a.cost is not None and state == "sent" and 0 < bound < a.cost:
            self._over = max(self._over, a.cost / bound)
        if state in FINAL:  # the same answer came twice (a lease ran out meanwhile): both are paid, the first stays
            return
        if state == "sent":
            c.execute("UPDATE totals SET reserved = max(0, reserved - ?)", (reserved,))
        c.execute(
            "UPDATE requests SET state=?, reason=?, detail=?, response=?, request_id=?, prompt_tokens=?, "
            "cached_tokens=?, completion_tokens=?, cost=?, served=?, finish=?, owner='', reserved=0, doubted=0, "
            "finished=? WHERE key=?",
            (*a, time.time(), key),
        )

    def release(
        self, c: sqlite3.Connection, where: str, *values: object, uncertain: bool = False, unsent: bool = False
    ) -> int:
        """Sent requests `where` are pending again; how many. uncertain: the attempt may have been billed. unsent: it
        never left this machine, so it is none. What was in doubt of one that was not billed is taken back."""
        where = f"state='sent' AND {where}"
        sql = f"SELECT count(*), total(reserved), total(doubted) FROM requests WHERE {where}"
        count, held, doubted = c.execute(sql, values).fetchone()
        sql = f"UPDATE requests SET state='pending', owner='', reserved=0, doubted=0, attempts=attempts-? WHERE {where}"
        c.execute(sql, (int(unsent), *values))
        c.execute(
            "UPDATE totals SET reserved = max(0, reserved - ?), uncertain = max(0, uncertain + ?), "
            "requests = requests - ?",
            (held, held if uncertain else -doubted, count if unsent else 0),
        )
        return count

    def spend(self, c: sqlite3.Connection, cost: float | None) -> None:
        """Books what an attempt cost that brought no answer; nothing for None."""
        sane = cost is not None and math.isfinite(cost) and cost > 0
        c.execute("UPDATE totals SET spent = spent + ?", (cost if sane else 0.0,))

    def doubt(self, c: sqlite3.Connection, owner: str) -> None:
        """What `owner` has sent may have been billed and cannot be read now: its bounds count as uncertain, and the
        requests stay sent. An answer that comes later takes its bound back."""
        where = "state='sent' AND owner=? AND reserved > 0"
        held = c.execute(f"SELECT total(reserved) FROM requests WHERE {where}", (owner,)).fetchone()[0]
        c.execute(f"UPDATE requests SET doubted = doubted + reserved, reserved = 0 WHERE {where}", (owner,))
        sql = "UPDATE totals SET reserved = max(0, reserved - ?), uncertain = uncertain + ?"
        c.execute(sql, (held, held))

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

    def enter(self, c: sqlite3.Connection) -> None:
        """This process begins: what dead ones had claimed is free again."""
        for (owner,) in c.execute("SELECT DISTINCT owner FROM requests WHERE state='sent'").fetchall():
            if not owner.startswith("batch:") and not self._lives(c, owner):
                self.release(c, "owner = ?", owner, uncertain=True)
        c.execute("DELETE FROM owners WHERE lease < ?", (time.time() - 86400,))
        _OWNERS_HERE.add(self.owner)
        self.renew(c)

    def leave(self, c: sqlite3.Connection) -> None:
        """This process ends."""
        self.release(c, "owner = ?", self.owner, uncertain=True)
        c.execute("DELETE FROM owners WHERE owner=?", (self.owner,))
        _OWNERS_HERE.discard(self.owner)

    def renew(self, c: sqlite3.Connection) -> None:
        """Says that this process lives."""
        row = (self.owner, socket.gethostname(), os.getpid(), time.time() + LEASE_SECONDS)
        c.execute("INSERT OR REPLACE INTO owners VALUES (?,?,?,?)", row)
