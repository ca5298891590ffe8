"""Mean normalization: subtract means from the ratings before fitting, and add them back to predictions.

Four functions compute means, each to be called on the train part only: `means_global`, `means_by_item`,
`means_by_user`, `means_by_item_then_user`. `subtract` subtracts means from ratings, `add` adds them, `Means.at` looks
them up for pairs, and `add_means` adds them to Factors fitted to the residuals, so that predictions are ratings.

>>> ratings = Ratings(user=[0, 1, 1], item=[0, 0, 1], value=[5, 0, 4], n_users=2, n_items=3)
>>> means = means_by_item(ratings)
>>> means.item
array([2.5, 4. , 3. ], dtype=float32)
>>> subtract(ratings, means).value
array([ 2.5, -2.5,  0. ], dtype=float32)

Means are rounded to multiples of a power of two, about float32's spacing at the largest number that can occur. For
ratings on a coarser grid (stars, half stars, 0 included) neither the difference nor the sum is then rounded, so
`add(subtract(ratings, means), means)` equals `ratings` bit for bit. For arbitrary real ratings y they differ by at most
float32's spacing at the larger of |y| and |y - mean|.
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
    """The means of ratings: mean(i, j) = item[i] + user[j], with `overall` for item[i] if `item` is None.

    Attributes:
        overall: the (weighted) mean of all ratings.
        user: float32 [n_users], each user's offset from the item mean (or the overall mean), 0 without ratings; None
            for no offsets.
        item: float32 [n_items], each item's mean, or the overall mean without ratings; None for no item means.

    Raises:
        ValueError: a mean is not finite, or does not fit in float32.
    """

    overall: float
    user: np.ndarray | None = None
    item: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Converts the tables to float32: sums in float16 or uint8 would overflow."""
        check.all_finite("means.overall", self.overall)
        object.__setattr__(self, "overall", float(self.overall))
        for name in ("user", "item"):
            if (table := getattr(self, name)) is not None:
                with np.errstate(over="ignore"):
                    table = np.array(table, np.float32)
                check.all_finite(f"means.{name}", table)
                object.__setattr__(self, name, table)

    def at(self, user: Any, item: Any) -> np.ndarray:
        """Returns the means of the pairs (user[k], item[k]), float32 [n].

        Raises:
            ValueError: users and items differ in shape; an id is out of range of its table.
        """
        check.same_shape(user=user, item=item)
        tables = {"user": self.user, "item": self.item}
        sizes = {name: check.INT32_MAX if table is None else len(table) for name, table in tables.items()}
        user, item = (
            np.asarray(check.row_ids(name, ids, size=sizes[name])) for name, ids in (("user", user), ("item", item))
        )
        return self._at(user, item)

    def _at(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        means = np.full(item.shape, self.overall, np.float32) if self.item is None else self.item[item]
        return means if self.user is None else means + self.user[user]


def means_global(ratings: Ratings) -> Means:
    """Returns the mean of all ratings: sum(weight * y) / sum(weight), with weights of 1 if there are none.

    Raises:
        ValueError: there are no ratings, or all weights are 0.
    """
    low, high = _range(ratings)
    return Means(float(_round(_overall(ratings), max(abs(low), abs(high), high - low))))


def means_by_item(ratings: Ratings) -> Means:
    """Returns mu(i), each item's (weighted) mean; the overall mean for items without ratings or of total weight 0.

    Raises:
        ValueError: as `means_global`.
    """
    low, high = _range(ratings)
    bound = max(abs(low), abs(high), high - low)
    overall = float(_round(_overall(ratings), bound))
    item = _mean(ratings.item, ratings.value, ratings.weights, ratings.n_items, empty=overall)
    return Means(overall, item=_round(item, bound))


def means_by_user(ratings: Ratings) -> Means:
    """Returns each user's (weighted) mean less the overall mean; 0 for users without ratings or of total weight 0.

    Raises:
        ValueError: as `means_global`.
    """
    low, high = _range(ratings)
    bound = max(abs(low), abs(high), high - low)
    overall = _round(_overall(ratings), bound)
    user = _mean(ratings.user, ratings.value, ratings.weights, ratings.n_users, empty=float(overall))
    with np.errstate(over="ignore"):  # Means raises for values that do not fit in float32
        return Means(float(overall), user=_round(user, bound) - overall)


def means_by_item_then_user(ratings: Ratings) -> Means:
    """Returns each item's mean as `means_by_item`, then each user's mean residual; 0 for users without ratings.

    Raises:
        ValueError: as `means_global`.
    """
    low, high = _range(ratings)
    # The residuals from the item means lie in [low - high, high - low], and so do their means.
    bound = max(abs(low), abs(high)) + (high - low)
    overall = float(_round(_overall(ratings), bound))
    item = _round(_mean(ratings.item, ratings.value, ratings.weights, ratings.n_items, empty=overall), bound)
    with np.errstate(over="ignore", invalid="ignore"):  # Means raises for values that do not fit in float32
        residual = ratings.value - item[ratings.item]
    user = _mean(ratings.user, residual, ratings.weights, ratings.n_users, empty=0.0)
    return Means(overall, item=item, user=_round(user, bound))


def subtract(ratings: Ratings, means: Means) -> Ratings:
    """Returns the ratings y(i,j) - mean(i,j), to fit a model without means to.

    Raises:
        ValueError: `means` are of another number of users or items.
    """
    _check_sizes(ratings, means)
    with np.errstate(over="ignore"):
        return dataclasses.replace(ratings, value=ratings.value - means._at(ratings.user, ratings.item))


def add(ratings: Ratings, means: Means) -> Ratings:
    """Returns the ratings y(i,j) + mean(i,j): the inverse of `subtract`, exact as stated above. Raises as it does."""
    _check_sizes(ratings, means)
    with np.errstate(over="ignore"):
        return dataclasses.replace(ratings, value=ratings.value + means._at(ratings.user, ratings.item))


def add_means(factors: Factors, means: Means) -> Factors:
    """Returns Factors that predict mean(i,j) more: the item means (or the overall mean) are added to mu, users' to b.

    For factors fitted to `subtract(ratings, means)`. They may have mu and b already; sums are float32 or wider.

    Raises:
        ValueError: `means` are of another number of users or items; parts of the factors differ in length.
    """
    check.factors("factors", factors)
    n_users, n_items = len(factors.w), len(factors.x)
    _check_size("user", means.user, n_users)
    _check_size("item", means.item, n_items)
    if np.shape(factors.b) != (n_users,):
        raise ValueError(f"factors.b: expected one per user, shape ({n_users},), got {np.shape(factors.b)}.")
    if factors.mu is not None and np.shape(factors.mu) not in ((), (n_items,)):
        raise ValueError(f"factors.mu: expected a number or one per item ({n_items}), got {np.shape(factors.mu)}.")
    b, mu = check.as_floats(b=factors.b, mu=factors.mu)
    as_array = lambda table: jnp.asarray(table, b.dtype)
    offset = as_array(means.overall if means.item is None else means.item)
    if mu is not None:
        offset = jnp.broadcast_to(offset, jnp.broadcast_shapes(offset.shape, mu.shape)) + mu
    return dataclasses.replace(factors, b=b if means.user is None else b + as_array(means.user), mu=offset)


def _overall(ratings: Ratings) -> np.ndarray:
    same_id = np.zeros(len(ratings), np.int8)
    mean = _mean(same_id, ratings.value, ratings.weights, 1, empty=np.nan)[0]
    if np.isnan(mean):
        raise ValueError("no means: expected ratings of positive weight, got none. Is the train part empty?")
    return mean


def _mean(ids: np.ndarray, y: np.ndarray, weights: np.ndarray | None, size: int, *, empty: float) -> np.ndarray:
    """Returns sum(weight * y) / sum(weight) per id, float64 [size]; `empty` for ids of total weight 0."""
    count = np.bincount(ids, weights, minlength=size)
    total = np.bincount(ids, y if weights is None else y * weights.astype(np.float64), minlength=size)
    return np.where(count > 0, total / np.where(count > 0, count, 1), empty)


def _range(ratings: Ratings) -> tuple[float, float]:
    return (float(ratings.value.min()), float(ratings.value.max())) if len(ratings) else (0.0, 0.0)


def _round(means: np.ndarray, bound: float) -> np.ndarray:
    """Rounds to multiples of a spacing that float32 represents exactly up to `bound`.

    If ratings are multiples of the spacing too, so are their differences from means and the sums. All are at most
    `bound`, so none is rounded.
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
