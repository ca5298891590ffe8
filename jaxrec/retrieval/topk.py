"""Exact search of a catalogue by blocks: the k best items of each query, never a users x items table.

>>> import jax.numpy as jnp
>>> items = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
>>> scores, ids = top_k(jnp.array([[2.0, 1.0]]), items, 2)
>>> ids.tolist(), scores.tolist()
([[2, 0]], [[3.0, 2.0]])
>>> seen = jnp.array([[2]]), jnp.array([[True]])
>>> top_k(jnp.array([[2.0, 1.0]]), items, 2, exclude=seen)[1].tolist()
[[0, 1]]
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.kernels.topk import Exclude, Score, dot, two_pass

__all__ = ["cosine", "dot", "negative_squared_distance", "top_k"]


@runtime_checkable
class Searchable(Protocol):
    """An index over `items`, which searches them in its own way."""

    items: Array

    def top_k(self, queries: Array, k: int, *, exclude: Exclude | None, allowed: Array | None) -> tuple[Array, Array]:
        """(scores, ids), as `top_k`."""


def cosine(queries: Float[Array, "n d"], items: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Query . item / (‖query‖ ‖item‖); 0 where either is 0. Items of length 1 need `dot` only."""
    return dot(_unit(queries), _unit(items))


def _unit(x: Array) -> Array:
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def negative_squared_distance(queries: Float[Array, "n d"], items: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """-‖query - item‖^2, from differences: the expanded square loses what near neighbors differ in."""
    return -jnp.sum((queries[:, None, :] - items[None, :, :]) ** 2, axis=-1)


def top_k(
    queries: Float[Array, "*n d"],
    items: Float[Array, "m d"] | Searchable,
    k: int,
    *,
    exclude: Exclude | None = None,
    allowed: Bool[Array, " m"] | None = None,
    score: Score = dot,
    block: int = 16384,
) -> tuple[Float[Array, "*n k"], Int[Array, "*n k"]]:
    """The k items with the largest query . item, as (scores, ids): best first, ties to the lowest id.

    Equal to a full sort at any block size. Places that cannot be filled, because too little is allowed, have score
    -inf and id 0. `models.as_vectors` makes queries and items whose product is the whole prediction.

    Args:
        queries: one query [d], or one per row [n, d].
        items: the catalogue; or an index over one, such as `retrieval.approximate.build` makes, which may miss some.
        k: how many, at most the catalogue's size.
        exclude: (ids [n, e], where [n, e]), or [e] for one query: what each must not get, such as what the user has
            seen; padding has `where` False.
        allowed: [m], False for items that nobody gets.
        score: `dot`, `cosine` or `negative_squared_distance` of this module, or a function like them; the last
            holds differences [n, block, d]: take a small block.
        block: items scored at once; memory is 64 * (block + m / 32) numbers: queries go in parts of 64.

    Raises:
        ValueError: k or block out of range; queries and items of different dimensions; `exclude` or `allowed` of
            another size; a score for an index, which has its own.
    """
    if queries.ndim == 1:
        rows = None if exclude is None else (exclude[0][None], exclude[1][None])
        scores, ids = top_k(queries[None], items, k, exclude=rows, allowed=allowed, score=score, block=block)
        return scores[0], ids[0]
    if isinstance(items, Searchable):
        if score is not dot:
            raise ValueError("score: an index has its own; build it of vectors whose dot product is the score.")
        _check(queries, items.items, k, exclude, allowed, block)
        return items.top_k(queries, k, exclude=exclude, allowed=allowed)
    _check(queries, items, k, exclude, allowed, block)
    return two_pass(queries, items, exclude, allowed, score=score, k=k, block=block)


def _check(queries: Array, items: Array, k: int, exclude: Exclude | None, allowed: Array | None, block: int) -> None:
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(
            f"expected queries [n, d] and items [m, d] of one dimension d, got {queries.shape} and {items.shape}."
        )
    if not 1 <= k <= len(items):
        raise ValueError(f"k: expected between 1 and the catalogue's {len(items)} items, got {k}.")
    if block < 1:
        raise ValueError(f"block: expected at least 1, got {block}.")
    if exclude is not None and not (exclude[0].shape == exclude[1].shape and exclude[0].shape[:1] == queries.shape[:1]):
        raise ValueError(
            f"exclude: expected ids and where of one shape [{queries.shape[0]}, e], one row per query, "
            f"got {exclude[0].shape} and {exclude[1].shape}."
        )
    if allowed is not None and allowed.shape != items.shape[:1]:
        raise ValueError(f"allowed: expected one flag per item, shape ({len(items)},), got {allowed.shape}.")
