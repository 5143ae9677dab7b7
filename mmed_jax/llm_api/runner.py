"""Runs a method over its inputs: asks for what the ledger lacks, judges every answer, yields outcomes in input order.

Bounded memory: at most `settings.window` jobs are held, whatever the number of inputs. A rerun finds its answers in the
ledger and judges them anew, for nothing; what is missing is asked for. A generator that is closed early (Ctrl-C) waits
for the answers under way, which are paid for.
"""

import queue
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice

from tqdm import tqdm

from mmed_jax.common.errors import WorkError
from mmed_jax.common.progress import counting_bar, say_above_bars
from mmed_jax.llm_api.batch.table import UNSENT, give_up_unsent, under_way
from mmed_jax.llm_api.ledger.balance import check_run, strange_endings
from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.outcomes import Judge, Slot
from mmed_jax.llm_api.run_settings import RunSettings, add_run_flags, settings_from
from mmed_jax.llm_api.sender import Sender
from mmed_jax.llm_api.types import Gate, Method, Outcome

__all__ = ["RunSettings", "add_run_flags", "run", "settings_from"]

_CHUNK = 256  # jobs that are looked up in the ledger together


def run(
    method: Method, inputs: Iterable[dict], settings: RunSettings, gates: Iterable[Gate] = ()
) -> Generator[Outcome, None, None]:
    """Yields the outcome of every job of `inputs`, in their order.

    An outcome is pending when --max_usd or --max_requests forbids its request. With settings.dry_run the estimate is
    printed and the process ends.

    Raises:
      UserError: the endpoint cannot be used until the user acts (key, credit, model, address). What was answered
        before is in the ledger.
      WorkError: the endpoint is down, the ledger cannot be written, or the books do not balance.
    """
    if settings.dry_run:
        from mmed_jax.llm_api.cost_estimate import estimate

        print(estimate(method, inputs, settings, gates))
        raise SystemExit(0)
    with Ledger(settings.ledger_file, max_usd=settings.max_usd, max_requests=settings.max_requests) as ledger:
        judge = Judge(method, list(gates), settings, ledger)
        notes: list[Callable[[str], None]] = []  # takes what a run waits for
        if settings.batch:
            from mmed_jax.llm_api.batch.run import outcomes_by_batch

            outcomes = outcomes_by_batch(method.jobs(inputs, settings), settings, judge, ledger)
        else:
            give_up_unsent(ledger, *UNSENT)
            outcomes = _online(method.jobs(inputs, settings), settings, judge, ledger, notes)
        counts: Counter[str] = Counter()
        total = settings.total if settings.total is not None else getattr(inputs, "__len__", lambda: None)()
        try:
            with counting_bar(
                method.name, total, unit=" rows", show=settings.progress, in_logs=True, leave=True
            ) as bar:
                notes.append(lambda text: _note(bar, text))
                for outcome in outcomes:
                    judge.record(outcome)
                    counts[outcome.state] += 1
                    bar.update()
                    if bar.n % 64 == 0:
                        bar.set_postfix_str(_money(ledger, counts), refresh=False)
                    yield outcome
                bar.set_postfix_str(_money(ledger, counts), refresh=False)
        finally:
            outcomes.close()
            judge.flush()
        if sum(counts.values()) != judge.jobs:
            raise WorkError(f"{method.name}: {judge.jobs} jobs, but {sum(counts.values())} outcomes")
        check_run(ledger, settings.label, method.name)
        if said := strange_endings(ledger, settings.label, method.name):
            say_above_bars(f"warning: {said}")


def _online(
    jobs: Iterator, settings: RunSettings, judge: Judge, ledger: Ledger, notes: list[Callable[[str], None]]
) -> Generator[Outcome, None, None]:
    window: deque[Slot] = deque()
    waiting: dict[str, list[Slot]] = {}
    sender: Sender | None = None
    exhausted = False
    try:
        while True:
            while len(window) < settings.window and not exhausted:
                chunk = judge.slots(islice(jobs, min(_CHUNK, settings.window - len(window))))
                exhausted = not chunk
                window.extend(chunk)
                missing = judge.advance(chunk)
                if missing and sender is None:
                    sender = Sender(ledger, settings, settings.known_price)
                if sender is not None:
                    _send(missing, waiting, sender)
                if window and window[0].outcome and chunk:
                    break
            while window and window[0].outcome:
                yield window.popleft().settled
            if not window and exhausted:
                return
            if not waiting or sender is None:
                continue
            if not (settled := _settled(sender)):
                for note in notes:
                    note(sender.waits_for())
                continue
            answered = [slot for key in settled for slot in waiting.pop(key, ())]
            for slot in answered:
                slot.asked = True
            _send(judge.advance(answered, capped=sender.capped), waiting, sender)
    finally:
        if sender is not None:
            if sender.in_batch:
                print(under_way(ledger), file=sys.stderr)
            sender.close(lambda text: print(text, file=sys.stderr, flush=True), min(30.0, settings.timeout_s))


def _send(missing: list[Slot], waiting: dict[str, list[Slot]], sender: Sender) -> None:
    for slot in missing:
        same = waiting.setdefault(slot.job.request.key, [])
        same.append(slot)
        if len(same) == 1:
            sender.submit(slot.job.request)


def _settled(sender: Sender) -> list[str]:
    """Keys of what was settled since the last look; waits for the first."""
    found = []
    try:
        found.append(sender.events.get(timeout=1.0))
        while True:
            found.append(sender.events.get_nowait())
    except queue.Empty:
        pass
    keys = []
    for event in found:
        if isinstance(event, Exception):
            raise event
        keys.append(event)
    return keys


def _note(bar: tqdm, text: str) -> None:
    """Says on the bar what is waited for, as often as the bar is drawn."""
    if text and not bar.disable:
        bar.set_postfix_str(f"waits for {text}", refresh=time.time() - bar.last_print_t >= bar.mininterval)


def _money(ledger: Ledger, counts: Counter) -> str:
    rows = sum(counts.values())
    return f"${ledger.totals().spent:.4f}, {counts['rejected'] / max(1, rows):.1%} rejected"
