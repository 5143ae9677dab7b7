"""Checks of a config: values and combinations that need no file and no device."""

import re
from typing import Any

from ml_collections import ConfigDict

from mmed_jax.common.errors import UserError
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.lora_keys import check_lora
from mmed_jax.config.values import batch_rows, flatten


def validate(config: ConfigDict) -> None:
    """Checks values and combinations that need no file and no device.

    Raises:
      UserError: the first thing wrong, with the key, the value and what is valid.
    """
    flat = flatten(config)
    for name, key in KEYS.items():
        key.check(name, flat[name])
    if flat["xla_flags"] not in ("auto", "none"):
        parse_xla_flags(flat["xla_flags"])
    if flat["data.kind"] in ("mcq", "mixed") and not flat["data.modes"]:
        raise UserError("config.data.modes is empty: name rationale, direct or both")
    _check_documents(flat)
    _check_length_and_batch(config, flat)
    if flat["optim.warmup_steps"] and flat["optim.warmup_ratio"]:
        raise UserError("config.optim: set warmup_steps or warmup_ratio to 0; both are given")
    for name, key in KEYS.items():
        if key.adamw_only and flat["optim.name"] == "adafactor" and flat[name] != key.default:
            raise UserError(f"config.{name}={flat[name]}: adafactor has none; leave it at {key.default}")
    check_lora(flat)
    _check_evaluation(flat)
    own = ("model.preset", "model.ignore_keys")
    sizes = any(v for k, v in flat.items() if k.startswith("model.") and k not in own)
    if flat["init_from"] and (sizes or flat["model.preset"] != KEYS["model.preset"].default):
        raise UserError(
            "config.model.*: read only for random weights, init_from brings its own sizes; set them to 0 and preset to "
            "its default, or set --config.init_from="
        )


# Keys of documents alone; what documents have no place for.
DOCUMENT_KEYS = ("data.temperature", "data.replay")
NOT_DOCUMENT_KEYS = ("data.system_prompt", "eval_epochs", "eval_questions", "eval_answers")


def _check_documents(flat: dict[str, Any]) -> None:
    """Refuses keys that this kind of data does not read."""
    is_document = flat["data.kind"] == "document"
    for name in NOT_DOCUMENT_KEYS if is_document else DOCUMENT_KEYS:
        if flat[name] != KEYS[name].default:
            shown = flat[name] if not isinstance(flat[name], tuple) else ",".join(flat[name])
            which = "not read" if is_document else "read only"
            other = "" if is_document else f"; this is {flat['data.kind']}"
            raise UserError(f"config.{name}={shown}: {which} with data.kind=document{other}")
    if flat["data.replay"] and not flat["data.replay_share"]:
        raise UserError("config.data.replay_share=0: nothing of data.replay would be read; give it a share or leave it")


def _check_evaluation(flat: dict[str, Any]) -> None:
    """Refuses what is decided by evaluations that are not made, or by numbers that they do not have."""
    if flat["checkpoint.best_metric"] == "validation/accuracy" and not flat["eval_questions"]:
        raise UserError(
            "config.checkpoint.best_metric=validation/accuracy: no question is asked; set --config.eval_questions=500, "
            "or choose by validation/loss"
        )
    if flat["stop_after"] and not (flat["eval_every"] or flat["eval_epochs"]):
        raise UserError(
            f"config.stop_after={flat['stop_after']}: nothing is evaluated before the end; set --config.eval_every=100 "
            "or --config.eval_epochs=true"
        )


def _check_length_and_batch(config: ConfigDict, flat: dict[str, Any]) -> None:
    _exactly_one(flat, "batch_size", "batch_tokens", "8 sequences, or --config.batch_tokens=131072")
    _exactly_one(flat, "steps", "epochs", "1000, or --config.epochs=3")
    seq_len = flat["data.seq_len"]
    if flat["batch_tokens"] and flat["batch_tokens"] % seq_len:
        lower = max(1, flat["batch_tokens"] // seq_len) * seq_len
        raise UserError(
            f"config.batch_tokens={flat['batch_tokens']} is not a multiple of data.seq_len={seq_len}; nearest: {lower}"
        )
    if flat["grad_accum"] and batch_rows(config) % flat["grad_accum"]:
        raise UserError(
            f"config.batch of {batch_rows(config)} sequences does not divide by grad_accum={flat['grad_accum']}"
        )


def _exactly_one(flat: dict[str, Any], a: str, b: str, example: str) -> None:
    if bool(flat[a]) == bool(flat[b]):
        state = "both are set" if flat[a] else "neither is set"
        raise UserError(f"config.{a} and config.{b}: {state}, exactly one must be; for example --config.{a}={example}")


def parse_xla_flags(text: str) -> dict[str, str]:
    """Compiler flags of config.xla_flags=flag=value,flag=value; two dashes before a flag may stand.

    Raises:
      UserError: neither of that form nor "auto" or "none".
    """
    out = {}
    for part in text.split(","):
        name, _, value = (x.strip() for x in part.partition("="))
        name = name.removeprefix("--")
        if not re.fullmatch(r"[a-z]\w*", name) or not value:
            raise UserError(f"config.xla_flags={text}: '{part}' is not flag=value; valid: auto, none, flag=value,...")
        if name in out:
            raise UserError(f"config.xla_flags={text}: {name} is given twice")
        out[name] = value
    return out
