"""The regressions of one side's rows on a table of the other side's, solved exactly or by steps.

What explicit and implicit feedback, fold-in, leave-one-out and alternating least squares have in common.
"""

from dataclasses import dataclass, field
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

from jaxrec.kernels import cholesky, dense
from jaxrec.kernels.chunks import each_by_chunks
from jaxrec.kernels.least_squares import (
    Equations,
    Lists,
    Solved,
    conjugate_gradient,
    dual_least_squares,
    normal_equations,
)
from jaxrec.lookup import lookup
from jaxrec.types import Bucket, Dense, Rows

__all__ = ["Side", "left", "lists", "solve", "solve_densely"]


@register_dataclass
@dataclass(frozen=True)
class Side:
    """What the regressions of one side's rows share.

    Attributes:
        features: [n_others, d].
        now: [., k], the rows' parameters as they are.
        precision: [n_rows, k], the penalties.
        intercept: whether the last coefficient is a bias: k = d + 1.
        others: [n_others], what the other side adds to a prediction; None: nothing.
        own: [n_rows], what a row itself adds and does not solve for; None: nothing.
        shared: [k, k], a quadratic form that all rows are penalized by, beside their own; None: nothing.
    """

    features: Array
    now: Array
    precision: Array
    intercept: bool = field(metadata={"static": True})
    others: Array | None = None
    own: Array | None = None
    shared: Array | None = None


def solve(rows: Rows, side: Side, cg_steps: int | None) -> tuple[Array, Array]:
    """(coefficients [n_rows, k], the sum of the rows' objectives at them): a solution knows what it leaves.

    Raises:
        ValueError: cg_steps below 1, or for other rows than there are parameters to start from.
    """
    if cg_steps is not None and (cg_steps < 1 or len(side.now) != len(rows.place)):
        raise ValueError(
            f"cg_steps: expected at least 1, from the {len(rows.place)} rows' own parameters, got {cg_steps} and "
            f"{len(side.now)} rows. New rows have no parameters to start from: leave cg_steps out."
        )
    solve = _exactly if cg_steps is None else partial(_by_steps, cg_steps)
    v, objective = rows.map(solve, side)
    return v, jnp.sum(objective)


def solve_densely(ratings: Dense, side: Side) -> tuple[Array, Array]:
    """The same from a matrix [n_others, n_rows], exactly: for small data, and for many members of a grid at once.

    What the others add is a column of the table with coefficient 1, and what the row adds is its coefficient of the
    column of ones: so that members of a grid differ in the table alone, and share the matrix.
    """
    x, d = side.features, side.features.shape[1]
    others = jnp.zeros(len(x), x.dtype) if side.others is None else side.others
    table = jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype), others[:, None]], axis=1)
    weight = ratings.where.astype(x.dtype)
    if ratings.weights is not None:
        weight = jnp.where(ratings.where, ratings.weights.astype(x.dtype), 0)
    y = jnp.where(ratings.where, ratings.value.astype(x.dtype), 0)
    gram, rhs = dense.normal_equations(table, weight, y)

    k = d + side.intercept
    own = jnp.zeros(y.shape[1], x.dtype) if side.own is None else side.own
    rest = rhs - gram[:, d + 1] - own[None] * gram[:, d]  # X' D (y - others - own)
    square = jnp.sum(weight * y * y) - jnp.sum(rhs[d + 1] + rest[d + 1] + own * (rhs[d] + rest[d]))
    penalty = side.precision.T
    if side.intercept:  # nothing is known and nothing pulls: 0, as all else
        penalty = penalty.at[d].add(jnp.where(gram[d, d] + penalty[d] > 0, 0, 1))
    v = dense.solve(gram[:k, :k] + jnp.eye(k, dtype=x.dtype)[:, :, None] * penalty[None], rest[:k])
    return v.T, (square - jnp.sum(v * rest[:k])) / 2


def left(rows: Rows, side: Side) -> Array:
    """The sum of the rows' objectives at their parameters as they are."""

    def one(bucket: Bucket, side: Side) -> Solved:
        given = side.features, lists(bucket, side), lookup(side.now, bucket.row), lookup(side.precision, bucket.row)
        return conjugate_gradient(*given, side.shared, intercept=side.intercept, steps=0)

    return jnp.sum(rows.map(lambda buckets, side: [one(bucket, side) for bucket in buckets], side)[1])


def lists(bucket: Bucket, side: Side) -> Lists:
    """A bucket's rows with what the others and the row do not explain yet as targets."""
    dtype = side.features.dtype
    y = bucket.value.astype(dtype)
    if side.others is not None:
        y = y - lookup(side.others, bucket.other)
    if side.own is not None:
        y = y - lookup(side.own, bucket.row)[:, None]
    return Lists(bucket.other, y, bucket.where, None if bucket.weights is None else bucket.weights.astype(dtype))


def _exactly(buckets: tuple[Bucket, ...], side: Side) -> list[Solved]:
    """(coefficients, objective) of every row, from its normal equations; of rows much shorter than k, in the dual.

    All buckets share one loop and one solve, for each solve is compiled (2 s at d = 64).
    """

    def equations(bucket: Bucket) -> tuple[Equations, Array]:
        found = normal_equations(side.features, lists(bucket, side), intercept=side.intercept)
        return found, lookup(side.precision, bucket.row)

    def solve(equations: tuple[Equations, Array]) -> Solved:
        (gram, rhs, sums), precision = equations
        square, total, count = sums.T
        gram = gram if side.shared is None else gram + side.shared[None]
        gram = gram + jnp.eye(gram.shape[1], dtype=gram.dtype)[None] * precision[:, : gram.shape[1], None]
        v, *bent = cholesky.solve(gram, rhs)
        fit = jnp.sum(v * rhs[0], axis=1)  # v' X' D y
        if side.intercept:  # the bias by elimination, so that the matrices stay d x d
            weight = count + precision[:, -1]
            weight = jnp.where(weight > 0, weight, 1)  # nothing is known and nothing pulls: 0, as all else
            bias = (total - jnp.sum(rhs[1] * v, axis=1)) / (weight - jnp.sum(rhs[1] * bent[0], axis=1))
            v = v - bias[:, None] * bent[0]
            fit = jnp.sum(v * rhs[0], axis=1) + bias * total
            v = jnp.concatenate([v, bias[:, None]], axis=1)
        return Solved(v, (square - fit) / 2)

    k = side.precision.shape[1]
    short = [bucket for bucket in buckets if side.shared is None and 2 * bucket.other.shape[1] <= k]
    dual = lambda bucket: dual_least_squares(
        side.features, lists(bucket, side), lookup(side.precision, bucket.row), intercept=side.intercept
    )
    rest = each_by_chunks(equations, solve, buckets[len(short) :], max(1, cholesky.CHUNK // k**2))
    return [*map(dual, short), *rest]  # they come shortest first


def _by_steps(steps: int, buckets: tuple[Bucket, ...], side: Side) -> list[Solved]:
    """The same, some steps of conjugate gradients on; 0 for rows without ratings."""

    def solve(bucket: Bucket) -> Solved:
        start, precision = lookup(side.now, bucket.row), lookup(side.precision, bucket.row)
        start = jnp.where(jnp.any(bucket.where, axis=1, keepdims=True), start, 0)
        given = side.features, lists(bucket, side), start, precision
        return conjugate_gradient(*given, side.shared, intercept=side.intercept, steps=steps)

    return [solve(bucket) for bucket in buckets]
