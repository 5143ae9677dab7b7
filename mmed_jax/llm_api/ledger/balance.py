"""The books of a ledger: what balances, and what is to be said when it does not."""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mmed_jax.common.errors import WorkError
from mmed_jax.llm_api.finish_reasons import kind_of_ending
from mmed_jax.llm_api.ledger.ledger import Ledger, Totals

_ORPHANS = """
SELECT count(*), min(row_id) FROM jobs LEFT JOIN requests USING (key) WHERE {where} AND CASE jobs.state
  WHEN 'accepted' THEN requests.state IS NOT 'done'
  WHEN 'rejected' THEN coalesce(requests.state, '') NOT IN ('done', 'rejected')
  WHEN 'failed' THEN requests.state IS NULL
  WHEN 'pending' THEN 0 ELSE 1 END
"""


class Books(NamedTuple):
    """rows, requests: counts by (group, state, reason), groups are "run method" and model. tokens: prompt, cached,
    completion by model. problems: what does not add up."""

    rows: Counter
    requests: Counter
    totals: Totals
    tokens: dict[str, tuple[int, int, int]]
    problems: list[str]


def check_run(ledger: Ledger, run: str, method: str) -> None:
    """Every judged row of a run rests on a request of the right state. Raises WorkError."""
    count, first = ledger.query(_ORPHANS.format(where="run = ? AND method = ?"), run, method)[0]
    if count:
        raise WorkError(f"{ledger.path}: {count} rows of {method} rest on no answer ({first}); the ledger is damaged")


def strange_endings(ledger: Ledger, run: str, method: str) -> str:
    """In words, which answers of a run ended for a reason that nobody knows, and how many; "" when none did."""
    sql = (
        "SELECT finish, count(*) FROM jobs JOIN requests USING (key) WHERE run = ? AND method = ? "
        "AND finish IS NOT NULL AND requests.state = 'done' GROUP BY finish ORDER BY 2 DESC"
    )
    found = {said: n for said, n in ledger.query(sql, run, method) if kind_of_ending(said) == "unknown"}
    if not found:
        return ""
    shown = ", ".join(f"'{said}' {n:,}" for said, n in list(found.items())[:5])
    return f"{sum(found.values()):,} answers ended for a reason that is not known ({shown}); they may not be whole"


def books(ledger: Ledger) -> Books:
    """Counts and money of a whole ledger, with whatever does not balance."""
    rows = Counter(
        {
            (f"{run} {method}", state, reason): n
            for run, method, state, reason, n in ledger.query(
                "SELECT run, method, state, reason, count(*) FROM jobs GROUP BY run, method, state, reason"
            )
        }
    )
    found = ledger.query(
        "SELECT model, state, reason, count(*), sum(attempts), total(cost), total(reserved), "
        "coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), coalesce(sum(completion_tokens), 0) "
        "FROM requests GROUP BY model, state, reason"
    )
    requests = Counter({(model, state, reason): n for model, state, reason, n, *_ in found})
    tokens: dict[str, tuple[int, int, int]] = {}
    for model, *_, prompt, cached, completion in found:
        before = tokens.get(model, (0, 0, 0))
        tokens[model] = (before[0] + prompt, before[1] + cached, before[2] + completion)
    totals = ledger.totals()
    problems = []
    count, first = ledger.query(_ORPHANS.format(where="1"))[0]
    if count:
        problems.append(f"{count} rows rest on no answer, the first is {first}")
    attempts = sum(r[4] for r in found)
    if attempts != totals.requests:
        problems.append(f"{attempts} attempts in the requests, {totals.requests} in the totals")
    cost, reserved = sum(r[5] for r in found), sum(r[6] for r in found)
    if cost > totals.spent + 1e-6 or abs(reserved - totals.reserved) > 1e-6:
        problems.append(
            f"${cost:.6f} paid and ${reserved:.6f} reserved in the requests, ${totals.spent:.6f} and "
            f"${totals.reserved:.6f} in the totals"
        )
    if ledger.query("PRAGMA quick_check")[0][0] != "ok":
        problems.append("SQLite finds the file damaged")
    return Books(rows, requests, totals, tokens, problems)


def cost_behind(file: Path, keys: Iterable[str]) -> dict[str, float]:
    """{"requests", "usd", "unpriced"} of the answers to requests, and of earlier ones that they were asked instead of.

    Reads a ledger without opening it for writing. Raises WorkError where it cannot be read.
    """
    requests = unpriced = 0
    usd = 0.0
    seen: set[str] = set()
    left = sorted(keys)
    if not left or not file.is_file():
        return {"requests": 0, "usd": 0.0, "unpriced": 0}
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    try:
        while left:
            seen.update(left)
            earlier = set()
            for start in range(0, len(left), 500):
                part = left[start : start + 500]
                sql = f"SELECT retry_of, cost, state FROM requests WHERE key IN ({','.join('?' * len(part))})"
                for before, cost, state in connection.execute(sql, part):
                    requests += state in ("done", "rejected")
                    usd += cost or 0.0
                    unpriced += state == "done" and cost is None
                    earlier |= {before} - {""}
            left = sorted(earlier - seen)
    except sqlite3.Error as e:
        raise WorkError(f"--ledger={file}: cannot be read ({e})") from e
    finally:
        connection.close()
    return {"requests": requests, "usd": round(usd, 6), "unpriced": unpriced}
