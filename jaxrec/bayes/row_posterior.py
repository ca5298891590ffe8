"""All rows of one side given the other side: their normal equations, the errors they leave, draws from their posterior.

A row v = (its factors, its bias) regresses what the others' biases and mu leave of its ratings on the others' factors
and 1. Its posterior is normal, of precision alpha τ X'TX + Λ, τ its own and T the others' sureness.
"""

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray

from jaxrec.bayes.side_information import Basis, SideState, prior_mean
from jaxrec.gather import gather
from jaxrec.kernels import dense
from jaxrec.kernels.least_squares import Equations, Lists, list_normal_equations
from jaxrec.kernels.platform import On, by_platform
from jaxrec.solvers import ridge
from jaxrec.types import Bucket, Dense, Rows

__all__ = [
    "Cells",
    "RowStatistics",
    "SideName",
    "TrainRatings",
    "cells",
    "draw_rows",
    "row_statistics",
    "squared_errors",
    "with_values",
]

TrainRatings = Dense | tuple[Rows, Rows]
SideName = Literal["user", "item"]
HIGHEST = jax.lax.Precision.HIGHEST


class RowStatistics(NamedTuple):
    """The normal equations of rows with a bias, sums weighted by the others' sureness.

    Attributes:
        gram: [n, k, k], X'TX.
        rhs: [n, k], X'T y, y what is left of the ratings.
        square: [n], y'T y.
        n_ratings: [n], how many ratings, unweighted.
    """

    gram: Array
    rhs: Array
    square: Array
    n_ratings: Array


class Cells(NamedTuple):
    """Ratings as a side's layout has them, with what a model says of each; all of one shape.

    Attributes:
        value: the ratings.
        where: True where there is one.
        eta: mu + w.x + b + c.
        row_precision: τ(i) τ(j).
    """

    value: Array
    where: Array
    eta: Array
    row_precision: Array


def cells(ratings: TrainRatings, side: SideName, own: SideState, others: SideState, mu: ArrayLike) -> list[Cells]:
    """Of a side's rows: of Dense one table [own, others], of Rows one [rows, length] for every bucket."""
    if isinstance(ratings, Dense):
        ratings = ratings if side == "item" else ratings.T
        eta = jnp.matmul(own.rows[:, :-1], others.rows[:, :-1].T, precision=HIGHEST)
        eta = eta + own.rows[:, -1:] + others.rows[:, -1][None] + mu
        return [Cells(ratings.value, ratings.where, eta, own.row_precision[:, None] * others.row_precision[None])]

    def of(bucket: Bucket) -> Cells:
        u, v = gather(own.rows, bucket.row), gather(others.rows, bucket.other)
        eta = jnp.einsum("rd,rld->rl", u[:, :-1], v[..., :-1], precision=HIGHEST) + u[:, -1:] + v[..., -1] + mu
        row_precision = gather(own.row_precision, bucket.row)[:, None] * gather(others.row_precision, bucket.other)
        return Cells(bucket.value, bucket.where, eta, row_precision)

    return [of(bucket) for bucket in ratings[side == "item"].buckets]


def with_values(ratings: TrainRatings, side: SideName, values: list[Array]) -> TrainRatings:
    """The same layout with other ratings, as `cells` has them; in Rows the other side's stay as they are."""
    if isinstance(ratings, Dense):
        return replace(ratings, value=values[0] if side == "item" else values[0].T)
    rows = ratings[side == "item"]
    buckets = tuple(replace(bucket, value=value) for bucket, value in zip(rows.buckets, values, strict=True))
    rows = replace(rows, buckets=buckets)
    return (ratings[0], rows) if side == "item" else (rows, ratings[1])


def row_statistics(ratings: TrainRatings, side: SideName, others: SideState, mu: ArrayLike) -> RowStatistics:
    """Of every row of a side, from the ratings as Dense or as Rows."""
    table, bias, weight = others.rows[:, :-1], others.rows[:, -1], others.row_precision
    if isinstance(ratings, Dense):
        return _densely(ratings if side == "user" else ratings.T, table, bias, weight, mu)

    def of(bucket: Bucket, table: Array, bias: Array, weight: Array, *, on: On) -> tuple[Equations, Array]:
        y = bucket.value.astype(table.dtype) - gather(bias, bucket.other)
        lists = Lists(bucket.other, y, bucket.where, gather(weight, bucket.other))
        sums = list_normal_equations(table, lists, intercept=True, on=on)
        return sums, jnp.sum(bucket.where, axis=1, dtype=table.dtype)

    of_all = lambda buckets, *statistics, on: [of(bucket, *statistics, on=on) for bucket in buckets]
    rows = ratings[side == "item"]
    (gram, (rhs_y, ones), sums), count = rows.map(partial(by_platform, of_all), table, bias + mu, weight)
    square, total, weights = sums.T
    last = jnp.concatenate([ones, weights[:, None]], axis=1)
    gram = jnp.concatenate([jnp.concatenate([gram, ones[:, :, None]], axis=2), last[:, None]], axis=1)
    return RowStatistics(gram, jnp.concatenate([rhs_y, total[:, None]], axis=1), square, count)


def _densely(ratings: Dense, table: Array, bias: Array, weight: Array, mu: ArrayLike) -> RowStatistics:
    """The others' biases are one column more, with coefficient 1: chains differ in the table, and share the matrix."""
    cells = ratings.where.astype(table.dtype)
    y = jnp.where(ratings.where, ratings.value.astype(table.dtype) - mu, 0)
    columns = jnp.concatenate([table, jnp.ones_like(bias)[:, None], bias[:, None]], axis=1)
    gram, rhs = dense.dense_normal_equations(columns, cells, y, weight)
    square = jnp.matmul(weight, y * y, precision=HIGHEST) - 2 * rhs[-1] + gram[-1, -1]
    residual = rhs[:-1] - gram[:-1, -1]
    return RowStatistics(jnp.moveaxis(gram[:-1, :-1], -1, 0), residual.T, square, jnp.sum(cells, axis=0))


def squared_errors(statistics: RowStatistics, rows: Float[Array, "n k"]) -> Float[Array, " n"]:
    """The squared errors that rows leave, weighted: no further pass over the ratings."""
    gram_v = jnp.einsum("nkl,nl->nk", statistics.gram, rows, precision=HIGHEST)
    return jnp.maximum(statistics.square + jnp.sum(rows * (gram_v - 2 * statistics.rhs), axis=1), 0)


def draw_rows(
    level: SideState, bases: tuple[Basis, ...], statistics: RowStatistics, alpha: Array, *, key: PRNGKeyArray
) -> SideState:
    """All rows at once, each from its posterior; a row without ratings from its prior."""
    weight = alpha * level.row_precision
    normal = ridge.NormalEquations(
        weight[:, None, None] * statistics.gram, weight[:, None] * statistics.rhs, statistics.n_ratings
    )
    factor = ridge.factorize_matrix(normal, level.precision)
    return replace(level, rows=ridge.sample(factor, prior_mean(level, bases), key=key))
