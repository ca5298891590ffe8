"""Predictions of matrix factorization: prediction(i, j) = w(j) . x(i) + b(j) + c(i) + mu(i).

For given pairs, for all pairs, and for the entries of every layout. Losses, solvers and models build on these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.sampled_dot import sampled_dot
from jaxrec.numerics import product
from jaxrec.ratings import check_same_ids
from jaxrec.types import Factors, Ratings

__all__ = [
    "Vectors",
    "all_predictions",
    "as_vectors",
    "biases",
    "check_factors",
    "in_float32",
    "item_term",
    "pair_predictions",
    "predict",
    "predict_all",
    "scorer_vectors",
]


class Vectors(NamedTuple):
    """User and item vectors whose products are the scores.

    Attributes:
        users: [n_users, d].
        items: [n_items, d].
    """

    users: Array
    items: Array


def predict(
    factors: Factors,
    user: Int[ArrayLike, "*n"] | Sequence[int] | Ratings,
    item: Int[ArrayLike, "*n"] | Sequence[int] | None = None,
    *,
    train: Ratings | None = None,
) -> Float[Array, "*n"]:
    """Predictions w(j) . x(i) + b(j) + c(i) + mu(i) for pairs (user[k], item[k]), summed in float32 or wider.

    Args:
        factors: the model.
        user: positions in the users' table, of any shape; or Ratings, whose pairs are predicted.
        item: positions in the items' table, of the same shape; None if `user` is Ratings.
        train: the ratings that the model was trained on, if `user` is Ratings with other positions: their raw ids are
            looked up in it. Without it the positions of the Ratings are used, and their table sizes must be the
            model's.

    Raises:
        ValueError: ids that are not in the tables (not checked under jit); shapes that differ; factors whose parts do
            not fit; Ratings of other tables; raw ids that are not in `train`.
    """
    check_factors(factors)
    n_users, n_items = len(factors.w), len(factors.x)
    if isinstance(user, Ratings):
        if item is not None:
            raise ValueError("item: expected None, because the Ratings in `user` have both ids.")
        user, item = _positions(factors, user, train)
    elif item is None or train is not None:
        raise ValueError("expected user and item ids of one shape, or Ratings (and train=, to look up raw ids).")
    check.same_shape(user=user, item=item)
    user, item = check.row_ids("user", user, size=n_users), check.row_ids("item", item, size=n_items)
    return pair_predictions(factors, user, item).astype(factors.w.dtype)


def pair_predictions(factors: Factors, user: Array, item: Array) -> Array:
    """`predict` without its checks, in float32 at least."""
    return sampled_dot(factors.w, factors.x, user, item) + biases(factors, user, item)


def _positions(factors: Factors, ratings: Ratings, train: Ratings | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the ratings' users and items in the model's tables."""
    reference = ratings if train is None else train
    got, expected = (reference.n_users, reference.n_items), (len(factors.w), len(factors.x))
    if got != expected:
        raise ValueError(
            f"{'ratings' if train is None else 'train'}: expected {expected} users and items, as the factors have, got "
            f"{got}." + (" Pass train=, the ratings it was trained on, to look up raw ids." if train is None else "")
        )
    if train is not None and train.user_ids is not None and ratings.user_ids is not None:
        ratings = ratings.reindexed(user_ids=train.user_ids)
    if train is not None and train.item_ids is not None and ratings.item_ids is not None:
        ratings = ratings.reindexed(item_ids=train.item_ids)
    check_same_ids(reference, ratings)
    return ratings.user, ratings.item


def biases(factors: Factors, user: Int[Array, "*n"], item: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """b(j) + c(i) + mu(i) for pairs (user[k], item[k]): the prediction without w(j) . x(i). Ids are not checked."""
    b, term = check.as_floats(b=gather(factors.b, user), term=gather(item_term(factors), item))
    return b + term


def predict_all(factors: Factors) -> Float[Array, "n_users n_items"]:
    """Predictions for all users and items. For small data only; use `retrieval.top_k` for large catalogs.

    Raises:
        ValueError: factors whose parts do not fit.
    """
    check_factors(factors)
    return all_predictions(factors).astype(factors.w.dtype)


def all_predictions(factors: Factors) -> Array:
    """`predict_all` without its checks, in float32 at least."""
    factors = in_float32(factors)
    return product(factors.w, factors.x.T) + factors.b[:, None] + item_term(factors)[None, :]


def in_float32(factors: Factors) -> Factors:
    """Returns the factors in float32, or in float64 if any of them is: the type that sums are computed in."""
    return Factors(*check.as_floats(w=factors.w, b=factors.b, x=factors.x, c=factors.c, mu=factors.mu))


def check_factors(factors: Factors) -> None:
    """Checks the shapes: w [n_users, d], b [n_users], x [n_items, d], c [n_items] or None, mu [], [n_items] or None.

    Shapes are static, so this costs nothing under jit.

    Raises:
        ValueError: if they do not fit.
    """
    check.factors("factors", factors)
    shape = lambda part: None if part is None else jnp.shape(part)
    w, b, x = jnp.shape(factors.w), jnp.shape(factors.b), jnp.shape(factors.x)
    c, mu = shape(factors.c), shape(factors.mu)
    fits = len(w) == len(x) == 2 and w[1] == x[1] and b == w[:1] and c in (None, x[:1]) and mu in (None, (), x[:1])
    if not fits:
        raise ValueError(
            "factors: expected w [n_users, d], b [n_users], x [n_items, d], c [n_items] or None, mu [] or [n_items] or "
            f"None; got w {w}, b {b}, x {x}, c {c}, mu {mu}."
        )


def as_vectors(factors: Factors) -> Vectors:
    """User and item vectors [., d + 2] whose product is the full prediction, so that rankings include c and mu.

    prediction(i, j) = (w(j), b(j), 1) . (x(i), 1, c(i) + mu(i)).

    Raises:
        ValueError: factors whose parts do not fit.

    >>> from jaxrec import models
    >>> factors = models.init(2, 3, 4, key=jax.random.key(0), mu=3.5)
    >>> users, items = as_vectors(factors)
    >>> bool(jnp.allclose(users @ items.T, predict_all(factors)))
    True
    """
    check_factors(factors)
    ones = lambda table: jnp.ones((len(table), 1), table.dtype)
    users = jnp.concatenate([factors.w, factors.b[:, None], ones(factors.w)], axis=1)
    items = jnp.concatenate([factors.x, ones(factors.x), item_term(factors)[:, None].astype(factors.x.dtype)], axis=1)
    return Vectors(users, items)


def scorer_vectors(name: str, scorer: Any) -> Vectors:
    """User and item vectors whose products are the scores: of Factors, or a pair of tables as it is.

    Raises:
        ValueError: `scorer` is neither, such as a `storage.Model`; factors whose parts do not fit.
    """
    if isinstance(scorer, Factors):
        return as_vectors(scorer)
    if hasattr(scorer, "factors") or not (isinstance(scorer, tuple | list) and len(scorer) == 2):
        check.factors(name, scorer, alternative="a pair (user vectors, item vectors)")
    return Vectors(*scorer)


def item_term(factors: Factors) -> Float[Array, " n_items"]:
    """c(i) + mu(i). mu is data, so its gradient is stopped."""
    c, mu = factors.c, factors.mu
    if mu is None:
        return jnp.zeros(factors.x.shape[:1], factors.x.dtype) if c is None else c
    c, mu = check.as_floats(c=c, mu=jax.lax.stop_gradient(mu))
    return jnp.broadcast_to(mu, factors.x.shape[:1]) if c is None else c + mu
