"""Text generation with a key-value cache: a fixed number of rows, each taken by the next prompt when it is free.

    engine = Engine(params, cfg, max_batch=16, stop_ids=stop_ids(tok))
    completions = engine.generate([ids, ...], max_new_tokens=64)
    values = engine.loglikelihood([ids, ...], [(choice, choice, ...), ...])

Prompts run in order of length, those that begin alike together. They are read in chunks of one fixed size into free
rows of the cache, and what a row already holds of a prompt's beginning is copied (slots.py); all rows then decode
together, many steps a dispatch, until they stop or enough rows are free for the next prompts. The cache grows by size
classes as rows get longer. So the number of compiled programs (steps.py) depends on the longest row alone, not on
the prompts' lengths: two for each size class.

Slot == position in every row and a query sees slots up to its own position (tokens of choices: those of the prompt and
of their own choice), so neither padding nor what a row held before reaches any result: the same prompt gives the same
tokens in any batch, order or place.
"""

import contextlib
from collections.abc import Callable, Sequence

import jax

from mmed_jax.common.errors import UserError
from mmed_jax.inference.loaded_model import LoadedModel
from mmed_jax.inference.loglikelihood import score_choices
from mmed_jax.inference.sampling import Sampling, check_seed
from mmed_jax.inference.scheduler import Completion, Scheduler
from mmed_jax.inference.slots import CacheRows
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
    for i, (prompt, continuations) in enumerate(zip(prompts, choices), 1):
        if not continuations or not all(len(c) for c in continuations):
            raise UserError(f"prompt {i}: has no choices, or an empty one")
        # The last token of a choice is predicted, not read.
        if len(prompt) + max(map(len, continuations)) - 1 > cfg.max_position_embeddings:
            raise UserError(
                f"prompt {i}: has {len(prompt)} tokens and a choice of {max(map(len, continuations))}, and the model's "
                f"max_position_embeddings is {cfg.max_position_embeddings}"
            )
        if not len(prompt):
            raise UserError(f"prompt {i}: is empty")


class Engine(LoadedModel):
    """Generates and scores with one model; arguments are those of LoadedModel."""

    _kept: CacheRows | None = None  # of the newest call with keep=True

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
        on_token: Callable[[int, int], object] | None = None,
        on_done: Callable[[int, Completion], None] | None = None,
        keep: bool = False,
    ) -> list[Completion]:
        """Continues every prompt.

        Args:
          prompts: token ids, BOS and chat format included.
          max_new_tokens: at most so many, for all or a number for each, and never past the model's
            max_position_embeddings.
          items: a number per prompt that, with seed and position, decides its random draws; its index by default. A
            caller that resumes gives the numbers of the whole list.
          on_token: called with (index, id) as each token appears, stop tokens left out; one dispatch a token. Where it
            gives True the answer ends there ("stopped").
          on_done: called with (index, completion) as each prompt is finished, not in order.
          keep: the cache stays for the next call with keep and as many prompts, which reads anew only what no row holds
            of its prompts' beginnings: the turns of a conversation. The answers are the same.

        Raises:
          UserError: an empty prompt, one that leaves no room in the model's positions, or senseless settings.
          WorkError: the model gives NaN. OutOfDeviceMemory: on_done had all that was finished before.
        """
        sampling = Sampling(temperature, top_p, top_k)
        check_seed(seed)
        each = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and max_new_tokens for {len(each)}: must be as many")
        check_prompts(self.cfg, prompts, min(each, default=1))
        if not prompts:
            return []
        kept = None
        if keep:  # taken away first: of a call that breaks off nobody knows what its rows hold
            kept, self._kept = self._kept, None
        scheduler = Scheduler(self, prompts, each, sampling, seed, items, on_token, on_done, kept)
        del kept  # the cache that it refers to is freed as soon as a longer one takes its place
        with self._on_mesh(), scheduler.rows.device_memory():
            completions = scheduler.run()
        if keep:
            self._kept = scheduler.rows
        return completions

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
          WorkError: the model gives NaN. OutOfDeviceMemory: on_done had all that was finished before.
        """
        check_choices(self.cfg, prompts, choices)
        if not prompts:
            return []
        with self._on_mesh():
            return score_choices(self, prompts, choices, on_done)

    def _on_mesh(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
