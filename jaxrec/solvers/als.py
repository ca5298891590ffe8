"""Alternating least squares: given the items, every user is a ridge regression; given the users, every item is.

One sweep is both. The biases are part of the rows: a user's (w, b) regress y - c - mu on (x, 1), an item's (x, c)
regress y - b - mu on (w, 1). Each half minimizes the joint cost in its own parameters, so the objective never rises.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from tqdm import tqdm

from jaxrec.losses.collaborative import cost
from jaxrec.losses.penalty import L2, of_factors, pair
from jaxrec.models.factors import check_factors
from jaxrec.solvers.checks import check_dense, check_rows, check_strength, in_float32, like
from jaxrec.solvers.one_side import solved, solved_densely
from jaxrec.types import Dense, Factors, Rows, Solution

# What rounding may raise the objective by, of it.
RISE = 1e-5

__all__ = ["als", "alternate", "check_sides", "check_strengths", "check_tables", "dense_sweep", "sweep"]


def als(
    by_user: Rows,
    by_item: Rows,
    init: Factors,
    *,
    l2: L2,
    l2_bias: L2 = 0.0,
    sweeps: int = 20,
    tol: float = 1e-4,
    cg_steps: int | None = None,
    callback: Callable[[int, Factors], bool | None] | None = None,
    progress: bool = True,
) -> tuple[Factors, Solution]:
    """Minimizes the joint cost (squared error) by sweeps of closed-form solutions.

    Args:
        by_user: the ratings as Rows of side 'user'.
        by_item: the same ratings as Rows of side 'item'.
        init: where to start, from `models.init`: x, c and mu count; w and b are solved for first.
        l2: a number > 0, or a pair (users', items') of numbers or of one number per row (l2 times the row's rating
            count is the frequency scaling of ALS-WR).
        l2_bias: the same for b and c; 0 leaves them free.
        sweeps: at most.
        tol: stop when a sweep lowers the objective by less than this share of it.
        cg_steps: None solves every row exactly; 3 take so many steps of conjugate gradients from what the row was. At
            20M ratings and d = 64 such a sweep takes 2.2 s in place of 6, and three bring J lower than two exact ones;
            10 steps are the exact sweep to six digits of J.
        callback: called after every sweep with its number and the factors; a true answer stops.
        progress: show a bar.

    Returns:
        The factors, in `init`'s types, though computed in float32 at least; and how it ended: `trace` is the joint
        cost before the first and after each sweep.

    Raises:
        ValueError: Rows of the wrong side, of other tables than `init`'s, or of other ratings than the other side's;
            an `init` whose parts do not fit; a strength that is not finite and positive (l2_bias: or 0), or neither a
            number nor one per row.
        FloatingPointError: the objective is no longer finite.

    Source: Zhou et al. 2008, Large-scale parallel collaborative filtering for the Netflix Prize.
    """
    check_sides(by_user, by_item, init, sweeps)
    check_strengths(init, l2, l2_bias)
    start = by_user.beside(in_float32(init))
    options: dict[str, Any] = {"l2": l2, "l2_bias": l2_bias, "cg_steps": cg_steps}
    step = lambda factors, mend: _sweep(factors, by_user, by_item, **options, mend=mend)
    before = _cost(start, by_user, l2=l2, l2_bias=l2_bias)
    factors, how = alternate(step, start, before, sweeps=sweeps, tol=tol, callback=callback, progress=progress)
    return like(factors, init), how


def alternate(
    step: Callable[[Factors, bool], tuple[Factors, Array]],
    init: Factors,
    before: Array,
    *,
    sweeps: int,
    tol: float,
    callback: Callable[[int, Factors], bool | None] | None,
    progress: bool,
) -> tuple[Factors, Solution]:
    """Sweeps until the objective falls by less than `tol` of it, as `als` says.

    step(factors, mend) -> (factors, objective). An objective that rises, or is no number, says that normal equations
    were lost in rounding: that sweep is made again, and all later ones, with such rows fitted anew (`mend`), which is
    compiled only then.

    Raises:
        FloatingPointError: the objective is no longer finite.
    """
    factors, trace, converged, decrease, mend = init, [float(before)], False, np.inf, False
    with tqdm(total=sweeps, desc="als", unit="sweep", disable=not progress) as bar:
        for number in range(1, sweeps + 1):
            found, objective = step(factors, mend)
            if not mend and not float(objective) <= trace[-1] + RISE * abs(trace[-1]) + RISE**2 * abs(trace[0]):
                mend = True  # rows are lost in rounding: from here on they are fitted anew
                found, objective = step(factors, mend)
            factors = found
            trace.append(float(objective))
            if not np.isfinite(trace[-1]):
                raise FloatingPointError(
                    f"sweep {number}: the objective is {trace[-1]} after {trace[-2]:.6g}. A row's equations are "
                    "singular in this precision: raise l2, or run in float64."
                )
            decrease = (trace[-2] - trace[-1]) / (abs(trace[-2]) or 1.0)
            bar.set_postfix(cost=f"{trace[-1]:.6g}")
            bar.update()
            stop = callback is not None and callback(number, factors)
            converged = abs(decrease) < tol  # rounding can let it rise by a hair
            if converged or stop:
                break
    return factors, Solution(converged, len(trace) - 1, decrease, np.array(trace))


def sweep(
    factors: Factors, by_user: Rows, by_item: Rows, *, l2: L2, l2_bias: L2 = 0.0, cg_steps: int | None = None
) -> tuple[Factors, Array]:
    """One sweep, (new factors, joint cost after it): pure, to be jitted, vmapped over l2, differentiated.

    The cost is what the items' solutions say they leave, and the users' penalty: no further pass over the ratings. Rows
    whose equations float32 loses (weights or penalties of 1 and 1e7 side by side) are solved as well as these say;
    `als` and `fold_in` fit such rows anew.

    Raises:
        ValueError: as `als`, but for the two sides' ratings, which are not compared.
    """
    check_tables(by_user, by_item, factors)
    check_strengths(factors, l2, l2_bias)
    return _sweep(factors, by_user, by_item, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps, mend=False)


def _sweep(factors: Factors, by_user: Rows, by_item: Rows, **options: Any) -> tuple[Factors, Array]:
    """Called eagerly, a program for each side: XLA compiles the two in less memory than one of both."""
    factors, _ = _half(factors, by_user, **options)
    return _half(factors, by_item, **options)


@partial(jax.jit, static_argnames=("cg_steps", "mend"))
def _half(
    factors: Factors, rows: Rows, *, l2: L2, l2_bias: L2, cg_steps: int | None, mend: bool
) -> tuple[Factors, Array]:
    """One side solved; of the items' the joint cost after it, for the users' penalty is known then."""
    factors, left = solved(rows, factors, l2=l2, l2_bias=l2_bias, cg_steps=cg_steps, mend=mend)
    return factors, left + _of_users(factors, l2, l2_bias)


def dense_sweep(factors: Factors, ratings: Dense, *, l2: L2, l2_bias: L2 = 0.0) -> tuple[Factors, Array]:
    """`sweep` on a dense matrix: the same numbers, for small data.

    vmapped over members of a grid that share the ratings, it makes all their normal equations by one matrix product a
    side. Ten sweeps of 160 members on ml-100k at rank 8, compilation included: 5.7 s in turn, 4.4 eight at once.

    Raises:
        ValueError: ratings of other tables than the factors'; factors or strengths as `als`.

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
def _dense_sweep(factors: Factors, ratings: Dense, *, l2: L2, l2_bias: L2) -> tuple[Factors, Array]:
    factors, _ = solved_densely("user", ratings, factors, l2=l2, l2_bias=l2_bias)
    factors, left = solved_densely("item", ratings, factors, l2=l2, l2_bias=l2_bias)
    return factors, left + _of_users(factors, l2, l2_bias)


def _of_users(factors: Factors, l2: L2, l2_bias: L2) -> Array:
    """The users' penalty."""
    return of_factors(in_float32(factors), l2=(pair(l2)[0], 0.0), l2_bias=(pair(l2_bias)[0], 0.0))


_cost = jax.jit(cost)


def check_sides(by_user: Rows, by_item: Rows, init: Factors, sweeps: int) -> None:
    """The same ratings from both sides, of the tables that there are; raises a ValueError otherwise.

    Counts, and the sums of ids, are compared as they are; sums of values and weights by what float64 rounds of them.
    """
    check_tables(by_user, by_item, init)
    users, items = _summary(by_user), _summary(by_item)
    if (users.weights is None) != (items.weights is None):
        side = "by_user" if users.weights is not None else "by_item"
        raise ValueError(f"by_user and by_item hold different ratings: only {side} has weights.")
    if (users.n, users.own, users.others) != (items.n, items.others, items.own):
        raise ValueError(f"by_user and by_item hold different ratings: {users.n} and {items.n}, or other pairs of ids.")
    for name, mine, theirs, scale in (
        ("values", users.values, items.values, users.scale),
        ("weights", users.weights or 0.0, items.weights or 0.0, users.weights or 0.0),
    ):
        if not abs(mine - theirs) <= 1e-9 * abs(scale):
            raise ValueError(
                f"by_user and by_item hold different ratings: {name} that sum to {mine:.9g} and {theirs:.9g}."
            )
    if sweeps < 1:
        raise ValueError(f"sweeps: expected at least 1, got {sweeps}.")


def check_tables(by_user: Rows, by_item: Rows, factors: Factors) -> None:
    """Rows of both sides, of the factors' tables, with ids that they have; raises a ValueError otherwise."""
    for name, rows, side in (("by_user", by_user, "user"), ("by_item", by_item, "item")):
        if rows.side != side:
            raise ValueError(
                f"{name}: expected Rows of side {side!r}, got {rows.side!r}; data.rows(ratings, {side!r})."
            )
    got, expected = (len(factors.w), len(factors.x)), (by_user.place.shape[0], by_item.place.shape[0])
    if got != expected or (by_user.n_others, by_item.n_others) != expected[::-1]:
        raise ValueError(f"init: expected factors of {expected} users and items, as the Rows have, got {got}.")
    check_factors(factors)
    if by_user.mesh != by_item.mesh:
        raise ValueError("by_user and by_item: expected the same devices=, got others.")
    check_rows(by_user)
    check_rows(by_item)


def check_strengths(factors: Factors, l2: L2, l2_bias: L2 = 0.0) -> None:
    """Finite, l2 positive, l2_bias not negative, each a number or one per row; raises a ValueError otherwise."""
    sizes = len(factors.w), len(factors.x)
    check_strength("l2", l2, *sizes)
    check_strength("l2_bias", l2_bias, *sizes, zero=True)


class _Summary(NamedTuple):
    """Sums over a side's ratings: how many, of their rows' ids and the others', of values and their sizes, weights."""

    n: int
    own: int
    others: int
    values: float
    scale: float
    weights: float | None


def _summary(rows: Rows) -> _Summary:
    """On the host, in float64 and int64: a second or so for 20M ratings."""
    count = own = others = 0
    values = scale = weights = 0.0
    for bucket in rows.buckets:
        where = np.asarray(bucket.where)
        value = np.asarray(bucket.value)[where].astype(np.float64)
        lengths = np.count_nonzero(where, axis=1)
        count += int(lengths.sum())
        own += int(lengths @ np.asarray(bucket.row, np.int64))
        others += int(np.asarray(bucket.other)[where].sum(dtype=np.int64))
        values, scale = values + float(value.sum()), scale + float(np.abs(value).sum())
        if bucket.weights is not None:
            weights += float(np.asarray(bucket.weights)[where].sum(dtype=np.float64))
    weighted = any(bucket.weights is not None for bucket in rows.buckets)
    return _Summary(count, own, others, values, scale, weights if weighted else None)
