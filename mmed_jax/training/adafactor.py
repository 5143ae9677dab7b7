"""Adafactor's second moment as an optax transformation: two vectors a matrix instead of a matrix."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class FactoredState(NamedTuple):
    """Mean squared gradients, float32, three trees like the parameters.

    Of a matrix [..., M, N] `row` is [..., M, 1] and `col` [..., 1, N]; what is not factored (norms, biases) is in
    `full`. A place that is not used holds one zero. Every leaf keeps the parameter's rank, so that each of its
    dimensions is either that of the parameter, and sharded like it, or 1.
    """

    count: jax.Array  # updates done, int32 []
    row: Any
    col: Any
    full: Any


def scale_by_adafactor(
    b2: float, *, decay_exponent: float = 0.8, eps: float = 1e-30, clipping_threshold: float = 1.0
) -> optax.GradientTransformation:
    """Divides gradients by the root of their factored second moment and clips what comes out (arXiv 1804.04235).

    V[i, j] is estimated by row[i] col[j] / mean(row). The decay at update t is 1 - t^-decay_exponent (section 7.2), at
    most b2 (as arXiv 2106.04560 bounds it): without that bound old gradients never fade, and a rare token's first
    gradient for long is divided by almost nothing. An update whose root mean square exceeds clipping_threshold is
    scaled down to it (section 6).

    Leaves under "layers" are stacks [L, ...] of L parameters: each layer has moments and clipping of its own, as in an
    unstacked model. optax.adafactor takes a stack for one tensor, leaves matrices below 128 unfactored, and picks the
    factored axes of a square one by an unstable sort.
    """

    def init(params: Any) -> FactoredState:
        def shapes(path: tuple, x: Any) -> tuple[tuple[int, ...], ...]:
            unused = (1,) * x.ndim
            if _is_matrix(path, x):
                return (*x.shape[:-1], 1), (*x.shape[:-2], 1, x.shape[-1]), unused
            return unused, unused, x.shape

        def zeros(which: int) -> Any:
            return jax.tree_util.tree_map_with_path(lambda p, x: jnp.zeros(shapes(p, x)[which], jnp.float32), params)

        return FactoredState(jnp.zeros((), jnp.int32), *(zeros(i) for i in range(3)))

    def update(grads: Any, state: FactoredState, params: Any = None) -> tuple[Any, FactoredState]:
        t = (state.count + 1).astype(jnp.float32)
        decay = jnp.minimum(1.0 - t**-decay_exponent, b2)

        def leaf(path: tuple, g: jax.Array, row: jax.Array, col: jax.Array, full: jax.Array) -> tuple:
            g = g.astype(jnp.float32)
            square = g * g + eps
            if _is_matrix(path, g):
                row = decay * row + (1 - decay) * square.mean(-1, keepdims=True)
                col = decay * col + (1 - decay) * square.mean(-2, keepdims=True)
                u = g * jax.lax.rsqrt(row / row.mean(-2, keepdims=True)) * jax.lax.rsqrt(col)
            else:
                full = decay * full + (1 - decay) * square
                u = g * jax.lax.rsqrt(full)
            of_one = tuple(range(int(_stacked(path)), g.ndim))
            rms = jnp.sqrt((u * u).mean(of_one, keepdims=True))
            return u / jnp.maximum(1.0, rms / clipping_threshold), row, col, full

        out = jax.tree_util.tree_map_with_path(leaf, grads, state.row, state.col, state.full)
        updates, *moments = jax.tree.transpose(jax.tree.structure(grads), jax.tree.structure((0,) * 4), out)
        return updates, FactoredState(optax.safe_increment(state.count), *moments)

    return optax.GradientTransformation(init, update)


def _stacked(path: tuple) -> bool:
    return bool(path) and getattr(path[0], "key", None) == "layers"


def _is_matrix(path: tuple, x: Any) -> bool:
    return x.ndim - _stacked(path) == 2
