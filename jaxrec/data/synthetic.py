"""Ratings drawn from a known model, low rank + biases + noise, for which the lowest possible error is known."""

import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec.types import Dataset, Factors, Ratings

__all__ = ["low_rank"]

GATHER_FLOATS = 1 << 22  # numbers gathered at a time: 16 MB of w and as much of x


def low_rank(
    n_users: int,
    n_items: int,
    n_ratings: int,
    *,
    rank: int = 4,
    noise: float = 0.5,
    activity: float = 1.0,
    popularity: float = 1.0,
    rng: np.random.Generator | int,
) -> Dataset:
    """Draws ratings y(i,j) = 3.5 + b(j) + c(i) + w(j) . x(i) + noise * normal, for users and items of unequal activity.

    The dataset's `truth` is the model without noise, whose test RMSE is `noise` up to sampling: no model can be
    expected to have a lower one. Its prediction is the rating without noise to the last bit of float32, in any order of
    summation: its parameters lie on grids so coarse (2^-9 for w and x, 2^-18 for biases) that no sum is rounded.

    Args:
        n_users: the number of users.
        n_items: the number of items, titled 'Film 1', ...
        n_ratings: the number of distinct (user, item) pairs, at most half of all.
        rank: the rank of w . x, whose standard deviation is 1/2, as is that of each bias.
        noise: the standard deviation of the noise.
        activity: the user with rank k = 0, 1, ... is drawn with probability proportional to (k + 10)^-activity; 0 makes
            all users equally active. (Ranks are shuffled. Pairs are distinct, so no user has more than n_items.)
        popularity: the same for items.
        rng: a generator or a seed.

    Raises:
        ValueError: n_ratings is more than half of the pairs; a number is negative, or a size or rank is not whole;
            there are no users or items; the exponents are so large that too few of the drawn pairs are distinct; noise
            does not fit in float32.

    >>> data = low_rank(30, 20, 200, noise=0.1, rng=0)
    >>> data.ratings, data.truth.w.shape
    (Ratings(200 ratings of 20 items by 30 users), (30, 4))
    """
    n_users, n_items = check.size_of_table("n_users", n_users), check.size_of_table("n_items", n_items)
    if n_ratings > n_users * n_items // 2:
        raise ValueError(f"n_ratings: expected at most half of {n_users} x {n_items} pairs, got {n_ratings}.")
    for name, number in {"rank": rank, "noise": noise, "activity": activity, "popularity": popularity}.items():
        check.positive(name, number, zero=True)
    for name, number in {"n_ratings": n_ratings, "rank": rank}.items():
        check.positive(name, number, zero=True)
        if number != int(number):
            raise ValueError(f"{name}: expected a whole number, got {number}.")
    n_ratings, rank = int(n_ratings), int(rank)
    rng = np.random.default_rng(rng)
    user, item = _pairs(_power_law(n_users, activity, rng), _power_law(n_items, popularity, rng), n_ratings, rng)
    scale = np.sqrt(0.5 / np.sqrt(max(rank, 1)))  # for w and for x; then w . x has standard deviation 1/2
    w, x = _normal(rng, (n_users, rank), scale, grid=2.0**-9), _normal(rng, (n_items, rank), scale, grid=2.0**-9)
    b, c = _normal(rng, n_users, 0.5, grid=2.0**-18), _normal(rng, n_items, 0.5, grid=2.0**-18)
    value = rng.standard_normal(n_ratings, dtype=np.float32)
    with np.errstate(over="ignore"):  # Ratings raises for infinite values
        value *= np.float32(noise)
    step = GATHER_FLOATS // max(rank, 1)
    for first in range(0, n_ratings, step):
        chunk = slice(first, first + step)
        j, i = user[chunk], item[chunk]
        value[chunk] += np.float32(3.5) + b[j] + c[i] + np.einsum("nd,nd->n", w[j], x[i])
    user_ids, item_ids = np.arange(1, n_users + 1), np.arange(1, n_items + 1)
    return Dataset(
        "synthetic",
        Ratings(user, item, value, n_users, n_items, user_ids=user_ids, item_ids=item_ids),
        titles=np.array([f"Film {k}" for k in item_ids]),
        source=f"drawn: rank {rank}, noise {noise}, activity {activity}, popularity {popularity}",
        truth=Factors(*(jnp.asarray(table) for table in (w, b, x, c, np.float32(3.5)))),
    )


def _power_law(n: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Returns probabilities [n] that decrease as a power of the rank, in random order."""
    weights = rng.permutation((np.arange(n) + 10.0) ** -exponent)
    if not weights.sum() > 0:
        raise ValueError(
            f"activity, popularity: expected exponents such as 1, got {exponent}, for which all probabilities are 0."
        )
    return weights / weights.sum()


def _pairs(
    user_probability: np.ndarray, item_probability: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws pairs in rounds until n are distinct; returns them in random order, user and item int32 [n]."""
    n_users, n_items = len(user_probability), np.int64(len(item_probability))
    cumulative = np.cumsum(item_probability)
    kept, batch, drawn = np.zeros(0, np.int64), n, 0
    while len(kept) < n:
        pairs = np.repeat(np.arange(n_users) * n_items, rng.multinomial(batch, user_probability))
        pairs += np.minimum(np.searchsorted(cumulative, rng.random(batch), side="right"), n_items - 1)
        merged = np.sort(np.concatenate([kept, pairs]))  # np.unique hashes first: 20 s for 20M; sorting takes 1 s
        merged = merged[np.diff(merged, prepend=-1) > 0]
        new, kept, drawn = len(merged) - len(kept), merged, drawn + batch
        missing = n - len(kept)
        if missing > 0 and drawn > 30 * n + 10_000:
            raise ValueError(
                f"expected {n} distinct pairs, got {len(kept)} in {drawn} draws: with these exponents most draws "
                "repeat a pair. Lower activity, popularity or n_ratings."
            )
        # 1.2 times the number of draws that find the missing pairs, at the rate of new pairs in this round
        batch = int(min(2 * n, 1.2 * missing * batch / max(new, 1))) + 10
    rng.shuffle(kept)
    user = kept[:n] // n_items
    return user.astype(np.int32), (kept[:n] - user * n_items).astype(np.int32)


def _normal(rng: np.random.Generator, shape: int | tuple[int, ...], scale: float, *, grid: float) -> np.ndarray:
    """Draws normal numbers with standard deviation `scale`, rounded to multiples of `grid`."""
    return (np.round(scale / grid * rng.standard_normal(shape)) * grid).astype(np.float32)
