"""What Ctrl-C does while the modules of a command are loaded: it ends the process, by the signal and without a word.

Nothing is done yet that could be lost. As an exception it would come out in the middle of a module: with a traceback,
and where a library takes it for its own failure (ImportError) with exit code 1.
"""

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Iterator

# A file directly under mmed_jax, and data_gen (docs/architecture.md).
_COMMAND = re.compile(r"(mmed_jax\.\w+|data_gen)(\.__main__)?")


def end_at_once() -> None:
    """Ctrl-C ends this process until `listen_again`; the packages that have commands call it first thing.

    Only where `python -m` looks for one of them, which listens again: a program that imports a package of ours keeps
    its Ctrl-C, as do our modules that are started so and are no commands.
    """
    if _COMMAND.fullmatch(wanted_module()):
        _replace(signal.default_int_handler, signal.SIG_DFL)


def wanted_module() -> str:
    """The module that `python -m` looks for; "" when it has found it, or was not asked for one."""
    arguments = getattr(sys, "argv", [])
    if arguments[:1] != ["-m"]:  # so it is until the module is found
        return ""
    word = sys.orig_argv[-len(arguments)]
    return re.sub("^-[a-zA-Z]*?m", "", word)  # -mMODULE is one word


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
