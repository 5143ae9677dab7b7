"""What a run would cost, before anything is sent: rows, tokens, and dollars at most and by experience.

    python -m data_gen estimate rationale --input=medqa.jsonl --model=gpt-4o-mini
    python -m data_gen estimate build --recipe=mmed_ift --model=gpt-4o-mini

The same flags as the command itself (which does the same with --dry_run). The upper bound assumes that every answer
fills its room, is unusable and is asked for again, with twice the room, as often as the method does that; attempts that
fail on the way are not in it. "By experience" takes the prompts' and answers' mean length from the answers of the same
prompt version and model in the ledger, so that a sample (--limit=20) tells the price of the whole.
"""

import sys

from data_gen.commands.command_list import PRICED, find_command
from mmed_jax.common.errors import UserError, nearest, run_command

SUMMARY = "what a command would cost, without sending anything"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(f"usage: python -m data_gen estimate {{{','.join(PRICED)}}} [flags of that command]\n\n{__doc__}")
        return
    if args[0] not in PRICED:
        raise UserError(f"estimate: no command '{args[0]}'{nearest(args[0], PRICED)}")
    find_command(args[0]).main([*args[1:], "--dry_run"])


if __name__ == "__main__":
    run_command(main)
