"""The k best items of a catalogue for every query, exact, by two passes that never hold queries x items.

The first pass scores the catalogue block by block and keeps of every group of items the largest score alone: 1 / GROUP
of what a matrix of scores would write. The k best items lie in the k groups with the largest of these (every better
group holds a better item), so the second pass scores those k groups again, and sorts only them. Ties go to the lowest
id in both: groups are runs of ids, and among equals the first are taken.

Items with score -inf (excluded, not allowed) never come back: places that cannot be filled are -inf with id 0. A score
of NaN, whose place in an order is nowhere, counts as -inf: it is never returned, and hides no other.

| `on` | |
| --- | --- |
| `"cpu"` | blocks of 16,384 items, whose scores stay in the cache; groups of 32 |
| `"gpu"` | blocks of as many items as 1 GiB of scores holds, for a product; groups of 64, and of 25 of these |
| `"tpu"` | dot products without exclusions: `tpu_topk.group_maxima`, no scores in HBM; else as on a CPU |

`reference` is all scores and one stable sort, for the tests. 64 queries, the 100 best of 1M x 32 on an H100: 1.33 ms by
blocks of 16,384 and groups of 32, then 16; .585 as here; of 10M 9.2 and 3.2. PyTorch's product and topk 1.18 and 9.8.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Integer, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.platform import On, by_platform, derived_as
from jaxrec.kernels.topk_select import largest

__all__ = ["GROUP", "Exclude", "Score", "dot", "orderable", "reference", "two_pass"]

Exclude = tuple[Integer[Array, "*n e"], Bool[Array, "*n e"]]
# score(queries [n, d], a block of items [m, d]) -> [n, m], more is better
Score = Callable[[Array, Array], Array]

# Items whose largest score the first pass keeps. 64 queries, 1M x 32, k = 100, 2 cores: the first pass takes 15 ms with
# 32 and 64 (12 of them the products), 17 with 16; scoring groups of 64 again in place of 32 takes 3 ms more.
GROUP = 32
GROUPS: dict[On, int] = {"cpu": GROUP, "gpu": 64, "tpu": GROUP}
# Items scored at once where nothing else is asked for; of products on a GPU, so many scores.
BLOCK, FLOATS = 16_384, 2**28
# Queries asked at once: their group maxima are 1/8 of the catalogue's bytes at d = 16, 1/16 at d = 32.
QUERIES = 64


def dot(queries: Shaped[ArrayLike, "n d"], items: Shaped[ArrayLike, "m d"]) -> Float[Array, "n m"]:
    """Query . item, in float32 at least."""
    queries, items = check.as_floats(queries=queries, items=items)
    return jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)


def reference(
    queries: Float[Array, "n d"],
    items: Float[Array, "m d"],
    exclude: Exclude | None,
    allowed: Bool[Array, " m"] | None,
    *,
    score: Score,
    k: int,
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """All scores, stably sorted: what the others must give."""
    scores = orderable(score(queries, items))
    if allowed is not None:
        scores = jnp.where(allowed[None, :], scores, -jnp.inf)
    if exclude is not None:
        rows, ids = jnp.arange(len(queries))[:, None], jnp.where(exclude[1], exclude[0], len(items))
        scores = scores.at[rows, ids].set(-jnp.inf, mode="drop")
    order = jnp.argsort(scores, axis=1, stable=True, descending=True)[:, :k]
    best = jnp.take_along_axis(scores, order, axis=1)
    return best, jnp.where(best > -jnp.inf, order, 0).astype(jnp.int32)


@partial(jax.jit, static_argnames=("score", "k", "block"))
def two_pass(
    queries: Float[Array, "n d"],
    items: Float[Array, "m d"],
    exclude: Exclude | None,
    allowed: Bool[Array, " m"] | None,
    *,
    score: Score,
    k: int,
    block: int | None,
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """The k best by any score; ids of exclusions are trusted, and n may be symbolic (jax.export).

    Args:
        queries: one per row.
        items: the catalogue; it is read in place, never copied.
        exclude: (ids, where), what each query must not get.
        allowed: False for items that nobody gets.
        score: called with one block of items, then with the candidates of one query.
        k: at most m.
        block: items scored at once; memory is n * block numbers, and n * m / GROUP for the group maxima. None: as the
            module says.
    """
    # at least float32: sums in half precision lose ranks, and lax.top_k on the CPU sorts everything in other types
    dtype = queries.dtype if queries.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    queries = queries.astype(dtype)
    search = partial(_in_parts, score=score, k=k, block=block)
    return by_platform(search, queries, items, exclude, allowed)


def _in_parts(
    queries: Array,
    items: Array,
    exclude: Exclude | None,
    allowed: Array | None,
    *,
    score: Score,
    k: int,
    block: int | None,
    on: On,
) -> tuple[Array, Array]:
    """Some queries after the others, so that their group maxima are no matrix of scores."""
    n, m = queries.shape[0], items.shape[0]
    at_once = max(QUERIES, FLOATS // m) if on == "gpu" else QUERIES
    if block is None:
        asked = min(n, at_once) if isinstance(n, int) else at_once
        block = max(BLOCK, FLOATS // max(1, asked)) if on == "gpu" and score is dot else BLOCK
    search = partial(_search, items=items, allowed=allowed, score=score, k=k, block=block, on=on)
    if not isinstance(n, int) or n <= at_once:
        return search((queries, exclude))
    whole = n - n % at_once
    parts = lambda tree: jax.tree.map(lambda a: a[:whole].reshape(-1, at_once, *a.shape[1:]), tree)
    found = jax.lax.map(search, parts((queries, exclude)))
    found = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), found)
    if whole == n:
        return found
    rest = search(jax.tree.map(lambda a: a[whole:], (queries, exclude)))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, rest)


def _search(
    asked: tuple[Array, Exclude | None],
    *,
    items: Array,
    allowed: Array | None,
    score: Score,
    k: int,
    block: int,
    on: On,
) -> tuple[Array, Array]:
    queries, exclude = asked
    n, m, group = queries.shape[0], items.shape[0], GROUPS[on]
    ids = None if exclude is None else jnp.where(exclude[1], exclude[0].astype(jnp.int32), m)  # m: nobody's
    row = jnp.arange(n, dtype=jnp.int32)[:, None]
    block = min(block, m)

    if block < group or m <= 2 * group * k:  # else most groups would be scored twice
        return _by_merging(queries, items, allowed, ids, score=score, k=k, block=block, on=on)
    xla = partial(_group_maxima, score=score, size=block - block % group, group=group)
    if on == "tpu" and score is dot and ids is None and queries.dtype == jnp.float32:
        tops = derived_as(xla, _group_maxima_on_tpu)(queries, items, allowed)
    else:
        tops = xla(queries, items, allowed, ids)
    _, groups = largest(tops, k, on=on)
    groups = jnp.sort(groups, axis=1)  # in the order of ids, for the ties
    each = groups[:, :, None] * group + jnp.arange(group, dtype=jnp.int32)[None, None, :]
    each = each.reshape(n, -1)
    open_, each = each < m, jnp.minimum(each, m - 1)
    if allowed is not None:
        open_ &= gather(allowed, each)
    if ids is not None:  # close the places of those that have one
        mine = (ids // group)[:, :, None] == groups[:, None, :]  # [n, e, k]
        place = jnp.where(jnp.any(mine, axis=2), jnp.argmax(mine, axis=2) * group + ids % group, k * group)
        open_ = open_.at[row, place].set(False, mode="drop")
    of_query = jax.vmap(lambda query, rows: score(query[None], rows)[0])
    scores = orderable(of_query(queries, gather(items, each).astype(queries.dtype)))
    best, place = largest(jnp.where(open_, scores, -jnp.inf).T, k, on=on)
    found = jnp.take_along_axis(each, place, axis=1, mode="promise_in_bounds")
    return best, jnp.where(best > -jnp.inf, found, 0)


def _group_maxima(
    queries: Array,
    items: Array,
    allowed: Array | None = None,
    ids: Array | None = None,
    *,
    score: Score,
    size: int,
    group: int,
) -> Float[Array, "groups n"]:
    """The largest score of each group of items; the last group may be short. Whole blocks, then the rest."""
    n, m = queries.shape[0], items.shape[0]
    scored = partial(_scores, queries, items, allowed, ids, score=score)
    maxima = lambda scores: jnp.max(scores.reshape(-1, group, n), axis=1)
    whole = m - m % size
    firsts = jnp.arange(0, whole, size, dtype=jnp.int32)
    tops = jax.lax.map(lambda first: maxima(scored(first, size)), firsts).reshape(-1, n)
    if whole == m:
        return tops
    rest = jnp.pad(scored(whole, m - whole), ((0, (whole - m) % group), (0, 0)), constant_values=-jnp.inf)
    return jnp.concatenate([tops, maxima(rest)])


def _group_maxima_on_tpu(queries: Array, items: Array, allowed: Array | None = None) -> Array:
    from jaxrec.kernels.tpu_topk import group_maxima  # Pallas, where a program is lowered for a TPU only

    return group_maxima(queries, items, allowed, group=GROUP)


def _scores(
    queries: Array,
    items: Array,
    allowed: Array | None,
    ids: Array | None,
    first: Array | int,
    size: int,
    *,
    score: Score,
) -> Float[Array, "size n"]:
    """Scores of the items from `first` on: slices, and no padded copy of the catalogue."""
    part = lambda array: jax.lax.dynamic_slice_in_dim(array, first, size)
    scores = orderable(score(queries, part(items).astype(queries.dtype))).T
    if allowed is not None:
        scores = jnp.where(part(allowed)[:, None], scores, -jnp.inf)
    if ids is not None:
        here = jnp.where((ids >= first) & (ids < first + size), ids - first, size)  # size: dropped
        scores = scores.at[here, jnp.arange(queries.shape[0], dtype=jnp.int32)[:, None]].set(-jnp.inf, mode="drop")
    return scores


def _by_merging(
    queries: Array, items: Array, allowed: Array | None, ids: Array | None, *, score: Score, k: int, block: int, on: On
) -> tuple[Array, Array]:
    """Where k is so large that the groups would be most of the catalogue: the best of each block, merged."""
    n, m = queries.shape[0], items.shape[0]
    scored = partial(_scores, queries, items, allowed, ids, score=score)

    def merge(best: tuple[Array, Array], first: Array | int, size: int) -> tuple[Array, Array]:
        top, place = largest(scored(first, size), min(k, size), on=on)
        # what came before has lower ids and stands first, so that lax.top_k's ties go to the lowest id
        scores, kept = jax.lax.top_k(jnp.concatenate([best[0], top], axis=1), k)
        ids = jnp.concatenate([best[1], place + first], axis=1)
        return scores, jnp.take_along_axis(ids, kept, axis=1, mode="promise_in_bounds")

    # -inf with id 0 stands first from the start, so what is excluded never shows its id
    best = jnp.full((n, k), -jnp.inf, queries.dtype), jnp.zeros((n, k), jnp.int32)
    whole = m - m % block
    firsts = jnp.arange(0, whole, block, dtype=jnp.int32)
    best, _ = jax.lax.scan(lambda best, first: (merge(best, first, block), None), best, firsts)
    return merge(best, whole, m - whole) if whole < m else best


def orderable(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scores that an order can be made of: -0 is 0, for lax.top_k ranks it below 0, and NaN is -inf."""
    return jnp.where(jnp.isnan(scores), -jnp.inf, jnp.where(scores == 0, 0, scores))
