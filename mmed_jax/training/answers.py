"""Fixed prompts answered greedily while training, so that one can read what the model has become.

Without a key-value cache: the step runs the whole forward pass of training once for every new token, over a few short
rows. That works on every mesh, with every adapter and quantised base, and takes no weights twice; it costs what
ANSWER_TOKENS small forward passes cost (docs/training.md).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmed_jax.data.batch import Batch, empty_batch
from mmed_jax.data.chat import chat_prompt_ids
from mmed_jax.data.multiple_choice import mcq_prompt_ids
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.data.tokenizers.tokenizer import control_ids, stop_ids
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig
from mmed_jax.parallel.sharding import constrain
from mmed_jax.training.state import BatchPlacer
from mmed_jax.training.step import StepOptions, hidden_states, transfers, whole_params

# Tokens of an answer, at most.
ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer: the question in words, and the ids that are continued."""

    language: str
    question: str
    ids: tuple[int, ...]


def choose_prompts(tok: Any, records: Iterable[dict], data: ConfigDict, number: int) -> list[Prompt]:
    """The first `number` of `records` that leave room for an answer in a row, language by language.

    Args:
      data: config.data, whose prompt family and system message they are put with; of its modes the rationale is asked
        for where it is trained.
    """
    chosen: list[Prompt] = []
    for record in records:
        if len(chosen) == number:
            break
        prompt = _prompt(tok, record, data)
        if len(prompt.ids) + min(ANSWER_TOKENS, data.seq_len // 16) <= data.seq_len:
            chosen.append(prompt)
    return sorted(chosen, key=lambda p: LANGUAGES.index(p.language))


def _prompt(tok: Any, record: dict, data: ConfigDict) -> Prompt:
    system = data.system_prompt
    if "messages" in record:
        messages = record["messages"][:-1]
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        return Prompt(record["language"], messages[-1]["content"], tuple(chat_prompt_ids(tok, messages)))
    mode = "rationale" if "rationale" in data.modes else "direct"
    ids = mcq_prompt_ids(tok, record, mode, data.prompt_family, system_prompt=system)
    options = [f"{letter}. {text}" for letter, text in record["options"].items()]
    passage = [record["context"]] if record.get("context") else []
    return Prompt(record["language"], "\n".join([*passage, record["question"], *options]), tuple(ids))


def make_answer_step(cfg: LlamaConfig, options: StepOptions) -> Callable[..., dict[str, jax.Array]]:
    """Builds answer_step(params, batch, stops, base) -> {"tokens": int32 [B, T], "ends": int32 [B]}.

    A row of the batch is a prompt with segment 1, then padding. Its greedy answer, without the stop token, stands
    behind the prompt and up to the row's end in `ends`. stops: int32 [K], tokens that end an answer.
    """

    def answer_step(params: Any, batch: Batch, stops: jax.Array, base: Any = None) -> dict[str, jax.Array]:
        params = whole_params(params, cfg, options, base)
        tokens_bt = batch["tokens"]
        places = jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)
        # Of the padding behind a prompt nothing is seen before it is written.
        whole = {"segment_ids": jnp.ones_like(tokens_bt), "positions": jnp.broadcast_to(places, tokens_bt.shape)}

        def unfinished(carry: tuple) -> jax.Array:
            number, _, _, runs_b = carry
            return (number < ANSWER_TOKENS) & runs_b.any()

        def add_token(carry: tuple) -> tuple:
            number, tokens_bt, ends_b, runs_b = carry
            with transfers(options):
                hidden_btd = hidden_states(params, cfg, options, {"tokens": tokens_bt, **whole})
            # One term each: the sum is that hidden state, whatever devices hold the row.
            is_last = (places == ends_b[:, None] - 1)[..., None]
            last_bd = jnp.where(is_last, hidden_btd, 0).sum(axis=1)
            new_b = jnp.argmax(llama.unembed(params, cfg, last_bd), axis=-1).astype(jnp.int32)
            runs_b &= ~(new_b[:, None] == stops).any(-1)
            tokens_bt = jnp.where((places == ends_b[:, None]) & runs_b[:, None], new_b[:, None], tokens_bt)
            ends_b += runs_b
            tokens_bt = constrain(tokens_bt, "batch", "length")
            return number + 1, tokens_bt, ends_b, runs_b & (ends_b < len(places))

        ends_b = (batch["segment_ids"] > 0).sum(axis=1, dtype=jnp.int32)
        carry = (jnp.int32(0), tokens_bt, ends_b, ends_b > 0)
        _, tokens_bt, ends_b, _ = jax.lax.while_loop(unfinished, add_token, carry)
        return {"tokens": tokens_bt, "ends": ends_b}

    return answer_step


class Answers:
    """Answers prompts with what is being trained.

    Args:
      prompts: of choose_prompts. tok: the tokenizer. cfg: the model, of whose end tokens those that are control tokens
        end an answer too. seq_len: of training rows; those of the prompts are no longer.
    """

    def __init__(self, prompts: Sequence[Prompt], tok: Any, cfg: LlamaConfig, mesh: Mesh, seq_len: int):
        self.prompts, self._tok = list(prompts), tok
        stops = {*stop_ids(tok), *control_ids(tok).intersection(cfg.eos_token_id)}
        self._stops = np.array(sorted(stops), np.int32)
        groups = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = -(-len(prompts) // groups) * groups
        longest = max(len(p.ids) for p in prompts)
        self._placer = BatchPlacer(mesh, rows, row_length(longest + ANSWER_TOKENS, seq_len, mesh.shape["context"]))
        self._batch = self._local_batch(self._placer)

    def _local_batch(self, placer: BatchPlacer) -> Batch:
        batch = empty_batch(len(placer.rows), placer.length)
        for at, row in enumerate(placer.rows.tolist()):
            ids = self.prompts[row].ids if row < len(self.prompts) else ()
            batch["tokens"][at, : len(ids)] = ids
            batch["segment_ids"][at, : len(ids)] = 1
        return batch

    def write(self, answer_step: Callable[[Any, dict, np.ndarray], dict], params: Any) -> list[dict[str, str]]:
        """[{"language", "question", "answer"}] of every prompt, the same on every process.

        Args:
          answer_step: (params, placed batch, stops) -> of make_answer_step.
        """
        rows = jax.device_get(answer_step(params, self._placer(self._batch), self._stops))
        return [
            {
                "language": prompt.language,
                "question": prompt.question,
                "answer": self._tok.decode(tokens[len(prompt.ids) : end].tolist(), skip_special_tokens=True).strip(),
            }
            for prompt, tokens, end in zip(self.prompts, rows["tokens"], rows["ends"])
        ]


def row_length(wanted: int, seq_len: int, context: int) -> int:
    """The length of rows for so many tokens: a power of two from 128 on that the mesh's `context` divides, or, where
    that is no shorter, that of training rows, which every attention backend has been asked about."""
    size = 128
    while size < wanted:
        size *= 2
    return size if size < seq_len and size % context == 0 else seq_len
