"""python -m data_gen COMMAND ..."""

import sys
from contextlib import nullcontext

from data_gen.commands.command_list import COMMANDS, find_command
from mmed_jax.common.errors import UserError, nearest, run_command
from mmed_jax.common.loading import ended_at_once


def _help() -> str:
    lines = ["usage: python -m data_gen COMMAND [--help] ...", "", "commands:"]
    for name in COMMANDS:
        lines.append(f"  {name:<18} {find_command(name).SUMMARY}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Runs a command. Raises UserError where there is none of the name."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return
    if args[0] not in COMMANDS:
        raise UserError(f"data_gen: no command '{args[0]}'{nearest(args[0], COMMANDS)}")
    # Called by a program, that is its own affair.
    with ended_at_once() if argv is None else nullcontext():
        command = find_command(args[0])
    command.main(args[1:])


if __name__ == "__main__":
    run_command(main)
