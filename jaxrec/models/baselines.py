"""Baselines that any model should beat: means, damped biases, popularity.

Each is Factors (of rank 0, except the content profile), so `predict`, `as_vectors` and `top_k` work as for any other
model. Baselines are fitted on the host, to the train part, in float64. A pair that occurs twice counts as two ratings.
Weights are used only by `popularity`.

All raise a ValueError if there are no ratings, or if a result does not fit float32.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec import check
from jaxrec.types import Factors, Ratings

__all__ = ["content_profile", "damped_biases", "global_mean", "item_mean", "popularity", "user_mean"]


def global_mean(ratings: Ratings) -> Factors:
    """Predicts the mean of all ratings for every pair."""
    return _rank_zero(ratings)


def user_mean(ratings: Ratings) -> Factors:
    """Predicts each user's mean rating for every item; the global mean for users without ratings."""
    return _rank_zero(ratings, b=_damped_mean(ratings.user, _centered(ratings), ratings.n_users, 0.0))


def item_mean(ratings: Ratings) -> Factors:
    """Predicts each item's mean rating for every user; the global mean for items without ratings."""
    return _rank_zero(ratings, c=_damped_mean(ratings.item, _centered(ratings), ratings.n_items, 0.0))


def damped_biases(ratings: Ratings, *, damping: float | tuple[float, float] = (4.0, 2.0), sweeps: int = 10) -> Factors:
    """Fits mu + b(j) + c(i), each bias a damped mean of residuals: a mean with `damping` more residuals of 0.

    c(i) = sum over the item's ratings of (y - mu - b(j)) / (count + damping), then b(j) likewise, alternately. This
    converges to the minimum of 1/2 squared error + damping/2 (‖b‖^2 + ‖c‖^2), and is ALS of rank 0.

    Args:
        ratings: the train part.
        damping: a number of ratings, or a pair (users', items'). The default had the lowest RMSE of eleven on a
            validation part of ml-100k's u1 train; baselines should be tuned too.
        sweeps: number of alternations; 1 is the one-pass form of many papers.

    Source: Koren 2010, Factor in the neighbors, section 2.1.
    """
    user_damping, item_damping = damping if isinstance(damping, tuple) else (damping, damping)
    check.positive("damping", user_damping, zero=True)
    check.positive("damping", item_damping, zero=True)
    y = _centered(ratings)
    b, c = np.zeros(ratings.n_users), np.zeros(ratings.n_items)
    for _ in range(sweeps):
        c = _damped_mean(ratings.item, y - b[ratings.user], ratings.n_items, item_damping)
        b = _damped_mean(ratings.user, y - c[ratings.item], ratings.n_users, user_damping)
    return _rank_zero(ratings, b=b, c=c)


def popularity(ratings: Ratings, *, half_life: float | None = None) -> Factors:
    """Scores each item by its number of ratings (the sum of their weights), for ranking, not for predicting ratings.

    With a half-life h, a rating counts 2^-(age / h), with its age before the latest rating: what is popular now. Scores
    are float32: above 2**24 ratings, counts that differ by little may become equal.

    Args:
        ratings: the train part.
        half_life: in units of the ratings' times, such as 30 * 86,400 for 30 days of seconds; None: all ratings count
            alike.

    Raises:
        ValueError: a half-life that is not positive and finite, or with ratings without times.
    """
    weights = ratings.weights
    if half_life is not None:
        check.positive("half_life", half_life)
        if ratings.time is None:
            raise ValueError("half_life: expected ratings with times, got none. Leave it out, or pass time=.")
        age = (ratings.time.max() - ratings.time).astype(np.float64) if len(ratings) else np.zeros(0)
        weights = np.exp2(-age / half_life) * (1 if weights is None else weights)
    count = np.bincount(ratings.item, weights=weights, minlength=ratings.n_items)
    return _rank_zero(ratings, c=count, mu=0.0)


def content_profile(ratings: Ratings, items: np.ndarray) -> Factors:
    """Scores items by their similarity to the user's profile, a weighted sum of the features of the items they rated.

    prediction = cosine(profile(j), features(i)), profile(j) = sum_i (y(i,j) - mean + 1/2) features(i): for
    ranking, not for predicting ratings. The 1/2 gives weight to having chosen the item at all. Users without ratings
    and items without features score 0. With TF-IDF features this is classical content-based filtering.

    Args:
        ratings: the train part.
        items: [n_items, d] features, such as `data.features` makes.

    Raises:
        ValueError: features of another number of items, or not finite; no ratings.

    Source: Pazzani and Billsus 2007, Content-based recommendation systems (Rocchio's method).
    """
    from scipy import sparse  # takes 0.1 s to import and is needed only here

    items = np.asarray(items, np.float64)
    if items.ndim != 2 or len(items) != ratings.n_items or not np.isfinite(items).all():
        raise ValueError(f"items: expected finite features [{ratings.n_items}, d], got shape {items.shape}.")
    # scaled to at most 1, so that sums do not overflow; the profile's norm does not matter
    scaled = items / (np.abs(items).max(initial=0.0) or 1.0)

    def sum_per_user(weight: np.ndarray, features: np.ndarray) -> np.ndarray:
        """[n_users, d]: the sum of weight times the item's features over each user's ratings."""
        pairs = (ratings.user, ratings.item)
        return sparse.csr_array((weight, pairs), shape=(ratings.n_users, ratings.n_items)) @ features

    profile = sum_per_user(_centered(ratings) + 0.5, scaled)
    # where terms cancel, only the rounding error of their magnitudes remains, which is set to 0
    magnitude = sum_per_user(np.abs(ratings.value) + (abs(_mean(ratings)) + 0.5), np.abs(scaled))
    return dataclasses.replace(
        _rank_zero(ratings, mu=0.0),
        w=jnp.asarray(_unit(np.where(np.abs(profile) > 1e-14 * magnitude, profile, 0)), jnp.float32),
        x=jnp.asarray(_unit(items), jnp.float32),
    )


def _unit(table: np.ndarray) -> np.ndarray:
    """Divides rows by their norms; zero rows stay 0. Divides by the largest entry first, whose square may overflow."""
    largest = np.abs(table).max(axis=1, keepdims=True, initial=0.0)
    table = table / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(norm > 0, norm, 1)


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
    def as_float32(name: str, values: np.ndarray | float) -> Array:
        with np.errstate(over="ignore"):
            array = np.asarray(values, np.float32)
        check.all_finite(name, array)
        return jnp.asarray(array)

    return Factors(
        w=jnp.zeros((ratings.n_users, 0), jnp.float32),
        b=as_float32("b", np.zeros(ratings.n_users) if b is None else b),
        x=jnp.zeros((ratings.n_items, 0), jnp.float32),
        c=as_float32("c", np.zeros(ratings.n_items) if c is None else c),
        mu=as_float32("mu", _mean(ratings) if mu is None else mu),
    )
