"""Rationales for multiple-choice records: why the keyed options are right.

python -m data_gen rationale --input=kormedmcqa.jsonl --output=kormedmcqa_explained.jsonl
python -m data_gen rationale --input=headqa.jsonl --language=en --output=headqa_explained_en.jsonl
"""

from data_gen.commands.method import check, inputs, parser_for, run_method
from data_gen.methods import Rationale, Reanswer
from mmed_jax.common.errors import run_command
from mmed_jax.data.records.reading import read_records

SUMMARY = "explanations for multiple-choice records"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input, WorkError when rows are left pending."""
    parser = parser_for("rationale", __doc__)
    parser.add_argument("--language", metavar="CODE", help="of the rationale; default: the record's own")
    parser.add_argument("--reanswer", action="store_true", help="then ask blind for the answer; flag keys it disputes")
    parser.add_argument("--replace", action="store_true", help="also where a record has a rationale")
    args = parser.parse_args(argv)
    check(args, "rationale")
    method = Rationale(
        language=args.language, replace=args.replace, structured=not args.no_schema, redraws=args.redraws
    )
    then = (Reanswer(structured=not args.no_schema, redraws=args.redraws),) if args.reanswer else ()
    run_method(method, args, lambda: inputs(args, lambda path: read_records(path, "mcq")), then)


if __name__ == "__main__":
    run_command(main)
