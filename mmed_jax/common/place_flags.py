"""What a flag's text names: a file or folder that is read, one that is written, or no place at all.

The kinds stand as `type=` of a flag. A flag without one takes paths of this machine only: whatever looks like an
address in it is refused, so that no new flag makes a folder called "gs:". mmed_jax.common.buckets.local_places puts a
path of this machine in the place of each gs:// of the first two kinds.
"""

import argparse
import re
from collections.abc import Iterable
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.common.places import is_bucket, parse_place


class InputPlace(str):
    """A file or folder that is read, or several: PATH, PATH,PATH, NAME=PATH,NAME=PATH, PATH+PATH."""


class SheetPlace(InputPlace):
    """Files that are read together with those beside them whose names are theirs and more (SHEET.xlsx.key.json)."""


class ModelPlace(InputPlace):
    """The folder of a model or an adapter: of a run its newest checkpoint is wanted, of large files parts."""


class OutputPlace(str):
    """A file or folder that is written anew, files beside it whose names begin alike included."""


class ResumedOutput(OutputPlace):
    """A file or folder that an earlier call may have begun, and that is continued."""


class BuiltOutput(OutputPlace):
    """A folder that a long build makes: what is done of it goes up as it is made (buckets/built_folder.py)."""


class UpdatedOutput(OutputPlace):
    """A folder that is read, and of which some files are written anew."""


class FreeText(str):
    """Words, an address of a service, anything that is no path."""


# An address where a place may begin: at the start, or behind the comma, plus or equals sign of a list. Its end is the
# end of a place in the list; a key may hold spaces.
ADDRESS = re.compile(r"(?:^|(?<=[,+=\s]))(?:[A-Za-z][A-Za-z0-9.-]+:/|gs:(?=[^/:,\s]+/))[^,]*")


def addresses(text: str, kind: type = InputPlace) -> list[str]:
    """The addresses (SCHEME:/...) in the text of a flag; of a place that is written it is one."""
    if issubclass(kind, OutputPlace):
        return [text] if ADDRESS.match(text) else []
    return [part for match in ADDRESS.finditer(text) for part in re.split(r"\+(?=[A-Za-z][A-Za-z0-9.-]+:/)", match[0])]


def check_flags(actions: Iterable[argparse.Action], values: argparse.Namespace) -> None:
    """Refuses addresses that a flag cannot take; nothing is opened and nothing made.

    Raises:
      UserError: an unknown or mangled scheme, or gs:// where only a path of this machine will do.
    """
    for action in actions:
        given: Any = getattr(values, action.dest, None)
        flag = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
        for text in given if isinstance(given, list | tuple) else [given]:
            if isinstance(text, str) and not isinstance(text, FreeText):
                check_text(text, str(flag), type(text))


def check_text(text: str, flag: str, kind: type = str) -> None:
    """Refuses addresses in one text that was given to `flag`; `kind` as of a flag. Raises UserError."""
    for address in addresses(text, kind):
        place = parse_place(address, flag)
        if is_bucket(place) and not issubclass(kind, InputPlace | OutputPlace):
            raise UserError(f"{flag}={text}: is no place in a bucket: name a path of this machine (docs/pods.md)")
