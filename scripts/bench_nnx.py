"""A Llama in plain Flax NNX, as its guides write one: a peer for scripts/bench_train.py, no part of the project."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Attention(nnx.Module):
    def __init__(self, model: dict, rngs: nnx.Rngs):
        d, self.heads, self.kv_heads = model["hidden_size"], model["num_attention_heads"], model["num_key_value_heads"]
        self.head_dim = d // self.heads
        self.theta = 500000.0
        init = {"use_bias": False, "kernel_init": nnx.initializers.normal(0.02), "rngs": rngs}
        self.q = nnx.Linear(d, self.heads * self.head_dim, **init)
        self.k = nnx.Linear(d, self.kv_heads * self.head_dim, **init)
        self.v = nnx.Linear(d, self.kv_heads * self.head_dim, **init)
        self.o = nnx.Linear(self.heads * self.head_dim, d, **init)

    def rope(self, x: jax.Array) -> jax.Array:
        half = self.head_dim // 2
        angles = jnp.arange(x.shape[1])[:, None] * self.theta ** (-jnp.arange(half) / half)
        sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        b, t, _ = x.shape
        q = self.rope(self.q(x).reshape(b, t, self.heads, self.head_dim))
        k = self.rope(self.k(x).reshape(b, t, self.kv_heads, self.head_dim))
        v = self.v(x).reshape(b, t, self.kv_heads, self.head_dim)
        k, v = (jnp.repeat(y, self.heads // self.kv_heads, axis=2) for y in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / self.head_dim**0.5
        scores = jnp.where(mask, scores, -1e30)
        return self.o(jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), v).reshape(b, t, -1))


class Layer(nnx.Module):
    def __init__(self, model: dict, rngs: nnx.Rngs):
        d, f = model["hidden_size"], model["intermediate_size"]
        init = {"use_bias": False, "kernel_init": nnx.initializers.normal(0.02), "rngs": rngs}
        self.attn_norm, self.mlp_norm = (nnx.RMSNorm(d, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.attention = Attention(model, rngs)
        self.gate, self.up = nnx.Linear(d, f, **init), nnx.Linear(d, f, **init)
        self.down = nnx.Linear(f, d, **init)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.attn_norm(x), mask)
        y = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


class Llama(nnx.Module):
    def __init__(self, model: dict, rngs: nnx.Rngs):
        d, vocab = model["hidden_size"], model["vocab_size"]

        @nnx.split_rngs(splits=model["num_hidden_layers"])
        @nnx.vmap(in_axes=0, out_axes=0)
        def layers(rngs: nnx.Rngs) -> Layer:
            return Layer(model, rngs)

        self.embed = nnx.Embed(vocab, d, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.layers = layers(rngs)
        self.norm = nnx.RMSNorm(d, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(d, vocab, use_bias=False, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)

    def __call__(self, ids_bt: jax.Array, mask_bt: jax.Array) -> jax.Array:
        t = ids_bt.shape[1]
        mask = jnp.tril(jnp.ones((t, t), bool)) & mask_bt[:, None, None, :]

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer: Layer, x: jax.Array) -> jax.Array:
            return layer(x, mask)

        return self.head(self.norm(run(self.layers, self.embed(ids_bt))))


def make_train_step(
    model: dict, *, lr: float, b1: float, b2: float, weight_decay: float, clip: float
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], jax.Array]:
    """Builds train_step(ids, labels, mask) -> loss, which keeps model and optimizer to itself.

    Args:
      model: Hugging Face's names of the architecture. ids, labels: int32 [B, T], labels aligned with ids, -100 where
        not trained; mask: bool [B, T], False for padding.
    """
    llama = Llama(model, nnx.Rngs(0))
    tx = optax.chain(optax.clip_by_global_norm(clip), optax.adamw(lr, b1, b2, weight_decay=weight_decay))
    optimizer = nnx.Optimizer(llama, tx, wrt=nnx.Param)

    def loss_fn(llama: Llama, ids: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
        logits, targets = llama(ids, mask)[:, :-1], labels[:, 1:]
        trained = targets >= 0
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(trained, targets, 0))
        return (nll * trained).sum() / jnp.maximum(trained.sum(), 1)

    @nnx.jit(donate_argnums=(0, 1))
    def train_step(llama, optimizer, ids, labels, mask):
        loss, grads = nnx.value_and_grad(loss_fn)(llama, ids, labels, mask)
        optimizer.update(llama, grads)
        return loss

    return lambda *batch: train_step(llama, optimizer, *batch)
