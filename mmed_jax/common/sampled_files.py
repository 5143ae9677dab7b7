"""What a file or a folder holds, known by little of it: hosts compare what each of them is about to read."""

import hashlib
from pathlib import Path

from mmed_jax.common.hashes import json_hash
from mmed_jax.common.input_files import what_is

# Files of up to WHOLE bytes in all are read whole. Of more than that only MOST files are opened, and SAMPLE bytes are
# read at the begin, in the middle and at the end of each.
WHOLE, SAMPLE, MOST = 32 << 20, 1 << 16, 64


def describe_contents(path: Path) -> str:
    """ "5,120 bytes in 2 files, digest 0a1b2c3d4e5f6071" of a file, or of all files below a folder.

    Equal for equal names below `path` and equal bytes, wherever it lies and whenever it was written. Names and sizes
    always count, and all bytes of up to WHOLE. Of larger files a change within them that leaves the size as it was, and
    is not where a sample is taken, is not seen.

    Returns:
      "nothing there", or "cannot be read (REASON)", where that is so.
    """
    if not what_is(path):
        return "nothing there"
    try:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        sizes = {p: p.stat().st_size for p in files}
        total, every = sum(sizes.values()), -(-len(files) // MOST)
        listed = []
        for number, (p, size) in enumerate(sizes.items()):
            name = p.relative_to(path).as_posix() if p != path else ""
            opened = total <= WHOLE or number % every == 0
            listed.append([name, size, _sample(p, size, total <= WHOLE) if opened else ""])
    except OSError as e:
        return f"cannot be read ({e.strerror or e})"
    counted = "1 file" if len(files) == 1 else f"{len(files):,} files"
    return f"{total:,} bytes in {counted}, digest {json_hash(listed, 16)}"


def _sample(path: Path, size: int, whole: bool) -> str:
    """SHA-256 (hex) of the samples of a regular file. Raises OSError."""
    if what_is(path) != "file":  # a pipe would be waited for
        return ""
    with path.open("rb") as f:
        if whole:
            return hashlib.file_digest(f, "sha256").hexdigest()
        digest = hashlib.sha256()
        for start in (0, size // 2, max(0, size - SAMPLE)):
            f.seek(start)
            digest.update(f.read(SAMPLE))
    return digest.hexdigest()
