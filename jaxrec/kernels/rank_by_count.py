"""The place of some items in each list of scores, without sorting it: count who stands above.

| `on` | | |
| --- | --- | --- |
| `"cpu"` | `_by_counting` | few items of each column: a loop over the rows, the counts in the vector registers |
| | `_among_the_best` | the same, over a shortlist of each column's best |
| `"gpu"`, `"tpu"` | `_at_once` | all comparisons in one fused sum; the reference too |
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.kernels.platform import On, by_platform
from jaxrec.kernels.topk_select import above, shortest, shortlist

__all__ = ["ranks"]


def ranks(scores: Float[Array, "m n"], ids: Int[Array, "r n"], k: int, *, on: On | None = None) -> Int[Array, "r n"]:
    """How many rows of the column come before each id in a stable descending sort: those with a larger score, and
    those with the same and a lower id. 0 is the first place. Right where it is below k; else some number from k on.

    Args:
        scores: a column per user.
        ids: rows, trusted; they may be named twice.
        k: below m, or all ranks are right.
        on: the form; None: by the platform.
    """
    form = partial(_ranks, k=k)
    given = scores, ids.astype(jnp.int32)
    return by_platform(form, *given) if on is None else form(*given, on=on)


def _ranks(scores: Array, ids: Array, *, k: int, on: On) -> Array:
    m, r = len(scores), len(ids)
    mine = jnp.take_along_axis(scores, ids, axis=0, mode="promise_in_bounds")
    if on != "cpu":
        return _at_once(scores, ids, mine)
    if r <= FEW or m < 2 * shortest(k):
        return _by_counting(scores, ids, mine)
    return _among_the_best(scores, ids, mine, k=k)


# Items of a column up to which counting them over all rows is faster than a shortlist.
FEW = 8


def _at_once(scores: Array, ids: Array, mine: Array) -> Array:
    row = jnp.arange(len(scores), dtype=jnp.int32)[:, None, None]
    tied = (scores[:, None, :] == mine[None, :, :]) & (row < ids[None, :, :])
    return jnp.sum((scores[:, None, :] > mine[None, :, :]) | tied, axis=0, dtype=jnp.int32)


def _by_counting(scores: Array, ids: Array, mine: Array) -> Array:
    return above(scores, jnp.arange(len(scores), dtype=jnp.int32)[:, None], mine, ids)


def _among_the_best(scores: Array, ids: Array, mine: Array, *, k: int) -> Array:
    values, places, count = shortlist(scores, k)
    whole = jnp.all(count <= len(values))
    listed = lambda: above(values, places, mine, ids)
    return jax.lax.cond(whole, listed, lambda: _by_counting(scores, ids, mine))
