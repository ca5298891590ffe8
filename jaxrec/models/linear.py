"""Linear scorers of items: the scores of a user are a linear map of the user's history.

scores(j, .) = F x(j), where x(j) [n_items] has the weight of every item that user j interacted with (1 if the ratings
have no weights; the weights of a repeated pair add up) and 0 elsewhere. `solvers.linear` and `solvers.neighbors` return
them. F is an operator: a pytree of arrays that is called with histories as columns, [n_items, n], and returns scores of
that shape. Nothing users x items exists: `evaluation.evaluate` calls the scorer on blocks of users.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings
>>> train = Ratings(user=[0, 0, 1], item=[0, 2, 1], value=[1, 1, 1], n_users=2, n_items=3)
>>> scorer = linear_scorer(train, Matrix(jnp.array([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [5.0, 0.0, 0.0]])))
>>> scorer(jnp.array([0, 1])).tolist()  # user 0 has items 0 and 2: column 0 + column 2
[[2.0, 3.0, 5.0], [1.0, 0.0, 0.0]]
>>> scorer.scores(jnp.array([[1, 0]]), where=jnp.array([[True, False]])).tolist()  # a new user, who has item 1
[[1.0, 0.0, 0.0]]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.counting_sort import group_by
from jaxrec.gather import gather
from jaxrec.models.linear_operators import (
    Chebyshev,
    Diagonal,
    Hop,
    LowRank,
    Matrix,
    Polynomial,
    Scaled,
    SparseMatrix,
    Sum,
    for_train_users,
)
from jaxrec.pytree import register_dataclass
from jaxrec.types import Ratings

__all__ = [
    "Chebyshev",
    "Diagonal",
    "Histories",
    "HistoryLists",
    "Hop",
    "LinearScorer",
    "LowRank",
    "Matrix",
    "Polynomial",
    "Scaled",
    "SparseMatrix",
    "Sum",
    "check_linear",
    "checked_lists",
    "for_users",
    "histories",
    "history_columns",
    "linear_scorer",
    "transposed",
]

# operator(histories [n_items, n]) -> scores [n_items, n]; those of `models.linear_operators`, and sums of them
Operator = Callable[[Array], Array]


@register_dataclass
@dataclass(frozen=True)
class Histories:
    """The interactions of all users, a sparse matrix users x items in both orders.

    Attributes:
        user_start: int32 [n_users + 1]; user j's interactions are user_start[j] : user_start[j + 1].
        item: int32 [n], their items.
        weight: [n], their weights.
        item_start: int32 [n_items + 1], the same for item i's interactions.
        user_by_item: int32 [n], their users.
        weight_by_item: [n], their weights.
        longest: the number of interactions of the longest history.
    """

    user_start: Array
    item: Array
    weight: Array
    item_start: Array
    user_by_item: Array
    weight_by_item: Array
    longest: int = field(metadata={"static": True})

    @property
    def n_users(self) -> int:
        """The number of users, with and without interactions."""
        return len(self.user_start) - 1

    @property
    def n_items(self) -> int:
        """The number of items, with and without interactions."""
        return len(self.item_start) - 1


def histories(ratings: Ratings) -> Histories:
    """Returns the interactions of ratings: every observed pair, with its weight; values are not used.

    Raises:
        ValueError: weights that are not finite.
    """
    weights = np.ones(len(ratings), np.float32) if ratings.weights is None else ratings.weights
    if not np.isfinite(weights).all():
        raise ValueError("weights: expected finite numbers, got NaN or infinity.")
    user_start, by_user = group_by(ratings.user, ratings.n_users)
    item_start, by_item = group_by(ratings.item, ratings.n_items)
    ids = lambda column: jnp.asarray(column.astype(np.int32, copy=False))
    return Histories(
        user_start=ids(user_start),
        item=ids(ratings.item[by_user]),
        weight=jnp.asarray(weights[by_user]),
        item_start=ids(item_start),
        user_by_item=ids(ratings.user[by_item]),
        weight_by_item=jnp.asarray(weights[by_item]),
        longest=int(np.diff(user_start).max(initial=0)),
    )


def transposed(histories: Histories) -> Histories:
    """The same matrix, items x users: users and items change places. The arrays are shared.

    >>> by_item = transposed(histories(Ratings([0, 0, 1], [0, 2, 2], [1, 1, 1], n_users=2, n_items=3)))
    >>> history_columns(by_item, jnp.array([2])).tolist()  # who has item 2
    [[1.0], [1.0]]
    """
    return Histories(
        user_start=histories.item_start,
        item=histories.user_by_item,
        weight=histories.weight_by_item,
        item_start=histories.user_start,
        user_by_item=histories.item,
        weight_by_item=histories.weight,
        longest=int(np.diff(np.asarray(histories.item_start)).max(initial=0)),
    )


def history_columns(histories: Histories, users: Int[ArrayLike, " n"]) -> Float[Array, "n_items n"]:
    """The histories of users as dense columns: x(j) for each of them. Ids are trusted."""
    users = jnp.asarray(users)
    first, end = gather(histories.user_start, users)[:, None], gather(histories.user_start, users + 1)[:, None]
    entry = first + jnp.arange(histories.longest, dtype=jnp.int32)[None, :]
    where = entry < end
    if len(histories.item) == 0:
        return jnp.zeros((histories.n_items, len(users)), histories.weight.dtype)
    entry = jnp.minimum(entry, len(histories.item) - 1)
    return _columns(gather(histories.item, entry), gather(histories.weight, entry), where, histories.n_items)


def _columns(items: Array, weights: Array, where: Array, n_items: int) -> Array:
    """Padded lists [n, length] as columns [n_items, n]: weights of an item that occurs twice add up."""
    column = jnp.arange(len(items), dtype=jnp.int32)[:, None]
    zeros = jnp.zeros((n_items, len(items)), weights.dtype)
    return zeros.at[jnp.where(where, items, n_items), column].add(jnp.where(where, weights, 0), mode="drop")


class HistoryLists(NamedTuple):
    """Histories of n users as padded lists.

    Attributes:
        items: int32 [n, length].
        weights: [n, length].
        where: bool [n, length], False at padding.
    """

    items: Array
    weights: Array
    where: Array


def checked_lists(
    items: Int[ArrayLike, "n length"],
    where: Bool[ArrayLike, "n length"] | None,
    weights: Shaped[ArrayLike, "n length"] | None,
    n_items: int,
) -> HistoryLists:
    """Returns the histories of new users, checked; at padding they may have any value.

    Raises:
        ValueError: arrays of different shapes; ids that are not in the catalog (not checked under jit); weights that
            are not finite.
    """
    check.same_shape(items=items, where=where, weights=weights)
    if np.ndim(items) != 2:
        raise ValueError(f"items: expected [n, length], one list per user, got {np.ndim(items)} dimensions.")
    mask = jnp.ones(np.shape(items), bool) if where is None else check.mask("where", where, np.shape(items))
    ids = check.row_ids("items", items, size=n_items, where=mask)
    if weights is None:
        return HistoryLists(ids, jnp.ones(ids.shape, jnp.float32), mask)
    (weight,) = check.as_floats(weights=weights)
    if not check.traced(weight, mask) and not bool(jnp.all(jnp.isfinite(jnp.where(mask, weight, 0)))):
        raise ValueError("weights: expected finite numbers, got NaN or infinity.")
    return HistoryLists(ids, weight, mask)


@register_dataclass
@dataclass(frozen=True)
class LinearScorer:
    """Scores that are a linear map of histories. A pytree, and a function of users: a scorer of `evaluation.evaluate`.

    Attributes:
        histories: the users' interactions.
        operator: F, from histories as columns to scores as columns.
    """

    histories: Histories
    operator: Any

    @property
    def n_users(self) -> int:
        """The number of users who have a history."""
        return self.histories.n_users

    @property
    def n_items(self) -> int:
        """The number of items."""
        return self.histories.n_items

    def __call__(self, users: Int[ArrayLike, " n"]) -> Float[Array, "n n_items"]:
        """Scores of all items for users, by their positions.

        Raises:
            ValueError: positions that are not in the table (not checked under jit).
        """
        return _scores_of_users(self, check.row_ids("users", users, size=self.n_users))

    def scores(
        self,
        items: Int[ArrayLike, "n length"],
        *,
        where: Bool[ArrayLike, "n length"] | None = None,
        weights: Shaped[ArrayLike, "n length"] | None = None,
    ) -> Float[Array, "n n_items"]:
        """Scores of all items for new users, from the items that they interacted with, padded to one length.

        Raises:
            ValueError: arrays of different shapes; ids that are not in the catalog (not checked under jit); weights
                that are not finite.
        """
        return _scores_of_lists(self, *checked_lists(items, where, weights, self.n_items))


# Jitted, because the columns of a block of users need not exist beside what the operator makes of them.
@jax.jit
def _scores_of_users(scorer: LinearScorer, users: Array) -> Array:
    return for_train_users(scorer.operator, history_columns(scorer.histories, users), users).T


@jax.jit
def _scores_of_lists(scorer: LinearScorer, items: Array, weights: Array, where: Array) -> Array:
    return scorer.operator(_columns(items, weights, where, scorer.n_items)).T


def check_linear(scorer: Any) -> None:
    """Checks that a scorer is a `LinearScorer`.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(scorer, LinearScorer):
        raise ValueError(
            f"scorer: expected a LinearScorer, such as solvers.linear.ease returns, got {type(scorer).__name__}."
        )


def for_users(scorer: LinearScorer, ratings: Ratings) -> LinearScorer:
    """Returns the scorer of other users of the same items, whose histories are `ratings`: without any training.

    Raises:
        ValueError: a scorer of another kind; ratings of another number of items; weights that are not finite.
    """
    check_linear(scorer)
    if ratings.n_items != scorer.n_items:
        raise ValueError(f"ratings: expected {scorer.n_items} items, as the scorer has, got {ratings.n_items}.")
    return LinearScorer(histories(ratings), _AnyUsers(scorer.operator))


@register_dataclass
@dataclass(frozen=True)
class _AnyUsers:
    """An operator without what it knows of the users of train."""

    operator: Any

    def __call__(self, columns: Float[Array, "n_items n"]) -> Float[Array, "n_items n"]:
        """F x of each column."""
        return self.operator(columns)


def linear_scorer(train: Ratings, operator: Operator) -> LinearScorer:
    """Returns the scorer of the users of `train`, for an operator on its items."""
    return LinearScorer(histories(train), operator)
