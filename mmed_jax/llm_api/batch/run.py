"""Outcomes by the Batch API: passes over the jobs, each sending what the answers so far leave to be asked."""

import os
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from mmed_jax.common.errors import WorkError
from mmed_jax.common.progress import counting_bar
from mmed_jax.common.row_buffer import RowBuffer, remove_left
from mmed_jax.llm_api.batch.batches import Batches
from mmed_jax.llm_api.batch.table import under_way
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.outcomes import Judge, Slot, chunks
from mmed_jax.llm_api.rate_limits import backoff
from mmed_jax.llm_api.run_settings import RunSettings
from mmed_jax.llm_api.sender import say
from mmed_jax.llm_api.types import Job, Outcome, Request

_MOST_PASSES = 20  # answers, redraws, expired batches; a set that needs more does not converge


def outcomes_by_batch(
    jobs: Iterable[Job], settings: RunSettings, judge: Judge, ledger: Ledger
) -> Generator[Outcome, None, None]:
    """Yields the outcome of every job, in order, once all batches are through. Raises as mmed_jax.llm_api.runner.run.

    The jobs wait on disk, beside the ledger, so that memory does not grow with their number.
    """
    remove_left(ledger.path.parent, ".jobs-*-*", r"^\.jobs-(\d+)-")
    with tempfile.TemporaryDirectory(prefix=f".jobs-{os.getpid()}-", dir=ledger.path.parent) as folder:
        buffer = RowBuffer(Path(folder) / "jobs.jsonl")
        try:
            with Batches(ledger, settings, settings.known_price) as batches:
                _round(batches, settings)  # those of an earlier process first: their answers are paid for
                for number in range(_MOST_PASSES):
                    source = _buffered(jobs, buffer) if number == 0 else _jobs(buffer)
                    sent = batches.build(_missing(source, judge, enter=number == 0))
                    judge.again = False
                    failed = batches.failed
                    _round(batches, settings)
                    if sent == 0:
                        break
                    if batches.failed > failed:  # what ails the endpoint may take a while
                        time.sleep(backoff(number + 1, settings.poll_s))
                else:
                    raise WorkError(f"requests are still without an answer after {_MOST_PASSES} rounds of batches")
                if batches.elsewhere:
                    print(under_way(ledger), file=sys.stderr)
            for chunk in chunks(_jobs(buffer)):
                slots = judge.slots(chunk, again=True)
                judge.advance(slots, capped=True)
                yield from (slot.settled for slot in slots)
        finally:
            buffer.close()


def _missing(jobs: Iterable[Job], judge: Judge, *, enter: bool) -> Iterator[Request]:
    """The requests that the jobs need next, each once."""
    seen: set[str] = set()
    for chunk in chunks(jobs):
        slots = judge.slots(chunk) if enter else [Slot(job) for job in chunk]
        judge.forget()
        for slot in judge.advance(slots):
            if slot.job.request.key not in seen:
                seen.add(slot.job.request.key)
                yield slot.job.request


def _round(batches: Batches, settings: RunSettings) -> None:
    """Takes the batches under way to their end, and says when they brought no answer: the same is sent again then.

    Raises WorkError when there is no reason to believe that another round would bring more.
    """
    before = batches.answered, batches.worked, batches.cut
    sent = sum(batch.requests for batch in batches.all("ready", "uploaded", "created"))
    _wait(batches, settings)
    if not sent or batches.answered > before[0] or batches.cut > before[2]:
        return
    said = f"not one of the {sent:,} requests of a round of batches was answered ({batches.last})"
    if batches.worked == before[1]:
        raise WorkError(f"{said}; nothing more is sent; the same command asks for them anew")
    say(f"{said}; they are asked again")


def _wait(batches: Batches, settings: RunSettings) -> None:
    """Takes the batches under way to their end; Ctrl-C leaves them to the endpoint, the same command finds them."""
    if not batches.all("ready", "uploaded", "created"):
        return
    bar = counting_bar("", 0, unit="", show=settings.progress, in_logs=True, leave=True, bar_format="{desc}")
    with bar:
        while said := batches.step() or batches.all("ready", "uploaded", "created"):
            bar.set_description_str("; ".join(s for s in said[:3] if isinstance(s, str)))
            time.sleep(settings.poll_s)


def _buffered(jobs: Iterable[Job], buffer: RowBuffer) -> Iterator[Job]:
    for job in jobs:
        buffer.add(asdict(job))
        yield job


def _jobs(buffer: RowBuffer) -> Iterator[Job]:
    for row in buffer:
        request = row.pop("request")
        yield Job(**row, request=Request(**{**request, "messages": tuple(request["messages"])}))
