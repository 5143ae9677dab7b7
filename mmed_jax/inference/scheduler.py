"""Decoding many prompts: rows of a cache that are taken by the next prompt when they are free."""

import dataclasses

import jax
import numpy as np

from mmed_jax.common.errors import WorkError
from mmed_jax.inference import steps
from mmed_jax.inference.loaded_model import LoadedModel
from mmed_jax.inference.slots import CacheRows
from mmed_jax.inference.steps import STEPS


@dataclasses.dataclass(frozen=True)
class Completion:
    """What followed a prompt: ids without the stop token; "stop" = the model ended, "length" = it was cut, "stopped" =
    who asked ended it."""

    ids: list[int]
    finish_reason: str


class Scheduler:
    """One call of Engine.generate: which prompt is in which row, and what it has produced."""

    def __init__(
        self, model: LoadedModel, prompts, max_new_tokens, sampling, seed, items, on_token, on_done, before=None
    ):
        self.model, self.prompts, self.on_token, self.on_done = model, prompts, on_token, on_done
        self.rows = CacheRows(model, prompts, before)
        limit = model.cfg.max_position_embeddings
        self.budget = [min(n, limit - len(p)) for n, p in zip(max_new_tokens, prompts)]
        self.items = np.asarray(range(len(prompts)) if items is None else items, np.int32)
        self.static = {"cfg": model.cfg, "dtype": model.dtype, "kind": sampling.kind}
        stops = model.stop_ids
        # Filled up with -1, which no token is: the number of stop ids then does not decide what is compiled.
        self.stops = np.asarray(stops + (-1,) * (max(4, -(-len(stops) // 4) * 4) - len(stops)), np.int32)
        self.draw = {
            "seed": jax.random.key(seed),
            "temperature": np.float32(sampling.temperature or 1),
            "top_p": np.float32(sampling.top_p),
            "top_k": np.int32(sampling.top_k),
        }
        self.out: list[list[int]] = [[] for _ in prompts]
        self.done: list[Completion | None] = [None] * len(prompts)
        self.row_item = np.full(self.rows.count, -1, np.int64)  # prompt index in each row, -1 = none yet
        # Of each row: the newest token, its position, tokens that may still come (0 = the row is free).
        self.token, self.position, self.left = (np.zeros(self.rows.count, np.int32) for _ in range(3))

    def run(self) -> list[Completion]:
        """Decodes until every prompt is finished; the completions in the order of the prompts."""
        pending = self.rows.pending
        while pending or (self.left > 0).any():
            while pending and (self.left == 0).sum() >= self._wanted():
                self._admit()
            if (self.left > 0).any():
                self._decode()
        return self.done

    def _wanted(self) -> int:
        """Free rows for which it is worth stopping to read prompts."""
        return min(self.rows.group, len(self.rows.pending))

    def _admit(self) -> None:
        """Reads the next prompts and puts them into free rows."""
        model, chosen = self.model, self.rows.take()
        rows = np.flatnonzero(self.left == 0)[: len(chosen)]
        self.rows.reserve(max(len(self.prompts[i]) for i in chosen) + 1)
        entry = self.rows.entry(chosen, rows)
        items = np.zeros(self.rows.group, np.int32)
        items[: len(chosen)] = self.items[chosen]
        self.rows.cache, first, bad = steps.prefill(
            model.params, self.rows.cache, entry, items, self.draw, chunk=self.rows.chunk, **self.static
        )
        first, bad = jax.device_get((first, bad))
        check_nan(bad[: len(chosen)].any())
        for row, i, token in zip(rows, chosen, first):
            self.row_item[row], self.token[row], self.position[row] = i, token, len(self.prompts[i])
            self.left[row] = 0 if token in model.stop_ids else self.budget[i] - 1
            self._collect(i, int(token), row)

    def _decode(self) -> None:
        """One dispatch: up to STEPS tokens for every running row, fewer when rows are wanted for pending prompts."""
        model, live = self.model, self.left > 0
        limit = 1 if self.on_token else STEPS
        self.rows.reserve(int((self.position + np.minimum(self.left, limit))[live].max()) + 1)
        keep = max(0, self.rows.count - self._wanted()) if self.rows.pending else 0
        items = self.items[np.maximum(self.row_item, 0)]
        self.rows.cache, out, bad = steps.decode(
            model.params,
            self.rows.cache,
            self.token,
            self.position,
            self.left,
            items,
            self.stops,
            np.int32(limit),
            np.int32(keep),
            self.draw,
            **self.static,
        )
        out, bad = jax.device_get((out, bad))
        check_nan(bad)
        for step in out:
            for row in np.flatnonzero(step >= 0):
                token = int(step[row])
                self.token[row], self.position[row] = token, self.position[row] + 1
                self.left[row] = 0 if token in model.stop_ids else self.left[row] - 1
                self._collect(int(self.row_item[row]), token, row)

    def _collect(self, i: int, token: int, row: int) -> None:
        """Takes a token of prompt `i`, which is in `row`; frees the row where the answer ends with it."""
        reason = "stop" if token in self.model.stop_ids else "length"
        if reason != "stop":
            self.out[i].append(token)
            if self.on_token and self.on_token(i, token) is True:
                self.left[row], reason = 0, "stopped"
        if self.left[row] == 0:
            self.done[i] = Completion(self.out[i], reason)
            if self.on_done:
                self.on_done(i, self.done[i])


def check_nan(bad: bool) -> None:
    """Raises WorkError when a program met NaN."""
    if bad:
        raise WorkError("the model's logits are NaN: its weights are damaged or overflow in this compute dtype")
