"""What a run reads on each host for itself, as facts that hosts compare before the first step.

Two hosts may find different files under one path: each would load parts of different weights, or train on rows of its
own. Every key of a config that names something to read (an InputPlace) has its fact here; what the others do
(OutputPlace) and where they lie is a host's own, and compared as docs/pods.md says.
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmed_jax.checkpoints.run_directory import step_folders
from mmed_jax.common.hashes import json_hash
from mmed_jax.common.paths import resolve_path
from mmed_jax.common.place_flags import InputPlace
from mmed_jax.common.places import is_bucket, parse_place
from mmed_jax.common.sampled_files import describe_contents
from mmed_jax.config.defaults import KEYS
from mmed_jax.data.tokenizers.tokenizer import tokenizer_hash
from mmed_jax.parallel.peers import several_processes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mmed_jax.hf.open_model import ModelSource
    from mmed_jax.model.config import LlamaConfig

INIT, TOKENIZER, BENEATH = "config.init_from (weights)", "config.tokenizer (contents)", "weights beneath the adapter"


def input_facts(
    config: ConfigDict,
    cfg: "LlamaConfig",
    tok: "PreTrainedTokenizerFast",
    source: "ModelSource | None",
    frozen: "ModelSource | None",
) -> dict[str, Any]:
    """{name: JSON value} of all that the run reads; a few MB are read for it. {} in a single process.

    A run that has checkpoints reads config.init_from no more, and goes on where that is gone on some hosts. Of record
    files in a bucket, which are the same for all, only the tables are compared, when they are there.

    Args:
      cfg: the architecture. tok: the tokenizer, with its chat template. source: what config.init_from names; None =
        random weights. frozen: the weights beneath an adapter; None = there is none, or they are random.

    Raises:
      OSError, UserError: weights cannot be read.
    """
    if not several_processes(config):
        return {}
    from mmed_jax.hf.weights_sample import describe_weights

    facts: dict[str, Any] = {"architecture": json_hash(dataclasses.asdict(cfg), 16)}
    for name, key in KEYS.items():
        if key.place is None or not issubclass(key.place, InputPlace):
            continue
        if name == "init_from":
            if source is not None and not step_folders(config.run_dir):
                facts[INIT] = describe_weights(source)
            if frozen is not None and (frozen is not source or INIT not in facts):
                facts[BENEATH] = describe_weights(frozen)
        elif name == "tokenizer":
            facts[TOKENIZER] = tokenizer_hash(tok)[:16]
        else:
            value = _value(config, name)
            facts |= _files(f"config.{name}", [value] if isinstance(value, str) else value)
    return facts


def _value(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _files(key: str, paths: Iterable[str]) -> dict[str, str]:
    """A fact for each path of this machine that a key names, PATH or PATH:SPLIT."""
    found = {}
    for text in filter(None, paths):
        if is_bucket(parse_place(text, key)):
            continue
        path, head = resolve_path(text), text.rpartition(":")[0]
        if head and not path.exists():
            path = resolve_path(head)
        found[f"{key} (contents of {text})"] = describe_contents(path)
    return found
