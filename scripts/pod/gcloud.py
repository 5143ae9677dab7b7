"""The one place that calls gcloud, and how long the launcher waits for what."""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmed_jax.common.errors import UserError, WorkError


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


class GcloudFailed(WorkError):
    """gcloud ended with an error; `stderr` is what it wrote."""

    stderr: str = ""

    @property
    def not_found(self) -> bool:
        """Whether the thing asked for does not exist, as opposed to: it could not be asked for."""
        text = self.stderr.lower()
        return "not_found" in text or "was not found" in text or "matched no objects" in text


@dataclass
class Gcloud:
    """gcloud in a project ("" = its default) and a zone."""

    project: str
    zone: str
    pace: Pace

    def tpu(self, *arguments: str) -> list[str]:
        """The words of a `gcloud compute tpus` command in this project and zone."""
        project = [f"--project={self.project}"] if self.project else []
        return ["compute", "tpus", *arguments, f"--zone={self.zone}", *project, "--quiet"]

    def call(self, arguments: Sequence[str], timeout: float | None = None) -> str:
        """Runs it once and returns its stdout.

        Raises:
          GcloudFailed: it ended with an error, or not within `timeout` seconds.
        """
        code, out, err = self.attempt(arguments, timeout)
        if code:
            shown = " ".join(a for a in arguments[:5] if not a.startswith("-"))
            failure = GcloudFailed(f"gcloud {shown}: {_last_line(err) or f'exit code {code}'}")
            failure.stderr = err
            raise failure
        return out

    def attempt(self, arguments: Sequence[str], timeout: float | None = None) -> tuple[int, str, str]:
        """Runs it once: (exit code, stdout, stderr); 124 when it did not end within `timeout` seconds."""
        try:
            done = subprocess.run(
                ["gcloud", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return 124, "", f"no answer within {timeout:.0f} s"
        except FileNotFoundError:
            raise UserError("gcloud is not installed: https://cloud.google.com/sdk/docs/install") from None
        return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")

    def ask(self, arguments: Sequence[str]) -> Any:
        """The JSON that a command answers with; None when what it is about does not exist.

        Raises:
          GcloudFailed: it failed, or answered nothing, in each of several tries.
        """
        problem = GcloudFailed()
        for number in range(self.pace.tries):
            if number:
                self.pace.sleep(self.pace.retry)
            try:
                text = self.call([*arguments, "--format=json"], self.pace.command)
                return json.loads(text)
            except GcloudFailed as e:
                if e.not_found:
                    return None
                problem = e
            except json.JSONDecodeError:
                problem = GcloudFailed(f"gcloud {' '.join(arguments[:5])} answered no JSON: {text[:80]!r}")
        raise problem.with_hint(f" (asked {self.pace.tries} times)")

    def stream(self, arguments: Sequence[str]) -> subprocess.Popen:
        """Starts it with its stdout as a pipe of bytes; stderr is thrown away."""
        return subprocess.Popen(
            ["gcloud", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1]
