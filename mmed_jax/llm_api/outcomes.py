"""From answers in the ledger to outcomes: parsing, gates, and the requests that are still needed."""

from collections.abc import Iterable, Iterator
from itertools import islice

from mmed_jax.common.errors import one_line
from mmed_jax.llm_api.ledger.ledger import FINAL, Ledger, Row
from mmed_jax.llm_api.types import Gate, Job, Method, Outcome, Reject

MOST_ATTEMPTS = 10
_WRITE_EVERY = 256


class Slot:
    """A job on its way. asked: its request was settled in this run; before: key of the request that it retries."""

    __slots__ = ("job", "attempt", "asked", "before", "outcome")

    def __init__(self, job: Job):
        self.job, self.attempt, self.asked, self.before = job, 1, False, ""
        self.outcome: Outcome | None = None

    @property
    def settled(self) -> Outcome:
        """The outcome of a job that has one."""
        assert self.outcome is not None, self.job.row_id
        return self.outcome


class Judge:
    """Judges answers and keeps the ledger's table of jobs.

    Attributes:
      jobs: how many were entered. again: ask once more for what failed in an earlier run.
    """

    def __init__(self, method: Method, gates: list[Gate], settings, ledger: Ledger):
        self.method, self.gates, self.settings, self.ledger = method, gates, settings, ledger
        self.jobs, self.again = 0, True
        self._known: dict[str, tuple[str, str, str]] = {}
        self._verdicts: list[tuple] = []

    def slots(self, jobs: Iterable[Job], *, again: bool = False) -> list[Slot]:
        """Slots for jobs, which are entered in the ledger as pending unless they are there.

        again: they were counted before.
        """
        slots = [Slot(job) for job in jobs]
        if not slots:
            return slots
        self.jobs += 0 if again else len(slots)
        label, name = self.settings.label, self.method.name
        known = self.ledger.verdicts(label, name, [s.job.row_id for s in slots])
        new = [s.job for s in slots if s.job.row_id not in known]
        self.ledger.judge([(label, name, j.row_id, j.request.key, "pending", "", "") for j in new])
        self._known |= known | {j.row_id: (j.request.key, "pending", "") for j in new}
        return slots

    def advance(self, slots: list[Slot], *, capped: bool = False, enter: bool = True) -> list[Slot]:
        """Takes slots as far as the ledger's answers go; returns those whose request has to be sent (they are entered
        in the ledger unless `enter` is False), the others have their outcome. capped: nothing more may be sent, so
        those are pending."""
        missing, todo = [], slots
        while todo:
            rows = self.ledger.rows({s.job.request.key for s in todo})
            again = []
            for slot in todo:
                row = rows.get(slot.job.request.key)
                if row is None or self._needed(slot, row):
                    if capped or slot.asked:
                        slot.outcome = Outcome(slot.job, "pending")
                    else:
                        missing.append(slot)
                elif not self._judge(slot, row):
                    again.append(slot)
            todo = again
        if missing and enter:
            self.ledger.add([(s.job.request, s.before) for s in missing])
        return missing

    def record(self, outcome: Outcome) -> None:
        """Enters a verdict into the ledger, if it is news."""
        job = outcome.job
        if self._known.pop(job.row_id, None) == (job.request.key, outcome.state, outcome.reason):
            return
        row = (self.settings.label, self.method.name, job.row_id, job.request.key)
        self._verdicts.append((*row, outcome.state, outcome.reason, outcome.detail))
        if len(self._verdicts) >= _WRITE_EVERY:
            self.flush()

    def forget(self) -> None:
        """Drops what is remembered of jobs; slots() remembers anew."""
        self._known.clear()

    def flush(self) -> None:
        """Writes the verdicts that wait."""
        rows, self._verdicts = self._verdicts, []
        if rows:
            self.ledger.judge(rows).result()

    def _needed(self, slot: Slot, row: Row) -> bool:
        if row.state in ("pending", "sent"):
            return True
        # What failed for a reason that may pass costs nothing and is asked for once more in every run.
        transient = row.reason == "api_error" or self.settings.retry_failed
        return row.state == "failed" and transient and self.again and not slot.asked

    def _judge(self, slot: Slot, row: Row) -> bool:
        """Sets the slot's outcome; False when another request is to be made instead, which is in the slot then."""
        outcome = self.verdict(slot.job, row)
        if outcome.state == "rejected" and slot.attempt < MOST_ATTEMPTS:
            other = self.method.retry(slot.job, outcome.reason, slot.attempt)
            # The same request would bring the same answer.
            if other is not None and other.request.key != slot.job.request.key:
                slot.before, slot.job = slot.job.request.key, other
                slot.attempt, slot.asked = slot.attempt + 1, False
                return False
        slot.outcome = outcome
        return True

    def verdict(self, job: Job, row: Row) -> Outcome:
        """The outcome of a job whose request is settled as `row` says."""
        if row.state not in FINAL:
            return Outcome(job, "failed", row.reason, row.detail)
        if row.state == "rejected":
            return Outcome(job, "rejected", row.reason, row.detail)
        assert row.response is not None, row.key  # what is done has an answer
        try:
            records = self.method.parse(job, row.response)
        except Reject as e:
            return Outcome(job, "rejected", e.reason, one_line(Exception(e.detail)) if e.detail else "")
        except (ValueError, OverflowError, RecursionError) as e:  # one answer may not end every run on its ledger
            return Outcome(job, "rejected", "schema", f"the answer cannot be read ({one_line(e)[:120]})")
        kept, flags, lost = [], set(), []
        for record in records:
            try:
                found = {flag for gate in self.gates if (flag := gate(job, record))}
            except Reject as e:
                lost.append(e)
                continue
            flags |= found
            kept.append((record, found))
        if not kept:
            first = lost[0] if lost else Reject("schema", "the answer holds no record")
            return Outcome(job, "rejected", first.reason, first.detail)
        # Siblings that a gate took out are told by those that stay.
        gone = {f"sibling_{e.reason}" for e in lost}
        for record, found in kept:
            if found or gone:
                origin = record.setdefault("provenance", {})
                origin["flags"] = sorted({*origin.get("flags", ()), *found, *gone})
        return Outcome(job, "accepted", "", "", tuple(r for r, _ in kept), tuple(sorted(flags | gone)))


def chunks(jobs: Iterable[Job], size: int = 256) -> Iterator[list[Job]]:
    """The jobs in lists of `size`, as they are looked up in the ledger together."""
    jobs = iter(jobs)
    while chunk := list(islice(jobs, size)):
        yield chunk
