"""Alternating least squares: ridge regressions of every user, the items held fixed, then of every item.

One sweep does both. The biases are part of the regressions: a user's (w, b) regress y - c - mu on (x, 1), an item's
(x, c) regress y - b - mu on (w, 1). Each half minimizes the joint cost in its own parameters, so the cost never rises.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import jax
from jax import Array
from jaxtyping import PRNGKeyArray

from jaxrec.checkpoints import Checkpoint, checkpointed
from jaxrec.losses.penalty import L2, l2_penalty, per_side
from jaxrec.prediction import check_factors
from jaxrec.solvers._fold_in import side_objective, solve_side, solve_side_dense
from jaxrec.solvers.checks import check_dense, in_float32, like
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
from jaxrec.types import Dense, Factors, Ratings, Rows

__all__ = ["als", "dense_sweep", "sweep"]


def als(
    train: Ratings | TwoSides,
    *,
    l2: L2,
    l2_bias: L2 = 0.0,
    rank: int | None = None,
    init: Factors | None = None,
    key: PRNGKeyArray | None = None,
    sweeps: int = 20,
    tol: float = 1e-4,
    cg_steps: int | None = None,
    callback: Callback | None = None,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ALSResult:
    """Minimizes the joint cost (squared error) by sweeps of closed-form solutions.

    Args:
        train: the ratings. Or, prepared once for several calls or laid out over devices, the same ratings as a pair of
            Rows: (data.rows(ratings, "user"), data.rows(ratings, "item")).
        l2: a number > 0, or a pair (users', items') of numbers or of one number per row (l2 times the row's rating
            count is the frequency scaling of ALS-WR).
        l2_bias: the same for b and c; 0 leaves them unpenalized.
        rank: the number of factors; their initial values are random, with the mean rating as mu.
        init: the initial factors, instead of `rank`, such as `models.init` or an earlier result. Only x, c and mu
            matter, because w and b are solved for first; with `cg_steps`, w and b are the warm start.
        key: for the random initial factors; None: jax.random.key(0).
        sweeps: the maximum number of sweeps.
        tol: stop when a sweep lowers the objective by less than this, relative to the objective.
        cg_steps: Number of conjugate-gradient steps per row, warm-started at its current value; None solves each row
            exactly. At 20M ratings and d = 64 a sweep of 3 steps takes 2.2 s instead of 6, and three such sweeps lower
            J more than two exact ones; 10 steps are the exact sweep to six digits of J.
        callback: callback(step, factors, info) after every sweep, steps from 1. Return True to stop.
        checkpoint: a folder, or a `Checkpoint`, where the factors are saved after some sweeps. The same call continues
            from there after the process was killed; on a CPU with the same bits as without the interruption. `sweeps`
            may grow; any other data or settings are refused. The callback is not called again for sweeps done before.
        progress: show a progress bar.

    Returns:
        (factors, info). The factors have `init`'s types, but are computed in float32 at least; `info.trace` is the
        joint cost before the first and after each sweep.

    Raises:
        ValueError: neither or both of `rank` and `init` are passed; the Rows are of the wrong side, do not fit the
            tables of `init`, or hold different ratings; the parts of `init` do not fit one another; a strength is not
            finite and positive (l2_bias: or 0), or is neither a number nor one per row; the checkpoint is of another
            run, or has done more sweeps.
        FloatingPointError: the objective is no longer finite.

    Source: Zhou et al. 2008, Large-scale parallel collaborative filtering for the Netflix Prize.

    >>> from jaxrec import data
    >>> ratings = data.synthetic.low_rank(50, 40, 600, rng=0).ratings
    >>> factors, info = als(ratings, rank=2, l2=1.0, progress=False)
    >>> factors.w.shape, bool(info.trace[-1] < info.trace[0])
    ((50, 2), True)
    """
    init = make_init(train, init, rank, key)
    by_user, by_item = as_two_sides(train)
    check_sides(by_user, by_item, init, sweeps)
    check_strengths(init, l2, l2_bias)
    start = by_user.replicate(in_float32(init))
    options: dict[str, Any] = {"l2": l2, "l2_bias": l2_bias, "cg_steps": cg_steps}

    def step(factors: Factors, refit: bool) -> SweepResult:
        return _sweep(factors, by_user, by_item, **options, refit=refit)

    before = _cost(start, by_user, l2=l2, l2_bias=l2_bias)
    settings = {"run": "als", "train": (by_user, by_item), "init (or rank, key)": start, "tol": tol} | options
    with checkpointed(checkpoint, settings=settings, like=start) as run:
        factors, info = alternate(
            step, start, before, sweeps=sweeps, tol=tol, callback=callback, progress=progress, run=run
        )
    return ALSResult(like(factors, init), info)


def sweep(
    factors: Factors, by_user: Rows, by_item: Rows, *, l2: L2, l2_bias: L2 = 0.0, cg_steps: int | None = None
) -> SweepResult:
    """One sweep: (new factors, joint cost after it). Pure: it can be jitted, vmapped over l2 and differentiated.

    The cost is the objective of the items' solutions plus the users' penalty: no further pass over the ratings. Rows
    whose normal equations are too badly scaled for float32 (weights or penalties of 1 and 1e7 together) are only solved
    to the accuracy of these equations; `als` and `fold_in` refit such rows.

    Raises:
        ValueError: as `als`, except that the two sides are not checked to hold the same ratings.
    """
    check_tables(by_user, by_item, factors)
    check_strengths(factors, l2, l2_bias)
    return _sweep(factors, by_user, by_item, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps, refit=False)


def _sweep(factors: Factors, by_user: Rows, by_item: Rows, **options: Any) -> SweepResult:
    """Compiles one program per side if called eagerly: that takes XLA less memory than one program of both."""
    factors, _ = _half(factors, by_user, **options)
    return _half(factors, by_item, **options)


@partial(jax.jit, static_argnames=("cg_steps", "refit"))
def _half(factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2, cg_steps: int | None, refit: bool) -> SweepResult:
    """Solves one side. After the items' half, the objective plus the users' penalty is the joint cost."""
    factors, objective = solve_side(factors, rows, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps, refit=refit)
    return SweepResult(factors, objective + _users_penalty(factors, l2, l2_bias))


def dense_sweep(factors: Factors, ratings: Dense, *, l2: L2, l2_bias: L2 = 0.0) -> SweepResult:
    """`sweep` on a dense matrix: the same numbers, for small data.

    vmapped over members of a grid that share the ratings, it computes the normal equations of all members by one matrix
    product per side. Ten sweeps of 160 members on ml-100k at rank 8, including compilation, take 5.7 s one member at a
    time and 4.4 s eight at a time.

    Raises:
        ValueError: the ratings do not fit the factors' tables; factors or strengths as `als`.

    >>> from jaxrec import data, models
    >>> ratings = data.synthetic.low_rank(50, 40, 600, rng=0).ratings
    >>> init = models.init(50, 40, 2, key=jax.random.key(0), mu=3.5)
    >>> strengths = jax.numpy.array([1.0, 2.0, 4.0])
    >>> factors, costs = jax.vmap(lambda l2: dense_sweep(init, data.dense(ratings), l2=l2))(strengths)
    >>> factors.w.shape
    (3, 50, 2)
    """
    check_factors(factors)
    check_dense(ratings, len(factors.w), len(factors.x))
    check_strengths(factors, l2, l2_bias)
    return _dense_sweep(factors, ratings, l2=l2, l2_bias=l2_bias)


@jax.jit
def _dense_sweep(factors: Factors, ratings: Dense, *, l2: L2, l2_bias: L2) -> SweepResult:
    factors, _ = solve_side_dense(factors, ratings, "user", l2=l2, l2_bias=l2_bias)
    factors, objective = solve_side_dense(factors, ratings, "item", l2=l2, l2_bias=l2_bias)
    return SweepResult(factors, objective + _users_penalty(factors, l2, l2_bias))


def _users_penalty(factors: Factors, l2: L2, l2_bias: L2) -> Array:
    """The users' part of the penalty."""
    return l2_penalty(in_float32(factors), l2=(per_side(l2)[0], 0.0), l2_bias=(per_side(l2_bias)[0], 0.0))


@jax.jit
def _cost(factors: Factors, by_user: Rows, *, l2: L2, l2_bias: L2) -> Array:
    """`losses.cost`, which for rows on several devices would send every rating's ids to all of them."""
    items_penalty = l2_penalty(in_float32(factors), l2=(0.0, per_side(l2)[1]), l2_bias=(0.0, per_side(l2_bias)[1]))
    return side_objective(factors, by_user, l2=l2, l2_bias=l2_bias) + items_penalty
