"""Operators on items: pytrees of arrays that are called with histories as columns, [n_items, n], and return scores.

| operator | F x | multiplications per column |
| --- | --- | --- |
| `Matrix` | W x | n_items^2 |
| `SparseMatrix` | W x, W with few entries | entries |
| `Diagonal` | d * x | n_items |
| `LowRank` | left (right x) | 2 n_items rank; n_items rank for users of train |
| `Hop` | X' (d * (X x)), X the interactions, users x items | 2 interactions |
| `Polynomial` | a_0 x + a_1 F x + a_2 F F x + ... | those of F, times the degree |
| `Chebyshev` | c_0 T_0(I - 2F) x + c_1 T_1(I - 2F) x + ... | the same |
| `Scaled` | after * F(before * x) | those of F |
| `Sum` | weight_1 F_1 x + weight_2 F_2 x + ... | those of all |

They compose: the operand F of the last four is any operator, or any function of columns that is a pytree. An operator
may know something of the users of train, such as their projections on its vectors, that makes their scores cheaper than
those of a new history: it then has a method `train_user_scores(columns, users)`, which returns what `__call__(columns)`
does.

>>> twice = Sum((Diagonal(jnp.ones(2)), Matrix(jnp.array([[0.0, 1.0], [1.0, 0.0]]))), jnp.array([2.0, 0.5]))
>>> twice(jnp.array([[1.0], [4.0]])).tolist()  # 2 x + 0.5 W x
[[4.0], [8.5]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.gather import gather
from jaxrec.kernels.csr import csr_matmul
from jaxrec.numerics import product
from jaxrec.pytree import register_dataclass

__all__ = [
    "Chebyshev",
    "Diagonal",
    "Hop",
    "LowRank",
    "Matrix",
    "Polynomial",
    "Scaled",
    "SparseMatrix",
    "Sum",
    "for_train_users",
]

Columns = Float[Array, "n_items n"]


def for_train_users(operator: Any, columns: Columns, users: Int[Array, " n"]) -> Columns:
    """F x of users of train, whose histories are `columns`: by `train_user_scores` where the operator has it."""
    scores = getattr(operator, "train_user_scores", None)
    return operator(columns) if scores is None else scores(columns, users)


@register_dataclass
@dataclass(frozen=True)
class Matrix:
    """The operator of a dense matrix W: x -> W x.

    Attributes:
        weight: [n_items, n_items]; weight[i, k] is what item k of a history adds to the score of item i. Columns beyond
            n_items are padding, such as fills the last of several devices that each have a block of columns.
    """

    weight: Array

    def __call__(self, columns: Columns) -> Columns:
        """W x of each column."""
        return product(self.weight, jnp.pad(columns, ((0, self.weight.shape[1] - len(columns)), (0, 0))))


@register_dataclass
@dataclass(frozen=True)
class SparseMatrix:
    """The operator of a sparse matrix W, by rows: row i has the entries start[i] : start[i + 1].

    Attributes:
        start: int32 [n_items + 1].
        item: int32 [n], the columns of the entries.
        weight: [n], the entries.
    """

    start: Array
    item: Array
    weight: Array

    def __call__(self, columns: Columns) -> Columns:
        """W x of each column."""
        return csr_matmul(self.start, self.item, self.weight, columns)


@register_dataclass
@dataclass(frozen=True)
class Diagonal:
    """The operator of a diagonal matrix: x -> scale * x.

    Attributes:
        scale: [n_items].
    """

    scale: Array

    def __call__(self, columns: Columns) -> Columns:
        """Scale * x of each column."""
        return self.scale[:, None] * columns


@register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The operator of a product of two thin matrices: x -> left (right x).

    Attributes:
        left: [n_items, r].
        right: [r, n_items].
        user_vectors: [n_users, r], the right x of the users of train; None: computed as for any history.
    """

    left: Array
    right: Array
    user_vectors: Array | None = None

    def __call__(self, columns: Columns) -> Columns:
        """Left (right x) of each column."""
        return product(self.left, product(self.right, columns))

    def train_user_scores(self, columns: Columns, users: Int[Array, " n"]) -> Columns:
        """The same for users of train: one product."""
        if self.user_vectors is None:
            return self(columns)
        return product(self.left, gather(self.user_vectors, users).T)


@register_dataclass
@dataclass(frozen=True)
class Hop:
    """The operator of the item-item product X' D X, from items to users and back: x -> X' (d * (X x)).

    Nothing n_items x n_items is formed; the product is two sparse ones.

    Attributes:
        histories: X, `models.linear.Histories`.
        user_scale: [n_users], the diagonal of D; None: ones.
    """

    histories: Any
    user_scale: Array | None = None

    def __call__(self, columns: Columns) -> Columns:
        """X' (d * (X x)) of each column."""
        h = self.histories
        by_user = csr_matmul(h.user_start, h.item, h.weight, columns)
        if self.user_scale is not None:
            by_user = self.user_scale[:, None] * by_user
        return csr_matmul(h.item_start, h.user_by_item, h.weight_by_item, by_user)


@register_dataclass
@dataclass(frozen=True)
class Polynomial:
    """The operator a_0 I + a_1 F + a_2 F^2 + ..., by Horner's scheme.

    Attributes:
        operator: F.
        coefficients: [degree + 1], a_0 first.
    """

    operator: Any
    coefficients: Array

    def __call__(self, columns: Columns) -> Columns:
        """The polynomial of F, applied to each column."""

        def step(out: Array, coefficient: Array) -> tuple[Array, None]:
            return coefficient * columns + self.operator(out), None

        return jax.lax.scan(step, self.coefficients[-1] * columns, self.coefficients[:-1], reverse=True)[0]


@register_dataclass
@dataclass(frozen=True)
class Chebyshev:
    """The operator sum over k of c_k T_k(I - 2F), for an F whose spectrum is in [0, 1], by Clenshaw's recurrence.

    T_k is the Chebyshev polynomial with T_k(cos t) = cos(k t). An eigenvalue 1 of F, the smoothest scores, is at the
    end -1 of the polynomials' interval, and 0 at the end 1. Unlike powers they stay within [-1, 1].

    Attributes:
        operator: F.
        coefficients: [degree + 1], c_0 first.
    """

    operator: Any
    coefficients: Array

    def __call__(self, columns: Columns) -> Columns:
        """The polynomial of I - 2F, applied to each column."""
        argument = lambda x: x - 2 * self.operator(x)

        def step(state: tuple[Array, Array], coefficient: Array) -> tuple[tuple[Array, Array], None]:
            now, after = state  # b_{k+1}, b_{k+2}
            return (coefficient * columns + 2 * argument(now) - after, now), None

        zeros = jnp.zeros_like(columns)
        (now, after), _ = jax.lax.scan(step, (zeros, zeros), self.coefficients[1:], reverse=True)
        return self.coefficients[0] * columns + argument(now) - after


@register_dataclass
@dataclass(frozen=True)
class Scaled:
    """The operator x -> after * F(before * x), with a number per item on both sides.

    What F knows of the users of train (`train_user_scores`) must be of their scaled histories, before * x.

    Attributes:
        operator: F.
        before: [n_items].
        after: [n_items].
    """

    operator: Any
    before: Array
    after: Array

    def __call__(self, columns: Columns) -> Columns:
        """After * F(before * x) of each column."""
        return self.after[:, None] * self.operator(self.before[:, None] * columns)

    def train_user_scores(self, columns: Columns, users: Int[Array, " n"]) -> Columns:
        """The same for users of train."""
        return self.after[:, None] * for_train_users(self.operator, self.before[:, None] * columns, users)


@register_dataclass
@dataclass(frozen=True)
class Sum:
    """The operator x -> weight_1 F_1 x + weight_2 F_2 x + ...

    Attributes:
        operators: the F.
        weights: [number of operators].
    """

    operators: tuple[Any, ...]
    weights: Array

    def __call__(self, columns: Columns) -> Columns:
        """The weighted sum, of each column."""
        return _weighted_sum(self.weights, [each(columns) for each in self.operators])

    def train_user_scores(self, columns: Columns, users: Int[Array, " n"]) -> Columns:
        """The same for users of train."""
        return _weighted_sum(self.weights, [for_train_users(each, columns, users) for each in self.operators])


def _weighted_sum(weights: Array, parts: list[Array]) -> Array:
    first, *others = [weight * part for weight, part in zip(weights, parts, strict=True)]
    return sum(others, first)
