"""The k best items of a catalog for every query, exact, by two passes that never hold queries x items.

The first pass scores the catalog block by block and keeps only the largest score of every group of items: 1 / 32 of a
matrix of scores. The k best items lie in the k groups with the largest of these (every better group holds a better
item), so the second pass scores those k groups again, and sorts only them. Ties go to the lowest id in both: groups are
runs of ids, and the first of equals is taken.

Items with score -inf (excluded, not allowed) are never returned: positions that cannot be filled are -inf with id 0. A
NaN score, which has no position in an order, counts as -inf: it is never returned, and hides no other.

| `platform` | implementation |
| --- | --- |
| `"cpu"` | blocks of 16,384 items, whose scores stay in the cache; groups of 32 |
| `"gpu"` | for dot products, blocks of as many items as 1 GiB of scores holds; groups of 64, and of 25 of these |
| `"tpu"` | dot products without exclusions: `tpu_topk.group_maxima`, no scores in HBM; else as on a CPU |

`reference` is all scores and one stable sort, for the tests. 64 queries, the 100 best of 1M x 32 on an H100: 1.33 ms by
blocks of 16,384 and groups of 32, then 16; 0.585 ms as here; of 10M 9.2 and 3.2 ms. PyTorch's product and topk take
1.18 and 9.8 ms.
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
from jaxrec.kernels.platform import Platform, by_platform, with_derivative_of
from jaxrec.kernels.topk_select import largest
from jaxrec.numerics import HIGHEST

__all__ = ["GROUP_ITEMS", "Exclude", "Score", "dot", "orderable", "reference", "two_pass"]

Exclude = tuple[Integer[Array, "*n e"], Bool[Array, "*n e"]]
# score(queries [n, d], a block of items [m, d]) -> [n, m], more is better
Score = Callable[[Array, Array], Array]

# Items per group of the first pass. 64 queries, 1M x 32, k = 100, 2 cores: the first pass takes 15 ms with 32 and 64
# (12 of them the products), 17 with 16; scoring groups of 64 again instead of 32 takes 3 ms more.
GROUP_ITEMS = 32
GROUP_ITEMS_BY_PLATFORM: dict[Platform, int] = {"cpu": GROUP_ITEMS, "gpu": 64, "tpu": GROUP_ITEMS}
# Items scored at once by default; for dot products on a GPU, scores at once.
BLOCK_ITEMS, BLOCK_SCORES = 16_384, 2**28
# Queries searched at once: their group maxima are 1/8 of the catalog's bytes at d = 16, 1/16 at d = 32.
BATCH_QUERIES = 64


def dot(queries: Shaped[ArrayLike, "n d"], items: Shaped[ArrayLike, "m d"]) -> Float[Array, "n m"]:
    """Query . item, in float32 at least."""
    queries, items = check.as_floats(queries=queries, items=items)
    return jnp.matmul(queries, items.T, precision=HIGHEST)


def reference(
    queries: Float[Array, "n d"],
    items: Float[Array, "m d"],
    exclude: Exclude | None,
    allowed: Bool[Array, " m"] | None,
    *,
    score: Score,
    k: int,
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """The k best by a stable sort of all scores, which the other implementations must equal."""
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
        items: the catalog, at least one item; it is read in place, never copied.
        exclude: (ids, where), items that each query must not get.
        allowed: False for items that no query gets.
        score: called with one block of items, then with the candidates of one query.
        k: between 1 and m.
        block: items scored at once; memory is n * block numbers, and n * m / (items per group) for the group maxima.
            None: see the module's table.
    """
    # at least float32: sums in half precision lose ranks, and lax.top_k on the CPU sorts everything in other types
    dtype = queries.dtype if queries.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    queries = queries.astype(dtype)
    search = partial(_in_batches, score=score, k=k, block=block)
    return by_platform(search, queries, items, exclude, allowed)


def _in_batches(
    queries: Array,
    items: Array,
    exclude: Exclude | None,
    allowed: Array | None,
    *,
    score: Score,
    k: int,
    block: int | None,
    platform: Platform,
) -> tuple[Array, Array]:
    """Searches batches of queries in turn, so that their group maxima stay small."""
    n, m = queries.shape[0], items.shape[0]
    batch_size = max(BATCH_QUERIES, BLOCK_SCORES // m) if platform == "gpu" else BATCH_QUERIES
    if block is None:
        n_scored = min(n, batch_size) if isinstance(n, int) else batch_size
        block = (
            max(BLOCK_ITEMS, BLOCK_SCORES // max(1, n_scored)) if platform == "gpu" and score is dot else BLOCK_ITEMS
        )
    search = partial(_search, items=items, allowed=allowed, score=score, k=k, block=block, platform=platform)
    if not isinstance(n, int) or n <= batch_size:
        return search((queries, exclude))
    n_full = n - n % batch_size
    batches = lambda tree: jax.tree.map(lambda a: a[:n_full].reshape(-1, batch_size, *a.shape[1:]), tree)
    found = jax.lax.map(search, batches((queries, exclude)))
    found = jax.tree.map(lambda a: a.reshape(n_full, *a.shape[2:]), found)
    if n_full == n:
        return found
    rest = search(jax.tree.map(lambda a: a[n_full:], (queries, exclude)))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, rest)


def _search(
    queries_and_exclude: tuple[Array, Exclude | None],
    *,
    items: Array,
    allowed: Array | None,
    score: Score,
    k: int,
    block: int,
    platform: Platform,
) -> tuple[Array, Array]:
    queries, exclude = queries_and_exclude
    n, m, group = queries.shape[0], items.shape[0], GROUP_ITEMS_BY_PLATFORM[platform]
    ids = None if exclude is None else jnp.where(exclude[1], exclude[0].astype(jnp.int32), m)  # m is no item
    row = jnp.arange(n, dtype=jnp.int32)[:, None]
    block = min(block, m)

    if block < group or m <= 2 * group * k:  # otherwise most groups would be scored twice
        return _by_merging(queries, items, allowed, ids, score=score, k=k, block=block, platform=platform)
    xla = partial(_group_maxima, score=score, size=block - block % group, group=group)
    if platform == "tpu" and score is dot and ids is None and queries.dtype == jnp.float32:
        maxima = with_derivative_of(xla, _group_maxima_on_tpu)(queries, items, allowed)
    else:
        maxima = xla(queries, items, allowed, ids)
    _, groups = largest(maxima, k, platform=platform)
    groups = jnp.sort(groups, axis=1)  # in the order of ids, for the ties
    candidates = groups[:, :, None] * group + jnp.arange(group, dtype=jnp.int32)[None, None, :]
    candidates = candidates.reshape(n, -1)
    valid, candidates = candidates < m, jnp.minimum(candidates, m - 1)
    if allowed is not None:
        valid &= gather(allowed, candidates)
    if ids is not None:  # masks the excluded ids that are candidates
        in_group = (ids // group)[:, :, None] == groups[:, None, :]  # [n, e, k]
        position = jnp.where(jnp.any(in_group, axis=2), jnp.argmax(in_group, axis=2) * group + ids % group, k * group)
        valid = valid.at[row, position].set(False, mode="drop")
    score_rows = jax.vmap(lambda query, rows: score(query[None], rows)[0])
    scores = orderable(score_rows(queries, gather(items, candidates).astype(queries.dtype)))
    best, position = largest(jnp.where(valid, scores, -jnp.inf).T, k, platform=platform)
    found = jnp.take_along_axis(candidates, position, axis=1, mode="promise_in_bounds")
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
    """The largest score of each group of items, by full blocks and the rest; the last group may be short."""
    n, m = queries.shape[0], items.shape[0]
    scored = partial(_scores, queries, items, allowed, ids, score=score)
    group_max = lambda scores: jnp.max(scores.reshape(-1, group, n), axis=1)
    n_full = m - m % size
    firsts = jnp.arange(0, n_full, size, dtype=jnp.int32)
    maxima = jax.lax.map(lambda first: group_max(scored(first, size)), firsts).reshape(-1, n)
    if n_full == m:
        return maxima
    rest = jnp.pad(scored(n_full, m - n_full), ((0, (n_full - m) % group), (0, 0)), constant_values=-jnp.inf)
    return jnp.concatenate([maxima, group_max(rest)])


def _group_maxima_on_tpu(queries: Array, items: Array, allowed: Array | None = None) -> Array:
    from jaxrec.kernels.tpu_topk import group_maxima  # Pallas, only where a program is lowered for a TPU

    return group_maxima(queries, items, allowed, group=GROUP_ITEMS)


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
    """Scores of the `size` items from `first` on: slices, and no padded copy of the catalog."""
    block_of = lambda array: jax.lax.dynamic_slice_in_dim(array, first, size)
    scores = orderable(score(queries, block_of(items).astype(queries.dtype))).T
    if allowed is not None:
        scores = jnp.where(block_of(allowed)[:, None], scores, -jnp.inf)
    if ids is not None:
        position = jnp.where((ids >= first) & (ids < first + size), ids - first, size)  # size is dropped
        scores = scores.at[position, jnp.arange(queries.shape[0], dtype=jnp.int32)[:, None]].set(-jnp.inf, mode="drop")
    return scores


def _by_merging(
    queries: Array,
    items: Array,
    allowed: Array | None,
    ids: Array | None,
    *,
    score: Score,
    k: int,
    block: int,
    platform: Platform,
) -> tuple[Array, Array]:
    """The best of each block, merged: for k so large that the groups would be most of the catalog."""
    n, m = queries.shape[0], items.shape[0]
    scored = partial(_scores, queries, items, allowed, ids, score=score)

    def merge(best: tuple[Array, Array], first: Array | int, size: int) -> tuple[Array, Array]:
        top, position = largest(scored(first, size), min(k, size), platform=platform)
        # earlier blocks have lower ids and come first, so that lax.top_k's ties go to the lowest id
        scores, kept = jax.lax.top_k(jnp.concatenate([best[0], top], axis=1), k)
        ids = jnp.concatenate([best[1], position + first], axis=1)
        return scores, jnp.take_along_axis(ids, kept, axis=1, mode="promise_in_bounds")

    # -inf with id 0 comes first, so that excluded items, which tie with it, never show their ids
    best = jnp.full((n, k), -jnp.inf, queries.dtype), jnp.zeros((n, k), jnp.int32)
    n_full = m - m % block
    firsts = jnp.arange(0, n_full, block, dtype=jnp.int32)
    best, _ = jax.lax.scan(lambda best, first: (merge(best, first, block), None), best, firsts)
    return merge(best, n_full, m - n_full) if n_full < m else best


def orderable(scores: Float[Array, "..."]) -> Float[Array, "..."]:
    """Scores that can be ordered: -0 becomes 0, because lax.top_k ranks it below 0, and NaN becomes -inf."""
    return jnp.where(jnp.isnan(scores), -jnp.inf, jnp.where(scores == 0, 0, scores))
