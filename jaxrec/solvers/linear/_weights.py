"""From the Gram matrix to the weights of EASE and ridge: pure, and in the memory of the Gram matrix."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from jaxrec import check
from jaxrec.solvers.linear._inverse import Inverse, inverse

__all__ = ["check_l2", "checked", "ease_weights", "inverse_in_place", "ridge_weights", "weights_in_place"]

# Below this ratio of a pivot to its diagonal entry, times eps, the inverse may be off by 1 %.
MIN_PIVOT_EPS = 2**11


def ease_weights(gram: Float[ArrayLike, "m m"], *, l2: float | Shaped[ArrayLike, "*m"]) -> Float[Array, "m m"]:
    """W = I - P diag(P)^-1 with P = (gram + l2)^-1, whose diagonal is 0. Pure: differentiable, vmap-able over l2.

    Args:
        gram: X'X of the interactions, as `gram` makes it.
        l2: the penalty, or one per item [m], > 0. It is not checked: a singular sum gives meaningless weights.
    """
    p = _penalized_inverse(jnp.asarray(gram), l2).matrix
    return _set_diagonal(-p / jnp.diagonal(p)[None, :], jnp.zeros(len(p), p.dtype))


def ridge_weights(gram: Float[ArrayLike, "m m"], *, l2: float | Shaped[ArrayLike, "*m"]) -> Float[Array, "m m"]:
    """W = P gram = I - P l2 with P = (gram + l2)^-1. Pure, as `ease_weights`."""
    (gram,) = check.as_floats(gram=gram)
    p = _penalized_inverse(gram, l2).matrix
    penalty = jnp.broadcast_to(jnp.asarray(l2, gram.dtype), len(gram))
    return jnp.eye(len(gram), dtype=gram.dtype) - p * penalty[None, :]


def _penalized_inverse(gram: Array, l2: ArrayLike) -> Inverse:
    """(gram + l2)^-1."""
    (gram,) = check.as_floats(gram=gram)
    penalty = jnp.broadcast_to(jnp.asarray(l2, gram.dtype), len(gram))
    index = jnp.arange(len(gram))
    return inverse(gram.at[index, index].add(penalty))


def _set_diagonal(matrix: Array, diagonal: Array) -> Array:
    index = jnp.arange(len(matrix))
    return matrix.at[index, index].set(diagonal)


def check_l2(l2: ArrayLike) -> None:
    """Checks that penalties are concrete, finite and positive.

    Raises:
        ValueError: otherwise.
    """
    if check.traced(l2):
        raise ValueError("l2: expected concrete numbers; under jit, vmap or grad use `ease_weights(gram, l2=...)`.")
    if np.any(np.asarray(l2) == 0):
        raise ValueError("l2: expected finite numbers > 0, got 0, without which the equations are singular.")
    check.strength("l2", l2)


def inverse_in_place(gram: Array, l2: Array) -> Array:
    """(gram + l2)^-1, in the memory of the Gram matrix.

    Raises:
        ValueError: the sum is singular up to rounding.
    """
    return checked(_inverse_donated(gram, l2), l2)


def checked(found: Inverse, l2: Array) -> Array:
    """The matrix, after checking that its pivots were large enough.

    Raises:
        ValueError: otherwise.
    """
    ratio, dtype = float(found.pivot_ratio), found.matrix.dtype
    if not ratio >= MIN_PIVOT_EPS * float(jnp.finfo(dtype).eps):
        raise ValueError(
            f"l2: {float(l2):g} is too small for {dtype}: the equations are singular up to rounding: eliminating "
            f"the other items leaves {ratio:.1e} of a diagonal entry. Raise l2, or run in float64."
        )
    return found.matrix


@partial(jax.jit, donate_argnums=0)
def _inverse_donated(gram: Array, l2: Array) -> Inverse:
    return _penalized_inverse(gram, l2)


@partial(jax.jit, donate_argnums=0, static_argnames="zero_diagonal")
def weights_in_place(p: Array, l2: Array, *, zero_diagonal: bool) -> Array:
    """W' from P, with the item that is predicted as the row."""
    if zero_diagonal:
        return _set_diagonal(-p / jnp.diagonal(p)[:, None], jnp.zeros(len(p), p.dtype))
    return _set_diagonal(-l2 * p, 1 - l2 * jnp.diagonal(p))
