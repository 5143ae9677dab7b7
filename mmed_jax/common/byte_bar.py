"""Bytes for people: sizes in words, and a bar of bytes that are read or written."""

import sys
from pathlib import Path

from tqdm import tqdm

from mmed_jax.common.progress import counting_bar


def bytes_text(n: float) -> str:
    """1234567 -> "1.23 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.2f} {unit}"
        n /= 1000
    raise AssertionError


def folder_text(folder: Path) -> str:
    """ "5 files, 2.50 GB" of a folder without folders in it."""
    files = list(folder.iterdir())
    return f"{len(files)} files, {bytes_text(sum(p.stat().st_size for p in files))}"


class ByteBar:
    """A bar of bytes read or written, called with (done, total). Silent for what takes no time."""

    def __init__(self, label: str):
        self._label = label
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            delay = 0.2 if sys.stderr.isatty() else 10
            self._bar = counting_bar(
                self._label, total, unit="B", unit_scale=True, in_logs=True, leave=True, delay=delay
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
