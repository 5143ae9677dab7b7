"""The one place that calls gcloud."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmed_jax.common.errors import UserError, WorkError
from scripts.pod.pace import Pace


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
    """gcloud in a project ("" = its default) and a zone.

    dry_run: commands are printed instead of run; every answer is empty.
    """

    project: str
    zone: str
    pace: Pace
    dry_run: bool = False
    program: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.program = shutil.which("gcloud") or "gcloud"
        if not self.dry_run and not shutil.which("gcloud"):
            raise UserError("gcloud is not installed: https://cloud.google.com/sdk/docs/install")

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
        if self.dry_run:
            print(shlex.join(["gcloud", *arguments]))
            return 0, "", ""
        try:
            done = subprocess.run(
                [self.program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return 124, "", f"no answer within {timeout:.0f} s"
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
                if self.dry_run:
                    return None
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
            [self.program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1]
