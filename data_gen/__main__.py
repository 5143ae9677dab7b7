"""python -m data_gen COMMAND ...: every command is a module here with `SUMMARY` and `main(argv)`."""

import importlib
import sys

from mmed_jax.common.errors import UserError, nearest, run_command

# Order of use. A new command is a new module and a new name here.
COMMANDS = ("convert", "handcraft", "expand", "qa", "translate", "rationale", "topics", "build", "estimate", "ledger")


# Commands whose module has another name.
def _module(name: str):
    return importlib.import_module(f"data_gen.commands.{name}")


def _help() -> str:
    lines = ["usage: python -m data_gen COMMAND [--help] ...", "", "commands:"]
    for name in COMMANDS:
        lines.append(f"  {name:<12} {_module(name).SUMMARY}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return
    if args[0] not in COMMANDS:
        raise UserError(f"data_gen: no command '{args[0]}'{nearest(args[0], COMMANDS)}")
    _module(args[0]).main(args[1:])


if __name__ == "__main__":
    run_command(main)
