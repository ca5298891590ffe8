"""Scorers of k nearest neighbors: sums of sparse rows, one for every item of a history or for every similar user.

An item scorer has a sparse matrix F whose row h says what item h of a history adds to the scores of other items::

    scores(j, i) = sum over the items h of user j of x(j, h) F(h, i)

with x(j, h) the weight of the pair (1 if the ratings have no weights). A user scorer has the k users nearest to every
user, and adds their histories::

    scores(j, i) = sum over the neighbors v of user j of s(j, v) x(v, i)

Both cost as many additions as there are such pairs, and no dense matrix exists but the scores of a block of users. On
gowalla (29,858 users, 40,981 items, k = 100) an item scorer makes 80 million additions for all users; a product of F
with histories as dense columns would take 122 billion and 30 times as long. `solvers.neighbors` makes these scorers.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings
>>> train = Ratings(user=[0, 0, 1], item=[0, 2, 1], value=[1, 1, 1], n_users=2, n_items=3)
>>> rows = sparse_rows([0, 0, 2], [1, 2, 1], [0.5, 0.25, 2.0], n_rows=3, n_items=3)  # F(0, 1), F(0, 2), F(2, 1)
>>> scorer = item_scorer(train, rows)
>>> scorer(jnp.array([0, 1])).tolist()
[[0.0, 2.5, 0.25], [0.0, 0.0, 0.0]]
>>> scorer.scores(jnp.array([[0, 1]]), where=jnp.array([[True, False]])).tolist()  # a new user, who has item 0
[[0.0, 0.5, 0.25]]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.counting_sort import group_by
from jaxrec.gather import gather
from jaxrec.kernels.csr import csr_matmul
from jaxrec.kernels.sparse_rows import PIECE_ENTRIES, SparseRows, add_rows
from jaxrec.kernels.topk_select import largest
from jaxrec.models.linear import Histories, checked_lists, histories
from jaxrec.pytree import register_dataclass
from jaxrec.types import Ratings

__all__ = [
    "ItemScorer",
    "NearestNeighbors",
    "Similarity",
    "UserScorer",
    "item_scorer",
    "nearest_columns",
    "sparse_rows",
]

# similarity(products [n, m], squares of the rows [n, 1], of the columns [1, m], shrinkage []) -> [n, m]
Similarity = Callable[[Array, Array, Array, Array], Array]


class NearestNeighbors(NamedTuple):
    """The k nearest neighbors of every item or user, nearest first, ties to the lowest id.

    Attributes:
        ids: int32 [n, k]; 0 where there are fewer neighbors.
        similarity: [n, k], positive; 0 where there are fewer neighbors.
    """

    ids: Array
    similarity: Array


def sparse_rows(
    row: Int[ArrayLike, " n"] | Sequence[int],
    item: Int[ArrayLike, " n"] | Sequence[int],
    weights: Shaped[ArrayLike, " n"] | Sequence[float],
    *,
    n_rows: int,
    n_items: int,
) -> SparseRows:
    """Returns the sparse matrix with `weights` at (row, item); those of a repeated entry add up.

    Raises:
        ValueError: columns of different lengths; ids out of range; weights that are not finite.
    """
    check.same_length(row=row, item=item, weights=weights)
    ids, entries = check.ids("item", item, size=n_items), np.asarray(weights, np.float32)
    check.all_finite("weights", entries)
    start, order = group_by(np.asarray(row), n_rows)
    count = np.diff(start)
    piece_start = np.concatenate([[0], np.cumsum(-(-count // PIECE_ENTRIES), dtype=np.int64)])
    # entry e of the sorted rows: its row's first place, and its position in the row
    place = np.arange(len(order)) + np.repeat(piece_start[:-1] * PIECE_ENTRIES - start[:-1], count)
    size = max(1, int(piece_start[-1])) * PIECE_ENTRIES
    padded_ids, padded = np.zeros(size, np.int32), np.zeros(size, np.float32)
    padded_ids[place], padded[place] = ids[order], entries[order]
    pieces = lambda each: jnp.asarray(each.reshape(-1, PIECE_ENTRIES))
    longest = int(np.diff(piece_start).max(initial=0))
    return SparseRows(jnp.asarray(piece_start.astype(np.int32)), pieces(padded_ids), pieces(padded), n_items, longest)


@register_dataclass
@dataclass(frozen=True)
class ItemScorer:
    """Scores from the items of a history. A pytree, and a function of users: a scorer of `evaluation.evaluate`.

    Attributes:
        histories: the users' interactions.
        rows: F, n_items x n_items; row h is what item h of a history adds to the scores.
    """

    histories: Histories
    rows: SparseRows

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
        return _item_scores_of_users(self, check.row_ids("users", users, size=self.n_users))

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
        return _item_scores_of_lists(self, *checked_lists(items, where, weights, self.n_items))


@register_dataclass
@dataclass(frozen=True)
class UserScorer:
    """Scores from the histories of similar users. A pytree, and a function of users: a scorer of `evaluate`.

    Attributes:
        neighbors: the nearest users of every user.
        rows: the users' histories, n_users x n_items.
        squares: [n_users], the sum of the squared weights of each history.
        shrinkage: [], the similarity's.
        similarity: the function; see `solvers.neighbors`.
    """

    neighbors: NearestNeighbors
    rows: SparseRows
    squares: Array
    shrinkage: Array
    similarity: Similarity = field(metadata={"static": True})

    @property
    def n_users(self) -> int:
        """The number of users."""
        return len(self.squares)

    @property
    def n_items(self) -> int:
        """The number of items."""
        return self.rows.n_items

    def __call__(self, users: Int[ArrayLike, " n"]) -> Float[Array, "n n_items"]:
        """Scores of all items for users, by their positions, from the other users.

        Raises:
            ValueError: positions that are not in the table (not checked under jit).
        """
        return _user_scores_of_users(self, check.row_ids("users", users, size=self.n_users))

    def scores(
        self,
        items: Int[ArrayLike, "n length"],
        *,
        where: Bool[ArrayLike, "n length"] | None = None,
        weights: Shaped[ArrayLike, "n length"] | None = None,
    ) -> Float[Array, "n n_items"]:
        """Scores of all items for new users, from the items that they interacted with, padded to one length.

        Their neighbors are found first, among all users: memory is (n_users + n_items) * n numbers.

        Raises:
            ValueError: arrays of different shapes; ids that are not in the catalog (not checked under jit); weights
                that are not finite.
        """
        return _user_scores_of_lists(self, *checked_lists(items, where, weights, self.n_items))


def item_scorer(train: Ratings, rows: SparseRows) -> ItemScorer:
    """Returns the scorer of the users of `train`: rows of F for the items of their histories.

    The histories may be others than those that F was computed from, such as the last items of every user::

        knn = solvers.neighbors.item_knn(train, k=100)
        item_scorer(data.last_items(train, 5), knn.rows)

    Raises:
        ValueError: `rows` of another number of items than train's.
    """
    shape = len(rows.start) - 1, rows.n_items
    if shape != (train.n_items, train.n_items):
        raise ValueError(f"rows: expected a matrix of train's {train.n_items} items by themselves, got {shape}.")
    return ItemScorer(histories(train), rows)


def nearest_columns(
    products: Float[ArrayLike, "n m"],
    row_squares: Float[ArrayLike, " n"],
    column_squares: Float[ArrayLike, " m"],
    shrinkage: Float[ArrayLike, ""],
    *,
    similarity: Similarity,
    k: int,
) -> NearestNeighbors:
    """For every column the k rows of the largest positive similarity, of those with a product above 0.

    Args:
        products: the products of rows and columns.
        row_squares: the squares of the rows.
        column_squares: the squares of the columns.
        shrinkage: passed on to the similarity.
        similarity: the function.
        k: at most n.

    Returns:
        neighbors of each column; a column's similarities are NaN if one of its candidates' is NaN or infinite.
    """
    products = jnp.asarray(products)
    row = jnp.arange(len(products), dtype=jnp.int32)[:, None]
    squares = jnp.asarray(row_squares)[:, None], jnp.asarray(column_squares)[None, :]
    found = similarity(products, *squares, jnp.asarray(shrinkage))
    candidate = products > 0
    is_bad = jnp.any(candidate & ~(jnp.abs(found) < jnp.inf), axis=0)[:, None]
    # All other rows get numbers below 0 that differ, because `largest` is fast where few numbers are equal.
    best, ids = largest(jnp.where(candidate & (found > 0), found, (-1 - row).astype(found.dtype)), k)
    return NearestNeighbors(jnp.where(best > 0, ids, 0), jnp.where(is_bad, jnp.nan, jnp.maximum(best, 0)))


@jax.jit
def _item_scores_of_users(scorer: ItemScorer, users: Array) -> Array:
    found = scorer.histories
    if len(found.item) == 0:
        return jnp.zeros((len(users), scorer.n_items), scorer.rows.weight.dtype)
    entry = gather(found.user_start, users)[:, None] + jnp.arange(found.longest, dtype=jnp.int32)[None, :]
    where = entry < gather(found.user_start, users + 1)[:, None]
    entry = jnp.minimum(entry, len(found.item) - 1)
    return add_rows(scorer.rows, gather(found.item, entry), gather(found.weight, entry), where)


@jax.jit
def _item_scores_of_lists(scorer: ItemScorer, ids: Array, weights: Array, where: Array) -> Array:
    return add_rows(scorer.rows, ids, weights, where)


@jax.jit
def _user_scores_of_users(scorer: UserScorer, users: Array) -> Array:
    ids, similarity = gather(scorer.neighbors.ids, users), gather(scorer.neighbors.similarity, users)
    return add_rows(scorer.rows, ids, similarity, similarity > 0)


@jax.jit
def _user_scores_of_lists(scorer: UserScorer, ids: Array, weights: Array, where: Array) -> Array:
    rows, n = scorer.rows, len(ids)
    column = jnp.arange(n, dtype=jnp.int32)[:, None]
    weights = jnp.where(where, weights, 0).astype(rows.weight.dtype)
    columns = jnp.zeros((rows.n_items, n), rows.weight.dtype)
    columns = columns.at[jnp.where(where, ids, rows.n_items), column].add(weights, mode="drop")
    start = rows.start * PIECE_ENTRIES
    start = start.at[-1].set(rows.item.size)  # a matrix without entries has one piece of padding
    products = csr_matmul(start, rows.item.ravel(), rows.weight.ravel(), columns)
    k = scorer.neighbors.ids.shape[1]
    squares = scorer.squares, jnp.sum(columns * columns, axis=0)
    found = nearest_columns(products, *squares, scorer.shrinkage, similarity=scorer.similarity, k=k)
    return add_rows(rows, found.ids, found.similarity, found.similarity != 0)
