"""Ratings drawn from a known truth: low rank + biases + noise, so that the best possible error is known."""

import numpy as np

from jaxrec.types import Dataset, Ratings

__all__ = ["low_rank"]


def low_rank(
    n_users: int, n_items: int, n_ratings: int, *, rank: int = 4, noise: float = 0.5, rng: np.random.Generator | int
) -> Dataset:
    """Y = 3.5 + b(j) + c(i) + w(j) . x(i) + noise * normal; some users and items are far more active than others.

    A perfect model's test RMSE is `noise` (up to sampling): no model can honestly be below it.

    Args:
        n_users: users.
        n_items: items, titled 'Film 1', ...
        n_ratings: distinct (user, item) pairs, at most half of all.
        rank: of w . x, whose standard deviation is 1/2 as are the biases'.
        noise: the standard deviation of the noise.
        rng: a generator or a seed.

    Raises:
        ValueError: more ratings than half of the pairs.
    """
    if n_ratings > n_users * n_items // 2:
        raise ValueError(f"n_ratings: expected at most half of {n_users} x {n_items} pairs, got {n_ratings}.")
    rng = np.random.default_rng(rng)
    skew = lambda n: (w := rng.permutation(1.0 / (np.arange(n) + 10.0))) / w.sum()
    chance_user, chance_item = skew(n_users), skew(n_items)
    pairs = np.zeros(0, np.int64)
    while len(pairs) < n_ratings:
        user = rng.choice(n_users, n_ratings, p=chance_user)
        item = rng.choice(n_items, n_ratings, p=chance_item)
        pairs = np.unique(np.concatenate([pairs, user * np.int64(n_items) + item]))
    user, item = np.divmod(rng.permutation(pairs)[:n_ratings], n_items)
    w, x = rng.normal(size=(n_users, rank)), rng.normal(size=(n_items, rank))
    b, c = 0.5 * rng.normal(size=n_users), 0.5 * rng.normal(size=n_items)
    truth = 3.5 + b[user] + c[item] + 0.5 * (w[user] * x[item]).sum(1) / np.sqrt(max(rank, 1))
    value = truth + noise * rng.normal(size=n_ratings)
    ids = np.arange(1, n_users + 1), np.arange(1, n_items + 1)
    ratings = Ratings(user, item, value, n_users, n_items, user_ids=ids[0], item_ids=ids[1])
    titles = np.array([f"Film {k}" for k in ids[1]])
    return Dataset("synthetic", ratings, titles=titles, source=f"drawn: rank {rank}, noise {noise}")
