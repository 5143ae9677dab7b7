"""What stands in a ledger: rows and requests by state and reason, tokens, money, and whether the books balance.

    python -m data_gen ledger --ledger=data/ledger.sqlite
    python -m data_gen ledger --ledger=data/ledger.sqlite --row=medqa-us-17     one row with its requests and answers
    python -m data_gen ledger --ledger=data/ledger.sqlite --release             gives up batches under way

Input = accepted + rejected by reason + failed by reason + pending, for every run and method.
"""

import sqlite3
from pathlib import Path

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, run_command
from mmed_jax.llm_api.batch.table import release_all
from mmed_jax.llm_api.ledger.balance import Books, books
from mmed_jax.llm_api.ledger.ledger import Ledger

SUMMARY = "what was asked, answered, rejected and paid"
_STATES = ("accepted", "done", "rejected", "failed", "sent", "pending")


def main(argv: list[str] | None = None) -> None:
    """The command. Raises UserError for a file that is no ledger, WorkError when the books do not balance."""
    parser = Parser(prog="python -m data_gen ledger", description=__doc__, names_itself=True)
    parser.add_argument("--ledger", metavar="FILE", default="data/ledger.sqlite", help="the SQLite file (%(default)s)")
    parser.add_argument("--row", metavar="ID", help="show one row: its requests, answers and verdicts")
    parser.add_argument("--release", action="store_true", help="give up all batches under way")
    args = parser.parse_args(argv)
    path = Path(args.ledger)
    path = path / "ledger.sqlite" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--ledger={path}: there is no such file")
    try:
        with Ledger(path) as ledger:
            if args.row:
                print(row_text(ledger, args.row))
                return
            if args.release:
                print("\n".join(release_all(ledger)) or "no batch is under way")
            accounts = books(ledger)
    except sqlite3.Error as e:
        raise UserError(f"--ledger={path}: cannot be read as a ledger ({e})") from None
    print(text(accounts))
    if accounts.problems:
        raise WorkError(f"{path}: the books do not balance: {'; '.join(accounts.problems)}")


def text(accounts: Books) -> str:
    """The tables."""
    lines = []
    for title, counts in (("rows", accounts.rows), ("requests", accounts.requests)):
        for group in sorted({g for g, _, _ in counts}):
            of_group = {(s, r): n for (g, s, r), n in counts.items() if g == group}
            lines.append((f"{title}: {group}", f"{sum(of_group.values()):>12,}"))
            for state in _STATES:
                reasons = {r: n for (s, r), n in of_group.items() if s == state}
                if reasons:
                    lines.append((f"  {state}", f"{sum(reasons.values()):>12,}"))
                lines += [(f"    {r}", f"{n:>12,}") for r, n in sorted(reasons.items(), key=lambda x: -x[1]) if r]
    for model, (prompt, cached, completion) in sorted(accounts.tokens.items()):
        lines.append((f"tokens: {model}", f"{prompt:>12,} in ({cached:,} cached), {completion:,} out"))
    totals = accounts.totals
    lines.append(("attempts sent", f"{totals.requests:>12,}"))
    lines.append(("cost by the endpoint's usage", f"{'$' + format(totals.spent, ',.4f'):>12}"))
    lines.append(("under way, at most", f"{'$' + format(totals.reserved, ',.4f'):>12}"))
    lines.append(("attempts of unknown cost, at most", f"{'$' + format(totals.uncertain, ',.4f'):>12}"))
    lines.append(("books", "     balance" if not accounts.problems else "  DO NOT BALANCE"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def row_text(ledger: Ledger, row_id: str) -> str:
    """Everything about one row. Raises UserError when there is none."""
    jobs = ledger.query("SELECT run, method, key, state, reason, detail FROM jobs WHERE row_id = ?", row_id)
    if not jobs:
        raise UserError(f"{ledger.path}: no row '{row_id}'")
    lines = []
    for run, method, key, state, reason, detail in jobs:
        lines.append(f"{row_id}  {method} ({run}): {state} {reason} {detail}".rstrip())
        while key:
            row = ledger.query(
                "SELECT state, reason, detail, attempts, model, prompt, request_id, prompt_tokens, completion_tokens, "
                "cost, response, retry_of FROM requests WHERE key = ?",
                key,
            )
            if not row:
                break
            r = row[0]
            lines.append(f"  {key}  {r[4]} {r[5]}: {r[0]} {r[1]} {r[2]}".rstrip())
            cost = "" if r[9] is None else f", ${r[9]:.6f}"
            lines.append(f"    attempts {r[3]}, request {r[6] or '-'}, {r[7]} tokens in, {r[8]} out{cost}")
            lines.append(f"    {r[10]}")
            key = r[11]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
