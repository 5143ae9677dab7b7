"""Writes a Hugging Face folder: streamed safetensors, both config schemas, tokenizer; checked before it gets its name.

Everything goes to `<path>.tmp-<n>` beside the output, is re-opened and compared there, and is renamed when whole. So a
folder with the final name is always complete, and a failure leaves nothing behind.
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

import jax
import numpy as np

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError, WorkError, one_line, warn
from mmed_jax.common.paths import expand_home
from mmed_jax.data.tokenizers.tokenizer import check_vocab, control_ids, save_tokenizer, stop_ids, tokenizer_hash
from mmed_jax.hf.gather import gather, leaf_dtype
from mmed_jax.hf.load import INDEX, SINGLE
from mmed_jax.hf.mapping import HFTensor, flatten, group_names, hf_tensors, leaf_shapes
from mmed_jax.hf.safetensors import CODES, write_header, write_tensor
from mmed_jax.hf.verify import prompt_logits, verify_export
from mmed_jax.model.config import LlamaConfig, to_hf
from mmed_jax.parallel.barriers import agree_on, any_text, on_main

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKER = "mmed_jax_export.json"  # says that a folder is an export of this program, and of what
SHARD_BYTES = 5_000_000_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT)


def save_pretrained(
    path: str | os.PathLike,
    params: dict[str, Any] | Callable[[], dict[str, Any]],
    cfg: LlamaConfig,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    dtype: Any = "bfloat16",
    max_shard_bytes: int = SHARD_BYTES,
    source_generation: dict | None = None,
    info: dict | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the parameters as a Hugging Face folder that transformers 4.x and 5.x read.

    Called by every process; process 0 writes. One tensor at a time is gathered and cast, so extra host memory is one
    tensor; the final check holds the parameters a second time, or once when `params` is a function (they are dropped
    before they are read back).

    Args:
      path: output folder: new, empty, or with `overwrite` an earlier export; on storage that all processes share.
      params: the tree (any sharding), or a function that returns it.
      dtype: of the stored tensors; None keeps each leaf's own.
      max_shard_bytes: size of one file; one file when all fits.
      source_generation: generation_config.json of the model this came from; sampling defaults in it are kept.
      info: extra JSON values for the marker file.
      progress: called with (bytes written, bytes in all).

    Returns:
      The folder.

    Raises:
      UserError: the output is taken or cannot be written, or tokenizer and model do not fit.
      WorkError: disk full, values that are not finite in `dtype`, or what was written reads back differently.
    """
    path = output_folder(path)
    check_vocab(tokenizer, cfg.vocab_size)
    on_main(lambda: (check_output(path, overwrite), _say_leftovers(path)))
    tree = params() if callable(params) else params
    flat = flatten(tree)
    kinds = {leaf: np.dtype(dtype) if dtype is not None else leaf_dtype(array) for leaf, array in flat.items()}
    _check_tree(flat, kinds, cfg)
    stage = path.with_name(f"{path.name}.tmp-{agree_on([uuid4().int % 2**31])[0]}")
    try:
        _on_main(path, lambda: (path.parent.mkdir(parents=True, exist_ok=True), stage.mkdir()))
        files = plan_files(hf_tensors(cfg), kinds, max_shard_bytes)
        _write_weights(stage, files, flat, kinds, progress)
        _on_main(path, lambda: _write_small(stage, files, kinds, cfg, tokenizer, source_generation, info))
        logits = prompt_logits(tree, cfg, dtype)
        shardings = None
        if all(isinstance(x, jax.Array) for x in flat.values()):
            shardings = jax.tree.map(lambda x: x.sharding, tree)
        del params, tree, flat
        verify_export(stage, logits, cfg, dtypes=kinds, tokenizer=tokenizer, shardings=shardings)
        _on_main(path, lambda: _publish(stage, path))
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
    _write_json(folder / "config.json", config)
    # This key would tell transformers to derive the file from config.json again.
    generation = {k: v for k, v in (source_generation or {}).items() if k != "_from_model_config"}
    _write_json(folder / "generation_config.json", {**generation, **ids})


def output_folder(path: str | os.PathLike) -> Path:
    """`path` with links and ~ resolved, so that the temporary folder lies on the same disk."""
    return expand_home(path).resolve()


def check_output(path: Path, overwrite: bool = False, needed: int = 0) -> None:
    """Refuses an output folder that is taken or cannot be written; asks nothing of any device.

    Args:
      path: from `output_folder`.
      overwrite: allow an earlier export in its place, if nothing was added to it.
      needed: bytes that must be free.

    Raises:
      UserError: saying what is there and what to do.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--output={path}: is a file; name a new folder")
    if path.is_dir() and any(path.iterdir()):
        marker = path / MARKER
        if not marker.is_file():
            raise UserError(f"--output={path}: is not empty and is no export of this program; name a new folder")
        if not overwrite:
            raise UserError(f"--output={path}: holds an earlier export; add --overwrite to replace it")
        try:
            ours = {MARKER, *jsonl.loads(marker.read_bytes(), dict)["files"]}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"--output={path}: {MARKER} in it is unreadable; name a new folder") from e
        if added := sorted({p.name for p in path.iterdir()} - ours):
            raise UserError(f"--output={path}: was added to the earlier export: {', '.join(added)}; move it away first")
    above = next(p for p in path.parents if p.exists())
    if not above.is_dir():
        raise UserError(f"--output={path}: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--output={path}: {above} cannot be written")
    free = shutil.disk_usage(above).free
    if needed > free:
        raise UserError(f"--output={path}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")


def _say_leftovers(path: Path) -> None:
    """Warns of what a killed export left beside `path`; removes nothing, since another may be at work."""
    beside = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.")] if path.parent.is_dir() else []
    for left in sorted(beside):
        if left.name.startswith(f"{path.name}.tmp-"):
            warn(f"{left} is what an interrupted export left; remove it when none is running")
        elif left.name.startswith(f"{path.name}.old-"):
            warn(f"{left} is the earlier export, which an interrupted --overwrite moved away; remove it or keep it")


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


def _check_tree(flat: dict, kinds: dict, cfg: LlamaConfig) -> None:
    shapes = leaf_shapes(cfg)
    wrong = [".".join(p) for p in shapes.keys() | flat.keys() if p not in flat or flat[p].shape != shapes.get(p)]
    if wrong:
        raise UserError(f"parameters do not fit the config: {group_names(wrong)}")
    if foreign := {str(k) for k in kinds.values() if k not in CODES}:
        raise UserError(f"dtype {', '.join(sorted(foreign))}: exports are {', '.join(str(d) for d in CODES)}")


def _main_dtype(files: dict[str, list[HFTensor]], kinds: dict) -> str:
    """The name for config.json: the dtype that most values are stored in (norms alone may be float32)."""
    counts: dict[str, int] = {}
    for t in (t for tensors in files.values() for t in tensors):
        counts[str(kinds[t.path])] = counts.get(str(kinds[t.path]), 0) + t.size
    return max(counts, key=counts.__getitem__)


def _write_weights(stage: Path, files: dict, flat: dict, kinds: dict, progress: Callable | None) -> None:
    """Streams every tensor into its file. All processes gather; process 0 writes, and its failure is raised on all."""
    main, done, problem = jax.process_index() == 0, 0, ""
    total = sum(t.size * kinds[t.path].itemsize for tensors in files.values() for t in tensors)
    for name, tensors in files.items():
        with contextlib.ExitStack() as stack:
            f: BinaryIO | None = None
            for i, t in enumerate(tensors):
                array, finite = gather(flat[t.path], t.layer, kinds[t.path])
                if not finite:
                    problem = problem or f"w{t.name} holds values that are not finite in {kinds[t.path]}"
                if main and not problem:
                    try:
                        if i == 0:
                            f = stack.enter_context(_synced(stage / name))
                            write_header(f, [(t.name, kinds[t.path], t.shape) for t in tensors])
                        write_tensor(f, array)
                    except OSError as e:
                        problem = _describe(e, stage)
                # Other processes are still gathering; they must not be left waiting for this one.
                if problem and jax.process_count() == 1:
                    raise _error(problem)
                done += array.nbytes
                if progress:
                    progress(done, total)
    if problem := any_text(problem):
        raise _error(problem)


@contextlib.contextmanager
def _synced(file: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when it is closed without error."""
    with file.open("xb") as f:
        yield f
        f.flush()
        os.fsync(f.fileno())


def _write_small(stage, files, kinds, cfg, tokenizer, generation, info) -> None:
    """Everything but the weights; only the main process."""
    if list(files) != [SINGLE]:
        total = sum(t.size * kinds[t.path].itemsize for tensors in files.values() for t in tensors)
        weight_map = {t.name: name for name, tensors in files.items() for t in tensors}
        _write_json(stage / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    write_assets(stage, cfg, tokenizer, dtype=_main_dtype(files, kinds), source_generation=generation)
    sizes = {p.name: p.stat().st_size for p in sorted(stage.iterdir())}
    _write_json(stage / MARKER, {**(info or {}), "tokenizer_hash": tokenizer_hash(tokenizer), "files": sizes})


def _publish(stage: Path, path: Path) -> None:
    """Gives the finished folder its name; an earlier export goes only after the new one stands."""
    old = path.with_name(f"{path.name}.old-{stage.name.rpartition('-')[2]}")
    replaced = path.is_dir() and any(path.iterdir())
    if replaced:
        path.rename(old)
    elif path.is_dir():
        path.rmdir()
    try:
        stage.rename(path)
    except BaseException:  # a signal as well
        if replaced and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_json(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _on_main(path: Path, work: Callable[[], object]) -> None:
    """`work` on process 0; its OSError becomes one line, the user's (a wrong folder) or the work's (a full disk)."""

    def guarded() -> None:
        try:
            work()
        except OSError as e:
            raise _error(_describe(e, path)) from e

    on_main(guarded)


def _describe(e: OSError, path: Path) -> str:
    where = path.name.partition(".tmp-")[0]
    if e.errno in _FULL:
        return f"wthe disk is full: writing {where} failed ({e.strerror}); nothing was left behind"
    return f"{'u' if e.errno in _REFUSED else 'w'}{where} cannot be written ({e.strerror or one_line(e)})"


def _error(problem: str) -> UserError | WorkError:
    return (UserError if problem[0] == "u" else WorkError)(problem[1:])
