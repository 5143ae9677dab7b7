"""Choosing the next token: greedy, temperature, top-k, top-p.

Every row draws with its own key, f(seed, item, position), so that what a prompt is continued with depends neither on
the batch it is in nor on its place there.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmed_jax.common.errors import UserError

# Logits divided by less would overflow float32, and by more would all be one.
TEMPERATURES = (1e-6, 1e6)
MAX_SEED = 2**32 - 1  # jax.random.key reads 32 bits: a larger seed would draw like a smaller one


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that a random key cannot hold."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed={seed}: must be from 0 to {MAX_SEED}")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature 0 is greedy; top_k 0 and top_p 1 filter nothing. Raises UserError."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        low, high = TEMPERATURES
        if self.temperature != 0 and not low <= self.temperature <= high:
            raise UserError(f"temperature={self.temperature}: must be 0 (greedy), or from {low:g} to {high:g}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be from 0 to 1 (1 = off)")
        if not 0 <= self.top_k < 2**31:
            raise UserError(f"top_k={self.top_k}: must be 0 (off) or more, and no more than a vocabulary can have")

    @property
    def kind(self) -> str:
        """ "greedy", "plain" (temperature only) or "filtered": one compiled program each."""
        if self.temperature == 0:
            return "greedy"
        return "plain" if self.top_p == 1 and self.top_k == 0 else "filtered"


def row_keys(seed_key: jax.Array, items_b: jax.Array, positions_b: jax.Array) -> jax.Array:
    """One random key per row, of (seed, item number, position of the token to be drawn). Both int32 [B]."""

    def one(item: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(seed_key, item), position)

    return jax.vmap(one)(items_b, positions_b)


def argmax(x_bv: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the first place of each row's maximum, int32 [B]; whether the row has a NaN, bool [B]) of float32 [B, V].

    By the maximum and the first place that equals it: two plain reductions, which a CPU does seven times as fast as
    jnp.argmax over a vocabulary.
    """
    vocab = x_bv.shape[-1]
    most = jnp.max(x_bv, axis=-1, keepdims=True)  # NaN if there is one
    places = jax.lax.broadcasted_iota(jnp.int32, x_bv.shape, 1)
    first = jnp.min(jnp.where(x_bv == most, places, vocab - 1), axis=-1)
    return first, jnp.isnan(most[:, 0])


def sample(
    logits_bv: jax.Array,
    keys_b: jax.Array | None,
    temperature: jax.Array | float = 0.0,
    top_p: jax.Array | float = 1.0,
    top_k: jax.Array | int = 0,
    *,
    kind: str = "greedy",
) -> jax.Array:
    """Draws one token per row.

    The filters work in the order of `transformers`: temperature, then the top_k most likely tokens, then the shortest
    run of most likely tokens whose probability reaches top_p (always at least one). Of equal logits the lower id ranks
    first.

    Args:
      logits_bv: float32 [B, V].
      keys_b: random keys [B] (row_keys); unused when greedy.
      temperature, top_p, top_k: numbers, may be traced.
      kind: see Sampling.kind; static.

    Returns:
      int32 [B].
    """
    if kind == "greedy":
        return argmax(logits_bv)[0]
    vocab = logits_bv.shape[-1]
    scaled = logits_bv.astype(jnp.float32) / temperature
    if kind == "filtered":
        order = jnp.argsort(-scaled, axis=-1, stable=True)
        scaled = jnp.take_along_axis(scaled, order, axis=-1)
        rank = jnp.arange(vocab)
        scaled = jnp.where((rank < top_k) | (top_k == 0), scaled, -jnp.inf)
        probs = jax.nn.softmax(scaled, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        # top_p 1 keeps all, although a rounded sum may reach 1 before the end.
        scaled = jnp.where((before < top_p) | (rank == 0) | (top_p >= 1), scaled, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocab,), jnp.float32))(keys_b)
    drawn, _ = argmax(scaled + noise)
    if kind == "filtered":
        drawn = jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]
    return drawn
