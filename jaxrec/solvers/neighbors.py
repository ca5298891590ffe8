"""Nearest neighbors for implicit feedback: items, users, and the random walk of RP3beta.

Only observed pairs and their weights count (1 if the ratings have none; the weights of a repeated pair add up); values
are not used. `data.weighting` makes weights, and every function here takes what it returns::

    item_knn(weighting.bm25(train), k=100, shrinkage=10.0)

With x(i) the column of item i, its weights over the users, the similarity of two items is a function of x(i) . x(h) and
of the squares ‖x(i)‖^2 and ‖x(h)‖^2: `cosine_similarity`, `jaccard_similarity`, or one like them. Shrinkage is added to
the denominator, so that few common users do not make two rare items alike. An item is not its own neighbor, only items
with a common user of positive similarity are neighbors, and ties go to the lowest id.

The products are SciPy's, of sparse matrices on the host; memory is k numbers per item and some blocks
of products (gowalla, k = 100: 1.1 GB in all).

>>> train = Ratings(user=[0, 0, 1, 1, 2], item=[0, 1, 0, 1, 2], value=[1, 1, 1, 1, 1], n_users=3, n_items=3)
>>> scorer = item_knn(train, k=2, shrinkage=2.0)
>>> scorer(np.array([0])).tolist()  # items 0 and 1 have two common users: 2 / (sqrt(2 * 2) + 2)
[[0.5, 0.5, 0.0]]
>>> similar(train, "item", k=1).ids.tolist()
[[1], [0], [0]]
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxrec import check
from jaxrec.models.neighbors import (
    ItemScorer,
    NearestNeighbors,
    Similarity,
    UserScorer,
    item_scorer,
    sparse_rows,
)
from jaxrec.solvers._nearest import nearest
from jaxrec.types import Ratings

__all__ = ["cosine_similarity", "item_knn", "jaccard_similarity", "rp3beta", "similar", "user_knn"]


def cosine_similarity(
    products: Float[ArrayLike, "n m"],
    row_squares: Float[ArrayLike, "n 1"],
    column_squares: Float[ArrayLike, "1 m"],
    shrinkage: Float[ArrayLike, ""],
) -> Float[Array, "n m"]:
    """Cosine, x . y / (‖x‖ ‖y‖ + shrinkage), of the products x . y and the squares ‖x‖^2 and ‖y‖^2."""
    return jnp.asarray(products) / (jnp.sqrt(row_squares) * jnp.sqrt(column_squares) + shrinkage)


def jaccard_similarity(
    products: Float[ArrayLike, "n m"],
    row_squares: Float[ArrayLike, "n 1"],
    column_squares: Float[ArrayLike, "1 m"],
    shrinkage: Float[ArrayLike, ""],
) -> Float[Array, "n m"]:
    """Common users over all users of the two, if weights are 1: x . y / (‖x‖^2 + ‖y‖^2 - x . y + shrinkage).

    Other weights give Tanimoto's coefficient.
    """
    products = jnp.asarray(products)
    return products / (jnp.asarray(row_squares) + jnp.asarray(column_squares) - products + shrinkage)


def item_knn(
    train: Ratings,
    *,
    k: int,
    shrinkage: float = 0.0,
    similarity: Similarity = cosine_similarity,
    batch_size: int | None = None,
) -> ItemScorer:
    """Scores of user j for item i: the sum, over the k items h most similar to i, of s(i, h) x(j, h).

    So neighbors are of the scored item, and count if the user has them. (`implicit` keeps the k items most similar to
    an item of the history instead, which lets popular items be neighbors of many; on gowalla that is worse.)

    Args:
        train: the pairs, and their weights.
        k: neighbors per item, at most n_items - 1; fewer where fewer items have a common user.
        shrinkage: >= 0.
        similarity: similarity(products [n, m], row_squares [n, 1], column_squares [1, m], shrinkage), of the items of
            the rows with those of the columns, whose neighbors are kept.
        batch_size: items per block; None: as many as take four million multiplications.

    Returns:
        a scorer of `evaluate` and `recommend`, and of new users by `.scores(items, where=...)`. To score from other
        histories, such as each user's last items: `models.neighbors.item_scorer(histories, scorer.rows)`.

    Raises:
        ValueError: k not in [1, n_items - 1]; shrinkage negative or not finite; batch_size below 1; a similarity that
            is NaN or infinite.

    Source: Sarwar et al. 2001, Item-based collaborative filtering; Deshpande and Karypis 2004.
    """
    found = similar(train, "item", k=k, shrinkage=shrinkage, similarity=similarity, batch_size=batch_size)
    target, number = np.nonzero(np.asarray(found.similarity))
    source, weight = np.asarray(found.ids)[target, number], np.asarray(found.similarity)[target, number]
    return item_scorer(train, sparse_rows(source, target, weight, n_rows=train.n_items, n_items=train.n_items))


def user_knn(
    train: Ratings,
    *,
    k: int,
    shrinkage: float = 0.0,
    similarity: Similarity = cosine_similarity,
    batch_size: int | None = None,
) -> UserScorer:
    """Scores of user j for item i: the sum, over the k users v most similar to j, of s(j, v) x(v, i).

    Args:
        train: the pairs, and their weights, in the similarity and in the sum.
        k: neighbors per user, at most n_users - 1; fewer where fewer users have a common item.
        shrinkage: as `item_knn`.
        similarity: as `item_knn`, of users.
        batch_size: users per block; None: as many as take four million multiplications.

    Returns:
        a scorer of `evaluate` and `recommend`. `.scores(items, where=...)` finds the neighbors of new users among all
        users of train.

    Raises:
        ValueError: as `item_knn`.

    Source: Resnick et al. 1994, GroupLens; Herlocker et al. 1999.
    """
    found = similar(train, "user", k=k, shrinkage=shrinkage, similarity=similarity, batch_size=batch_size)
    pairs = _pairs(train)
    weight = pairs.weight.astype(np.float32)
    return UserScorer(
        neighbors=found,
        rows=sparse_rows(pairs.user, pairs.item, weight, n_rows=train.n_users, n_items=train.n_items),
        squares=jnp.asarray(np.bincount(pairs.user, pairs.weight**2, minlength=train.n_users).astype(np.float32)),
        shrinkage=jnp.asarray(shrinkage, jnp.float32),
        similarity=similarity,
    )


def similar(
    train: Ratings,
    side: Literal["item", "user"],
    *,
    k: int,
    shrinkage: float = 0.0,
    similarity: Similarity = cosine_similarity,
    batch_size: int | None = None,
) -> NearestNeighbors:
    """The k nearest neighbors of every item, or of every user, nearest first. Arguments as `item_knn`.

    Raises:
        ValueError: as `item_knn`; `side` is neither 'item' nor 'user'.
    """
    check.choice("side", side, ("item", "user"))
    n = train.n_items if side == "item" else train.n_users
    _check(k, n, side, batch_size)
    check.positive("shrinkage", shrinkage, zero=True)
    matrix = _by_side(_pairs(train), train, side)
    squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).reshape(-1)
    options: dict[str, Any] = {"similarity": similarity, "k": k, "batch_size": batch_size}
    return nearest(matrix, matrix, squares, shrinkage, **options)


def rp3beta(
    train: Ratings, *, k: int, alpha: float = 1.0, beta: float = 0.0, batch_size: int | None = None
) -> ItemScorer:
    """Scores by the probability of walks of three steps, user -> item -> user -> item, damped by popularity.

    With p(v, i) = x(v, i) / sum over i of x(v, i) the step of user v to item i, and p(h, v) that of item h to user v::

        F(h, i) = sum over users v of p(h, v)^alpha p(v, i)^alpha / (sum over v of x(v, i))^beta
        scores(j, i) = sum over the items h of user j of x(j, h) F(h, i)

    where the k largest F(h, i) of every item h of a history are kept, without i = h. The first step of the walk
    multiplies all scores of a user by one number if weights are 1, and is left out; weights enter as they are.

    Args:
        train: the pairs, and their weights.
        k: entries of F per item, at most n_items - 1.
        alpha: the power of the transitions, >= 0; 1 is a random walk, 0 counts walks.
        beta: the power of the popularity that scores are divided by, >= 0; 0 is P3alpha.
        batch_size: as `item_knn`.

    Raises:
        ValueError: k not in [1, n_items - 1]; alpha or beta negative or not finite; batch_size below 1; powers that do
            not fit in float32.

    Source: Cooper et al. 2014, Random walks in recommender systems (P3alpha); Paudel et al. 2017, Updatable, accurate,
    diverse, and scalable recommendations for interactive applications (RP3beta).
    """
    _check(k, train.n_items, "item", batch_size)
    check.positive("alpha", alpha, zero=True)
    check.positive("beta", beta, zero=True)
    pairs = _pairs(train)
    of_user, of_item = np.bincount(pairs.user, pairs.weight), np.bincount(pairs.item, pairs.weight)
    to_item = _by_side(pairs._replace(weight=(pairs.weight / of_user[pairs.user]) ** alpha), train, "item")
    to_user = _by_side(pairs._replace(weight=(pairs.weight / of_item[pairs.item]) ** alpha), train, "item")
    popularity = np.ones(train.n_items)
    with np.errstate(over="ignore"):
        popularity[: len(of_item)] = np.where(of_item > 0, of_item, 1) ** beta
        if not np.isfinite(popularity.astype(np.float32)).all():
            raise ValueError(f"beta: expected powers of the popularity that fit float32, got beta = {beta}.")
    found = nearest(to_item, to_user, popularity, 0.0, similarity=_per_popularity, k=k, batch_size=batch_size)
    source, number = np.nonzero(np.asarray(found.similarity))
    target, weight = np.asarray(found.ids)[source, number], np.asarray(found.similarity)[source, number]
    return item_scorer(train, sparse_rows(source, target, weight, n_rows=train.n_items, n_items=train.n_items))


def _per_popularity(products: Array, row_squares: Array, column_squares: Array, shrinkage: Array) -> Array:
    """Walks to the item of the row, over its popularity to the power of beta, which is in the place of its square."""
    return products / row_squares


class _Pairs(NamedTuple):
    """Distinct pairs with positive weights, float64."""

    user: np.ndarray
    item: np.ndarray
    weight: np.ndarray


def _pairs(train: Ratings) -> _Pairs:
    weight = np.ones(len(train)) if train.weights is None else train.weights.astype(np.float64)
    check.all_finite("weights", weight)
    key, position = np.unique(train.user * np.int64(train.n_items) + train.item, return_inverse=True)
    total = np.bincount(position, weight, minlength=len(key))
    key, total = key[total > 0], total[total > 0]
    return _Pairs(key // train.n_items, key % train.n_items, total)


def _by_side(pairs: _Pairs, train: Ratings, side: str) -> Any:
    """A sparse matrix whose columns are the items, or the users, over the other side."""
    from scipy import sparse  # takes 0.1 s to import and is needed only here

    matrix = sparse.csr_array(
        (pairs.weight.astype(np.float32), (pairs.user, pairs.item)), (train.n_users, train.n_items)
    )
    return matrix if side == "item" else matrix.T.tocsr()


def _check(k: int, n: int, side: str, batch_size: int | None) -> None:
    if not 1 <= check.whole_number("k", k) < n:
        raise ValueError(f"k: expected between 1 and {n - 1}, the other {side}s, got {k}.")
    if batch_size is not None:
        check.whole_number("batch_size", batch_size, least=1)
