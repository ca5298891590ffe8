"""Ranks of some items in each list of scores, without sorting it, by counting the scores above them.

| `platform` | implementation | |
| --- | --- | --- |
| `"cpu"` | `_count_all` | few items per column: a loop over the rows, the counts in the vector registers |
| | `_count_shortlist` | the same, over a shortlist of each column's best |
| `"gpu"`, `"tpu"` | `_compare_all` | all comparisons in one fused sum; also the reference |
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.kernels.topk_select import count_above, min_length, shortlist

__all__ = ["ranks"]

# Items per column up to which counting over all rows is faster than over a shortlist.
MAX_ITEMS_FOR_COUNT_ALL = 8


def ranks(
    scores: Float[Array, "m n"], ids: Int[Array, "r n"], k: int, *, platform: Platform | None = None
) -> Int[Array, "r n"]:
    """Number of rows of the column that come before each id in a stable descending sort.

    Those are the rows with a larger score, or with the same score and a lower id; the first rank is 0. Ranks below k
    are exact; others are some number >= k.

    Args:
        scores: a column per user.
        ids: rows, trusted; duplicates are allowed.
        k: if it is m or more, all ranks are exact.
        platform: whose implementation to run; None: that of the platform the program is lowered for.
    """
    implementation = partial(_ranks, k=k)
    args = scores, ids.astype(jnp.int32)
    return by_platform(implementation, *args) if platform is None else implementation(*args, platform=platform)


def _ranks(scores: Array, ids: Array, *, k: int, platform: Platform) -> Array:
    m, r = len(scores), len(ids)
    id_scores = jnp.take_along_axis(scores, ids, axis=0, mode="promise_in_bounds")
    if platform != "cpu":
        return _compare_all(scores, ids, id_scores)
    if r <= MAX_ITEMS_FOR_COUNT_ALL or m < 2 * min_length(k):
        return _count_all(scores, ids, id_scores)
    return _count_shortlist(scores, ids, id_scores, k=k)


def _compare_all(scores: Array, ids: Array, id_scores: Array) -> Array:
    row = jnp.arange(len(scores), dtype=jnp.int32)[:, None, None]
    tied = (scores[:, None, :] == id_scores[None, :, :]) & (row < ids[None, :, :])
    return jnp.sum((scores[:, None, :] > id_scores[None, :, :]) | tied, axis=0, dtype=jnp.int32)


def _count_all(scores: Array, ids: Array, id_scores: Array) -> Array:
    return count_above(scores, jnp.arange(len(scores), dtype=jnp.int32)[:, None], id_scores, ids)


def _count_shortlist(scores: Array, ids: Array, id_scores: Array, *, k: int) -> Array:
    values, positions, count = shortlist(scores, k)
    complete = jnp.all(count <= len(values))
    listed = lambda: count_above(values, positions, id_scores, ids)
    return jax.lax.cond(complete, listed, lambda: _count_all(scores, ids, id_scores))
