"""Which weights a model has, known by a few MB of them: hosts compare what each of them is about to load."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from mmed_jax.checkpoints.run_directory import CHECKPOINTS
from mmed_jax.common.buckets.ranged_file import open_pointer
from mmed_jax.common.checksums import MANIFEST
from mmed_jax.common.hashes import file_hash, json_hash
from mmed_jax.hf.load import read_tensors
from mmed_jax.hf.lora_model import LoraModel
from mmed_jax.hf.model_source import ModelSource
from mmed_jax.hf.safetensors import StoredTensor

# Bytes that are read in the middle and at the end of each tensor: 2.3 MiB of an 8B, 5.6 MiB of a 70B.
SAMPLE = 1 << 12


def describe_weights(source: ModelSource) -> str:
    """ "16,060,522,496 bytes in 291 tensors, digest 0a1b2c3d4e5f6071"; of a run "step 40, digest ...".

    Of a model with an adapter it is the adapter alone. Nothing of it depends on where the folder lies, when it was
    written or how its tensors are divided into files.

    * Hugging Face and PEFT folders: names, dtypes and shapes of the tensors, and SAMPLE bytes in the middle and at the
      end of each (smaller ones whole). So another model, another step of a training and a fine-tune of any of its
      modules differ. Not seen is a change of single values elsewhere in a tensor, as a flipped bit makes it.
    * Weight files that stay in a bucket: the generation and size of each object, which no change leaves as they are.
    * A checkpoint of a run: its step and its manifest, which has the checksum of every byte that was saved; whether the
      bytes are still those is found out when they are read. Without a manifest it is known by its step alone.

    Raises:
      OSError, UserError: a file cannot be read, or is not what it was when `source` was opened.
    """
    if isinstance(source, LoraModel) and source.peft is not None:
        peft = source.peft
        return _describe_tensors({**peft.stored, **peft.copies}, json_hash(peft.spec.to_json(), 16))
    if source.kind == "hf":
        return _describe_tensors(read_tensors(source.path, source.cfg))
    step = source.known_step
    manifest = source.path / CHECKPOINTS / str(step) / MANIFEST
    return f"step {step}, " + (f"digest {file_hash(manifest)[:16]}" if manifest.is_file() else f"without {MANIFEST}")


def _describe_tensors(tensors: Mapping[str, StoredTensor], more: str = "") -> str:
    """`more`: what the digest covers beside them."""
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        by_file.setdefault(tensor.file, {})[name] = tensor
    samples: dict[str, str] = {}
    for file, held in by_file.items():
        if (ranged := open_pointer(file)) is None:
            with file.open("rb") as f:
                samples |= {name: _sample(f, t) for name, t in held.items()}
        else:  # the version of the object, and where the tensor lies in it
            samples |= {name: f"{ranged.generation} {ranged.size} {t.begin}" for name, t in held.items()}
    listed = [[name, t.dtype, list(t.shape), samples[name]] for name, t in sorted(tensors.items())]
    total = sum(t.end - t.begin for t in tensors.values())
    return f"{total:,} bytes in {len(tensors):,} tensors, digest {json_hash([listed, more], 16)}"


def _sample(file: BinaryIO, tensor: StoredTensor) -> str:
    """SHA-256 (hex) of the middle and the end of a tensor; of all of it where that is no more."""
    size, digest = tensor.end - tensor.begin, hashlib.sha256()
    for start in (size // 2, size - SAMPLE) if size > 2 * SAMPLE else (0, SAMPLE):
        file.seek(tensor.begin + start)
        digest.update(file.read(max(0, min(SAMPLE, size - start))))
    return digest.hexdigest()
