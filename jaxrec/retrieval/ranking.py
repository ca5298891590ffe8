"""Ranking: candidates in order, by vectors that were computed in advance; and lists that are not all alike.

>>> import jax.numpy as jnp
>>> items = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 0.8]])
>>> candidates = jnp.array([0, 1, 2]), jnp.array([True, True, True])
>>> scores, ids = rank(jnp.array([1.0, 1.0]), items, *candidates, k=3)
>>> ids.tolist()
[0, 1, 2]
>>> diversify(scores, items[ids], k=3, trade_off=0.5)[1].tolist()  # places: the second is much like the first
[0, 2, 1]
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.lookup import lookup

__all__ = ["diversify", "order", "rank"]


def rank(
    query: Float[Array, " d"],
    items: Float[Array, "n_items d"],
    ids: Int[Array, " c"],
    where: Bool[Array, " c"],
    *,
    k: int,
) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
    """The k candidates with the largest query . item, as (scores, ids): only the candidates' vectors are read.

    Ties go to the earlier candidate; places that cannot be filled have score -inf and id 0, as in `top_k`.

    Args:
        query: a user's vector.
        items: the catalogue's, computed in advance.
        ids: candidates, such as `candidates.merge` gives; trusted.
        where: False at empty places.
        k: at most c.
    """
    return order(jnp.sum(lookup(items, ids) * query[None, :], axis=-1), ids, where, k=k)


def order(
    score: Float[Array, " c"], ids: Int[Array, " c"], where: Bool[Array, " c"], *, k: int
) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
    """The k candidates with the largest score, as `rank` returns them: for scores from a ranking head.

    Raises:
        ValueError: k not in [1, c].
    """
    if not 1 <= k <= len(ids):
        raise ValueError(f"k: expected between 1 and the {len(ids)} candidates, got {k}.")
    score = jnp.where(where, jnp.where(score == 0, 0, score), -jnp.inf)
    best, place = jax.lax.top_k(score, k)
    return best, jnp.where(best > -jnp.inf, lookup(ids, place), 0)


def diversify(
    scores: Float[Array, " c"], vectors: Float[Array, "c d"], *, k: int, trade_off: float | Float[Array, ""]
) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
    """Maximal marginal relevance: k places of a list, each chosen for its score and for being unlike those before.

    Greedily argmax over what is left of (1 - trade_off) score - trade_off max over the chosen of cosine(., chosen).

    Args:
        scores: of the list's places; -inf for an empty one, which is taken last.
        vectors: of the items at these places.
        k: how many, at most c.
        trade_off: 0 keeps the order of the scores, 1 looks at likeness alone; mind the scores' own scale.

    Returns:
        (the scores of the chosen, their places in the list): ids[places] are the items; ties go to the earlier place.

    Raises:
        ValueError: k not in [1, c].

    Source: Carbonell and Goldstein 1998, The use of MMR.
    """
    if not 1 <= k <= len(scores):
        raise ValueError(f"k: expected between 1 and the list's {len(scores)} places, got {k}.")
    square = jnp.sum(vectors * vectors, axis=-1, keepdims=True)
    unit = vectors * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
    empty = scores == -jnp.inf
    relevance = (1 - trade_off) * jnp.where(empty, 0, scores)

    def choose(state: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], Array]:
        likeness, left = state
        value = relevance - trade_off * jnp.where(number > 0, likeness, 0)
        value = jnp.where(left, jnp.where(empty, jnp.finfo(value.dtype).min, value), -jnp.inf)
        place = jnp.argmax(value)
        likeness = jnp.maximum(likeness, unit @ unit[place])
        return (likeness, left & (jnp.arange(len(scores)) != place)), place

    start = jnp.full(scores.shape, -jnp.inf, scores.dtype), jnp.ones(scores.shape, bool)
    _, places = jax.lax.scan(choose, start, jnp.arange(k))
    return lookup(scores, places), places
