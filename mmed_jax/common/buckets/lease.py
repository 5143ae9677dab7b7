"""A lock in a bucket: one object that its holder writes again and again, each time over its own generation only.

Object stores have no locks that end with their holder. This one is held by whoever wrote the object last; who wants it
waits until it was not written for three heartbeats, by the bucket's own clock, and then writes it by that generation.
Of two who do so at the same moment one is refused, and so is a holder that was frozen meanwhile, at its next heartbeat.
"""

import atexit
import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from mmed_jax.common.buckets.bucket import Bucket, PreconditionFailed, Stored, open_bucket
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.places import GS

HEARTBEAT_S = 20.0
STALE_HEARTBEATS = 3
# A heartbeat that is not answered is sent again before the lock is stale.
_LEAST_ANSWER_S = 5.0


class Lease:
    """The lock `name` of a bucket, for this process until `release` or its end.

    Args:
      what: it guards, for messages ("run_dir=gs://...").
      heartbeat_s: seconds between two writes; the same for all who take this lock.
      say: gets the line that is printed before waiting.
    """

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        what: str,
        heartbeat_s: float = HEARTBEAT_S,
        say: Callable[[str], object] = print,
    ):
        self._bucket, self._name, self._what, self._heartbeat, self._say = bucket, name, what, heartbeat_s, say
        self._quick, _ = open_bucket(f"{GS}{bucket.name}", min(bucket.deadline_s, max(_LEAST_ANSWER_S, heartbeat_s)))
        self._id = uuid.uuid4().hex
        self._generation = 0
        self._lost = ""
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Takes the lock; waits for at most three heartbeats where a holder may have died.

        Raises:
          UserError: another process holds it and is alive.
          NoAnswer, Refused: of the bucket.
        """
        seen = None
        while True:
            there = self._bucket.stat(self._name)
            try:
                if there is None:
                    self._generation = self._write(self._bucket, 0)
                    break
                age = self._age(there)
                if age > STALE_HEARTBEATS * self._heartbeat or not self._is_held():
                    self._generation = self._write(self._bucket, there.generation)
                    break
            except PreconditionFailed:
                continue  # another was faster: whether it is alive is seen by its heartbeats
            if seen is not None and seen != there.generation:
                raise UserError(f"{self._what} is in use by another process ({self._holder()}); stop it or use another")
            if seen is None:
                self._say(
                    f"waiting    for at most {STALE_HEARTBEATS * self._heartbeat:.0f} s: {self._what} was locked "
                    f"{age:.0f} s ago by {self._holder()}, which may have been killed"
                )
            seen = there.generation
            time.sleep(min(5.0, self._heartbeat / 4))
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._thread.start()
        atexit.register(self.release)

    def holder(self) -> tuple[str, bool]:
        """(who wrote the lock last and when, "" where there is none; whether it counts as held), without taking it.

        Raises:
          NoAnswer, Refused: of the bucket.
        """
        there = self._bucket.stat(self._name)
        if there is None:
            return "", False
        age = self._age(there)
        is_held = age <= STALE_HEARTBEATS * self._heartbeat and self._is_held()
        return f"{self._holder()}, {age:,.0f} s ago", is_held

    def renew(self, bucket: Bucket | None = None) -> None:
        """Writes the lock now. Raises WorkError: it was lost; NoAnswer, Refused: of the bucket."""
        with self._writing:
            self.check()
            if not self._generation:
                raise WorkError(f"{self._what}: its lock is not held")
            try:
                self._generation = self._write(bucket or self._bucket, self._generation)
            except PreconditionFailed as e:
                self._lost = self._holder()
                self.check(e)

    def check(self, cause: BaseException | None = None) -> None:
        """Raises WorkError when another process has taken the lock; asks nothing."""
        if self._lost:
            raise WorkError(
                f"{self._what}: its lock was taken over by {self._lost}, since it was not renewed for "
                f"{STALE_HEARTBEATS * self._heartbeat:.0f} s or was removed; this process stops"
            ) from cause

    def release(self) -> None:
        """Gives the lock back, if it is held. Does nothing where the bucket does not answer: it then becomes stale."""
        atexit.unregister(self.release)
        self._over.set()
        with self._writing:
            generation, self._generation = self._generation, 0
        if generation and not self._lost:
            with contextlib.suppress(WorkError, UserError):
                self._bucket.delete(self._name, if_generation=generation)

    def _beat(self) -> None:
        while not self._over.wait(self._heartbeat):
            try:
                self.renew(self._quick)
            except (WorkError, UserError):  # no answer, credentials that ran out: the next may do
                if self._lost or not self._generation:
                    return

    def _write(self, bucket: Bucket, generation: int) -> int:
        holder = {"host": socket.gethostname(), "process": os.getpid(), "id": self._id, "time": time.time()}
        data = json.dumps(holder).encode()
        try:
            return bucket.put(self._name, data, if_generation=generation).generation
        except PreconditionFailed:  # perhaps by an earlier write of ours whose answer never came
            there = bucket.stat(self._name)
            if there is None or not self._is_ours(bucket, there.generation):
                raise
            return bucket.put(self._name, data, if_generation=there.generation).generation

    def _is_ours(self, bucket: Bucket, generation: int) -> bool:
        try:
            return loads(bucket.get(self._name, generation=generation), dict).get("id") == self._id
        except (BadJSON, FileNotFoundError):
            return False

    def _age(self, there: Stored) -> float:
        """Seconds since the lock was written by the clock of the bucket, which is read off a small object of ours."""
        probe = f"{self._name}.clock.{self._id}"
        try:
            return self._bucket.put(probe, b"").updated - there.updated
        finally:
            self._bucket.delete(probe)

    def _is_held(self) -> bool:
        """Whether it is a lock of this kind; a copied folder has that of a disk, which nobody renews."""
        try:
            return "id" in loads(self._bucket.get(self._name), dict)
        except BadJSON:
            return False
        except FileNotFoundError:  # given back meanwhile
            return True

    def _holder(self) -> str:
        try:
            holder = loads(self._bucket.get(self._name), dict)
            return f"process {holder['process']} on {holder['host']}"
        except FileNotFoundError:
            return "nobody"
        except (BadJSON, KeyError, WorkError, UserError) as e:
            return f"an unknown process ({one_line(e)[:100]})"
