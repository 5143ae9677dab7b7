"""Documents with the same text: SHA-256 of the text in a normal form, within a language.

Two texts are the same where they differ in spacing, in full-width forms or in the case of letters only. Numbers and
punctuation count: a leaflet with another dose is another document.

`text_key` of every document, all keys together to `exact_duplicates`, its Removals to RemoveDocuments.
"""

import hashlib

import numpy as np

from data_gen.corpus.removal import Removals, groups_to_removals
from data_gen.corpus.text_forms import nfkc


def text_key(text: str, language: str | None) -> bytes:
    """32 bytes, equal for documents of a language with equal texts in NFKC, lower case, any spacing as one space."""
    normal = " ".join(nfkc(text).lower().split())
    return hashlib.sha256(f"{language or ''}\n{normal}".encode("utf-8", "surrogatepass")).digest()


def exact_duplicates(text_keys: np.ndarray, id_keys: np.ndarray, earlier: np.ndarray | None = None) -> Removals:
    """Which documents repeat another one's text.

    Args:
      text_keys: of text_key, uint8 [n, 32]. id_keys: of removal.key_array, uint64 [n, 2]. earlier: bool [n], those of
        an earlier corpus; None for none. A document whose text an earlier corpus has is removed, too.
    """
    words = np.ascontiguousarray(text_keys, np.uint8).reshape(-1, 32).view(np.uint64)
    order = np.lexsort(words.T)
    new = np.any(words[order][1:] != words[order][:-1], axis=1)
    group = np.empty(len(words), np.int64)
    group[order] = np.cumsum(np.r_[False, new]) if len(words) else 0
    return groups_to_removals(id_keys, group, np.zeros(len(words), bool) if earlier is None else earlier)
