"""The parser of every command line: what is wrong is one line, with the nearest flag where one is misspelt."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.place_flags import check_flags


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one-line UserErrors, which takes flags by their whole names and prints the description
    as it is written.

    Args:
      names_itself: errors begin with `prog`, as those of commands that are one of several ("python -m data_gen build").
    """

    def __init__(self, *args: Any, names_itself: bool = False, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._names_itself = names_itself

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse's; flags that are not known are a UserError with the nearest."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.unrecognized(unknown)
        return parsed

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's; an address that a flag cannot take is a UserError (place_flags)."""
        parsed, unknown = super().parse_known_args(args, namespace)
        check_flags(self._actions, parsed)
        return parsed, unknown

    def unrecognized(self, arguments: Sequence[str]) -> NoReturn:
        """Raises the UserError for arguments that no flag takes."""
        text = " ".join(arguments)
        first = (text.split() or [""])[0].partition("=")[0]
        known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        self.error(f"unrecognized arguments: {text}{nearest(first, known)}")

    def error(self, message: str) -> NoReturn:
        """Called by argparse for everything that is wrong. Raises UserError."""
        raise UserError(f"{self.prog}: {message}" if self._names_itself else message)
