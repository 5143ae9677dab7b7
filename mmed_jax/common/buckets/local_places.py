"""A command's flags with paths of this machine in the place of gs:// addresses; what it wrote goes up at its end."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from mmed_jax.common.errors import ReportedError, UserError, WorkError, one_line, warn
from mmed_jax.common.place_flags import BuiltOutput, InputPlace, ModelPlace, OutputPlace, addresses
from mmed_jax.common.places import GS

if TYPE_CHECKING:
    from mmed_jax.common.buckets.upload import Upload

Flags = TypeVar("Flags", argparse.Namespace, SimpleNamespace)


@contextlib.contextmanager
def local_places(args: Flags) -> Iterator[Flags]:
    """Yields `args` with the addresses in flags of InputPlace and OutputPlace replaced; costs nothing without one.

    Models stay as they are written: hf.open_model opens them, and results name them so. A BuiltOutput stays as well,
    for built_folder.

    What is read is fetched first. What is written is uploaded when the block ends well or with a WorkError (what a
    command writes before it says that work is left is whole); an output that is continued, however it ends. What is
    printed and raised in between names the addresses.

    Raises:
      UserError: nothing is at an address, or the bucket refuses. WorkError: it does not answer, or not to the end.
    """
    values = dict(vars(args))
    if not any(GS in text for text in _texts(values)):
        yield args
        return
    from mmed_jax.common.buckets.upload import Upload

    _check_apart(values)
    names: dict[str, str] = {}  # {path of this machine: address}
    replaced = {name: _fetched(name, value, names) for name, value in values.items()}
    opened: list[Upload] = []
    failed = True
    try:
        for name, value in values.items():
            if isinstance(value, OutputPlace) and _is_replaced(value) and addresses(value, OutputPlace):
                upload = Upload(value, f"--{name}", type(value))
                replaced[name] = type(value)(upload.open())
                names[str(upload.path)] = upload.address
                opened.append(upload)
        with naming_addresses(names):
            yield type(args)(**replaced)
        failed = False
    except WorkError:
        failed = False
        raise
    finally:
        _close(opened, failed)
    for upload in opened:
        print(f"uploaded   {upload.address}", flush=True)


@contextlib.contextmanager
def naming_addresses(names: dict[str, str]) -> Iterator[None]:
    """What is printed and raised in the block has addresses in the place of paths; `names`: {path: address}."""
    out, err = _Named(sys.stdout, names), _Named(sys.stderr, names)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
            yield
    except ReportedError as e:
        e.problem, e.place = out.named(e.problem), out.named(e.place)
        raise e.at(e.place) from e.__cause__


def _close(opened: list["Upload"], failed: bool) -> None:
    """Closes all; raises the first failure, or warns of it where what is on its way says why the command failed."""
    failing, problems = sys.exc_info()[1], []
    for upload in opened:
        try:
            upload.close(failed)
        except WorkError as e:
            problems.append(e)
    for problem in problems[0 if isinstance(failing, ReportedError) else 1 :]:
        warn(one_line(problem))
    if problems and not isinstance(failing, ReportedError):
        raise problems[0]


class _Named:
    """A stream that is written to with addresses in the place of the paths that stand for them."""

    def __init__(self, stream: TextIO, names: dict[str, str]):
        self._stream, self._names = stream, names

    def named(self, text: str) -> str:
        for path, address in self._names.items():
            text = text.replace(path, address)
        return text

    def write(self, text: str) -> int:
        return self._stream.write(self.named(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _check_apart(values: dict[str, Any]) -> None:
    """Refuses an output that is an input, or another output. Raises UserError."""
    seen: set[str] = set()
    outputs = [(name, value) for name, value in values.items() if isinstance(value, OutputPlace)]
    for value in values.values():
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, InputPlace):
                seen.update(address.rstrip("/") for address in addresses(text))
    for name, value in outputs:
        for address in addresses(value, OutputPlace):
            if address.rstrip("/") in seen:
                raise UserError(f"--{name}={value}: is named by another flag as well; name another place")
            if isinstance(value, BuiltOutput):
                own = address.rstrip("/")
                if any(own.startswith(f"{other}/") for other in seen):
                    raise UserError(f"--{name}={value}: lies in what another flag names, which is fetched whole")
                if inside := [other for other in sorted(seen) if other.startswith(f"{own}/")]:
                    raise UserError(f"--{name}={value}: {inside[0]} lies in it, which it is made from; name another")
            seen.add(address.rstrip("/"))


def _is_replaced(value: Any) -> bool:
    return not isinstance(value, ModelPlace | BuiltOutput)


def _texts(values: dict[str, Any]) -> Iterator[str]:
    for value in values.values():
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, InputPlace | OutputPlace) and _is_replaced(text):
                yield text


def _fetched(name: str, value: Any, names: dict[str, str]) -> Any:
    """The value of a flag with copies for the addresses in it, which go into `names`."""
    if isinstance(value, list):
        return [_fetched(name, part, names) for part in value]
    if not isinstance(value, InputPlace) or isinstance(value, ModelPlace):
        return value
    from mmed_jax.common.buckets.download import open_input

    text = str(value)
    for address in addresses(text):
        path = str(open_input(address, f"--{name}", type(value)))
        names[path] = address.rstrip("/")
        text = text.replace(address, path, 1)
    return type(value)(text)
