"""What the solvers of the alternating family share: the data's two sides, the loop of sweeps, and their checks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from jaxrec.data import layouts
from jaxrec.losses.penalty import L2
from jaxrec.models.factors import init as init_factors
from jaxrec.prediction import check_factors
from jaxrec.solvers.checks import check_rows, check_strength
from jaxrec.types import Dense, Factors, Ratings, Rows, SolverInfo

__all__ = [
    "RISE",
    "ALSResult",
    "Callback",
    "SweepResult",
    "TwoSides",
    "alternate",
    "as_two_sides",
    "check_sides",
    "check_strengths",
    "check_tables",
    "make_init",
    "mean_rating",
]

# By how much of itself rounding may raise the objective.
RISE = 1e-5

# The same ratings as Rows of side 'user' and as Rows of side 'item'.
TwoSides = tuple[Rows, Rows]

# callback(step, state, info): after every sweep, from 1; True stops.
Callback = Callable[[int, Factors, SolverInfo], bool | None]


class ALSResult(NamedTuple):
    """What an alternating solver returns.

    Attributes:
        factors: the solution, in `init`'s types.
        info: how the solver ended; `info.trace` is the objective before the first and after each sweep.
    """

    factors: Factors
    info: SolverInfo


class SweepResult(NamedTuple):
    """One sweep.

    Attributes:
        factors: the new factors.
        objective: [], the objective at them.
    """

    factors: Factors
    objective: Array


def as_two_sides(train: Ratings | TwoSides) -> TwoSides:
    """Ratings as Rows of both sides; a pair of Rows is returned as it is.

    Raises:
        ValueError: neither Ratings nor a pair of Rows.
    """
    if isinstance(train, Ratings):
        return layouts.rows(train, "user"), layouts.rows(train, "item")
    if not (isinstance(train, tuple) and len(train) == 2 and all(isinstance(side, Rows) for side in train)):
        raise ValueError(
            "train: expected Ratings, or a pair of Rows (data.rows(ratings, 'user'), data.rows(ratings, 'item')), got "
            f"{type(train).__name__}."
        )
    return train


def make_init(
    train: Ratings | TwoSides,
    init: Factors | None,
    rank: int | None,
    key: PRNGKeyArray | None,
    *,
    implicit: bool = False,
) -> Factors:
    """`init` if it is given; otherwise random factors of this rank, with the mean rating as mu (implicit: none).

    Raises:
        ValueError: neither or both of `init` and `rank`; a `key` beside `init`, which would not be used.
    """
    if (init is None) == (rank is None):
        raise ValueError(
            "expected either rank=, for a random start, or init=, factors to start from, got "
            + ("neither." if init is None else "both.")
        )
    if init is not None:
        if key is not None:
            raise ValueError("key: it draws a random start, and init= is given. Drop one of the two.")
        return init
    by_user = train if isinstance(train, Ratings) else train[0]
    sizes = (
        (by_user.n_users, by_user.n_items)
        if isinstance(by_user, Ratings)
        else (
            len(by_user.position),
            by_user.n_others,
        )
    )
    mu = None if implicit else mean_rating(train)
    assert rank is not None
    return init_factors(*sizes, rank, key=jax.random.key(0) if key is None else key, item_bias=not implicit, mu=mu)


def mean_rating(train: Ratings | Dense | TwoSides) -> float:
    """The (weighted) mean of all ratings, summed in float64 on the host.

    Raises:
        ValueError: no ratings, or none of positive weight.
    """

    def sums(value: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None) -> tuple[float, float]:
        y = np.asarray(value, np.float64)
        weight = np.ones(y.shape) if weights is None else np.asarray(weights, np.float64)
        if where is not None:
            y, weight = np.where(where, y, 0), np.where(where, weight, 0)
        return float(np.sum(weight * y)), float(np.sum(weight))

    if isinstance(train, Ratings):
        parts = [sums(train.value, None, train.weights)]
    else:
        layouts = (train,) if isinstance(train, Dense) else train[0].buckets
        parts = [sums(each.value, each.where, each.weights) for each in layouts]
    total, count = (sum(column) for column in zip(*parts, strict=True))
    if not count > 0:
        raise ValueError("train: expected ratings of positive weight, got none, and they have no mean.")
    return total / count


def alternate(
    step: Callable[[Factors, bool], tuple[Factors, Array]],
    init: Factors,
    before: Array,
    *,
    sweeps: int,
    tol: float,
    callback: Callback | None,
    progress: bool,
) -> ALSResult:
    """Sweeps until the objective falls by less than `tol` of it, as `als` says.

    step(factors, mend) -> (factors, objective). An objective that rises, or is no number, says that normal equations
    were lost in rounding: that sweep is made again, and all later ones, with such rows fitted anew (`mend`), which is
    compiled only then.

    Raises:
        FloatingPointError: the objective is no longer finite.
    """
    factors, trace, mend = init, [float(before)], False
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
            info = SolverInfo(abs(decrease) < tol, number, decrease, np.array(trace))  # rounding can let it rise
            stop = callback is not None and callback(number, factors, info)
            if info.converged or stop:
                break
    return ALSResult(factors, info)


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
    got, expected = (len(factors.w), len(factors.x)), (by_user.position.shape[0], by_item.position.shape[0])
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
