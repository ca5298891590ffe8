"""Losses of lists: what a ranking makes of several candidates of one request.

>>> import jax.numpy as jnp
>>> total = softmax(jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]))
>>> round(float(total.sum), 4), float(total.count)  # log 3
(1.0986, 1.0)
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped

from jaxrec import check
from jaxrec.numerics import log_softmax
from jaxrec.types import Total

__all__ = ["softmax"]


def softmax(
    score: Shaped[ArrayLike, "n c"],
    relevance: Shaped[ArrayLike, "n c"],
    *,
    where: Bool[ArrayLike, "n c"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
) -> Total:
    """Cross-entropy of what was relevant in each list.

    sum over n of - sum_i p(n, i) log softmax(score(n, .))_i, where p(n, .) is relevance(n, .) over its sum.

    A list's level does not matter, its order does: adding a number to all scores of a list changes nothing. Lists
    without anything relevant are left out, of the count too.

    An infinite score costs 0 where it is right and infinity where it is wrong, and never makes a NaN.

    Args:
        score: of each request's candidates.
        relevance: >= 0, such as 1 where the user liked it.
        where: False at places that are empty, which may hold anything, NaN too.
        weights: one per list.

    Raises:
        ValueError: arrays of different shapes.

    Source: Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach (ListNet's top-one).
    """
    check.same_shape(score=score, relevance=relevance, where=where)
    if weights is not None and jnp.shape(weights) != jnp.shape(score)[:1]:
        raise ValueError(f"weights: expected one per list, {jnp.shape(score)[:1]}, got shape {jnp.shape(weights)}.")
    score, relevance, weights = check.as_floats(score=score, relevance=relevance, weights=weights)
    where = jnp.ones(score.shape, bool) if where is None else jnp.asarray(where)
    relevance = jnp.where(where, relevance, 0)
    total = jnp.sum(relevance, axis=1)
    some = total > 0
    share = relevance / jnp.where(some, total, 1)[:, None]
    # a list that is left out counts as one of zeros, so that it has a gradient, of zeros
    score = jnp.where(where & some[:, None], score, 0)
    log_probability = log_softmax(score, where | ~some[:, None])
    loss = -jnp.sum(jnp.where(share > 0, share * jnp.where(share > 0, log_probability, 0), 0), axis=1)
    weight = jnp.where(some, 1.0 if weights is None else weights, 0.0).astype(loss.dtype)
    loss = jnp.where((weight == 0) & jnp.isinf(loss), 0, loss)
    return Total(jnp.sum(loss * weight), jnp.sum(weight))
