"""The training step and the evaluation step: pure functions of (state, batch).

Loss (the only definition): sum over supervised tokens of -log p(target), divided by the number of supervised tokens in
the global batch. It is divided once, after all micro-batches and devices have been summed, so that the gradient does
not depend on the number of micro-batches or on the mesh.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmed_jax.data.languages.declarations import DECLARATIONS
from mmed_jax.model import llama
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.lora import LoraSpec, join
from mmed_jax.parallel.gradient_order import order_of_gradients
from mmed_jax.parallel.two_step_gather import gathers_along
from mmed_jax.training.loss import weighted_nll

# Index 0 is padding; i + 1 is schema.LANGUAGES[i]. A language without a slot would be missing from the count of tokens
# that divides the gradient.
LANGUAGE_SLOTS = 1 + len(DECLARATIONS)

Batch = dict[str, jax.Array]  # tokens, targets, segment_ids, positions, language: int32 [B,T]; loss_mask float32 [B,T]
State = dict[str, Any]  # params, opt_state: trees; step: int32 []

# What the seed's key is folded with first, so that dropout draws other numbers than weights and adapters.
_DROPOUT = 0xD0


@dataclass(frozen=True)
class StepOptions:
    """What the step needs to know beyond the model: see mmed_jax/config/defaults.py for each."""

    compute_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    loss_chunk: int = 1024
    grad_accum: int = 1
    # False: one example a row from position 0, padded on the right; attention then needs no segment ids. (The padding's
    # own positions are 0: without segment ids every query would see them.)
    packing: bool = True
    # With an adapter: what it is. The state's params are then the adapter, and the weights are the step's `base`.
    lora: LoraSpec | None = None
    # Of the adapter's dropout.
    seed: int = 0
    # Devices of the line along which gathers of weights begin, on several slices (two_step_gather.line_length).
    gather_line: int = 0
    # Whether the order of a layer's gradients is said, or the compiler's (gradient_order).
    ordered_gradients: bool = False


def init_state(params: Any, tx: optax.GradientTransformation) -> State:
    """Step 0 with fresh optimizer moments."""
    return {"params": params, "opt_state": tx.init(params), "step": jnp.zeros((), jnp.int32)}


def whole_params(
    params: Any, cfg: LlamaConfig, options: StepOptions, base: Any = None, dropout_key: jax.Array | None = None
) -> Any:
    """What the model's functions take: `params`, with the frozen weights `base` where they are an adapter."""
    return params if options.lora is None else join(base, params, options.lora, cfg, dropout_key=dropout_key)


def hidden_states(params: Any, cfg: LlamaConfig, options: StepOptions, batch: Batch) -> jax.Array:
    """The hidden states [B, T, D] of a batch before the head; params: of `whole_params`."""
    return llama.forward(
        params,
        cfg,
        batch["tokens"],
        positions_bt=batch["positions"] if options.packing else None,
        segment_ids_bt=batch["segment_ids"] if options.packing else None,
        compute_dtype=jnp.dtype(options.compute_dtype),
        remat=options.remat,
        attention=options.attention,
    )


@contextlib.contextmanager
def transfers(options: StepOptions) -> Iterator[None]:
    """The context in which a step's model runs: how weights are gathered, and gradients ordered."""
    # Where the backward pass computes nothing again, it would keep the whole weights of all layers on every device.
    line = options.gather_line if options.remat != "none" else 0
    with gathers_along(line), order_of_gradients(options.ordered_gradients):
        yield


def batch_sums(
    params: Any,
    cfg: LlamaConfig,
    options: StepOptions,
    batch: Batch,
    base: Any = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Batch, jax.Array]:
    """Sums over one micro-batch.

    Args:
      params: what is trained: all weights, or the adapter. base: the frozen weights beneath an adapter.
      dropout_key: of the adapter's dropout in this micro-batch; None = no dropout.

    Returns:
      (sum of the loss over supervised tokens, {"nll", "count": float32 [LANGUAGE_SLOTS] by language}, nats of each
      token, float32 [B, T], 0 where it is not supervised).
    """
    params = whole_params(params, cfg, options, base, dropout_key)
    mask_bt = batch["loss_mask"]
    with transfers(options):
        hidden_btd = hidden_states(params, cfg, options, batch)
        total, nll_bt = weighted_nll(
            hidden_btd,
            llama.head_weight(params, cfg),
            batch["targets"],
            mask_bt,
            chunk=options.loss_chunk,
            compute_dtype=jnp.dtype(options.compute_dtype),
            train_head=options.lora is None,
            adapter=llama.head_adapter(params, hidden_btd),
        )
    nll_bt = jnp.where(mask_bt > 0, nll_bt * mask_bt, 0.0)
    by_language = jax.nn.one_hot(batch["language"], LANGUAGE_SLOTS, dtype=jnp.float32)
    sums = {
        "nll": jnp.einsum("bt,btk->k", nll_bt, by_language),
        "count": jnp.einsum("bt,btk->k", mask_bt, by_language),
    }
    return total, sums, nll_bt


def dropout_key(options: StepOptions, step: Any, micro: Any) -> jax.Array | None:
    """The key of a micro-batch's dropout: the same whenever that step is trained, after a resume too. None without."""
    if options.lora is None or not options.lora.dropout:
        return None
    key = jax.random.fold_in(jax.random.key(options.seed), _DROPOUT)
    return jax.random.fold_in(jax.random.fold_in(key, step), micro)


def make_train_step(
    cfg: LlamaConfig, tx: optax.GradientTransformation, schedule: optax.Schedule, options: StepOptions
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """Builds train_step(state, batch, base) -> (state, metrics); to be jitted with the state donated.

    base: the frozen weights that the adapter state["params"] belongs to; {} or left out where all weights are trained.

    Metrics (float32): loss, lr, grad_norm (before clipping), param_norm and update_norm (of this update), supervised
    and real (not padding) token counts, nll and count by language [LANGUAGE_SLOTS].
    """

    def micro_batches(x: jax.Array) -> jax.Array:
        # Row i goes to micro-batch i % A: each device keeps its own rows, nothing is sent.
        rows = x.shape[0] // options.grad_accum
        return x.reshape(rows, options.grad_accum, *x.shape[1:]).swapaxes(0, 1)

    def loss(params: Any, batch: Batch, base: Any, key: jax.Array | None) -> tuple[jax.Array, Batch]:
        total, sums, _ = batch_sums(params, cfg, options, batch, base, key)
        return total, sums

    grad_fn = jax.value_and_grad(loss, has_aux=True)

    def gradients(params: Any, batch: Batch, base: Any, index: jax.Array) -> tuple[Any, Batch]:
        if options.grad_accum == 1:
            (_, sums), grads = grad_fn(params, batch, base, dropout_key(options, index, 0))
            return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums

        def add(carry: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            (total, total_sums), (micro, number) = carry, xs
            (_, sums), grads = grad_fn(params, micro, base, dropout_key(options, index, number))
            total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads)
            return (total, jax.tree.map(jnp.add, total_sums, sums)), None

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        no_sums = {"nll": jnp.zeros(LANGUAGE_SLOTS), "count": jnp.zeros(LANGUAGE_SLOTS)}
        numbered = jax.tree.map(micro_batches, batch), jnp.arange(options.grad_accum)
        (grads, sums), _ = jax.lax.scan(add, (zeros, no_sums), numbered)
        return grads, sums

    def train_step(state: State, batch: Batch, base: Any = None) -> tuple[State, dict[str, jax.Array]]:
        params = state["params"]
        grads, sums = gradients(params, batch, base, state["step"])
        count = sums["count"].sum()
        scale = 1.0 / jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt_state = tx.update(grads, state["opt_state"], params)
        new_params = optax.apply_updates(params, updates)
        metrics = {
            "loss": sums["nll"].sum() * scale,
            "lr": schedule(state["step"]),
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(new_params),
            "update_norm": optax.global_norm(updates),
            "supervised_tokens": count,
            "real_tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
            "language_nll": sums["nll"],
            "language_count": sums["count"],
        }
        return {"params": new_params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return train_step


def make_eval_step(cfg: LlamaConfig, options: StepOptions) -> Callable[..., Batch]:
    """Builds eval_step(params, batch, base) -> {"nll", "count": sums by language, float32 [LANGUAGE_SLOTS]; "nll_bt":
    nats of each token, float32 [B, T], 0 where loss_mask is 0}."""

    def eval_step(params: Any, batch: Batch, base: Any = None) -> Batch:
        _, sums, nll_bt = batch_sums(params, cfg, options, batch, base)
        return {**sums, "nll_bt": nll_bt}

    return eval_step
