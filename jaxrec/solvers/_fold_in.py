"""One side's rows in closed form, the other side given: every user is a ridge regression on the items, and vice versa.

`fold_in` solves them, in training (half a sweep of ALS) and for rows that come after it; `leave_one_out` says how well
each row's regression predicts what it did not see, without fitting again.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.gather import gather
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.least_squares import Lists, rows_at_once
from jaxrec.kernels.platform import On, by_platform
from jaxrec.losses.penalty import L2, per_side
from jaxrec.losses.pointwise import PointwiseLoss, squared_error
from jaxrec.prediction import check_factors
from jaxrec.solvers import batched_ridge, ridge
from jaxrec.solvers.batched_ridge import RowProblem
from jaxrec.solvers.checks import OVERFLOW, check_finite, check_rows, check_strength, in_float32, like
from jaxrec.types import Bucket, Dense, Factors, Rows, Total

__all__ = ["check_side", "fold_in", "leave_one_out", "solve_side", "solve_side_dense"]


def fold_in(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2 = 0.0, cg_steps: int | None = None) -> Factors:
    """Every row of one side solved in closed form, given the other side: half a sweep, and how new rows come in.

    For users: her (w, b) minimize the squared error of her ratings + l2/2 ‖w‖^2 + l2_bias/2 b^2, given x, c and mu; a
    user who was not there in training gets the parameters that training would have given her, the items held. For
    items likewise (x, c), given w and b. A row without ratings gets 0, so that its prediction is what the other side
    and mu say. Pure: to be vmapped over l2, differentiated.

    Args:
        factors: the model; only the other side's table, c and mu are read. Where rows are items, mu is a number or one
            per row, and the rows get a bias if the model has c.
        rows: the ratings to learn from, a row for each (new) user or item.
        l2: as in training: a number, or a pair (users', items') of numbers or of one number per row.
        l2_bias: the same for b and c.
        cg_steps: None solves exactly. A number takes as many steps of conjugate gradients from the rows' own
            parameters: for sweeps of training.

    Returns:
        The factors, with the side's table replaced by one of as many rows as `rows` has. Solved in float32 at least,
        and returned in the factors' own types; how exactly, `solvers.batched_ridge` says.

    Raises:
        ValueError: `rows` names other users or items than the other side's table has, or ids that it has not; factors
            whose parts do not fit; mu of another length; a strength that is not finite and positive (l2_bias: or 0), or
            neither a number nor one per row; cg_steps below 1, or for other rows than the factors have; a row whose
            numbers are beyond the type's range.

    >>> from jaxrec import Ratings, data, models, solvers
    >>> ratings = data.synthetic.low_rank(50, 40, 600, rng=0).ratings
    >>> factors, _ = solvers.als(ratings, rank=2, l2=2.0, sweeps=5, progress=False)
    >>> new_user = Ratings(user=[0, 0], item=[3, 7], value=[5.0, 1.0], n_users=1, n_items=40)
    >>> models.predict_all(fold_in(factors, data.rows(new_user, "user"), l2=2.0)).shape
    (1, 40)
    """
    check_side(factors, rows, l2, l2_bias)
    found = _fold_in(factors, rows, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps)
    check_finite("fold_in", (found.w, found.b) if rows.side == "user" else (found.x, found.c), OVERFLOW)
    return found


def solve_side(
    factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2 = 0.0, cg_steps: int | None = None, mend: bool = False
) -> tuple[Factors, Array]:
    """Like `fold_in`, and also returns the objective (squared error plus the rows' penalty) at the solution.

    `mend` as in `batched_ridge.solve`.
    """
    side = _side(rows.side, (len(rows.position), rows.n_others), in_float32(factors), l2, l2_bias)
    v, left = batched_ridge.solve(rows, side, cg_steps, mend=mend)
    return _replace(factors, rows.side, v, side.intercept), left


@partial(jax.jit, static_argnames="cg_steps")
def _fold_in(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2, cg_steps: int | None) -> Factors:
    return solve_side(factors, rows, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps, mend=True)[0]


def solve_side_dense(
    factors: Factors, ratings: Dense, which: str, *, l2: L2, l2_bias: L2 = 0.0
) -> tuple[Factors, Array]:
    """The same for every 'user' or 'item' of a dense matrix: all rows' normal equations are one matrix product."""
    n_items, n_users = ratings.where.shape
    sizes = (n_users, n_items) if which == "user" else (n_items, n_users)
    side = _side(which, sizes, in_float32(factors), l2, l2_bias)
    v, left = batched_ridge.solve_dense(ratings if which == "user" else ratings.T, side)
    return _replace(factors, which, v, side.intercept), left


def leave_one_out(
    factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2 = 0.0, loss: PointwiseLoss = squared_error
) -> Total:
    """The loss of each rating predicted by its row's ridge fitted without that rating: exact, and nothing is refitted.

    It is differentiable in l2 and in the other side's table: a validation error that costs no validation part. The
    other side was held; where it was learned from the same ratings it has seen them, and the error is too low.

    Args:
        factors: as in `fold_in`.
        rows: as in `fold_in`.
        l2: as in `fold_in`.
        l2_bias: as in `fold_in`.
        loss: a pointwise loss of (prediction, rating); `squared_error` gives RMSE^2 as the mean.

    Raises:
        ValueError: as `fold_in`.
    """
    check_side(factors, rows, l2, l2_bias)
    return _leave_one_out(factors, rows, l2=l2, l2_bias=l2_bias, loss=loss)


@partial(jax.jit, static_argnames="loss")
def _leave_one_out(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2, loss: PointwiseLoss) -> Total:
    side = _side(rows.side, (len(rows.position), rows.n_others), in_float32(factors), l2, l2_bias)
    parts = []
    for bucket in rows.buckets:
        error = _left_out(bucket, side)  # in the regression's units: y less what is given
        value = bucket.value.astype(error.dtype)
        weights = None if bucket.weights is None else bucket.weights.astype(error.dtype)
        parts.append(loss(error + value, value, where=bucket.where, weights=weights))
    return sum(parts[1:], start=parts[0])


def check_side(factors: Factors, rows: Rows, l2: L2, l2_bias: L2 = 0.0) -> None:
    """What one side's regressions are given: tables, ids and strengths that fit; raises a ValueError otherwise."""
    by_user, n_rows = rows.side == "user", len(rows.position)
    n_users, n_items = (n_rows, rows.n_others) if by_user else (rows.n_others, n_rows)
    check_factors(factors if by_user else dataclasses.replace(factors, mu=None))  # mu may be of new items
    _check_tables(rows.side, rows.n_others, n_items, factors)
    check_rows(rows)
    check_strength("l2", l2, n_users, n_items)
    check_strength("l2_bias", l2_bias, n_users, n_items, zero=True)


def _replace(factors: Factors, which: str, v: Array, intercept: bool) -> Factors:
    if not intercept:
        return dataclasses.replace(factors, x=like(v, factors.x))
    names = ("w", "b") if which == "user" else ("x", "c")
    new = dict(zip(names, (v[:, :-1], v[:, -1]), strict=True))
    return dataclasses.replace(factors, **like(new, {name: getattr(factors, name) for name in names}))


def _side(which: str, sizes: tuple[int, int], factors: Factors, l2: L2, l2_bias: L2) -> RowProblem:
    """The users' regressions of y - c - mu on (x, 1), or the items' of y - b - mu on (w, 1), or on w without c."""
    by_user = which == "user"
    n_rows, n_others = sizes
    theirs, dtype = (factors.x if by_user else factors.w), factors.x.dtype
    n_items = n_others if by_user else n_rows
    _check_tables(which, n_others, n_items, factors)
    mu = jnp.broadcast_to(jnp.asarray(0.0 if factors.mu is None else factors.mu, dtype), (n_items,))
    strength, strength_bias = per_side(l2)[0 if by_user else 1], per_side(l2_bias)[0 if by_user else 1]
    each = lambda strength: jnp.broadcast_to(jnp.asarray(strength, dtype), (n_rows,))
    precision = jnp.broadcast_to(each(strength)[:, None], (n_rows, theirs.shape[1]))
    with_bias = jnp.concatenate([precision, each(strength_bias)[:, None]], axis=1)
    beside = lambda table, bias: jnp.concatenate([table, bias[:, None]], axis=1)
    if by_user:
        others = mu if factors.c is None else factors.c + mu
        return RowProblem(theirs, beside(factors.w, factors.b), with_bias, True, others)
    if factors.c is None:
        return RowProblem(theirs, factors.x, precision, False, factors.b, mu)
    return RowProblem(theirs, beside(factors.x, factors.c), with_bias, True, factors.b, mu)


def _check_tables(which: str, n_others: int, n_items: int, factors: Factors) -> None:
    theirs, of_what = (factors.x, "items") if which == "user" else (factors.w, "users")
    if n_others != len(theirs):
        raise ValueError(
            f"rows: expected ratings over the {len(theirs)} {of_what} of the factors, got {n_others}. "
            "Give Ratings.from_columns the ids that the model was trained with."
        )
    if factors.mu is not None and (shape := jnp.shape(factors.mu)) not in ((), (n_items,)):
        raise ValueError(
            f"mu: expected a number or one per item ({n_items}), got {shape[0] if len(shape) == 1 else shape}."
        )


def _left_out(bucket: Bucket, side: RowProblem) -> Array:
    """The errors prediction - y of each row's ratings, each predicted without it."""

    def one(row: Lists, precision: Array) -> Array:
        x = gather(side.features, row.other)
        x = ridge.with_one(x) if side.intercept else x
        given = x, row.y, row.where, row.weights
        return (
            ridge.leave_one_out_predictions(ridge.factorize(ridge.normal_equations(*given), precision), *given) - row.y
        )

    length, k = bucket.other.shape[1], side.precision.shape[1]
    rows = batched_ridge.padded_lists(bucket, side), gather(side.precision, bucket.row)

    def form(rows: tuple[Lists, Array], *, on: On) -> Array:
        return by_chunks(lambda part: jax.vmap(one)(*part), rows, rows_at_once(max(length, k) * k, on))

    return by_platform(form, rows)
