"""The dual form: P = (R'R + l2)^-1 = (I - R' A R) / l2 from A = (R R' + l2)^-1, users x users (Woodbury).

Column j of P R' is column j of R' A, because R R' A = I - l2 A: what EASE and ridge need of a user of train is one
sparse product. Nothing items x items is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Shaped

from jaxrec.gather import gather
from jaxrec.kernels.csr import csr_matmul
from jaxrec.models.linear import Histories, history_columns
from jaxrec.numerics import product
from jaxrec.pytree import register_dataclass
from jaxrec.solvers.linear._matrices import COLUMNS

__all__ = ["Dual", "dual_diagonal", "penalized_columns"]


@register_dataclass
@dataclass(frozen=True)
class Dual:
    """The operator x -> x - P x / divisor, with P = (R'R + l2)^-1 = (I - R' A R) / l2 and A = (R R' + l2)^-1.

    Attributes:
        histories: R.
        inverse: A, [n_users, n_users].
        l2: [].
        divisor: [n_items].
        user_scale: [n_users], by which row j of R is to be multiplied to become the history x(j) that the operator is
            called with, R without the powers of users' degrees.
    """

    histories: Histories
    inverse: Array
    l2: Array
    divisor: Array
    user_scale: Array

    def __call__(self, columns: Float[Array, "n_items n"]) -> Float[Array, "n_items n"]:
        """The scores of each column: n_users^2 multiplications and two sparse products."""
        h = self.histories
        on_users = csr_matmul(h.user_start, h.item, h.weight, columns)
        residual = columns - csr_matmul(h.item_start, h.user_by_item, h.weight_by_item, product(self.inverse, on_users))
        return columns - residual / (self.l2 * self.divisor)[:, None]

    def train_user_scores(
        self, columns: Float[Array, "n_items n"], users: Int[Array, " n"]
    ) -> Float[Array, "n_items n"]:
        """The same for users of train, by one sparse product: P x(j) is column j of R' A."""
        residual = penalized_columns(self.histories, self.inverse, users) * gather(self.user_scale, users)[None, :]
        return columns - residual / self.divisor[:, None]


def penalized_columns(
    interactions: Histories, inverse: Float[Array, "n_users n_users"], users: Int[Array, " n"]
) -> Float[Array, "n_items n"]:
    """P times the rows of users in the interactions R: columns of R' A."""
    h = interactions
    return csr_matmul(h.item_start, h.user_by_item, h.weight_by_item, gather(inverse, users).T)


@jax.jit
def dual_diagonal(
    interactions: Histories, inverse: Float[Array, "n_users n_users"], l2: Shaped[Array, ""]
) -> Float[Array, " n_items"]:
    """diag(P) = (1 - diag(X' A X)) / l2 from A = (X X' + l2)^-1: n_users * interactions multiplications, in blocks."""
    h = interactions

    def of_block(users: Array, total: Array) -> Array:
        return total + jnp.sum(penalized_columns(h, inverse, users) * history_columns(h, users), axis=1)

    size = min(COLUMNS, h.n_users)
    total = jnp.zeros(h.n_items, h.weight.dtype)
    block = jnp.arange(size, dtype=jnp.int32)
    whole = lambda k, total: of_block(jnp.int32(k) * size + block, total)
    total = jax.lax.fori_loop(0, h.n_users // size, whole, total)
    if h.n_users % size > 0:
        total = of_block(jnp.arange(h.n_users - h.n_users % size, h.n_users, dtype=jnp.int32), total)
    return (1 - total) / l2
