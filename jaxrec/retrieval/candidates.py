"""Candidates: from several sources some hundreds of items that are worth ranking, of a catalogue of any size.

Every source is a pure function of fixed shapes that gives (ids [c], where [c]) for one user; `vmap` makes the batch.
Most are a look-up in a table that was computed in advance:

| source | table | asked with |
| --- | --- | --- |
| most similar to each of the last films watched | `nearest` of every item | the last ten items |
| the best of the user's genres | `top_of_groups` by genre | the three most viewed genres, `favorites` |
| the best of the user's region | `top_of_groups` by region | the region |
| most popular | `top_of_groups` of one group | 0 |
| nearest to the user's vector | none: `retrieval.top_k` | the vector |
| the user's own list | none | (ids, where) as it is |

`merge` makes one list of them: no item twice, nothing seen, nothing that is not allowed, and which sources named it.

>>> import jax.numpy as jnp
>>> similar = Table(jnp.array([[1, 2], [0, 2], [1, 0]]), jnp.ones((3, 2), bool))
>>> a = look_up(similar, jnp.array([1, 0]), where=jnp.array([True, False]))  # watched: film 1; the 0 is padding
>>> b = jnp.array([2, 1]), jnp.array([True, True])
>>> ids, where, named = merge([a, b], size=4, exclude=(jnp.array([1]), jnp.array([True])))
>>> ids[where].tolist(), named[where].tolist()  # film 0 from the first source alone, film 2 from both
([0, 2], [[True, False], [True, True]])
"""

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
    """Lists computed in advance, one per row: an item's nearest, a genre's best.

    Attributes:
        ids: int32 [rows, c], best first.
        where: bool [rows, c], False where a list is shorter; the id there is 0.
    """

    ids: Array
    where: Array


class Candidates(NamedTuple):
    """A merged list.

    Attributes:
        ids: int32 [size], in the order in which the sources named them, first sources first.
        where: bool [size]; False places stand at the end, with id 0.
        named: bool [size, sources], which sources named each.
    """

    ids: Array
    where: Array
    named: Array


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
    """The k nearest items of every item, without itself: [n_items, k], by blocks of rows and of the catalogue.

    Args:
        items: vectors.
        k: how many; where the catalogue has fewer others, places stand empty.
        score: as in `retrieval.top_k`.
        allowed: items that may stand in a list.
        batch_size: items asked about at once; memory is batch_size * block numbers.
        block: items scored at once; None: as `top_k`.
        progress: show a bar.

    Raises:
        ValueError: items that are no table; k, batch_size or block below 1; vectors that are not finite; `allowed` of
            another size.
    """
    (items,) = check.as_floats(items=items)
    if items.ndim != 2 or min(k, batch_size, 1 if block is None else block) < 1:
        raise ValueError(
            f"expected items [n, d] and k, batch_size, block >= 1, got {items.shape}, {k}, {batch_size}, {block}."
        )
    if not bool(jnp.isfinite(items).all()):
        raise ValueError("items: expected finite vectors, got NaN or infinity. Has training diverged?")
    n = len(items)
    allowed = _flags(allowed, n)
    found, filled = np.zeros((n, k), np.int32), np.zeros((n, k), bool)
    wanted, batch_size = min(k, n), min(batch_size, n)
    with tqdm(total=n, desc="nearest", unit="item", disable=not progress) as bar:
        for begin in range(0, n, batch_size):
            first = min(begin, n - batch_size)  # the last part overlaps, so that there is one shape to compile
            asked = jnp.arange(first, first + batch_size, dtype=jnp.int32)
            itself = asked[:, None], jnp.ones((batch_size, 1), bool)
            scores, ids = two_pass(
                items[first : first + batch_size], items, itself, allowed, score=score, k=wanted, block=block
            )
            found[first : first + batch_size, :wanted] = ids
            filled[first : first + batch_size, :wanted] = np.asarray(scores) > -np.inf
            bar.update(min(batch_size, n - begin))
    return Table(jnp.asarray(found), jnp.asarray(filled))


def top_of_groups(
    score: Shaped[ArrayLike, " n_items"] | Shaped[ArrayLike, "groups n_items"],
    member: Bool[ArrayLike, "groups n_items"],
    k: int,
) -> Table:
    """The k members of every group with the largest score: [groups, k], ties to the lowest id.

    Args:
        score: of every item, or of every item in every group (how often people of a region watched it). An item whose
            score is NaN is passed over.
        member: which items are in which group: genres, say; all True for a group that is everything.
        k: at most the catalogue's size.

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
    """The k groups with the largest count, (groups, where): a user's most viewed genres. Counts of 0 are left out.

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
    """The lists of several keys, laid end to end: (ids [m c], where [m c]), first keys first.

    Args:
        table: lists.
        keys: rows of it: the last watched items, the favorite genres, the region.
        where: False at padding keys, which may be anything.

    Raises:
        ValueError: keys that are no rows of the table (under jit they are trusted); arrays of different shapes.
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
    """One list of all sources' candidates: no item twice, none excluded, none that is not allowed.

    Candidates keep the order of the sources, and within one its own; with more than `size` the last are left out.
    All pairs are compared, C (C + e) of them for C candidates: for hundreds, not for a catalogue.

    Args:
        sources: (ids, where) each, of lengths of their own.
        size: places of the merged list.
        exclude: (ids, where), what the user has seen.
        allowed: [n_items], False for items that nobody gets.

    Raises:
        ValueError: no source; ids and where of different shapes; size < 1; unmasked ids that are no items: negative,
            beyond `allowed`, or beyond int32 (under jit they are trusted).
    """
    if not sources or size < 1:
        raise ValueError(f"expected at least one source and size >= 1, got {len(sources)} and {size}.")
    n_items = check.INT32_MAX if allowed is None else jnp.shape(allowed)[0]
    for number, (ids, where) in enumerate(sources):
        if jnp.ndim(ids) != 1 or jnp.shape(ids) != jnp.shape(where):
            shapes = f"{jnp.shape(ids)} and {jnp.shape(where)}"
            raise ValueError(f"source {number}: expected ids [c] and where [c], got {shapes}.")
    checked = lambda name, ids, where: check.row_ids(name, ids, size=n_items, where=where).astype(jnp.int32)
    ids = jnp.concatenate([checked(f"source {number}", *source) for number, source in enumerate(sources)])
    good = jnp.concatenate([jnp.asarray(where) for _, where in sources])
    if exclude is not None:
        check.same_shape(exclude=exclude[0], where=exclude[1])
        seen, real = checked("exclude", *exclude), jnp.asarray(exclude[1])
        good &= ~jnp.any((ids[:, None] == seen[None, :]) & real[None, :], axis=1)
    if allowed is not None:
        good &= gather(jnp.asarray(allowed), jnp.where(good, ids, 0))
    source = jnp.asarray(np.repeat(np.arange(len(sources), dtype=np.int32), [np.size(each) for each, _ in sources]))
    same = (ids[:, None] == ids[None, :]) & good[:, None] & good[None, :]
    first = good & (jnp.argmax(same, axis=1) == jnp.arange(len(ids)))
    named = jnp.stack([jnp.any(same & (source == s)[None, :], axis=1) for s in range(len(sources))], axis=1)
    order = jnp.argsort(~first, stable=True)[:size]  # the firsts of their kind, in order, then the rest
    order = jnp.pad(order, (0, max(0, size - len(ids))))
    where = gather(first, order) & (jnp.arange(size) < len(ids))
    return Candidates(jnp.where(where, gather(ids, order), 0), where, gather(named, order) & where[:, None])


def _flags(allowed: ArrayLike | None, n: int) -> Array | None:
    if allowed is not None and jnp.shape(allowed) != (n,):
        raise ValueError(f"allowed: expected one flag per item, shape ({n},), got {jnp.shape(allowed)}.")
    return None if allowed is None else jnp.asarray(allowed)
