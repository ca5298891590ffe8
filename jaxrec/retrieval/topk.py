"""Exact top-k search of a catalog by blocks, without a users x items matrix of scores.

>>> import jax.numpy as jnp
>>> items = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
>>> scores, ids = top_k(jnp.array([[2.0, 1.0]]), items, 2)
>>> ids.tolist(), scores.tolist()
([[2, 0]], [[3.0, 2.0]])
>>> seen = jnp.array([[2]]), jnp.array([[True]])
>>> top_k(jnp.array([[2.0, 1.0]]), items, 2, exclude=seen)[1].tolist()
[[0, 1]]
"""

from __future__ import annotations

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
from jaxrec.numerics import unit_vectors
from jaxrec.types import TopK

__all__ = ["check_exclude", "cosine", "dot", "negative_squared_distance", "top_k"]


@runtime_checkable
class Searchable(Protocol):
    """An index over `items` with its own search method."""

    @property
    def items(self) -> Array:
        """The catalog's vectors."""

    def top_k(self, queries: Array, k: int, *, exclude: Exclude | None, allowed: Array | None) -> TopK:
        """(scores, ids) like `retrieval.top_k`."""


def cosine(queries: Shaped[ArrayLike, "n d"], items: Shaped[ArrayLike, "m d"]) -> Float[Array, "n m"]:
    """Query . item / (‖query‖ ‖item‖); 0 if either norm is 0. For items of length 1, `dot` gives the same order."""
    return dot(unit_vectors(queries), unit_vectors(items))


def negative_squared_distance(
    queries: Shaped[ArrayLike, "n d"], items: Shaped[ArrayLike, "m d"]
) -> Float[Array, "n m"]:
    """-‖query - item‖^2, computed from differences: the expanded square loses the differences of near neighbors."""
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

    Equal to a full sort at any block size. Positions that cannot be filled, because too few items are allowed, have
    score -inf and id 0. Items whose score is NaN are never returned and do not affect the others. `models.as_vectors`
    makes queries and items whose product is the full prediction.

    Args:
        queries: one query [d], or one per row [n, d].
        items: the catalog, at least one item; or an index over one, such as that of `approximate.build_index`,
            which may miss items.
        k: the length of the lists, at most the catalog's size.
        exclude: (ids [n, e], where [n, e]), or [e] for one query: the items that each query must not get, such as those
            that the user has seen; `where` is False at padding.
        allowed: [m], False for items that no query may get.
        score: `dot`, `cosine` or `negative_squared_distance` of this module, or a function like them; the last one
            holds differences [n, block, d]: use a small block.
        block: items scored at once; memory is 64 * (block + m / 32) numbers, because queries are processed in batches
            of 64. None: 16,384; on a GPU as many as 1 GiB of products holds.

    Raises:
        ValueError: no items; k or block out of range; queries and items of different dimensions; `exclude` or `allowed`
            of another size; ids to exclude that are not items (not checked under jit, where they are ignored); a
            `score` with an index, which has its own.
    """
    queries = check.as_array("queries", queries)
    if queries.ndim == 1:
        as_row: Callable[[Any], Any] = lambda a: a[None] if isinstance(a, jax.Array) else np.asarray(a)[None]
        exclude_row = None if exclude is None else (as_row(exclude[0]), as_row(exclude[1]))
        scores, ids = top_k(queries[None], items, k, exclude=exclude_row, allowed=allowed, score=score, block=block)
        return TopK(scores[0], ids[0])
    table = items.items if isinstance(items, Searchable) else check.as_array("items", items)
    allowed = None if allowed is None else jnp.asarray(allowed)
    _check(queries, table, k, exclude, allowed, block)
    exclude = check_exclude(exclude, len(table))
    if isinstance(items, Searchable):
        if score is not dot:
            raise ValueError(
                f"score: expected dot, because an index has its own score, got {score}. Build the index from vectors "
                "whose dot product is the score."
            )
        return items.top_k(queries, k, exclude=exclude, allowed=allowed)
    is_float64 = jnp.float64 in (queries.dtype, table.dtype)
    queries = queries.astype(jnp.float64 if is_float64 else jnp.float32)  # sums in half precision change ranks
    return TopK(*two_pass(queries, table, exclude, allowed, score=score, k=k, block=block))


def check_exclude(exclude: Exclude | None, n_items: int) -> Exclude | None:
    """Returns (ids, where) as arrays, after checking that unmasked ids are items; traced ids are not checked."""
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
    if len(items) == 0:
        raise ValueError("items: expected a catalog of at least one item, got none.")
    if not 1 <= k <= len(items):
        raise ValueError(f"k: expected between 1 and the catalog's {len(items)} items, got {k}.")
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
