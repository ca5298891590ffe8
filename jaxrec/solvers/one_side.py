"""One side's rows in closed form, the other side given: every user is a ridge regression on the items, and vice versa.

`fold_in` solves them, in training (half a sweep of ALS) and for rows that come after it; `leave_one_out` says how well
each row's regression predicts what it did not see, without fitting again.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.lookup import lookup
from jaxrec.losses.penalty import L2, pair
from jaxrec.losses.pointwise import PointwiseLoss, squared_error
from jaxrec.solvers import ridge
from jaxrec.types import Bucket, Factors, Rows, Total

__all__ = ["fold_in", "leave_one_out"]

# Floats of gathered features held at once, [rows, length, d]: 4 MiB stays near the cache and bounds the memory.
GATHERED = 2**20


@jax.jit
def fold_in(rows: Rows, factors: Factors, *, l2: L2, l2_bias: L2 = 0.0) -> Factors:
    """Every row of one side solved in closed form, given the other side: half a sweep, and how new rows come in.

    For users: her (w, b) minimize the squared error of her ratings + l2/2 ‖w‖^2 + l2_bias/2 b^2, given x, c and mu; a
    user who was not there in training gets the parameters that training would have given her, the items held. For
    items likewise (x, c), given w and b. A row without ratings gets 0, so that its prediction is what the other side
    and mu say. Pure: to be vmapped over l2, differentiated.

    Args:
        rows: the ratings to learn from, a row for each (new) user or item.
        factors: the model; only the other side's table, c and mu are read. Where rows are items, mu is a number or one
            per row, and the model's having c or not says whether the rows get one.
        l2: as in training: a number, or a pair (users', items') of numbers or of one number per row.
        l2_bias: the same for b and c.

    Returns:
        The factors, with the side's table replaced by one of as many rows as `rows` has.

    Raises:
        ValueError: `rows` names other users or items than the other side's table has; mu of another length.

    >>> from jaxrec import Ratings, data, models, solvers
    >>> ratings = data.synthetic.low_rank(50, 40, 600, rng=0).ratings
    >>> init = models.init(50, 40, 2, key=jax.random.key(0), mu=3.5)
    >>> by_user, by_item = data.rows(ratings, "user"), data.rows(ratings, "item")
    >>> factors, _ = solvers.als(by_user, by_item, init, l2=2.0, sweeps=5, progress=False)
    >>> newcomer = Ratings(user=[0, 0], item=[3, 7], value=[5.0, 1.0], n_users=1, n_items=40)
    >>> models.predict_all(fold_in(data.rows(newcomer, "user"), factors, l2=2.0)).shape
    (1, 40)
    """
    side = _side(rows, factors, l2, l2_bias)
    equations = rows.gather([_map(_equations, bucket, bucket, side) for bucket in rows.buckets])
    v = ridge.solve(ridge.factorize(equations, side.precision))
    if rows.side == "item" and factors.c is None:
        return dataclasses.replace(factors, x=v)
    names = ("w", "b") if rows.side == "user" else ("x", "c")
    return dataclasses.replace(factors, **dict(zip(names, (v[:, :-1], v[:, -1]), strict=True)))


@partial(jax.jit, static_argnames="loss")
def leave_one_out(
    rows: Rows, factors: Factors, *, l2: L2, l2_bias: L2 = 0.0, loss: PointwiseLoss = squared_error
) -> Total:
    """The loss of each rating predicted by its row's ridge fitted without that rating: exact, and nothing is refitted.

    It is differentiable in l2 and in the other side's table: a validation error that costs no validation part. The
    other side was held; where it was learned from the same ratings it has seen them, and the error is too low.

    Args:
        rows: as in `fold_in`.
        factors: as in `fold_in`.
        l2: as in `fold_in`.
        l2_bias: as in `fold_in`.
        loss: a pointwise loss of (prediction, rating); `squared_error` gives RMSE^2 as the mean.

    Raises:
        ValueError: as `fold_in`.
    """
    side = _side(rows, factors, l2, l2_bias)
    parts = []
    for bucket in rows.buckets:
        equations = _map(_equations, bucket, bucket, side)
        factor = ridge.factorize(equations, lookup(side.precision, bucket.row))
        error = _map(_left_out, bucket, (bucket, factor), side)  # in the regression's units: y less what is given
        parts.append(loss(error + bucket.value, bucket.value, where=bucket.where, weights=bucket.weights))
    return sum(parts[1:], start=parts[0])


class _Side(NamedTuple):
    """What the regressions of one side's rows share.

    Attributes:
        features: [n_others, k], a column of ones included where the rows have a bias.
        others: [n_others], what the other side adds to a prediction.
        own: [n_rows], what a row itself adds and does not solve for.
        precision: [n_rows, k], the penalties.
    """

    features: Array
    others: Array
    own: Array
    precision: Array


def _side(rows: Rows, factors: Factors, l2: L2, l2_bias: L2) -> _Side:
    """The users' regressions of y - c - mu on (x, 1), or the items' of y - b - mu on (w, 1), or on w without c."""
    by_user = rows.side == "user"
    theirs, dtype = (factors.x if by_user else factors.w), factors.x.dtype
    if rows.n_others != len(theirs):
        raise ValueError(
            f"rows: expected ratings over the {len(theirs)} {'items' if by_user else 'users'} of the factors, got "
            f"{rows.n_others}. Give Ratings.from_columns the ids that the model was trained with."
        )
    n_rows = len(rows.place)
    n_items = rows.n_others if by_user else n_rows
    mu = jnp.asarray(0.0 if factors.mu is None else factors.mu, dtype)
    if mu.ndim and len(mu) != n_items:
        raise ValueError(f"mu: expected a number or one per item ({n_items}), got {len(mu)}.")
    mu = jnp.broadcast_to(mu, (n_items,))
    strength, strength_bias = pair(l2)[0 if by_user else 1], pair(l2_bias)[0 if by_user else 1]
    each = lambda strength: jnp.broadcast_to(jnp.asarray(strength, dtype), (n_rows,))
    precision = jnp.broadcast_to(each(strength)[:, None], (n_rows, theirs.shape[1]))
    with_bias = jnp.concatenate([precision, each(strength_bias)[:, None]], axis=1)
    if by_user:
        others = mu if factors.c is None else factors.c + mu
        return _Side(ridge.with_one(theirs), others, jnp.zeros(n_rows, dtype), with_bias)
    if factors.c is None:
        return _Side(theirs, factors.b, mu, precision)
    return _Side(ridge.with_one(theirs), factors.b, mu, with_bias)


def _regression(row: Bucket, side: _Side) -> tuple[Array, Array]:
    """(x, y) of one row: the others' features, and what they and the row do not explain yet."""
    y = row.value - lookup(side.others, row.other) - lookup(side.own, row.row)
    return lookup(side.features, row.other), y


def _equations(row: Bucket, side: _Side) -> ridge.Normal:
    return ridge.normal(*_regression(row, side), row.where, row.weights)


def _left_out(row_and_factor: tuple[Bucket, ridge.Factor], side: _Side) -> Array:
    """The errors prediction - y of a row's ratings, each predicted without it."""
    row, factor = row_and_factor
    x, y = _regression(row, side)
    return ridge.leave_one_out(factor, x, y, row.where, row.weights) - y


def _map(f: Callable[[Any, _Side], Any], bucket: Bucket, rows: Any, side: _Side) -> Any:
    """Apply f to every row of a bucket, as many at once as `GATHERED` allows."""
    length, k = bucket.other.shape[1], side.features.shape[1]
    at_once = min(max(1, GATHERED // max(1, length * k)), len(bucket.row))
    return jax.lax.map(lambda row: f(row, side), rows, batch_size=at_once)
