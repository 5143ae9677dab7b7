"""What a checkup has found, as one block of text; and how it looks at files and programs of the machine."""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Findings:
    """The lines of the block, what deserves a look, and what is broken."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def block(self) -> str:
        rows = [f"{name:16s}{line}" for name, text in self.lines for line in (text.splitlines() or [""])]
        rows += [f"{'warning':16s}{w}" for w in self.warnings] + [f"{'BROKEN':16s}{p}" for p in self.problems]
        ok = "all fine" if not self.warnings and not self.problems else None
        return _short_home("\n".join(["```", "mmed_jax doctor", *rows, *([ok] if ok else []), "```"]))


def _short_home(text: str) -> str:
    """The home folder as ~; none that is "/" or unknown, as in containers."""
    home = os.path.expanduser("~")
    if not home.startswith("/") or not home.strip("/"):
        return text
    return re.sub(rf"(?<![\w.-]){re.escape(home.rstrip('/'))}(?![\w.-])", "~", text)


def output_of(command: list[str]) -> str:
    """What a program prints; "" where it is not there or takes longer than 20 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def text_of(path: str) -> str:
    """The contents of a file; "" where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
