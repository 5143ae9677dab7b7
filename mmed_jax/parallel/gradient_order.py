"""The backward pass of sharded layers in such an order that sums over devices run beside products.

Where SparseCores reduce-scatter the gradients of weights (docs/collectives.md, 9), the TPU compiler leaves to the end
of a layer what nothing waits for: products of the MLP's gradients, so that a large sum comes last, with nothing left to
run beside it. And behind it comes a small one, of the norms' gradients, for which the device stands still.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from mmed_jax.parallel.sharding import ACTIVATION_RULES, constrain

Module = dict[str, jax.Array]

# Whether the order is said while a step is traced.
_said: ContextVar[bool] = ContextVar("said", default=False)


@contextlib.contextmanager
def order_of_gradients(said: bool) -> Iterator[None]:
    """Within it, `gradients_first` says the order; without, the compiler chooses."""
    token = _said.set(said)
    try:
        yield
    finally:
        _said.reset(token)


def gradients_first(x: jax.Array, modules: dict[str, Module]) -> tuple[jax.Array, dict[str, Module]]:
    """Both as they are; in the backward pass the gradients of the modules' weights are made before x's goes on.

    Args:
      x: an activation that the modules' input comes from. modules: their parameters by name. Those without a plain
        "weight" (quantised ones) and those with an adapter, whose weights are frozen, are left alone.

    Returns:
      (x, modules), the weights that have an order in the dtype of x.
    """
    if not _said.get():
        return x, modules
    ordered = {n: p["weight"].astype(x.dtype) for n, p in modules.items() if "weight" in p and "lora_a" not in p}
    if not ordered:
        return x, modules
    x, ordered = _in_order(x, ordered)
    return x, modules | {name: {**modules[name], "weight": weight} for name, weight in ordered.items()}


@jax.custom_vjp
def _in_order(x: jax.Array, weights: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    return x, weights


def _forward(x: jax.Array, weights: dict[str, jax.Array]) -> tuple[Any, None]:
    return (x, weights), None


def _backward(_: None, gradients: Any) -> Any:
    return jax.lax.optimization_barrier(gradients)


_in_order.defvjp(_forward, _backward)


def per_group(weights_ld: jax.Array, rows: int) -> jax.Array:
    """The weights of a norm of all layers, [L, D], once for each group of devices with the same rows: [L, G, D].

    A group's own copy has its own gradient, which no other device is asked for within a layer; they are summed once,
    for all layers, behind the backward pass. [L, D] where there is one group, or groups do not divide the rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    groups = 1 if mesh.empty else prod(mesh.shape[axis] for axis in ACTIVATION_RULES["batch"])
    if groups == 1 or rows % groups:
        return weights_ld
    layers, d = weights_ld.shape
    return constrain(jnp.broadcast_to(weights_ld[:, None], (layers, groups, d)), None, "batch", None)
