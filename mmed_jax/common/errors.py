"""Two kinds of failure and how a command reports them.

Exit codes of every command: 0 done, 1 the work itself failed, 2 the user's input or configuration is wrong; 128 + the
number of the signal that ended it; UNFINISHED where a signal stopped it with everything saved.
"""

import difflib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn, Self

from mmed_jax.common import console, loading

# Of train: a signal stopped it before its last step and all that was done is saved. Whoever started it (Slurm, a
# watcher of a pod) starts the same command again. EX_TEMPFAIL of sysexits.h: "the user is invited to retry".
UNFINISHED = 75


class ReportedError(Exception):
    """A failure of which a command prints one line: `place: problem`, and behind it the hint.

    Who catches one and knows better where it happened or what to do changes that field (`at`, `with_hint`); nobody
    reads another's sentence.

    place: the file, flag or key; "" where the problem names it.
    problem: what is wrong.
    hint: what to do, with what sets it off ("; save it as UTF-8", ", did you mean 'x'?"); "" for none.
    """

    def __init__(self, problem: object = "", *, place: object = "", hint: str = "") -> None:
        self.place, self.problem, self.hint = str(place), str(problem), hint
        super().__init__(self._line())

    def _line(self) -> str:
        return f"{self.place}: {self.problem}{self.hint}" if self.place else f"{self.problem}{self.hint}"

    @property
    def lines(self) -> tuple[str, ...]:
        """What a command prints of it; of several failures at once, a line each."""
        return (one_line(self),)

    def at(self, place: object) -> Self:
        """The same failure at another place."""
        return self._changed(place=str(place))

    def with_hint(self, hint: str) -> Self:
        """The same failure with another hint."""
        return self._changed(hint=hint)

    def _changed(self, **fields: str) -> Self:
        error = type(self).__new__(type(self))
        error.__dict__.update(self.__dict__, **fields)
        error.args = (error._line(),)
        return error


class UserError(ReportedError):
    """The input, configuration or environment is wrong; the message is one line: what, where, nearest valid value."""


class WorkError(ReportedError):
    """The work was started rightly and failed (diverged loss, disk full, unreadable checkpoint)."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """Returns ", did you mean 'x'?" for the closest of `choices`, or "; valid: ..." when nothing is close."""
    names = [str(c) for c in choices]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f", did you mean '{close[0]}'?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; valid: {shown}" if names else ""


# What a terminal obeys and does not show: C0 (tab and line end excepted), DEL, C1, marks that turn the direction of
# what follows; and half a surrogate pair, which cannot be written.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_LINE = 6000


def printable(text: str) -> str:
    """Foreign text for a terminal: control characters stand as their code (\\x1b), tab and line end stay."""
    return _CONTROL.sub(lambda c: f"\\x{ord(c[0]):02x}" if c[0] < "\x80" else f"\\u{ord(c[0]):04x}", text)


def one_line(error: BaseException) -> str:
    """The message of `error` on a single line."""
    return " ".join(str(error).split()) or type(error).__name__


def _without_passwords(text: str) -> str:
    """A message that quotes the command line without the name and password of an address in it."""
    before, unknown, given = text.partition("unrecognized arguments: ")
    if unknown:  # an address that was given to a misspelt flag, in whatever form
        given = re.sub(r"(?is)[^\s=]*(?::|%3a).*(?:@|%40|\uff20)", "***@", given)
        return before + unknown + re.sub(r"(=[^\s?#]*[?#])\S*", r"\1***", given)
    return re.sub(r"(//|--[\w.-]+=)[^\s]*:[^\s]*@", r"\1***@", text)


def warn(message: str) -> None:
    """One warning line on stderr."""
    print(f"warning: {printable(one_line(Exception(message)))}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and turns its failures into one line on stderr and an exit code.

    A number that `main` returns is the exit code; None is 0.

    MMED_JAX_TRACEBACK=1 prints the traceback as well. Anything that is neither a UserError nor a WorkError nor an
    operating-system error is a fault of this program and always shows its traceback.

    SIGTERM and a closed terminal end `main` as Ctrl-C does, with what is half made removed (train saves instead).
    """
    global failed_with
    console.install()
    loading.listen_again()
    try:
        with console.ended_by_signals():
            code = main()
        if sys.stdout is not None:
            sys.stdout.flush()
        if code:
            sys.exit(code)
    except UserError as e:
        _report(e, 2)
    except console.ReaderGone:
        # The reader of our output went away (`| head`): not a failure worth a line.
        sys.exit(1)
    except (WorkError, console.OutputLost, OSError) as e:
        _report(e, 1)
    except Exception:
        sys.stderr.write(printable(traceback.format_exc()))
        failed_with = 1
        before_failing(1)
        sys.exit(1)
    except KeyboardInterrupt as e:
        number, what = (e.number, str(e)) if isinstance(e, console.Stopped) else (signal.SIGINT, "Ctrl-C")
        print(f"stopped by {what}; run the same command again to continue", file=sys.stderr)
        failed_with = 128 + number
        before_failing(128 + number)
        sys.exit(128 + number)


# Held while a failure is said: of two threads that see the same one, a single one says it.
last_word = threading.Lock()
failed_with: int | None = None  # the exit code, once the failure was said


def before_failing(code: int) -> None:
    """Called with the exit code after a failure was reported; replaced where several processes work together."""


def end_process(line: Callable[[], str]) -> NoReturn:
    """Ends this process with one line and exit code 1, from a thread beside the main one, which may wait in C++.

    Where a failure was said already it ends with the code of that, and without `line`.
    """
    last_word.acquire()  # never given back: nobody else may speak
    try:
        if failed_with is None:
            console.write_now(f"error: {printable(one_line(Exception(line())))}\n")
    finally:
        os._exit(failed_with or 1)


def _report(error: Exception, code: int) -> None:
    global failed_with
    if os.environ.get("MMED_JAX_TRACEBACK"):
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
    lines = error.lines if isinstance(error, ReportedError) else (one_line(error),)
    texts = [printable(_without_passwords(line)) for line in lines]
    cut = [text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + " ..." for text in texts]
    with last_word:
        print("\n".join(f"error: {text}" for text in cut), file=sys.stderr, flush=True)
        failed_with = code
    before_failing(code)
    sys.exit(code)
