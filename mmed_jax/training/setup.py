"""What a run settles before its first step: model, tokenizer, length; its files; and the lines that say so."""

import contextlib
import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from mmed_jax.checkpoints.metrics_file import METRICS_FILE
from mmed_jax.checkpoints.run_directory import CONFIG_FILE, guard_run_dir, run_storage
from mmed_jax.common.buckets.download import address_of, fetch_model, open_input
from mmed_jax.common.errors import UserError, WorkError, nearest
from mmed_jax.common.paths import ASSETS, resolve_path
from mmed_jax.common.place_files import is_there
from mmed_jax.common.places import Place, is_bucket
from mmed_jax.config.recipes import load_config, recipe_names
from mmed_jax.config.values import planned_steps
from mmed_jax.data.chat import chat_format
from mmed_jax.data.plain_text import text_end
from mmed_jax.data.tokenizers.tokenizer import check_vocab, load_tokenizer, stop_ids
from mmed_jax.model.config import PRESETS, LlamaConfig, check, num_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mmed_jax.hf.open_model import ModelSource

# Fields of config.model that replace the preset's when they are not 0.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position_embeddings",
)


# The step counter is an int32.
MAX_STEPS = 2**31 - 1


def open_init(config: ConfigDict, base_dir: str = "") -> "ModelSource | None":
    """The model that config.init_from names, or None for random weights. Reads small files only.

    A run that has checkpoints continues from them and holds all the rest in its hf_assets/: it needs what it started
    from no longer, and is itself the model when that is gone. (Of a run with an adapter the checkpoints hold the
    adapter; the weights beneath it are opened by adapter_start.open_frozen and must be there.)

    Args:
      base_dir: of a model with an adapter, where the weights beneath it lie now; "" = where they lay.

    Raises:
      UserError: nothing there; for a stage that follows another, with the command that makes it.
    """
    if not config.init_from:
        return None
    from mmed_jax.hf.open_model import open_model

    try:
        path = fetch_model(config.init_from) if is_bucket(config.init_from) else resolve_path(config.init_from)
        ignore_keys = config.model.ignore_keys
        return open_model(path, ignore_keys=ignore_keys, base_dir=base_dir)
    except UserError as e:
        with contextlib.suppress(UserError):
            return open_model(config.run_dir, adapter_only=True)
        if config.name == "stage2" and config.init_from == f"runs/stage1-{config.variant}":
            variant = "" if config.variant == "demo" else f":{config.variant}"
            raise UserError(
                f"config.init_from: {e}. Stage 2 starts from stage 1: run `python -m mmed_jax.train "
                f"--config=stage1{variant}` first, or name a folder with --config.init_from=DIR"
            ) from e
        raise UserError(f"config.init_from: {e}") from e


def open_tokenizer(config: ConfigDict, source: "ModelSource | None") -> "PreTrainedTokenizerFast":
    """The tokenizer of the run: config.tokenizer, else that of the model it starts from.

    Raises:
      UserError: none named; no tokenizer there; it has no chat format and the records need one; or ids mean other
        tokens than those the model was trained with.
    """
    tok = _named_tokenizer(config, source)
    if config.data.kind == "document" or (config.data.kind == "mcq" and config.data.prompt_family == "mmedbench"):
        # Plain text.
        text_end(tok)
    else:
        chat_format(tok)
    return tok


def _named_tokenizer(config: ConfigDict, source: "ModelSource | None") -> "PreTrainedTokenizerFast":
    if config.tokenizer:
        named = config.tokenizer
        tok = load_tokenizer(ASSETS / "demo" if named == "demo" else open_input(named, "config.tokenizer"))
        if source is not None:
            _check_same_tokens(config.tokenizer, tok, source)
        return tok
    if source is None:
        raise UserError(
            "config.tokenizer is empty and there is no init_from to take it from: name an HF folder, a tokenizer.model "
            "or demo"
        )
    return source.tokenizer


def _check_same_tokens(name: str, tok: "PreTrainedTokenizerFast", source: "ModelSource") -> None:
    try:
        known = source.tokenizer
    except UserError:  # weights without a tokenizer: then config.tokenizer is how one is named
        return
    ours, theirs = ({i: t for t, i in x.get_vocab().items()} for x in (tok, known))
    different = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
    if different:
        i, place = different[0], address_of(source.path) or source.path
        raise UserError(
            f"config.tokenizer={name}: {len(different):,} ids mean other tokens than in {place} (the first is "
            f"{i}: {ours.get(i)!r} here, {theirs.get(i)!r} there); the model's own is taken with --config.tokenizer="
        )


def model_config(config: ConfigDict, source: "ModelSource | None", tok: "PreTrainedTokenizerFast") -> LlamaConfig:
    """The architecture: that of `source`, or the preset with the sizes that config.model sets; checked with `tok`.

    Raises:
      UserError: unknown preset, impossible sizes, rows longer than the model's positions, vocabulary mismatch.
    """
    if source is not None:
        cfg = source.cfg
    else:
        base = preset_config(config.model.preset, config.model)
        cfg = dataclasses.replace(
            base, bos_token_id=tok.bos_token_id, eos_token_id=stop_ids(tok), pad_token_id=tok.pad_token_id
        )
    check_vocab(tok, cfg.vocab_size)
    check_length(config, cfg)
    return cfg


def check_rate(config: ConfigDict, source: "ModelSource | None", given: Collection[str]) -> None:
    """Refuses the demo's learning rate for a model that is no demo: it would be destroyed in a few steps.

    Args:
      given: keys that were set on the command line.

    Raises:
      UserError: init_from is larger than the demo's model, and nobody has named a rate.
    """
    of_demo = config.variant.partition("-")[0] == "demo" and config.name in recipe_names()
    if source is None or not of_demo or "optim.lr" in given:
        return
    rate = load_config(f"{config.name}:{config.variant}").optim.lr
    params, of_demos = num_params(source.cfg), num_params(PRESETS["demo"])
    if config.optim.lr == rate and params > 2 * of_demos:
        custom = f"{config.name}:{config.variant.replace('demo', 'custom')}"
        raise UserError(
            f"config.init_from={config.init_from} has {params:,} parameters, and the demo's optim.lr={rate:g} is for "
            f"models of {of_demos:,}: --config={custom} chooses one by the size, or name one with --config.optim.lr"
        )


def check_length(config: ConfigDict, cfg: LlamaConfig) -> None:
    """Refuses rows longer than the model's positions.

    Raises:
      UserError: with both numbers.
    """
    if config.data.seq_len > cfg.max_position_embeddings:
        raise UserError(
            f"config.data.seq_len={config.data.seq_len} is longer than the model's max_position_embeddings="
            f"{cfg.max_position_embeddings}"
        )


def preset_config(preset: str, sizes: ConfigDict | None = None) -> LlamaConfig:
    """The architecture of a preset, with the sizes of config.model that are not 0.

    Raises:
      UserError: unknown preset, impossible sizes.
    """
    if preset not in PRESETS:
        raise UserError(f"config.model.preset={preset!r}{nearest(preset, PRESETS)}")
    changed = {name: sizes[name] for name in SIZES if sizes[name]} if sizes else {}
    base = PRESETS[preset]
    if "head_dim" not in changed and {"hidden_size", "num_heads"} & changed.keys():
        heads, hidden = changed.get("num_heads", base.num_heads), changed.get("hidden_size", base.hidden_size)
        if hidden % heads:
            raise UserError(f"config.model: hidden_size={hidden}, num_heads={heads}: not divisible; set head_dim")
        changed["head_dim"] = hidden // heads
    return check(dataclasses.replace(base, **changed), "config.model")


def describe_source(source: "ModelSource", name: str = "weights") -> str:
    """Where the weights came from, after they were loaded; of a run that did not reach its end, a warning too.

    name: of the line.
    """
    from mmed_jax.checkpoints.metrics_file import read_metrics
    from mmed_jax.hf.lora_model import LoraModel

    if isinstance(source, LoraModel) and source.peft:  # its path is that of the base
        return f"{name:10s} {address_of(source.peft.path) or source.peft.path}"
    place = address_of(source.path) or source.path
    text = f"{name:10s} {place}" + (f", step {source.step:,}" if source.step is not None else "")
    if source.kind == "run":
        events = read_metrics(place).events
        planned = [e["steps"] for e in events if e.get("event") == "start" and "steps" in e]
        early = [e["step"] for e in events if e.get("event") == "stopped_early"]
        if planned and source.step is not None and source.step < planned[-1] and source.step not in early[-1:]:
            text += f"\nwarning    that run stopped at step {source.step:,} of {planned[-1]:,}; it is not finished"
    return text


def total_steps(config: ConfigDict, rows: int) -> int:
    """Optimizer steps of the run: config.steps, or as many as show every row at least config.epochs times.

    Raises:
      UserError: more than the step counter can hold.
    """
    steps = planned_steps(config, rows)
    if steps > MAX_STEPS:
        key = "steps" if config.steps else "epochs"
        raise UserError(f"config.{key}={config[key]}: {steps:,} steps; must be at most {MAX_STEPS:,}")
    return steps


def write_run_files(
    run_dir: Place,
    config: ConfigDict,
    cfg: LlamaConfig,
    tok: "PreTrainedTokenizerFast",
    source: "ModelSource | None",
    *,
    finished: bool = False,
) -> None:
    """config.json of the run, and model config and tokenizer so that other commands need only the run directory.

    Called by every process, when the run directory is locked; the first one writes. Every file is whole at any moment,
    and one that is as it should be stays untouched; of a `finished` run only what is lost or damaged is written.

    Raises:
      UserError: meanwhile another run has saved checkpoints there.
      WorkError: they cannot be written.
    """
    from mmed_jax.hf.open_model import ASSETS
    from mmed_jax.hf.save import write_assets
    from mmed_jax.parallel.barriers import on_main

    def write() -> None:
        guard_run_dir(run_dir, config, write=not finished or not is_there(run_dir / CONFIG_FILE))
        generation = source.generation if source else None
        with run_storage(run_dir).put_folder(ASSETS) as stage:
            write_assets(stage, cfg, tok, dtype="float32", source_generation=generation)

    on_main(write)


def describe_start(config: ConfigDict, source: "ModelSource | None") -> dict[str, Any]:
    """What a checkpoint keeps of the weights that its run began with. JSON values.

    Args:
      source: what config.init_from names, opened and loaded; None = random weights.

    Returns:
      {"path": config.init_from, "kind", "step", "fingerprint"} (hf.model_source.identity), of random weights {"path"}.
    """
    from mmed_jax.hf.open_model import identity

    return {"path": config.init_from, **({} if source is None else identity(source))}


def check_data_state(meta: dict[str, Any], now: dict[str, Any], run_dir: Place) -> None:
    """Refuses to go on with other rows than before: the order of the data would no longer be what it was.

    Args:
      meta: of the checkpoint. now: the data state of this start.

    Raises:
      UserError: the packed table of the run had other contents.
    """
    saved = meta["data_state"]
    if saved.get("table") != now["table"]:
        raise UserError(
            f"run_dir={run_dir}: its training data has changed since step {meta['step']} (packed table "
            f"{saved.get('table')}, now {now['table']}): bring the record files and tokenizer back as they were, or "
            f"use another --config.run_dir with --config.init_from={run_dir}"
        )


def check_finite(step: int, metrics: dict[str, Any], stream: Any, log: Any) -> None:
    """Ends the run when a number of the step is NaN or infinite, naming the samples of its batch.

    Args:
      metrics: fetched from the devices. stream: the BatchStream of the run. log: its MetricsLogger, which gets an event
        with all the samples.

    Raises:
      WorkError: which number, at which step, in which batch. No checkpoint is written of that step or a later one.
    """
    bad = [k for k, v in metrics.items() if not np.all(np.isfinite(v))]
    if bad:
        names = stream.names(step - 1)
        log.event("not_finite", step, numbers=bad, samples=names)
        shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
        raise WorkError(
            f"step {step}: {', '.join(bad)} not finite; nothing is saved from this step on. Samples in its batch: "
            f"{shown}. Usual causes: optim.lr too high, damaged weights"
        )


def banner(config: ConfigDict, cfg: LlamaConfig, mesh: Any, facts: dict[str, str]) -> str:
    """The first lines of a run: nothing that decides it stays unsaid."""
    devices = list(mesh.devices.flat)
    kinds = sorted({d.device_kind for d in devices})
    hosts = len({d.process_index for d in devices})
    shape = " ".join(f"{a}={n}" for a, n in mesh.shape.items())
    lines = {
        "run": f"{config.name}:{config.variant}, output in {config.run_dir}",
        "platform": f"{devices[0].platform}, {len(devices)} x {', '.join(kinds)}, {hosts} process(es)",
        "mesh": shape,
        "model": (
            f"{num_params(cfg):,} parameters, {cfg.num_layers} layers, hidden {cfg.hidden_size}, "
            f"{cfg.num_heads}/{cfg.num_kv_heads} heads, vocabulary {cfg.vocab_size:,}, "
            f"from {config.init_from or 'random weights'}"
        ),
        "precision": f"{config.compute_dtype} compute, {config.param_dtype} weights, remat {config.remat}",
        **facts,
    }
    return "\n".join(f"{name:10s} {text}" for name, text in lines.items())


def closing(config: ConfigDict, step: int, steps: int, early: str = "") -> str:
    """The last lines of a run: where everything is and what comes next.

    early: why it ended before its last step and is complete, "" where it did not.
    """
    run = config.run_dir
    # Alone, as a PEFT folder; without the flag merged into its weights.
    adapter = "--adapter " if config.lora.rank else ""
    if step < steps and not early:
        kept = "saved" if step else "nothing to save yet"
        return f"stopped    at step {step:,} of {steps:,}, {kept}; run the same command again to continue"
    # The stages' adapters have other ranks; they go on with this one.
    rank = f" --config.lora.rank={config.lora.rank}" if config.lora.rank else ""
    # Where stage 2 looks by itself.
    start = "" if run == f"runs/stage1-{config.variant}" else f" --config.init_from={run}"
    following = {
        "pretrain": [f"python -m mmed_jax.train --config=stage1:{config.variant} --config.init_from={run}{rank}"],
        "stage1": [f"python -m mmed_jax.train --config=stage2:{config.variant}{start}{rank}"],
        "stage2": [f"python -m mmed_jax.export --model={run} {adapter}--output=exports/{Path(run).name}"],
    }.get(config.name, [])
    following.append(f"python -m mmed_jax.generate --model={run} --prompt=TEXT")
    numbers = METRICS_FILE.partition(".")[0] if is_bucket(run) else METRICS_FILE
    ended = f"{step:,} of {steps:,} steps, stopped early: {early}" if early else f"{step:,} steps"
    lines = [f"done       {ended}; numbers in {run}/{numbers}, curves in {run}/report.html"]
    return "\n".join(lines + [f"next       {c}" for c in following])
