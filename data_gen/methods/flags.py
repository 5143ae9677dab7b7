"""What the options of a method are called on its command line."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.common.place_flags import FreeText


@dataclass(frozen=True)
class Flag:
    """An option of a method, and its flag.

    Attributes:
      name, help, default, type, metavar: as argparse has them; a default of False makes a switch.
      option: the keyword that it sets, where that is not the flag's name.
      least: the smallest value. required: what is missing where the flag is, in words.
      reads: it is of the reading of inputs, not of the method.
      then: a switch that runs the method of this name over the records that came.
    """

    name: str
    help: str
    default: Any = None
    type: Callable[[str], Any] = str
    metavar: str | None = None
    option: str = ""
    least: int | None = None
    required: str = ""
    reads: bool = False
    then: str = ""

    @property
    def keyword(self) -> str:
        """The keyword argument that it sets."""
        return self.option or self.name

    @property
    def is_option(self) -> bool:
        """Whether it is an option of the method's class."""
        return not self.reads and not self.then

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flag to a command line."""
        if self.default is False:
            parser.add_argument(f"--{self.name}", action="store_true", help=self.help)
            return
        parser.add_argument(
            f"--{self.name}", metavar=self.metavar, type=self.type, default=self.default, help=self.help
        )

    def check(self, value: Any, command: str) -> None:
        """Raises UserError for a value that is missing or too small."""
        if self.required and not value:
            raise UserError(f"{command}: --{self.name} is missing ({self.required})")
        if self.least is not None and value is not None and value < self.least:
            raise UserError(f"--{self.name}={value}: must be {self.least} or more")


def codes(text: str) -> list[str]:
    """Language codes out of "ko, ja"."""
    return [c.strip() for c in text.split(",") if c.strip()]


# Of methods whose inputs are passages (data_gen.passages).
ORIGIN = (
    Flag(
        "from_language",
        "of inputs that do not say theirs (text, tables)",
        metavar="CODE",
        option="language",
        reads=True,
    ),
    Flag("license", "of inputs that do not say theirs", type=FreeText, metavar="TEXT", reads=True),
    Flag("field", "the JSON field, or the columns of a table, with commas", metavar="NAMES", reads=True),
)
LONGEST_PASSAGE = Flag(
    "max_chars", "longer passages are cut into parts", default=4000, type=int, metavar="N", least=200, reads=True
)
