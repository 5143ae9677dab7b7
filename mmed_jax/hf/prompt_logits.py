"""Logits on a fixed prompt, computed layer by layer from tensors as they come: proof that a model is what it was."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmed_jax.hf.mapping import HFTensor, hf_tensors
from mmed_jax.hf.weight_stream import Kinds, TreeStream, Weight
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig

PROMPT_LENGTH = 32
_BLOCK = 1 << 14  # rows of the head that are multiplied at a time


class PromptLogits:
    """float32 logits [32, V] on a fixed prompt (ids spread over the vocabulary), computed in float32.

    Tensors are given in the order of the forward pass (mapping.hf_tensors); those of one layer are held, and the table
    where it is the head as well.

    Args:
      cfg: the model's constants; token ids do not enter the computation.
    """

    def __init__(self, cfg: LlamaConfig):
        self._cfg = dataclasses.replace(cfg, bos_token_id=0, eos_token_id=(), pad_token_id=None)
        self._per_layer = sum(t.layer == 0 for t in hf_tensors(cfg))
        self._layer: dict[str, Any] = {}
        self._count = 0
        self._hidden_btd: Any = None
        self._head_vd: np.ndarray | None = None

    def add(self, t: HFTensor, array: np.ndarray) -> None:
        """The next tensor, of any float dtype."""
        if t.path[0] == "embed":
            tokens_t = np.linspace(0, self._cfg.vocab_size - 1, PROMPT_LENGTH).astype(np.int32)
            self._hidden_btd = jnp.asarray(array[tokens_t].astype(np.float32))[None]
            self._head_vd = array if self._cfg.tie_word_embeddings else None
        elif t.path[0] == "layers":
            _, module, leaf = t.path
            self._layer.setdefault(module, {})[leaf] = array
            self._count += 1
            if self._count == self._per_layer:
                self._hidden_btd = _run_layer(self._cfg)(self._hidden_btd, self._layer)
                self._layer, self._count = {}, 0
        elif t.path[0] == "final_norm":
            self._hidden_btd = _final_norm(self._cfg)(self._hidden_btd, array)
        else:
            self._head_vd = array

    def result(self) -> np.ndarray:
        """The logits, after all tensors."""
        assert self._head_vd is not None and not self._count
        untied = dataclasses.replace(self._cfg, tie_word_embeddings=False)
        blocks = range(0, len(self._head_vd), _BLOCK)
        head_vd, self._head_vd = self._head_vd, None
        rows = [_unembed(untied)(self._hidden_btd[0], head_vd[i : i + _BLOCK]) for i in blocks]
        return np.concatenate([np.asarray(r) for r in rows], axis=-1)


def prompt_logits(params: dict[str, Any], cfg: LlamaConfig, dtype: Any = None) -> np.ndarray:
    """PromptLogits of a tree with any sharding; every process calls this.

    Args:
      dtype: round the parameters to this first; None leaves them.
    """

    def consume(_: Kinds, weights: Iterator[Weight]) -> np.ndarray:
        logits = PromptLogits(cfg)
        for weight in weights:
            logits.add(weight.tensor, weight.array)
        return logits.result()

    return TreeStream(params, cfg, dtype).read(consume)


@functools.lru_cache(maxsize=8)
def _run_layer(cfg: LlamaConfig) -> Any:
    def run(x_btd: jax.Array, layer: dict[str, Any]) -> jax.Array:
        layer = jax.tree.map(lambda x: x.astype(jnp.float32), layer)
        return llama.run_layer(x_btd, layer, cfg)

    return jax.jit(run)


@functools.lru_cache(maxsize=8)
def _final_norm(cfg: LlamaConfig) -> Any:
    return jax.jit(lambda x_btd, weight: llama.final_norm(x_btd, {"final_norm": {"weight": weight}}, cfg))


@functools.lru_cache(maxsize=8)
def _unembed(cfg: LlamaConfig) -> Any:
    return jax.jit(lambda x_td, table_vd: llama.unembed({"head": {"weight": table_vd}}, cfg, x_td))
