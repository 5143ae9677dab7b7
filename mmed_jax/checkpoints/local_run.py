"""A run directory on a file system that all processes of the run share."""

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mmed_jax.checkpoints.run_storage import CHECKPOINTS, LOCK_FILE, STEP, RunStorage
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.common.input_files import check_file
from mmed_jax.common.output_files import check_writable, put_folder


class LocalRun(RunStorage):
    """See RunStorage. A checkpoint is written under a temporary name, and so one with its own name is finished."""

    def __init__(self, place: Path):
        self.place = place
        self._lock: TextIO | None = None

    def exists(self) -> bool:
        return self.place.is_dir()

    def check(self, files: tuple[str, ...]) -> None:
        path = self.place
        _make_folder(path)
        try:
            check_writable(path)
            for name in files:
                if (path / name).exists():
                    check_file(path / name, f"run_dir={path}: {name}")
            if os.path.lexists(path / CHECKPOINTS) and not (path / CHECKPOINTS).is_dir():
                raise UserError(f"run_dir={path}: {path / CHECKPOINTS} is {_what_it_is(path / CHECKPOINTS)}")
        except OSError as e:
            raise _not_writable(path, e) from e

    def named_steps(self) -> dict[int, tuple[Path, str]]:
        folder = self.checkpoints
        try:
            found = {int(p.name): (p, p.is_dir()) for p in folder.iterdir() if STEP.fullmatch(p.name)}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as e:
            raise WorkError(f"{folder}: cannot be read ({e.strerror or e})") from e
        return {step: (p, "" if is_folder else _what_it_is(p)) for step, (p, is_folder) in sorted(found.items())}

    def lock(self) -> None:
        """Held until `unlock` or the end of the process, however it ends. Does nothing without locks."""
        if self._lock is not None:
            return
        _make_folder(self.checkpoints)
        path = self.place / LOCK_FILE
        try:
            f = open(path, "a+", encoding="utf-8")
        except OSError as e:
            raise UserError(f"run_dir={self.place}: {path} cannot be written ({e.strerror or e})") from e
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            holder = f.read().strip() or "unknown"
            f.close()
            raise UserError(
                f"run_dir={self.place} is in use by another training process ({holder}); stop it or use another run_dir"
            ) from None
        except OSError:
            f.close()
            return
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            f.truncate(0)
            f.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            f.flush()
        self._lock = f

    def lock_holder(self) -> tuple[str, bool]:
        path = self.place / LOCK_FILE
        try:
            with open(path, encoding="utf-8", errors="replace") as f:
                holder = f.readline(200).strip() or "an unknown process"
                try:
                    fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return holder + _gone(holder), True
        except FileNotFoundError:
            return "", False
        except OSError as e:  # no locks there, or the file cannot be read
            return f"an unknown process ({path}: {e.strerror or e})", False
        return holder, False

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def being_written(self, step: int) -> Path | None:
        return next(self.checkpoints.glob(f"{step}.orbax-checkpoint-tmp*"), None)

    def set_aside(self, step: int) -> str:
        target, n = self.checkpoints / f"{step}.corrupt", 1
        while target.exists():
            n += 1
            target = self.checkpoints / f"{step}.corrupt-{n}"
        (self.checkpoints / str(step)).rename(target)
        return f"renamed to {target.name}"

    def all_set_aside(self) -> list[str]:
        return sorted(p.name for p in self.checkpoints.glob("*.corrupt*"))

    def put_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        return put_folder(self.place / name)

    @contextlib.contextmanager
    def put_files(self) -> Iterator[Path]:
        yield self.place

    @property
    def growing(self) -> Path:
        return self.place


def _gone(holder: str) -> str:
    """Behind a holder that was of this machine and is not there: a file server may keep its lock for a while."""
    match = re.fullmatch(r"process (\d+) on (.+)", holder)
    if match is None or match[2] != socket.gethostname() or Path(f"/proc/{match[1]}").exists():
        return ""
    return " (which is gone)"


def _what_it_is(path: Path) -> str:
    """Of something that should be a folder and is none: "a file, not a folder", or where its link leads."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    return "a file, not a folder"


def _make_folder(path: Path) -> None:
    """Makes a folder of the run and those above it. Raises UserError where something else is in its place."""
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"run_dir={path}: is {_what_it_is(path)}")
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:  # a zero byte in the name is a ValueError
        raise _not_writable(path, e) from e


def _not_writable(path: Path, e: Exception) -> UserError:
    why = getattr(e, "strerror", None) or e
    return UserError(f"run_dir={path}: cannot be written ({why}); name another with --config.run_dir=DIR")
