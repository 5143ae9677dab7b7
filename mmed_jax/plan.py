"""Says whether a run fits and how fast it is on chips that are not here, by compiling its step for them.

    python -m mmed_jax.plan --config=stage1:8b --topology=v5p-128 [--config.KEY=VALUE ...]
    python -m mmed_jax.plan --config=stage1:8b --topology=v6e-64 --price=2.7 --json=plan.json

TPU slices by their cloud names (v4-32, v5p-128, v5e-64, v6e-256, tpu7x-128, 2xv5p-128) are compiled by the real TPU
compiler, which needs no TPU (extra `plan`: libtpu, Linux x86-64). GPUs (gpu:8xh100-80g) are planned by arithmetic.
Weights, tokenizer and records need not be there. Exit code 1: it does not fit; the last lines say what to change.

    python -m mmed_jax.plan --config=stage1:8b-lora --topology=v5e-8        or gpu:1xh100-80g

plans an adapter (LoRA): frozen weights as lora.base stores them, gradients and moments of the adapter alone. Its FLOPs
a token are 4 x matmul parameters + causal attention + 6 x the adapter's, in place of 6 x matmul parameters.

    python -m mmed_jax.plan --config=stage1:8b --topology=v5p-128 --search --output=found.py
    python -m mmed_jax.train --config=found.py

looks for the fastest setting that fits. Ctrl-C keeps what was found; the same command goes on from there. During a
compilation Ctrl-C takes effect when that ends.
"""

import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

# Only the compiler is used: a TPU of this machine stays free for others.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

from ml_collections import ConfigDict

from mmed_jax.common import console
from mmed_jax.common.buckets.download import NotThere, look
from mmed_jax.common.buckets.local_places import local_places
from mmed_jax.common.errors import UserError, WorkError, nearest, one_line, run_command
from mmed_jax.common.output_files import check_file, write_text
from mmed_jax.common.paths import resolve_path
from mmed_jax.common.place_flags import OutputPlace
from mmed_jax.common.places import is_bucket
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.overrides import parse_args
from mmed_jax.config.recipes import CONFIG_DIR, load_module
from mmed_jax.config.values import batch_rows
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel.chips import GIB
from mmed_jax.planning import advice, plan_report, topology
from mmed_jax.planning.found_config import check_output
from mmed_jax.planning.plan_result import PlanResult
from mmed_jax.planning.planner import CACHE, plan, with_parts
from mmed_jax.training import setup

FLAGS = {
    "topology": ("", "slice by its cloud name: v5p-128, v6e-64, 2xv5e-256, gpu:8xh100-80g"),
    "json": (OutputPlace(), "also write the plan to this file"),
    "price": (0.0, "of one chip and hour: adds the cost of the run"),
    "tokens": (0.0, "tokens of one epoch, padding included; without, the record files are packed and counted if there"),
    "no_verify": (False, "advice for a configuration that does not fit: by arithmetic only"),
    "no_cache": (False, "compile even if this configuration was compiled before"),
    "search": (False, "try settings by compiling and print the frontier of memory against speed"),
    "output": ("", "with --search: write the winner as a config file that train takes"),
    "max_compiles": (8, "with --search: settings to compile"),
    "batches": ("", "with --search: other global batches to try, as 64,256 sequences; they change what is learned"),
    "bases": ("", "with --search: other kinds of frozen weights (lora.base) to try, as int8,nf4; they are rounded"),
}


def main(argv: list[str] | None = None) -> None:
    """Plans what the command line describes; see the module's docstring and --help."""
    config, flags = parse_args(argv, description=__doc__, extra=FLAGS, accelerator=True)
    for line in flags.chosen:
        print(f"chosen     {line}", flush=True)
    with local_places(flags) as places:
        plan_config(config, places)


def plan_config(config: ConfigDict, flags: SimpleNamespace) -> None:
    """Plans one configuration, or searches; errors as of `main`."""
    # ---- What to plan: everything that can be refused is, before anything is compiled -----------------------------
    check_flags(flags)
    batches, bases = parse_batches(flags.batches), parse_bases(flags.bases, config)
    target = topology.parse(flags.topology)
    if flags.output or flags.json:
        console.outlive()
    json_file = check_file(flags.json, "--json") if flags.json else None
    if flags.output:
        check_output(flags.output, flags.config)
    cfg, assumed = architecture(config)
    setup.check_length(config, cfg)
    config = with_parts(config, target)
    tokens, length = run_tokens(config, flags.tokens)
    notes = [note for note in (assumed, length) if note]
    options = {"cache_dir": None if flags.no_cache else CACHE, "say": lambda line: print(line, flush=True)}

    # ---- The fastest setting that fits -----------------------------------------------------------------------------
    if flags.search:
        from mmed_jax.planning.search import search

        search(
            config,
            cfg,
            target,
            recipe=flags.config,
            output=flags.output,
            batches=batches,
            bases=bases,
            max_compiles=flags.max_compiles,
            run_tokens=tokens,
            price=flags.price,
            notes=notes,
            **options,
        )
        return

    # ---- Or this one: compiled, measured, printed ------------------------------------------------------------------
    result = plan(config, cfg, target, **options)
    result.notes += notes
    print(plan_report.table(result, run_tokens=tokens, price=flags.price), flush=True)

    def write_json(change: advice.Advice | None = None) -> None:
        if json_file:
            content = plan_report.to_json(result, run_tokens=tokens, price=flags.price, advice=change)
            write_text(json_file, json.dumps(content, indent=2) + "\n")

    write_json()
    if not result.fits:
        fail_with_advice(config, cfg, target, result, write_json, verify=not flags.no_verify, **options)


def fail_with_advice(
    config: ConfigDict,
    cfg: LlamaConfig,
    target: topology.Topology,
    result: PlanResult,
    write_json: Callable[[advice.Advice], None],
    **options: Any,
) -> NoReturn:
    """Says what to change so that the configuration fits. Raises WorkError: it does not as it is."""
    largest = result.terms[0]
    verdict = WorkError(
        f"{config.name}:{config.variant} does not fit on {target.name}: most goes to {largest['name']} "
        f"({largest['bytes'] / GIB:.1f} GiB a {result.unit} by arithmetic)"
    )
    # That it does not fit is known, and said, whatever becomes of the advice.
    try:
        change = advice.advise(config, cfg, target, result, **options)
        print("\n".join(change.lines()), flush=True)
        write_json(change)
    except KeyboardInterrupt as e:
        print("next       stopped by Ctrl-C before it was found; --no_verify gives it by arithmetic", flush=True)
        raise verdict from e
    except Exception as e:
        print(f"next       nothing was found: {one_line(e)}", flush=True)
        raise verdict from e
    raise verdict


def check_flags(flags: SimpleNamespace) -> None:
    """Refuses flags that are missing, out of range or do not go together. Raises UserError."""
    if not flags.topology:
        raise UserError(f"--topology is missing: name a slice, for example {', '.join(topology.names()[8:40:9])}")
    for name in ("price", "tokens"):
        if not 0 <= getattr(flags, name) < float("inf"):
            raise UserError(f"--{name}={getattr(flags, name)}: must be a number of at least 0")
    for name in ("output", "batches", "bases"):
        if getattr(flags, name) and not flags.search:
            raise UserError(f"--{name} goes with --search")
    if flags.json and flags.search:
        raise UserError("--json is for one plan; --search writes --output=FILE.py")
    if flags.max_compiles < 1:
        raise UserError(f"--max_compiles={flags.max_compiles}: must be at least 1")


def parse_batches(text: str) -> tuple[int, ...]:
    """Global batches of --batches=64,256.

    Raises:
      UserError: not positive whole numbers.
    """
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdecimal() and int(p) for p in parts):
        raise UserError(f"--batches={text}: whole numbers of sequences, for example 64,256")
    return tuple(int(p) for p in parts)


def parse_bases(text: str, config: ConfigDict) -> tuple[str, ...]:
    """Kinds of frozen weights of --bases=int8,nf4.

    Raises:
      UserError: no such kind, or nothing is frozen.
    """
    parts = tuple(p.strip() for p in text.split(",") if p.strip())
    known = KEYS["lora.base"].choices
    for part in parts:
        if part not in known:
            raise UserError(f"--bases={text}: there is no '{part}'{nearest(part, known)}")
    if parts and not config.lora.rank:
        raise UserError(f"--bases={text}: lora.rank is 0, so that all weights are trained and none is frozen")
    return parts


def architecture(config: ConfigDict) -> tuple[LlamaConfig, str]:
    """The architecture to plan for: that of init_from when it is there, else of the variant's preset.

    Returns:
      (architecture, a line that says which was assumed, "" when nothing was)

    Raises:
      UserError: neither is known.
    """
    if config.init_from and _is_there(config.init_from):
        return setup.open_init(config).cfg, ""
    if not config.init_from:
        return setup.preset_config(config.model.preset, config.model), ""
    presets = load_module(CONFIG_DIR / "hardware.py").PRESETS
    demo = config.variant in ("demo", "demo-lora")
    preset = presets.get(config.variant, config.model.preset if demo else "")
    if not preset:
        raise UserError(
            f"config.init_from={config.init_from} is not there, and variant '{config.variant}' has no preset in "
            "configs/hardware.py: nothing says which architecture to plan for"
        )
    cfg = setup.preset_config(preset, config.model if demo else None)
    return cfg, f"config.init_from={config.init_from} is not there: the architecture of {preset} is assumed"


def _is_there(text: str) -> bool:
    """Whether a path or an address of the config names something. Raises UserError, WorkError: the bucket refuses."""
    if not is_bucket(text):
        return resolve_path(text).exists()
    try:
        look(text)
    except NotThere:
        return False
    return True


def run_tokens(config: ConfigDict, epoch_tokens: float) -> tuple[float | None, str]:
    """Tokens of rows, padding included, that the whole run shows the model; None when nothing tells.

    Returns:
      (tokens, a line that says what else was given or what is missing, else "")
    """
    a_step = batch_rows(config) * config.data.seq_len
    if config.steps:
        unused = f"the run's length is config.steps={config.steps:,}; --tokens is not used" if epoch_tokens else ""
        return float(config.steps * a_step), unused
    if epoch_tokens:
        return config.epochs * epoch_tokens, ""
    for path in config.data.train:
        if not _is_there(path):
            return None, f"the run's length is not known: config.data.train: {path} is not there"
    try:
        # Weights need not be there when the config names a tokenizer.
        tok = setup.open_tokenizer(config, None if config.tokenizer else setup.open_init(config))
    except UserError as e:
        return None, f"the run's length is not known: no tokenizer to count its records: {one_line(e)}"
    from mmed_jax.data.prepare import prepare

    rows = len(prepare(config, tok).train)
    return float(setup.total_steps(config, rows) * a_step), ""


if __name__ == "__main__":
    run_command(main)
