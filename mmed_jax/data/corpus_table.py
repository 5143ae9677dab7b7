"""Tables of documents as a run reads them: several as one, checked in seconds at any size, mixed by shares.

What is written where: mmed_jax/data/packed_table.py. Nothing here reads a shard before it is needed, and a row's place
follows from the counts in table.json, so that opening takes the same second for a thousand rows and for a billion.
"""

import functools
import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mmed_jax.common.buckets.download import open_input
from mmed_jax.common.checksums import shorten
from mmed_jax.common.errors import UserError, WorkError, warn
from mmed_jax.common.hashes import file_hash, json_hash
from mmed_jax.config.values import batch_rows, planned_steps
from mmed_jax.data import packed_cache
from mmed_jax.data.document_cache import pack_files
from mmed_jax.data.mixture import Mixture, describe_repeats, shares_of
from mmed_jax.data.packed_table import TABLE, Group, Table, groups_of, merge_reports, read_info, split_row
from mmed_jax.data.prepared import Prepared
from mmed_jax.data.tokenizers.tokenizer import tokenizer_hash

# Shards that are open at a time; a process may usually open 1,024 files.
OPEN_SHARDS = 256
# What the start looks into: rows of so many shards, and whole shards up to so many bytes.
SAMPLED_SHARDS, SAMPLED_BYTES = 8, 64 << 20


class Shard(NamedTuple):
    """A file of rows, with what table.json says of it."""

    path: Path
    rows: int
    size: int
    sha256: str


def is_table(path: Path) -> bool:
    """Whether a packed table lies there."""
    return (path / TABLE).is_file()


class CorpusTable(Table):
    """A split of each of one or several tables of documents; groups of the first stand first, rows are numbered on."""

    def __init__(self, parts: Sequence[tuple[Path, str]], languages: Sequence[str] = ()):
        """
        Args:
            parts: (folder of a table that check_table has passed, one of its splits); at least one.
            languages: the groups to take; empty = all.

        Raises:
            WorkError: a table.json cannot be read.
        """
        groups: list[Group] = []
        shards: list[Shard] = []
        reports, prints = [], []
        names: set[str] = set()
        # The table that each group is of, by number.
        self.table_of: list[int] = []
        for number, (folder, split) in enumerate(parts):
            info, part = _read_part(folder, split)
            prints.append(part["fingerprint"])
            reports.append(part["report"])
            for place, group in enumerate(groups_of(part)):
                if languages and group.language not in languages:
                    continue
                name = group.name if group.name not in names else f"{folder.name}:{group.name}"
                names.add(name)
                start = groups[-1].start + groups[-1].rows if groups else 0
                groups.append(replace(group, name=name, start=start))
                self.table_of.append(number)
                listed = [s for s in part["shards"] if s["group"] == place]
                shards += [Shard(folder / s["path"], s["rows"], s["size"], s["sha256"]) for s in listed]
        self.folder, self.split = parts[0]
        self.seq_len: int = info["seq_len"]
        self.key: str = info["key"]
        self.groups = tuple(groups)
        self.fingerprint = prints[0] if len(prints) == 1 else json_hash(prints, 64)
        self.report = merge_reports(reports, self.seq_len)
        self.shards = tuple(shards)
        self._ends = list(accumulate(s.rows for s in shards))
        self._rows = self._ends[-1] if shards else 0
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()

    def record(self, row: int) -> bytes:
        """The record of one row; thread-safe. Raises WorkError when it cannot be read."""
        number = bisect_right(self._ends, row)
        if row < 0 or number >= len(self.shards):
            raise WorkError(f"{self.folder}: row {row} of {self.split} cannot be read: it has {len(self)}")
        shard = self.shards[number]
        try:
            return self._reader(number)[int(row) - (self._ends[number] - shard.rows)]
        except Exception as e:  # the reader raises what its C++ part gives
            raise WorkError(f"{shard.path}: row {row} of {self.split} cannot be read: {e}") from e

    def _reader(self, number: int) -> Any:
        """The open shard; of more than OPEN_SHARDS the one that was used longest ago is closed when nobody reads it."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            from grain.sources import ArrayRecordDataSource

            shard = self.shards[number]
            # With the number of rows the file is opened when one is read, and not before.
            self._open[number] = source = ArrayRecordDataSource([f"{shard.path}[0:{shard.rows}]"])
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
            return source


def _read_part(folder: Path, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    info = read_info(folder)
    try:
        return info, info["splits"][split]
    except (KeyError, TypeError) as e:
        raise WorkError(f"{folder / TABLE}: cannot be read ({e})") from e


def check_table(
    folder: Path, key: str, *, tokenizer: str, seq_len: int, packing: bool = True, seed: int = 0, contents: bool = True
) -> None:
    """Whether a table of documents is one that this run can read, and is there whole.

    Looked at are the sizes of all shards, the first and last row of SAMPLED_SHARDS of them (which of them: by seed),
    and the checksums of some, up to SAMPLED_BYTES.

    Args:
        key: of the config, for messages.
        tokenizer: hash of the run's (tokenizers.tokenizer_hash).
        packing: False = the run takes each row for one segment.
        contents: False leaves the files out, as processes do that are not the first.

    Raises:
        UserError: a table of something else, of another tokenizer or length. WorkError: shards are missing or damaged.
    """
    info, place = read_info(folder), f"config.data.{key}: {folder}"
    if info["kind"] != "document":
        raise UserError(f"{place}: is a table of kind {info['kind']}, data.kind=document reads tables of documents")
    if info["inputs"].get("tokenizer") != tokenizer:
        raise UserError(
            f"{place}: was made with another tokenizer than the run's; tokenize the corpus with that of the model, or "
            "name the table's by --config.tokenizer"
        )
    if info["seq_len"] != seq_len:
        raise UserError(
            f"{place}: has rows of {info['seq_len']}, the run of {seq_len}; --config.data.seq_len={info['seq_len']}, "
            "or tokenize the corpus with that length"
        )
    if not packing and not info["inputs"].get("settings", {}).get("attend_across"):
        raise UserError(
            f"{place}: has several documents a row that do not see each other, for data.packing=true; for false, "
            "tokenize with --attend_across"
        )
    if contents:
        shards = [
            Shard(folder / s["path"], s["rows"], s["size"], s["sha256"])
            for part in info["splits"].values()
            for s in part["shards"]
        ]
        _check_sizes(folder, shards)
        _check_sample(shards, seq_len, random.Random(f"{seed} {info['key']}"))


def _check_sizes(folder: Path, shards: Sequence[Shard]) -> None:
    def problem(shard: Shard) -> str | None:
        try:
            size = shard.path.stat().st_size
        except OSError as e:
            return f"{shard.path.relative_to(folder)}: {e.strerror or e}"
        wrong = f"{shard.path.relative_to(folder)}: {size:,} bytes, {shard.size:,} were written"
        return None if size == shard.size else wrong

    with ThreadPoolExecutor(16) as threads:  # storage may be far
        problems = [p for p in threads.map(problem, shards) if p]
    if problems:
        raise WorkError(f"{folder}: {len(problems)} of {len(shards)} shards are not whole: {shorten(problems)}")


def _check_sample(shards: Sequence[Shard], seq_len: int, chosen: random.Random) -> None:
    from grain.sources import ArrayRecordDataSource

    filled = [s for s in shards if s.rows]
    for shard in chosen.sample(filled, min(SAMPLED_SHARDS, len(filled))):
        try:
            source = ArrayRecordDataSource([str(shard.path)])
            fits = len(source) == shard.rows and all(
                0 < (split_row(source[place]).lengths - 1).sum() <= seq_len for place in {0, shard.rows - 1}
            )
            problem = None if fits else "holds other rows than were written"
        except Exception as e:  # the reader raises what its C++ part gives
            problem = f"cannot be read: {e}"
        if problem:
            raise WorkError(f"{shard.path}: {problem}; make the table again")
    left = SAMPLED_BYTES
    for shard in chosen.sample(list(shards), len(shards)):
        if shard.size <= left:
            left -= shard.size
            if file_hash(shard.path) != shard.sha256:
                raise WorkError(f"{shard.path}: its checksum is another than when it was written; make the table again")


def open_tables(
    config: ConfigDict,
    tok: Any,
    *,
    is_writer: bool = True,
    timeout_s: float = 7200.0,
    say: Callable[[str], None] = print,
) -> Prepared:
    """The tables of documents that config.data names, and how they are mixed.

    config.data.train and config.data.replay name tables, or files of documents, which are packed into a table of the
    cache. Validated is what config.data.validation names, else what the tables of config.data.train held out.

    Args:
        tok: the run's tokenizer.
        is_writer: looks into the shards, packs files, warns about repeats; other processes wait for it up to
            `timeout_s` seconds.
        say: receives progress lines.

    Raises:
        UserError: nothing there, a table that is not for this run, a language or source in weights that no table has,
            nothing left to read. WorkError: a table is not whole.
    """
    data = config.data
    find = functools.partial(_folders, config, tok, is_writer=is_writer, timeout_s=timeout_s, say=say)
    folders, cached = {}, True
    for key in ("train", "replay", "validation"):
        folders[key], was_there = find(key)
        cached = cached and was_there
    _check_named_once(folders)
    train = CorpusTable([(f, "train") for f in (*folders["train"], *folders["replay"])])
    if not len(train):
        raise UserError(f"config.data.train: {', '.join(data.train)}: no row to train on")
    held_out = [(f, s) for f in folders["train"] if (s := "validation") in read_info(f)["splits"]]
    if data.validation:
        held_out = [
            (f, "validation" if "validation" in read_info(f)["splits"] else "train") for f in folders["validation"]
        ]
    validation = CorpusTable(held_out, tuple(data.languages)) if held_out else None
    shares = shares_of(
        train.groups,
        languages=tuple(data.languages),
        language_weights=dict(data.language_weights),
        source_weights=dict(data.source_weights),
        temperature=data.temperature,
        replay=[i for i, table in enumerate(train.table_of) if table >= len(folders["train"])],
        replay_share=data.replay_share,
    )
    mixture = Mixture(train.groups, shares, config.seed)
    positions = planned_steps(config, len(train)) * batch_rows(config)
    if is_writer and (line := describe_repeats(mixture, positions, data.max_repeats)):
        warn(line)
    tables: dict[str, Table] = {"train": train}
    if validation is not None and len(validation):
        tables["validation"] = validation
    report = {
        "folder": ", ".join(str(f) for f in dict.fromkeys(f for key in folders for f in folders[key])),
        "cached": cached,
        "seq_len": data.seq_len,
        "kind": "document",
        "records": {"read": sum(t.report["samples"] for t in tables.values())},
        "tables": {split: table.report for split, table in tables.items()},
        "mixture": describe_mixture(mixture, positions),
        "contents": [
            {"source": g.source, "license": "", "language": g.language, "records": g.documents}
            for g, share in zip(train.groups, mixture.shares)
            if share
        ],
        "files": _describe_files(data) if is_writer else [],
    }
    return Prepared(tables.pop("train"), tables, report, mixture)


def _describe_files(data: ConfigDict) -> list[dict[str, str]]:
    """packed_cache.describe_files; of a table the hash is that of its table.json, which has its shards' hashes."""
    found = []
    for key in ("train", "replay", "validation"):
        for name in data[key]:
            path = open_input(name, f"config.data.{key}")
            if is_table(path):
                found.append({"key": key, "path": name, "sha256": file_hash(path / TABLE), "kind": "table"})
            else:
                found += packed_cache.describe_files(key, [name], [str(path)], [packed_cache.content_hash(path)])
    return found


def _check_named_once(folders: dict[str, list[Path]]) -> None:
    """Raises UserError for a table whose rows would count twice, or be trained on and validated on."""
    read: list[Path] = []
    for folder in (*folders["train"], *folders["replay"]):
        if any(folder.samefile(other) for other in read):
            raise UserError(
                f"config.data: {folder} is named twice in train and replay; language_weights and source_weights say "
                "what is read more often"
            )
        read.append(folder)
    for folder in folders["validation"]:
        if "validation" not in read_info(folder)["splits"] and any(folder.samefile(other) for other in read):
            raise UserError(f"config.data.validation: {folder} has held out nothing and is trained on")


def describe_mixture(mixture: Mixture, positions: int) -> list[dict[str, Any]]:
    """Of each group that is read its name, language, share of the rows, and how often the run reads each of them."""
    repeats = mixture.repeats(positions)
    return [
        {"name": g.name, "language": g.language, "rows": g.rows, "share": float(share), "repeats": repeats[g.name]}
        for g, share in zip(mixture.groups, mixture.shares)
        if share
    ]


def _folders(
    config: ConfigDict, tok: Any, key: str, *, is_writer: bool, timeout_s: float, say: Callable[[str], None]
) -> tuple[list[Path], bool]:
    """(the tables of config.data.KEY, checked; one more for all files of documents among them; whether it was there)"""
    paths = [open_input(name, f"config.data.{key}") for name in config.data[key]]
    for name, path in zip(config.data[key], paths):
        if not path.exists():
            raise UserError(
                f"config.data.{key}: {name}: nothing is there; name a table that `python -m data_gen corpus tokenize` "
                "made, or files of documents (.jsonl, .jsonl.gz, .jsonl.zst)"
            )
    folders = [path for path in paths if is_table(path)]
    for folder in folders:
        check_table(
            folder,
            key,
            tokenizer=tokenizer_hash(tok),
            seq_len=config.data.seq_len,
            packing=config.data.packing,
            seed=config.seed,
            contents=is_writer,
        )
    files = [path for path in paths if not is_table(path)]
    if not files:
        return folders, True
    packed, cached = pack_files(files, key, config, tok, is_writer=is_writer, timeout_s=timeout_s, say=say)
    return [*folders, packed], cached
