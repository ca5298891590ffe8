"""Shared parts of the alternating solvers: ratings from both sides, the loop of sweeps, and their checks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from jaxrec import check
from jaxrec.checkpoints import Run
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
    "check_train",
    "make_init",
    "mean_rating",
]

# The relative increase of the objective that rounding alone may cause.
RISE = 1e-5

# The same ratings as Rows of side 'user' and as Rows of side 'item'.
TwoSides = tuple[Rows, Rows]

# callback(step, state, info): called after every sweep, steps from 1. Return True to stop.
Callback = Callable[[int, Factors, SolverInfo], bool | None]


class ALSResult(NamedTuple):
    """Result of an alternating solver.

    Attributes:
        factors: the solution, in the types of `init`.
        info: how the solver ended; `info.trace` is the objective before the first and after each sweep.
    """

    factors: Factors
    info: SolverInfo


class SweepResult(NamedTuple):
    """Result of one sweep.

    Attributes:
        factors: the new factors.
        objective: [], the objective at the new factors.
    """

    factors: Factors
    objective: Array


def as_two_sides(train: Ratings | TwoSides) -> TwoSides:
    """Converts Ratings to Rows of both sides; returns a pair of Rows unchanged.

    Raises:
        ValueError: `train` is neither Ratings nor a pair of Rows.
    """
    check_train(train)
    return (layouts.rows(train, "user"), layouts.rows(train, "item")) if isinstance(train, Ratings) else train


def check_train(train: Ratings | TwoSides) -> None:
    """Raises a ValueError where `train` is neither Ratings nor a pair of Rows."""
    if isinstance(train, Ratings):
        return
    if not (isinstance(train, tuple | list) and len(train) == 2 and all(isinstance(side, Rows) for side in train)):
        raise ValueError(
            "train: expected Ratings, or a pair of Rows (data.rows(ratings, 'user'), data.rows(ratings, 'item')), got "
            f"{type(train).__name__}."
        )


def make_init(
    train: Ratings | TwoSides,
    init: Factors | None,
    rank: int | None,
    key: PRNGKeyArray | None,
    *,
    implicit: bool = False,
) -> Factors:
    """Returns `init`, or random factors of the given rank with the mean rating as mu (no mu if `implicit`).

    Raises:
        ValueError: `train` is neither Ratings nor a pair of Rows; neither or both of `init` and `rank` are passed; a
            `key` is passed with `init`, which ignores it.
    """
    check.random_key(key, optional=True)
    check_train(train)
    if (init is None) == (rank is None):
        raise ValueError(
            "expected either rank=, for random initial factors, or init=, the initial factors, got "
            + ("neither." if init is None else "both.")
        )
    if init is not None:
        if key is not None:
            raise ValueError("key: expected None with init=, got a key. Only random initial factors use it: drop one.")
        return init
    if isinstance(train, Ratings):
        sizes = train.n_users, train.n_items
    else:
        sizes = len(train[0].position), train[0].n_others
    mu = None if implicit else mean_rating(train)
    assert rank is not None
    return init_factors(*sizes, rank, key=jax.random.key(0) if key is None else key, item_bias=not implicit, mu=mu)


def mean_rating(train: Ratings | Dense | TwoSides) -> float:
    """The (weighted) mean of all ratings, summed in float64 on the host.

    Raises:
        ValueError: there are no ratings of positive weight.
    """

    def weighted_sums(value: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None) -> tuple[float, float]:
        y = np.asarray(value, np.float64)
        weight = np.ones(y.shape) if weights is None else np.asarray(weights, np.float64)
        if where is not None:
            y, weight = np.where(where, y, 0), np.where(where, weight, 0)
        return float(np.sum(weight * y)), float(np.sum(weight))

    if isinstance(train, Ratings):
        sums = [weighted_sums(train.value, None, train.weights)]
    else:
        blocks = (train,) if isinstance(train, Dense) else train[0].buckets
        sums = [weighted_sums(block.value, block.where, block.weights) for block in blocks]
    total, count = (sum(column) for column in zip(*sums, strict=True))
    if not count > 0:
        raise ValueError("train: expected ratings of positive weight, got none. Their mean is undefined.")
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
    run: Run,
) -> ALSResult:
    """Runs sweeps until the objective falls by less than `tol` relative to itself.

    If the objective rises or is NaN, some normal equations lost their precision to rounding. That sweep is repeated
    with `refit`, which solves such rows again from their features, and all later sweeps use it too. It is compiled only
    then.

    Args:
        step: step(factors, refit) -> (factors, objective), one sweep.
        init: the initial factors.
        before: the objective at `init`.
        sweeps: as in `als`.
        tol: as in `als`.
        callback: as in `als`.
        progress: as in `als`.
        run: where the factors are saved, or from where they are continued.

    Raises:
        ValueError: `sweeps` is less than the run has done.
        FloatingPointError: the objective is no longer finite.
    """
    factors, trace, refit, ended = init, [float(before)], False, False
    if run.saved is not None:
        factors, (trace, refit, ended) = run.saved.state, (run.saved.meta[name] for name in ("trace", "refit", "ended"))
        if len(trace) - 1 > sweeps:
            raise ValueError(
                f"sweeps: expected at least the {len(trace) - 1} that the checkpoint has done (they are included), got "
                f"{sweeps}."
            )
    with tqdm(total=sweeps, initial=len(trace) - 1, desc="als", unit="sweep", disable=not progress) as bar:
        for number in range(len(trace), sweeps + 1) if not ended else ():
            swept, objective = step(factors, refit)
            if not refit and not float(objective) <= trace[-1] + RISE * abs(trace[-1]) + RISE**2 * abs(trace[0]):
                refit = True  # rows lost their precision to rounding: refit them from here on
                swept, objective = step(factors, refit)
            factors = swept
            trace.append(float(objective))
            if not np.isfinite(trace[-1]):
                raise FloatingPointError(
                    f"sweep {number}: the objective is {trace[-1]} after {trace[-2]:.6g}. The equations of a row are "
                    "singular in this precision: raise l2, or run in float64."
                )
            bar.set_postfix(cost=f"{trace[-1]:.6g}")
            bar.update()
            info = _info(trace, tol)
            ended = bool(callback is not None and callback(number, factors, info)) or info.converged
            if ended or number == sweeps or run.due(number):
                run.save(number, factors, {"trace": trace, "refit": refit, "ended": ended})
            if ended:
                break
    return ALSResult(factors, _info(trace, tol))


def _info(trace: list[float], tol: float) -> SolverInfo:
    """How the solver stands after the sweeps of a trace."""
    decrease = (trace[-2] - trace[-1]) / (abs(trace[-2]) or 1.0)
    return SolverInfo(abs(decrease) < tol, len(trace) - 1, decrease, np.array(trace))  # abs: rounding can make it rise


def check_sides(by_user: Rows, by_item: Rows, init: Factors, sweeps: int) -> None:
    """Checks that both sides hold the same ratings and fit the factors' tables.

    Counts and sums of ids are compared exactly, sums of values and weights up to float64 rounding.

    Raises:
        ValueError: otherwise, or `sweeps` is below 1.
    """
    check_tables(by_user, by_item, init)
    users, items = _summary(by_user), _summary(by_item)
    if (users.weights is None) != (items.weights is None):
        side = "by_user" if users.weights is not None else "by_item"
        raise ValueError(f"by_user and by_item hold different ratings: only {side} has weights.")
    if (users.n, users.row_ids, users.other_ids) != (items.n, items.other_ids, items.row_ids):
        raise ValueError(f"by_user and by_item hold different ratings: {users.n} and {items.n}, or other pairs of ids.")
    for name, user_sum, item_sum, scale in (
        ("values", users.values, items.values, users.absolute_values),
        ("weights", users.weights or 0.0, items.weights or 0.0, users.weights or 0.0),
    ):
        if not abs(user_sum - item_sum) <= 1e-9 * abs(scale):
            raise ValueError(
                f"by_user and by_item hold different ratings: {name} that sum to {user_sum:.9g} and {item_sum:.9g}."
            )
    if sweeps < 1:
        raise ValueError(f"sweeps: expected at least 1, got {sweeps}.")


def check_tables(by_user: Rows, by_item: Rows, factors: Factors) -> None:
    """Checks that the Rows are of the right sides, and that their sizes and ids fit the factors' tables.

    Raises:
        ValueError: otherwise.
    """
    check.factors("factors", factors)
    for name, rows, side in (("by_user", by_user, "user"), ("by_item", by_item, "item")):
        if rows.side != side:
            raise ValueError(
                f"{name}: expected Rows of side {side!r}, got {rows.side!r}. Make them by data.rows(ratings, {side!r})."
            )
    got, expected = (len(factors.w), len(factors.x)), (by_user.position.shape[0], by_item.position.shape[0])
    if got != expected or (by_user.n_others, by_item.n_others) != expected[::-1]:
        raise ValueError(f"init: expected factors of {expected} users and items, as the Rows have, got {got}.")
    check_factors(factors)
    if by_user.mesh != by_item.mesh:
        raise ValueError("by_user and by_item: expected Rows made with the same devices=, got different ones.")
    check_rows(by_user)
    check_rows(by_item)


def check_strengths(factors: Factors, l2: L2, l2_bias: L2 = 0.0) -> None:
    """Checks that l2 is positive, l2_bias not negative, both finite, each a number or one number per row.

    Raises:
        ValueError: otherwise.
    """
    sizes = len(factors.w), len(factors.x)
    check_strength("l2", l2, *sizes)
    check_strength("l2_bias", l2_bias, *sizes, zero=True)


class _Summary(NamedTuple):
    """Sums over the ratings of one side's Rows; both sides have the same ones if they hold the same ratings.

    Attributes:
        n: the number of ratings.
        row_ids: the sum of the rows' ids: of users, where the side is 'user'.
        other_ids: the sum of the other side's ids: of items, where the side is 'user'.
        values: the sum of the values.
        absolute_values: the sum of their absolute values.
        weights: the sum of the weights; None without weights.
    """

    n: int
    row_ids: int
    other_ids: int
    values: float
    absolute_values: float
    weights: float | None


def _summary(rows: Rows) -> _Summary:
    """Sums on the host, in float64 and int64; takes about a second for 20M ratings."""
    n = row_ids = other_ids = 0
    values = absolute_values = weights = 0.0
    for bucket in rows.buckets:
        where = np.asarray(bucket.where)
        value = np.asarray(bucket.value)[where].astype(np.float64)
        lengths = np.count_nonzero(where, axis=1)
        n += int(lengths.sum())
        row_ids += int(lengths @ np.asarray(bucket.row, np.int64))
        other_ids += int(np.asarray(bucket.other)[where].sum(dtype=np.int64))
        values, absolute_values = values + float(value.sum()), absolute_values + float(np.abs(value).sum())
        if bucket.weights is not None:
            weights += float(np.asarray(bucket.weights)[where].sum(dtype=np.float64))
    weighted = any(bucket.weights is not None for bucket in rows.buckets)
    return _Summary(n, row_ids, other_ids, values, absolute_values, weights if weighted else None)
