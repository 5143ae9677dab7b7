"""The rows of an engine's cache: how long they are, what they hold, and how prompts enter them."""

import contextlib
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmed_jax.inference import steps
from mmed_jax.inference.loaded_model import LoadedModel
from mmed_jax.parallel.device_memory import describe_rows, device_memory, fewer_rows

# Prompt tokens read at a time, a row. A CPU is busy with 64, an accelerator wants more.
CHUNK, CHUNK_CPU = 256, 64
# Cache lengths: few, so that few programs are compiled; from 256 on multiples of a TPU's 128 lanes.
_SIZES = (256, 384, 512, 768)


def size_class(n: int) -> int:
    """The smallest cache length of at least n: 256, 384, 512, 768, 1024, 1536, 2048, 3072, ..."""
    for size in _SIZES:
        if n <= size:
            return size
    size = 1024
    while size < n:
        if n <= size * 3 // 2:
            return size * 3 // 2
        size *= 2
    return size


class CacheRows:
    """The cache of one call of the engine, or of several one after the other.

    A prompt that begins like what a row holds is not read again: its row starts as a copy of that one. So the examples
    before few-shot questions are read once. Only whole chunks are copied, so that every chunk is computed in one way,
    whoever computes it.

    Args:
      before: rows of a call that is over. Where they are as many as these will be, these begin with what they hold.

    Attributes:
      cache: on the device, None until `reserve`.
      group: prompts that enter together: one compiled shape, and few dispatches.
      chunk: tokens of a prompt that are read at a time.
    """

    def __init__(self, model: LoadedModel, prompts: Sequence[Sequence[int]], before: "CacheRows | None" = None):
        self.model, self.count = model, model.rows(len(prompts))
        self._shards = shards = model.rows(1)
        self.group = max(shards, self.count // 4 // shards * shards)
        self.chunk = CHUNK_CPU if jax.default_backend() == "cpu" else CHUNK
        self.cache, self.slots = None, 0
        self._prompts = [np.asarray(p, np.int32) for p in prompts]
        # Of each row the prompt it took. What was decoded behind it is none of that: it came by another program.
        self._held = [np.zeros(0, np.int32)] * self.count
        if before is not None and before.count == self.count:
            self.cache, self.slots, self._held = before.cache, before.slots, before._held
        self._prefix, self.pending = self._order()

    def _order(self) -> tuple[list[int], deque[int]]:
        """(a number for each prompt, the same for those that begin with the same chunk; all prompts as they enter).

        Those of one beginning enter together, the short ones first.
        """
        first: dict[bytes, int] = {}
        begins = [p[: self.chunk].tobytes() if len(p) > self.chunk else b"" for p in self._prompts]
        same = [first.setdefault(b, i) for i, b in enumerate(begins)]
        sizes = Counter(same)
        same = [k if sizes[k] > 1 and begins[k] else -1 for k in same]
        shortest: dict[int, int] = {}
        for k, p in zip(same, self._prompts):
            if k >= 0:
                shortest[k] = min(shortest.get(k, len(p)), len(p))
        keys = [(shortest.get(k, len(p)), k, len(p), i) for i, (k, p) in enumerate(zip(same, self._prompts))]
        return same, deque(key[-1] for key in sorted(keys))

    def take(self) -> list[int]:
        """The next prompts, at most a group, all of one beginning."""
        chosen = [self.pending.popleft()]
        while self.pending and len(chosen) < self.group and self._prefix[self.pending[0]] == self._prefix[chosen[0]]:
            chosen.append(self.pending.popleft())
        return chosen

    def entry(self, chosen: Sequence[int], rows: Sequence[int]) -> dict[str, Any]:
        """What the programs need to read the prompts `chosen` into `rows` of the cache, which is long enough.

        Returns:
          {"tokens_gt": int32 [G, T], "lengths_g", "rows_g" (past the end = no prompt), "from_g" (row that a row starts
          as a copy of), "start": first token that is read, a whole number of chunks}.
        """
        g, width = self.group, -(-self.slots // self.chunk) * self.chunk
        entry = {
            "tokens_gt": np.zeros((g, width), np.int32),
            "lengths_g": np.ones(g, np.int32),
            "rows_g": np.full(g, self.count, np.int32),
            "from_g": np.zeros(g, np.int32),
        }
        starts = []
        for n, (i, row) in enumerate(zip(chosen, rows)):
            prompt = self._prompts[i]
            entry["tokens_gt"][n, : len(prompt)] = prompt
            entry["lengths_g"][n], entry["rows_g"][n] = len(prompt), row
            shared = [self._shared(prompt, held) for held in self._held]
            entry["from_g"][n] = best = int(np.argmax(shared))
            starts.append(shared[best])
        for i, row in zip(chosen, rows):
            self._held[row] = self._prompts[i]
        return {**entry, "start": np.int32(min(starts))}

    def _shared(self, prompt: np.ndarray, held: np.ndarray) -> int:
        """Tokens of whole chunks with which both begin; the prompt's last token is never among them."""
        n = min(len(prompt) - 1, len(held)) // self.chunk * self.chunk
        differ = np.flatnonzero(prompt[:n] != held[:n])
        return int(differ[0]) // self.chunk * self.chunk if len(differ) else n

    def reserve(self, slots: int) -> None:
        """Makes the cache at least so long."""
        model, length = self.model, size_class(slots)
        longer = length > self.slots
        self.slots = max(self.slots, length)  # first: what is too much for a device is said by this
        if self.cache is None:
            cache = steps.init(
                cfg=model.cfg, rows=self.count, length=length, dtype=model.cache_dtype, unstacked=model.unroll
            )
            self.cache = jax.device_put(cache, model.place) if model.place else cache
        elif longer:
            self.cache = steps.grow(self.cache, length=length)

    def device_memory(self) -> contextlib.AbstractContextManager[None]:
        """Within, a device's lack of memory is OutOfDeviceMemory with rows and length of this cache."""
        fewer = fewer_rows(self.count, self._shards)
        return device_memory(lambda: describe_rows(self.count, self.slots), fewer)
