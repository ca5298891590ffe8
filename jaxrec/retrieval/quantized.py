r"""Exact search that reads a quarter of the catalogue: eight bits a number first, and what they cannot decide again.

Item i is kept as low(i) [d], whole numbers from -127 to 127, and a step s(i): every component of x(i) is s(i) low(i)
within s(i) / 2. The query is rounded to whole numbers z times a step t, finer by as much as the sums fit 32 bits. So::

    |q . x(i) - s(i) t z . low(i)|  <=  s(i) B,      B = ‖q‖_1 / 2 + 127 ‖q - t z‖_1

bounds every item's score from above without its vector. The groups of items with the largest bounds are scored by
their vectors; where the k-th best score found exceeds all other groups' bounds, nothing was missed. Where it does not,
which is seen, the whole catalogue is searched: the answer is `top_k`'s always, up to the rounding of sums.

>>> import jax, jax.numpy as jnp
>>> from jaxrec.retrieval import top_k
>>> items = jax.random.normal(jax.random.key(0), (5000, 8))
>>> index = quantize(items)
>>> scores, ids = top_k(items[:2], index, 3)
>>> bool(jnp.array_equal(ids, top_k(items[:2], items, 3)[1]))
True
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.topk import Exclude, dot, orderable, two_pass
from jaxrec.kernels.topk_select import largest
from jaxrec.types import TopK

__all__ = ["Quantized", "quantize"]

GROUP = 32  # neighbors, of which the largest bound is kept
MOST = 127


@register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A catalogue and its eight-bit form; `retrieval.top_k` takes it in the catalogue's place, under jit too.

    Attributes:
        items: float32 [m, d].
        low: int8 [d, m'], component first, so that a bound is a sum of long vectors; m' is m filled up to whole groups.
        step: float32 [m']; 0 for places beyond m.
    """

    items: Array
    low: Array
    step: Array

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.items)

    def top_k(
        self,
        queries: Float[Array, "n d"],
        k: int,
        *,
        exclude: Exclude | None = None,
        allowed: Bool[Array, " m"] | None = None,
    ) -> TopK:
        """As `retrieval.top_k`, one query after the other: for one, or a few. For dozens the full search is faster."""
        return TopK(*_search(queries.astype(self.items.dtype), exclude, allowed, self, k=k))


def quantize(items: Shaped[ArrayLike, "m d"]) -> Quantized:
    """Rounds a catalogue to eight bits, each item by its own largest component; 36 bytes an item more at d = 32.

    Args:
        items: finite; other types than float32 become float32.

    Raises:
        ValueError: no table; numbers that are not finite (under jit they are trusted).
    """
    items = check.as_array("items", items).astype(jnp.float32)
    if items.ndim != 2:
        raise ValueError(f"items: expected a table [m, d], got shape {items.shape}.")
    if not check.traced(items) and not bool(jnp.isfinite(items).all()):
        raise ValueError("items: expected finite vectors, got NaN or infinity. Has training diverged?")
    return _build(items)


@jax.jit
def _build(items: Array) -> Quantized:
    m = len(items)
    most = jnp.max(jnp.abs(items), axis=1)
    step = jnp.where(most > 0, jnp.maximum(most / MOST, jnp.finfo(jnp.float32).tiny), 0)  # CPUs take less as 0
    low = jnp.round(items / jnp.where(step > 0, step, 1)[:, None]).astype(jnp.int8)
    return Quantized(items, jnp.pad(low, ((0, -m % GROUP), (0, 0))).T, jnp.pad(step, (0, -m % GROUP)))


@partial(jax.jit, static_argnames="k")
def _search(
    queries: Array, exclude: Exclude | None, allowed: Array | None, index: Quantized, *, k: int
) -> tuple[Array, Array]:
    return jax.lax.map(lambda asked: _search_one(asked[0], asked[1], allowed, index, k=k), (queries, exclude))


def _search_one(
    query: Array, exclude: Exclude | None, allowed: Array | None, index: Quantized, *, k: int
) -> tuple[Array, Array]:
    m, full = len(index), len(index.step)
    rows = None if exclude is None else (exclude[0][None], exclude[1][None])
    whole = lambda: jax.tree.map(
        lambda a: a[0], two_pass(query[None], index.items, rows, allowed, score=dot, k=k, block=None)
    )
    some = 2 * k  # groups that are scored: about 1.4 k have been needed (normal vectors, 1M to 10M)
    if some >= full // GROUP:
        return whole()

    open_ = jnp.arange(full) < m
    if allowed is not None:
        open_ &= jnp.pad(allowed, (0, full - m))
    if exclude is not None:
        open_ = open_.at[jnp.where(exclude[1], exclude[0], m)].set(False, mode="drop")
    # A bound that is NaN, as those of a query with NaN or infinity, says nothing: then the whole catalogue is searched.
    # The barrier keeps the compiler from making the bounds inside the maximum, a number at a time.
    bounds = jax.lax.optimization_barrier(jnp.where(open_, _bounds(query, index), -jnp.inf))
    bounds = jnp.where(jnp.isnan(bounds), jnp.inf, bounds)
    highest, groups = largest(jnp.max(bounds.reshape(-1, GROUP), axis=1)[:, None], some + 1)
    groups = jnp.sort(groups[0, :some])  # for the ties
    ids = (groups[:, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)[None, :]).reshape(-1)
    scores = dot(query[None], gather(index.items, jnp.minimum(ids, m - 1)))[0]
    scores = jnp.where(gather(open_, ids), orderable(scores), -jnp.inf)
    best, place = jax.lax.top_k(scores, k)
    found = best, jnp.where(best > -jnp.inf, gather(ids, place), 0)
    others = highest[0, some]
    return jax.lax.cond((others < best[-1]) | (others == -jnp.inf), lambda: found, whole)


def _bounds(query: Array, index: Quantized) -> Float[Array, " m_filled"]:
    """No score is larger, neither the real number nor what float32 makes of it: hence the share of B for rounding."""
    d = len(index.low)
    finest = min(2**15, (2**31 - 1) // (MOST * d))
    t = jnp.max(jnp.abs(query)) / finest
    z = jnp.round(query / jnp.where(t > 0, t, 1)).astype(jnp.int32)
    product = index.low[0].astype(jnp.int32) * z[0]
    for j in range(1, d):  # one fused loop over the items
        product = product + index.low[j].astype(jnp.int32) * z[j]
    b = jnp.sum(jnp.abs(query)) / 2 + MOST * jnp.sum(jnp.abs(query - t * z.astype(query.dtype)))
    return index.step * (product.astype(query.dtype) * t + b * (1 + d * 2**-15))
