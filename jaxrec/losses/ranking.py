"""Losses of lists: what a ranking makes of several candidates of one request.

>>> import jax.numpy as jnp
>>> total = softmax(jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]))
>>> round(float(total.sum), 4), float(total.count)  # log 3
(1.0986, 1.0)
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxrec.types import Total

__all__ = ["softmax"]


def softmax(
    score: Float[Array, "n c"],
    relevance: Float[Array, "n c"],
    *,
    where: Bool[Array, "n c"] | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Total:
    """Cross-entropy of what was relevant in each list.

    sum over n of - sum_i p(n, i) log softmax(score(n, .))_i, where p(n, .) is relevance(n, .) over its sum.

    A list's level does not matter, its order does: adding a number to all scores of a list changes nothing. Lists
    without anything relevant are left out, of the count too.

    Args:
        score: of each request's candidates.
        relevance: >= 0, such as 1 where she liked it.
        where: False at places that are empty, which may hold anything, NaN too.
        weights: one per list.

    Source: Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach (ListNet's top-one).
    """
    where = jnp.ones(score.shape, bool) if where is None else where
    relevance = jnp.where(where, relevance, 0)
    whole = jnp.sum(relevance, axis=1)
    some = whole > 0
    share = relevance / jnp.where(some, whole, 1)[:, None]
    # a list that is left out counts as one of zeros, so that it has a gradient, of zeros
    score = jnp.where(where & some[:, None], score, 0)
    norm = jax.nn.logsumexp(jnp.where(where | ~some[:, None], score, -jnp.inf), axis=1)
    loss = norm - jnp.sum(share * score, axis=1)
    weight = jnp.where(some, 1.0 if weights is None else weights, 0.0).astype(loss.dtype)
    return Total(jnp.sum(loss * weight), jnp.sum(weight))
