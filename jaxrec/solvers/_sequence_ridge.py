r"""Ridge regression from decayed histories to the next item: a Markov chain of all orders, in closed form.

**The model.** A row of the regression is a position t of a user's sequence i(1), i(2), ... Its features are the unit
vectors e of the items before it, each weighed by its age, in one block of columns per weight function a(d, .)::

    H(t) = [h(1, t), ..., h(D, t)],    h(d, t) = sum over s < t of a(d, t - s) e[i(s)]
    Y(t) = e[i(t)],  or with `next_weight` f:  f(0) e[i(t)] + f(1) e[i(t + 1)] + ...

and the stacked matrices W minimize the squared error of the next item, among all items, over all positions::

    ‖H W - Y‖^2 + sum over features of l2 ‖W[feature, :]‖^2,    so    W = (H'H + diag(l2))^-1 H'Y

A user is scored by their H at the end, times W, the column of item i divided by count(i)^popularity_power.

**Why it is a Markov chain of all orders.** With a(1) = 1 and 0 for other ages, H'H is the diagonal of counts and H'Y
the counts of what follows what: W is the smoothed transition matrix of a Markov chain of first order. With the weight
of age k alone it is the chain of k steps. A weight function a mixes the chains of all orders, and the inverse does what
counting cannot: it takes out what two items of a history say twice, as a regression on correlated features does.

**Relatives.** With H'H replaced by its diagonal it is kernel smoothing: an average of what followed each item, weighed
by age, as an item kNN of the last items takes it. With a decay of 1 and every item of the user as the target of every
other it would be EASE (Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019), whose zero diagonal is
not needed where the target is no item of H. Linear attention holds the same H'Y in its state (Katharopoulos et al.,
"Transformers are RNNs", ICML 2020): here the keys are items, and the memory is solved for instead of summed.

**Backward rows.** With `backward_weight` b every sequence is also read from its end to its beginning, as rows of weight
b: where data is scarce, what preceded an item says something of what follows it.

`_sequence_sums` says how H'H and H'Y are computed without H. What remains is one Cholesky factorization,
(D n_items)^3 / 3 products, and 2 D^2 n_items^3 for W.

This model is jaxrec's own; `experiments.published_sequences` compares it with published tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from jaxrec import check
from jaxrec.events import Order, events_in_order
from jaxrec.models.recency import (
    RecencyScorer,
    RecentItems,
    as_age_weight,
    recency_features,
    recency_scorer,
    recent_items,
)
from jaxrec.numerics import product
from jaxrec.solvers._sequence_sums import SequenceSums, sequence_sums
from jaxrec.types import Ratings

__all__ = ["LeftOutPositions", "leave_last_position_out", "sequence_ridge", "solve_sequence_ridge"]


def sequence_ridge(
    train: Ratings,
    *,
    age_weight: Shaped[ArrayLike, "D window"],
    l2: Shaped[ArrayLike, ...],
    next_weight: Sequence[float] | Shaped[ArrayLike, " horizon"] = (1.0,),
    backward_weight: float = 0.0,
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
    >>> np.asarray(scorer.weight)[0, :2, :3].round(3).tolist()  # transitions / (count + l2): 3 / 4 and 1 / 2
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


def solve_sequence_ridge(
    sums: SequenceSums, *, l2: Shaped[ArrayLike, ...], popularity_power: Shaped[ArrayLike, ""] = 0.0
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
    return _scaled(weight, sums.item_count, jnp.asarray(popularity_power, sums.item_count.dtype))


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
    return _scale_in_place(_substitute_in_place(lower, sums.cross), sums.item_count, power)


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
    l2: Shaped[ArrayLike, ...],
    next_weight: Sequence[float] | Shaped[ArrayLike, " horizon"] = (1.0,),
    backward_weight: float = 0.0,
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
    h = recency_features(age_weight, state.item, state.count, len(sums.item_count))
    solved = _substitute(_factorize(_penalized(sums.gram, _as_l2(l2, sums))), h.T)
    leverage = jnp.sum(h * solved.T, axis=1)
    score = product(solved.T, sums.cross)
    row = jnp.arange(len(target), dtype=jnp.int32)
    score = score.at[row, target].add(-leverage * future) / (1 - leverage[:, None])
    return score * _column_scale(sums.item_count, power)[None], leverage


def _as_l2(l2: Shaped[ArrayLike, ...], sums: SequenceSums) -> Array:
    """The penalty of every feature, [D n_items], from a number, [D] or [D, n_items]."""
    n_items = len(sums.item_count)
    n_kernels = len(sums.gram) // n_items
    penalty = jnp.asarray(l2, sums.gram.dtype)
    if penalty.ndim == 1:
        penalty = penalty[:, None]
    return jnp.broadcast_to(penalty, (n_kernels, n_items)).reshape(-1)


def _check_options(
    train: Ratings, l2: Shaped[ArrayLike, ...], popularity_power: Shaped[ArrayLike, ""], n_kernels: int
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
