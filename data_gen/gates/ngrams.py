"""Text as sets of hashed character n-grams: the common ground of near-duplicates and contamination.

Characters, not words: Chinese and Japanese have no spaces, Russian and Korean inflect. Only letters and digits count
(NFKC, case-folded, accents kept), so that punctuation, spacing and full-width forms make no difference.
"""

import re
import unicodedata
from hashlib import blake2b

import numpy as np

_NOT_TEXT = re.compile(r"[\W_]+")
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def normal_text(text: str) -> str:
    """Letters and digits only, NFKC, case-folded, without spaces: the text two copies of one question share."""
    return _NOT_TEXT.sub("", unicodedata.normalize("NFKC", text).casefold())


def text_key(*parts: str) -> bytes:
    """16 bytes that stand for the normalised texts; equal keys mean equal texts."""
    return blake2b("\x1f".join(map(normal_text, parts)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def is_dense(text: str) -> bool:
    """Whether most of the text is Han, kana or hangul, of which a few characters say what a dozen Latin letters do."""
    return 2 * len(_DENSE.findall(text)) > len(text)


def shingles(text: str, size: int, dense_size: int) -> np.ndarray:
    """Sorted distinct hashes, uint64 [n], of the n-grams of `normal_text(text)`.

    `size` characters each, `dense_size` where the text is dense (`is_dense`). A shorter text is one shingle; an empty
    one none. The hash is a polynomial over code points, finished with a mixer; it is the same on every machine.
    """
    text = normal_text(text)
    if not text:
        return np.empty(0, np.uint64)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    size = min(dense_size if is_dense(text) else size, len(codes))
    count = len(codes) - size + 1
    hashes = np.zeros(count, np.uint64)
    for i in range(size):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += codes[i : i + count]
    return np.unique(mix64(hashes))


def mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (a bijection on uint64): neighbouring values come far apart."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))
