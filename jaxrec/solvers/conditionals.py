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
from jaxtyping import Float, PRNGKeyArray

from jaxrec.kernels import dense
from jaxrec.kernels.least_squares import Equations, Lists, normal_equations
from jaxrec.kernels.platform import On, by_platform
from jaxrec.lookup import lookup
from jaxrec.solvers import ridge
from jaxrec.solvers.hierarchy import Basis, Level, prior_mean
from jaxrec.types import Bucket, Dense, Rows

__all__ = ["Cells", "Given", "Known", "Side", "cells", "draw_rows", "equations", "errors", "with_values"]

Known = Dense | tuple[Rows, Rows]
Side = Literal["user", "item"]
HIGHEST = jax.lax.Precision.HIGHEST


class Given(NamedTuple):
    """The normal equations of rows with a bias, sums weighted by the others' sureness.

    Attributes:
        gram: [n, k, k], X'TX.
        rhs: [n, k], X'T y, y what is left of the ratings.
        square: [n], y'T y.
        known: [n], how many ratings, unweighted.
    """

    gram: Array
    rhs: Array
    square: Array
    known: Array


class Cells(NamedTuple):
    """Ratings as a side's layout has them, with what a model says of each; all of one shape.

    Attributes:
        value: the ratings.
        where: True where there is one.
        eta: mu + w.x + b + c.
        sureness: τ(i) τ(j).
    """

    value: Array
    where: Array
    eta: Array
    sureness: Array


def cells(known: Known, side: Side, own: Level, others: Level, mu: float | Array) -> list[Cells]:
    """Of a side's rows: of Dense one table [own, others], of Rows one [rows, length] for every bucket."""
    if isinstance(known, Dense):
        known = known if side == "item" else known.T
        eta = jnp.matmul(own.rows[:, :-1], others.rows[:, :-1].T, precision=HIGHEST)
        eta = eta + own.rows[:, -1:] + others.rows[:, -1][None] + mu
        return [Cells(known.value, known.where, eta, own.sureness[:, None] * others.sureness[None])]

    def of(bucket: Bucket) -> Cells:
        u, v = lookup(own.rows, bucket.row), lookup(others.rows, bucket.other)
        eta = jnp.einsum("rd,rld->rl", u[:, :-1], v[..., :-1], precision=HIGHEST) + u[:, -1:] + v[..., -1] + mu
        sureness = lookup(own.sureness, bucket.row)[:, None] * lookup(others.sureness, bucket.other)
        return Cells(bucket.value, bucket.where, eta, sureness)

    return [of(bucket) for bucket in known[side == "item"].buckets]


def with_values(known: Known, side: Side, values: list[Array]) -> Known:
    """The same layout with other ratings, as `cells` has them; in Rows the other side's stay as they are."""
    if isinstance(known, Dense):
        return replace(known, value=values[0] if side == "item" else values[0].T)
    rows = known[side == "item"]
    buckets = tuple(replace(bucket, value=value) for bucket, value in zip(rows.buckets, values, strict=True))
    rows = replace(rows, buckets=buckets)
    return (known[0], rows) if side == "item" else (rows, known[1])


def equations(known: Known, side: Side, others: Level, mu: float | Array) -> Given:
    """Of every row of a side, from the ratings as Dense or as Rows."""
    table, bias, weight = others.rows[:, :-1], others.rows[:, -1], others.sureness
    if isinstance(known, Dense):
        return _densely(known if side == "user" else known.T, table, bias, weight, mu)

    def of(bucket: Bucket, table: Array, bias: Array, weight: Array, *, on: On) -> tuple[Equations, Array]:
        y = bucket.value.astype(table.dtype) - lookup(bias, bucket.other)
        lists = Lists(bucket.other, y, bucket.where, lookup(weight, bucket.other))
        sums = normal_equations(table, lists, intercept=True, on=on)
        return sums, jnp.sum(bucket.where, axis=1, dtype=table.dtype)

    of_all = lambda buckets, *given, on: [of(bucket, *given, on=on) for bucket in buckets]
    rows = known[side == "item"]
    (gram, (told, ones), sums), count = rows.map(partial(by_platform, of_all), table, bias + mu, weight)
    square, total, weights = sums.T
    last = jnp.concatenate([ones, weights[:, None]], axis=1)
    gram = jnp.concatenate([jnp.concatenate([gram, ones[:, :, None]], axis=2), last[:, None]], axis=1)
    return Given(gram, jnp.concatenate([told, total[:, None]], axis=1), square, count)


def _densely(known: Dense, table: Array, bias: Array, weight: Array, mu: float | Array) -> Given:
    """The others' biases are one column more, with coefficient 1: chains differ in the table, and share the matrix."""
    cells = known.where.astype(table.dtype)
    y = jnp.where(known.where, known.value.astype(table.dtype) - mu, 0)
    columns = jnp.concatenate([table, jnp.ones_like(bias)[:, None], bias[:, None]], axis=1)
    gram, rhs = dense.normal_equations(columns, cells, y, weight)
    square = jnp.matmul(weight, y * y, precision=HIGHEST) - 2 * rhs[-1] + gram[-1, -1]
    left = rhs[:-1] - gram[:-1, -1]
    return Given(jnp.moveaxis(gram[:-1, :-1], -1, 0), left.T, square, jnp.sum(cells, axis=0))


def errors(given: Given, rows: Float[Array, "n k"]) -> Float[Array, " n"]:
    """The squared errors that rows leave, weighted: no further pass over the ratings."""
    bent = jnp.einsum("nkl,nl->nk", given.gram, rows, precision=HIGHEST)
    return jnp.maximum(given.square + jnp.sum(rows * (bent - 2 * given.rhs), axis=1), 0)


def draw_rows(level: Level, bases: tuple[Basis, ...], given: Given, alpha: Array, *, key: PRNGKeyArray) -> Level:
    """All rows at once, each from its posterior; a row without ratings from its prior."""
    weight = alpha * level.sureness
    normal = ridge.Normal(weight[:, None, None] * given.gram, weight[:, None] * given.rhs, given.known)
    factor = ridge.factorize_matrix(normal, level.precision)
    return replace(level, rows=ridge.sample(key, factor, prior_mean(level, bases)))
