"""Ratings drawn from a known truth: low rank + biases + noise, so that the best possible error is known."""

import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec.types import Dataset, Factors, Ratings

__all__ = ["low_rank"]

CHUNK = 1 << 22  # numbers gathered at a time: 16 MB of w and as much of x


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
    """Y = 3.5 + b(j) + c(i) + w(j) . x(i) + noise * normal; some users and items are far more active than others.

    A perfect model's test RMSE is `noise` (up to sampling): no model can honestly be below it. The result's `truth`
    is that model: its prediction is the rating without noise, to the last bit of float32 in whatever order it is
    summed, because its numbers are drawn on grids so coarse (2^-9 for w and x, 2^-18 for biases) that no sum rounds.

    Args:
        n_users: users.
        n_items: items, titled 'Film 1', ...
        n_ratings: distinct (user, item) pairs, at most half of all.
        rank: of w . x, whose standard deviation is 1/2 as are the biases'.
        noise: the standard deviation of the noise.
        activity: a pair's user is drawn with a chance that falls with her place k = 0, 1, .. as (k + 10)^-activity: 0
            makes all users alike. (Places are shuffled. Pairs are distinct, so the busiest are capped by n_items.)
        popularity: the same for items.
        rng: a generator or a seed.

    Raises:
        ValueError: more ratings than half of the pairs; a negative number, or one that is not whole where it counts;
            no user or item; exponents so large that the pairs repeat too often to find so many distinct ones; noise
            beyond float32.

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
    scale = np.sqrt(0.5 / np.sqrt(max(rank, 1)))  # of w and x each, so that w . x has standard deviation 1/2
    w, x = _normal(rng, (n_users, rank), scale, grid=2.0**-9), _normal(rng, (n_items, rank), scale, grid=2.0**-9)
    b, c = _normal(rng, n_users, 0.5, grid=2.0**-18), _normal(rng, n_items, 0.5, grid=2.0**-18)
    value = rng.standard_normal(n_ratings, dtype=np.float32)
    with np.errstate(over="ignore"):  # infinite ratings are refused by Ratings
        value *= np.float32(noise)
    step = CHUNK // max(rank, 1)
    for first in range(0, n_ratings, step):
        part = slice(first, first + step)
        j, i = user[part], item[part]
        value[part] += np.float32(3.5) + b[j] + c[i] + np.einsum("nd,nd->n", w[j], x[i])
    ids = np.arange(1, n_users + 1), np.arange(1, n_items + 1)
    return Dataset(
        "synthetic",
        Ratings(user, item, value, n_users, n_items, user_ids=ids[0], item_ids=ids[1]),
        titles=np.array([f"Film {k}" for k in ids[1]]),
        source=f"drawn: rank {rank}, noise {noise}, activity {activity}, popularity {popularity}",
        truth=Factors(*(jnp.asarray(table) for table in (w, b, x, c, np.float32(3.5)))),
    )


def _power_law(n: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Chances [n] of rows that fall as a power of their places, which are shuffled."""
    chance = rng.permutation((np.arange(n) + 10.0) ** -exponent)
    if not chance.sum() > 0:
        raise ValueError(
            f"activity, popularity: expected exponents such as 1, got {exponent}: all chances are 0 there."
        )
    return chance / chance.sum()


def _pairs(
    user_chance: np.ndarray, item_chance: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """N distinct pairs in random order, user and item int32 [n]: drawn again and again until enough are new."""
    n_users, n_items = len(user_chance), np.int64(len(item_chance))
    up_to = np.cumsum(item_chance)
    kept, wanted, drawn = np.zeros(0, np.int64), n, 0
    while len(kept) < n:
        pairs = np.repeat(np.arange(n_users) * n_items, rng.multinomial(wanted, user_chance))
        pairs += np.minimum(np.searchsorted(up_to, rng.random(wanted), side="right"), n_items - 1)
        merged = np.sort(np.concatenate([kept, pairs]))  # np.unique hashes first: 20 s for 20M, where sorting takes 1
        merged = merged[np.diff(merged, prepend=-1) > 0]
        new, kept, drawn = len(merged) - len(kept), merged, drawn + wanted
        missing = n - len(kept)
        if missing > 0 and drawn > 30 * n + 10_000:
            raise ValueError(
                f"{drawn} draws brought {len(kept)} distinct pairs, not {n}: at these exponents the same pairs come "
                "again and again. Lower activity or popularity, or n_ratings."
            )
        wanted = int(min(2 * n, 1.2 * missing * wanted / max(new, 1))) + 10  # at this round's yield, and some more
    rng.shuffle(kept)
    user = kept[:n] // n_items
    return user.astype(np.int32), (kept[:n] - user * n_items).astype(np.int32)


def _normal(rng: np.random.Generator, shape: int | tuple[int, ...], scale: float, *, grid: float) -> np.ndarray:
    return (np.round(scale / grid * rng.standard_normal(shape)) * grid).astype(np.float32)
