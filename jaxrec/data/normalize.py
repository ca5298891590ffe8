"""Mean normalization: subtract what is known without learning, add it back in prediction.

Four fits, each of the train part only: `means_global`, `means_by_item`, `means_by_user`, `means_by_item_then_user`.
`subtract` takes means from ratings and `add` puts them back, `Means.at` looks them up for pairs, and `add_means` puts
them into Factors that were fitted to the residuals, so that predictions come in the ratings' units.

>>> ratings = Ratings(user=[0, 1, 1], item=[0, 0, 1], value=[5, 0, 4], n_users=2, n_items=3)
>>> means = means_by_item(ratings)
>>> means.item
array([2.5, 4. , 3. ], dtype=float32)
>>> subtract(ratings, means).value
array([ 2.5, -2.5,  0. ], dtype=float32)

Means are rounded to multiples of a power of two, about float32's own spacing at the largest number that can come up, so
that on grids coarser than that (stars, half stars, 0 too) neither the difference nor the sum rounds:
`add(subtract(ratings, means), means)` is `ratings` bit for bit. Of arbitrary real ratings y it is within float32's
spacing at the larger of |y| and |y - mean|.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec.types import Factors, Ratings

__all__ = [
    "Means",
    "add",
    "add_means",
    "means_by_item",
    "means_by_item_then_user",
    "means_by_user",
    "means_global",
    "subtract",
]

FLOAT32_BITS = 24


@dataclass(frozen=True, eq=False)
class Means:
    """What is known of a rating without learning: mean(i, j) = item[i] (or overall, without items) + user[j].

    Attributes:
        overall: the (weighted) mean of all ratings.
        user: float32 [n_users], each user's offset from the item's (or overall) mean; 0 without ratings. Or None.
        item: float32 [n_items], each item's mean; the overall mean without ratings. Or None.

    Raises:
        ValueError: a mean that is not finite, or beyond float32.
    """

    overall: float
    user: np.ndarray | None = None
    item: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Float32, whatever the tables come in: a sum of float16 or uint8 is none."""
        check.all_finite("means.overall", self.overall)
        object.__setattr__(self, "overall", float(self.overall))
        for name in ("user", "item"):
            if (table := getattr(self, name)) is not None:
                with np.errstate(over="ignore"):
                    table = np.array(table, np.float32)
                check.all_finite(f"means.{name}", table)
                object.__setattr__(self, name, table)

    def at(self, user: Any, item: Any) -> np.ndarray:
        """The means of pairs (user[k], item[k]), float32 [n].

        Raises:
            ValueError: users and items of different shapes; an id out of range of the tables.
        """
        check.same_shape(user=user, item=item)
        rows = {"user": self.user, "item": self.item}
        sizes = {name: check.INT32_MAX if table is None else len(table) for name, table in rows.items()}
        user, item = (
            np.asarray(check.row_ids(name, ids, size=sizes[name])) for name, ids in (("user", user), ("item", item))
        )
        return self._at(user, item)

    def _at(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        out = np.full(item.shape, self.overall, np.float32) if self.item is None else self.item[item]
        return out if self.user is None else out + self.user[user]


def means_global(ratings: Ratings) -> Means:
    """One mean for all: sum of (weight *) y over the sum of weights.

    Raises:
        ValueError: no ratings, or all of weight 0.
    """
    low, high = _range(ratings)
    return Means(float(_round(_overall(ratings), max(abs(low), abs(high), high - low))))


def means_by_item(ratings: Ratings) -> Means:
    """mu(i): each item's (weighted) mean; an item without ratings, or of total weight 0, gets the overall mean.

    Raises:
        ValueError: as `means_global`.
    """
    low, high = _range(ratings)
    bound = max(abs(low), abs(high), high - low)
    overall = float(_round(_overall(ratings), bound))
    item = _mean(ratings.item, ratings.value, ratings.weights, ratings.n_items, empty=overall)
    return Means(overall, item=_round(item, bound))


def means_by_user(ratings: Ratings) -> Means:
    """Each user's (weighted) mean, as an offset from the overall mean; 0 for a user without ratings or of weight 0.

    Raises:
        ValueError: as `means_global`.
    """
    low, high = _range(ratings)
    bound = max(abs(low), abs(high), high - low)
    overall = _round(_overall(ratings), bound)
    user = _mean(ratings.user, ratings.value, ratings.weights, ratings.n_users, empty=float(overall))
    with np.errstate(over="ignore"):  # what float32 does not hold is refused by Means
        return Means(float(overall), user=_round(user, bound) - overall)


def means_by_item_then_user(ratings: Ratings) -> Means:
    """Each item's mean as `means_by_item`, then each user's mean of what that leaves: 0 for a user without ratings.

    Raises:
        ValueError: as `means_global`.
    """
    low, high = _range(ratings)
    # what is left after items lies in [low - high, high - low], and so do its means
    bound = max(abs(low), abs(high)) + (high - low)
    overall = float(_round(_overall(ratings), bound))
    item = _round(_mean(ratings.item, ratings.value, ratings.weights, ratings.n_items, empty=overall), bound)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 does not hold is refused by Means
        left = ratings.value - item[ratings.item]
    return Means(
        overall, item=item, user=_round(_mean(ratings.user, left, ratings.weights, ratings.n_users, empty=0.0), bound)
    )


def subtract(ratings: Ratings, means: Means) -> Ratings:
    """Ratings y(i,j) - mean(i,j), for costs whose model has no means.

    Raises:
        ValueError: means of another number of users or items.
    """
    _check_sizes(ratings, means)
    with np.errstate(over="ignore"):
        return dataclasses.replace(ratings, value=ratings.value - means._at(ratings.user, ratings.item))


def add(ratings: Ratings, means: Means) -> Ratings:
    """Ratings y(i,j) + mean(i,j): the inverse of `subtract`, exact as the module says; raises as it does."""
    _check_sizes(ratings, means)
    with np.errstate(over="ignore"):
        return dataclasses.replace(ratings, value=ratings.value + means._at(ratings.user, ratings.item))


def add_means(factors: Factors, means: Means) -> Factors:
    """Factors whose prediction is that of `factors` + mean(i,j): item means (or overall) go to mu, user offsets to b.

    For factors that were fitted to `subtract(ratings, means)`. What they have in mu and b already stays in the sum,
    which is one of float32 at least.

    Raises:
        ValueError: means of another number of users or items; parts of the factors that differ in length.
    """
    n_users, n_items = len(factors.w), len(factors.x)
    _check_size("user", means.user, n_users)
    _check_size("item", means.item, n_items)
    if np.shape(factors.b) != (n_users,):
        raise ValueError(f"factors.b: expected one per user, shape ({n_users},), got {np.shape(factors.b)}.")
    if factors.mu is not None and np.shape(factors.mu) not in ((), (n_items,)):
        raise ValueError(f"factors.mu: expected a number or one per item ({n_items}), got {np.shape(factors.mu)}.")
    b, mu = check.as_floats(b=factors.b, mu=factors.mu)
    put = lambda table: jnp.asarray(table, b.dtype)
    offset = put(means.overall if means.item is None else means.item)
    if mu is not None:
        offset = jnp.broadcast_to(offset, jnp.broadcast_shapes(offset.shape, mu.shape)) + mu
    return dataclasses.replace(factors, b=b if means.user is None else b + put(means.user), mu=offset)


def _overall(ratings: Ratings) -> np.ndarray:
    one = np.zeros(len(ratings), np.int8)
    mean = _mean(one, ratings.value, ratings.weights, 1, empty=np.nan)[0]
    if np.isnan(mean):
        raise ValueError("no means: expected ratings of positive weight, got none. Is the train part empty?")
    return mean


def _mean(ids: np.ndarray, y: np.ndarray, weights: np.ndarray | None, size: int, *, empty: float) -> np.ndarray:
    """Float64 [size]: sum of weight * y over the sum of weights, by id."""
    count = np.bincount(ids, weights, minlength=size)
    total = np.bincount(ids, y if weights is None else y * weights.astype(np.float64), minlength=size)
    return np.where(count > 0, total / np.where(count > 0, count, 1), empty)


def _range(ratings: Ratings) -> tuple[float, float]:
    return (float(ratings.value.min()), float(ratings.value.max())) if len(ratings) else (0.0, 0.0)


def _round(means: np.ndarray, bound: float) -> np.ndarray:
    """Rounded to the spacing at which every number up to `bound` is a float32: sums and differences are then exact.

    Ratings, means and differences of the two are all at most `bound` and all multiples of the spacing.
    """
    if bound == 0:
        return means.astype(np.float32)
    spacing = 2.0 ** (np.ceil(np.log2(bound)) - FLOAT32_BITS)
    with np.errstate(over="ignore"):
        return (np.round(means / spacing) * spacing).astype(np.float32)


def _check_sizes(ratings: Ratings, means: Means) -> None:
    _check_size("user", means.user, ratings.n_users)
    _check_size("item", means.item, ratings.n_items)


def _check_size(name: str, table: np.ndarray | None, expected: int) -> None:
    if table is not None and np.shape(table) != (expected,):
        raise ValueError(f"means.{name}: expected one per {name}, shape ({expected},), got {np.shape(table)}.")
