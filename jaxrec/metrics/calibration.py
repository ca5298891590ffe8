"""Calibration of lists to a user's tastes (Steck 2018): whose history is 70 % drama, their list should be too.

The categories of an item (genres, artists, price classes) are a row of `categories` [n_items, c], numbers >= 0 that are
divided by their sum: p(c|i), 1/2 and 1/2 for a film of two genres. With the user's history H and their list I::

    p(c) = mean over H of p(c|i),  q(c) = mean over I of p(c|i),  q~ = (1 - mixture) q + mixture p
    miscalibration = KL(p || q~) = sum_c p(c) log(p(c) / q~(c)), in nats: 0 for p = q, at most log(1 / mixture)

Items without categories (a row of zeros) are left out of the means.

>>> import jax.numpy as jnp
>>> genres = jnp.array([[1, 0], [1, 0], [1, 1], [0, 1]])  # drama, comedy
>>> history = jnp.array([0, 1, 2, 3])
>>> category_distribution(history, genres).tolist()  # (1 + 1 + 1/2) / 4
[0.625, 0.375]
>>> float(miscalibration(jnp.array([1, 2]), history, genres))  # of a list of 0.75 and 0.25, nearly
0.037...
>>> float(miscalibration(jnp.array([0, 1]), history, genres))  # dramas only
1.435...
>>> scores = jnp.array([5.0, 4.0, 3.0, 2.0])  # of the four items
>>> p = category_distribution(history, genres)
>>> calibrate(scores, genres, p, k=2, trade_off=0.5).positions.tolist()  # a drama, and what makes up for it
[0, 2]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.metrics._lists import Ids, each_list, rows_of_lists

__all__ = ["Calibrated", "calibrate", "category_distribution", "miscalibration"]


def category_distribution(
    ids: Ids,
    categories: Shaped[ArrayLike, "n_items c"],
    *,
    filled: Bool[ArrayLike, "*n k"] | None = None,
    weights: Shaped[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n c"]:
    """The (weighted) mean over a list, or a history, of its items' shares of categories, p(c|i).

    Args:
        ids: the lists.
        categories: a number >= 0 for each item and category, such as 1 for its genres.
        filled: False at empty positions of `ids`.
        weights: >= 0, all ones by default; in a history such as how recent an item is, in a list by position.

    Returns:
        For each list numbers that sum to 1; NaN if no position has an item with a category and a positive weight.

    Raises:
        ValueError: ids that are not rows of the table, categories or weights that are negative or not finite (neither
            is checked under jit); arrays of other shapes.

    Source: Steck 2018, Calibrated recommendations.
    """
    shares = _shares(categories)
    rows, filled = rows_of_lists("ids", ids, filled, size=len(shares))
    if weights is None:
        weights = filled.astype(shares.dtype)
    else:
        check.same_shape(ids=rows, weights=weights)
        shares, weights = check.as_floats(shares=shares, weights=weights)
        weights = jnp.where(filled, weights, 0)
        check.strength("weights", weights, zero=True)

    def one_list(rows: Array, weights: Array) -> Array:
        listed = jnp.where(weights[:, None] > 0, gather(shares, rows), 0)
        return _normalized(jnp.sum(weights[:, None] * listed, axis=0))

    return each_list(one_list, rows.shape[:-1], rows, weights)


def miscalibration(
    ids: Ids,
    history: Int[ArrayLike, "*n h"] | Sequence[Any],
    categories: Shaped[ArrayLike, "n_items c"],
    *,
    mixture: float = 0.01,
    where: Bool[ArrayLike, "*n h"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """KL(p || q~) in nats, of the categories of a user's history (p) and of their list (q): 0 if they are the same.

    For weighted lists or histories use `category_distribution` and the formula above. NaN for an empty list or history,
    or one without categories.

    Args:
        ids: the lists.
        history: the items of the same users in train, padded.
        categories: a number >= 0 for each item and category, such as 1 for its genres.
        mixture: q~ = (1 - mixture) q + mixture p, so that a category that is missing in the list costs no infinity;
            in (0, 1), the source's 0.01 by default.
        where: False at the padding of `history`.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: as `category_distribution`; a mixture outside (0, 1); histories of other users than the lists.

    Source: Steck 2018, Calibrated recommendations.
    """
    _check_mixture(mixture)
    p = category_distribution(history, categories, filled=where)
    q = category_distribution(ids, categories, filled=filled)
    check.same_shape(ids=q, history=p)
    return _divergence(p, q, mixture)


class Calibrated(NamedTuple):
    """Result of `calibrate`, in the order of selection.

    Attributes:
        scores: [k], the scores of the selected entries.
        positions: int32 [k], their positions among the candidates.
    """

    scores: Array
    positions: Array


def calibrate(
    scores: Shaped[ArrayLike, " n"],
    categories: Shaped[ArrayLike, "n c"],
    target: Shaped[ArrayLike, " c"],
    *,
    k: int,
    trade_off: float | Shaped[ArrayLike, ""],
    mixture: float = 0.01,
) -> Calibrated:
    """Selects k of one user's n candidates, by their score and by how near the list is to the target's categories.

    Greedy: each step adds, to the list I of those selected, the remaining candidate i with the largest

        (1 - trade_off) score(i) - trade_off KL(target || q~(I and i))

    For many users `vmap` it.

    Args:
        scores: the candidates' scores, whose scale matters; -inf or NaN for an empty one, which is selected last.
        categories: the categories of these candidates, as the rows of `category_distribution`'s table.
        target: p, numbers that sum to 1: `category_distribution` of the user's history. For a user without one it is
            NaN, and the order of the scores remains.
        k: the number of candidates to select, at most n.
        trade_off: 0 keeps the order of the scores, 1 uses the categories only.
        mixture: as in `miscalibration`.

    Returns:
        (scores, positions): ids[positions] are the items; ties go to the earlier position.

    Raises:
        ValueError: k not in [1, n]; not one row per score, or not one category per number of the target; categories
            that are negative or not finite; a target that is no distribution (not checked under jit); a trade-off
            outside [0, 1]; a mixture outside (0, 1).

    Source: Steck 2018, Calibrated recommendations (its greedy optimization).
    """
    _check_mixture(mixture)
    scores, trade_off = check.as_floats(scores=scores, trade_off=trade_off)
    shares = _shares(categories)
    scores, shares, target = check.as_floats(scores=scores, shares=shares, target=target)
    if scores.ndim != 1 or shares.shape[:1] != scores.shape or target.shape != shares.shape[1:]:
        raise ValueError(
            f"expected scores [n], categories [n, c] and target [c], got {scores.shape}, {shares.shape} and "
            f"{target.shape}."
        )
    if not 1 <= k <= len(scores):
        raise ValueError(f"k: expected between 1 and the {len(scores)} candidates, got {k}.")
    if not check.traced(trade_off) and not 0 <= trade_off <= 1:
        raise ValueError(f"trade_off: expected a number in [0, 1], got {trade_off}.")
    if not check.traced(target) and not bool(_is_distribution(target)):
        raise ValueError(
            f"target: expected numbers >= 0 that sum to 1, got {target}. Make them by category_distribution."
        )
    return Calibrated(*_calibrate(scores, shares, target, trade_off.astype(scores.dtype), k=k, mixture=mixture))


@partial(jax.jit, static_argnames=("k", "mixture"))
def _calibrate(
    scores: Array, shares: Array, target: Array, trade_off: Array, *, k: int, mixture: float
) -> tuple[Array, Array]:
    empty = ~(scores > -jnp.inf)  # NaN too
    relevance = (1 - trade_off) * jnp.where(empty, 0, scores)
    target = jnp.where(jnp.any(jnp.isnan(target)), 0, target)  # the divergence of no target is 0 for every list

    def select(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        total, remaining = state  # the sum of the selected candidates' shares; candidates not selected yet
        with_candidate = total[None, :] + shares
        count = jnp.sum(with_candidate, axis=1, keepdims=True)  # how many have categories, for a row sums to 1 or 0
        q = with_candidate / jnp.maximum(count, 1)
        value = relevance - trade_off * _divergence(jnp.broadcast_to(target[None, :], q.shape), q, mixture)
        value = jnp.where(remaining, jnp.where(empty, jnp.finfo(value.dtype).min, value), -jnp.inf)
        position = jnp.argmax(value)
        return (total + shares[position], remaining & (jnp.arange(len(scores)) != position)), position

    init = jnp.zeros(shares.shape[1:], shares.dtype), jnp.ones(scores.shape, bool)
    _, positions = jax.lax.scan(select, init, length=k)
    return gather(scores, positions), positions.astype(jnp.int32)


def _divergence(p: Array, q: Array, mixture: float) -> Array:
    """KL(p || (1 - mixture) q + mixture p) over the last axis; NaN if either is."""
    mixed = (1 - mixture) * q + mixture * p
    ratio = jnp.where(p == 0, 1, p / jnp.where(p == 0, 1, mixed))  # 0 log 0 = 0; NaN is not 0
    return jnp.sum(jnp.where(jnp.isnan(q), jnp.nan, p * jnp.log(ratio)), axis=-1)


def _shares(categories: ArrayLike) -> Array:
    """p(c|i), each row of the table divided by its sum; zeros stay zeros."""
    (table,) = check.as_floats(categories=categories)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"categories: expected a row for each item [n_items, c], got shape {table.shape}.")
    check.strength("categories", table, zero=True)
    total = jnp.sum(table, axis=1, keepdims=True)
    return table / jnp.where(total > 0, total, 1)


def _normalized(total: Array) -> Array:
    """Numbers [c] divided by their sum; NaN if that is 0."""
    count = jnp.sum(total)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)


def _is_distribution(target: Array) -> Array:
    """Whether numbers are >= 0 and sum to 1, or are NaN: the distribution of an empty history."""
    return jnp.any(jnp.isnan(target)) | (jnp.all(target >= 0) & (jnp.abs(jnp.sum(target) - 1) < 1e-3))


def _check_mixture(mixture: float) -> None:
    if not 0 < mixture < 1:
        raise ValueError(f"mixture: expected a number in (0, 1), got {mixture}.")
