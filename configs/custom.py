"""Variants custom, custom-lora and custom-qlora of every stage: one's own model, with values that go with its size.

    python -m mmed_jax.train --config=stage1:custom --config.init_from=FOLDER --config.data.train=records/stage1.jsonl
    python -m mmed_jax.plan --config=stage1:custom-lora --config.init_from=FOLDER --topology=gpu:1xh100-80g

Chosen, unless the command line says otherwise; the first lines of a run say each value and what it was chosen from:

optim.lr       by the number of parameters, between the two sizes of the stage's table that lie around it: its logarithm
               runs straight over theirs. More than the 70b: its rate. Fewer than the 1b: the 1b's rate grows with
               1 / sqrt(parameters), to five times it at most. With adapters ten times as much, as in the tables.
data.seq_len   2048 as in the tables; on a CPU 1024, but of documents; never more than the model's positions
batch_size     as in the stage's table; on a CPU 16
compute_dtype  bfloat16; on a CPU float32
remat          as in the tables ("full", with adapters minimal_ctx below 20 B); on a CPU none below 0.5 B
micro_rows     rows a device at a time, however many devices there are (grad_accum=0): fewer the larger the model is
platform       accelerator, so that a run for one does not start on a CPU unseen
eval_answers   as in the stage's file, with eval_questions where there is multiple choice; none on a CPU, being slow
best_metric    accuracy (checkpoint.best_metric) where stage 2 asks questions, else the loss

The rates between the sizes and below the 1b are our choice, as are the batch and length on a CPU. Whether there is an
accelerator is seen by its device files (and JAX_PLATFORMS), since no device may be touched before hosts have met;
`mmed_jax.plan` always plans for one. A run that has checkpoints goes on with what was chosen when it began, whatever
the devices are now; only what changes nothing that is trained is chosen anew (remat, micro_rows, platform,
evaluations).
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import hardware, pretrain, stage1, stage2
from mmed_jax.checkpoints.run_directory import saved_config, step_folders
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.places import parse_place
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.recipes import load_config
from mmed_jax.config.values import flatten
from mmed_jax.model.config import PRESETS, LlamaConfig, num_params
from mmed_jax.parallel.devices import accelerator_attached
from mmed_jax.training.setup import open_init

RATES = {
    "pretrain": dict.fromkeys(stage1.SIZES, pretrain.LEARNING_RATE),
    "stage1": stage1.LEARNING_RATE,
    "stage2": stage2.LEARNING_RATE,
}
BATCH = {"pretrain": 512, "stage1": 128, "stage2": 128}
CPU_BATCH, SEQ_LEN, CPU_SEQ_LEN = 16, 2048, 1024
# The least that 1 / sqrt(parameters) leads to, as a factor of the smallest size's rate.
MOST_GROWTH = 5.0
# Rows a device at a time: (fewer parameters than, rows).
MICRO_ROWS = ((0.5e9, 16), (2e9, 8), (10e9, 4), (math.inf, 1))


class Choice(NamedTuple):
    """A key's value and what it was chosen from."""

    key: str
    value: Any
    source: str


def choose(config: ConfigDict, given: Collection[str], accelerator: bool | None, base_dir: str) -> list[str]:
    """Sets what the recipe leaves open, in place.

    Args:
      config: of a custom variant, with its overrides. given: the keys that these name.
      accelerator: whether it will run on one; None = as this machine looks. base_dir: as of setup.open_init.

    Returns:
      A line for each value: "optim.lr=6.1e-05, chosen from ...".

    Raises:
      UserError: no init_from, or nothing there that can be read.
    """
    recipe = f"{config.name}:{config.variant}"
    if config.name not in RATES:
        raise UserError(f"config.name={config.name}: has no variant {config.variant}{nearest(config.name, RATES)}")
    if not config.init_from:
        raise UserError(
            f"--config={recipe}: name your model, --config.init_from=FOLDER (a Hugging Face folder or a run); its size "
            "decides the learning rate and more"
        )
    source = open_init(config, base_dir)
    assert source is not None
    on_accelerator = accelerator_attached() if accelerator is None else accelerator
    before, open_values = _of_run(config), flatten(load_config(recipe))
    lines = []
    for key, value, reason in choices(config, source.cfg, on_accelerator):
        now = flatten(config)[key]
        # Set by the command line, or by a recipe that was made from this one.
        if key in given or now != open_values[key] or (key == "batch_size" and config.batch_tokens):
            continue
        # A batch in tokens left its number of rows at 0.
        if before.get(key) and not KEYS[key].may_change:
            value, reason = before[key], f"what the run in {config.run_dir} began with"
        *groups, leaf = key.split(".")
        node = config[groups[0]] if groups else config
        with node.unlocked():
            node[leaf] = value
        lines.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
        lines[-1] += f", chosen from {reason}"
    return lines


def choices(config: ConfigDict, cfg: LlamaConfig, on_accelerator: bool) -> list[Choice]:
    """Every value for a model of this size."""
    params, lora = num_params(cfg), config.lora.rank > 0
    size = f"{params:,} parameters"
    rate, place = learning_rate(RATES[config.name], params)
    if lora:
        rate, place = float(f"{rate * stage1.LORA_FACTOR:.2g}"), f"{place}; x {stage1.LORA_FACTOR} for adapters"
    machine, table = "the accelerator" if on_accelerator else "a CPU", f"the table of {config.name}"
    wanted = SEQ_LEN if on_accelerator or config.data.kind == "document" else CPU_SEQ_LEN
    length = min(wanted, cfg.max_position_embeddings)
    batch = BATCH[config.name] if on_accelerator else CPU_BATCH
    if not on_accelerator:
        # A quantised base would be kept decoded without.
        remat = "none" if params < 0.5e9 and config.lora.base == "compute" else "full"
    else:
        remat = "minimal_ctx" if lora and params < 20e9 else "full"
    rows = next(n for most, n in MICRO_ROWS if params < most)
    # Beneath an adapter less is computed twice, and more is kept: from the 1b's size on one, nearly as in the tables.
    rows = 1 if not on_accelerator else max(1, rows // 4) if lora else rows
    return [
        Choice("optim.lr", rate, f"{size} ({place})"),
        Choice("data.seq_len", length, f"{cfg.max_position_embeddings:,} positions of the model, {machine}"),
        Choice("batch_size", batch, table if on_accelerator else f"{machine}; {table} has {BATCH[config.name]}"),
        Choice("compute_dtype", "bfloat16" if on_accelerator else "float32", machine),
        Choice("remat", remat, f"{size}, {machine}"),
        Choice("grad_accum", 0, "the devices that take part: as few parts as micro_rows allows"),
        Choice("micro_rows", rows, f"{size}, {machine}"),
        Choice("platform", "accelerator" if on_accelerator else "any", machine),
        *_evaluations(config, on_accelerator, f"{machine}; {table}"),
    ]


def _evaluations(config: ConfigDict, on_accelerator: bool, source: str) -> list[Choice]:
    """What is asked and answered at an evaluation, as far as the stage leaves it open, and what the best one is by."""
    chosen = []
    if config.name != "pretrain":
        chosen += [Choice("eval_answers", 5 if on_accelerator and config.data.kind != "document" else 0, source)]
    if config.name == "stage2":
        has_questions = config.data.kind in ("mcq", "mixed")
        number = 500 if on_accelerator and has_questions else 0
        asked = number if config.eval_questions < 0 else config.eval_questions
        metric = "validation/accuracy" if asked and has_questions else "validation/loss"
        chosen += [
            Choice("eval_questions", number, source if has_questions else f"data.kind={config.data.kind}"),
            Choice("checkpoint.best_metric", metric, f"eval_questions={asked}"),
        ]
    return chosen


def learning_rate(rates: dict[str, float], params: int) -> tuple[float, str]:
    """(the rate for a model with so many parameters, to two digits; how it was found). rates: by size of the tables."""
    known = sorted((num_params(PRESETS[hardware.PRESETS[size]]), rate, size) for size, rate in rates.items())
    (least, first, smallest), (most, last, largest) = known[0], known[-1]
    if params < least:
        factor = min(MOST_GROWTH, math.sqrt(least / params))
        return _rounded(first * factor), f"smaller than {smallest}, whose {first:g} grows with 1 / sqrt, x {factor:.2g}"
    if params >= most:
        return last, f"that of {largest}"
    for (n, low, small), (above, high, large) in zip(known, known[1:], strict=False):
        if params == n:
            return low, f"that of {small}"
        if params < above:
            share = math.log(params / n) / math.log(above / n)
            return _rounded(low * (high / low) ** share), f"between {small} with {low:g} and {large} with {high:g}"
    raise AssertionError(params)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def _of_run(config: ConfigDict) -> dict[str, Any]:
    """The values that the run of the same model in run_dir began with; {} where there is none with checkpoints."""
    place = parse_place(config.run_dir, "config.run_dir")
    saved = saved_config(place) if step_folders(place) else None
    if saved is None or any(saved.get(k) != config[k] for k in ("name", "variant", "init_from")):
        return {}
    try:
        return flatten(ConfigDict(saved, allow_dotted_keys=True))
    except (TypeError, ValueError):
        return {}
