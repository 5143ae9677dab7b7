"""A limit on what the libraries that write and read arrays do in a bucket: they try a silent server again for hours."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from mmed_jax.common import errors


class Deadline:
    """Ends this process with one line when something takes longer than it may.

    From a thread of its own: the main thread may wait inside of C++ by then, and nothing else would wake it.

    Args:
      seconds: the limit; 0 = none.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def begin(self, line: Callable[[float], str], is_over: Callable[[], bool] = lambda: False) -> None:
        """From now on the limit runs, in the place of an earlier one.

        Args:
          line: what to say, given the seconds. is_over: asked at the end, whether it was done meanwhile.
        """
        self.end()
        if self._seconds <= 0:
            return

        def expire() -> None:
            if not is_over():
                errors.end_process(lambda: line(self._seconds))

        self._timer = threading.Timer(self._seconds, expire)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """It was done in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextlib.contextmanager
    def around(self, line: Callable[[float], str]) -> Iterator[None]:
        """The limit for a block."""
        self.begin(line)
        try:
            yield
        finally:
            self.end()
