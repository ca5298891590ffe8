"""Ridge regressions of one side's rows, the other side held fixed: users on the items' features, and vice versa.

`fold_in` solves them, in training (half a sweep of ALS) and for new rows after it. `leave_one_out` measures how well
each row's regression predicts a rating that it was not fitted to, without refitting.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.least_squares import Lists, rows_per_chunk
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.losses.penalty import L2, per_side
from jaxrec.losses.pointwise import PointwiseLoss, squared_error
from jaxrec.prediction import check_factors
from jaxrec.solvers import batched_ridge, ridge
from jaxrec.solvers.batched_ridge import RowProblem
from jaxrec.solvers.checks import OVERFLOW, check_finite, check_is_rows, check_rows, check_strength, in_float32, like
from jaxrec.types import Bucket, Dense, Factors, Rows, Total

__all__ = ["check_side", "fold_in", "leave_one_out", "side_objective", "solve_side", "solve_side_dense"]


def fold_in(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2 = 0.0, cg_steps: int | None = None) -> Factors:
    """Solves every row of one side in closed form, the other side held fixed: half a sweep, or new users or items.

    A user's (w, b) minimize the squared error of their ratings + l2/2 ‖w‖^2 + l2_bias/2 b^2, with x, c and mu held
    fixed: a new user gets the parameters that training with these items would have given. An item's (x, c) likewise,
    with w and b held fixed. A row without ratings is 0, so its prediction is the other side's bias plus mu. Pure: it
    can be vmapped over l2 and differentiated.

    Args:
        factors: the model; only the other side's table, c and mu are read. Where the rows are items, mu is a number or
            one per row, and the rows have a bias if the model has c.
        rows: the ratings to learn from, one row per (new) user or item.
        l2: as in training: a number, or a pair (users', items') of numbers or of one number per row.
        l2_bias: the same for b and c.
        cg_steps: Number of conjugate-gradient steps per row, warm-started at its current value in `factors`, for
            training sweeps; None solves each row exactly.

    Returns:
        The factors, with the side's table replaced by one of as many rows as `rows` has. They are computed in float32
        at least and returned in the factors' own types; for their accuracy see `solvers.batched_ridge`.

    Raises:
        ValueError: the number of items (users) of `rows` or their ids do not fit the other side's table; the factors'
            parts do not fit one another; mu has a wrong length; a strength is not finite and positive (l2_bias: or 0),
            or is neither a number nor one per row; cg_steps is below 1, or passed for rows that the factors do not
            have; a row's numbers exceed the type's range.

    >>> from jaxrec import Ratings, data, models, solvers
    >>> ratings = data.synthetic.low_rank(50, 40, 600, rng=0).ratings
    >>> factors, _ = solvers.als(ratings, rank=2, l2=2.0, sweeps=5, progress=False)
    >>> new_user = Ratings(user=[0, 0], item=[3, 7], value=[5.0, 1.0], n_users=1, n_items=40)
    >>> models.predict_all(fold_in(factors, data.rows(new_user, "user"), l2=2.0)).shape
    (1, 40)
    """
    check_side(factors, rows, l2, l2_bias)
    folded = _fold_in(factors, rows, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps)
    check_finite("fold_in", (folded.w, folded.b) if rows.side == "user" else (folded.x, folded.c), OVERFLOW)
    return folded


def solve_side(
    factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2 = 0.0, cg_steps: int | None = None, refit: bool = False
) -> tuple[Factors, Array]:
    """Like `fold_in`, and also returns the objective (squared error plus the rows' penalty) at the solution.

    `refit` as in `batched_ridge.solve`.
    """
    problem = _row_problem(rows.side, (len(rows.position), rows.n_others), in_float32(factors), l2, l2_bias)
    v, objective = batched_ridge.solve(rows, problem, cg_steps, refit=refit)
    return _replace(factors, rows.side, v, problem.intercept), objective


def side_objective(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2 = 0.0) -> Array:
    """The objective of `solve_side` at the factors as they are; each device computes that of its own rows."""
    problem = _row_problem(rows.side, (len(rows.position), rows.n_others), in_float32(factors), l2, l2_bias)
    return batched_ridge.objective_at(rows, problem)


@partial(jax.jit, static_argnames="cg_steps")
def _fold_in(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2, cg_steps: int | None) -> Factors:
    return solve_side(factors, rows, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps, refit=True)[0]


def solve_side_dense(
    factors: Factors, ratings: Dense, side: str, *, l2: L2, l2_bias: L2 = 0.0
) -> tuple[Factors, Array]:
    """`solve_side` for every 'user' or 'item' of a dense matrix: all normal equations by one matrix product."""
    n_items, n_users = ratings.where.shape
    sizes = (n_users, n_items) if side == "user" else (n_items, n_users)
    problem = _row_problem(side, sizes, in_float32(factors), l2, l2_bias)
    v, objective = batched_ridge.solve_dense(ratings if side == "user" else ratings.T, problem)
    return _replace(factors, side, v, problem.intercept), objective


def leave_one_out(
    factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2 = 0.0, loss: PointwiseLoss = squared_error
) -> Total:
    """Loss of predicting each rating by its row's ridge fitted to all other ratings: exact, without refitting.

    It is differentiable in l2 and in the other side's table: a validation error that needs no validation set. The other
    side is held fixed: if it was learned from the same ratings, the error is too low.

    Args:
        factors: as in `fold_in`.
        rows: as in `fold_in`.
        l2: as in `fold_in`.
        l2_bias: as in `fold_in`.
        loss: a pointwise loss of (prediction, rating); `squared_error` gives RMSE^2 as the mean.

    Raises:
        ValueError: as `fold_in`.
    """
    check.pointwise_loss(loss)
    check_side(factors, rows, l2, l2_bias)
    return _leave_one_out(factors, rows, l2=l2, l2_bias=l2_bias, loss=loss)


@partial(jax.jit, static_argnames="loss")
def _leave_one_out(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2, loss: PointwiseLoss) -> Total:
    problem = _row_problem(rows.side, (len(rows.position), rows.n_others), in_float32(factors), l2, l2_bias)
    totals = []
    for bucket in rows.buckets:
        error = _leave_one_out_errors(bucket, problem)  # offsets cancel: error + value is the predicted rating
        value = bucket.value.astype(error.dtype)
        weights = None if bucket.weights is None else bucket.weights.astype(error.dtype)
        totals.append(loss(error + value, value, where=bucket.where, weights=weights))
    return sum(totals[1:], start=totals[0])


def check_side(factors: Factors, rows: Rows, l2: L2, l2_bias: L2 = 0.0) -> None:
    """Checks the arguments of one side's regressions: tables, ids and strengths that fit.

    Raises:
        ValueError: otherwise.
    """
    check.factors("factors", factors)
    check_is_rows(rows)
    by_user, n_rows = rows.side == "user", len(rows.position)
    n_users, n_items = (n_rows, rows.n_others) if by_user else (rows.n_others, n_rows)
    check_factors(factors if by_user else dataclasses.replace(factors, mu=None))  # mu may be that of new items
    _check_tables(rows.side, rows.n_others, n_items, factors)
    check_rows(rows)
    check_strength("l2", l2, n_users, n_items)
    check_strength("l2_bias", l2_bias, n_users, n_items, zero=True)


def _replace(factors: Factors, side: str, v: Array, intercept: bool) -> Factors:
    """The factors with one side's parameters replaced by v; its last column is the bias if there is an intercept."""
    if not intercept:
        return dataclasses.replace(factors, x=like(v, factors.x))
    names = ("w", "b") if side == "user" else ("x", "c")
    new = dict(zip(names, (v[:, :-1], v[:, -1]), strict=True))
    return dataclasses.replace(factors, **like(new, {name: getattr(factors, name) for name in names}))


def _row_problem(side: str, sizes: tuple[int, int], factors: Factors, l2: L2, l2_bias: L2) -> RowProblem:
    """The regressions of every user or every item, the other side held fixed.

    For user j, item i and the rating y of i by j::

        side            regress              on          to find         penalties
        user            y - (c(i) + mu(i))   (x(i), 1)   (w(j), b(j))    (l2, ..., l2, l2_bias)
        item            y - b(j) - mu(i)     (w(j), 1)   (x(i), c(i))    (l2, ..., l2, l2_bias)
        item without c  y - b(j) - mu(i)     w(j)        x(i)            (l2, ..., l2)

    What belongs to the other side is `other_offset` (of a user's row c + mu, of an item's row b); mu(i) of an item's
    row is `row_offset`. With d = 2, x(i) = (0.2, 0.7), c(i) = 0.4 and mu = 3, a rating of 4 adds to its user's
    regression the target 4 - 0.4 - 3 = 0.6 at the features (0.2, 0.7, 1).
    """
    by_user = side == "user"
    n_rows, n_others = sizes
    features, dtype = (factors.x if by_user else factors.w), factors.x.dtype
    n_items = n_others if by_user else n_rows
    _check_tables(side, n_others, n_items, factors)
    mu = jnp.broadcast_to(jnp.asarray(0.0 if factors.mu is None else factors.mu, dtype), (n_items,))
    strength, bias_strength = per_side(l2)[0 if by_user else 1], per_side(l2_bias)[0 if by_user else 1]
    per_row = lambda strength: jnp.broadcast_to(jnp.asarray(strength, dtype), (n_rows,))
    row_l2 = jnp.broadcast_to(per_row(strength)[:, None], (n_rows, features.shape[1]))
    row_l2_with_bias = jnp.concatenate([row_l2, per_row(bias_strength)[:, None]], axis=1)
    append = lambda table, bias: jnp.concatenate([table, bias[:, None]], axis=1)
    if by_user:
        item_offset = mu if factors.c is None else factors.c + mu
        return RowProblem(features, append(factors.w, factors.b), row_l2_with_bias, True, item_offset)
    if factors.c is None:
        return RowProblem(features, factors.x, row_l2, False, factors.b, mu)
    return RowProblem(features, append(factors.x, factors.c), row_l2_with_bias, True, factors.b, mu)


def _check_tables(side: str, n_others: int, n_items: int, factors: Factors) -> None:
    features, others = (factors.x, "items") if side == "user" else (factors.w, "users")
    if n_others != len(features):
        raise ValueError(
            f"rows: expected ratings over the {len(features)} {others} of the factors, got {n_others}. "
            "Give Ratings.from_columns the ids that the model was trained with."
        )
    if factors.mu is not None and (shape := jnp.shape(factors.mu)) not in ((), (n_items,)):
        raise ValueError(
            f"mu: expected a number or one per item ({n_items}), got {shape[0] if len(shape) == 1 else shape}."
        )


def _leave_one_out_errors(bucket: Bucket, problem: RowProblem) -> Array:
    """The errors prediction - y of a bucket's ratings, each predicted from its row's other ratings; [r, length]."""

    def row_errors(row: Lists, l2: Array) -> Array:
        x = gather(problem.features, row.other)
        x = ridge.with_one(x) if problem.intercept else x
        args = x, row.y, row.where, row.weights
        return ridge.leave_one_out_predictions(ridge.factorize(ridge.normal_equations(*args), l2), *args) - row.y

    length, k = bucket.other.shape[1], problem.l2.shape[1]
    rows = batched_ridge.padded_lists(bucket, problem), gather(problem.l2, bucket.row)

    def errors(rows: tuple[Lists, Array], *, platform: Platform) -> Array:
        return by_chunks(lambda chunk: jax.vmap(row_errors)(*chunk), rows, rows_per_chunk(max(length, k) * k, platform))

    return by_platform(errors, rows)
