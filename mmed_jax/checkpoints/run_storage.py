"""What a run directory does differently in a folder of a file system and in a bucket.

local_run.py and bucket_run.py are the two; run_directory.py opens them. All else is read and written alike
(common/place_files.py, common/output_files.py).
"""

import contextlib
import re
from abc import ABC, abstractmethod
from pathlib import Path

from mmed_jax.common.places import Place

CHECKPOINTS = "checkpoints"
LOCK_FILE = ".lock"
# What a checkpoint is called.
STEP = re.compile("0|[1-9][0-9]*")


class RunStorage(ABC):
    """A run directory at `place`. An object of it holds the lock and the files that grow while the run goes on."""

    place: Place

    @property
    def checkpoints(self) -> Place:
        """The folder of the checkpoints."""
        return self.place / CHECKPOINTS

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is there."""

    @abstractmethod
    def check(self, files: tuple[str, ...]) -> None:
        """Makes the folder and makes sure that it can be written.

        Args:
          files: names that must be files, if they are there.

        Raises:
          UserError: it is none, or cannot be written.
        """

    @abstractmethod
    def named_steps(self) -> dict[int, tuple[Place, str]]:
        """{step: (its checkpoint, "" or what stands there instead of a finished one)}, ascending.

        Raises:
          WorkError: the folder is there and cannot be read.
        """

    # Saving

    @abstractmethod
    def lock(self) -> None:
        """Takes the run directory for this process. Raises UserError when another process holds it."""

    @abstractmethod
    def unlock(self) -> None:
        """Gives it back; does nothing when this process does not hold it."""

    @abstractmethod
    def lock_holder(self) -> tuple[str, bool]:
        """(who holds the lock or held it last, "" for nobody; whether it is held), without taking it."""

    def check_lock(self) -> None:
        """Raises WorkError when the lock was lost; asks nothing."""
        return

    @abstractmethod
    def being_written(self, step: int) -> Place | None:
        """The checkpoint of `step` while it is not finished; None when nothing of it is there."""

    def before_commit(self) -> None:
        """Called in the background before a checkpoint becomes a finished one. Raises to forbid it."""
        return

    @abstractmethod
    def set_aside(self, step: int) -> str:
        """Marks a damaged checkpoint, so that it is never used and kept; returns what to say of it."""

    @abstractmethod
    def all_set_aside(self) -> list[str]:
        """Names of the checkpoints that were."""

    def aside_in_place(self) -> list[int]:
        """Steps whose damaged checkpoint stands where a new one would be written."""
        return []

    def forget_aside(self, step: int) -> None:
        """Called when such a checkpoint was removed."""
        return

    # Files

    @abstractmethod
    def put_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yields an empty folder of this machine; when the block ends without error its files are put into `name`.

        Raises:
          WorkError: they cannot be written.
        """

    @abstractmethod
    def put_files(self) -> contextlib.AbstractContextManager[Path]:
        """Yields a folder of this machine; what is written there lies in the run directory when the block has ended.

        Raises:
          OSError, WorkError: it cannot be written.
        """

    @property
    @abstractmethod
    def growing(self) -> Path:
        """A folder of this machine for the files that grow while the run goes on: metrics.jsonl, event files."""

    def flush(self) -> None:
        """Brings what has grown to its place. Raises WorkError, UserError."""
        return
