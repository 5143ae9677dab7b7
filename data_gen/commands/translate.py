"""Cross-lingual translation of instruction and multiple-choice records; letters, order and key stay.

python -m data_gen translate --input=casimedicos_es.jsonl --language=ko,ja --output=casimedicos_ko_ja.jsonl
"""

from data_gen.commands.method import check, codes, inputs, parser_for, run_method
from data_gen.methods import Translate
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.data.records.schema import LANGUAGES

SUMMARY = "records into other languages"


def main(argv: list[str] | None = None) -> None:
    """The command; raises UserError for wrong flags or input, WorkError when rows are left pending."""
    parser = parser_for("translate", __doc__)
    parser.add_argument("--language", metavar="CODES", help=f"into these, with commas: {','.join(LANGUAGES)}")
    args = parser.parse_args(argv)
    check(args, "translate")
    if not args.language:
        raise UserError("translate: --language is missing (the languages to translate into, with commas)")
    method = Translate(codes(args.language), structured=not args.no_schema, redraws=args.redraws)
    run_method(method, args, lambda: inputs(args))


if __name__ == "__main__":
    run_command(main)
