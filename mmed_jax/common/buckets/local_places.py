"""A command's flags with paths of this machine in the place of gs:// addresses; what it wrote goes up at its end."""

import argparse
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from mmed_jax.common.errors import ReportedError, WorkError
from mmed_jax.common.place_flags import InputPlace, ModelPlace, OutputPlace, addresses
from mmed_jax.common.places import GS

if TYPE_CHECKING:
    from mmed_jax.common.buckets.upload import Upload

Flags = TypeVar("Flags", argparse.Namespace, SimpleNamespace)


@contextlib.contextmanager
def local_places(args: Flags) -> Iterator[Flags]:
    """Yields `args` with the addresses in flags of InputPlace and OutputPlace replaced; costs nothing without one.

    Models stay as they are written: hf.open_model opens them, and results name them so.

    What is read is fetched first. What is written is uploaded when the block ends well or with a WorkError (what a
    command writes before it says that work is left is whole); an output that is continued, however it ends.

    Raises:
      UserError: nothing is at an address, or the bucket refuses. WorkError: it does not answer, or not to the end.
    """
    values = dict(vars(args))
    if not any(GS in text for text in _texts(values)):
        yield args
        return
    from mmed_jax.common.buckets.upload import Upload

    replaced = {name: _fetched(name, value) for name, value in values.items()}
    opened: list[Upload] = []
    failed = True
    try:
        for name, value in values.items():
            if isinstance(value, OutputPlace) and addresses(value, OutputPlace):
                upload = Upload(value, f"--{name}", type(value))
                replaced[name] = type(value)(upload.open())
                replaced[name].address = upload.address
                opened.append(upload)
        yield type(args)(**replaced)
        failed = False
    except ReportedError as e:
        failed = not isinstance(e, WorkError)
        e.problem, e.place = (_named(text, opened) for text in (e.problem, e.place))
        raise e.at(e.place) from e.__cause__
    finally:
        for upload in opened:
            upload.close(failed)
    for upload in opened:
        print(f"uploaded   {upload.address}", flush=True)


def _named(text: str, uploads: "list[Upload]") -> str:
    """A message with the addresses that paths of this machine stand for."""
    for upload in uploads:
        text = text.replace(str(upload.path), upload.address)
    return text


def _texts(values: dict[str, Any]) -> Iterator[str]:
    for value in values.values():
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, InputPlace | OutputPlace) and not isinstance(text, ModelPlace):
                yield text


def _fetched(name: str, value: Any) -> Any:
    """The value of a flag with copies for the addresses in it."""
    if isinstance(value, list):
        return [_fetched(name, part) for part in value]
    if not isinstance(value, InputPlace) or isinstance(value, ModelPlace):
        return value
    from mmed_jax.common.buckets.download import open_input

    text = str(value)
    for address in addresses(text):
        text = text.replace(address, str(open_input(address, f"--{name}", type(value))), 1)
    return type(value)(text)
