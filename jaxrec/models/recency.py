"""Scorers that are linear in a user's last events, each weighed by its age: what comes next, from what came before.

The age of an event is 1 for the newest, 2 for the one before it, and so on. With D functions of age a(d, .), n items
and D matrices W(d) [n_items, n_items], the scores of a user whose event of age k is item i(k) are::

    score(.) = sum over d and k <= window of a(d, k) W(d)[i(k), .]

So an event adds one row of each matrix, with a weight that falls with its age. `solvers.sequence_ridge` fits the
matrices. A user's state is their last `window` items: a new event is put in front, and the oldest leaves, whatever
the length of the history, so that `update` costs O(1) and a request needs neither the history nor a fit.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings
>>> train = Ratings([0, 0, 1], [0, 1, 2], [1, 1, 1], 2, 3)  # user 0 has item 0, then item 1
>>> weight = jnp.array([[[0.0, 4.0, 0.0], [8.0, 0.0, 6.0], [2.0, 0.0, 0.0]]])  # after item 1 comes item 0, or item 2
>>> scorer = recency_scorer(train, weight, exponential([0.5], window=2), order="position")
>>> scorer(jnp.array([0])).tolist()  # row 1, and half of row 0
[[8.0, 2.0, 6.0]]
>>> state = scorer.update(scorer.init_state(), 0)
>>> scorer.scores(scorer.update(state, 1)).tolist()
[8.0, 2.0, 6.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.events import Order, events_in_order
from jaxrec.gather import gather
from jaxrec.kernels.csr import csr_matmul
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.numerics import product
from jaxrec.pytree import register_dataclass
from jaxrec.types import Ratings

__all__ = [
    "RecencyScorer",
    "RecentItems",
    "as_age_weight",
    "exponential",
    "inverse_power",
    "recency_features",
    "recency_scorer",
    "recent_items",
]

# csr_matmul on a CPU copies a table whose rows are not of a multiple of 8 floats; this one can be gigabytes.
PAD_COLUMNS = 8


def exponential(decays: Sequence[float] | np.ndarray, *, window: int) -> Float[Array, "D window"]:
    """Weights by age that fall by a factor per event: a(d, k) = decays[d]^(k - 1), for k = 1 .. window.

    A decay of 0 is the newest event alone, a Markov chain of first order; a decay of 1 does not look at the order.

    Raises:
        ValueError: decays that are not in [0, 1]; window < 1.

    >>> exponential([0.0, 0.5], window=3).tolist()
    [[1.0, 0.0, 0.0], [1.0, 0.5, 0.25]]
    """
    decay = _one_axis("decays", decays)
    if not ((decay >= 0) & (decay <= 1)).all():
        raise ValueError(f"decays: expected numbers in [0, 1], got {decay.tolist()}.")
    return jnp.asarray(decay[:, None] ** np.arange(check.whole_number("window", window, least=1)), jnp.float32)


def inverse_power(powers: Sequence[float] | np.ndarray, *, window: int) -> Float[Array, "D window"]:
    """Weights by age that fall as a power of it: a(d, k) = k^-powers[d], for k = 1 .. window.

    They fall fast at first and slowly afterwards: a mixture of exponentials of all decays, 1 / k being the uniform one
    (the integral over x in [0, 1] of x^(k - 1)).

    Raises:
        ValueError: powers that are negative or not finite; window < 1.

    >>> inverse_power([1.0], window=4).round(3).tolist()
    [[1.0, 0.5, 0.3330000042915344, 0.25]]
    """
    power = _one_axis("powers", powers)
    if not (np.isfinite(power) & (power >= 0)).all():
        raise ValueError(f"powers: expected finite numbers >= 0, got {power.tolist()}.")
    age = np.arange(1, check.whole_number("window", window, least=1) + 1, dtype=np.float64)
    return jnp.asarray(age ** -power[:, None], jnp.float32)


def _one_axis(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected one or more numbers, got an array of shape {array.shape}.")
    return array


@register_dataclass
@dataclass(frozen=True)
class RecentItems:
    """The last items of a user, or of several: the state from which they are scored.

    Attributes:
        item: int32 [*n, window], the newest first; 0 beyond `count`.
        count: int32 [*n], how many there are, at most window.
    """

    item: Array
    count: Array


def recent_items(user_start: np.ndarray, items: np.ndarray, *, window: int) -> RecentItems:
    """The last items of all users, whose items, oldest first, are items[user_start[j] : user_start[j + 1]]."""
    count = np.minimum(np.diff(user_start), window).astype(np.int32)
    age = np.arange(window)[None, :]
    where = age < count[:, None]
    newest_first = np.zeros(where.shape, np.int32)
    newest_first[where] = items[(user_start[1:, None] - 1 - age)[where]]
    return RecentItems(jnp.asarray(newest_first), jnp.asarray(count))


@register_dataclass
@dataclass(frozen=True)
class RecencyScorer:
    """Scores from the last events. A pytree, and a function of users: a scorer of `evaluation.evaluate`.

    Attributes:
        events: the last items of the users of train, [n_users, window].
        age_weight: [D, window], a(d, k) at [d, k - 1].
        weight: [D, n_items, n_items padded to a multiple of 8], W(d); what lies beyond n_items is 0.
        n_items: the number of items.
    """

    events: RecentItems
    age_weight: Array
    weight: Array
    n_items: int = field(metadata={"static": True})

    @property
    def n_users(self) -> int:
        """The number of users of train."""
        return len(self.events.count)

    @property
    def window(self) -> int:
        """How many of a user's last events count."""
        return self.age_weight.shape[1]

    def __call__(self, users: Int[ArrayLike, " n"]) -> Float[Array, "n n_items"]:
        """Scores of all items for users of train, by their positions; 0 for a user without events.

        Raises:
            ValueError: positions that are not in the table (not checked under jit).
        """
        ids = check.row_ids("users", users, size=self.n_users)
        return _scores(self, RecentItems(gather(self.events.item, ids), gather(self.events.count, ids)))

    def scaled(self, item_weight: Shaped[ArrayLike, " n_items"]) -> RecencyScorer:
        """The scorer whose scores of item i are multiplied by item_weight[i], such as a power of its count.

        Raises:
            ValueError: not one weight per item, or weights that are not finite (not checked under jit).
        """
        if np.shape(item_weight) != (self.n_items,):
            raise ValueError(f"item_weight: expected shape ({self.n_items},), got {np.shape(item_weight)}.")
        check.all_finite("item_weight", item_weight)
        padded = jnp.pad(jnp.asarray(item_weight, self.weight.dtype), (0, self.weight.shape[-1] - self.n_items))
        return replace(self, weight=self.weight * padded[None, None])

    def init_state(self) -> RecentItems:
        """The state of a user without events."""
        return RecentItems(jnp.zeros(self.window, jnp.int32), jnp.array(0, jnp.int32))

    def state(
        self, items: Int[ArrayLike, "*n length"], *, where: Bool[ArrayLike, "*n length"] | None = None
    ) -> RecentItems:
        """The state of users from lists of their items, oldest first; a list may be empty, and of any length.

        Args:
            items: the lists, padded to one length.
            where: False in padding, which may be anywhere; None if there is none.

        Raises:
            ValueError: arrays of different shapes; ids that are not in the catalog (not checked under jit).
        """
        check.same_shape(items=items, where=where)
        mask = jnp.ones(np.shape(items), bool) if where is None else check.mask("where", where, np.shape(items))
        ids = check.row_ids("items", items, size=self.n_items, where=mask)
        return _last_items(ids, mask, window=self.window)

    def update(self, state: RecentItems, item: Int[ArrayLike, "*n"]) -> RecentItems:
        """The state after one more event of each user, in O(1): it does not grow with the history.

        Raises:
            ValueError: ids that are not in the catalog (not checked under jit).
        """
        newest = check.row_ids("item", item, size=self.n_items)
        items = jnp.concatenate([newest[..., None], state.item[..., :-1]], axis=-1)
        return RecentItems(items, jnp.minimum(state.count + 1, self.window))

    def scores(self, state: RecentItems) -> Float[Array, "*n n_items"]:
        """Scores of all items from a state, or from the states of several users; 0 where there are no events."""
        flat = RecentItems(state.item.reshape(-1, self.window), state.count.reshape(-1))
        return _scores(self, flat).reshape(*state.count.shape, self.n_items)

    def next_scores(self, item: Int[ArrayLike, " window"], count: Int[ArrayLike, ""]) -> Float[Array, " n_items"]:
        """Scores of all items after a user's last items, newest first: a sequence scorer, a function of two arrays.

        Raises:
            ValueError: another length than the window; ids that are not in the catalog (not checked under jit).
        """
        if np.shape(item) != (self.window,):
            raise ValueError(f"item: expected the last {self.window} items, newest first, got shape {np.shape(item)}.")
        number = jnp.asarray(count, jnp.int32)
        where = jnp.arange(self.window, dtype=jnp.int32) < number
        ids = check.row_ids("item", item, size=self.n_items, where=where)
        return _scores_of_one(self, jnp.where(where, ids, 0), where)


@jax.jit
def _scores_of_one(scorer: RecencyScorer, item: Array, where: Array) -> Array:
    """One age after the other: unlike the products of `_scores` this exports for any number of users under vmap."""

    def add(score: Array, age: tuple[Array, Array, Array]) -> tuple[Array, None]:
        item, where, by_kernel = age
        return score + jnp.sum(jnp.where(where, by_kernel, 0)[:, None] * scorer.weight[:, item], axis=0), None

    zeros = jnp.zeros(scorer.weight.shape[-1], scorer.weight.dtype)
    return jax.lax.scan(add, zeros, (item, where, scorer.age_weight.T))[0][: scorer.n_items]


@partial(jax.jit, static_argnames="window")
def _last_items(items: Array, where: Array, *, window: int) -> RecentItems:
    """The newest `window` valid items of lists, newest first."""
    *batch, length = items.shape
    age = jnp.cumsum(where[..., ::-1], axis=-1, dtype=jnp.int32)[..., ::-1] - 1  # 0 for the newest valid entry

    def one(items: Array, where: Array, age: Array) -> Array:
        place = jnp.where(where, age, window)  # beyond the window: dropped
        return jnp.zeros(window, jnp.int32).at[place].set(items, mode="drop")

    flat = [array.reshape(math.prod(batch), length) for array in (items, where, age)]
    found = jax.vmap(one)(*flat).reshape(*batch, window)
    return RecentItems(found, jnp.minimum(jnp.sum(where, axis=-1, dtype=jnp.int32), window))


@jax.jit
def _scores(scorer: RecencyScorer, state: RecentItems) -> Array:
    args = scorer.weight, scorer.age_weight, state.item, state.count
    return by_platform(partial(_weighted_rows, n_items=scorer.n_items), *args)[:, : scorer.n_items]


def recency_features(
    age_weight: Shaped[ArrayLike, "D window"],
    item: Int[ArrayLike, "n window"],
    count: Int[ArrayLike, " n"],
    n_items: int,
) -> Float[Array, "n features"]:
    """H of states: row r has, in block d, the sum over ages k of a(d, k) times the unit vector of item[r, k - 1]."""
    by_age, items, counts = jnp.asarray(age_weight), jnp.asarray(item), jnp.asarray(count)
    n_kernels, window = by_age.shape
    where = jnp.arange(window, dtype=jnp.int32)[None, :] < counts[:, None]
    value = jnp.where(where[None], by_age[:, None, :], 0)  # [D, n, window]
    kernel = jnp.arange(n_kernels, dtype=jnp.int32)[:, None, None]
    row = jnp.arange(len(items), dtype=jnp.int32)[None, :, None]
    zeros = jnp.zeros((len(items), n_kernels, n_items), by_age.dtype)
    return zeros.at[row, kernel, items[None]].add(value).reshape(len(items), n_kernels * n_items)


def _weighted_rows(
    weight: Array, age_weight: Array, item: Array, count: Array, *, n_items: int, platform: Platform
) -> Array:
    """The product of H and the stacked matrices: on a CPU only of the rows that a history names."""
    n_kernels, window = age_weight.shape
    table = weight.reshape(n_kernels * n_items, -1)
    if platform != "cpu":
        return product(recency_features(age_weight, item, count, n_items), table)
    where = jnp.arange(window, dtype=jnp.int32)[None, :] < count[:, None]
    value = jnp.where(where[:, None, :], age_weight[None], 0)
    block = n_items * jnp.arange(n_kernels, dtype=jnp.int32)
    row = item[:, None, :] + block[None, :, None]
    start = n_kernels * window * jnp.arange(len(item) + 1, dtype=jnp.int32)
    return csr_matmul(start, row.reshape(-1), value.reshape(-1), table, platform=platform)


def recency_scorer(
    train: Ratings,
    matrices: Float[ArrayLike, "D n_items n_items"],
    age_weight: Shaped[ArrayLike, "D window"],
    *,
    order: Order = "time",
) -> RecencyScorer:
    """Returns the scorer of the users of `train`, for matrices and weights by age.

    Args:
        train: the events; values are not used.
        matrices: [D, n_items, n_items], W(d); matrices[d, i, k] is what item i of a history adds for item k.
        age_weight: [D, window], a(d, k) at [d, k - 1], as `exponential` and `inverse_power` return it; finite.
        order: of a user's events, by 'time' or by 'position', as in `data.sequences`.

    Raises:
        ValueError: arrays of other shapes; weights by age that are not finite; no times, with order='time'.
    """
    by_age = as_age_weight(age_weight)
    expected = (len(by_age), train.n_items, train.n_items)
    if np.shape(matrices) != expected:
        raise ValueError(f"matrices: expected one per row of age_weight, {expected}, got {np.shape(matrices)}.")
    start, rows = events_in_order(train, order)
    events = recent_items(start, train.item[rows], window=by_age.shape[1])
    weight = jnp.pad(jnp.asarray(matrices), ((0, 0), (0, 0), (0, -train.n_items % PAD_COLUMNS)))
    return RecencyScorer(events, by_age.astype(weight.dtype), weight, train.n_items)


def as_age_weight(values: Shaped[ArrayLike, ...]) -> Float[Array, "D window"]:
    """Weights by age as an array, after checking their shape and that they are finite (not checked under jit)."""
    if np.ndim(values) != 2 or 0 in np.shape(values):
        raise ValueError(
            f"age_weight: expected [D, window], one row of weights by age per kernel, got shape {np.shape(values)}. "
            "models.recency.exponential and inverse_power make them."
        )
    (array,) = check.as_floats(age_weight=values)
    if not check.traced(array):
        check.all_finite("age_weight", array)
    return array
