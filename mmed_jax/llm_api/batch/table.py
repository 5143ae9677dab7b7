"""The ledger's table of batches: which are under way and where, and giving up what was never sent or never came."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.llm_api.ledger.ledger import Ledger

UNSENT = ("open", "ready")  # states of a batch that the endpoint does not know
UNDER_WAY = ("uploaded", "created")


class Batch(NamedTuple):
    """A row of the ledger's table of batches; `tokens` of the prompts, an upper bound."""

    id: int
    state: str
    requests: int
    tokens: int
    file_id: str
    batch_id: str
    endpoint: str

    @property
    def owner(self) -> str:
        """Who holds its requests in the ledger."""
        return f"batch:{self.id}"


def batches_of(ledger: Ledger, *states: str, endpoint: str | None = None) -> list[Batch]:
    """Batches in these states, of one endpoint or of all."""
    sql = f"SELECT {','.join(Batch._fields)} FROM batches WHERE state IN ({','.join('?' * len(states))}) ORDER BY id"
    return [b for b in (Batch(*row) for row in ledger.query(sql, *states)) if endpoint in (None, b.endpoint)]


def folder_of(ledger: Ledger) -> Path:
    """Where the files of a ledger's batches lie."""
    return ledger.path.with_name(ledger.path.name + ".batches")


def file_of(ledger: Ledger, batch: Batch) -> Path:
    """Where the requests of a batch lie."""
    return folder_of(ledger) / f"{batch.id:06d}.jsonl"


@contextlib.contextmanager
def lock_batches(ledger: Ledger) -> Iterator[None]:
    """The batches of a ledger belong to one process at a time. Raises UserError when another has them."""
    folder = folder_of(ledger)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as e:
        raise WorkError(f"{folder}: cannot be written ({e.strerror or e})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{ledger.path}: another process works on the batches of this ledger") from None
        yield


def give_up(ledger: Ledger, batch: Batch, *, uncertain: bool = False) -> int:
    """Makes the requests of a batch pending again; returns how many. uncertain: they may have been billed."""
    count = ledger.release_owner(batch.owner, uncertain=uncertain, unsent=batch.state in UNSENT).result()
    ledger.write(lambda c: c.execute("UPDATE batches SET state='void' WHERE id=?", (batch.id,)) and None).result()
    file_of(ledger, batch).unlink(missing_ok=True)
    return count


def give_up_unsent(ledger: Ledger, *states: str) -> None:
    """Frees what a stopped process left in batches that never were sent, unless another process works on them."""
    if batches_of(ledger, *states):
        with contextlib.suppress(UserError), lock_batches(ledger):
            for batch in batches_of(ledger, *states):
                give_up(ledger, batch)


def under_way(ledger: Ledger) -> str:
    """One line on the batches that hold requests, and what to do; "" when there are none."""
    found = batches_of(ledger, *UNSENT, *UNDER_WAY)
    if not found:
        return ""
    called = [f"{b.id} ({b.batch_id or 'not created yet'}, {b.requests:,} rows)" for b in found[:3]]
    named = [f"batch {name} at {b.endpoint}" for name, b in zip(called, found)]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"some rows are in batches under way: {', '.join(named)}{more}; --batch fetches their answers with the "
        f"--base_url shown, python -m data_gen ledger --ledger={ledger.path} --release gives them up"
    )


def release_all(ledger: Ledger) -> list[str]:
    """Gives up every batch that is not done; returns a line on each. What was uploaded counts as perhaps billed.

    Raises UserError when a process works on the batches.
    """
    said = []
    with lock_batches(ledger):
        for batch in batches_of(ledger, *UNSENT, *UNDER_WAY):
            billed = batch.state in UNDER_WAY
            count = give_up(ledger, batch, uncertain=billed)
            how = "perhaps billed, counted with its upper bound" if billed else "never sent"
            name = f" ({batch.batch_id} at {batch.endpoint})" if batch.batch_id else ""
            said.append(f"batch {batch.id}{name}: {count:,} rows are free again; {how}")
        for (owner,) in ledger.query("SELECT DISTINCT owner FROM requests WHERE state='sent' AND owner LIKE 'batch:%'"):
            count = ledger.release_owner(owner, uncertain=True).result()
            said.append(f"{owner}: {count:,} rows are free again; perhaps billed, counted with its upper bound")
    return said
