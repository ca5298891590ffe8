"""Parameters of matrix factorization; `prediction` computes predictions from them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.numerics import unit_vectors
from jaxrec.types import Factors

__all__ = ["init", "trainable_mask", "unit_factors"]


def init(
    n_users: int,
    n_items: int,
    rank: int,
    *,
    key: PRNGKeyArray,
    scale: float | Shaped[ArrayLike, ""] = 0.1,
    item_bias: bool = True,
    mu: ArrayLike | None = None,
    dtype: jnp.dtype | type = jnp.float32,
) -> Factors:
    """Initial parameters: normally distributed w and x, zero biases.

    Args:
        n_users: rows of w and b.
        n_items: rows of x and c.
        rank: d.
        key: a random key, split into one for users and one for items.
        scale: the standard deviation of the entries of w and x. At 0 they are a stationary point of the cost, which
            gradient descent cannot leave.
        item_bias: False leaves c out.
        mu: the offset, a number or one per item, or None.
        dtype: of every array.

    Raises:
        ValueError: a size below 1 or a rank below 0; mu is neither a number nor one per item; a scale or mu that is not
            finite.

    >>> factors = init(943, 1682, 8, key=jax.random.key(0), mu=3.5)
    >>> factors.w.shape, factors.x.shape, factors.c.shape
    ((943, 8), (1682, 8), (1682,))
    """
    check.random_key(key)
    check.size_of_table("n_users", n_users), check.size_of_table("n_items", n_items)
    if rank < 0:
        raise ValueError(f"rank: expected a number >= 0, got {rank}.")
    check.strength("scale", scale, zero=True)
    check.all_finite("mu", mu)
    if mu is not None and np.shape(mu) not in ((), (n_items,)):
        raise ValueError(f"mu: expected a number or one per item, shape ({n_items},), got shape {np.shape(mu)}.")
    key_w, key_x = jax.random.split(key)
    deviation = jnp.asarray(scale, dtype)
    return Factors(
        w=deviation * jax.random.normal(key_w, (n_users, rank), dtype),
        b=jnp.zeros(n_users, dtype),
        x=deviation * jax.random.normal(key_x, (n_items, rank), dtype),
        c=jnp.zeros(n_items, dtype) if item_bias else None,
        mu=None if mu is None else jnp.asarray(mu, dtype),
    )


def trainable_mask(factors: Factors) -> Factors:
    """Which arrays are trained, as a tree of bools: all but mu, which is data.

    The gradient of mu is 0, but decoupled weight decay would change it: optax.adamw(rate, mask=models.trainable_mask).
    """
    check.factors("factors", factors)
    mask = jax.tree.map(lambda _: True, factors)
    return dataclasses.replace(mask, mu=None if factors.mu is None else False)


def unit_factors(factors: Factors) -> Factors:
    """The factors with every row of w and x divided by its norm, whose products are cosines; rows of zeros stay.

    For models trained by the cosine forms of `losses.implicit`. b, c and mu are as they were.
    """
    check.factors("factors", factors)
    return dataclasses.replace(factors, w=unit_vectors(factors.w), x=unit_vectors(factors.x))
