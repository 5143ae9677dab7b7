"""How long the launcher waits for what, in one place; tests wait for less."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Seconds, and numbers of tries.

    poll: between two looks at the workers, at least; with many workers a look takes longer, and so is the pause.
    state: between two looks at a queued resource that is not there yet.
    retry: before a failed question to the cloud is asked again; `tries` times in all.
    grace: for the other workers to end by themselves after one has failed.
    unreachable: until a worker that ssh does not reach counts as gone, though the cloud calls it READY.
    stop: for a run that was told to end, to save and end.
    command: for a short command on a worker; install: for the installation on one.
    """

    poll: float = 15.0
    state: float = 20.0
    retry: float = 10.0
    tries: int = 4
    grace: float = 180.0
    unreachable: float = 600.0
    stop: float = 900.0
    command: float = 120.0
    install: float = 3600.0

    def sleep(self, seconds: float) -> None:
        """Waits; the one place that does."""
        time.sleep(seconds)
