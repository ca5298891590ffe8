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

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.kernels.topk import Exclude, Score, dot, two_pass
from jaxrec.numerics import unit
from jaxrec.types import TopK

__all__ = ["check_exclude", "cosine", "dot", "negative_squared_distance", "top_k"]


@runtime_checkable
class Searchable(Protocol):
    """An index over `items`, which searches them in its own way."""

    @property
    def items(self) -> Array:
        """The catalogue."""

    def top_k(self, queries: Array, k: int, *, exclude: Exclude | None, allowed: Array | None) -> TopK:
        """(scores, ids), as `top_k`."""


def cosine(queries: Shaped[ArrayLike, "n d"], items: Shaped[ArrayLike, "m d"]) -> Float[Array, "n m"]:
    """Query . item / (‖query‖ ‖item‖); 0 where either is 0. Items of length 1 need `dot` only."""
    return dot(unit(queries), unit(items))


def negative_squared_distance(
    queries: Shaped[ArrayLike, "n d"], items: Shaped[ArrayLike, "m d"]
) -> Float[Array, "n m"]:
    """-‖query - item‖^2, from differences: the expanded square loses what near neighbors differ in."""
    queries, items = check.as_floats(queries=queries, items=items)
    return -jnp.sum((queries[:, None, :] - items[None, :, :]) ** 2, axis=-1)


def top_k(
    queries: Shaped[ArrayLike, "*n d"],
    items: Shaped[ArrayLike, "m d"] | Searchable,
    k: int,
    *,
    exclude: Exclude | None = None,
    allowed: Bool[ArrayLike, " m"] | None = None,
    score: Score = dot,
    block: int | None = None,
) -> TopK:
    """The k items with the largest query . item, best first, ties to the lowest id.

    Equal to a full sort at any block size. Places that cannot be filled, because too little is allowed, have score
    -inf and id 0. A score that is NaN is never returned, and hides no other. `models.as_vectors` makes queries and
    items whose product is the whole prediction.

    Args:
        queries: one query [d], or one per row [n, d].
        items: the catalogue; or an index over one, such as `approximate.build_index` makes, which may miss some.
        k: how many, at most the catalogue's size.
        exclude: (ids [n, e], where [n, e]), or [e] for one query: what each must not get, such as what the user has
            seen; padding has `where` False.
        allowed: [m], False for items that nobody gets.
        score: `dot`, `cosine` or `negative_squared_distance` of this module, or a function like them; the last
            holds differences [n, block, d]: take a small block.
        block: items scored at once; memory is 64 * (block + m / 32) numbers: queries go in parts of 64. None: 16,384;
            on a GPU as many as 1 GiB of products holds.

    Raises:
        ValueError: k or block out of range; queries and items of different dimensions; `exclude` or `allowed` of
            another size; ids to exclude that are no items (under jit they are trusted, and nobody's are passed over); a
            score for an index, which has its own.
    """
    queries = check.as_array("queries", queries)
    if queries.ndim == 1:
        row: Callable[[Any], Any] = lambda each: each[None] if isinstance(each, jax.Array) else np.asarray(each)[None]
        rows = None if exclude is None else (row(exclude[0]), row(exclude[1]))
        scores, ids = top_k(queries[None], items, k, exclude=rows, allowed=allowed, score=score, block=block)
        return TopK(scores[0], ids[0])
    table = items.items if isinstance(items, Searchable) else check.as_array("items", items)
    allowed = None if allowed is None else jnp.asarray(allowed)
    _check(queries, table, k, exclude, allowed, block)
    exclude = check_exclude(exclude, len(table))
    if isinstance(items, Searchable):
        if score is not dot:
            raise ValueError("score: an index has its own; build it of vectors whose dot product is the score.")
        return items.top_k(queries, k, exclude=exclude, allowed=allowed)
    wide = jnp.float64 in (queries.dtype, table.dtype)
    queries = queries.astype(jnp.float64 if wide else jnp.float32)  # sums in half precision lose ranks
    return TopK(*two_pass(queries, table, exclude, allowed, score=score, k=k, block=block))


def check_exclude(exclude: Exclude | None, n_items: int) -> Exclude | None:
    """(ids, where) as arrays, having checked that what is unmasked are items; traced ids are trusted."""
    if exclude is None:
        return None
    ids, where = exclude
    return check.row_ids("exclude", ids, size=n_items, where=where), jnp.asarray(where)


def _check(
    queries: Array, items: Array, k: int, exclude: Exclude | None, allowed: Array | None, block: int | None
) -> None:
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(
            f"expected queries [n, d] and items [m, d] of one dimension d, got {queries.shape} and {items.shape}."
        )
    if not 1 <= k <= len(items):
        raise ValueError(f"k: expected between 1 and the catalogue's {len(items)} items, got {k}.")
    if block is not None and block < 1:
        raise ValueError(f"block: expected at least 1, got {block}.")
    if exclude is not None:
        ids, where = jnp.shape(exclude[0]), jnp.shape(exclude[1])
        if ids != where or len(ids) != 2 or ids[:1] != queries.shape[:1]:
            raise ValueError(
                f"exclude: expected ids and where of one shape [{queries.shape[0]}, e], one row per query, got "
                f"{ids} and {where}."
            )
    if allowed is not None and (allowed.shape != items.shape[:1] or allowed.dtype != bool):
        raise ValueError(
            f"allowed: expected one flag per item, shape ({len(items)},), got {allowed.dtype} of shape {allowed.shape}."
        )
