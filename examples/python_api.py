"""A model held in Python: load it, look at its logits, train it one step, ask it, save it.

    python -m examples.python_api MODEL OUTPUT

MODEL is a run directory (runs/quickstart/stage2) or a Hugging Face folder; OUTPUT will be a Hugging Face folder.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmed_jax import Llama
from mmed_jax.config.defaults import base
from mmed_jax.data.chat import chat_prompt_ids, encode_chat
from mmed_jax.data.records.schema import LANGUAGES
from mmed_jax.training.optim import make_optimizer
from mmed_jax.training.step import StepOptions, init_state, make_train_step

CONVERSATION = [
    {"role": "user", "content": "Which vitamin prevents scurvy?"},
    {"role": "assistant", "content": "Vitamin C."},
]


def main(folder: str, output: str) -> None:
    # ---- Load: a Flax NNX module; float32, because it will be trained ----------------------------------------------
    model = Llama.from_pretrained(folder, dtype="float32")
    tok = model.tokenizer

    # ---- Logits of the first token of an answer ---------------------------------------------------------------------
    prompt = chat_prompt_ids(tok, CONVERSATION[:-1])
    probabilities = jax.nn.softmax(model([prompt])[0, -1])
    values, ids = jax.lax.top_k(probabilities, 3)
    print("first token  " + "  ".join(f"{tok.decode([i])!r} {p:.3f}" for i, p in zip(ids.tolist(), values.tolist())))

    # ---- One training step, with the optimizer and the loss of mmed_jax.train ----------------------------------------
    optim = base().optim
    optim.lr, optim.schedule, optim.warmup_ratio = 1e-3, "constant", 0.0
    tx, schedule = make_optimizer(optim, total_steps=1)
    train_step = jax.jit(make_train_step(model.cfg, tx, schedule, StepOptions()), donate_argnums=0)
    # The state holds the module's own arrays, which the step overwrites: the module then takes the new ones.
    state, metrics = train_step(init_state(model.params, tx), one_row(tok, CONVERSATION, "en"))
    nnx.update(model, state["params"])
    print(f"one step     loss {metrics['loss']:.4f}, gradient norm {metrics['grad_norm']:.3f}")

    # ---- Ask: a question, messages or records, one or a list of them -------------------------------------------------
    print(f"answer       {model.generate('Which vitamin prevents scurvy?', max_new_tokens=64)}")

    # ---- Save: an ordinary Hugging Face folder, checked before it gets its name --------------------------------------
    print(f"saved        {model.save_pretrained(output, dtype='bfloat16')}")


def one_row(tok, messages: list[dict], language: str) -> dict[str, jax.Array]:
    """A batch of one unpadded row, arrays [1, T]: what a token predicts, and which predictions count."""
    example = encode_chat(tok, messages)
    length = len(example.ids) - 1
    row = {
        "tokens": np.array(example.ids[:-1], np.int32),
        "targets": np.array(example.ids[1:], np.int32),
        "loss_mask": np.array(example.trained[1:], np.float32),  # 1 for the tokens of answers
        "segment_ids": np.ones(length, np.int32),  # one document; 0 would be padding
        "positions": np.arange(length, dtype=np.int32),
        "language": np.full(length, LANGUAGES.index(language) + 1, np.int32),  # for the loss per language
    }
    return {name: jnp.asarray(values[None]) for name, values in row.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
