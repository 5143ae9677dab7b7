"""Text generation with a key-value cache: a fixed number of rows, each taken by the next prompt when it is free.

    engine = Engine(params, cfg, max_batch=16, stop_ids=stop_ids(tok))
    completions = engine.generate([ids, ...], max_new_tokens=64)
    values = engine.loglikelihood([ids, ...], [(choice, choice, ...), ...])

Prompts run in order of length, those that begin alike together. They are read in chunks of one fixed size into free
rows of the cache, and what a row already holds of a prompt's beginning is copied (rows.py); all rows then decode
together, many steps a dispatch, until they stop or enough rows are free for the next prompts. The cache grows by size
classes as rows get longer. So the number of compiled programs (programs.py) depends on the longest row alone, not on
the prompts' lengths: two for each size class.

Slot == position in every row and a query sees slots up to its own position (tokens of choices: those of the prompt and
of their own choice), so neither padding nor what a row held before reaches any result: the same prompt gives the same
tokens in any batch, order or place.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmed_jax.common.errors import UserError
from mmed_jax.inference import steps
from mmed_jax.inference.loglikelihood import score_choices
from mmed_jax.inference.sampling import Sampling, check_seed
from mmed_jax.inference.scheduler import Completion, Generation
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig


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
        check_ids(cfg, [prompt], name)
        if len(prompt) >= limit:
            long = sum(len(p) >= limit for p in prompts) - 1
            more = f"; {long} more are as long" if long else ""
            raise UserError(
                f"{name}: has {len(prompt)} tokens, and the model's max_position_embeddings is {limit} (prompt and "
                f"answer together){more}"
            )


def check_ids(cfg: LlamaConfig, prompts: Sequence[Sequence[int]], name: str) -> None:
    """Raises UserError for ids that the model has no row for, which would be read as others. Uses no device."""
    for prompt in prompts:
        if (most := max(prompt, default=0)) >= cfg.vocab_size:
            raise UserError(
                f"{name}: has token id {most}, and the model's vocabulary ends at {cfg.vocab_size - 1}: its tokenizer "
                "does not fit it"
            )


def check_choices(
    cfg: LlamaConfig, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[Sequence[int]]]
) -> None:
    """Raises UserError for prompts or choices that a model can't score. Uses no device."""
    if len(prompts) != len(choices):
        raise UserError(f"{len(prompts)} prompts and choices for {len(choices)}: must be as many")
    for i, (prompt, of) in enumerate(zip(prompts, choices), 1):
        if not of or not all(len(c) for c in of):
            raise UserError(f"prompt {i}: has no choices, or an empty one")
        # The last token of a choice is predicted, not read.
        if len(prompt) + max(map(len, of)) - 1 > cfg.max_position_embeddings:
            raise UserError(
                f"prompt {i}: has {len(prompt)} tokens and a choice of {max(map(len, of))}, and the model's "
                f"max_position_embeddings is {cfg.max_position_embeddings}"
            )
        if not len(prompt):
            raise UserError(f"prompt {i}: is empty")


class Engine:
    """Generates and scores with one model on one device, or on a mesh.

    Args:
      params: tree of mmed_jax.model.llama; on the mesh's devices when there is one.
      cfg: the model's constants.
      mesh: from mmed_jax.parallel.sharding.make_mesh; rows are split over data and fsdp, heads over tensor.
      compute_dtype: of weights and activations. cache_dtype: of keys and values (default: compute_dtype).
      max_batch: rows that decode together (rounded up to what the mesh divides).
      stop_ids: tokens that end an answer.
      unroll: the layers are compiled one by one instead of as one loop: no layer's weights and cache are copied out of
        the stacked arrays in every step, for a longer compilation. Default: on a CPU, where that copy takes a third of
        a step's time.
      owned: the engine may delete the arrays of `params` when it has copied them.
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
        unroll: bool | None = None,
        owned: bool = False,
    ):
        if max_batch < 1:
            raise UserError(f"batch_size={max_batch}: must be at least 1")
        self.cfg, self.mesh, self.max_batch = cfg, mesh if mesh is not None and mesh.size > 1 else None, max_batch
        self.dtype = jnp.dtype(compute_dtype)
        self.cache_dtype = jnp.dtype(cache_dtype or compute_dtype)
        self.stop_ids = tuple(stop_ids)
        self.unroll = jax.default_backend() == "cpu" if unroll is None else unroll
        self.params = steps.cast(params, self.dtype)
        if self.unroll:
            self.params["layers"] = steps.unstack(self.params["layers"], cfg.num_layers, owned)
        # Where fresh arrays belong; left open, every program would be compiled for them once more.
        self.place = jax.tree.leaves(params)[0].sharding if self.mesh is None else None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
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
          max_new_tokens: at most so many, for all or a number for each, and never past the model's
            max_position_embeddings.
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
        each = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and max_new_tokens for {len(each)}: must be as many")
        check_prompts(self.cfg, prompts, min(each, default=1))
        if not prompts:
            return []
        run = Generation(self, prompts, each, sampling, seed, items, on_token, on_done)
        with self._on_mesh():
            return run.results()

    def loglikelihood(
        self,
        prompts: Sequence[Sequence[int]],
        choices: Sequence[Sequence[Sequence[int]]],
        *,
        on_done: Callable[[int, list[float]], None] | None = None,
    ) -> list[list[float]]:
        """log p(choice | prompt) of every choice of every prompt: the sum over its tokens, in nats, float32.

        A prompt is read once for all its choices, which lie behind it in one row, unseen by each other.

        Args:
          prompts: token ids, BOS and chat format included.
          choices: for each prompt the token ids of its choices, at least one with at least one token each.
          on_done: called with (index, values) as each prompt is finished, not in order.

        Raises:
          UserError: an empty prompt or choice, or more tokens than the model's max_position_embeddings.
          WorkError: the model gives NaN.
        """
        check_choices(self.cfg, prompts, choices)
        if not prompts:
            return []
        with self._on_mesh():
            return score_choices(self, prompts, choices, on_done)

    def rows(self, prompts: int) -> int:
        """Rows used for so many prompts: no more than needed, a multiple of the mesh's row shards."""
        shards = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        return -(-min(self.max_batch, prompts) // shards) * shards

    def _on_mesh(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
