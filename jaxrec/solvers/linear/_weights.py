"""From the Gram matrix to the weights of EASE and ridge: pure, and in the memory of the Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
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
    return _ease_weights(*_floats(gram, l2))


def ridge_weights(gram: Float[ArrayLike, "m m"], *, l2: float | Shaped[ArrayLike, "*m"]) -> Float[Array, "m m"]:
    """W = P gram = I - P l2 with P = (gram + l2)^-1. Pure, as `ease_weights`."""
    return _ridge_weights(*_floats(gram, l2))


# Jitted, because an eager call of the inverse's loops would compile them anew.
@jax.jit
def _ease_weights(gram: Array, penalty: Array) -> Array:
    p = _penalized_inverse(gram, penalty).matrix
    return _set_diagonal(-p / jnp.diagonal(p)[None, :], jnp.zeros(len(p), p.dtype))


@jax.jit
def _ridge_weights(gram: Array, penalty: Array) -> Array:
    p = _penalized_inverse(gram, penalty).matrix
    return jnp.eye(len(gram), dtype=gram.dtype) - p * jnp.broadcast_to(penalty, len(p))[None, :]


def _floats(gram: ArrayLike, l2: ArrayLike) -> tuple[Array, Array]:
    """(gram, l2 in its type), after checking their shapes."""
    (matrix,) = check.as_floats(gram=gram)
    penalty = check.as_array("l2", l2).astype(matrix.dtype)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"gram: expected a square matrix, items by items, got shape {matrix.shape}.")
    if penalty.shape not in ((), matrix.shape[:1]):
        raise ValueError(f"l2: expected one number or one per item, {matrix.shape[:1]}, got shape {penalty.shape}.")
    return matrix, penalty


def _penalized_inverse(gram: Array, penalty: Array) -> Inverse:
    """(gram + penalty)^-1."""
    index = jnp.arange(len(gram))
    return inverse(gram.at[index, index].add(penalty))


def _set_diagonal(matrix: Array, diagonal: Array) -> Array:
    index = jnp.arange(len(matrix))
    return matrix.at[index, index].set(diagonal)


def check_l2(l2: ArrayLike | Sequence[float]) -> None:
    """Checks that penalties are concrete, finite and positive.

    Raises:
        ValueError: otherwise.
    """
    if check.traced(l2):
        raise ValueError("l2: expected concrete numbers; under jit, vmap or grad use `ease_weights(gram, l2=...)`.")
    if np.any(np.asarray(l2) == 0):
        raise ValueError("l2: expected finite numbers > 0, got 0, without which the equations are singular.")
    check.strength("l2", l2)


def inverse_in_place(gram: Array, l2: Array, *, given: Array | None = None) -> Array:
    """(gram + l2)^-1, in the memory of the Gram matrix; `given` are the penalties that the message names, None for l2.

    Raises:
        ValueError: the sum is singular up to rounding.
    """
    return checked(_inverse_donated(gram, l2), l2 if given is None else given)


def checked(found: Inverse, l2: Array) -> Array:
    """The matrix, after checking that its pivots were large enough; l2 is a number, or one per item.

    Raises:
        ValueError: otherwise.
    """
    ratio, dtype = float(found.pivot_ratio), found.matrix.dtype
    if not ratio >= MIN_PIVOT_EPS * float(jnp.finfo(dtype).eps):
        raise ValueError(
            f"l2: {float(jnp.min(l2)):g} is too small for {dtype}: the equations are singular up to rounding: "
            f"eliminating the other items leaves {ratio:.1e} of a diagonal entry. Raise l2."
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
