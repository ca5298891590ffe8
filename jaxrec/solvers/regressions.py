"""The regressions of one side's rows on a table of the other side's, solved exactly or by steps.

What explicit and implicit feedback, fold-in, leave-one-out and alternating least squares have in common.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.kernels.least_squares import Lists, conjugate_gradient, normal_equations
from jaxrec.lookup import lookup
from jaxrec.solvers import ridge
from jaxrec.types import Bucket, Rows

__all__ = ["Side", "left", "lists", "solve"]

# Floats of Gram matrices held at once: 1 GiB, those of 64k rows at d = 64. (A bucket alone may have more.)
SLAB = 2**28


class Side(NamedTuple):
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
    intercept: bool
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
    v, objective = rows.gather(solve(rows.buckets, side))
    return v, jnp.sum(objective)


def left(rows: Rows, side: Side) -> Array:
    """The sum of the rows' objectives at their parameters as they are."""

    def one(bucket: Bucket) -> tuple[Array, Array]:
        given = side.features, lists(bucket, side), lookup(side.now, bucket.row), lookup(side.precision, bucket.row)
        return conjugate_gradient(*given, side.shared, intercept=side.intercept, steps=0)

    return jnp.sum(rows.gather([one(bucket) for bucket in rows.buckets])[1])


def lists(bucket: Bucket, side: Side) -> Lists:
    """A bucket's rows with what the others and the row do not explain yet as targets."""
    dtype = side.features.dtype
    y = bucket.value.astype(dtype)
    if side.others is not None:
        y = y - lookup(side.others, bucket.other)
    if side.own is not None:
        y = y - lookup(side.own, bucket.row)[:, None]
    return Lists(bucket.other, y, bucket.where, None if bucket.weights is None else bucket.weights.astype(dtype))


def _exactly(buckets: tuple[Bucket, ...], side: Side) -> list[tuple[Array, Array]]:
    """(coefficients, objective) of every row, from its normal equations.

    Buckets are solved together, for each solve is compiled (2 s at d = 64): as many as `SLAB` allows.
    """

    def equations(bucket: Bucket) -> tuple[Array, ...]:
        found = normal_equations(side.features, lists(bucket, side), intercept=side.intercept)
        return *found, lookup(side.precision, bucket.row)

    def solve(equations: tuple[Array, ...]) -> tuple[Array, Array]:
        gram, rhs, square, count, precision = equations
        gram = gram if side.shared is None else gram + side.shared[None]
        v = ridge.solve(ridge.factorize(ridge.Normal(gram, rhs, count), precision))
        return v, (square - jnp.sum(v * rhs, axis=1)) / 2

    size = SLAB // side.precision.shape[1] ** 2
    groups: list[list[Bucket]] = [[]]
    for bucket in buckets:
        if groups[-1] and sum(len(b.row) for b in (*groups[-1], bucket)) > size:
            groups.append([])
        groups[-1].append(bucket)
    join = lambda *parts: jnp.concatenate(parts)
    return [solve(jax.tree.map(join, *map(equations, group))) for group in groups]


def _by_steps(steps: int, buckets: tuple[Bucket, ...], side: Side) -> list[tuple[Array, Array]]:
    """The same, some steps of conjugate gradients on; 0 for rows without ratings."""

    def solve(bucket: Bucket) -> tuple[Array, Array]:
        start, precision = lookup(side.now, bucket.row), lookup(side.precision, bucket.row)
        start = jnp.where(jnp.any(bucket.where, axis=1, keepdims=True), start, 0)
        given = side.features, lists(bucket, side), start, precision
        return conjugate_gradient(*given, side.shared, intercept=side.intercept, steps=steps)

    return [solve(bucket) for bucket in buckets]
