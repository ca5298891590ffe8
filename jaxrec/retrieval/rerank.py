"""Reranking: orders candidates by precomputed vectors, and makes lists diverse.

>>> import jax.numpy as jnp
>>> items = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 0.8]])
>>> candidates = jnp.array([0, 1, 2]), jnp.array([True, True, True])
>>> scores, ids = rank(jnp.array([1.0, 1.0]), items, *candidates, k=3)
>>> ids.tolist()
[0, 1, 2]
>>> diversify(scores, items[ids], k=3, trade_off=0.5)[1].tolist()  # positions: item 1 is similar to item 0
[0, 2, 1]
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.topk import orderable
from jaxrec.numerics import product, unit_vectors
from jaxrec.types import TopK

__all__ = ["Diversified", "diversify", "order", "rank"]


def rank(
    query: Shaped[ArrayLike, " d"],
    items: Shaped[ArrayLike, "n_items d"],
    ids: Int[ArrayLike, " c"],
    where: Bool[ArrayLike, " c"],
    *,
    k: int,
) -> TopK:
    """The k candidates with the largest query . item, best first: only the candidates' vectors are read.

    Ties go to the earlier candidate; positions that cannot be filled have score -inf and id 0, as in `top_k`.

    Args:
        query: a user's vector.
        items: the catalog's vectors, precomputed.
        ids: candidates, such as those of `candidates.merge`.
        where: False at padding, whose ids can have any value.
        k: the length of the list, at most c.

    Raises:
        ValueError: ids that are not items (not checked under jit); vectors of different dimensions; as `order`.
    """
    check.same_shape(ids=ids, where=where)
    if jnp.ndim(items) != 2 or jnp.shape(items)[1:] != jnp.shape(query):
        raise ValueError(f"expected query [d] and items [m, d], got {jnp.shape(query)} and {jnp.shape(items)}.")
    table = check.as_array("items", items)
    ids = check.row_ids("ids", ids, size=len(table), where=where)
    query, vectors = check.as_floats(query=query, items=gather(table, ids))
    return order(jnp.sum(vectors * query[None, :], axis=-1), ids, where, k=k)


def order(score: Shaped[ArrayLike, " c"], ids: Int[ArrayLike, " c"], where: Bool[ArrayLike, " c"], *, k: int) -> TopK:
    """The k candidates with the largest score, in the form of `rank`: for the scores of a ranking model.

    Candidates with score NaN are skipped.

    Raises:
        ValueError: k not in [1, c]; arrays of different lengths; ids that int32 cannot hold.
    """
    check.same_shape(score=score, ids=ids, where=where)
    (score,) = check.as_floats(score=score)
    ids, where = check.row_ids("ids", ids, size=check.INT32_MAX, where=where), jnp.asarray(where)
    if not 1 <= k <= len(ids):
        raise ValueError(f"k: expected between 1 and the {len(ids)} candidates, got {k}.")
    score = jnp.where(where, orderable(score), -jnp.inf)
    best, position = jax.lax.top_k(score, k)
    return TopK(best, jnp.where(best > -jnp.inf, gather(ids, position), 0))


class Diversified(NamedTuple):
    """Result of `diversify`, in the order of selection.

    Attributes:
        scores: [k], the scores of the selected entries.
        positions: int32 [k], their positions in the list.
    """

    scores: Array
    positions: Array


def diversify(
    scores: Shaped[ArrayLike, " c"],
    vectors: Shaped[ArrayLike, "c d"],
    *,
    k: int,
    trade_off: float | Shaped[ArrayLike, ""],
) -> Diversified:
    """Maximal marginal relevance: selects k entries of a list by their score and their dissimilarity to one another.

    Each step selects, among the remaining entries p, the largest (1 - trade_off) score(p) - trade_off max over the
    selected q of cosine(p, q).

    Args:
        scores: the scores of the list's entries; -inf for an empty one, which is selected last. An entry whose score
            or vector is NaN counts as empty.
        vectors: the vectors of these items.
        k: the number of entries to select, at most c.
        trade_off: 0 keeps the order of the scores, 1 uses similarity only; the scores' scale matters.

    Returns:
        (scores, positions): ids[positions] are the items; ties go to the earlier position.

    Raises:
        ValueError: k not in [1, c]; not one vector per score; a trade-off outside [0, 1].

    Source: Carbonell and Goldstein 1998, The use of MMR.
    """
    scores, vectors, trade_off = check.as_floats(scores=scores, vectors=vectors, trade_off=trade_off)
    if scores.ndim != 1 or vectors.ndim != 2 or len(scores) != len(vectors):
        raise ValueError(f"expected scores [c] and vectors [c, d], got {scores.shape} and {vectors.shape}.")
    if not 1 <= k <= len(scores):
        raise ValueError(f"k: expected between 1 and the list's {len(scores)} entries, got {k}.")
    if not check.traced(trade_off) and not 0 <= trade_off <= 1:
        raise ValueError(f"trade_off: expected a number in [0, 1], got {trade_off}.")
    return Diversified(*_diversify(scores, vectors, trade_off, k=k))


@partial(jax.jit, static_argnames="k")
def _diversify(scores: Array, vectors: Array, trade_off: Array, *, k: int) -> tuple[Array, Array]:
    valid = ~jnp.any(jnp.isnan(vectors), axis=1)
    vectors = unit_vectors(jnp.where(valid[:, None], vectors, 0))
    empty = (orderable(scores) == -jnp.inf) | ~valid
    relevance = (1 - trade_off) * jnp.where(empty, 0, scores)

    def select(state: tuple[Array, Array], step: Array) -> tuple[tuple[Array, Array], Array]:
        similarity, remaining = state  # the largest cosine with a selected entry; entries not selected yet
        value = relevance - trade_off * jnp.where(step > 0, similarity, 0)
        value = jnp.where(remaining, jnp.where(empty, jnp.finfo(value.dtype).min, value), -jnp.inf)
        position = jnp.argmax(value)
        similarity = jnp.maximum(similarity, product(vectors, vectors[position]))
        return (similarity, remaining & (jnp.arange(len(scores)) != position)), position

    init = jnp.full(scores.shape, -jnp.inf, scores.dtype), jnp.ones(scores.shape, bool)
    _, positions = jax.lax.scan(select, init, jnp.arange(k))
    return gather(scores, positions), positions
