"""The backward pass of sharded layers in such an order that sums over devices run beside products.

Where SparseCores reduce-scatter the gradients of weights (docs/collectives.md, 9), the TPU compiler leaves to the end
of a layer what nothing waits for: products of the MLP's gradients, so that a large sum comes last, with nothing left to
run beside it. And behind it comes a small one, of the norms' gradients, for which the device stands still. At the
beginning of a layer it waits for weights to be gathered, with a product at hand that needs none of them.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

from mmed_jax.parallel.sharding import ACTIVATION_RULES, PARAM_RULES, constrain, spec
from mmed_jax.parallel.two_step_gather import in_two_steps

Module = dict[str, jax.Array]

# Whether the order is said while a step is traced.
_said: ContextVar[bool] = ContextVar("said", default=False)


@contextlib.contextmanager
def order_of_gradients(said: bool) -> Iterator[None]:
    """Within it, the functions of this module say an order; without, the compiler chooses."""
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


def can_gather_in_order() -> bool:
    """Whether `linear_in_order` may be asked: an order is said, and nothing but `embed` is in parts on devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return _said.get() and not in_two_steps() and not mesh.empty and mesh.shape["tensor"] == 1


def linear_in_order(x_bti: jax.Array, weight_oi: jax.Array, precision: jax.lax.Precision | None) -> jax.Array:
    """x times the transpose of a weight whose outputs are the hidden axis, in parts over the devices; [B, T, O].

    In the backward pass the weight's gradient is made first: beside that product the weight is gathered, which x's
    gradient needs, and beside the product of x's gradient the weight's is summed over the devices.

    Args:
      x_bti: [B, T, I]. weight_oi: [O, I], in the dtype of x; O in parts along `embed`.
    """
    shards, rows = PARAM_RULES["embed"], spec(("batch", "length", None), ACTIVATION_RULES)

    def whole(weight: jax.Array) -> jax.Array:
        return jax.lax.all_gather(weight, shards, axis=0, tiled=True)

    @jax.custom_vjp
    def product(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.einsum("bti,oi->bto", x, whole(weight), precision=precision)

    def backward(residuals: Any, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, weight = residuals
        d_weight = jnp.einsum("bto,bti->oi", ct, x, precision=precision)
        ct, d_weight = jax.lax.optimization_barrier((ct, d_weight))
        # Parts of O must lie one behind the other for a reduce-scatter. Left alone, the compiler for v6e either
        # transposes what the product is made of, which is larger, or all-reduces the gradient.
        d_weight = with_layout_constraint(d_weight, Layout((0, 1)))
        d_weight = jax.lax.psum_scatter(d_weight, shards, scatter_dimension=0, tiled=True)
        # Over `data`, where the weight has copies, shard_map sums.
        return jnp.einsum("bto,oi->bti", ct, whole(weight), precision=precision), d_weight

    product.defvjp(lambda x, weight: (product(x, weight), (x, weight)), backward)
    parts = P(shards, None)
    return jax.shard_map(product, in_specs=(rows, parts), out_specs=rows, check_vma=False)(x_bti, weight_oi)


def scatter_table(gradient_dv: jax.Array, shards: Any) -> jax.Array:
    """jax.lax.psum_scatter, inside a shard_map, of the gradient of a table of the vocabulary, [D, V], along D.

    With an order it is padded to a multiple of 16 times the chips, with which the TPU compiler keeps the
    reduce-scatter; of others over 64 chips and more it makes an all-reduce, twice the bytes (docs/collectives.md, 12).
    """
    v = gradient_dv.shape[1]
    if _said.get():
        gradient_dv = jnp.pad(gradient_dv, ((0, 0), (0, -v % (16 * jax.lax.axis_size(shards)))))
        # Padded as the product left it, not by way of the other layout.
        gradient_dv = with_layout_constraint(gradient_dv, Layout((0, 1)))
    return jax.lax.psum_scatter(gradient_dv, shards, scatter_dimension=0, tiled=True)[:, :v]


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
