"""SHA-256 of the files of a model's folder, whole: what an export writes down and an audit compares."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from mmed_jax.common.buckets.ranged_file import file_size, read_bytes
from mmed_jax.common.hashes import json_hash

_BLOCK = 1 << 24
Tick = Callable[[int, int], None]


def weight_files(folder: Path) -> list[Path]:
    """config.json and the safetensors files of a Hugging Face or PEFT folder, by name."""
    configs = [folder / name for name in ("adapter_config.json", "config.json")]
    return [p for p in (*configs, *sorted(folder.glob("*.safetensors"))) if p.is_file()]


def hash_files(files: list[Path], progress: Tick | None = None) -> dict[str, str]:
    """{name: SHA-256, hex} of files, read in blocks; of a file that lies in a bucket its bytes there.

    Args:
      progress: called with (bytes read, bytes in all).

    Raises:
      OSError: one can't be read. UserError, WorkError: likewise, in a bucket.
    """
    sizes = {p: file_size(p) for p in files}
    total, done, found = sum(sizes.values()), 0, {}
    for path, size in sizes.items():
        digest = hashlib.sha256()
        for at in range(0, size, _BLOCK):
            block = read_bytes(path, at, min(size, at + _BLOCK))
            digest.update(block)
            done += len(block)
            if progress:
                progress(done, total)
        found[path.name] = digest.hexdigest()
    return found


def weights_hash(hashes: dict[str, str]) -> str:
    """One SHA-256 (hex) for the weights of a folder: over the JSON {name: SHA-256} of `weight_files`."""
    kept = {n: h for n, h in hashes.items() if n in ("adapter_config.json", "config.json") or n.endswith("safetensors")}
    return json_hash(kept, 64)
