"""What a run would cost, before anything is sent: rows, tokens, and dollars at most and by experience.

The upper bound assumes that every answer fills its room, is unusable and is asked for again, with twice the room, as
often as the method does that; attempts that fail on the way are not in it. "By experience" takes the prompts' and
answers' mean length from the answers of the same prompt version and model in the ledger.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

from mmed_jax.llm_api.ledger.ledger import Ledger
from mmed_jax.llm_api.outcomes import MOST_ATTEMPTS, Judge, Slot, chunks
from mmed_jax.llm_api.run_settings import RunSettings
from mmed_jax.llm_api.token_counts import answer_limit, counter_for, prompt_tokens
from mmed_jax.llm_api.types import REASONS, Gate, Job, Method


@dataclass
class Estimate:
    """Rows and tokens of a run; `str()` is the table.

    Attributes:
      rows: jobs. answered: of them, in the ledger already. requests: different ones still to be sent.
      prompt: tokens of their prompts, an upper bound unless `exact`. answers: their room for answers; None: unbounded.
      usual_prompt, usual_answer: tokens by experience, None where the ledger has no answers of a prompt version.
      all_requests, all_prompt, all_answers: the same with every redraw that the method may ask for.
      redraws: further requests by experience, in requests a request.
    """

    settings: RunSettings
    counted_by: str = ""
    exact: bool = False
    rows: int = 0
    answered: int = 0
    requests: int = 0
    prompt: int = 0
    answers: int | None = 0
    all_requests: int = 0
    all_prompt: int = 0
    all_answers: int | None = 0
    usual_prompt: float | None = None
    usual_answer: float | None = None
    redraws: float = 0.0
    seen: int = 0
    versions: Counter = field(default_factory=Counter)

    @property
    def at_most(self) -> float | None:
        """Dollars if every answer fills its room and is asked for again as often as can be; None without a price or a
        limit."""
        price = self.settings.known_price
        if price is None or self.all_answers is None:
            return None
        return price.cost(self.all_prompt, self.all_answers, batch=self.settings.batch)

    @property
    def expected(self) -> float | None:
        """Dollars by experience; None without it."""
        price = self.settings.known_price
        if price is None or self.usual_prompt is None or self.usual_answer is None:
            return None
        once = price.cost(self.usual_prompt, self.usual_answer, batch=self.settings.batch)
        return once * (1 + self.redraws)

    def __str__(self) -> str:
        bound = "" if self.exact else "at most "
        room = "no limit set" if self.answers is None else f"at most {self.answers:,}"
        lines = [
            ("rows", f"{self.rows:,}"),
            ("  answered in the ledger", f"{self.answered:,}"),
            ("requests to send", f"{self.requests:,}, with every redraw {self.all_requests:,}"),
            ("prompt tokens", f"{bound}{self.prompt:,} (by {self.counted_by})"),
            ("answer tokens", room),
        ]
        price = self.settings.known_price
        if price is None:
            lines.append(("cost", f"unknown: no price for '{self.settings.model}' (--price=IN,OUT)"))
        else:
            batch = " by batches" if self.settings.batch else ""
            most = "unknown: the answers have no limit" if self.at_most is None else f"${self.at_most:,.2f}{batch}"
            lines.append(("upper bound of the cost", f"{most} (prices of {price.date}; with every redraw)"))
            if self.expected is not None:
                why = f"by {self.seen:,} answers in the ledger, {self.redraws:.0%} asked again"
                lines.append(("expected cost", f"about ${self.expected:,.2f} ({why})"))
            elif self.requests:
                lines.append(("expected cost", "not known yet: run a sample (--limit=20), then estimate again"))
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def sum_estimates(estimates: list[Estimate]) -> str:
    """One line on several estimates together."""
    sending = [e for e in estimates if e.requests]
    requests, most = sum(e.requests for e in sending), _sum([e.at_most for e in sending])
    expected = _sum([e.expected for e in sending])
    cost = "unknown" if most is None else f"at most ${most:,.2f} with every redraw"
    usual = f", about ${expected:,.2f} by experience" if sending and expected is not None else ""
    return f"all steps: {requests:,} requests to send, cost {cost}{usual}"


def _sum(values: list[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


class _NoLedger:
    """Stands for a ledger that is not there yet."""

    def rows(self, keys: Iterable[str]) -> dict:
        return {}


def estimate(method: Method, inputs: Iterable[dict], settings: RunSettings, gates: Iterable[Gate] = ()) -> Estimate:
    """Counts the jobs of `inputs` and what their requests may cost, redraws of answers that are in the ledger already
    included. Sends nothing; the ledger is not made."""
    counter = counter_for(settings.model)
    found = Estimate(settings, counter.name, counter.exact)
    sent: set[str] = set()
    ledger = Ledger(settings.ledger_file) if settings.ledger_file.exists() else None
    try:
        judge = Judge(method, list(gates), settings, ledger or cast(Ledger, _NoLedger()))
        redraws = _Redraws(method)
        for jobs in chunks(method.jobs(inputs, settings)):
            slots = [Slot(job) for job in jobs]
            missing = judge.advance(slots, enter=False)
            found.rows += len(slots)
            found.answered += len(slots) - len(missing)
            for slot in missing:
                if slot.job.request.key not in sent:
                    sent.add(slot.job.request.key)
                    _add(found, slot, counter.count, redraws)
        if ledger and found.requests:
            _experience(found, ledger)
    finally:
        if ledger:
            ledger.close()
    return found


def _add(found: Estimate, slot: Slot, count: Callable[[str], int], redraws: "_Redraws") -> None:
    request = slot.job.request
    limit, prompt = answer_limit(request), prompt_tokens(request, count)
    number, room = redraws.most(slot.job, slot.attempt)
    found.requests += 1
    found.prompt += prompt
    found.answers = None if limit is None or found.answers is None else found.answers + limit
    found.all_requests += number
    found.all_prompt += number * prompt
    found.all_answers = None if room is None or found.all_answers is None else found.all_answers + room
    found.versions[request.prompt_version] += 1


class _Redraws:
    """How much a job may come to ask for: as its method's retry says for the worst reasons, in the worst order."""

    def __init__(self, method: Method):
        self.method = method
        self._known: dict[tuple, tuple[int, int | None]] = {}

    def most(self, job: Job, attempt: int) -> tuple[int, int | None]:
        """(requests, tokens of all answers' room) from this attempt on; None: without a limit."""
        params = json.dumps(job.request.params, sort_keys=True)
        place = (job.request.prompt_version, params, attempt)
        if place not in self._known:
            number = 0
            room: int | None = 0
            if attempt < MOST_ATTEMPTS:
                others = {}
                for reason in REASONS:
                    other = self.method.retry(job, reason, attempt)
                    if other is not None and other.request.params != job.request.params:
                        others[json.dumps(other.request.params, sort_keys=True)] = other
                for other in others.values():
                    n, r = self.most(other, attempt + 1)
                    number = max(number, n)
                    room = None if r is None or room is None else max(room, r)
            limit = answer_limit(job.request)
            self._known[place] = number + 1, None if limit is None or room is None else limit + room
        return self._known[place]


def _experience(found: Estimate, ledger: Ledger) -> None:
    prompt = answer = 0.0
    again = seen = 0
    for version, number in found.versions.items():
        where = "FROM requests WHERE model = ? AND prompt = ?"
        n, p, a, retries = ledger.query(
            f"SELECT count(prompt_tokens), avg(prompt_tokens), avg(completion_tokens), total(retry_of != '') {where}",
            found.settings.model,
            version,
        )[0]
        if not n:
            return
        seen, again = seen + n, again + retries
        prompt, answer = prompt + number * p, answer + number * a
    found.usual_prompt, found.usual_answer, found.seen = prompt, answer, seen
    found.redraws = again / max(1, seen - again)
