"""Re-opens an exported folder and compares it with what should be in it."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmed_jax.common.errors import UserError, WorkError
from mmed_jax.data.tokenizers.tokenizer import load_tokenizer, tokenizer_hash
from mmed_jax.hf.load import load_config, read_tensors
from mmed_jax.hf.mapping import Path as LeafPath
from mmed_jax.hf.mapping import hf_tensors
from mmed_jax.hf.prompt_logits import PromptLogits, prompt_logits
from mmed_jax.hf.safetensors import CODES, DTYPES, StoredTensor
from mmed_jax.model.config import LlamaConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Same weights, same programs: differences could come from threaded sums alone.
TOLERANCE = 1e-4


def verify_export(
    folder: Path,
    reference: np.ndarray | dict[str, Any] | None,
    cfg: LlamaConfig,
    *,
    dtypes: dict[LeafPath, np.dtype] | None = None,
    tokenizer: "PreTrainedTokenizerFast | None" = None,
    checksums: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Reads an exported folder back, tensor by tensor, and compares it with what was to be in it.

    Config, tensor names, shapes, dtypes, tokenizer, bytes and logits; one layer is in memory at a time.

    Args:
      folder: the export.
      reference: float32 [32, V] from `prompt_logits` of the parameters as they should be, or those parameters; None =
        logits have to be finite only.
      cfg: the config they belong to; token ids may differ from the folder's.
      dtypes: expected dtype of each leaf; None = not compared.
      tokenizer: expected tokenizer; None = not compared.
      checksums: {tensor name: `checksum` of what was written}; None = not compared.
      progress: called with (bytes read, bytes in all).

    Returns:
      The largest absolute logit difference, 0 without a reference.

    Raises:
      WorkError: naming the first thing that is not as it should be.
    """
    try:
        found = load_config(folder)
        stored = read_tensors(folder, found)
        reread = load_tokenizer(folder) if tokenizer is not None else None
    except UserError as e:
        raise WorkError(f"the export cannot be read back: {e}") from e
    fields = [f.name for f in dataclasses.fields(cfg) if not f.name.endswith("_token_id")]
    if changed := [f for f in fields if getattr(found, f) != getattr(cfg, f)]:
        raise WorkError(f"the export's config.json says otherwise for {', '.join(changed)}")
    for t in hf_tensors(cfg) if dtypes is not None else ():
        if stored[t.name].dtype != CODES[dtypes[t.path]]:
            raise WorkError(f"the export holds {t.name} as {stored[t.name].dtype}, not {dtypes[t.path]}")
    if reread is not None and tokenizer_hash(reread) != tokenizer_hash(tokenizer):
        raise WorkError("the export's tokenizer is not the one that was given")
    logits = _read_logits(folder, stored, found, checksums, progress)
    if not np.isfinite(logits).all():
        raise WorkError("the export computes logits that are not finite")
    if reference is None:
        return 0.0
    if isinstance(reference, dict):
        reference = prompt_logits(reference, cfg)
    difference = float(np.abs(logits - reference).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(reference).max())):
        raise WorkError(f"the export computes other logits than the model (largest difference {difference:g})")
    return difference


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the bytes of a tensor, row-major."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _read_logits(
    folder: Path,
    stored: Mapping[str, StoredTensor],
    cfg: LlamaConfig,
    checksums: Mapping[str, int] | None,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Logits of the folder; on the way every tensor's bytes are compared with their checksum."""
    total, done = sum(s.end - s.begin for s in stored.values()), 0
    logits = PromptLogits(cfg)
    for t in hf_tensors(cfg):
        array = np.empty(t.shape, DTYPES[stored[t.name].dtype])
        stored[t.name].read(tuple(slice(0, n) for n in t.shape), array)
        if checksums is not None and checksum(array) != checksums[t.name]:
            raise WorkError(f"the export reads back with other values of {t.name} than were written: {folder}")
        logits.add(t, array)
        done += array.nbytes
        if progress:
            progress(done, total)
    return logits.result()
