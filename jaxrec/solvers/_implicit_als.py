"""Implicit feedback by alternating least squares: unobserved pairs count as 0, with a weight of their own.

With s(i,j) = w(j) . x(i) for item i and user j, and without biases, the objective is

    1/2 sum over observed of weight(i,j) (s(i,j) - value(i,j))^2  +  unobserved/2 sum over all pairs of s(i,j)^2
    + 1/2 sum over j of l2(j) ‖w(j)‖^2  +  1/2 sum over i of l2(i) ‖x(i)‖^2

The sum over all pairs costs nothing: for user j it is w(j)' G w(j), with one matrix G = X' X that all users share, so
a sweep is that of explicit ALS. `data.labels.confidence_weights` gives the values and weights of Hu, Koren and Volinsky
(confidence 1 + alpha r, with unobserved_weight=1), `frequency_scaled_l2` the strengths of Rendle et al.

Exact solutions take time proportional to rank^2 per observation and rank^3 per row; `cg_steps` and `block_size` are for
high ranks. ml-1m, rank 192, l2 = 0.007 scaled by frequency, unobserved_weight = 0.3: nine sweeps end at 272,922 with
one step of CG, at 272,926 and 272,930 with blocks of 32 and 64, which take many times as long. Rank 512: seven sweeps
of one step end at 272,645 (at 289,685 without eigenvectors). Confidence 40, l2 = 1, unobserved_weight = 1, rank 128:
one, two and three steps end at 1.88, 1.72 and 1.70 million. One side passes all blocks before the other one does; in
Rendle et al. 2021 the sides alternate within each block, and carry the predictions from one's order to the other's.

>>> from jaxrec import Ratings, models
>>> clicks = Ratings(user=[0, 0, 1, 1, 2], item=[0, 1, 0, 1, 2], value=[1, 1, 1, 1, 1], n_users=3, n_items=3)
>>> factors, info = implicit_als(clicks, rank=2, l2=0.01, unobserved_weight=0.1, progress=False)
>>> (models.predict_all(factors) > 0.5).astype(int).tolist()
[[1, 1, 0], [1, 1, 0], [0, 0, 1]]

Sources: Hu, Koren, Volinsky 2008, Collaborative filtering for implicit feedback datasets; Rendle et al. 2022,
Revisiting the performance of iALS on item recommendation benchmarks; Rendle, Krichene, Zhang, Koren 2021, iALS++:
speeding up matrix factorization with subspace optimization (blocks).
"""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.checkpoints import Checkpoint, checkpointed
from jaxrec.losses.penalty import L2, PerSide, half_squared_norm, per_side
from jaxrec.numerics import HIGHEST
from jaxrec.prediction import check_factors
from jaxrec.ratings import Ratings
from jaxrec.solvers import batched_ridge
from jaxrec.solvers._eigenbasis import solve_in_eigenbasis
from jaxrec.solvers.batched_ridge import RowProblem
from jaxrec.solvers.checks import OVERFLOW, check_finite, check_is_rows, check_rows, check_strength, in_float32, like
from jaxrec.solvers.common import (
    ALSResult,
    Callback,
    SweepResult,
    TwoSides,
    alternate,
    as_two_sides,
    check_sides,
    check_strengths,
    check_tables,
    make_init,
)
from jaxrec.types import Factors, Rows

__all__ = ["frequency_scaled_l2", "implicit_als", "implicit_cost", "implicit_fold_in", "implicit_sweep"]

# From this rank on, exact sweeps solve rows of few observations in the dual, where l observations take 2 l^2 d flops in
# place of 2 l d^2 + d^3 / 3. Of ml-20m's users two thirds have at most 128 observations.
DUAL_RANK = 128


def implicit_als(
    train: Ratings | TwoSides,
    *,
    l2: L2,
    unobserved_weight: float | Shaped[ArrayLike, ""] = 1.0,
    rank: int | None = None,
    init: Factors | None = None,
    key: PRNGKeyArray | None = None,
    sweeps: int = 20,
    tol: float = 1e-4,
    cg_steps: int | None = None,
    block_size: int | None = None,
    callback: Callback | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ALSResult:
    """Minimizes the module's objective by sweeps of closed-form solutions.

    Args:
        train: the observations; their values are the products' targets, 1 for clicks. Or the same observations as a
            pair of Rows, as in `als`.
        l2: a number > 0, or a pair (users', items') of numbers or of one number per row.
        unobserved_weight: the weight of the square of every pair's product, > 0.
        rank: the number of factors; their initial values are random.
        init: the initial factors, instead of `rank`, such as `models.init(..., item_bias=False)`. Only x matters,
            and w with `cg_steps` or `block_size`.
        key: for the random initial factors; None: jax.random.key(0).
        sweeps: the maximum number of sweeps.
        tol: stop when a sweep lowers the objective by less than this, relative to the objective.
        cg_steps: Number of conjugate-gradient steps per row, warm-started at its current value, with the eigenvectors
            of the Gram matrix that all rows share as coordinates. None solves each row exactly. At high ranks one to
            three steps are the fastest way to an objective; more for large weights of the observations.
        block_size: Number of coordinates per block, instead of `cg_steps`: every row is solved for one block after
            another, once each, the others held fixed; 32 to 64 is a good size. The fixed points are those of exact
            sweeps, and a block of all coordinates is an exact sweep.
        callback: callback(step, factors, info) after every sweep, steps from 1. Return True to stop.
        checkpoint: a folder, or a `Checkpoint`, where the factors are saved after some sweeps. The same call continues
            from there after the process was killed; on a CPU with the same bits as without the interruption. `sweeps`
            may grow; any other data or settings are refused. The callback is not called again for sweeps done before.
        progress: show a progress bar.

    Returns:
        (factors, info), as `als`; b is 0.

    Raises:
        ValueError: as `als`; `init` has item biases or means; unobserved_weight is not positive; block_size is not
            between 1 and the rank, or passed together with cg_steps.
        FloatingPointError: the objective is no longer finite.
    """
    init = make_init(train, init, rank, key, implicit=True)
    by_user, by_item = as_two_sides(train)
    check_sides(by_user, by_item, init, sweeps)
    check_strengths(init, l2)
    _check_unobserved_weight(unobserved_weight)
    _check_block_size(block_size, cg_steps, init)
    if init.c is not None or init.mu is not None:
        raise ValueError(
            "init: expected a model of products alone, models.init(..., item_bias=False) without mu, got c or mu."
        )
    start = by_user.replicate(in_float32(dataclasses.replace(init, b=jnp.zeros_like(init.b))))
    options: dict[str, Any] = {"l2": l2, "unobserved_weight": unobserved_weight}
    options |= {"cg_steps": cg_steps, "block_size": block_size}

    def step(factors: Factors, refit: bool) -> SweepResult:
        return _sweep(factors, by_user, by_item, **options, refit=refit)

    before = _cost(start, by_user, l2=l2, unobserved_weight=unobserved_weight)
    settings = (
        {"run": "implicit_als"} | options | {"train": (by_user, by_item), "init (or rank, key)": start, "tol": tol}
    )
    with checkpointed(checkpoint, settings=settings, like=start) as run:
        factors, info = alternate(
            step, start, before, sweeps=sweeps, tol=tol, callback=callback, progress=progress, run=run
        )
    return ALSResult(like(factors, init), info)


def implicit_fold_in(
    factors: Factors,
    rows: Rows,
    *,
    l2: L2,
    unobserved_weight: float | Shaped[ArrayLike, ""] = 1.0,
    cg_steps: int | None = None,
) -> Factors:
    """Solves every row of one side, the other side held fixed: half a sweep, or the factors of new users or items.

    A row without observations is 0.

    Args:
        factors: the model; only the other side's table is read, and with `cg_steps` the rows' own table.
        rows: the observations of the rows to solve; those of new users are over the items that the model knows.
        l2: as in training.
        unobserved_weight: as in training.
        cg_steps: as in `implicit_als`; only for rows that are in the model.

    Raises:
        ValueError: `rows` have another number of items (users) than the factors, or ids outside of their table; the
            factors' parts do not fit one another; l2 is not positive, or neither a number nor one per row;
            unobserved_weight is not positive; cg_steps is passed for new rows; a row's numbers exceed the type's range.
    """
    _check_side(factors, rows, l2, unobserved_weight)
    folded = _fold_in(factors, rows, l2=l2, unobserved_weight=unobserved_weight, cg_steps=cg_steps)
    check_finite("implicit_fold_in", folded.w if rows.side == "user" else folded.x, OVERFLOW)
    return folded


@partial(jax.jit, static_argnames="cg_steps")
def _fold_in(factors: Factors, rows: Rows, *, l2: L2, unobserved_weight: ArrayLike, cg_steps: int | None) -> Factors:
    return _solve_side(factors, rows, l2=l2, unobserved_weight=unobserved_weight, cg_steps=cg_steps, refit=True)[0]


def implicit_sweep(
    factors: Factors,
    by_user: Rows,
    by_item: Rows,
    *,
    l2: L2,
    unobserved_weight: float | Shaped[ArrayLike, ""] = 1.0,
    cg_steps: int | None = None,
    block_size: int | None = None,
) -> SweepResult:
    """One sweep: (new factors, objective after it). Pure: can be jitted, and vmapped over l2 and unobserved_weight.

    Raises:
        ValueError: as `implicit_als`, except that the two sides are not checked to hold the same observations.
    """
    check_tables(by_user, by_item, factors)
    check_strengths(factors, l2)
    _check_unobserved_weight(unobserved_weight)
    _check_block_size(block_size, cg_steps, factors)
    options: dict[str, Any] = {"l2": l2, "unobserved_weight": unobserved_weight}
    return _sweep(factors, by_user, by_item, **options, cg_steps=cg_steps, block_size=block_size, refit=False)


def _sweep(factors: Factors, by_user: Rows, by_item: Rows, **options: Any) -> SweepResult:
    """Compiles one program per side if called eagerly, as in `als`."""
    factors, _ = _half(factors, by_user, **options)
    return _half(factors, by_item, **options)


@partial(jax.jit, static_argnames=("cg_steps", "block_size", "refit"))
def _half(factors: Factors, rows: Rows, *, l2: L2, **options: Any) -> SweepResult:
    """Solves one side. After the items' half, the objective plus the users' penalty is that of the module."""
    factors, objective = _solve_side(factors, rows, l2=l2, **options)
    return SweepResult(factors, objective + half_squared_norm(in_float32(factors.w), per_side(l2)[0]))


def implicit_cost(
    factors: Factors, rows: Rows, *, l2: L2, unobserved_weight: float | Shaped[ArrayLike, ""] = 1.0
) -> Float[Array, ""]:
    """The module's objective, in float32 at least. The rows may be of either side.

    Raises:
        ValueError: the rows or their ids do not fit the factors' tables; factors or strengths as `implicit_als`.
    """
    _check_side(factors, rows, l2, unobserved_weight)
    if (got := len(factors.w if rows.side == "user" else factors.x)) != len(rows.position):
        raise ValueError(f"factors: expected a table of {len(rows.position)} rows, as `rows` has, got {got}.")
    return _cost(factors, rows, l2=l2, unobserved_weight=unobserved_weight)


@jax.jit
def _cost(factors: Factors, rows: Rows, *, l2: L2, unobserved_weight: ArrayLike) -> Array:
    factors = in_float32(factors)
    unobserved_weight = jnp.asarray(unobserved_weight, factors.x.dtype)
    user_l2, item_l2 = per_side(l2)
    by_user = rows.side == "user"
    params, features = (factors.w, factors.x) if by_user else (factors.x, factors.w)
    all_pairs = jnp.sum(_gram(factors.w) * _gram(factors.x))  # sum over all pairs of (w . x)^2
    total = unobserved_weight * all_pairs / 2
    for strength, table in ((user_l2, factors.w), (item_l2, factors.x)):
        total = total + half_squared_norm(table, strength)
    no_penalty = jnp.zeros(params.shape, params.dtype)  # the rows' penalty is in `total` already
    return total + batched_ridge.objective_at(rows, RowProblem(features, params, no_penalty, intercept=False))


def frequency_scaled_l2(
    ratings: Ratings, l2: float, *, unobserved_weight: float = 1.0, exponent: float = 1.0
) -> PerSide:
    """Strengths that grow with a row's count: l2 (count(row) + unobserved_weight n_others)^exponent, for each side.

    n_others is the number of items for a user's row, and of users for an item's row.

    Raises:
        ValueError: l2 or unobserved_weight is not finite and positive, or the exponent is not finite.

    Source: Rendle et al. 2022, where an exponent of 1 is best.
    """
    if not (0 < l2 < np.inf and 0 < unobserved_weight < np.inf and np.isfinite(exponent)):
        raise ValueError(
            f"expected finite l2 and unobserved_weight > 0 and a finite exponent, got {l2} and {unobserved_weight}, "
            f"{exponent}."
        )

    def strengths(ids: np.ndarray, n_rows: int, n_others: int) -> Array:
        count = np.bincount(ids, minlength=n_rows)
        return jnp.asarray(l2 * (count + unobserved_weight * n_others) ** exponent, jnp.float32)

    n_users, n_items = ratings.n_users, ratings.n_items
    return PerSide(strengths(ratings.user, n_users, n_items), strengths(ratings.item, n_items, n_users))


def _check_side(factors: Factors, rows: Rows, l2: L2, unobserved_weight: ArrayLike) -> None:
    check.factors("factors", factors)
    check_is_rows(rows)
    by_user, n_rows = rows.side == "user", len(rows.position)
    features = factors.x if by_user else factors.w
    no_bias = jnp.zeros(np.shape(factors.w)[:1])
    check_factors(dataclasses.replace(factors, b=no_bias))  # b is not read, so it is not checked
    if rows.n_others != len(features):
        raise ValueError(
            f"rows: expected observations over the {len(features)} {'items' if by_user else 'users'} of the factors, "
            f"got {rows.n_others}. Give Ratings.from_columns the ids that the model was trained with."
        )
    check_rows(rows)
    check_strength("l2", l2, *((n_rows, rows.n_others) if by_user else (rows.n_others, n_rows)))
    _check_unobserved_weight(unobserved_weight)


def _check_unobserved_weight(unobserved_weight: ArrayLike) -> None:
    is_number = np.ndim(unobserved_weight) == 0
    if not (is_number and (check.traced(unobserved_weight) or 0 < float(np.asarray(unobserved_weight)) < np.inf)):
        raise ValueError(f"unobserved_weight: expected a finite number > 0, got {unobserved_weight}.")


def _check_block_size(block_size: int | None, cg_steps: int | None, factors: Factors) -> None:
    """Raises a ValueError where the blocks are no blocks of the factors' coordinates."""
    if block_size is None:
        return
    if cg_steps is not None:
        raise ValueError(
            f"cg_steps, block_size: expected at most one of them, got {cg_steps} and {block_size}. Rows are solved by "
            "conjugate gradients or by blocks of coordinates, and exactly without both."
        )
    rank = factors.x.shape[1]
    if not 1 <= check.whole_number("block_size", block_size) <= rank:
        raise ValueError(f"block_size: expected a number of the factors' {rank} coordinates, got {block_size}.")


def _solve_side(
    factors: Factors,
    rows: Rows,
    *,
    l2: L2,
    unobserved_weight: ArrayLike,
    cg_steps: int | None,
    block_size: int | None = None,
    refit: bool,
) -> tuple[Factors, Array]:
    """Like `implicit_fold_in`, and also returns the module's objective there, without the other side's penalty.

    `refit` as in `batched_ridge.solve`.
    """
    by_user, wide = rows.side == "user", in_float32(factors)
    warm_start, features = (wide.w, wide.x) if by_user else (wide.x, wide.w)
    strength = jnp.asarray(per_side(l2)[0 if by_user else 1], warm_start.dtype)
    shape = len(rows.position), warm_start.shape[1]
    row_l2 = jnp.broadcast_to(strength[:, None] if strength.ndim else strength, shape)
    shared_gram = jnp.asarray(unobserved_weight, warm_start.dtype) * _gram(features)
    problem = RowProblem(features, warm_start, row_l2, intercept=False, shared_gram=shared_gram)
    exactly = cg_steps is None and block_size is None
    if exactly and (refit or not _has_short_rows(rows, rank=shape[1])):
        v, objective = batched_ridge.solve(rows, problem, None, refit=refit)
    else:
        v, objective = solve_in_eigenbasis(rows, problem, cg_steps, block_size)
    if by_user:
        return dataclasses.replace(factors, w=like(v, factors.w), b=jnp.zeros(len(v), factors.b.dtype)), objective
    return dataclasses.replace(factors, x=like(v, factors.x)), objective


def _has_short_rows(rows: Rows, rank: int) -> bool:
    """Whether exact solutions gain from the eigenbasis, where the penalty is diagonal: short rows take the dual."""
    return rank >= DUAL_RANK and any(2 * bucket.other.shape[1] <= rank for bucket in rows.buckets)


def _gram(table: Array) -> Array:
    return jnp.matmul(table.T, table, precision=HIGHEST)
