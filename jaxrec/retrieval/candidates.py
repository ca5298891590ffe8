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
| what comes next after the last items | none: `top_of_sequence`, any sequence scorer | the last items |
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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

__all__ = [
    "Candidates",
    "ScoredIds",
    "Table",
    "favorites",
    "look_up",
    "merge",
    "nearest",
    "top_of_groups",
    "top_of_sequence",
]


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


class ScoredIds(NamedTuple):
    """A list of candidates with their scores, best first; the first two attributes are a source of `merge`.

    Attributes:
        ids: int32 [k], 0 at padding.
        where: bool [k], False at padding.
        scores: [k], -inf at padding.
    """

    ids: Array
    where: Array
    scores: Array


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


def top_of_sequence(
    score: Callable[[Array, Array], Any],
    item: Int[ArrayLike, " window"],
    count: Int[ArrayLike, ""],
    k: int,
    *,
    n_items: int,
    exclude_seen: bool = True,
    exclude: tuple[Int[ArrayLike, " e"], Bool[ArrayLike, " e"]] | None = None,
    empty: Shaped[ArrayLike, " n_items"] | None = None,
    allowed: Bool[ArrayLike, " n_items"] | None = None,
) -> ScoredIds:
    """The k items with the largest score of a sequence scorer after a user's last items, best first.

    Pure, of fixed shapes: batch it with `vmap`, and export it by `serving.save`. (ids, where) is a source of `merge`. A
    sequence scorer is any function (item [window], count []) -> scores [n_items], such as the `next_scores` of a
    `models.recency.RecencyScorer`; under jit it may hold traced arrays.

    Args:
        score: the sequence scorer.
        item: the user's last items, the newest first; beyond `count` any value.
        count: how many there are; 0 for a user without any.
        k: the length of the list, at most n_items.
        n_items: the catalog's size.
        exclude_seen: False also proposes the items of the sequence.
        exclude: (ids, where) of further items not to propose, such as those seen before the window.
        empty: the scores for a user without events, such as the items' popularity; None: nothing is proposed, rather
            than what a scorer gives without evidence.
        allowed: [n_items], False for items that no user may get.

    Returns:
        ids, where and scores; where there are too few items: id 0, False, -inf. NaN never wins.

    Raises:
        ValueError: other shapes; k not in [1, n_items]; unmasked ids that are not items, or a count above the window
            (not checked under jit).

    >>> follows = jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 5.0], [1.0, 1.0, 0.0]])
    >>> markov = lambda item, count: follows[item[0]]
    >>> found = top_of_sequence(markov, jnp.array([1, 0]), 1, 2, n_items=3)
    >>> found.ids.tolist(), found.scores.tolist()
    ([2, 0], [5.0, 2.0])
    >>> top_of_sequence(markov, jnp.array([0, 0]), 0, 2, n_items=3).where.tolist()  # no events, nothing proposed
    [False, False]
    """
    if np.ndim(item) != 1 or np.ndim(count) != 0:
        raise ValueError(
            f"expected item [window] and one count, got shapes {np.shape(item)} and {np.shape(count)}. Use vmap for "
            "several users."
        )
    if not 1 <= check.whole_number("k", k) <= n_items:
        raise ValueError(f"k: expected between 1 and the catalog's {n_items} items, got {k}.")
    if not check.traced(count) and not 0 <= int(np.asarray(count)) <= np.size(item):
        raise ValueError(f"count: expected between 0 and the window's {np.size(item)}, got {int(np.asarray(count))}.")
    number = jnp.asarray(count, jnp.int32)
    valid = jnp.arange(np.size(item), dtype=jnp.int32) < number
    ids = jnp.where(valid, check.row_ids("item", item, size=n_items, where=valid), 0).astype(jnp.int32)
    (scores,) = check.as_floats(score=score(ids, number))
    if scores.shape != (n_items,):
        raise ValueError(f"score: expected scores [{n_items}] of all items, got shape {scores.shape}.")
    if empty is None:
        scores = jnp.where(number > 0, scores, -jnp.inf)
    else:
        if np.shape(empty) != (n_items,):
            raise ValueError(f"empty: expected one score per item, ({n_items},), got {np.shape(empty)}.")
        scores = jnp.where(number > 0, scores, jnp.asarray(empty, scores.dtype))
    if exclude_seen:
        scores = scores.at[jnp.where(valid, ids, n_items)].set(-jnp.inf, mode="drop")
    if exclude is not None:
        check.same_shape(exclude=exclude[0], where=exclude[1])
        others = check.row_ids("exclude", exclude[0], size=n_items, where=exclude[1])
        scores = scores.at[jnp.where(jnp.asarray(exclude[1]), others, n_items)].set(-jnp.inf, mode="drop")
    flags = _check_allowed(allowed, n_items)
    scores = orderable(scores) if flags is None else jnp.where(flags, orderable(scores), -jnp.inf)
    best, found = jax.lax.top_k(scores, k)
    where = best > -jnp.inf
    return ScoredIds(jnp.where(where, found, 0), where, best)


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
