"""Text generation with a key-value cache: a fixed number of rows, each taken by the next prompt when it is free.

    engine = Engine(params, cfg, max_batch=16, stop_ids=stop_ids(tok))
    completions = engine.generate([ids, ...], max_new_tokens=64)

Prompts run in order of length. They are read in chunks of one fixed size into free rows of the cache; all rows then
decode together, many steps a dispatch, until they stop or enough rows are free for the next prompts. The cache grows by
size classes as rows get longer. So the number of compiled programs (programs.py) depends on the longest row alone, not
on the prompts' lengths: two for each size class.

Slot == position in every row and a query sees slots up to its own position, so neither padding nor what a row held
before reaches any result: the same prompt gives the same tokens in any batch, order or place.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmed_jax.errors import UserError, WorkError
from mmed_jax.inference import programs
from mmed_jax.inference.programs import STEPS
from mmed_jax.inference.sampling import Sampling, check_seed
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig

# Prompt tokens read in one dispatch, a row. A CPU is busy with 64, an accelerator wants more.
CHUNK, CHUNK_CPU = 256, 64
# Cache lengths: few, so that few programs are compiled; from 256 on multiples of a TPU's 128 lanes.
_SIZES = (256, 384, 512, 768)


@dataclasses.dataclass(frozen=True)
class Completion:
    """What followed a prompt: ids without the stop token; "stop" = the model ended, "length" = it was cut."""

    ids: list[int]
    finish_reason: str


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


def check_prompts(
    cfg: LlamaConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int, names: Sequence[str] | None = None
) -> None:
    """Raises UserError for prompts that a model can't continue; `names` says what to call them. Uses no device."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    limit = cfg.max_position_embeddings
    for i, prompt in enumerate(prompts):
        name = names[i] if names else f"prompt {i + 1}"
        if not len(prompt):
            raise UserError(f"{name}: is empty")
        if len(prompt) >= limit:
            long = sum(len(p) >= limit for p in prompts) - 1
            more = f"; {long} more are as long" if long else ""
            raise UserError(
                f"{name}: has {len(prompt)} tokens, and the model's max_position_embeddings is {limit} (prompt and "
                f"answer together){more}"
            )


class Engine:
    """Generates with one model on one device, or on a mesh.

    Args:
      params: tree of mmed_jax.model.llama; on the mesh's devices when there is one.
      cfg: the model's constants.
      mesh: from mmed_jax.sharding.make_mesh; rows are split over data and fsdp, heads over tensor.
      compute_dtype: of weights and activations. cache_dtype: of keys and values (default: compute_dtype).
      max_batch: rows that decode together (rounded up to what the mesh divides).
      stop_ids: tokens that end an answer.
    """

    def __init__(
        self,
        params: llama.Params,
        cfg: LlamaConfig,
        *,
        mesh: Mesh | None = None,
        compute_dtype: Any = jnp.float32,
        cache_dtype: Any = None,
        max_batch: int = 16,
        stop_ids: Sequence[int] = (),
    ):
        if max_batch < 1:
            raise UserError(f"batch_size={max_batch}: must be at least 1")
        self.cfg, self.mesh, self.max_batch = cfg, mesh if mesh is not None and mesh.size > 1 else None, max_batch
        self.dtype = jnp.dtype(compute_dtype)
        self.cache_dtype = jnp.dtype(cache_dtype or compute_dtype)
        self.stop_ids = tuple(stop_ids)
        self.params = programs.cast(params, self.dtype)
        # Where fresh arrays belong; left open, every program would be compiled for them once more.
        self.place = jax.tree.leaves(params)[0].sharding if self.mesh is None else None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        items: Sequence[int] | None = None,
        on_token: Callable[[int, int], None] | None = None,
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Continues every prompt.

        Args:
          prompts: token ids, BOS and chat format included.
          max_new_tokens: at most so many, and never past the model's max_position_embeddings.
          items: a number per prompt that, with seed and position, decides its random draws; its index by default. A
            caller that resumes gives the numbers of the whole list.
          on_token: called with (index, id) as each token appears, stop tokens left out; one dispatch a token.
          on_done: called with (index, completion) as each prompt is finished, not in order.

        Raises:
          UserError: an empty prompt, one that leaves no room in the model's positions, or senseless settings.
          WorkError: the model gives NaN.
        """
        sampling = Sampling(temperature, top_p, top_k)
        check_seed(seed)
        check_prompts(self.cfg, prompts, max_new_tokens)
        if not prompts:
            return []
        run = _Run(self, prompts, max_new_tokens, sampling, seed, items, on_token, on_done)
        with self._on_mesh():
            return run.results()

    def rows(self, prompts: int) -> int:
        """Rows used for so many prompts: no more than needed, a multiple of the mesh's row shards."""
        shards = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-min(self.max_batch, prompts) // shards) * shards

    def _on_mesh(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


class _Run:
    """One call of generate: which prompt is in which row, what it has produced, how long the cache is."""

    def __init__(self, engine, prompts, max_new_tokens, sampling, seed, items, on_token, on_done):
        self.e, self.prompts, self.on_token, self.on_done = engine, prompts, on_token, on_done
        self.rows = engine.rows(len(prompts))
        # Prompts enter in groups of one size: one compiled shape, and few dispatches.
        shards = engine.rows(1)
        self.group = max(shards, self.rows // 4 // shards * shards)
        limit = engine.cfg.max_position_embeddings
        self.budget = [min(max_new_tokens, limit - len(p)) for p in prompts]
        self.chunk = CHUNK_CPU if jax.default_backend() == "cpu" else CHUNK
        self.items = np.asarray(range(len(prompts)) if items is None else items, np.int32)
        self.pending = deque(sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i)))
        self.static = {"cfg": engine.cfg, "dtype": engine.dtype, "kind": sampling.kind}
        stops = engine.stop_ids
        # Filled up with -1, which no token is: the number of stop ids then does not decide what is compiled.
        self.stops = np.asarray(stops + (-1,) * (max(4, -(-len(stops) // 4) * 4) - len(stops)), np.int32)
        self.draw = {
            "seed": jax.random.key(seed),
            "temperature": np.float32(sampling.temperature or 1), "top_p": np.float32(sampling.top_p),
            "top_k": np.int32(sampling.top_k),
        }  # fmt: skip
        self.out: list[list[int]] = [[] for _ in prompts]
        self.done: list[Completion | None] = [None] * len(prompts)
        self.row_item = np.full(self.rows, -1, np.int64)  # prompt index in each row, -1 = free
        self.token, self.position, self.left = (np.zeros(self.rows, np.int32) for _ in range(3))
        self.cache, self.slots = None, 0

    def results(self) -> list[Completion]:
        while self.pending or (self.left > 0).any():
            while self.pending and (self.left == 0).sum() >= min(self.group, len(self.pending)):
                self._admit()
            if (self.left > 0).any():
                self._decode()
        return self.done

    def _admit(self) -> None:
        """Reads the next prompts and puts them into free rows."""
        e, chosen = self.e, [self.pending.popleft() for _ in range(min(self.group, len(self.pending)))]
        g = self.group
        lengths = np.ones(g, np.int32)
        lengths[: len(chosen)] = [len(self.prompts[i]) for i in chosen]
        chunks = -(-int(lengths.max()) // self.chunk)
        tokens = np.zeros((g, chunks * self.chunk), np.int32)
        for row, i in enumerate(chosen):
            tokens[row, : lengths[row]] = self.prompts[i]
        self._reserve(int(lengths.max()) + 1)
        rows = np.full(g, self.rows, np.int32)
        rows[: len(chosen)] = np.flatnonzero(self.left == 0)[: len(chosen)]
        items = np.zeros(g, np.int32)
        items[: len(chosen)] = self.items[chosen]
        last = np.zeros((g, e.cfg.hidden_size), e.dtype)
        last = jax.device_put(last, e.place) if e.place else last
        for start in range(0, tokens.shape[1], self.chunk):
            part = tokens[:, start : start + self.chunk]
            self.cache, last, first, bad = programs.prefill(
                e.params, self.cache, last, part, np.int32(start), lengths, rows, items, self.draw, **self.static
            )
        first, bad = jax.device_get((first, bad))
        self._check(bad[: len(chosen)].any())
        for row, i, token in zip(rows, chosen, first):
            self.row_item[row], self.token[row], self.position[row] = i, token, len(self.prompts[i])
            self.left[row] = 0 if token in e.stop_ids else self.budget[i] - 1
            self._collect(i, int(token), self.left[row] == 0)

    def _decode(self) -> None:
        """One dispatch: up to STEPS tokens for every running row, fewer when rows are wanted for pending prompts."""
        e, live = self.e, self.left > 0
        limit = 1 if self.on_token else STEPS
        self._reserve(int((self.position + np.minimum(self.left, limit))[live].max()) + 1)
        keep = max(0, self.rows - min(self.group, len(self.pending))) if self.pending else 0
        items = self.items[np.maximum(self.row_item, 0)]
        self.cache, out, bad = programs.decode(
            e.params, self.cache, self.token, self.position, self.left, items, self.stops, np.int32(limit),
            np.int32(keep), self.draw, **self.static,
        )  # fmt: skip
        out, bad = jax.device_get((out, bad))
        self._check(bad)
        for step in out:
            for row in np.flatnonzero(step >= 0):
                token = int(step[row])
                self.token[row], self.position[row] = token, self.position[row] + 1
                self.left[row] = 0 if token in e.stop_ids else self.left[row] - 1
                self._collect(int(self.row_item[row]), token, self.left[row] == 0)

    def _reserve(self, slots: int) -> None:
        """Makes the cache at least so long."""
        e, length = self.e, size_class(slots)
        if self.cache is None:
            cache = programs.init(cfg=e.cfg, rows=self.rows, length=length, dtype=e.cache_dtype)
            self.cache = jax.device_put(cache, e.place) if e.place else cache
        elif length > self.slots:
            self.cache = programs.grow(self.cache, length=length)
        self.slots = max(self.slots, length)

    def _collect(self, i: int, token: int, last: bool) -> None:
        stopped = token in self.e.stop_ids
        if not stopped:
            self.out[i].append(token)
            if self.on_token:
                self.on_token(i, token)
        if last:
            self.done[i] = Completion(self.out[i], "stop" if stopped else "length")
            if self.on_done:
                self.on_done(i, self.done[i])

    def _check(self, bad: bool) -> None:
        if bad:
            raise WorkError("the model's logits are NaN: its weights are damaged or overflow in this compute dtype")
