"""Negative samples for implicit feedback: items that a user has not chosen, to be ranked below those that they have.

| sampler | draws |
| --- | --- |
| `uniform` | every item equally often |
| `by_popularity` | item i with probability count(i)^power / sum, by Walker's alias method |
| `in_batch_mask` | nothing: the items of the batch's other pairs are the negatives |
| `hard` | nothing: the candidates with the highest current scores |

Samplers return ids and their log-probabilities, which `losses.softmax.sampled` takes to correct for them. Draws are
with replacement, and may be items that the user has seen: `is_seen` finds these, to be masked by `negative_where`.

>>> import jax, jax.numpy as jnp
>>> table = alias_table([8, 1, 1], power=1.0)
>>> drawn = by_popularity((1000,), table, key=jax.random.key(0))
>>> drawn.ids.shape, round(float(jnp.exp(table.log_q[0])), 3)
((1000,), 0.8)
>>> bool(abs(jnp.mean(drawn.ids == 0) - 0.8) < 0.05)
True
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, PRNGKeyArray, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.types import Padded

__all__ = ["AliasTable", "Negatives", "alias_table", "by_popularity", "hard", "in_batch_mask", "is_seen", "uniform"]


class Negatives(NamedTuple):
    """Sampled items.

    Attributes:
        ids: int32, of the shape that was asked for.
        log_q: float32, the log of the probability with which each of them is drawn.
    """

    ids: Array
    log_q: Array


class AliasTable(NamedTuple):
    """A discrete distribution, drawn from in constant time: slot k gives k with probability accept(k), else alias(k).

    Attributes:
        accept: float32 [n_items].
        alias: int32 [n_items].
        log_q: float32 [n_items], the log-probabilities of the items.
    """

    accept: Array
    alias: Array
    log_q: Array


def uniform(shape: tuple[int, ...], n_items: int, *, key: PRNGKeyArray) -> Negatives:
    """Items drawn uniformly.

    Args:
        shape: of the result: (c,) for negatives that all pairs of a batch share, (n, c) for each pair's own.
        n_items: the number of items.
        key: a random key.

    Raises:
        ValueError: n_items < 1.
    """
    check.random_key(key)
    n_items = check.size_of_table("n_items", n_items)
    ids = jax.random.randint(key, shape, 0, n_items, jnp.int32)
    return Negatives(ids, jnp.full(shape, -np.log(n_items), jnp.float32))


def alias_table(count: Shaped[ArrayLike, " n_items"], *, power: float = 0.75) -> AliasTable:
    """The distribution q(i) = count(i)^power / sum over all items, prepared on the host in float64.

    Cells of 1/n_items are filled: an item with less than that lends the rest of its cell to one with more. Light items
    are served in order by heavy ones in order, so that sums of deficits and of excesses say who serves whom.

    Args:
        count: how often each item occurs in the training data, `numpy.bincount(train.item, minlength=train.n_items)`.
        power: 1 draws as the data do; 0.75 is word2vec's; 0 draws all items equally often, also those of count 0.

    Raises:
        ValueError: counts that are negative, not finite or all 0; a power that is negative or not finite.

    Source: Walker 1977, An efficient method for generating discrete random variables with general distributions; the
    construction by sums: Huebschle-Schneider and Sanders 2019, Parallel weighted random sampling.
    """
    check.positive("power", power, zero=True)
    counts = check.finite("count", count, dtype=np.float64)
    if not (counts >= 0).all() or not counts.sum() > 0:
        raise ValueError("count: expected numbers >= 0, at least one of them > 0. Is the train part empty?")
    weight = (counts / counts.max()) ** power
    cell = weight * (len(weight) / weight.sum())  # 1 on average
    light, heavy = np.flatnonzero(cell < 1), np.flatnonzero(cell >= 1)
    excess = np.cumsum(cell[heavy] - 1)
    deficit = np.cumsum(np.concatenate([[0.0], 1 - cell[light]]))  # before each light item, and after all
    accept, alias = np.ones(len(cell)), np.arange(len(cell))
    accept[light] = cell[light]
    alias[light] = heavy[np.minimum(np.searchsorted(excess, deficit[:-1], side="right"), len(heavy) - 1)]
    # a heavy item serves until its excess is spent; what it has lent too much, it takes from the next one
    n_served = np.searchsorted(deficit[:-1], excess[:-1], side="left")
    accept[heavy[:-1]] = np.clip(1 - (deficit[n_served] - excess[:-1]), 0, 1)
    alias[heavy[:-1]] = heavy[1:]
    with np.errstate(divide="ignore"):
        log_q = np.log(weight) - np.log(weight.sum())
    return AliasTable(
        jnp.asarray(accept.astype(np.float32)),
        jnp.asarray(alias.astype(np.int32)),
        jnp.asarray(log_q.astype(np.float32)),
    )


def by_popularity(shape: tuple[int, ...], table: AliasTable, *, key: PRNGKeyArray) -> Negatives:
    """Items drawn from the distribution of an `alias_table`, two random numbers and two reads for each.

    Args:
        shape: as in `uniform`.
        table: the distribution.
        key: a random key.
    """
    check.random_key(key)
    check.same_shape(accept=table.accept, alias=table.alias, log_q=table.log_q)
    key_slot, key_accept = jax.random.split(key)
    slot = jax.random.randint(key_slot, shape, 0, len(table.accept), jnp.int32)
    accepted = jax.random.uniform(key_accept, shape, table.accept.dtype) < gather(table.accept, slot)
    ids = jnp.where(accepted, slot, gather(table.alias, slot))
    return Negatives(ids, gather(table.log_q, ids))


def in_batch_mask(
    item: Int[ArrayLike, " n"],
    *,
    user: Int[ArrayLike, " n"] | None = None,
    where: Bool[ArrayLike, " n"] | None = None,
) -> Bool[Array, "n n"]:
    """Which pairs' items are negatives of each pair: [n, m] is True if item m is one of pair n.

    Accidental hits are not: the pair's own item, in its own column or another, and, if `user` is given, all items of
    the user's pairs. Padding has and is no negative. The scores are v_user @ v_item.T of the batch, the ids `item`.

    Raises:
        ValueError: columns of different lengths; ids that are not integers.
    """
    check.same_shape(item=item, user=user, where=where)
    (item,) = check.comparable_ids(item=item)
    mask = item[:, None] != item[None, :]
    if user is not None:
        (user,) = check.comparable_ids(user=user)
        mask &= user[:, None] != user[None, :]
    if where is not None:
        where = jnp.asarray(where)
        mask &= where[:, None] & where[None, :]
    return mask


def hard(
    scores: Shaped[ArrayLike, "*n c"],
    candidates: Int[ArrayLike, "*n c"] | Int[ArrayLike, " c"],
    k: int,
    *,
    where: Bool[ArrayLike, "*n c"] | None = None,
) -> Padded:
    """The k candidates that the current scores rank highest, hardest first; ties go to the first of the candidates.

    Of a pool drawn by another sampler, with what the user has seen masked: the hardest of all items are mostly items
    that the user would like. No derivative passes.

    Args:
        scores: the current score of each candidate; NaN counts as the lowest.
        candidates: their ids, [c] if all rows share them.
        k: how many, between 1 and c.
        where: False for candidates that are left out.

    Returns:
        Ids [..., k], and `where`, False at positions that cannot be filled.

    Raises:
        ValueError: arrays that do not fit one another; k out of range.

    Source: Zhang et al. 2013, Optimizing top-n collaborative filtering via dynamic negative item sampling.
    """
    (score,) = check.as_floats(scores=scores)
    score = jax.lax.stop_gradient(score)
    check.same_shape(scores=scores, where=where)
    if np.shape(candidates) not in (score.shape, score.shape[-1:]):
        raise ValueError(
            f"candidates: expected ids of shape {score.shape} or {score.shape[-1:]}, got {np.shape(candidates)}."
        )
    if not 1 <= check.whole_number("k", k) <= score.shape[-1]:
        raise ValueError(f"k: expected between 1 and the {score.shape[-1]} candidates, got {k}.")
    score = jnp.where(jnp.isnan(score), -jnp.inf, score)
    score = score if where is None else jnp.where(jnp.asarray(where), score, -jnp.inf)
    top, position = jax.lax.top_k(score, k)
    ids = jnp.broadcast_to(jnp.asarray(candidates), score.shape)
    return Padded(jnp.take_along_axis(ids, position, axis=-1, mode="promise_in_bounds"), top > -jnp.inf)


def is_seen(
    candidates: Int[ArrayLike, "*n c"] | Int[ArrayLike, " c"],
    items: Int[ArrayLike, "*n e"],
    where: Bool[ArrayLike, "*n e"],
) -> Bool[Array, "*n c"]:
    """Whether each candidate is among its row's items, such as those that the user has seen: mask them as negatives.

    By a sort of each row and a binary search for each candidate.

    Args:
        candidates: ids, [c] if all rows share them.
        items: each row's list of ids, as `data.padded_items` returns it.
        where: False for padding.

    Raises:
        ValueError: arrays that do not fit one another; ids that are not integers.
    """
    check.same_shape(items=items, where=where)
    lead, c = np.shape(items)[:-1], np.shape(candidates)[-1:]
    if np.shape(candidates) not in (c, (*lead, *c)):
        raise ValueError(f"candidates: expected shape {c} or {(*lead, *c)}, got {np.shape(candidates)}.")
    candidates, items = check.comparable_ids(candidates=candidates, items=items)
    if items.shape[-1] == 0:
        return jnp.zeros((*lead, *c), bool)
    # Padding repeats one of the row's items, so that it finds nothing that is not there.
    valid = jnp.asarray(where)
    first = jnp.take_along_axis(items, jnp.argmax(valid, axis=-1, keepdims=True), axis=-1)
    sorted_items = jnp.sort(jnp.where(valid, items, first), axis=-1).reshape(-1, items.shape[-1])
    rows = jnp.broadcast_to(candidates, (*lead, *c)).reshape(-1, *c)
    position = jax.vmap(jnp.searchsorted)(sorted_items, rows)
    found = jnp.take_along_axis(sorted_items, jnp.minimum(position, items.shape[-1] - 1), axis=-1) == rows
    return found.reshape(*lead, *c) & jnp.any(valid, axis=-1, keepdims=True)
