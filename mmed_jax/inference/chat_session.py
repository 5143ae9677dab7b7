"""`generate --chat`: lines of a terminal or of a pipe, and what is done with each."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from mmed_jax.common import console
from mmed_jax.common.errors import UserError, WorkError, nearest, printable
from mmed_jax.common.progress import Heartbeat
from mmed_jax.inference.conversation import Conversation
from mmed_jax.inference.load import flags_to_lower, say
from mmed_jax.inference.sampling import Sampling
from mmed_jax.parallel.device_memory import OutOfDeviceMemory

COMMANDS = {
    "/help": "lists these",
    "/reset": "begins a new conversation; the system message stays",
    "/system": "shows the system message; /system TEXT sets it and begins anew, /system - takes it away",
    "/temperature": "shows the temperature; /temperature X sets it (0 = the likeliest token each time)",
    "/quit": "leaves, as Ctrl-D does",
}
_PROMPT, _CONTINUED = ">>> ", "... "


class ChatSession:
    """Asks a conversation line by line until the input ends.

    At a terminal a line that ends in a backslash goes on in the next, Ctrl-C stops an answer or empties a line, and
    what is wrong is said. From a pipe every line is a question (or a command), and what is wrong ends the session.

    Answers go to stdout with control characters escaped, so that no model can give the terminal orders; everything else
    goes to stderr.
    """

    def __init__(self, conversation: Conversation):
        self._conversation = conversation
        self._interactive = bool(sys.stdin and sys.stdin.isatty())

    def run(self) -> None:
        """Reads, asks and answers. Raises UserError, OutOfDeviceMemory for a line of a pipe that cannot be asked."""
        for where, line in self._typed() if self._interactive else _piped():
            try:
                if not line.strip():
                    continue
                if line.startswith("/") and not line.startswith("//"):
                    if not self._command(*line.rstrip().partition(" ")[::2]):
                        return
                else:
                    self._ask(line[1:] if line.startswith("//") else line)
            except (UserError, OutOfDeviceMemory) as e:
                if not self._interactive:
                    raise e.at(where) from e
                say("not asked" if isinstance(e, UserError) else "taken back", str(e))

    def _typed(self) -> Iterator[tuple[str, str]]:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (editing and history of lines)
        parts: list[str] = []
        while True:
            try:
                line = _read_line(_CONTINUED if parts else _PROMPT)
            except console.Stopped:
                raise
            except KeyboardInterrupt:
                parts = []
                print(file=sys.stderr)
                say("empty", "Ctrl-D or /quit leaves")
                continue
            except UnicodeError:
                parts = []
                say("not asked", "the line is not UTF-8")
                continue
            except EOFError:
                print(file=sys.stderr)
                return
            if line.endswith("\\"):
                parts.append(line[:-1])
                continue
            yield "", "\n".join([*parts, line])
            parts = []

    def _ask(self, question: str) -> None:
        # What takes long is mostly the compiling: at first, with another kind of sampling, for a longer cache.
        with _interrupt_noted(self._interactive) as interrupted, Heartbeat("waiting for the first token") as beat:

            def show(piece: str) -> None:
                beat.stop()
                _write(piece)

            def dropped(turns: int) -> None:
                beat.stop()
                say("context", f"full: the oldest {turns} turn(s) are left out from here on; /reset begins anew")

            try:
                with flags_to_lower("a new conversation (/reset)"):
                    reply = self._conversation.ask(question, show, stop=interrupted, dropped=dropped)
            except console.Stopped:
                raise
            except KeyboardInterrupt:  # the second one, or the only one of a pipe
                if not self._interactive:
                    raise
                beat.stop()
                _write("\n")
                say("stopped", "the question is taken back")
                return
            except WorkError:  # what came of the answer ends its line
                beat.stop()
                _write("\n")
                raise
        if not reply.text.endswith("\n"):
            _write("\n")
        if reply.finish_reason == "length":
            say("cut", f"after {reply.tokens} tokens; --max_new_tokens=N allows more")
        elif reply.finish_reason == "stopped":
            kept = "what it said stays in the conversation" if reply.text.strip() else "the question is taken back"
            say("stopped", kept)

    def _command(self, name: str, value: str) -> bool:
        """Does what a line says that begins with a slash; whether the session goes on. Raises UserError."""
        value, conversation = value.strip(), self._conversation
        if name == "/quit":
            return False
        if name not in COMMANDS:
            hint = f"{nearest(name, COMMANDS)} (a question that begins with a slash is written with two)"
            raise UserError(f"{name}: no such command{hint}")
        if name == "/help":
            for command, text in COMMANDS.items():
                say(f"{command:12s}", text)
        elif name == "/reset":
            conversation.reset()
            say("reset", "a new conversation")
        elif name == "/temperature":
            if value:
                self._set_temperature(value)
            say("temperature", f"{conversation.sampling['temperature']:g}")
        elif name == "/system":
            if value:
                conversation.reset("" if value == "-" else value)
            say("system", conversation.system or "(none)")
        return True

    def _set_temperature(self, text: str) -> None:
        try:
            number = float(text)
        except ValueError:
            raise UserError(f"/temperature {text}: must be a number, for example 0.7") from None
        sampling = self._conversation.sampling
        Sampling(number, sampling["top_p"], sampling["top_k"])
        sampling["temperature"] = number


def _write(text: str) -> None:
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def _read_line(prompt: str) -> str:
    """A line of the terminal. Raises EOFError, KeyboardInterrupt, UnicodeError."""
    sys.stdout.flush()
    if sys.stdout.isatty():
        line = input(prompt)
    else:  # stdout is for answers alone
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        line = line.rstrip("\r\n")
    line.encode("utf-8")  # under a locale without UTF-8 half characters come through
    return line


def _piped() -> Iterator[tuple[str, str]]:
    """(where, line) of stdin. Raises UserError: not UTF-8."""
    if sys.stdin is None:
        return
    for number, data in enumerate(sys.stdin.buffer, 1):
        where = f"stdin:{number}"
        try:
            yield where, data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as e:
            raise UserError(f"is not UTF-8 (byte {e.start + 1} of the line)", place=where) from e


@contextlib.contextmanager
def _interrupt_noted(on: bool) -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C is only noted: yields whether it came. The second is a KeyboardInterrupt."""
    came = False
    if not on or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
