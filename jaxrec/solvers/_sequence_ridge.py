r"""Ridge regression from decayed histories to the next item: a Markov chain of all orders, in closed form.

**The model.** A row of the regression is a position t of a user's sequence i(1), i(2), ... Its features are the unit
vectors e of the items before it, each weighed by its age, in one block of columns per weight function a(d, .)::

    H(t) = [h(1, t), ..., h(D, t)],    h(d, t) = sum over s < t of a(d, t - s) e[i(s)]
    Y(t) = e[i(t)],  or with `next_weight` f:  f(0) e[i(t)] + f(1) e[i(t + 1)] + ...

and the stacked matrices W minimize the squared error of the next item, among all items, over all positions::

    ‖H W - Y‖^2 + sum over features of l2 ‖W[feature, :]‖^2,    so    W = (H'H + diag(l2))^-1 H'Y

A user is scored by their H at the end, times W, the column of item i divided by count(i)^popularity_power.

**Why it is a Markov chain of all orders.** With a(1) = 1 and 0 for other ages, H'H is the diagonal of counts and H'Y the
counts of what follows what: W is the smoothed transition matrix of a Markov chain of first order. With the weights of
age k alone it is the chain of k steps. A kernel a mixes the chains of all orders, and the inverse does what counting
cannot: it takes out what two items of the history say twice, as a regression on correlated features does.

**Relatives.** With a decay of 1 and every item of the user as Y it would be EASE (Steck, "Embarrassingly shallow
autoencoders for sparse data", WWW 2019) without its zero diagonal, which is not needed where Y is no item of H. With
H'H replaced by its diagonal it is kernel smoothing: an average of what followed each item, weighed by age, which is
an item kNN. Linear attention computes the same H'Y in its state; here the keys are items and the memory is solved
instead of summed.

**How it is computed.** H has a row per event and is never built. An item p and an item q of one user, p first, lag = the
steps between them, meet in H'H in every row after q. The row m steps after q has a(d, lag + m) a(d', m), so the pair
adds a number that depends on the lag and on how many rows follow q only, a table::

    F(d, d', lag, n) = sum for m = 1 .. n of a(d, lag + m) a(d', m)

to H'H at (d, i(p)), (d', i(q)), and to the mirrored place. H'Y gets g(d, lag) = sum over t of a(d, t) f(lag - t). So one
pass over the pairs of events within the window, lag by lag, gives both: N * window additions per pair of blocks, for N
events. What remains is one Cholesky factorization, (D n_items)^3 / 3 products, and D^2 n_items^3 * 2 for W.

**Backward rows.** With `backward_weight` b every sequence is also read from its end to its beginning, as rows of weight
b: what preceded an item says something of what follows it where data is scarce. Their H'Y is the transpose, and their
H'H has the table at the number of events before p.

This model is jaxrec's own. On the splits of published tables it is compared in `experiments.published_sequences`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxrec import check
from jaxrec.data.layouts import free_memory
from jaxrec.events import Order, events_in_order
from jaxrec.gather import gather
from jaxrec.models.recency import (
    RecencyScorer,
    RecentItems,
    as_age_weight,
    recency_features,
    recency_scorer,
    recent_items,
)
from jaxrec.numerics import product
from jaxrec.types import Ratings

__all__ = [
    "LeftOutPositions",
    "SequenceSums",
    "leave_last_position_out",
    "sequence_ridge",
    "sequence_ridge_memory",
    "sequence_sums",
    "solve_sequence_ridge",
]


class SequenceSums(NamedTuple):
    """What the regression needs of the sequences, whatever l2 is.

    Attributes:
        gram: [D n_items, D n_items], H'H.
        cross: [D n_items, n_items], H'Y.
        count: [n_items], the number of events of each item.
    """

    gram: Array
    cross: Array
    count: Array


def sequence_ridge(
    train: Ratings,
    *,
    age_weight: Shaped[ArrayLike, "D window"],
    l2: Shaped[ArrayLike, "..."],
    next_weight: Sequence[float] | Shaped[ArrayLike, " horizon"] = (1.0,),
    backward_weight: Shaped[ArrayLike, ""] = 0.0,
    popularity_power: Shaped[ArrayLike, ""] = 0.0,
    order: Order = "time",
) -> RecencyScorer:
    """Fits the ridge regression from decayed histories to the next item; see the module's page for the derivation.

    Args:
        train: the events. Values are not used; a user may have an item several times; users with one event only
            count for the popularity of items.
        age_weight: [D, window], a(d, k) at [d, k - 1]: `models.recency.exponential` or `inverse_power`, or several
            of their rows. Memory and time grow with D^2 and D^3.
        l2: the penalty: a number, one per block [D], or one per feature [D, n_items]; > 0.
        next_weight: [horizon], f: what the events after a position count as its target; (1,) is the next alone.
        backward_weight: the weight of the sequences read backward, >= 0.
        popularity_power: scores of an item are divided by count^popularity_power; 0 leaves them.
        order: of a user's events, by 'time' or by 'position', as in `data.sequences`.

    Returns:
        The scorer, for `evaluation.evaluate`; it updates a user's state by an event in O(1).

    Raises:
        MemoryError: the matrices do not fit in the free memory (the message says how many bytes they take); nothing
            has been allocated.
        ValueError: weighted ratings; no user with two events; options that are not finite, or of another shape; l2 that
            is not positive, or too small for the precision; no times, with order='time'.

    >>> from jaxrec import models
    >>> user, item = [0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 0, 1]  # after 0 comes 1, thrice; after 1 comes 2, once
    >>> train = Ratings(user, item, [1] * 7, n_users=3, n_items=3)
    >>> kernel = models.recency.exponential([0.0], window=1)
    >>> scorer = sequence_ridge(train, age_weight=kernel, l2=1.0, order="position")
    >>> scorer.weight[0, :2, :3].round(3).tolist()  # transitions / (count + l2): 3 / 4 and 1 / 2
    [[0.0, 0.75, 0.0], [0.0, 0.0, 0.5]]
    """
    by_age = as_age_weight(age_weight)
    _check_options(train, l2, popularity_power, len(by_age))
    sums = sequence_sums(train, by_age, next_weight=next_weight, backward_weight=backward_weight, order=order)
    penalty, power = jnp.asarray(l2, by_age.dtype), jnp.asarray(popularity_power, by_age.dtype)
    weight = _solve_in_place(sums, penalty, power)
    del sums  # the matrices were given to the solution
    if not bool(jnp.isfinite(weight).all()):
        raise ValueError("l2: expected a penalty at which H'H + l2 is positive definite in float32. Use a larger one.")
    return recency_scorer(train, weight, by_age, order=order)


def sequence_ridge_memory(n_items: int, n_kernels: int) -> int:
    """Bytes of `sequence_ridge` at its peak: three matrices of the size of H'H, and three of the size of H'Y.

    >>> sequence_ridge_memory(18_357, 3) / 2**30  # Amazon's Sports
    45.1...
    """
    return 4 * 3 * ((n_kernels * n_items) ** 2 + n_kernels * n_items**2)


def sequence_sums(
    train: Ratings,
    age_weight: Shaped[ArrayLike, "D window"],
    *,
    next_weight: Sequence[float] | Shaped[ArrayLike, " horizon"] = (1.0,),
    backward_weight: Shaped[ArrayLike, ""] = 0.0,
    order: Order = "time",
) -> SequenceSums:
    """Returns H'H and H'Y of the sequences of train, from the pairs of events within the window.

    Arguments and errors are those of `sequence_ridge`.
    """
    by_age = as_age_weight(age_weight)
    _check_events(train)
    (future,) = check.as_floats(next_weight=next_weight)
    if future.ndim != 1 or len(future) == 0:
        raise ValueError(
            f"next_weight: expected [horizon], weights of the events from the next on, got {future.shape}."
        )
    check.all_finite("next_weight", future)
    check.strength("backward_weight", backward_weight, zero=True)
    _check_memory(train.n_items, len(by_age))
    start, rows = events_in_order(train, order)
    n_events = np.diff(start)
    if n_events.max(initial=0) < 2:
        raise ValueError(
            "train: expected a user with two events or more, because there is nothing to predict, got none."
        )
    user = np.repeat(np.arange(train.n_users), n_events)
    before = (np.arange(len(rows)) - start[user]).astype(np.int32)
    after = (n_events[user] - 1 - before).astype(np.int32)
    longest = int(n_events.max())
    # Kernels beyond the longest sequence never count: no pairs are made for them.
    by_age, future = by_age[:, : longest - 1], future[:longest]
    item = jnp.asarray(train.item[rows])
    back = jnp.asarray(backward_weight, by_age.dtype)
    return _pair_sums(item, jnp.asarray(before), jnp.asarray(after), by_age, future, back, n_items=train.n_items)


@partial(jax.jit, static_argnames="n_items")
def _pair_sums(
    item: Array, before: Array, after: Array, age_weight: Array, future: Array, backward: Array, *, n_items: int
) -> SequenceSums:
    """H'H and H'Y, lag by lag; `before` and `after` are how many events of the same user are on either side."""
    n_kernels, window = age_weight.shape
    dtype = age_weight.dtype
    n_lags = window + len(future)
    table = _gram_table(age_weight, n_lags)
    convolved = jax.vmap(lambda row: jnp.convolve(row, future.astype(dtype), precision="highest"))(age_weight)
    cross_table = jnp.pad(convolved, ((0, 0), (1, 0)))  # [D, n_lags], at lag 0 nothing
    rows_after, rows_before = jnp.minimum(after, window), jnp.minimum(before, window)
    event = jnp.arange(len(item), dtype=jnp.int32)
    block = n_items * jnp.arange(n_kernels, dtype=jnp.int32)

    def add_lag(lag: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        gram, cross = sums
        valid = before >= lag
        first = jnp.maximum(event - lag, 0)
        p, q = gather(item, first), item
        follow, precede = rows_after, gather(rows_before, first)
        for d in range(n_kernels):
            value = jnp.where(valid, cross_table[d, lag], 0)
            cross = _add(cross, p + block[d], q, value)
            cross = _add(cross, q + block[d], p, backward * value)
            for other in range(n_kernels):
                value = gather(table[d, other, lag], follow) + backward * gather(table[other, d, lag], precede)
                gram = _add(gram, p + block[d], q + block[other], jnp.where(valid, value, 0))
        return gram, cross

    size = n_kernels * n_items
    zeros = jnp.zeros((size, size), dtype), jnp.zeros((size, n_items), dtype)
    gram, cross = jax.lax.fori_loop(0, n_lags, add_lag, zeros)
    count = jnp.zeros(n_items, dtype).at[item].add(1)
    return SequenceSums(gram + gram.T, cross, count)


def _add(table: Array, row: Array, column: Array, value: Array) -> Array:
    return table.at[row, column].add(value.astype(table.dtype), mode="promise_in_bounds")


def _gram_table(age_weight: Array, n_lags: int) -> Float[Array, "D D n_lags rows"]:
    """F(d, d', lag, n), halved at lag 0, because the sum of a matrix and its transpose has those pairs twice."""
    window = age_weight.shape[1]
    lag = jnp.arange(n_lags, dtype=jnp.int32)[:, None]
    age = lag + jnp.arange(window, dtype=jnp.int32)[None, :]  # less 1
    older = jnp.where(age < window, age_weight[:, jnp.minimum(age, window - 1)], 0)  # [D, n_lags, m]
    sums = jnp.cumsum(older[:, None] * age_weight[None, :, None, :], axis=-1)
    sums = jnp.pad(sums, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return jnp.where(lag == 0, sums / 2, sums)


def solve_sequence_ridge(
    sums: SequenceSums, *, l2: Shaped[ArrayLike, "..."], popularity_power: Shaped[ArrayLike, ""] = 0.0
) -> Float[Array, "D n_items n_items"]:
    """W = (H'H + diag(l2))^-1 H'Y, its columns divided by count^popularity_power. Pure; vmap it over l2 and the power.

    Under vmap the systems are solved one after the other, so that memory has one factor at a time.

    Args:
        sums: from `sequence_sums`.
        l2: a number, one per block [D], or one per feature [D, n_items]; trusted, NaN where the sum is not positive
            definite.
        popularity_power: see `sequence_ridge`.
    """
    weight = _substitute(_factorize(_penalized(sums.gram, _as_l2(l2, sums))), sums.cross)
    return _scaled(weight, sums.count, jnp.asarray(popularity_power, sums.count.dtype))


def _penalized(gram: Array, l2: Array) -> Array:
    diagonal = jnp.arange(len(gram), dtype=jnp.int32)
    return gram.at[diagonal, diagonal].add(l2)


# One system at a time also under vmap: a batch of LAPACK calls may wait for each other forever (`kernels.cholesky`).
@jax.custom_batching.sequential_vmap
def _factorize(matrix: Array) -> Array:
    return jax.lax.linalg.cholesky(matrix, symmetrize_input=False)


@jax.custom_batching.sequential_vmap
def _substitute(lower: Array, rhs: Array) -> Array:
    return jax.scipy.linalg.cho_solve((lower, True), rhs)


def _scaled(weight: Array, count: Array, power: Array) -> Array:
    """One matrix per block, columns divided by count^power; 1 for an item without events."""
    n_items = len(count)
    return weight.reshape(len(weight) // n_items, n_items, n_items) * _column_scale(count, power)[None, None]


def _column_scale(count: Array, power: Array) -> Array:
    return jnp.maximum(count, 1) ** -power


def _solve_in_place(sums: SequenceSums, l2: Array, power: Array) -> Array:
    """`solve_sequence_ridge`, each matrix in the memory of the one that it is computed from; the sums are lost."""
    lower = _factorize_in_place(_penalize_in_place(sums.gram, _as_l2(l2, sums)))
    return _scale_in_place(_substitute_in_place(lower, sums.cross), sums.count, power)


_penalize_in_place = jax.jit(_penalized, donate_argnums=0)
_factorize_in_place = jax.jit(_factorize, donate_argnums=0)
_substitute_in_place = jax.jit(_substitute, donate_argnums=1)
_scale_in_place = jax.jit(_scaled)


class LeftOutPositions(NamedTuple):
    """Predictions of each user's last event from the others, by a fit without that position.

    Attributes:
        user: int32 [n], the users, who have two events or more.
        item: int32 [n], their last items, which are predicted.
        score: [n, n_items].
        leverage: [n], in [0, 1), how much the position's own target would have counted in its prediction.
    """

    user: Array
    item: Array
    score: Array
    leverage: Array


def leave_last_position_out(
    train: Ratings,
    *,
    users: Int[ArrayLike, " n"] | None = None,
    age_weight: Shaped[ArrayLike, "D window"],
    l2: Shaped[ArrayLike, "..."],
    next_weight: Sequence[float] | Shaped[ArrayLike, " horizon"] = (1.0,),
    backward_weight: Shaped[ArrayLike, ""] = 0.0,
    popularity_power: Shaped[ArrayLike, ""] = 0.0,
    order: Order = "time",
) -> LeftOutPositions:
    """Scores each user's last event as if its position were not among the rows of the fit, without fitting again.

    Taking a row (h, y) out of a ridge regression changes the prediction h W of that row to::

        (h W - leverage y) / (1 - leverage),    leverage = h (H'H + l2)^-1 h'

    (Sherman and Morrison). One factorization serves all users, so that settings can be chosen on train alone. Only that
    row is left out: the event still counts in backward rows and as a later target of earlier positions.

    Args:
        train: as in `sequence_ridge`.
        users: positions of users, None for all; users with fewer than two events are left out.
        age_weight: as in `sequence_ridge`, like all other arguments and errors.
        l2: a penalty as there.
        next_weight: weights as there.
        backward_weight: a weight as there.
        popularity_power: a power as there.
        order: of events, as there.
    """
    by_age = as_age_weight(age_weight)
    _check_options(train, l2, popularity_power, len(by_age))
    sums = sequence_sums(train, by_age, next_weight=next_weight, backward_weight=backward_weight, order=order)
    start, rows = events_in_order(train, order)
    every = np.arange(train.n_users) if users is None else np.asarray(check.row_ids("users", users, size=train.n_users))
    chosen = every[np.diff(start)[every] >= 2]
    items = train.item[rows]
    last = jnp.asarray(items[start[chosen + 1] - 1])
    earlier = _before_the_last(start, items, chosen, window=by_age.shape[1])
    future = jnp.asarray(next_weight, by_age.dtype)[0]
    penalty, power = jnp.asarray(l2, by_age.dtype), jnp.asarray(popularity_power, by_age.dtype)
    score, leverage = _left_out(sums, earlier, last, by_age, future, penalty, power)
    return LeftOutPositions(jnp.asarray(chosen.astype(np.int32)), last, score, leverage)


def _before_the_last(start: np.ndarray, items: np.ndarray, users: np.ndarray, *, window: int) -> RecentItems:
    """The state of users before their last event."""
    all_users = recent_items(start, items, window=window + 1)
    item, count = all_users.item[users, 1:], all_users.count[users] - 1
    return RecentItems(item, count)


@jax.jit
def _left_out(
    sums: SequenceSums, state: RecentItems, target: Array, age_weight: Array, future: Array, l2: Array, power: Array
) -> tuple[Array, Array]:
    h = recency_features(age_weight, state.item, state.count, len(sums.count))
    solved = _substitute(_factorize(_penalized(sums.gram, _as_l2(l2, sums))), h.T)
    leverage = jnp.sum(h * solved.T, axis=1)
    score = product(solved.T, sums.cross)
    row = jnp.arange(len(target), dtype=jnp.int32)
    score = score.at[row, target].add(-leverage * future) / (1 - leverage[:, None])
    return score * _column_scale(sums.count, power)[None], leverage


def _as_l2(l2: Shaped[ArrayLike, "..."], sums: SequenceSums) -> Array:
    """The penalty of every feature, [D n_items], from a number, [D] or [D, n_items]."""
    n_items = len(sums.count)
    n_kernels = len(sums.gram) // n_items
    penalty = jnp.asarray(l2, sums.gram.dtype)
    if penalty.ndim == 1:
        penalty = penalty[:, None]
    return jnp.broadcast_to(penalty, (n_kernels, n_items)).reshape(-1)


def _check_events(train: Ratings) -> None:
    if train.weights is not None:
        raise ValueError(
            "train: expected ratings without weights, because an event's weight is its age's. Pass "
            "dataclasses.replace(train, weights=None)."
        )


def _check_options(
    train: Ratings, l2: Shaped[ArrayLike, "..."], popularity_power: Shaped[ArrayLike, ""], n_kernels: int
) -> None:
    check.strength("l2", l2)
    if np.shape(l2) not in ((), (n_kernels,), (n_kernels, train.n_items)):
        raise ValueError(
            f"l2: expected a number, one per row of age_weight ({n_kernels},), or one per feature "
            f"({n_kernels}, {train.n_items}), got shape {np.shape(l2)}."
        )
    if np.shape(popularity_power) != ():
        raise ValueError(f"popularity_power: expected one number, got shape {np.shape(popularity_power)}.")
    check.all_finite("popularity_power", np.asarray(popularity_power, np.float64))


def _check_memory(n_items: int, n_kernels: int) -> None:
    """Raises MemoryError if memory is short, before anything is allocated."""
    needed, free = sequence_ridge_memory(n_items, n_kernels), _free_bytes()
    if needed > free:
        fits = max((d for d in range(1, n_kernels) if sequence_ridge_memory(n_items, d) <= free), default=0)
        advice = (
            f"Use {fits} rows of age_weight." if fits else "Leave out rare items, or use a machine with more memory."
        )
        raise MemoryError(
            f"sequence_ridge: {n_items} items x {n_kernels} rows of age_weight take {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. {advice}"
        )


def _free_bytes() -> int:
    """Free bytes of the device that computes."""
    stats = jax.devices()[0].memory_stats()
    return free_memory() if not stats else stats["bytes_limit"] - stats["bytes_in_use"]
