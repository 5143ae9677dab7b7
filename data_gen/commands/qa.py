"""Question-answer pairs from passages: text, tables (.csv, .tsv, .xlsx), JSON lines, records with a passage.

python -m data_gen qa --input=rumeddanet.jsonl --pairs=3 --output=rumeddanet_qa.jsonl
python -m data_gen qa --input=drugs.xlsx --from_language=ko --language=en --license="KOGL 1" --output=drugs_en.jsonl
"""

from collections.abc import Iterator

from data_gen.commands.method import check, inputs, parser_for, run_method
from data_gen.methods import QA
from data_gen.methods.passages import read_passages
from mmed_jax.common.errors import UserError, run_command

SUMMARY = "question-answer pairs from passages, tables and documents"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input, WorkError when rows are left pending."""
    parser = parser_for("qa", __doc__)
    parser.add_argument("--pairs", metavar="N", type=int, default=3, help="pairs a passage (default 3)")
    parser.add_argument("--language", metavar="CODE", help="of the pairs; default: the passage's own")
    parser.add_argument("--from_language", metavar="CODE", help="of inputs that do not say theirs (text, tables)")
    parser.add_argument("--license", metavar="TEXT", help="of inputs that do not say theirs")
    parser.add_argument("--field", metavar="NAMES", help="the JSON field, or the columns of a table, with commas")
    parser.add_argument("--min_chars", metavar="N", type=int, default=80, help="shorter passages are left out")
    parser.add_argument("--max_chars", metavar="N", type=int, default=4000, help="longer passages are cut into parts")
    args = parser.parse_args(argv)
    check(args, "qa")
    if args.max_chars < 200:
        raise UserError(f"--max_chars={args.max_chars}: must be 200 or more")
    method = QA(
        pairs=args.pairs,
        language=args.language,
        min_chars=args.min_chars,
        structured=not args.no_schema,
        redraws=args.redraws,
    )

    def read(path: str) -> Iterator[dict]:
        return read_passages(
            path, language=args.from_language, license=args.license, field=args.field, max_chars=args.max_chars
        )

    run_method(method, args, lambda: inputs(args, read))


if __name__ == "__main__":
    run_command(main)
