"""The 21 topics of MMedBench as provenance.topic of each record.

python -m data_gen topics --input=mcq.jsonl --output=mcq_topics.jsonl
"""

from data_gen.commands.method import check, inputs, parser_for, run_method
from data_gen.methods import Topics
from mmed_jax.common.errors import run_command

SUMMARY = "records sorted into the 21 topics of MMedBench"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input, WorkError when rows are left pending."""
    parser = parser_for("topics", __doc__)
    parser.add_argument("--replace", action="store_true", help="also where a record has a topic")
    args = parser.parse_args(argv)
    check(args, "topics")
    method = Topics(replace=args.replace, structured=not args.no_schema, redraws=args.redraws)
    run_method(method, args, lambda: inputs(args))


if __name__ == "__main__":
    run_command(main)
