"""Writes a Hugging Face folder: streamed safetensors, both config schemas, tokenizer; checked before it gets its name.

Everything goes to `<path>.tmp-<n>` beside the output, is re-opened and compared there, and is renamed when whole. So a
folder with the final name is always complete, and a failure leaves nothing behind.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from uuid import uuid4

import jax
import numpy as np

from mmed_jax.data.tokenizers.tokenizer import check_vocab, control_ids, save_tokenizer, stop_ids, tokenizer_hash
from mmed_jax.hf.export_folder import (
    MARKER,
    PROVENANCE,
    README,
    check_output,
    describe_failure,
    failure,
    output_folder,
    publish,
    say_leftovers,
    synced,
    write_json,
    write_on_main,
)
from mmed_jax.hf.folder_hash import hash_files
from mmed_jax.hf.licences import write_notice
from mmed_jax.hf.load import INDEX, SINGLE
from mmed_jax.hf.mapping import HFTensor, hf_tensors
from mmed_jax.hf.prompt_logits import PromptLogits
from mmed_jax.hf.safetensors import CODES, write_header, write_tensor
from mmed_jax.hf.verify import checksum, verify_export
from mmed_jax.hf.weight_stream import Kinds, TreeStream, Weight, WeightStream
from mmed_jax.model.config import LlamaConfig, to_hf
from mmed_jax.parallel.barriers import agree_on, any_text, on_main

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD_BYTES = 5_000_000_000


def save_pretrained(
    path: str | os.PathLike,
    params: dict[str, Any] | WeightStream,
    cfg: LlamaConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    dtype: Any = "bfloat16",
    max_shard_bytes: int = SHARD_BYTES,
    source_generation: dict | None = None,
    info: dict | Callable[[], dict] | None = None,
    card: Callable[[], str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    checking: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes weights as a Hugging Face folder that transformers 4.x and 5.x read.

    Called by every process; process 0 writes. One tensor at a time is gathered, cast and written, and so it is read
    back: beside `params`, host memory is that of the largest tensor and of one layer in float32, whatever the model's
    size.

    Args:
      path: output folder: new, empty, or with `overwrite` an earlier export; on storage that all processes share.
      params: the tree (any sharding), or a stream of weights that are not in memory (weight_stream), of its own dtype.
      dtype: of the stored tensors of a tree; None keeps each leaf's own.
      max_shard_bytes: size of one file; one file when all fits.
      source_generation: generation_config.json of the model this came from; sampling defaults in it are kept.
      info: extra JSON values for the marker file, or what returns them when the weights are written.
      card: gives the text of README.md when the weights are written; None = no such file.
      progress: called with (bytes written, bytes in all). checking: likewise, of bytes read back.

    Returns:
      The folder.

    Raises:
      UserError: the output is taken or cannot be written, or tokenizer and model do not fit.
      WorkError: disk full, values that are not finite in `dtype`, or what was written reads back differently.
    """
    path = output_folder(path)
    check_vocab(tokenizer, cfg.vocab_size)
    on_main(lambda: (check_output(path, overwrite), say_leftovers(path)))
    stream = TreeStream(params, cfg, dtype) if isinstance(params, dict) else params
    stage = path.with_name(f"{path.name}.tmp-{agree_on([uuid4().int % 2**31])[0]}")
    try:
        write_on_main(path, lambda: (path.parent.mkdir(parents=True, exist_ok=True), stage.mkdir()))
        weights = stream.read(functools.partial(_write_weights, stage, stream, max_shard_bytes, progress))
        if problem := any_text(weights.problem):
            raise failure(problem)
        more = info() if callable(info) else info
        if card is not None:
            write_on_main(path, lambda: (stage / README).write_text(card(), encoding="utf-8"))
        write_on_main(path, lambda: _write_small(stage, weights, cfg, tokenizer, source_generation, more))
        write_on_main(path, lambda: _check(stage, weights, cfg, tokenizer, checking))
        write_on_main(path, lambda: publish(stage, path))
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(stage, ignore_errors=True)
    return path


def write_assets(
    folder: Path,
    cfg: LlamaConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    dtype: str = "bfloat16",
    source_generation: dict | None = None,
) -> None:
    """Writes config.json, generation_config.json, the tokenizer's files and its chat template into `folder`.

    The end tokens of both configs are the tokenizer's stop ids and those of `cfg` that are control tokens; what the
    tokenizer has no token for stays as `cfg` says it.
    """
    stops = sorted({*stop_ids(tokenizer), *(i for i in cfg.eos_token_id if i in control_ids(tokenizer))})
    stops = stops or sorted(cfg.eos_token_id)
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    ids = {
        "bos_token_id": cfg.bos_token_id if bos is None else bos,
        "eos_token_id": stops or None,
        "pad_token_id": cfg.pad_token_id if pad is None else pad,
    }
    config = to_hf(dataclasses.replace(cfg, **{**ids, "eos_token_id": tuple(stops)}), dtype)
    # The release whose config schema this is (the first with llama3 scaling). Without a version, 4.57 takes a large
    # vocabulary for a faulty Mistral one and says so.
    config["transformers_version"] = "4.43.0"
    save_tokenizer(tokenizer, folder)
    write_json(folder / "config.json", config)
    # This key would tell transformers to derive the file from config.json again.
    generation = {k: v for k, v in (source_generation or {}).items() if k != "_from_model_config"}
    write_json(folder / "generation_config.json", {**generation, **ids})


def plan_files(
    tensors: Iterable[HFTensor], kinds: dict[tuple[str, ...], np.dtype], max_shard_bytes: int
) -> dict[str, list[HFTensor]]:
    """File name -> the tensors in it, in order; a file holds at most `max_shard_bytes` unless one tensor is larger."""
    shards: list[list[HFTensor]] = [[]]
    filled = 0
    for t in tensors:
        size = t.size * kinds[t.path].itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(t)
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _main_dtype(files: dict[str, list[HFTensor]], kinds: dict) -> str:
    """The name for config.json: the dtype that most values are stored in (norms alone may be float32)."""
    counts: dict[str, int] = {}
    for t in (t for tensors in files.values() for t in tensors):
        counts[str(kinds[t.path])] = counts.get(str(kinds[t.path]), 0) + t.size
    return max(counts, key=counts.__getitem__)


class _Written(NamedTuple):
    """What was written: the tensors of each file, their dtypes and checksums, the logits of weights that came in order.

    problem: why it was not, as describe_failure gives it; "" when all went well.
    """

    files: dict[str, list[HFTensor]]
    kinds: Kinds
    checksums: dict[str, int]
    logits: np.ndarray | None
    problem: str


def _write_weights(
    stage: Path,
    stream: WeightStream,
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None,
    kinds: Kinds,
    weights: Iterator[Weight],
) -> _Written:
    """Streams every tensor to its place in its file. All processes gather; process 0 writes.

    No failure of writing is raised: other processes are still gathering and must not be left waiting for this one.
    """
    if foreign := {str(k) for k in kinds.values() if k not in CODES}:
        what = f"dtype {', '.join(sorted(foreign))}: exports are {', '.join(str(d) for d in CODES)}"
        return _Written({}, kinds, {}, None, f"u{what}")
    main, alone = jax.process_index() == 0, jax.process_count() == 1
    files = plan_files(hf_tensors(stream.cfg), kinds, max_shard_bytes)
    total, done, problem = sum(t.size * kinds[t.path].itemsize for tensors in files.values() for t in tensors), 0, ""
    checksums: dict[str, int] = {}
    logits = PromptLogits(stream.cfg) if main and stream.in_order else None
    with contextlib.ExitStack() as stack:
        try:
            places = _open_files(stage, files, kinds, stack) if main else {}
        except OSError as e:
            places, problem = {}, describe_failure(e, stage)
        for t, array, finite in weights:
            if not finite:
                problem = problem or f"w{t.name} holds values that are not finite in {kinds[t.path]}"
            if main and not problem:
                try:
                    f, position = places[t.name]
                    f.seek(position)
                    write_tensor(f, array)
                except OSError as e:
                    problem = describe_failure(e, stage)
                checksums[t.name] = checksum(array)
                if logits is not None:
                    logits.add(t, array)
            if problem and alone:
                break
            done += array.nbytes
            if progress:
                progress(done, total)
        try:
            stack.close()  # what is still in buffers goes to the disk
        except OSError as e:
            problem = problem or describe_failure(e, stage)
    proof = logits.result() if logits is not None and not problem else None
    return _Written(files, kinds, checksums, proof, problem)


def _open_files(
    stage: Path, files: dict[str, list[HFTensor]], kinds: Kinds, stack: contextlib.ExitStack
) -> dict[str, tuple[BinaryIO, int]]:
    """Opens every file and writes its header: {tensor name: (its file, where its bytes begin)}."""
    places: dict[str, tuple[BinaryIO, int]] = {}
    for name, tensors in files.items():
        (stage / name).unlink(missing_ok=True)  # of a checkpoint that turned out to be damaged
        f = stack.enter_context(synced(stage / name))
        write_header(f, [(t.name, kinds[t.path], t.shape) for t in tensors])
        position = f.tell()
        for t in tensors:
            places[t.name] = (f, position)
            position += t.size * kinds[t.path].itemsize
    return places


def _write_small(stage, weights: _Written, cfg, tokenizer, generation, info) -> None:
    """Everything but the weights; only the main process."""
    files, kinds = weights.files, weights.kinds
    if list(files) != [SINGLE]:
        total = sum(t.size * kinds[t.path].itemsize for tensors in files.values() for t in tensors)
        weight_map = {t.name: name for name, tensors in files.items() for t in tensors}
        write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    write_assets(stage, cfg, tokenizer, dtype=_main_dtype(files, kinds), source_generation=generation)
    write_notice(stage, (info or {}).get(PROVENANCE))
    sizes = {p.name: p.stat().st_size for p in sorted(stage.iterdir())}
    hashes = hash_files(sorted(stage.iterdir()))
    more = {"tokenizer_hash": tokenizer_hash(tokenizer), "files": sizes, "sha256": hashes}
    write_json(stage / MARKER, {**(info or {}), **more})


def _check(stage: Path, weights: _Written, cfg, tokenizer, progress) -> None:
    """Reads everything back; only the main process."""
    verify_export(
        stage,
        weights.logits,
        cfg,
        dtypes=weights.kinds,
        tokenizer=tokenizer,
        checksums=weights.checksums,
        progress=progress,
    )
