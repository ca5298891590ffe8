"""Posterior of all rows of one side given the other side: normal equations, squared errors, exact draws.

A row v = (factors, bias) holds the coefficients of a linear regression. Its targets y are the ratings minus mu and the
other side's biases; its design matrix X has a row (factors of the other side, 1) per rating. With τ the row's own
precision, T the diagonal matrix of the other side's row precisions, and m, Λ the row's prior mean and precision::

    v ~ normal(A^-1 (alpha τ X' T y + Λ m), A^-1)        A = alpha τ X' T X + Λ

Source: Salakhutdinov, Mnih 2008, Bayesian probabilistic matrix factorization using MCMC, where every τ is 1 and rows
have no bias.
"""

from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray

from jaxrec.bayes.side_information import Basis, SideState, prior_mean
from jaxrec.gather import gather
from jaxrec.kernels import dense
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.least_squares import Equations, Lists, list_normal_equations, rows_per_chunk
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.numerics import HIGHEST
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


class RowStatistics(NamedTuple):
    """Normal equations of n rows with a bias, weighted by the other side's row precisions.

    Attributes:
        gram: [n, k, k], X' T X.
        rhs: [n, k], X' T y, with y the ratings minus mu and the other side's biases.
        sum_yy: [n], y' T y.
        n_ratings: [n], number of ratings, unweighted.
    """

    gram: Array
    rhs: Array
    sum_yy: Array
    n_ratings: Array


class Cells(NamedTuple):
    """Ratings in one side's layout, with the model's mean and precision of each. All arrays have the same shape.

    Attributes:
        value: the ratings.
        where: False where masked.
        eta: η, the model's mean (the linear predictor of ordinal ratings), mu + w(j) . x(i) + b(j) + c(i).
        row_precision: τ(i) τ(j).
    """

    value: Array
    where: Array
    eta: Array
    row_precision: Array


def cells(ratings: TrainRatings, side: SideName, own: SideState, others: SideState, mu: ArrayLike) -> list[Cells]:
    """Returns the cells of one side: one table [own, others] for Dense, one [rows, length] per bucket for Rows."""
    if isinstance(ratings, Dense):
        ratings = ratings if side == "item" else ratings.T
        eta = jnp.matmul(own.rows[:, :-1], others.rows[:, :-1].T, precision=HIGHEST)
        eta = eta + own.rows[:, -1:] + others.rows[:, -1][None] + mu
        return [Cells(ratings.value, ratings.where, eta, own.row_precision[:, None] * others.row_precision[None])]

    def bucket_moments(bucket: Bucket, own: SideState, others: SideState, *, platform: Platform) -> tuple[Array, Array]:
        def chunk_moments(bucket: Bucket) -> tuple[Array, Array]:
            v, x = gather(own.rows, bucket.row), gather(others.rows, bucket.other)
            eta = jnp.einsum("rd,rld->rl", v[:, :-1], x[..., :-1], precision=HIGHEST) + v[:, -1:] + x[..., -1] + mu
            row_precision = gather(own.row_precision, bucket.row)[:, None] * gather(others.row_precision, bucket.other)
            return eta, row_precision

        # all of a bucket at once would hold the other side's factors of all its ratings
        return by_chunks(chunk_moments, bucket, rows_per_chunk(bucket.other.shape[1] * own.rows.shape[1], platform))

    buckets = ratings[side == "item"].buckets
    return [Cells(bucket.value, bucket.where, *by_platform(bucket_moments, bucket, own, others)) for bucket in buckets]


def with_values(ratings: TrainRatings, side: SideName, values: list[Array]) -> TrainRatings:
    """Replaces the ratings by values in the layout of `cells`. For Rows, the other side's ratings are unchanged."""
    if isinstance(ratings, Dense):
        return replace(ratings, value=values[0] if side == "item" else values[0].T)
    rows = ratings[side == "item"]
    buckets = tuple(replace(bucket, value=value) for bucket, value in zip(rows.buckets, values, strict=True))
    rows = replace(rows, buckets=buckets)
    return (ratings[0], rows) if side == "item" else (rows, ratings[1])


def row_statistics(ratings: TrainRatings, side: SideName, others: SideState, mu: ArrayLike) -> RowStatistics:
    """Returns the statistics of every row of one side, from Dense or Rows.

    One row's sums run over its ratings, with x the other row's factors, t its precision, and y the rating minus mu and
    the other row's bias. The last coefficient is the row's bias, whose feature is 1::

                 | sum t x x'   sum t x |             | sum t x y |
        X' T X = |                      |    X' T y = |           |    y' T y = sum t y^2
                 | sum t x'     sum t   |             | sum t y   |
    """
    table, bias, weight = others.rows[:, :-1], others.rows[:, -1], others.row_precision
    if isinstance(ratings, Dense):
        return _dense_row_statistics(ratings if side == "user" else ratings.T, table, bias, weight, mu)

    def bucket_sums(
        bucket: Bucket, table: Array, bias: Array, weight: Array, *, platform: Platform
    ) -> tuple[Equations, Array]:
        y = bucket.value.astype(table.dtype) - gather(bias, bucket.other)
        lists = Lists(bucket.other, y, bucket.where, gather(weight, bucket.other))
        sums = list_normal_equations(table, lists, intercept=True, platform=platform)
        return sums, jnp.sum(bucket.where, axis=1, dtype=table.dtype)

    all_sums = lambda buckets, *args, platform: [bucket_sums(bucket, *args, platform=platform) for bucket in buckets]
    rows = ratings[side == "item"]
    (gram, (sum_xy, sum_x), sums), n_ratings = rows.map(partial(by_platform, all_sums), table, bias + mu, weight)
    sum_yy, sum_y, sum_weight = sums.T
    last_row = jnp.concatenate([sum_x, sum_weight[:, None]], axis=1)
    gram = jnp.concatenate([jnp.concatenate([gram, sum_x[:, :, None]], axis=2), last_row[:, None]], axis=1)
    return RowStatistics(gram, jnp.concatenate([sum_xy, sum_y[:, None]], axis=1), sum_yy, n_ratings)


def _dense_row_statistics(ratings: Dense, table: Array, bias: Array, weight: Array, mu: ArrayLike) -> RowStatistics:
    """`row_statistics` of Dense, with the other side's biases b as one more column of the design matrix.

    The targets are then r = ratings - mu, which vmapped chains share: they differ in the columns only. With y = r - b::

        X' T y = X' T r - X' T b        y' T y = r' T r - 2 b' T r + b' T b
    """
    mask = ratings.where.astype(table.dtype)
    r = jnp.where(ratings.where, ratings.value.astype(table.dtype) - mu, 0)
    columns = jnp.concatenate([table, jnp.ones_like(bias)[:, None], bias[:, None]], axis=1)
    gram, rhs = dense.dense_normal_equations(columns, mask, r, weight)
    sum_yy = jnp.matmul(weight, r * r, precision=HIGHEST) - 2 * rhs[-1] + gram[-1, -1]
    rhs_y = rhs[:-1] - gram[:-1, -1]
    return RowStatistics(jnp.moveaxis(gram[:-1, :-1], -1, 0), rhs_y.T, sum_yy, jnp.sum(mask, axis=0))


def squared_errors(statistics: RowStatistics, rows: Float[Array, "n k"]) -> Float[Array, " n"]:
    """Weighted squared errors of every row v, without a pass over the ratings: v' X' T X v - 2 v' X' T y + y' T y."""
    gram_v = jnp.einsum("nkl,nl->nk", statistics.gram, rows, precision=HIGHEST)
    return jnp.maximum(statistics.sum_yy + jnp.sum(rows * (gram_v - 2 * statistics.rhs), axis=1), 0)


def draw_rows(
    side: SideState, bases: tuple[Basis, ...], statistics: RowStatistics, alpha: Array, *, key: PRNGKeyArray
) -> SideState:
    """Draws every row from its posterior; a row without ratings is drawn from its prior."""
    weight = alpha * side.row_precision
    equations = ridge.NormalEquations(
        weight[:, None, None] * statistics.gram, weight[:, None] * statistics.rhs, statistics.n_ratings
    )
    factor = ridge.factorize_matrix(equations, side.precision)
    return replace(side, rows=ridge.sample(factor, prior_mean(side, bases), key=key))
