"""How new, how popular and how surprising the items of a list are: one number for each list.

All are means over the filled positions of `ids` [*n, k] (`filled` is False at empty ones, as in `metrics.ranking`) and
NaN for a list without any. A second list of the same users, such as their history, is padded, with `where` False at
the padding. pop(i) is a number for each item, such as its share of the train users; n(i) the number of its train users.

| metric | value of one list | the same in |
| --- | --- | --- |
| self_information | mean of -log2(n(i) / n_users), in bits | RecTools' MeanInvUserFreq |
| mean_popularity | mean of pop(i) | RecTools' AvgRecPopularity; LensKit's MeanPopRank for quantiles pop(i) |
| popularity_lift | mean of pop over the list / mean of pop over the history - 1 | |
| unexpectedness | positions whose item a primitive recommender does not list / filled positions | |
| serendipity | positions with an unexpected and relevant item / filled positions | |
| rank_serendipity | mean of hit(r) max(primitive rank of the item - r, 0) / n_items | RecTools' Serendipity |

>>> import jax.numpy as jnp
>>> users = jnp.array([8, 4, 1, 2])  # of each item, of 8 in all
>>> ids, history = jnp.array([[1, 2], [0, 3]]), jnp.array([[0, 3], [1, 3]])
>>> self_information(ids, users, n_users=8).tolist()  # (1 + 3) / 2 and (0 + 2) / 2
[2.0, 1.0]
>>> popularity_lift(ids, history, users).tolist()  # (4 + 1) / (8 + 2) - 1 and (8 + 2) / (4 + 2) - 1
[-0.5, 0.66666...]
>>> popular, liked = jnp.array([[0, 1], [0, 1]]), jnp.array([[1, 2], [0, 1]])
>>> unexpectedness(ids, popular).tolist()
[0.5, 0.5]
>>> serendipity(ids, liked, popular).tolist()  # item 2 is liked and not popular; item 3 is not liked
[0.5, 0.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.metrics._lists import Ids, comparable_lists, each_list, item_numbers, mean_where, members, rows_of_lists
from jaxrec.metrics.ranking import hits

__all__ = [
    "mean_popularity",
    "popularity_lift",
    "rank_serendipity",
    "self_information",
    "serendipity",
    "unexpectedness",
]


def self_information(
    ids: Ids,
    user_counts: Shaped[ArrayLike, " n_items"],
    *,
    n_users: int,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The mean over the list of -log2(n(i) / n_users): the bits that are learned by hearing that a user has the item.

    0 if every user has all the items, and one more whenever the items have half the users.

    Args:
        ids: the lists.
        user_counts: n(i), the number of users of each item in train. An item with none counts as with one, as in
            RecTools, since log 0 of one cold item would make every mean infinite.
        n_users: the number of users in train.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: ids that are not rows of the table (not checked under jit); counts that are negative or not finite;
            n_users below 1; a mask of another shape.

    Source: Zhou et al. 2010, Solving the apparent diversity-accuracy dilemma of recommender systems.
    """
    n_users = check.whole_number("n_users", n_users, least=1)
    user_counts = item_numbers("user_counts", user_counts)
    information = jnp.log2(n_users / jnp.maximum(user_counts, 1))
    return _mean_of_table("ids", ids, information, filled)


def mean_popularity(
    ids: Ids, popularity: Shaped[ArrayLike, " n_items"], *, filled: Bool[ArrayLike, "*n k"] | None = None
) -> Float[Array, "*n"]:
    """The mean over the list of pop(i), in the units of `popularity`.

    Args:
        ids: the lists, or histories.
        popularity: a number >= 0 for each item, such as how many train users have it.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: ids that are not rows of the table (not checked under jit); popularities that are negative or not
            finite; a mask of another shape.

    Source: Yin et al. 2012, Challenging the long tail recommendation.
    """
    return _mean_of_table("ids", ids, item_numbers("popularity", popularity), filled)


def popularity_lift(
    ids: Ids,
    history: Int[ArrayLike, "*n h"] | Sequence[Any],
    popularity: Shaped[ArrayLike, " n_items"],
    *,
    where: Bool[ArrayLike, "*n h"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """By which share the list is more popular than what the user chose themselves; 0 if as popular.

    mean of pop over the list / mean of pop over the history - 1: at least -1, and the same for popularities in any
    units. NaN for an empty list, an empty history, or one of items of popularity 0. The group lift of the source is
    that of a group's means, not the mean of its users' lifts: mean(p) / mean(q) - 1, with p and q the group's
    `mean_popularity` of lists and of histories.

    Args:
        ids: the lists.
        history: the items of the same users in train, padded.
        popularity: a number >= 0 for each item, such as how many train users have it.
        where: False at the padding of `history`.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: as `mean_popularity`; histories of other users than the lists.

    Source: Abdollahpouri et al. 2020, The connection between popularity bias, calibration, and fairness in
    recommendation.
    """
    popularity = item_numbers("popularity", popularity)
    of_list, of_history = (
        _mean_of_table(name, each, popularity, mask)
        for name, each, mask in (("ids", ids, filled), ("history", history, where))
    )
    check.same_shape(ids=of_list, history=of_history)
    positive = of_history > 0
    return jnp.where(positive, of_list / jnp.where(positive, of_history, 1) - 1, jnp.nan)


def unexpectedness(
    ids: Ids,
    expected: Int[ArrayLike, "*n m"] | Sequence[Any],
    *,
    where: Bool[ArrayLike, "*n m"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The fraction of the list that a primitive recommender does not have.

    Args:
        ids: the lists.
        expected: what the primitive recommender lists for the same users, padded, such as the most popular items.
        where: False at the padding of `expected`.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: shapes that do not fit.

    Source: Murakami, Mori and Orihara 2007, Metrics for evaluating the serendipity of recommendation lists.
    """
    (ids, filled), (expected, where) = comparable_lists(ids, filled, expected=(expected, where))
    unexpected = ~each_list(members, ids.shape[:-1], ids, expected, where)
    return mean_where(unexpected.astype(jnp.float32), filled)


def serendipity(
    ids: Ids,
    relevant: Int[ArrayLike, "*n e"] | Sequence[Any],
    expected: Int[ArrayLike, "*n m"] | Sequence[Any],
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
    expected_where: Bool[ArrayLike, "*n m"] | None = None,
) -> Float[Array, "*n"]:
    """The fraction of the list that is relevant and that a primitive recommender does not have.

    A relevant item counts at its first position only. NaN for an empty list, and, as all metrics of relevance here,
    where nothing is relevant.

    Args:
        ids: the lists.
        relevant: the relevant ids of the same users, padded.
        expected: what the primitive recommender lists for them, padded.
        where: False at the padding of `relevant`.
        filled: False at empty positions of `ids`.
        expected_where: False at the padding of `expected`.

    Raises:
        ValueError: shapes that do not fit.

    Source: Ge, Delgado-Battenfeld and Jannach 2010, Beyond accuracy: evaluating recommender systems by coverage and
    serendipity.
    """
    (ids, filled), (relevant, where), (expected, expected_where) = comparable_lists(
        ids, filled, relevant=(relevant, where), expected=(expected, expected_where)
    )
    unexpected = ~each_list(members, ids.shape[:-1], ids, expected, expected_where)
    hit = hits(ids, relevant, where=where, filled=filled)
    value = mean_where((hit & unexpected).astype(jnp.float32), filled)
    return jnp.where(jnp.any(where, axis=-1), value, jnp.nan)


def rank_serendipity(
    ids: Ids,
    relevant: Int[ArrayLike, "*n e"] | Sequence[Any],
    primitive_rank: Shaped[ArrayLike, " n_items"],
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The mean over the list of hit(r) max(rank(i) - r, 0) / n_items: by how far relevant items are ranked up.

    r = 1 .. k is the position of item i in the list, rank(i) = 1, 2, ... its position in a primitive recommender's list
    of the catalog. NaN for an empty list, and where nothing is relevant (0 in RecTools). RecTools' ranks by popularity
    are dense: items with the same count share a rank, the next count has the next rank, and items without interactions
    have rank n_items + 1.

    Args:
        ids: the lists.
        relevant: the relevant ids of the same users, padded.
        primitive_rank: rank(i) of each item, from 1.
        where: False at the padding of `relevant`.
        filled: False at empty positions of `ids`.

    Raises:
        ValueError: ids that are not rows of the table (not checked under jit); ranks that are negative or not finite;
            shapes that do not fit.

    Source: Murakami, Mori and Orihara 2007, in the form of RecTools.
    """
    rank = item_numbers("primitive_rank", primitive_rank)
    rows, filled = rows_of_lists("ids", ids, filled, size=len(rank))
    (ids, _), (relevant, where) = comparable_lists(rows, filled, relevant=(relevant, where))
    hit = hits(ids, relevant, where=where, filled=filled)
    position = jnp.arange(1, rows.shape[-1] + 1).astype(rank.dtype)
    ranked_up = jnp.maximum(gather(rank, rows) - position.reshape((1,) * (rows.ndim - 1) + (-1,)), 0)
    value = mean_where(jnp.where(hit, ranked_up, 0), filled) / len(rank)
    return jnp.where(jnp.any(where, axis=-1), value, jnp.nan)


def _mean_of_table(name: str, ids: Any, table: Array, where: ArrayLike | None) -> Array:
    """The mean of an item's number over each list."""
    rows, where = rows_of_lists(name, ids, where, size=len(table))
    return mean_where(gather(table, rows), where)
