"""The flags of the evaluate command, and what can be told wrong of them before anything is read, loaded or sent.

A model of one's own (--model) and a model behind an API (--api_model) have flags of their own. Those of the API are
mmed_jax.llm_api's, which is imported only when they are needed.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError
from mmed_jax.common.place_flags import FreeText, InputPlace, ResumedOutput
from mmed_jax.data.multiple_choice import FAMILIES
from mmed_jax.data.sources.encodings import known_encoding
from mmed_jax.evaluation import scoring
from mmed_jax.evaluation.metrics.text_similarity import check_metrics, default_metrics
from mmed_jax.evaluation.prompts.few_shot import MAX_EXAMPLES
from mmed_jax.inference.load import add_arguments


def parse_arguments(argv: Sequence[str], doc: str) -> argparse.Namespace:
    """The flags as a namespace; exactly one of `model` and `api_model` is a name, the other is None.

    Args:
      doc: what --help prints above them.
    Raises:
      UserError: an unknown flag, one of the other kind of model, or flags that contradict each other.
    """
    if {"-h", "--help"} & set(argv):
        _parser(doc, local=True, api=not _missing()).parse_args(argv)
    api, local = (any(a.partition("=")[0] == flag for a in argv) for flag in ("--api_model", "--model"))
    if api == local:
        both = "name one of --model and --api_model" if api else "name what to evaluate"
        raise UserError(f"{both}: --model=DIR, or --api_model=NAME with --base_url=URL for a model behind an API")
    if api and _missing():
        raise UserError(f"--api_model: needs the package {_missing()}, which is not installed (pip install -e .)")
    args, unknown = _parser(doc, local=local, api=api).parse_known_args(argv)
    if unknown:
        everything = _parser(doc, local=True, api=not _missing())
        flag = unknown[0].partition("=")[0]
        if flag not in {o for action in everything._actions for o in action.option_strings}:
            everything.unrecognized(unknown)
        raise UserError(f"{flag}: goes with {'--model=DIR' if api else '--api_model=NAME'}; leave it out")
    args.model, args.api_model = (None, args.api_model) if api else (args.model, None)
    if args.perplexity is None:
        _check_data(args)
    else:
        _check_perplexity(args, _parser(doc, local=local, api=api))
    return args


def split_names(text: str, flag: str) -> tuple[str, ...]:
    """The parts of "a, b". Raises UserError when there are none."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError(f"{flag}={text}: names nothing")
    return parts


def check_combination(args: argparse.Namespace, kind: str, mode: str, family: str, system: str) -> None:
    """Raises UserError for flags that contradict each other or the data (`kind` "mcq" or "instruction")."""
    if kind != "mcq":
        for flag in ("mode", "few_shot", "shuffle_options", "book", "images", "rationale_metrics"):
            value = getattr(args, flag)
            if value or (flag == "shuffle_options" and value is not None):
                raise UserError(f"--{flag}={value}: is for multiple choice; these are instruction records")
    if system and family == "mmedbench" and kind == "mcq":
        raise UserError("--system: the prompt family mmedbench has no place for a system message; pass --system=''")
    if mode == "loglikelihood" and args.api_model:
        raise UserError(
            "--mode=loglikelihood: endpoints give no log-probabilities of given texts; use --mode=direct or rationale"
        )
    if mode != "loglikelihood":
        for flag in ("score", "normalise"):
            if getattr(args, flag):
                raise UserError(f"--{flag}={getattr(args, flag)}: goes with --mode=loglikelihood; the mode is {mode}")
    elif args.max_new_tokens is not None:
        raise UserError("--max_new_tokens: --mode=loglikelihood writes nothing; leave it out")
    if args.normalise not in (None, "none") and args.score != "option":
        raise UserError(f"--normalise={args.normalise}: goes with --score=option; letters are compared as they are")
    if mode != "rationale" and args.rationale_metrics:
        raise UserError(f"--rationale_metrics: goes with --mode=rationale; the mode is {mode}")
    if args.rationale_metrics:
        check_metrics(split_names(args.rationale_metrics, "--rationale_metrics"), args.bertscore_model)


def _missing() -> str:
    """The package that a model behind an API needs and that is not there, or ""."""
    return "" if find_spec("openai") else "openai"


def _parser(doc: str, *, local: bool, api: bool) -> Parser:
    parser = Parser(prog="python -m mmed_jax.evaluate", description=doc)
    if local:
        add_arguments(parser)
    add = parser.add_argument
    add("--benchmark", metavar="NAME[,NAME]", help="registered names (see list), 'papers', or record files NAME.jsonl")
    add("--data_dir", type=InputPlace, metavar="DIR|hub", help="where --benchmark names are looked up")
    add("--data", type=InputPlace, metavar="FILE[,FILE]", help="record files, instead of --benchmark")
    add(
        "--perplexity",
        type=InputPlace,
        metavar="FILE|DIR[,..]",
        help="score texts instead: documents (.jsonl, .gz, .zst), a folder of them, a corpus, or a table's folder",
    )
    add("--seq_len", type=int, metavar="N", help="of --perplexity: tokens that are read at a time (default: 2048)")
    add("--stride", type=int, metavar="N", help="of --perplexity: of a window, those scored in it (default: half)")
    add("--split", help="of --benchmark, instead of the one that is reported")
    add("--allow_count_mismatch", action="store_true", help="go on when a split has not the published size")
    add("--encoding", metavar="NAME", default="", help="of published text files that are not UTF-8, as cp949")
    add("--kind", default="auto", help="mcq or instruction (default: what the records are)")
    add("--mode", choices=scoring.MODES, help="the letter alone, after a rationale, or scored (default: direct)")
    add("--score", choices=scoring.SCORES, help="of loglikelihood: the option's letter (default) or its text")
    add(
        "--normalise",
        choices=scoring.NORMALISE,
        help="what log-likelihoods of texts are divided by before they are compared (default: bytes)",
    )
    add("--prompt_family", choices=FAMILIES, help="default: as the run was trained, else llama3")
    add("--system", type=FreeText, metavar="TEXT", help="system message (default: as the run was trained, else none)")
    add("--few_shot", type=int, default=0, metavar="N", help=f"examples before each question, 0 to {MAX_EXAMPLES}")
    add(
        "--few_shot_data",
        type=InputPlace,
        metavar="FILE",
        help="records to take them from (default: the benchmark's other splits)",
    )
    add("--shuffle_options", type=int, metavar="SEED", help="ask the options in an order drawn with this seed")
    add("--book", choices=("open", "closed"), help="with or without the passage (default: open where there is one)")
    add("--images", choices=("ask", "skip"), help="questions that need one (default: asked if the published count is)")
    add(
        "--rationale_metrics",
        metavar="NAME[,NAME]",
        nargs="?",
        const=",".join(default_metrics()),
        help="of --mode=rationale, against the reference (default of the bare flag: all but bertscore)",
    )
    add("--human_checked", action="store_true", help="--rationale_metrics only where people passed the reference")
    add("--bertscore_model", type=InputPlace, metavar="DIR", help="for --rationale_metrics=..,bertscore")
    add("--languages", metavar="en,zh,..", help="only these")
    add("--limit", type=int, default=0, help="at most so many items a language (or part) and benchmark (or source)")
    add("--max_new_tokens", type=int, help=f"default: {scoring.MAX_NEW_TOKENS}")
    add(
        "--baseline",
        type=InputPlace,
        metavar="[NAME=]DIR",
        help="an earlier evaluation, as of the untrained model, that report.html shows with this one",
    )
    add("--output", required=True, type=ResumedOutput, metavar="DIR", help="where results go")
    if api:
        from mmed_jax.evaluation.models.api import add_flags

        add_flags(parser)
    return parser


# What goes with --perplexity besides the flags of a model; all others are of questions.
_OF_TEXTS = ("perplexity", "seq_len", "stride", "languages", "limit", "output")
_OF_MODEL = "model adapter base step ignore_keys dtype batch_size mesh_data mesh_tensor".split()


def _check_perplexity(args: argparse.Namespace, parser: Parser) -> None:
    if args.api_model is not None:
        raise UserError("--perplexity: endpoints give no log-probabilities of given texts; name a --model=DIR")
    for name, value in vars(args).items():
        if name not in (*_OF_TEXTS, *_OF_MODEL, "api_model") and value != parser.get_default(name):
            raise UserError(f"--{name}: is for questions, and --perplexity scores texts; leave one of them out")
    if args.limit < 0:
        raise UserError(f"--limit={args.limit}: must be 0 (all) or more")


def _check_data(args: argparse.Namespace) -> None:
    for flag in ("seq_len", "stride"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag}: goes with --perplexity=FILE; questions are read whole")
    if bool(args.data) == bool(args.benchmark):
        raise UserError("name what to evaluate on: either --data=FILE or --benchmark=NAME with --data_dir=DIR")
    if args.benchmark and not args.data_dir:
        raise UserError("--benchmark: needs --data_dir=DIR, the folder with the files, or --data_dir=hub")
    if args.data and args.data_dir:
        raise UserError("--data_dir: goes with --benchmark=NAME; --data=FILE names the file itself")
    if args.data and args.split:
        raise UserError(f"--split={args.split}: goes with --benchmark=NAME; write --data=PATH:{args.split}")
    if args.encoding and not args.benchmark:
        raise UserError(f"--encoding={args.encoding}: goes with --benchmark=NAME; record files are UTF-8")
    if args.encoding:
        known_encoding(args.encoding)
    if args.data and args.allow_count_mismatch:
        raise UserError("--allow_count_mismatch: goes with --benchmark=NAME; files of your own are not counted")
    if args.limit < 0:
        raise UserError(f"--limit={args.limit}: must be 0 (all) or more")
    if not 0 <= args.few_shot <= MAX_EXAMPLES:
        raise UserError(f"--few_shot={args.few_shot}: must be 0 to {MAX_EXAMPLES}")
    if args.few_shot_data and not args.few_shot:
        raise UserError("--few_shot_data: goes with --few_shot=N, how many of its records are shown")
    for flag in ("human_checked", "bertscore_model"):
        if getattr(args, flag) and not args.rationale_metrics:
            raise UserError(f"--{flag}: goes with --rationale_metrics")
