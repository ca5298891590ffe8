"""The place of some items in each list of scores, without sorting it: count who stands above.

| form | for | |
| --- | --- | --- |
| `_at_once` | accelerators, and the reference | all comparisons in one fused sum |
| `_by_counting` | CPU, few items of each column | a loop over the rows, the counts in the vector registers |
| `_among_the_best` | CPU | the same, over a shortlist of each column's best |
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.kernels.select import above, shortest, shortlist

__all__ = ["ranks"]


def ranks(scores: Float[Array, "m n"], ids: Int[Array, "r n"], k: int) -> Int[Array, "r n"]:
    """How many rows of the column come before each id in a stable descending sort: those with a larger score, and
    those with the same and a lower id. 0 is the first place. Right where it is below k; else some number from k on.

    Args:
        scores: a column per user.
        ids: rows, trusted; they may be named twice.
        k: below m, or all ranks are right.
    """
    m, r = len(scores), len(ids)
    mine = jnp.take_along_axis(scores, ids, axis=0, mode="promise_in_bounds")
    on_cpu = _by_counting if r <= FEW or m < 2 * shortest(k) else partial(_among_the_best, k=k)
    return jax.lax.platform_dependent(scores, ids.astype(jnp.int32), mine, cpu=on_cpu, default=_at_once)


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
