"""What Ctrl-C does while the modules of a command are loaded: it ends the process, by the signal and without a word.

Nothing is done yet that could be lost. As an exception it would come out in the middle of a module: with a traceback,
and where a library takes it for its own failure (ImportError) with exit code 1.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator


def end_at_once() -> None:
    """Ctrl-C ends this process until `listen_again`; the packages that have commands call it first thing.

    Only where `python -m` looks for a command: a program that imports a package of ours keeps its Ctrl-C.
    """
    if sys.argv[:1] == ["-m"]:  # so it is until the command's module is found
        _replace(signal.default_int_handler, signal.SIG_DFL)


def listen_again() -> None:
    """Ctrl-C is a KeyboardInterrupt again, unless it is ignored or has a handler."""
    _replace(signal.SIG_DFL, signal.default_int_handler)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Within, Ctrl-C ends this process; for modules that a command loads before it does anything."""
    _replace(signal.default_int_handler, signal.SIG_DFL)
    try:
        yield
    finally:
        listen_again()


def _replace(handler: object, other: object) -> None:
    """Sets another handler of Ctrl-C where it has this one, in the only thread that may."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == handler:
        signal.signal(signal.SIGINT, other)  # type: ignore[arg-type]
