"""Candidate generation: a few hundred items worth ranking, from several sources, for a catalog of any size.

Every source is a pure function of fixed shapes that returns (ids [c], where [c]) for one user; batch it with `vmap`.
Most sources look up a precomputed table:

| source | table | keys |
| --- | --- | --- |
| most similar to each of the last films watched | `nearest` of every item | the last ten items |
| the best of the user's genres | `top_of_groups` by genre | the three most viewed genres, `favorites` |
| the best of the user's region | `top_of_groups` by region | the region |
| most popular | `top_of_groups` of one group | 0 |
| nearest to the user's vector | none: `retrieval.top_k` | the vector |
| the user's own list | none | (ids, where) themselves |

`merge` combines them into one list without duplicates, seen items or items that are not allowed, and records which
sources proposed each item.

>>> import jax.numpy as jnp
>>> similar = Table(jnp.array([[1, 2], [0, 2], [1, 0]]), jnp.ones((3, 2), bool))
>>> a = look_up(similar, jnp.array([1, 0]), where=jnp.array([True, False]))  # watched: film 1; the 0 is masked
>>> b = jnp.array([2, 1]), jnp.array([True, True])
>>> ids, where, proposed_by = merge([a, b], size=4, exclude=(jnp.array([1]), jnp.array([True])))
>>> ids[where].tolist(), proposed_by[where].tolist()  # film 0 from the first source only, film 2 from both
([0, 2], [[True, False], [True, True]])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Shaped
from tqdm import tqdm

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.topk import Score, orderable, two_pass
from jaxrec.retrieval.topk import dot
from jaxrec.types import Padded

__all__ = ["Candidates", "Table", "favorites", "look_up", "merge", "nearest", "top_of_groups"]


class Table(NamedTuple):
    """Precomputed lists, one per row, such as the nearest items of an item or the best items of a genre.

    Attributes:
        ids: int32 [rows, c], best first.
        where: bool [rows, c], False at padding, whose id is 0.
    """

    ids: Array
    where: Array


class Candidates(NamedTuple):
    """A merged list of candidates.

    Attributes:
        ids: int32 [size], in the order in which the sources proposed them, first sources first.
        where: bool [size], False at padding, which is at the end and has id 0.
        proposed_by: bool [size, sources], which sources proposed each candidate.
    """

    ids: Array
    where: Array
    proposed_by: Array


def nearest(
    items: Shaped[ArrayLike, "n_items d"],
    k: int = 10,
    *,
    score: Score = dot,
    allowed: Bool[ArrayLike, " n_items"] | None = None,
    batch_size: int = 1024,
    block: int | None = None,
    progress: bool = True,
) -> Table:
    """The k nearest items of every item, excluding itself: [n_items, k], by blocks of rows and of the catalog.

    Args:
        items: the items' vectors, at least one.
        k: the length of the lists; they are padded if the catalog has fewer other items.
        score: as in `retrieval.top_k`.
        allowed: [n_items], False for items that no list may contain.
        batch_size: items whose lists are computed at once; memory is batch_size * block numbers.
        block: items scored at once; None as in `top_k`.
        progress: show a bar.

    Raises:
        ValueError: items that are not a table, or none; k, batch_size or block below 1; vectors that are not finite;
            `allowed` of another size.
    """
    (items,) = check.as_floats(items=items)
    if items.ndim != 2 or min(k, batch_size, 1 if block is None else block) < 1:
        raise ValueError(
            f"expected items [n, d] and k, batch_size, block >= 1, got {items.shape}, {k}, {batch_size}, {block}."
        )
    if len(items) == 0:
        raise ValueError("items: expected a catalog of at least one item, got none.")
    if not bool(jnp.isfinite(items).all()):
        raise ValueError("items: expected finite vectors, got NaN or infinity. Has training diverged?")
    n = len(items)
    allowed = _check_allowed(allowed, n)
    table_ids, table_where = np.zeros((n, k), np.int32), np.zeros((n, k), bool)
    n_neighbors, batch_size = min(k, n), min(batch_size, n)
    with tqdm(total=n, desc="nearest", unit="item", disable=not progress) as bar:
        for begin in range(0, n, batch_size):
            first = min(begin, n - batch_size)  # the last batch overlaps the one before: one shape to compile
            query_ids = jnp.arange(first, first + batch_size, dtype=jnp.int32)
            exclude = query_ids[:, None], jnp.ones((batch_size, 1), bool)
            scores, ids = two_pass(
                items[first : first + batch_size], items, exclude, allowed, score=score, k=n_neighbors, block=block
            )
            table_ids[first : first + batch_size, :n_neighbors] = ids
            table_where[first : first + batch_size, :n_neighbors] = np.asarray(scores) > -np.inf
            bar.update(min(batch_size, n - begin))
    return Table(jnp.asarray(table_ids), jnp.asarray(table_where))


def top_of_groups(
    score: Shaped[ArrayLike, " n_items"] | Shaped[ArrayLike, "groups n_items"],
    member: Bool[ArrayLike, "groups n_items"],
    k: int,
) -> Table:
    """The k members of every group with the largest score: [groups, k], ties to the lowest id.

    Args:
        score: the score of every item, or of every item in every group (such as how often people of a region watched
            it). Items with score NaN are skipped.
        member: which items are in which group, such as a genre; all True for a group of all items.
        k: the length of the lists, at most the catalog's size.

    Raises:
        ValueError: shapes that do not fit; k out of range.
    """
    (score,), member = check.as_floats(score=score), jnp.asarray(member)
    if member.ndim != 2 or score.shape not in (member.shape, member.shape[1:]) or not 1 <= k <= member.shape[1]:
        raise ValueError(
            f"expected member [groups, n_items], score of that shape or [n_items], 1 <= k <= n_items, got "
            f"{member.shape}, {score.shape}, {k}."
        )
    score = jnp.broadcast_to(score if score.ndim == 2 else score[None], member.shape)
    best, ids = jax.lax.top_k(jnp.where(member, orderable(score), -jnp.inf), k)
    return Table(jnp.where(best > -jnp.inf, ids, 0), best > -jnp.inf)


def favorites(count: Shaped[ArrayLike, " groups"], k: int) -> Padded:
    """The k groups with the largest count, (groups, where), such as a user's favorite genres. Counts of 0 are masked.

    Raises:
        ValueError: k not in [1, groups].
    """
    (count,) = check.as_floats(count=count)
    if count.ndim != 1 or not 1 <= k <= len(count):
        raise ValueError(f"expected count [groups] and k in [1, groups], got shape {count.shape} and {k}.")
    best, groups = jax.lax.top_k(orderable(count), k)
    return Padded(groups, best > 0)


def look_up(
    table: Table, keys: Int[ArrayLike, " m"] | Sequence[int], *, where: Bool[ArrayLike, " m"] | None = None
) -> Padded:
    """Concatenates the lists of several keys: (ids [m c], where [m c]), first keys first.

    Args:
        table: precomputed lists.
        keys: rows of the table: the last watched items, the favorite genres, the region.
        where: False at padding keys, which can have any value.

    Raises:
        ValueError: keys that are not rows of the table (not checked under jit); arrays of different shapes.
    """
    check.same_shape(keys=keys, where=where)
    check.same_shape(table_ids=table.ids, table_where=table.where)
    keys = check.row_ids("keys", keys, size=len(table.ids), where=where)
    where = jnp.ones(keys.shape, bool) if where is None else jnp.asarray(where)
    return Padded(gather(table.ids, keys).reshape(-1), (gather(table.where, keys) & where[:, None]).reshape(-1))


def merge(
    sources: Sequence[tuple[Int[ArrayLike, " _"], Bool[ArrayLike, " _"]]],
    *,
    size: int,
    exclude: tuple[Int[ArrayLike, " e"], Bool[ArrayLike, " e"]] | None = None,
    allowed: Bool[ArrayLike, " n_items"] | None = None,
) -> Candidates:
    """Merges the candidates of all sources into one list without duplicates, excluded items or items not allowed.

    Candidates keep the order of the sources, and the order within each source; beyond `size`, the last are dropped.
    All pairs are compared, C (C + e) of them for C candidates: use it for hundreds, not for a catalog.

    Args:
        sources: (ids, where) of each source; lengths may differ.
        size: the length of the merged list.
        exclude: (ids, where) of the items that the user has seen.
        allowed: [n_items], False for items that no user may get.

    Raises:
        ValueError: no source; ids and where of different shapes; size < 1; unmasked ids that are not items: negative,
            beyond `allowed`, or beyond int32 (not checked under jit).
    """
    if not sources or size < 1:
        raise ValueError(f"expected at least one source and size >= 1, got {len(sources)} and {size}.")
    n_items = check.INT32_MAX if allowed is None else jnp.shape(allowed)[0]
    for number, (ids, where) in enumerate(sources):
        if jnp.ndim(ids) != 1 or jnp.shape(ids) != jnp.shape(where):
            shapes = f"{jnp.shape(ids)} and {jnp.shape(where)}"
            raise ValueError(f"source {number}: expected ids [c] and where [c], got {shapes}.")
    check_ids = lambda name, ids, where: check.row_ids(name, ids, size=n_items, where=where).astype(jnp.int32)
    ids = jnp.concatenate([check_ids(f"source {number}", *source) for number, source in enumerate(sources)])
    valid = jnp.concatenate([jnp.asarray(where) for _, where in sources])
    if exclude is not None:
        check.same_shape(exclude=exclude[0], where=exclude[1])
        excluded, exclude_where = check_ids("exclude", *exclude), jnp.asarray(exclude[1])
        valid &= ~jnp.any((ids[:, None] == excluded[None, :]) & exclude_where[None, :], axis=1)
    if allowed is not None:
        valid &= gather(jnp.asarray(allowed), jnp.where(valid, ids, 0))
    source = jnp.asarray(np.repeat(np.arange(len(sources), dtype=np.int32), [np.size(ids) for ids, _ in sources]))
    equal = (ids[:, None] == ids[None, :]) & valid[:, None] & valid[None, :]
    first = valid & (jnp.argmax(equal, axis=1) == jnp.arange(len(ids)))
    proposed_by = jnp.stack([jnp.any(equal & (source == s)[None, :], axis=1) for s in range(len(sources))], axis=1)
    order = jnp.argsort(~first, stable=True)[:size]  # first occurrences in order, then the rest
    order = jnp.pad(order, (0, max(0, size - len(ids))))
    where = gather(first, order) & (jnp.arange(size) < len(ids))
    return Candidates(jnp.where(where, gather(ids, order), 0), where, gather(proposed_by, order) & where[:, None])


def _check_allowed(allowed: ArrayLike | None, n: int) -> Array | None:
    if allowed is not None and jnp.shape(allowed) != (n,):
        raise ValueError(f"allowed: expected one flag per item, shape ({n},), got {jnp.shape(allowed)}.")
    return None if allowed is None else jnp.asarray(allowed)
