"""Mean normalization: subtract what is known without learning, add it back in prediction.

Fitted on the train part only. The means go into `Factors.mu`, which `predict` adds, so that a user without ratings
(whom the penalty drives to w = 0, b = 0) is predicted mu(i).
"""

import dataclasses

import numpy as np

from jaxrec.types import Ratings

__all__ = ["item_mean", "subtract"]


def item_mean(ratings: Ratings) -> np.ndarray:
    """mu(i): each item's mean over its observed ratings, float32 [n_items]; an item without any gets the global mean.

    >>> item_mean(Ratings(user=[0, 1, 1], item=[0, 0, 1], value=[5, 0, 4], n_users=2, n_items=3))
    array([2.5, 4. , 3. ], dtype=float32)
    """
    count = np.bincount(ratings.item, minlength=ratings.n_items)
    total = np.bincount(ratings.item, weights=ratings.value, minlength=ratings.n_items)
    overall = ratings.value.mean(dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), overall).astype(np.float32)


def subtract(ratings: Ratings, mu: np.ndarray) -> Ratings:
    """Ratings y(i,j) - mu(i), for costs whose model has no mu; `mu` is [n_items]."""
    if np.shape(mu) != (ratings.n_items,):
        raise ValueError(f"mu: expected one mean per item, shape ({ratings.n_items},), got {np.shape(mu)}.")
    return dataclasses.replace(ratings, value=ratings.value - np.asarray(mu)[ratings.item])
