"""Products of interaction matrices: item-item counts, powers of degrees, and sparse times thin matrices."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.csr import csr_matmul
from jaxrec.models.linear import Histories, history_columns, transposed

__all__ = ["Degrees", "degree_power", "degrees", "gram", "scaled", "sparse_product"]

# Columns of a sparse product that are computed at once, which a CPU's cache holds.
COLUMNS = 64


class Degrees(NamedTuple):
    """The degrees of users [n_users] and of items [n_items]: the sums of the absolute weights of their interactions."""

    users: Array
    items: Array


@jax.jit
def degrees(histories: Histories) -> Degrees:
    """The degrees of all users and items; without weights, the numbers of their interactions."""
    ones = lambda n: jnp.ones((n, 1), histories.weight.dtype)
    h = histories
    return Degrees(
        users=csr_matmul(h.user_start, h.item, jnp.abs(h.weight), ones(h.n_items))[:, 0],
        items=csr_matmul(h.item_start, h.user_by_item, jnp.abs(h.weight_by_item), ones(h.n_users))[:, 0],
    )


def degree_power(degree: Shaped[ArrayLike, " n"], power: float | Shaped[ArrayLike, ""]) -> Float[Array, " n"]:
    """degree^power, 0 where the degree is 0: nothing is known of that user or item, whatever the power."""
    (degree,) = check.as_floats(degree=degree)
    return jnp.where(degree > 0, jnp.where(degree > 0, degree, 1) ** jnp.asarray(power, degree.dtype), 0)


def scaled(histories: Histories, users: Float[Array, " n_users"], items: Float[Array, " n_items"]) -> Histories:
    """diag(users) X diag(items): each weight times its user's and its item's number."""
    row_of_entry = lambda start: jnp.asarray(np.repeat(np.arange(len(start) - 1, dtype=np.int32), np.diff(start)))
    user = row_of_entry(np.asarray(histories.user_start))
    item = row_of_entry(np.asarray(histories.item_start))
    return dataclasses.replace(
        histories,
        weight=histories.weight * gather(users, user) * gather(items, histories.item),
        weight_by_item=histories.weight_by_item * gather(users, histories.user_by_item) * gather(items, item),
    )


@jax.jit
def sparse_product(histories: Histories, table: Float[Array, "n_items d"]) -> Float[Array, "n_users d"]:
    """X times a thin matrix, `COLUMNS` columns at a time; by `transposed(histories)`, X' times it."""
    h, d = histories, table.shape[1]
    parts = [
        csr_matmul(h.user_start, h.item, h.weight, table[:, first : first + COLUMNS]) for first in range(0, d, COLUMNS)
    ]
    return jnp.concatenate(parts, axis=1) if parts else jnp.zeros((h.n_users, 0), table.dtype)


def gram(histories: Histories) -> Float[Array, "n_items n_items"]:
    """X' X of the interactions X: for weights of 1 the number of users whom two items share, [n_items, n_items].

    interactions * n_items multiplications, in strips of items; 4 n_items^2 bytes in float32. Of
    `models.linear.transposed(histories)` it is X X', the number of items that two users share.

    >>> from jaxrec import Ratings
    >>> from jaxrec.models.linear import histories
    >>> gram(histories(Ratings([0, 0, 1], [0, 1, 1], [1, 1, 1], n_users=2, n_items=2))).tolist()
    [[1.0, 1.0], [1.0, 2.0]]
    """
    return _gram(histories, transposed(histories))


@jax.jit
def _gram(histories: Histories, by_item: Histories) -> Array:
    h = histories

    def rows(items: Array) -> Array:
        return csr_matmul(h.item_start, h.user_by_item, h.weight_by_item, history_columns(by_item, items)).T

    return by_chunks(rows, jnp.arange(h.n_items, dtype=jnp.int32), COLUMNS)
