"""Reads a Hugging Face Llama folder slice by slice into (sharded) arrays."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmed_jax.common.errors import UserError, warn
from mmed_jax.common.input_files import check_file, open_file, what_is
from mmed_jax.common.jsonl import BadJSON, decode, loads
from mmed_jax.data.tokenizers.tokenizer import local_path
from mmed_jax.hf.mapping import HARMLESS, HFTensor, flatten, group_names, hf_tensors, leaf_shapes, some, unflatten
from mmed_jax.hf.mapping import Path as LeafPath
from mmed_jax.hf.merge import Merger
from mmed_jax.hf.safetensors import CODES, DTYPES, MAX_HEADER, StoredTensor, read_header, shown
from mmed_jax.model.config import MOST, LlamaConfig, from_hf

# GPTQ, AWQ, 4 bits of bitsandbytes and the like.
UNQUANTISED = "no quantised weights: download the unquantised model, and train with --config.lora.base=nf4"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_config(path: str | os.PathLike, ignore_keys: Collection[str] = ()) -> LlamaConfig:
    """The LlamaConfig of a folder with `config.json`; end tokens of `generation_config.json` are added to its own.

    Args:
      ignore_keys: of config.json, not known here, that the user vouches for (model.config.from_hf).

    Raises:
      UserError: no such folder (with the download command for a hub name), no or malformed config.json, not a Llama.
    """
    folder = model_folder(path)
    file = folder / "config.json"
    content = read_json(file)
    try:
        cfg = from_hf(content, ignore_keys, lambda line: warn(f"{file}: {line}"))
    except UserError as e:
        if not e.place:  # of the user's --ignore_keys
            raise
        raise e.at(file) from e
    more = read_generation(folder).get("eos_token_id")
    more = more if isinstance(more, list) else [more]
    if wrong := [i for i in more if i is not None and not (type(i) is int and abs(i) <= MOST)]:
        raise UserError(f"{folder / 'generation_config.json'}: eos_token_id={shown(wrong[0])}: must be token ids")
    extra = [i for i in more if i is not None and i not in cfg.eos_token_id]
    return dataclasses.replace(cfg, eos_token_id=(*cfg.eos_token_id, *extra))


def read_generation(folder: Path) -> dict:
    """The content of generation_config.json, {} when there is none."""
    file = folder / "generation_config.json"
    return read_json(file) if what_is(file) else {}


def read_tensors(path: str | os.PathLike, cfg: LlamaConfig) -> dict[str, StoredTensor]:
    """Where each tensor that `cfg` asks for is stored, by HF name. Reads headers only.

    Raises:
      UserError: no safetensors; a file missing, cut or a pointer; or tensors missing, unexpected, of a wrong shape or a
        dtype other than fp32, fp16, bf16: all of them named in one message.
    """
    folder = model_folder(path)
    stored = _all_headers(folder)
    if cfg.num_layers > len(stored):  # not listed by name: a config may say a thousand million
        raise UserError(
            f"{folder}: the weights do not fit config.json: num_hidden_layers={cfg.num_layers:,}, and the files hold "
            f"{len(stored):,} tensors"
        )
    wanted = {t.name: t for t in hf_tensors(cfg)}
    tied_head = stored.pop("lm_head.weight", None) if cfg.tie_word_embeddings else None
    problems = []
    missing = wanted.keys() - stored.keys()
    unexpected = {name for name in stored.keys() - wanted.keys() if not HARMLESS.fullmatch(name)}
    if missing:
        problems.append(f"missing: {group_names(missing)}")
        if missing == {"lm_head.weight"}:
            problems.append("(config.json says tie_word_embeddings=false)")
    if unexpected:
        problems.append(f"unexpected: {group_names(unexpected)}")
    present = [(t, stored[t.name]) for t in wanted.values() if t.name in stored]
    shapes: dict[str, list[str]] = {}
    for t, s in present:
        if s.shape != t.shape:
            what = f"{shown(list(s.shape))}, config.json says {list(t.shape)}"
            shapes.setdefault(what, []).append(t.name)
    if shapes:
        wrong = [f"{group_names(names)} is {what}" for what, names in shapes.items()]
        problems.append(f"wrong shape: {some(wrong, '; ', 500)}")
    foreign = {t.name: s.dtype for t, s in present if s.dtype not in DTYPES}
    if foreign:
        kinds = ", ".join(sorted(set(foreign.values())))
        problems.append(f"dtype {kinds} (read are {', '.join(DTYPES)}; {UNQUANTISED}): {group_names(foreign)}")
    embed = stored.get("model.embed_tokens.weight")
    if tied_head is not None and embed is not None and not tied_head.same_bytes(embed):
        problems.append("lm_head.weight differs from model.embed_tokens.weight though config.json ties them")
    if problems:
        raise UserError(f"{folder}: the weights do not fit config.json: {'. '.join(problems)}")
    return {name: stored[name] for name in wanted}


def load_params(
    path: str | os.PathLike,
    cfg: LlamaConfig,
    *,
    dtype: Any = None,
    shardings: Any = None,
    progress: Callable[[int, int], None] | None = None,
    merger: Merger | None = None,
) -> dict[str, Any]:
    """The parameter tree of an HF folder.

    Leaf by leaf, the part of a leaf that this process's devices hold is read from the files (a memory map of one stored
    tensor at a time), cast and put on the devices: extra host memory is about one leaf, and bytes that other processes
    need are not read.

    Args:
      path: folder with model.safetensors or model.safetensors.index.json and its shards.
      cfg: `load_config(path)`, or another config of the same shapes.
      dtype: of all leaves; None keeps what is stored.
      shardings: tree of jax.sharding.Sharding like the parameters, one for all of them, or None = the first device.
      progress: called after each stored tensor with (bytes read, bytes in all).
      merger: puts an adapter into the weights as they are read.

    Raises:
      UserError: see `read_tensors`.
    """
    stored = read_tensors(path, cfg)
    by_leaf: dict[LeafPath, list[HFTensor]] = {}
    for t in hf_tensors(cfg):
        by_leaf.setdefault(t.path, []).append(t)
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = flatten(shardings) if isinstance(shardings, dict) else {}
    total, done = sum(s.end - s.begin for s in stored.values()), 0

    def tick(tensor: StoredTensor) -> None:
        nonlocal done
        done += tensor.end - tensor.begin
        if progress:
            progress(done, total)

    leaves, kinds = {}, leaf_kinds(path, cfg, stored, dtype)
    for leaf, shape in leaf_shapes(cfg).items():
        tensors = [stored[t.name] for t in by_leaf[leaf]]
        sharding = placed[leaf] if placed else shardings
        merge = functools.partial(merger.merge_into, leaf) if merger and merger.changes(leaf) else None
        leaves[leaf] = read_leaf(tensors, leaf[0] == "layers", shape, kinds[leaf], sharding, tick, merge)
    return unflatten(leaves)


def leaf_kinds(
    path: str | os.PathLike, cfg: LlamaConfig, stored: dict[str, StoredTensor], dtype: Any = None
) -> dict[LeafPath, np.dtype]:
    """The dtype of each leaf: `dtype`, or the widest that its layers are `stored` in, with a warning of several."""
    codes: dict[LeafPath, set[str]] = {}
    for t in hf_tensors(cfg):
        codes.setdefault(t.path, set()).add(stored[t.name].dtype)
    if dtype is not None:
        return dict.fromkeys(codes, np.dtype(dtype))
    for leaf, found in codes.items():
        if len(found) > 1:
            warn(f"{path}: layers of {'.'.join(leaf)} are stored as {', '.join(sorted(found))}; the wider one is used")
    return {leaf: _common(found) for leaf, found in codes.items()}


def read_leaf(
    tensors: list[StoredTensor],
    stacked: bool,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding,
    tick: Callable[[StoredTensor], None],
    merge: Callable[..., None] | None = None,
) -> jax.Array:
    """One leaf, from one tensor a layer or one in all: the box that covers this process's shards is read, then cut.

    Args:
      merge: fills a part with a tensor's changed values instead (merge.Merger.merge_into, for this leaf).
    """
    shards = sharding.addressable_devices_indices_map(shape).values()
    boxes = [[s.indices(n)[:2] for s, n in zip(index, shape, strict=True)] for index in shards]
    box = [(min(b[d][0] for b in boxes), max(b[d][1] for b in boxes)) for d in range(len(shape))]
    part = np.empty([end - begin for begin, end in box], dtype)
    for row, layer in enumerate(range(*box[0])) if stacked else [(0, 0)]:
        tensor, out, inner = tensors[layer], part[row] if stacked else part, box[1:] if stacked else box
        if merge is None:
            tensor.read(tuple(slice(*b) for b in inner), out)
        else:
            merge(layer, functools.partial(read_rows, tensor), tensor.shape, inner, out)
        tick(tensor)

    def cut(index: tuple[slice, ...]) -> np.ndarray:
        ranges = [(s.indices(n)[:2], b[0]) for s, n, b in zip(index, shape, box, strict=True)]
        return part[tuple(slice(begin - low, end - low) for (begin, end), low in ranges)]

    array = jax.make_array_from_callback(shape, sharding, cut, dtype=dtype)
    # Transfers run behind; without waiting, several leaves' host buffers would be alive at once.
    return jax.block_until_ready(array)


def read_rows(tensor: StoredTensor, first: int, last: int) -> np.ndarray:
    """Whole rows of a stored matrix, float32."""
    rows_oi = np.empty((last - first, tensor.shape[1]), np.float32)
    tensor.read((slice(first, last), slice(0, tensor.shape[1])), rows_oi)
    return rows_oi


def model_folder(path: str | os.PathLike) -> Path:
    """`path` as a folder that holds config.json, or UserError with what to do."""
    folder = local_path(path, "model")
    if not folder.is_dir():
        raise UserError(f"model: {folder} is a file; give the folder that holds config.json and the safetensors")
    check_file(folder / "config.json")
    if not (folder / "config.json").is_file():
        found = sorted(p.name for p in folder.iterdir())
        hint = "it holds " + ", ".join(found[:6]) + (", ..." if len(found) > 6 else "") if found else "it is empty"
        if "params.json" in found:
            hint = "it is Meta's original format; download the Hugging Face form of the model"
        raise UserError(f"model: {folder} has no config.json ({hint})")
    return folder


def read_json(file: Path) -> dict:
    """A JSON object from `file`; UserError with file and place otherwise."""
    with open_file(file) as f:
        data = f.read(MAX_HEADER + 1)
    if len(data) > MAX_HEADER:
        raise UserError(f"{file}: larger than {MAX_HEADER // 1_000_000} MB; not a file of a model folder")
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is a git-lfs pointer, not the file; run `git lfs pull` in its folder")
    try:
        value = loads(decode(data, str(file)))
    except BadJSON as e:
        broken = isinstance(e.__context__, json.JSONDecodeError)
        line = f":{e.__context__.lineno}" if broken else ""
        raise UserError(f"{file}{line}: not JSON ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{file}: must be a JSON object")
    return value


def _all_headers(folder: Path) -> dict[str, StoredTensor]:
    if what_is(folder / SINGLE):
        return read_header(folder / SINGLE)
    if not what_is(folder / INDEX):
        raise UserError(f"model: {folder} {_without_weights(folder)}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{folder / INDEX}: weight_map must be an object of tensor name: file name")
    files = sorted(set(weight_map.values()))
    if foreign := [name for name in files if name != Path(name).name]:
        raise UserError(f"{folder / INDEX}: files must lie beside it: {some(foreign)}")
    if absent := [name for name in files if not what_is(folder / name)]:
        raise UserError(f"{folder}: {len(absent)} of {len(files)} weight files are missing: {some(absent)}")
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        header = read_header(folder / name)
        if twice := tensors.keys() & header.keys():
            raise UserError(f"{folder}: stored twice: {group_names(twice)}")
        tensors.update(header)
    return tensors


def _without_weights(folder: Path) -> str:
    names = {p.name for p in folder.iterdir()}
    if any(n.startswith("pytorch_model") for n in names):
        return (
            "has only pytorch_model*.bin; pickle files are not read here. Convert them once where torch is installed: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    if "adapter_config.json" in names:
        return "is an adapter without its base model; name the base, and the adapter with --adapter=DIR"
    if any(n.endswith(".gguf") for n in names):
        return "holds GGUF files; download the safetensors form of the model"
    return f"has neither {SINGLE} nor {INDEX}: the weights are not there (a gated model needs its licence accepted)"


def _common(codes: set[str]) -> np.dtype:
    kinds = [DTYPES[c] for c in sorted(codes)]
    common = kinds[0]
    for kind in kinds[1:]:
        common = np.dtype(jnp.promote_types(common, kind))
    assert common in CODES
    return common
