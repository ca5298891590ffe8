"""What any model must beat: means, damped biases, popularity.

Each is Factors (of rank 0, but for the content profile), so that `predict`, `as_vectors` and `top_k` serve it as they
serve any other model. Fitted on the host, on the train part, in float64. A pair that is there twice is two ratings, in
means as in counts; weights are read by `popularity` alone.

All raise a ValueError where there is nothing to take a mean of, and where a number is beyond float32.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec import check
from jaxrec.types import Factors, Ratings

__all__ = ["content_profile", "damped_biases", "global_mean", "item_mean", "popularity", "user_mean"]


def global_mean(ratings: Ratings) -> Factors:
    """Everybody gives everything the mean rating."""
    return _rank_zero(ratings)


def user_mean(ratings: Ratings) -> Factors:
    """Every user gives everything her mean rating; a user without ratings, the global mean."""
    return _rank_zero(ratings, b=_damped_mean(ratings.user, _centered(ratings), ratings.n_users, 0.0))


def item_mean(ratings: Ratings) -> Factors:
    """Everybody gives an item its mean rating; an item without ratings gets the global mean."""
    return _rank_zero(ratings, c=_damped_mean(ratings.item, _centered(ratings), ratings.n_items, 0.0))


def damped_biases(ratings: Ratings, *, damping: float | tuple[float, float] = (4.0, 2.0), sweeps: int = 10) -> Factors:
    """Mu + b(j) + c(i), each bias a mean of what the other leaves over, pulled to 0 as by `damping` more ratings of 0.

    c(i) = sum over its ratings of (y - mu - b(j)) / (count + damping), then b(j) likewise, in turns: the minimum of the
    squared error + damping/2 (‖b‖^2 + ‖c‖^2), which is ALS of rank 0.

    Args:
        ratings: the train part.
        damping: in ratings, a number or a pair (users', items'). The default had the lowest RMSE of eleven on a
            validation part of ml-100k's u1 train; a baseline should be given its best too.
        sweeps: turns; 1 is the one-pass form of many papers.

    Source: Koren 2010, Factor in the neighbors, section 2.1.
    """
    users, items = damping if isinstance(damping, tuple) else (damping, damping)
    check.positive("damping", users, zero=True)
    check.positive("damping", items, zero=True)
    y = _centered(ratings)
    b, c = np.zeros(ratings.n_users), np.zeros(ratings.n_items)
    for _ in range(sweeps):
        c = _damped_mean(ratings.item, y - b[ratings.user], ratings.n_items, items)
        b = _damped_mean(ratings.user, y - c[ratings.item], ratings.n_users, users)
    return _rank_zero(ratings, b=b, c=c)


def popularity(ratings: Ratings) -> Factors:
    """An item's score is how many ratings it has (their weights' sum): for rankings, not for ratings.

    As float32 has them: from 2**24 ratings on, counts that differ by little may be equal.
    """
    count = np.bincount(ratings.item, weights=ratings.weights, minlength=ratings.n_items)
    return _rank_zero(ratings, c=count, mu=0.0)


def content_profile(ratings: Ratings, items: np.ndarray) -> Factors:
    """A user's profile: the features of what she rated, summed, each times how much more than the mean she gave it.

    prediction = cosine(profile(j), features(i)), profile(j) = sum over her i of (y(i,j) - mean + 1/2) features(i): for
    rankings, not for ratings. The 1/2 says that having chosen a film counts for it. A user without ratings, or an
    item without features, gets 0. With features by TF-IDF this is the classic of content-based filtering.

    Args:
        ratings: the train part.
        items: [n_items, d] features, such as `data.features` makes.

    Raises:
        ValueError: features of another number of items, or not finite; no ratings.

    Source: Pazzani and Billsus 2007, Content-based recommendation systems (Rocchio's method).
    """
    from scipy import sparse  # 0.1 s to import, and only this needs it

    items = np.asarray(items, np.float64)
    if items.ndim != 2 or len(items) != ratings.n_items or not np.isfinite(items).all():
        raise ValueError(f"items: expected finite features [{ratings.n_items}, d], got shape {items.shape}.")
    # of features up to 1, so that their sums are numbers, too; a profile's length does not matter
    scaled = items / (np.abs(items).max(initial=0.0) or 1.0)

    def summed(share: np.ndarray, features: np.ndarray) -> np.ndarray:
        pairs = (ratings.user, ratings.item)
        return sparse.csr_array((share, pairs), shape=(ratings.n_users, ratings.n_items)) @ features

    profile = summed(_centered(ratings) + 0.5, scaled)
    # where likes and dislikes cancel, what is left is the rounding of numbers so large, and no profile
    size = summed(np.abs(ratings.value) + (abs(_mean(ratings)) + 0.5), np.abs(scaled))
    return dataclasses.replace(
        _rank_zero(ratings, mu=0.0),
        w=jnp.asarray(_unit(np.where(np.abs(profile) > 1e-14 * size, profile, 0)), jnp.float32),
        x=jnp.asarray(_unit(items), jnp.float32),
    )


def _unit(table: np.ndarray) -> np.ndarray:
    """Rows of length 1, those of zeros as they are; divided by the largest first, whose square may be infinite or 0."""
    largest = np.abs(table).max(axis=1, keepdims=True, initial=0.0)
    table = table / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(length > 0, length, 1)


def _centered(ratings: Ratings) -> np.ndarray:
    return ratings.value.astype(np.float64) - _mean(ratings)


def _mean(ratings: Ratings) -> float:
    if not len(ratings):
        raise ValueError("no means: expected ratings, got none. Is the train part empty?")
    return float(ratings.value.mean(dtype=np.float64))


def _damped_mean(ids: np.ndarray, y: np.ndarray, size: int, damping: float) -> np.ndarray:
    count = np.bincount(ids, minlength=size) + damping
    return np.bincount(ids, weights=y, minlength=size) / np.where(count > 0, count, 1)


def _rank_zero(
    ratings: Ratings, *, b: np.ndarray | None = None, c: np.ndarray | None = None, mu: float | None = None
) -> Factors:
    def column(name: str, values: np.ndarray | float) -> Array:
        with np.errstate(over="ignore"):
            narrow = np.asarray(values, np.float32)
        check.all_finite(name, narrow)
        return jnp.asarray(narrow)

    return Factors(
        w=jnp.zeros((ratings.n_users, 0), jnp.float32),
        b=column("b", np.zeros(ratings.n_users) if b is None else b),
        x=jnp.zeros((ratings.n_items, 0), jnp.float32),
        c=column("c", np.zeros(ratings.n_items) if c is None else c),
        mu=column("mu", _mean(ratings) if mu is None else mu),
    )
