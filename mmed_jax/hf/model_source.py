"""A model that can be loaded, in a run directory or in a Hugging Face folder, and which weights it holds."""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from mmed_jax.checkpoints.run_directory import CHECKPOINTS, CONFIG_FILE, read_meta, step_folders
from mmed_jax.common import jsonl
from mmed_jax.common.buckets.ranged_file import file_size, read_bytes
from mmed_jax.common.errors import UserError
from mmed_jax.common.input_files import check_file
from mmed_jax.data.plain_text import adopt_roles
from mmed_jax.data.tokenizers.tokenizer import check_vocab, control_ids, load_tokenizer, local_path, stop_ids
from mmed_jax.hf.load import load_config, load_params, read_generation, read_json, read_tensors
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.llama import abstract_params
from mmed_jax.model.quantized_base import check_base

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mmed_jax.hf.weight_stream import WeightStream
    from mmed_jax.model.lora import LoraSpec

ASSETS = "hf_assets"
_SAMPLE = 1 << 20  # bytes of a file that go into a fingerprint at a time


@dataclasses.dataclass(eq=False)  # known by identity, so that a module that holds one can be an argument of jit
class ModelSource:
    """A model that can be loaded; nothing but small files has been read and no device touched.

    Attributes:
      path: the folder as given.
      kind: "run" or "hf".
      cfg: constants of the model.
      step: checkpoint step of a run: the one asked for, else None until `load_params` has found the newest good one.
      ignore_keys: of config.json, that the user vouches for.
      lora, base: of a model with an adapter (hf.lora_model) what the adapter is, and the model beneath it; else None.
    """

    path: Path
    kind: str
    cfg: LlamaConfig
    step: int | None = None
    ignore_keys: tuple[str, ...] = ()
    lora: "LoraSpec | None" = None
    base: "ModelSource | None" = None

    @property
    def assets(self) -> Path:
        """The folder with config.json and the tokenizer's files."""
        return self.path / ASSETS if self.kind == "run" else self.path

    @functools.cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The model's tokenizer (data.tokenizer.load_tokenizer). Raises UserError: none there, or it does not fit."""
        tok = load_tokenizer(self.assets)
        adopt_roles(tok, self.cfg.bos_token_id, self.cfg.eos_token_id)
        check_vocab(tok, self.cfg.vocab_size)
        return tok

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's, and the control tokens that config.json names as end tokens."""
        named = control_ids(self.tokenizer).intersection(self.cfg.eos_token_id)
        return tuple(sorted({i for i in (*stop_ids(self.tokenizer), *named) if i < self.cfg.vocab_size}))

    @property
    def chat_template(self) -> str | None:
        """Jinja text of the chat template; None where there is none."""
        return self.tokenizer.chat_template

    @property
    def generation(self) -> dict:
        """generation_config.json of the model, {} when there is none."""
        return read_generation(self.assets)

    @property
    def description(self) -> str:
        """What it is, in words: "Hugging Face folder", "run directory, step 40"."""
        if self.kind == "hf":
            return "Hugging Face folder"
        return "run directory, newest checkpoint" if self.step is None else f"run directory, step {self.step}"

    @property
    def stored_bytes(self) -> dict[str, int]:
        """Bytes of an HF folder's tensors by dtype name ("BF16"), {} for a run (its parameters are usually float32)."""
        sizes: dict[str, int] = {}
        for t in read_tensors(self.path, self.cfg).values() if self.kind == "hf" else ():
            sizes[t.dtype] = sizes.get(t.dtype, 0) + t.end - t.begin
        return sizes

    def load_params(
        self, shardings: Any = None, dtype: Any = None, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """The parameter tree (mmed_jax.model.llama), read slice by slice; every process calls this.

        Args:
          shardings: tree of Shardings, one for all leaves, or None = the first device.
          dtype: of all leaves; None = as stored.
          progress: called with (bytes read, bytes in all); HF folders only.

        Raises:
          UserError: weights missing or of other shapes than config.json says.
          WorkError: a run whose checkpoints cannot be read.
        """
        if self.kind == "hf":
            return load_params(self.path, self.cfg, dtype=dtype, shardings=shardings, progress=progress)
        from mmed_jax.checkpoints.restore import restore_params

        expected = abstract_params(self.cfg, jnp.float32)
        params, self.step = restore_params(self.path, self.step, shardings, dtype, expected)
        return params

    def stream(self, dtype: Any = None) -> "WeightStream":
        """The weights tensor by tensor, for what needs not all of them in memory. dtype: None = as stored.

        Of a run, `step` is known when it was read.
        """
        from mmed_jax.hf.weight_stream import FolderStream, RunStream

        if self.kind == "hf":
            return FolderStream(self.path, self.cfg, dtype)
        return RunStream(self.path, self.step, self.cfg, dtype, was_read=self._was_read)

    def _was_read(self, step: int) -> None:
        self.step = step

    def load_base(
        self, kind: str, dtype: Any, shardings: Any = None, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """The parameters as the frozen base of an adapter (mmed_jax.model.quantized_base); every process calls this.

        A quantised base is made on the way in, the same bits on every machine: beside it, host and devices hold one
        layer's tensor (or the embedding) of a Hugging Face folder, and one leaf of a run.

        Args:
          kind: of model.quantization.KINDS. dtype: of all that is not quantised.
          shardings: tree of Shardings (quantized_base.base_shardings), one for all leaves, or None = the first device.
          progress: called with (bytes read, bytes in all); HF folders only.

        Raises:
          UserError: an unknown kind, sizes or weights that can't be stored so, or see `load_params`.
          WorkError: a run whose checkpoints cannot be read.
        """
        check_base(self.cfg, kind)
        if kind == "compute":
            return self.load_params(shardings, dtype, progress)
        from mmed_jax.hf.load_base import quantize_folder, quantize_run

        if self.kind == "hf":
            return quantize_folder(self.path, self.cfg, kind, dtype, shardings, progress)
        base, self.step = quantize_run(self.path, self.step, self.cfg, kind, dtype, shardings)
        return base

    @property
    def known_step(self) -> int | None:
        """`step`, or what it will be when the newest checkpoint turns out to be good; None for an HF folder."""
        return max(step_folders(self.path)) if self.kind == "run" and self.step is None else self.step

    def fingerprint(self) -> str:
        """What `identity` says of the files: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        if self.kind == "run":
            manifest = self.path / CHECKPOINTS / str(self.known_step) / "manifest.json"
            digest.update(manifest.read_bytes() if manifest.is_file() else str(self.path.resolve()).encode())
        else:
            digest.update((self.path / "config.json").read_bytes())
            digest_files(digest, self.path)
        return digest.hexdigest()[:16]


def digest_files(digest: Any, folder: Path) -> None:
    """Adds name, size and the first, middle and last MiB of each safetensors file to a hash."""
    for path in sorted(p for p in folder.glob("*.safetensors") if p.is_file()):
        size = file_size(path)
        digest.update(f"{path.name} {size}".encode())
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            digest.update(read_bytes(path, start, start + _SAMPLE))


def open_whole(path: str | os.PathLike, step: int | None = None, ignore_keys: Collection[str] = ()) -> ModelSource:
    """Opens a run directory or a Hugging Face folder that holds all its weights (open_model.py opens adapters too).

    Args:
      path: the folder; for a run also its checkpoints/ or one step in it.
      step: checkpoint of a run; None = the newest good one.
      ignore_keys: of an HF folder's config.json, not known here, that the user vouches for (model.config.from_hf).

    Raises:
      UserError: nothing there (with the download command for a hub name), neither of the two, no checkpoint or not that
        one, or config.json, weights' headers wrong.
    """
    folder = local_path(path, "model")
    if not folder.is_dir():
        check_file(folder, f"model: {folder}")
        raise UserError(f"model: {folder} is a file; give a run directory or a Hugging Face folder")
    if folder.name.isdigit() and folder.parent.name == CHECKPOINTS and step is None:
        folder, step = folder.parent.parent, int(folder.name)
    elif folder.name == CHECKPOINTS:
        folder = folder.parent
    if (folder / ASSETS).is_dir() or (folder / CHECKPOINTS).is_dir():
        return _open_run(folder, step)
    check_file(folder / "config.json")
    if (folder / "config.json").is_file() and _is_run_config(folder):
        raise UserError(f"model: {folder} is a run directory without checkpoints: nothing has been saved there yet")
    if step is not None:
        raise UserError(f"model: {folder} is no run directory; --step={step} goes with runs only")
    if not (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        found = sorted(p.name for p in folder.iterdir())
        inside = "it holds " + ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") if found else "it is empty"
        raise UserError(
            f"model: {folder} is neither a run directory ({CHECKPOINTS}/ and {ASSETS}/) nor a Hugging Face folder "
            f"(config.json and safetensors): {inside}"
        )
    source = ModelSource(folder, "hf", load_config(folder, ignore_keys), ignore_keys=tuple(ignore_keys))
    read_tensors(folder, source.cfg)
    return source


def lora_record(source: ModelSource) -> dict[str, Any] | None:
    """{"spec", "base"} of a LoRA run, as its checkpoints hold it; None for other models.

    That of `source.step`, else of the newest checkpoint whose record is whole: they are all of one adapter.
    """
    if source.kind != "run":
        return None
    steps = sorted(step_folders(source.path), reverse=True) if source.step is None else [source.step]
    for step in steps:
        with contextlib.suppress(OSError, ValueError):  # reading the weights says what is wrong with a checkpoint
            return read_meta(source.path, step).get("lora")
    return None


def identity(source: ModelSource) -> dict[str, Any]:
    """Which weights these are, whatever their folder is called: kind, step and a fingerprint of the files.

    A run's checkpoint is known by its manifest of checksums; a Hugging Face folder by config.json and, per safetensors
    file, size and the first, middle and last MiB; a model with an adapter by both and by how they are put together.
    """
    return {"kind": source.kind, "step": source.known_step, "fingerprint": source.fingerprint()}


def trained_prompts(source: ModelSource) -> dict[str, str]:
    """{"system_prompt", "prompt_family"} that a run was trained with; the defaults for a Hugging Face folder."""
    defaults = {"system_prompt": "", "prompt_family": "llama3"}
    if source.kind == "run":
        try:
            data = jsonl.loads((source.path / CONFIG_FILE).read_bytes(), dict)["data"]
            trained = {k: data.get(k) for k in defaults}
        except (OSError, ValueError, KeyError, AttributeError):
            return defaults
        return {k: trained[k] if trained[k] and isinstance(trained[k], str) else v for k, v in defaults.items()}
    return defaults


def _open_run(folder: Path, step: int | None) -> ModelSource:
    steps = step_folders(folder)
    if not steps:
        raise UserError(f"model: {folder} has no checkpoint yet ({CHECKPOINTS}/ is empty)")
    if step is not None and step not in steps:
        raise UserError(f"model: {folder} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    if not (folder / ASSETS / "config.json").is_file():
        raise UserError(f"model: {folder / ASSETS}/config.json is missing; it is written when a run starts")
    return ModelSource(folder, "run", load_config(folder / ASSETS), step)


def _is_run_config(folder: Path) -> bool:
    """Whether config.json is the resolved config of a run rather than a model's."""
    config = read_json(folder / CONFIG_FILE)
    return "model_type" not in config and "run_dir" in config
