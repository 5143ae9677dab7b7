"""Answer expanding: records with short or letter-only answers in, instruction records with full answers out.

python -m data_gen expand --input=medqa.jsonl --output=medqa_full.jsonl --model=gpt-4o-mini
python -m data_gen expand --input=faq.jsonl --output=faq_full.jsonl --max_chars=120 --limit=20
"""

from data_gen.commands.method import check, inputs, parser_for, run_method
from data_gen.methods import Expand
from mmed_jax.common.errors import run_command

SUMMARY = "short answers into full ones"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input, WorkError when rows are left pending."""
    parser = parser_for("expand", __doc__)
    parser.add_argument("--max_chars", metavar="N", type=int, help="answers longer than this are long already")
    args = parser.parse_args(argv)
    check(args, "expand")
    method = Expand(max_chars=args.max_chars, structured=not args.no_schema, redraws=args.redraws)
    run_method(method, args, lambda: inputs(args))


if __name__ == "__main__":
    run_command(main)
