"""What a run leaves undone, in words: which limit keeps rows pending, what failed, and how to go on."""

from collections import Counter

from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.run_settings import RunSettings


def limit_text(settings: RunSettings) -> str:
    """Which limit keeps rows pending, and what the ledger has sent or spent; "" where none does."""
    if settings.max_requests is None and settings.max_usd is None:
        return ""
    with Ledger(settings.ledger_file) as ledger:
        totals = ledger.totals()
    if settings.max_requests is not None and totals.requests >= settings.max_requests:
        sent = f"the ledger has sent {totals.requests:,}"
        return f"limit --max_requests={settings.max_requests} is reached ({sent}): raise it"
    if settings.max_usd is None:
        return ""
    unknown = f", and up to ${totals.uncertain:.4f} for attempts of unknown cost" if totals.uncertain else ""
    spent = f"the ledger has spent ${totals.spent:.4f}{unknown}; another request may pass it"
    return f"limit --max_usd={settings.max_usd:g} is reached ({spent}): raise it"


def unfinished_text(pending: int, failed: int, limit: str = "") -> str:
    """What a run leaves undone, and how to go on. limit: what keeps rows pending, as `limit_text` says it."""
    parts = []
    if pending:
        why = f"; {limit}, and" if limit else ";"
        parts.append(f"{pending:,} rows pending{why} the same command goes on where this one stopped")
    if failed:
        parts.append(
            f"{failed:,} rows failed (see the rejects); the same command asks again for those that the endpoint could "
            "not answer, with --retry_failed also for those that it refused as malformed"
        )
    return "; ".join(parts)


def all_rejected_text(counts: Counter[tuple[str, str]]) -> str:
    """That every row was rejected, from counts by (state, reason); "" where one was not, or none came."""
    if not counts or any(n for (state, _), n in counts.items() if state != "rejected"):
        return ""
    reasons = ", ".join(f"{reason} {n:,}" for (_, reason), n in counts.most_common())
    return f"all {counts.total():,} rows were rejected ({reasons})"
