"""How far the distributions of two parts of ratings are apart, and how far they would be by chance."""

from typing import Literal, NamedTuple

import numpy as np

from jaxrec.types import Ratings

__all__ = ["Counts", "compare_counts", "ks_of_samples", "mean_deviation"]


class Counts(NamedTuple):
    """How train and test differ in the numbers of ratings of items, or of users.

    Attributes:
        n_train, n_test: how many have ratings in a part.
        unseen: bool [size of the table], those with ratings in test only.
        drift, drift_if_random, ks: see `audit`.
    """

    n_train: int
    n_test: int
    unseen: np.ndarray
    drift: float
    drift_if_random: float
    ks: float


def compare_counts(train: Ratings, test: Ratings, side: Literal["user", "item"]) -> Counts:
    """Compares the numbers of ratings of each user, or of each item, in train and test."""
    size = getattr(train, f"n_{side}s")
    in_train, in_test = (np.bincount(getattr(part, side), minlength=size) for part in (train, test))
    n, m, total = len(train), len(test), in_train + in_test
    counts, inverse = np.unique(total, return_inverse=True)
    # The distribution of n(i) + m(i) over the rows of each part.
    f, g = (np.bincount(inverse, weights=part) / len(rows) for part, rows in ((in_train, train), (in_test, test)))
    return Counts(
        int(np.sum(in_train > 0)),
        int(np.sum(in_test > 0)),
        (in_test > 0) & (in_train == 0),
        float(np.abs(in_train / n - in_test / m).sum() / 2),
        float(np.sum(np.bincount(inverse) * mean_deviation(counts, m, n + m)) * (1 / n + 1 / m) / 2),
        float(np.abs(np.cumsum(f - g)).max()),
    )


def mean_deviation(count: np.ndarray, m: int, total: int) -> np.ndarray:
    """E|X - E X| of the number X of an item's `count` rows among m rows drawn from `total` without replacement.

    X is hypergeometric with mean mu = count * m / total. With g(x) = x (total - count - m + x) P(X = x) / total,

        g(x) - g(x + 1) = (x - mu) P(X = x),

    so the sum of (x - mu) P(X = x) over x > mu is g(v), v = floor(mu) + 1, and E|X - mu| is twice that. This gives the
    mean drift of random splits, because m(i) / m - n(i) / n = (X - mu) (1 / n + 1 / m).
    """
    from scipy.special import gammaln  # takes 0.1 s to import

    log_binomial = lambda n, k: gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
    v = count * m // total + 1
    possible = (v <= count) & (v <= m)  # otherwise X is constant
    v = np.where(possible, v, count * m // total)
    log_p = log_binomial(count, v) + log_binomial(total - count, m - v) - log_binomial(total, m)
    return np.where(possible, 2 * v * (total - count - m + v) * np.exp(log_p) / total, 0.0)


def ks_of_samples(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference between the shares of a and of b that are at most x, over all x."""
    a, b = np.sort(a), np.sort(b)
    x = np.unique(np.concatenate([a, b]))
    return float(np.abs(np.searchsorted(a, x, "right") / len(a) - np.searchsorted(b, x, "right") / len(b)).max())
