"""From a config to packed tables: read, split, mix, render, pack, cache. What `train` and `inspect` call."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from ml_collections import ConfigDict

from mmed_jax.common.buckets.download import open_input
from mmed_jax.common.errors import UserError, warn
from mmed_jax.common.paths import resolve_path
from mmed_jax.common.places import is_bucket, parse_place
from mmed_jax.data import packed_cache
from mmed_jax.data.chat_formats import syntax_of
from mmed_jax.data.corpus_table import is_table, open_tables
from mmed_jax.data.held_out_records import read_held_out, write_held_out
from mmed_jax.data.pack import Rows, pack
from mmed_jax.data.packed_table import Table, read_info, table_info, table_report, write_rows
from mmed_jax.data.prepared import Prepared
from mmed_jax.data.records.mixing import copies
from mmed_jax.data.records.reading import checked_records
from mmed_jax.data.records.split import by_question, without_overlap
from mmed_jax.data.records.store import RecordStore
from mmed_jax.data.tokenize import LEFT_OUT, RenderSettings, build_samples
from mmed_jax.data.tokenizers.tokenizer import tokenizer_hash


def prepare(
    config: ConfigDict,
    tok,
    *,
    is_writer: bool = True,
    timeout_s: float = 7200.0,
    say: Callable[[str], None] = print,
) -> Prepared:
    """The packed tables of config.data (keys: mmed_jax/config/defaults.py), from the cache when nothing has changed.

    The cache key covers tokenizer and chat template, all code that makes tables with its prompt texts, contents of the
    record files, config.seed and every setting of config.data but the places of files.

    With validation files named, they are the validation set, validation_fraction is ignored, and training records that
    ask the same question as one of them are removed, counted and warned about. Otherwise validation_fraction of the
    questions is held out. Mixing weights apply to training only. Documents: see corpus_table.open_tables.

    Args:
        config: the resolved config; needs `seed` and `data`.
        tok: from load_tokenizer.
        is_writer: builds missing tables; other processes wait for it up to `timeout_s` seconds.
        say: receives progress lines.

    Raises:
        UserError: bad files, records, weights or settings, nothing to train on, an unwritable cache. WorkError: writing
            failed or the writer was waited for in vain.
    """
    data = config.data
    if data.kind == "document":
        return open_tables(config, tok, is_writer=is_writer, timeout_s=timeout_s, say=say)
    _refuse_tables(data)
    if data.system_prompt and data.kind in ("mcq", "mixed") and data.prompt_family == "mmedbench":
        raise UserError("config.data.system_prompt: the prompt family mmedbench has no place for one; leave it empty")
    settings = {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in data.to_dict().items() if k not in _PLACES},
        "seed": config.seed,
    }
    train_files, validation_files = (tuple(map(_resolve, paths)) for paths in (data.train, data.validation))
    inputs = {
        "settings": settings,
        "train": [packed_cache.content_hash(p) for p in train_files],
        "validation": [packed_cache.content_hash(p) for p in validation_files],
        "tokenizer": tokenizer_hash(tok),
        "chat_format": syntax.name if (syntax := syntax_of(tok)) else None,
        "tokenizers": tokenizers.__version__,
        "code": packed_cache.table_code(),
    }
    key = packed_cache.key_of(inputs)

    def build(folder: Path) -> dict:
        parts, records = _records(config, train_files, validation_files, folder.parent)
        store, chosen, repeats = parts["train"]
        contents = store.contents(chosen[repeats > 0])
        splits = {}
        for split, (store, chosen, repeats) in parts.items():
            splits[split] = _build_split(folder, split, store, chosen, repeats, config, tok)
        if not validation_files and splits.get("validation", {}).get("rows") == 0:
            splits.pop("validation")
        if "validation" in splits:
            write_held_out(folder, parts["validation"][0], parts["validation"][1])
        return table_info(data.seq_len, data.kind, inputs, splits, records=records, contents=contents)

    cache_dir = parse_place(data.cache_dir, "config.data.cache_dir")
    folder, cached = packed_cache.obtain(cache_dir, key, build, is_writer=is_writer, timeout_s=timeout_s, say=say)
    info = read_info(folder)
    tables = {split: Table(folder, split) for split in info["splits"]}
    report = {
        "folder": str(folder),
        "cached": cached,
        "seq_len": data.seq_len,
        "records": info["records"],
        "contents": info["contents"],
        "files": [
            *packed_cache.describe_files("train", tuple(data.train), train_files, inputs["train"]),
            *packed_cache.describe_files("validation", tuple(data.validation), validation_files, inputs["validation"]),
        ],
        "tables": {split: table.report for split, table in tables.items()},
    }
    held_out = read_held_out(folder) if "validation" in tables else []
    return Prepared(tables.pop("train"), tables, report, held_out=held_out)


# Keys of config.data that decide nothing of a table of records: places, and what only documents have.
_PLACES = ("train", "validation", "cache_dir", "temperature", "replay", "replay_share", "max_repeats")


def _refuse_tables(data: ConfigDict) -> None:
    for key in ("train", "validation"):
        for path in data[key]:
            if is_table(open_input(path, f"config.data.{key}")):
                raise UserError(
                    f"config.data.{key}: {path} is a packed table, and data.kind={data.kind} reads record files; a "
                    "table of documents is for --config=pretrain"
                )


def _resolve(path: str) -> str:
    """A record path of the config, with its optional :SPLIT, relative to the checkout when it is not there as given."""
    found = open_input(path, "config.data")
    head, colon, split = path.rpartition(":")
    if not found.exists() and colon and not is_bucket(path) and resolve_path(head).exists():
        return f"{resolve_path(head)}:{split}"
    return str(found)


def _records(
    config: ConfigDict, train_files: Sequence[str], validation_files: Sequence[str], folder: Path
) -> tuple[dict[str, tuple[RecordStore, np.ndarray, np.ndarray]], dict[str, int]]:
    """({split: (records, indices of its own, copies of each)}, counts).

    Every record read is in a split or counted as left out. `folder`: where the records are held.
    """
    data = config.data
    languages = tuple(data.languages) or None
    kind = None if data.kind == "mixed" else data.kind

    def store(files: Sequence[str]) -> RecordStore:
        linked = bool(validation_files) or data.validation_fraction > 0
        return RecordStore(checked_records(files, kind, languages), folder, config.seed, linked=linked)

    train = held_from = store(train_files)
    counts = {"read": len(train), "overlap": 0}
    if validation_files:
        held_from = store(validation_files)
        kept, held = without_overlap(train, held_from), np.arange(len(held_from))
        counts["overlap"] = len(train) - len(kept)
        if counts["overlap"]:
            warn(
                f"config.data.validation: {counts['overlap']} of {len(train)} training records ask the same question "
                "as a validation record; they are left out of training"
            )
    else:
        kept, held = by_question(train, data.validation_fraction)
        if data.validation_fraction and not len(held):
            warn(
                f"config.data.validation_fraction={data.validation_fraction}: no question of the {len(train)} records "
                "can be spared; all are trained on and nothing is validated"
            )
    if not len(kept):
        raise UserError("config.data.train: no record is left to train on, validation asks all of its questions")
    repeats = copies(train, kept, dict(data.source_weights), dict(data.language_weights))
    counts["weight_zero"] = int((repeats == 0).sum())
    counts["train"], counts["validation"] = len(kept) - counts["weight_zero"], len(held)
    parts = {"train": (train, kept, repeats)}
    if len(held):
        parts["validation"] = (held_from, held, np.ones(len(held), np.int64))
    return parts, counts


def _build_split(
    folder: Path,
    split: str,
    records: RecordStore,
    chosen: np.ndarray,
    repeats: np.ndarray,
    config: ConfigDict,
    tok,
) -> dict:
    """Renders, packs and writes the records `chosen` as one split; returns its entry of table.json."""
    data = config.data
    settings = RenderSettings(
        seq_len=data.seq_len,
        overlong=data.overlong,
        modes=tuple(data.modes),
        prompt_family=data.prompt_family,
        system_prompt=data.system_prompt,
    )
    which = chosen[repeats > 0]
    samples = build_samples(
        tok, records, settings, which=which, progress=f"tokenizing {split}", folder=folder.parent, id_of=records.id
    )
    if not len(samples) and (split == "train" or data.validation):
        reasons = ", ".join(f"{n} {LEFT_OUT[reason]}" for reason, n in samples.left_out.items())
        raise UserError(
            f"config.data.{split}: {len(chosen)} records give no sample at data.seq_len={data.seq_len}: {reasons}"
        )
    times = repeats[np.searchsorted(chosen, samples.record)]
    items = np.repeat(np.arange(len(samples)), times)
    packed = pack(samples.slots[items], data.seq_len, seed=config.seed, packing=data.packing)
    rows = Rows(items[packed.items], packed.starts)
    return {**write_rows(folder, split, samples, rows), "report": table_report(samples, rows, data.seq_len)}
