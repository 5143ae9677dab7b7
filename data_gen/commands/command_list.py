"""The commands of data_gen: those of the methods, and the modules here with `SUMMARY` and `main(argv)`."""

import importlib
from typing import Any

from data_gen.commands.method_command import COMMANDS as METHOD_COMMANDS

# Order of use. A command that is no method is a new module and a new name here.
COMMANDS = (
    "convert",
    "handcraft",
    *METHOD_COMMANDS,
    "build",
    "check",
    "compare-mmedbench",
    "push",
    "corpus",
    "estimate",
    "ledger",
)
PRICED = (*METHOD_COMMANDS, "build")  # they have --dry_run


def find_command(name: str) -> Any:
    """What has the `SUMMARY` and `main(argv)` of one of COMMANDS."""
    return METHOD_COMMANDS.get(name) or importlib.import_module(f"data_gen.commands.{name.replace('-', '_')}")
