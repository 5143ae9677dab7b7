"""A PEFT folder: adapter_config.json and adapter_model.safetensors <-> LoraSpec and adapter tree.

Tensor names are PEFT's, orientation and bytes those of our leaves; a layer's rank is its tensors' size, the zeros that
fill up a leaf are not in the file. What is in such a file is read or refused, never passed over: PEFT itself loads one
with a wrong prefix or half of its layers, with a warning or none. What is written is whole or not there, and compared
with what was to be written.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np

from mmed_jax.checkpoints.run_directory import CHECKPOINTS
from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.tokenizers.tokenizer import local_path, save_tokenizer
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
)
from mmed_jax.hf.folder_hash import hash_files
from mmed_jax.hf.gather import gather
from mmed_jax.hf.licences import write_notice
from mmed_jax.hf.load import read_json
from mmed_jax.hf.mapping import flatten, group_names, some, unflatten
from mmed_jax.hf.model_card import adapter_card
from mmed_jax.hf.peft_config import CONFIG_FILE, HF_NAMES, config_of, modules_of, read_config_file, spec_of
from mmed_jax.hf.safetensors import DTYPES, StoredTensor, read_header, shown, write_header, write_tensor
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.lora import LINEAR_TARGETS, LoraSpec, abstract_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
FILES = ("model.safetensors", "model.safetensors.index.json")  # of a model with all its weights
_BLOCK_BYTES = 1 << 26
_LINEAR_NAMES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_TABLE_NAMES = {**_LINEAR_NAMES, "lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
# PEFT writes the frozen tables as well, where one is a target.
_COPIES = {
    f"{PREFIX}{HF_NAMES[table]}{between}.weight": f"{HF_NAMES[table]}.weight"
    for table in ("embed", "head")
    for between in ("", ".base_layer")
}


class AdapterTensor(NamedTuple):
    """One tensor of an adapter's file and where it lies in the tree: row `layer` of leaf `path`, its first ranks."""

    name: str
    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]


def adapter_tensors(spec: LoraSpec, cfg: LlamaConfig) -> list[AdapterTensor]:
    """Every tensor of the file of an adapter of `spec`, layer by layer, then the tables."""
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_adapter(spec, cfg)).items()}
    ranks = {target: by_layer for target, by_layer, _ in spec.modules}
    tensors = []
    for module in sorted(modules_of(cfg), key=lambda m: m.layer is None):
        linear = module.layer is not None
        rank = ranks[module.target][module.layer or 0] if module.target in ranks else 0
        parent = ("layers", module.target) if linear else (module.target,)
        names = _TABLE_NAMES if module.target == "embed" else _LINEAR_NAMES
        for leaf, name in names.items() if rank else ():
            if (shape := shapes.get((*parent, leaf))) is not None:
                cut = _cut(leaf, rank, shape[1:] if linear else shape)
                tensors.append(AdapterTensor(f"{PREFIX}{module.name}.{name}", (*parent, leaf), module.layer, cut))
    return tensors


def _cut(leaf: str, rank: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf in a layer of `rank`."""
    return {"lora_a": (rank, *shape[1:]), "lora_b": (*shape[:1], rank)}.get(leaf, shape)


def is_peft_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG_FILE).is_file() and not any((folder / name).is_file() for name in FILES)


def base_record(folder: Path) -> dict[str, Any] | None:
    """The record of an adapter's base (hf.base_model), in folders that this program wrote; None in others."""
    record = read_json(folder / MARKER).get("base") if (folder / MARKER).is_file() else None
    return record if isinstance(record, dict) else None


@dataclasses.dataclass(frozen=True)
class PeftFolder:
    """An adapter's folder whose headers were checked.

    Attributes:
      path: the folder. cfg: of the model it is for. spec: what it is.
      stored: where each of `adapter_tensors(spec, cfg)` lies, by name.
      copies: tables of the base that are stored beside it, {name in the base's files: tensor}.
    """

    path: Path
    cfg: LlamaConfig
    spec: LoraSpec
    stored: Mapping[str, StoredTensor]
    copies: Mapping[str, StoredTensor]

    @property
    def base_record(self) -> dict[str, Any] | None:
        """As the function of this name."""
        return base_record(self.path)

    def check_values(self) -> None:
        """Reads every tensor once. Raises UserError naming those with values that are not finite."""
        wrong = [name for name, values in self._values() if not np.isfinite(values).all()]
        if wrong:
            raise UserError(f"{self.path / WEIGHTS_FILE}: values that are not finite: {group_names(wrong)}")

    def check_copies(self, base: Mapping[str, StoredTensor]) -> None:
        """Compares the tables that are stored beside the adapter with the base's, block by block.

        Args:
          base: the base's tensors by name (hf.load.read_tensors).

        Raises:
          UserError: one differs: it was trained, or the base is another.
        """
        different = [name for name, copy in self.copies.items() if not _same_values(copy, base[name])]
        if different:
            raise UserError(
                f"{self.path / WEIGHTS_FILE}: holds {some(different)}, which differs from the base's: fully trained "
                "tables are not read, and an adapter fits its own base only"
            )

    def load(self) -> dict[str, Any]:
        """The adapter tree as float32 numpy arrays, smaller ranks filled up with zeros."""
        leaves = {p: np.zeros(x.shape, np.float32) for p, x in flatten(abstract_adapter(self.spec, self.cfg)).items()}
        places = {t.name: t for t in adapter_tensors(self.spec, self.cfg)}
        for name, values in self._values():
            t = places[name]
            leaf = leaves[t.path] if t.layer is None else leaves[t.path][t.layer]
            leaf[tuple(slice(n) for n in t.shape)] = values
        return {"layers": {}} | unflatten(leaves)

    def _values(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in self.stored.items():
            values = np.empty(tensor.shape, np.float32)
            tensor.read(tuple(slice(None) for _ in tensor.shape), values)
            yield name, values


def open_peft_folder(path: str | os.PathLike, cfg: LlamaConfig) -> PeftFolder:
    """Opens an adapter for a model of `cfg`; reads adapter_config.json and the header of the weights.

    Raises:
      UserError: no such folder; a config that is refused (hf.peft_config); tensors missing, unexpected, of a wrong
        shape or dtype, or without PEFT's prefix: all of them named in one message.
    """
    folder = local_path(path, "adapter")
    if not folder.is_dir():
        raise UserError(f"adapter: {folder} is a file; give the folder that holds {CONFIG_FILE}")
    if (folder / CHECKPOINTS).is_dir():
        raise UserError(
            f"adapter: {folder} is a run, which knows its base: name it as the model, without an adapter; a PEFT "
            "folder of it is written by mmed_jax.export --adapter"
        )
    spec = spec_of(read_config_file(folder), cfg, folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "pickle files are not read here; load it once with peft and save it again" if pickled else "not there"
        raise UserError(f"adapter: {folder} has no {WEIGHTS_FILE} ({hint})")
    stored = read_header(file)
    copies = {_COPIES[name]: stored.pop(name) for name in list(stored) if name in _COPIES}
    # In a state dict the parameter within the magnitude's module stands behind it.
    stored = {n.removesuffix(".weight") if n.endswith("magnitude_vector.weight") else n: t for n, t in stored.items()}
    wanted = {t.name: t.shape for t in adapter_tensors(spec, cfg)}
    if problems := [*_name_problems(stored, wanted), *_tensor_problems(stored, wanted)]:
        raise UserError(f"{file}: does not fit {CONFIG_FILE} and the model: {'. '.join(problems)}")
    return PeftFolder(folder, cfg, spec, {name: stored[name] for name in wanted}, copies)


def _name_problems(stored: Mapping[str, StoredTensor], wanted: Mapping[str, Any]) -> list[str]:
    missing, unexpected = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    if bare := {n for n in unexpected if f"{PREFIX}{n}" in wanted}:
        return [f"names lack PEFT's prefix '{PREFIX}': {group_names(bare)}"]
    problems = [f"missing: {group_names(missing)}"] if missing else []
    return problems + ([f"unexpected: {group_names(unexpected)}"] if unexpected else [])


def _tensor_problems(stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    present = {name: stored[name] for name in wanted if name in stored}
    shapes: dict[str, list[str]] = {}
    for name, tensor in present.items():
        if tensor.shape != wanted[name]:
            what = f"{shown(list(tensor.shape))}, must be {list(wanted[name])}"
            shapes.setdefault(what, []).append(name)
    problems = [f"wrong shape: {group_names(names)} is {what}" for what, names in list(shapes.items())[:4]]
    if foreign := {name: t.dtype for name, t in present.items() if t.dtype not in DTYPES}:
        problems.append(
            f"dtype {', '.join(sorted(set(foreign.values())))} (read are {', '.join(DTYPES)}): {group_names(foreign)}"
        )
    return problems


def _same_values(copy: StoredTensor, original: StoredTensor) -> bool:
    """Whether a copy holds what `original` is in the copy's dtype (it may have been loaded in another)."""
    if copy.shape != original.shape or copy.dtype not in DTYPES:
        return False
    rows, width = copy.shape
    step = max(1, _BLOCK_BYTES // (4 * width))
    for begin in range(0, rows, step):
        block = (slice(begin, min(rows, begin + step)), slice(0, width))
        shape = (block[0].stop - begin, width)
        a, b = np.empty(shape, DTYPES[copy.dtype]), np.empty(shape, DTYPES[original.dtype])
        copy.read(block, a)
        original.read(block, b)
        if not np.array_equal(a, b.astype(a.dtype)):
            return False
    return True


def save_adapter(
    path: str | Path,
    adapter: Mapping[str, Any],
    spec: LoraSpec,
    cfg: LlamaConfig,
    *,
    base_name: str,
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    base_record: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    card: Callable[[], str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a PEFT folder: config, float32 tensors, README.md, tokenizer; read back and compared before it is named.

    Called by one process.

    Args:
      path: output folder: new, empty, or with `overwrite` an earlier export.
      adapter: the tree of `spec`, jax or numpy.
      base_name: goes into base_model_name_or_path.
      tokenizer: written beside it, with the chat format it was trained with.
      base_record: of hf.base_model, so that this program applies it to no other base.
      info: extra JSON values for the marker file. progress: called with (bytes written, bytes in all).
      card: gives the text of README.md; None = what spec and base say.

    Raises:
      UserError: the output is taken or cannot be written. WorkError: disk full, values that are not finite, or what was
        written reads back differently.
    """
    path = output_folder(path)
    check_output(path, overwrite)
    say_leftovers(path)
    stage = path.with_name(f"{path.name}.tmp-{uuid4().int % 2**31}")
    try:
        with _one_line(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stage.mkdir()
            write_json(stage / CONFIG_FILE, config_of(spec, base_name))
            _write_weights(stage / WEIGHTS_FILE, adapter, spec, cfg, progress)
            text = card() if card else adapter_card(spec, cfg, base_name, base_record)
            (stage / README).write_text(text, encoding="utf-8")
            write_notice(stage, (info or {}).get(PROVENANCE))
            if tokenizer is not None:
                save_tokenizer(tokenizer, stage)
            sizes = {p.name: p.stat().st_size for p in sorted(stage.iterdir())}
            hashes = hash_files(sorted(stage.iterdir()))
            write_json(stage / MARKER, {**(info or {}), "base": base_record, "files": sizes, "sha256": hashes})
            _verify(stage, adapter, spec, cfg)
            publish(stage, path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return path


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise failure(describe_failure(e, path)) from e


def _rows(adapter: Mapping[str, Any], spec: LoraSpec, cfg: LlamaConfig) -> Iterator[tuple[AdapterTensor, np.ndarray]]:
    """Every tensor of the file with its values, float32 [..]. Raises WorkError for values that are not finite."""
    flat = flatten(dict(adapter))
    for t in adapter_tensors(spec, cfg):
        array, finite = gather(flat[t.path], t.layer, np.dtype(np.float32))
        if not finite:
            raise WorkError(f"{t.name} holds values that are not finite")
        yield t, array[tuple(slice(n) for n in t.shape)]


def _write_weights(file: Path, adapter: Mapping, spec: LoraSpec, cfg: LlamaConfig, progress: Callable | None) -> None:
    tensors, done = adapter_tensors(spec, cfg), 0
    total = sum(4 * int(np.prod(t.shape)) for t in tensors)
    with synced(file) as f:
        write_header(f, [(t.name, np.dtype(np.float32), t.shape) for t in tensors])
        for _, values in _rows(adapter, spec, cfg):
            write_tensor(f, values)
            done += values.nbytes
            if progress:
                progress(done, total)


def _verify(stage: Path, adapter: Mapping[str, Any], spec: LoraSpec, cfg: LlamaConfig) -> None:
    """Reads the folder back. Raises WorkError when it says another spec, or holds other bytes."""
    try:
        found = open_peft_folder(stage, cfg)
    except UserError as e:
        raise WorkError(f"the adapter cannot be read back: {e}") from e
    if found.spec != spec:
        raise WorkError(f"the adapter's {CONFIG_FILE} reads back as another adapter")
    for t, values in _rows(adapter, spec, cfg):
        read = np.empty(t.shape, np.float32)
        found.stored[t.name].read(tuple(slice(None) for _ in t.shape), read)
        if not np.array_equal(read, values):
            raise WorkError(f"the adapter's {t.name} reads back differently")


def fold_patterns(
    adapter: Mapping[str, Any], spec: LoraSpec, cfg: LlamaConfig
) -> tuple[dict[str, Any], LoraSpec, list[str]]:
    """The same adapter with one rank and one scale everywhere, for readers that know no patterns (vLLM).

    Smaller ranks are filled up with zeros, a module's scale goes into its B, and layers without an adapter get one of
    zeros. Modules of the default scale keep their bytes.

    Returns:
      (adapter tree as numpy arrays, its spec, what was folded: a line of text each).

    Raises:
      UserError: a DoRA adapter, whose magnitudes such readers don't know.
    """
    if spec.dora:
        raise UserError(
            "--plain: readers without patterns know no DoRA either; export the model merged (without --adapter)"
        )
    rank = max(r for _, ranks, _ in spec.modules for r in ranks)
    root = (lambda r: r**0.5) if spec.rslora else float
    scale = spec.alpha / root(spec.rank)
    alpha = scale * root(rank)
    tree: dict[str, Any] = {"layers": {}}
    padded: list[str] = []
    scaled: list[str] = []
    empty: list[str] = []
    for target, ranks, alphas in spec.modules:
        stacked = target in LINEAR_TARGETS
        leaves = (adapter["layers"] if stacked else adapter)[target]
        a, b = (np.array(leaves[name], np.float32) for name in ("lora_a", "lora_b"))
        for i, (r, own_alpha) in enumerate(zip(ranks, alphas, strict=True)):
            name = f"model.layers.{i}.{HF_NAMES[target]}" if stacked else HF_NAMES[target]
            (padded if 0 < r < rank else empty if not r else []).append(name)
            if r and (factor := own_alpha / root(r) / scale) != 1:
                scaled.append(name)
                rows = b[i] if stacked else b
                rows *= np.float32(factor)
        missing = rank - a.shape[-2]
        a = np.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, missing), (0, 0)])
        b = np.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, missing)])
        (tree["layers"] if stacked else tree)[target] = {"lora_a": a, "lora_b": b}
    modules = tuple((t, (rank,) * len(ranks), (alpha,) * len(ranks)) for t, ranks, _ in spec.modules)
    lines = [f"rank {rank} and scale {scale:g} in every module"]
    for names, what in (
        (padded, f"filled up to rank {rank} with zeros"),
        (scaled, "B multiplied, scale folded in"),
        (empty, "without an adapter, written as zeros"),
    ):
        lines += [f"{what}: {group_names(names)}"] if names else []
    return tree, dataclasses.replace(spec, rank=rank, alpha=alpha, modules=modules), lines
