r"""Positions of relevant items among tied scores: the worst order, and the expected value over all orders.

A group of g items with one score, t of them relevant, takes the positions a .. a + g - 1 (from 0), in an order that the
scores do not decide. If all orders are equally likely, then at the x-th position of the group, x = p - a from 0::

    P(relevant at p)                                      = t / g
    E(relevant before p in the group | relevant at p)     = x (t - 1) / (g - 1)
    P(not relevant at p | none before p in the group)     = (g - t - x) / (g - x)

Precision, recall and NDCG are linear in the hits, so their expectations are their formulas at t / g; average precision
needs the second line; hit rate and reciprocal rank the third, multiplied over the positions: groups are independent.

Source: McSherry and Najork 2008, Computing information retrieval performance measures efficiently in the presence of
tied scores.

>>> scores, relevant = jnp.array([[2.0], [1.0], [1.0]]), jnp.array([[1]])  # item 1 ties with item 2 behind item 0
>>> group = tie_groups(scores, relevant, jnp.array([[True]]))
>>> worst_rank(group).tolist()
[[2]]
>>> positions = expected_positions(group, 3)
>>> positions.hit.tolist(), EXPECTED_FORMULAS[reciprocal_rank](positions, jnp.array([1.0]))  # 1/2 (1/2 + 1/3)
([[0.0, 0.5, 0.5]], Array([0.4166...], dtype=float32))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.metrics.ranking import average_precision, hit_rate, ndcg, precision, recall, reciprocal_rank

__all__ = ["EXPECTED_FORMULAS", "Positions", "TieGroups", "expected_positions", "tie_groups", "worst_rank"]


class TieGroups(NamedTuple):
    """The tied group of each relevant item, [e, n]: e items of n users.

    Attributes:
        first: the number of items with a higher score, a.
        size: the number of items with the same score, g; 0 for items that are not ranked.
        n_relevant: how many of these are relevant, t.
        order: how many relevant ones of the group stand before this one in the list of relevant items.
    """

    first: Array
    size: Array
    n_relevant: Array
    order: Array


class Positions(NamedTuple):
    """What is expected at each position of the lists, float [n, k].

    Attributes:
        hit: probability of a relevant item, t / g.
        hits_before: expected number of relevant items before it, given a relevant item there.
        miss: probability of no relevant item there, given none before it in its group.
    """

    hit: Array
    hits_before: Array
    miss: Array


def tie_groups(scores: Array, relevant: Array, where: Array) -> TieGroups:
    """The groups of the relevant items [e, n] among all scores [m, n]; `where` is False at padding."""
    own = jnp.take_along_axis(scores, relevant, axis=0, mode="promise_in_bounds")
    where = where & (own > -jnp.inf)

    def count(own: Array) -> tuple[Array, Array]:
        own = own[None, :]
        return jnp.sum(scores > own, axis=0, dtype=jnp.int32), jnp.sum(scores == own, axis=0, dtype=jnp.int32)

    first, size = jax.lax.map(count, own)
    tied = (own[:, None, :] == own[None, :, :]) & where[None, :, :]  # [e, e', n]: e' is relevant and ties with e
    earlier = jnp.tril(jnp.ones((len(own), len(own)), bool), -1)[:, :, None]
    count_tied = lambda mask: jnp.sum(mask, axis=1, dtype=jnp.int32)
    return TieGroups(first, jnp.where(where, size, 0), count_tied(tied), count_tied(tied & earlier))


def worst_rank(group: TieGroups) -> Array:
    """[e, n], the ranks if every other item of a group stands before its relevant ones."""
    return group.first + group.size - group.n_relevant + group.order


def expected_positions(group: TieGroups, k: int) -> Positions:
    """What is expected at the first k positions, if all orders of tied items are equally likely."""
    p = jnp.arange(k, dtype=jnp.int32)[:, None, None]
    first, size, n_relevant = (part[None] for part in (group.first, group.size, group.n_relevant))
    covers = (first <= p) & (p < first + size)  # [k, e, n]
    of_group = lambda part: jnp.max(jnp.where(covers, part, 0), axis=1)  # one group covers a position
    a, g, t = of_group(first), of_group(size), of_group(n_relevant)
    behind = jnp.any(covers, axis=1, keepdims=True) & (size > 0) & (first + size <= a[:, None, :])
    before = jnp.sum(behind, axis=1, dtype=jnp.float32)
    x, g, t = (part.astype(jnp.float32) for part in (p[:, 0, :] - a, g, t))
    hit = t / jnp.maximum(g, 1)
    hits_before = before + x * jnp.maximum(t - 1, 0) / jnp.maximum(g - 1, 1)
    miss = jnp.where(g > 0, jnp.maximum(g - t - x, 0) / jnp.maximum(g - x, 1), 1)
    return Positions(hit.T, hits_before.T, miss.T)


def _precision(at: Positions, count: Array) -> Array:
    return jnp.sum(at.hit, axis=1) / at.hit.shape[1]


def _recall(at: Positions, count: Array) -> Array:
    return jnp.sum(at.hit, axis=1) / count


def _ndcg(at: Positions, count: Array) -> Array:
    discount = 1 / jnp.log2(_number(at) + 1)
    return jnp.sum(at.hit * discount, axis=1) / jnp.sum(jnp.where(_number(at) <= count[:, None], discount, 0), axis=1)


def _average_precision(at: Positions, count: Array) -> Array:
    precision_at = (at.hits_before + 1) / _number(at)
    return jnp.sum(at.hit * precision_at, axis=1) / jnp.minimum(count, at.hit.shape[1])


def _hit_rate(at: Positions, count: Array) -> Array:
    return 1 - jnp.prod(at.miss, axis=1)


def _reciprocal_rank(at: Positions, count: Array) -> Array:
    none_yet = jnp.cumprod(at.miss, axis=1)
    first_here = jnp.pad(none_yet, ((0, 0), (1, 0)), constant_values=1.0)[:, :-1] - none_yet
    return jnp.sum(first_here / _number(at), axis=1)


def _number(at: Positions) -> Array:
    """[1, k], the positions counted from 1."""
    return jnp.arange(1, at.hit.shape[1] + 1, dtype=at.hit.dtype)[None, :]


# The expectation of each metric: formula(positions, R [n]) -> [n], with R >= 1.
EXPECTED_FORMULAS: Mapping[Callable[..., Array], Callable[[Positions, Array], Array]] = MappingProxyType(
    {
        precision: _precision,
        recall: _recall,
        hit_rate: _hit_rate,
        average_precision: _average_precision,
        reciprocal_rank: _reciprocal_rank,
        ndcg: _ndcg,
    }
)
