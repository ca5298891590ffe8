"""Implicit feedback by alternating least squares: what was not observed counts as 0, with a weight of its own.

For a user j, an item i and the product s(i,j) = w(j) . x(i), without biases, minimized is

    1/2 sum over observed of weight(i,j) (s(i,j) - value(i,j))^2  +  unobserved/2 sum over all pairs of s(i,j)^2
    + 1/2 sum over j of l2(j) ‖w(j)‖^2  +  1/2 sum over i of l2(i) ‖x(i)‖^2

The sum over all pairs costs nothing: it is w(j)' G w(j) with one matrix G = X' X that all users share, so a sweep is
that of explicit ALS. `data.labels.confidence` gives the values and weights of Hu, Koren and Volinsky (confidence
1 + alpha r, with unobserved = 1), `frequency_scaled` the strengths of Rendle et al.

>>> import jax
>>> from jaxrec import Ratings, data, models
>>> clicks = Ratings(user=[0, 0, 1, 1, 2], item=[0, 1, 0, 1, 2], value=[1, 1, 1, 1, 1], n_users=3, n_items=3)
>>> rows = data.rows(clicks, "user"), data.rows(clicks, "item")
>>> init = models.init(3, 3, 2, key=jax.random.key(0), item_bias=False)
>>> factors, how = implicit_als(*rows, init, l2=0.01, unobserved=0.1, progress=False)
>>> (models.predict_all(factors) > 0.5).astype(int).tolist()
[[1, 1, 0], [1, 1, 0], [0, 0, 1]]

Sources: Hu, Koren, Volinsky 2008, Collaborative filtering for implicit feedback datasets; Rendle et al. 2022,
Revisiting the performance of iALS on item recommendation benchmarks.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxrec import check
from jaxrec.losses.penalty import L2, half_squared_norm, pair
from jaxrec.models.factors import check_factors
from jaxrec.ratings import Ratings
from jaxrec.solvers import regressions
from jaxrec.solvers.als import alternate, check_sides, check_strengths, check_tables
from jaxrec.solvers.checks import check_finite, check_rows, check_strength, in_float32, like
from jaxrec.solvers.one_side import OVERFLOW
from jaxrec.solvers.regressions import Side
from jaxrec.types import Factors, Rows, Solution

__all__ = ["frequency_scaled", "implicit_als", "implicit_cost", "implicit_fold_in", "implicit_sweep"]

HIGHEST = jax.lax.Precision.HIGHEST


def implicit_als(
    by_user: Rows,
    by_item: Rows,
    init: Factors,
    *,
    l2: L2,
    unobserved: float | Float[Array, ""] = 1.0,
    sweeps: int = 20,
    tol: float = 1e-4,
    cg_steps: int | None = None,
    callback: Callable[[int, Factors], bool | None] | None = None,
    progress: bool = True,
) -> tuple[Factors, Solution]:
    """Minimizes the module's objective by sweeps of closed-form solutions.

    Args:
        by_user: the observations as Rows of side 'user'; values are what products are pulled to, 1 for clicks.
        by_item: the same as Rows of side 'item'.
        init: where to start, from `models.init(..., item_bias=False)`: only x counts, w too with cg_steps.
        l2: a number > 0, or a pair (users', items') of numbers or of one number per row.
        unobserved: the weight of every pair's square, > 0.
        sweeps: at most.
        tol: stop when a sweep lowers the objective by less than this share of it.
        cg_steps: None solves every row exactly; 3 takes so many steps of conjugate gradients from what the row was.
        callback: called after every sweep with its number and the factors; a true answer stops.
        progress: show a bar.

    Returns:
        The factors (b is 0), in `init`'s types, and how it ended: `trace` is the objective before the first and after
        each sweep.

    Raises:
        ValueError: as `als`; a model with item biases or means; unobserved that is not positive.
        FloatingPointError: the objective is no longer finite.
    """
    check_sides(by_user, by_item, init, sweeps)
    check_strengths(init, l2)
    _check_unobserved(unobserved)
    if init.c is not None or init.mu is not None:
        raise ValueError("init: expected a model of products alone, models.init(..., item_bias=False) without mu.")
    start = by_user.beside(in_float32(dataclasses.replace(init, b=jnp.zeros_like(init.b))))
    options: dict[str, Any] = {"l2": l2, "unobserved": unobserved, "cg_steps": cg_steps}
    step = lambda factors, mend: _sweep(factors, by_user, by_item, **options, mend=mend)
    before = _cost(start, by_user, l2=l2, unobserved=unobserved)
    factors, how = alternate(step, start, before, sweeps=sweeps, tol=tol, callback=callback, progress=progress)
    return like(factors, init), how


def implicit_fold_in(
    rows: Rows, factors: Factors, *, l2: L2, unobserved: float | Float[Array, ""] = 1.0, cg_steps: int | None = None
) -> Factors:
    """Every row of one side solved, given the other side: half a sweep, and how new users or items come in.

    A row without observations gets 0.

    Args:
        rows: the observations of these rows; of new users, over the items that the model knows.
        factors: the model; only the other side's table is read, with cg_steps the rows' own too.
        l2: as in training.
        unobserved: as in training.
        cg_steps: as in `implicit_als`; for rows that are in the model.

    Raises:
        ValueError: rows over another number of items (users) than the factors have, or ids that they have not; factors
            whose parts do not fit; l2 that is not positive or neither a number nor one per row; unobserved that is not
            positive; cg_steps for new rows; a row whose numbers are beyond the type's range.
    """
    _check_side(rows, factors, l2, unobserved)
    found = _fold_in(rows, factors, l2=l2, unobserved=unobserved, cg_steps=cg_steps)
    check_finite("implicit_fold_in", found.w if rows.side == "user" else found.x, OVERFLOW)
    return found


@partial(jax.jit, static_argnames="cg_steps")
def _fold_in(rows: Rows, factors: Factors, *, l2: L2, unobserved: float | Array, cg_steps: int | None) -> Factors:
    return _solved(rows, factors, l2=l2, unobserved=unobserved, cg_steps=cg_steps, mend=True)[0]


def implicit_sweep(
    factors: Factors,
    by_user: Rows,
    by_item: Rows,
    *,
    l2: L2,
    unobserved: float | Float[Array, ""] = 1.0,
    cg_steps: int | None = None,
) -> tuple[Factors, Array]:
    """One sweep, (new factors, objective after it): pure, to be jitted, vmapped over l2 and unobserved.

    Raises:
        ValueError: as `implicit_als`, but for the two sides' observations, which are not compared.
    """
    check_tables(by_user, by_item, factors)
    check_strengths(factors, l2)
    _check_unobserved(unobserved)
    return _sweep(factors, by_user, by_item, l2=l2, unobserved=unobserved, cg_steps=cg_steps, mend=False)


def _sweep(factors: Factors, by_user: Rows, by_item: Rows, **options: Any) -> tuple[Factors, Array]:
    """Called eagerly, a program for each side, as in `als`."""
    factors, _ = _half(factors, by_user, **options)
    return _half(factors, by_item, **options)


@partial(jax.jit, static_argnames=("cg_steps", "mend"))
def _half(
    factors: Factors, rows: Rows, *, l2: L2, unobserved: float | Array, cg_steps: int | None, mend: bool
) -> tuple[Factors, Array]:
    """One side solved; of the items' the objective after it, for the users' penalty is known then."""
    factors, left = _solved(rows, factors, l2=l2, unobserved=unobserved, cg_steps=cg_steps, mend=mend)
    return factors, left + half_squared_norm(in_float32(factors.w), pair(l2)[0])


def implicit_cost(
    factors: Factors, rows: Rows, *, l2: L2, unobserved: float | Float[Array, ""] = 1.0
) -> Float[Array, ""]:
    """The module's objective; rows may be of either side. In float32 at least.

    Raises:
        ValueError: rows of other tables than the factors', or ids that they have not; factors or strengths as
            `implicit_als`.
    """
    _check_side(rows, factors, l2, unobserved)
    if (got := len(factors.w if rows.side == "user" else factors.x)) != len(rows.place):
        raise ValueError(f"factors: expected a table of the {len(rows.place)} rows, got {got}.")
    return _cost(factors, rows, l2=l2, unobserved=unobserved)


@jax.jit
def _cost(factors: Factors, rows: Rows, *, l2: L2, unobserved: float | Array) -> Array:
    factors = in_float32(factors)
    of_users, of_items = pair(l2)
    by_user = rows.side == "user"
    own, theirs = (factors.w, factors.x) if by_user else (factors.x, factors.w)
    everywhere = jnp.sum(_gram(factors.w) * _gram(factors.x))  # sum over all pairs of (w . x)^2
    total = unobserved * everywhere / 2
    for strength, table in ((of_users, factors.w), (of_items, factors.x)):
        total = total + half_squared_norm(table, strength)
    none = jnp.zeros(own.shape, own.dtype)  # no penalty beside the observed errors
    return total + regressions.left(rows, Side(theirs, own, none, intercept=False))


def frequency_scaled(
    ratings: Ratings, l2: float, *, unobserved: float = 1.0, exponent: float = 1.0
) -> tuple[Float[Array, " n_users"], Float[Array, " n_items"]]:
    """Strengths that grow with how much is known: l2 (count(row) + unobserved n_others)^exponent, (users', items').

    Raises:
        ValueError: l2 or unobserved that is not positive.

    Source: Rendle et al. 2022, where an exponent of 1 is best.
    """
    if not (0 < l2 < np.inf and 0 < unobserved < np.inf and np.isfinite(exponent)):
        raise ValueError(
            f"expected finite l2 and unobserved > 0 and a finite exponent, got {l2} and {unobserved}, {exponent}."
        )
    strength = lambda ids, n, others: jnp.asarray(
        l2 * (np.bincount(ids, minlength=n) + unobserved * others) ** exponent, jnp.float32
    )
    n_users, n_items = ratings.n_users, ratings.n_items
    return strength(ratings.user, n_users, n_items), strength(ratings.item, n_items, n_users)


def _check_side(rows: Rows, factors: Factors, l2: L2, unobserved: float | Array) -> None:
    by_user, n_rows = rows.side == "user", len(rows.place)
    theirs = factors.x if by_user else factors.w
    unread = jnp.zeros(np.shape(factors.w)[:1])  # b is 0 whatever stands there
    check_factors(dataclasses.replace(factors, b=unread))
    if rows.n_others != len(theirs):
        raise ValueError(
            f"rows: expected observations over the {len(theirs)} {'items' if by_user else 'users'} of the factors, "
            f"got {rows.n_others}. Give Ratings.from_columns the ids that the model was trained with."
        )
    check_rows(rows)
    check_strength("l2", l2, *((n_rows, rows.n_others) if by_user else (rows.n_others, n_rows)))
    _check_unobserved(unobserved)


def _check_unobserved(unobserved: float | Array) -> None:
    number = np.ndim(unobserved) == 0
    if not (number and (check.traced(unobserved) or 0 < float(unobserved) < np.inf)):
        raise ValueError(f"unobserved: expected a finite number > 0, got {unobserved}.")


def _solved(
    rows: Rows, factors: Factors, *, l2: L2, unobserved: float | Array, cg_steps: int | None, mend: bool
) -> tuple[Factors, Array]:
    by_user, wide = rows.side == "user", in_float32(factors)
    own, theirs = (wide.w, wide.x) if by_user else (wide.x, wide.w)
    strength = jnp.asarray(pair(l2)[0 if by_user else 1], own.dtype)
    shape = len(rows.place), own.shape[1]
    precision = jnp.broadcast_to(strength[:, None] if strength.ndim else strength, shape)
    shared = jnp.asarray(unobserved, own.dtype) * _gram(theirs)
    side = Side(theirs, own, precision, intercept=False, shared=shared)
    v, left = regressions.solve(rows, side, cg_steps, mend=mend)
    if by_user:
        return dataclasses.replace(factors, w=like(v, factors.w), b=jnp.zeros(len(v), factors.b.dtype)), left
    return dataclasses.replace(factors, x=like(v, factors.x)), left


def _gram(table: Array) -> Array:
    return jnp.matmul(table.T, table, precision=HIGHEST)
