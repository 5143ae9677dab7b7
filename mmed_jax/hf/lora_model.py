"""A base with an adapter as one model: that of a LoRA run's checkpoint, or a base and a PEFT folder."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mmed_jax.common.buckets.download import address_of
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.plain_text import adopt_roles
from mmed_jax.data.tokenizers.tokenizer import check_vocab, load_tokenizer
from mmed_jax.hf.base_model import hub_name
from mmed_jax.hf.gather import gather
from mmed_jax.hf.load import load_params, read_tensors
from mmed_jax.hf.mapping import Path as LeafPath
from mmed_jax.hf.mapping import flatten, unflatten
from mmed_jax.hf.merge import Merger
from mmed_jax.hf.model_source import ModelSource, digest_files
from mmed_jax.hf.peft_config import CONFIG_FILE
from mmed_jax.hf.peft_folder import PeftFolder
from mmed_jax.hf.weight_stream import FolderStream, RunStream, WeightStream
from mmed_jax.model.llama import abstract_params
from mmed_jax.model.lora import LoraSpec, abstract_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mmed_jax.checkpoints.tree import Described

MERGE_INTO = ("trained", "original")


@dataclasses.dataclass(eq=False)
class LoraModel(ModelSource):
    """A model whose weights are a base's with an adapter in them.

    Attributes:
      lora: what the adapter is. base: the model beneath it, None where only the adapter is wanted.
      peft: the folder that it lies in; None = the checkpoint of this run.
      record: of the base (hf.base_model), as far as it is known: {} for a PEFT folder of others.
      merge_into: "trained" = the base as it was held in training, "original" = as its files are.
      merger: what the last `load_params` did, for its `error`.
    """

    peft: PeftFolder | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    merge_into: str = "trained"
    merger: Merger | None = None

    def __post_init__(self) -> None:
        """Raises UserError for another word than those of MERGE_INTO."""
        if self.merge_into not in MERGE_INTO:
            raise UserError(f"merge_into={self.merge_into}{nearest(self.merge_into, MERGE_INTO)}")

    @functools.cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """That beside the adapter, which is the one it was trained with; else the base's. Raises UserError."""
        if self.peft is None or not (self.peft.path / "tokenizer.json").is_file():
            return super().tokenizer
        tok = load_tokenizer(self.peft.path)
        adopt_roles(tok, self.cfg.bos_token_id, self.cfg.eos_token_id)
        check_vocab(tok, self.cfg.vocab_size)
        return tok

    @property
    def spec(self) -> LoraSpec:
        """`lora`, which is never None here."""
        assert self.lora is not None
        return self.lora

    @property
    def quantization(self) -> str:
        """How the base is held when it is merged: that of training, unless its original is asked for."""
        return self.record.get("quantization", "compute") if self.merge_into == "trained" else "compute"

    @property
    def base_name(self) -> str:
        """The base's name on the hub, as far as it is known, else ""."""
        return self.record.get("hub_name") or (hub_name(self.base) if self.base else "")

    @property
    def base_path(self) -> str:
        """Where the base lies, as far as it is known."""
        if self.base:
            return address_of(self.base.path) or str(self.base.path.resolve())
        return str(self.record.get("path", ""))

    @property
    def description(self) -> str:
        """What it is, in words."""
        peft = self.peft and (address_of(self.peft.path) or self.peft.path)
        where = f"{peft} on a {super().description}" if peft else super().description
        beneath = f", base {address_of(self.base.path) or self.base.path}" if self.base and not self.peft else ""
        return f"{adapter_text(self.spec)}, {where}{beneath}"

    def fingerprint(self) -> str:
        """What `identity` says: of the base, the adapter, and what they are merged into."""
        digest = hashlib.sha256(self._base().fingerprint().encode())
        if self.peft is None:
            digest.update(super().fingerprint().encode())
        else:
            digest.update((self.peft.path / CONFIG_FILE).read_bytes())
            digest_files(digest, self.peft.path)
        if self.quantization != "compute":
            digest.update(f"{self.quantization} {self.record.get('dtype')}".encode())
        return digest.hexdigest()[:16]

    def load_adapter(self, shardings: Any = None) -> dict[str, Any]:
        """The adapter tree (mmed_jax.model.lora), float32; every process calls this.

        Args:
          shardings: tree of Shardings, one for all leaves, or None = the first device.

        Raises:
          UserError: leaves of other shapes than the spec says. WorkError: a run whose checkpoints cannot be read.
        """
        expected = abstract_adapter(self.spec, self.cfg)
        if self.peft is None:
            from mmed_jax.checkpoints.restore import restore_params

            adapter, self.step = restore_params(self.path, self.step, shardings, jnp.float32, expected)
            return {"layers": {}} | adapter
        if shardings is None:
            shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        tree = self.peft.load()
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda x: shardings, tree)

        def place(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(place, tree, shardings)

    def load_params(
        self, shardings: Any = None, dtype: Any = None, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """The merged parameters; arguments and errors as of ModelSource.load_params.

        Each matrix is W + scale B A in float32, rounded once to `dtype` (None = the base's). The base is read as it is
        merged, so that it is never in memory beside the result.
        """
        base, new_merger = self._base(), self._mergers()
        if base.kind == "hf":
            params = load_params(
                base.path, self.cfg, dtype=dtype, shardings=shardings, progress=progress, merger=new_merger()
            )
        else:
            params, step = _merge_run(base, new_merger(), dtype, shardings)
            self._was_read(step)
        assert self.merger is not None
        self.merger.release()
        return params

    def stream(self, dtype: Any = None) -> WeightStream:
        """The merged weights tensor by tensor; `merger` is what merged them. See `load_params`, ModelSource.stream."""
        base, new_merger = self._base(), self._mergers()
        if base.kind == "hf":
            return FolderStream(base.path, self.cfg, dtype, new_merger())
        return RunStream(base.path, base.step, self.cfg, dtype, was_read=self._was_read, new_merger=new_merger)

    def _mergers(self) -> Callable[[], Merger]:
        """Reads the adapter; what it returns makes a `merger` of it, anew at each call."""
        adapter = jax.tree.map(np.asarray, self.load_adapter() if self.peft is None else self.peft.load())

        def new_merger() -> Merger:
            dtype = self.record.get("dtype", "float32")
            self.merger = Merger(adapter, self.spec, quantization=self.quantization, dtype=dtype)
            return self.merger

        return new_merger

    def _was_read(self, step: int) -> None:
        """Of the base, when it is a run; with a PEFT folder its step is the model's as well."""
        self._base().step = step
        self.step = step if self.peft else self.step

    def _base(self) -> ModelSource:
        if self.base is None:
            raise ValueError("opened for its adapter alone")
        return self.base


def _merge_run(source: ModelSource, merger: Merger, dtype: Any, shardings: Any) -> tuple[dict[str, Any], int]:
    """The merged parameters of a base that is a run's checkpoint, read and changed leaf by leaf; and its step."""
    from mmed_jax.checkpoints.restore import read_item, read_params_by

    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    expected = abstract_params(source.cfg)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda x: shardings, expected)
    places = flatten(shardings)

    def read(folder: Path, saved: "Described") -> dict[str, Any]:
        leaves: dict[LeafPath, jax.Array] = {}
        for path, leaf in flatten(expected).items():
            stored = np.dtype(saved["/".join(path)][1])
            kind, changes = np.dtype(dtype or stored), merger.changes(path)
            wanted = jax.ShapeDtypeStruct(leaf.shape, stored if changes else kind, sharding=places[path])
            array = flatten(read_item(folder, unflatten({path: wanted}), partial=True))[path]
            leaves[path] = _merge_leaf(path, array, merger, kind) if changes else array
        return unflatten(leaves)

    return read_params_by(source.path, source.step, expected, read)


def _merge_leaf(leaf: LeafPath, base: jax.Array, merger: Merger, dtype: np.dtype) -> jax.Array:
    whole = np.empty(base.shape, dtype)
    stacked = leaf[0] == "layers"
    for layer in range(len(base)) if stacked else [None]:
        rows_oi, _ = gather(base, layer, np.dtype(np.float32))
        box = [(0, n) for n in rows_oi.shape]
        out = whole if layer is None else whole[layer]
        merger.merge_into(leaf, layer or 0, functools.partial(_rows, rows_oi), rows_oi.shape, box, out)
    sharding = base.sharding
    base.delete()
    merged = jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index], dtype=dtype)
    return jax.block_until_ready(merged)


def adapter_text(spec: LoraSpec) -> str:
    """An adapter in words: "LoRA of rank 16, alpha 32, on q,k,v"."""
    ranks = sorted({r for _, by_layer, _ in spec.modules for r in by_layer if r})
    alphas = sorted({a for _, _, by_layer in spec.modules for a in by_layer if a})
    kind = ("rank-stabilised " if spec.rslora else "") + ("DoRA" if spec.dora else "LoRA")
    shown = " to ".join(str(r) for r in (ranks[:1] if len(ranks) == 1 else (ranks[0], ranks[-1])))
    alpha = " to ".join(f"{a:g}" for a in (alphas[:1] if len(alphas) == 1 else (alphas[0], alphas[-1])))
    return f"{kind} of rank {shown}, alpha {alpha}, on {','.join(name for name, _, _ in spec.modules)}"


def _place(record: Mapping[str, Any]) -> str:
    name = str(record.get("hub_name") or record.get("path"))
    return name if record.get("step") is None else f"{name}, step {record['step']}"


def _rows(matrix_oi: np.ndarray, first: int, last: int) -> np.ndarray:
    return matrix_oi[first:last]


def adapt(base: ModelSource, peft: PeftFolder, merge_into: str = "trained") -> LoraModel:
    """A base with the adapter of a PEFT folder, after every check that needs no device.

    Raises:
      UserError: values that are not finite; tables beside the adapter that are not the base's; or the folder was
        written by this program and the base is another than its own.
    """
    peft.check_values()
    if peft.copies and base.kind == "run":
        raise UserError(
            f"adapter: {peft.path} holds tables of its base, which are compared with those of a Hugging Face folder; "
            f"export {base.path} first and name that folder"
        )
    if peft.copies:
        peft.check_copies(read_tensors(base.path, base.cfg))
    record = peft.base_record or {}
    # A run and a Hugging Face folder have fingerprints of different files: neither can be shown to be the other.
    if record and (record.get("kind"), record.get("fingerprint")) != (base.kind, base.fingerprint()):
        raise UserError(
            f"adapter: {peft.path} was trained on other weights than those of {base.path}"
            f" ({_place(record)}); name its own base"
        )
    return LoraModel(
        base.path,
        base.kind,
        base.cfg,
        base.step,
        base.ignore_keys,
        lora=peft.spec,
        base=base,
        peft=peft,
        record=record,
        merge_into=merge_into,
    )
