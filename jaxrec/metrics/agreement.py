"""How much two models' lists of the same user agree: one number for each pair of lists.

`ids` [*n, k] is the one model's list and `others` [*n, m] the other's, `filled` and `where` are False at their empty
positions. Repeated ids of a list count at their first position only. With A and B the sets of their items, and X(d) the
number of items that the first d of both lists have in common:

| metric | value of one pair | the same in |
| --- | --- | --- |
| overlap | size of A ∩ B / size of A | RecTools' Intersection |
| jaccard | size of A ∩ B / size of A ∪ B | scikit-learn's jaccard_score of the sets' indicators |
| rank_biased_overlap | (1 - p) sum_d p^(d - 1) X(d) / d, see its docstring | LensKit, with tail='normalize' |

>>> import jax.numpy as jnp
>>> ids, others = jnp.array([1, 2, 3]), jnp.array([2, 1, 4])  # X = 0, 2, 2
>>> float(overlap(ids, others)), float(jaccard(ids, others))
(0.666666..., 0.5)
>>> float(rank_biased_overlap(ids, others, p=0.5))  # 0.5 (0 + 0.5 * 1 + 0.25 * 2/3) + 0.125 * 2/3
0.416666...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.metrics._lists import Ids, comparable_lists, each_list, first_positions, members

__all__ = ["jaccard", "overlap", "rank_biased_overlap"]

Others = Int[ArrayLike, "*n m"] | Sequence[Any]


def overlap(
    ids: Ids,
    others: Others,
    *,
    where: Bool[ArrayLike, "*n m"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The share of a model's list that the other's has: symmetric if they have the same length. NaN if A is empty.

    Args:
        ids: the one model's lists.
        others: the other model's lists, of the same users.
        where: False at empty positions of `others`.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: shapes that do not fit.
    """
    both, size, _ = _sizes(ids, others, where, filled)
    return _fraction(both, size)


def jaccard(
    ids: Ids,
    others: Others,
    *,
    where: Bool[ArrayLike, "*n m"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The share of all items of the two lists that are in both. NaN if both are empty. Arguments as `overlap`.

    Source: Jaccard 1901, Étude comparative de la distribution florale.
    """
    both, size, other_size = _sizes(ids, others, where, filled)
    return _fraction(both, size + other_size - both)


def rank_biased_overlap(
    ids: Ids,
    others: Others,
    *,
    p: float = 0.9,
    tail: Literal["extrapolate", "normalize"] = "extrapolate",
    where: Bool[ArrayLike, "*n m"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Rank-biased overlap: the agreement X(d) / d at depth d, averaged with weights (1 - p) p^(d - 1). 1 if equal.

    A reader goes on from one depth to the next with probability p, so that the first 10 depths have 86 % of the weight
    for p = 0.9. With s <= l the lengths of the lists, what follows the lists' ends is taken from them:

    - 'extrapolate', RBO_ext of the source: the shorter list goes on to have the share X(s) / s of common items, and
      after depth l the agreement stays::

        (1 - p) / p (sum_{d=1}^l X(d) / d p^d + sum_{d=s+1}^l X(s) (d - s) / (s d) p^d)
        + ((X(l) - X(s)) / l + X(s) / s) p^l

      and for lists of the same length (1 - p) sum_{d=1}^l p^(d - 1) X(d) / d + p^l X(l) / l.
    - 'normalize': the weights of the depths 1 .. l are divided by their sum, as in LensKit. A shorter list ends.

    NaN if either list is empty. Memory: k m numbers for each pair of lists; pass many long ones in batches.

    Args:
        ids: the one model's lists, best first.
        others: the other model's lists, of the same users.
        p: in (0, 1); the nearer to 0, the more the first positions count.
        tail: 'extrapolate' or 'normalize'.
        where: False at empty positions of `others`.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: shapes that do not fit; p outside (0, 1); another tail.

    Source: Webber, Moffat and Zobel 2010, A similarity measure for indefinite rankings, eq. 32.
    """
    check.choice("tail", tail, ("extrapolate", "normalize"))
    if not 0 < p < 1:
        raise ValueError(f"p: expected a number in (0, 1), got {p}.")
    (ids, filled), (others, where) = comparable_lists(ids, filled, others=(others, where))
    depth = max(ids.shape[-1], others.shape[-1])
    formula = _extrapolated if tail == "extrapolate" else _normalized

    def one_pair(ids: Array, filled: Array, others: Array, where: Array) -> Array:
        filled, where = first_positions(ids, filled), first_positions(others, where)
        # A common item is in both lists from the larger of its two positions on, which count items, not empty places.
        position, other_position = jnp.cumsum(filled), jnp.cumsum(where)
        common = (ids[:, None] == others[None, :]) & filled[:, None] & where[None, :]
        reached = jnp.where(common, jnp.maximum(position[:, None], other_position[None, :]), 0).reshape(-1)
        X = jnp.cumsum(jnp.zeros(depth + 1, jnp.int32).at[reached].add(1).at[0].set(0)).astype(jnp.float32)
        size, other_size = jnp.sum(filled), jnp.sum(where)
        short, long = jnp.minimum(size, other_size), jnp.maximum(size, other_size)
        value = formula(X, jnp.maximum(short, 1), jnp.maximum(long, 1), p)
        return jnp.where(short > 0, value, jnp.nan)

    return each_list(one_pair, ids.shape[:-1], ids, filled, others, where)


def _extrapolated(X: Array, short: Array, long: Array, p: float) -> Array:
    """RBO_ext from X(0), X(1), ... and the lengths s <= l of the lists."""
    d = jnp.arange(1, len(X)).astype(X.dtype)
    X_s, X_l, s, l_ = gather(X, short), gather(X, long), short.astype(X.dtype), long.astype(X.dtype)
    beyond = jnp.where(d > s, X_s * (d - s) / (s * d), 0)
    terms = jnp.where(d <= l_, (X[1:] / d + beyond) * p ** (d - 1), 0)
    return (1 - p) * jnp.sum(terms) + ((X_l - X_s) / l_ + X_s / s) * p**l_


def _normalized(X: Array, short: Array, long: Array, p: float) -> Array:
    """The mean of X(d) / d over the depths 1 .. l, with weights p^(d - 1)."""
    d = jnp.arange(1, len(X)).astype(X.dtype)
    weight = jnp.where(d <= long.astype(X.dtype), p ** (d - 1), 0)
    return jnp.sum(weight * X[1:] / d) / jnp.sum(weight)


def _sizes(ids: Any, others: Any, where: Any, filled: Any) -> tuple[Array, Array, Array]:
    """The numbers of distinct items in both lists, in the first and in the second."""
    (ids, filled), (others, where) = comparable_lists(ids, filled, others=(others, where))

    def one_pair(ids: Array, filled: Array, others: Array, where: Array) -> tuple[Array, Array, Array]:
        filled = first_positions(ids, filled)
        both = filled & members(ids, others, where)
        count = lambda mask: jnp.sum(mask).astype(jnp.float32)
        return count(both), count(filled), count(first_positions(others, where))

    return each_list(one_pair, ids.shape[:-1], ids, filled, others, where)


def _fraction(part: Array, total: Array) -> Array:
    return jnp.where(total > 0, part / jnp.maximum(total, 1), jnp.nan)
