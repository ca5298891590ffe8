r"""Exact search that reads a quarter of the catalog's bytes: an eight-bit copy first, then a few full vectors.

Item i is stored as codes(i) [d], integers from -127 to 127, and a step s(i): every component of x(i) is within
s(i) / 2 of s(i) codes(i). The query is rounded to integers z times a step t, as fine as 32-bit sums allow. Then::

    |q . x(i) - s(i) t z . codes(i)|  <=  s(i) B,      B = ‖q‖_1 / 2 + 127 ‖q - t z‖_1

bounds every item's score from above without reading its vector. The groups of items with the largest bounds are scored
with their vectors. If the k-th best score found exceeds the bounds of all other groups, no item was missed. Otherwise
the full catalog is searched. The result is always that of `top_k`, up to the rounding of sums.

>>> import jax, jax.numpy as jnp
>>> from jaxrec.retrieval import top_k
>>> items = jax.random.normal(jax.random.key(0), (5000, 8))
>>> index = quantize(items)
>>> scores, ids = top_k(items[:2], index, 3)
>>> bool(jnp.array_equal(ids, top_k(items[:2], items, 3)[1]))
True
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.topk import Exclude, dot, orderable, two_pass
from jaxrec.kernels.topk_select import largest
from jaxrec.pytree import register_dataclass
from jaxrec.types import TopK

__all__ = ["Quantized", "quantize"]

BOUND_GROUP = 32  # consecutive items that share one bound, the largest of theirs
INT8_MAX = 127


@register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A catalog and its eight-bit copy, which `retrieval.top_k` accepts in place of the catalog, under jit too.

    Attributes:
        items: float32 [m, d].
        codes: int8 [d, m'], component first, so that bounds are sums of long vectors; m' is m padded to full groups.
        step: float32 [m'], 0 at padding.
    """

    items: Array
    codes: Array
    step: Array

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def top_k(
        self,
        queries: Float[Array, "n d"],
        k: int,
        *,
        exclude: Exclude | None = None,
        allowed: Bool[Array, " m"] | None = None,
    ) -> TopK:
        """Like `retrieval.top_k`, one query at a time: for one or a few. For dozens the full search is faster."""
        return TopK(*_search(queries.astype(self.items.dtype), exclude, allowed, self, k=k))


def quantize(items: Shaped[ArrayLike, "m d"]) -> Quantized:
    """Rounds a catalog to eight bits, each item scaled by its largest component; 36 bytes more per item at d = 32.

    Args:
        items: finite vectors, at least one; types other than float32 are converted to float32.

    Raises:
        ValueError: not a table; no items; values that are not finite (not checked under jit).
    """
    items = check.as_array("items", items).astype(jnp.float32)
    if items.ndim != 2:
        raise ValueError(f"items: expected a table [m, d], got shape {items.shape}.")
    if len(items) == 0:
        raise ValueError("items: expected a catalog of at least one item, got none.")
    if not check.traced(items) and not bool(jnp.isfinite(items).all()):
        raise ValueError("items: expected finite vectors, got NaN or infinity. Has training diverged?")
    return _build(items)


@jax.jit
def _build(items: Array) -> Quantized:
    m = len(items)
    max_abs = jnp.max(jnp.abs(items), axis=1)
    # at least the smallest normal number: CPUs flush smaller steps to 0
    step = jnp.where(max_abs > 0, jnp.maximum(max_abs / INT8_MAX, jnp.finfo(jnp.float32).tiny), 0)
    codes = jnp.round(items / jnp.where(step > 0, step, 1)[:, None]).astype(jnp.int8)
    padding = -m % BOUND_GROUP
    return Quantized(items, jnp.pad(codes, ((0, padding), (0, 0))).T, jnp.pad(step, (0, padding)))


@partial(jax.jit, static_argnames="k")
def _search(
    queries: Array, exclude: Exclude | None, allowed: Array | None, index: Quantized, *, k: int
) -> tuple[Array, Array]:
    return jax.lax.map(lambda row: _search_one(row[0], row[1], allowed, index, k=k), (queries, exclude))


def _search_one(
    query: Array, exclude: Exclude | None, allowed: Array | None, index: Quantized, *, k: int
) -> tuple[Array, Array]:
    m, m_padded = len(index), len(index.step)
    exclude_row = None if exclude is None else (exclude[0][None], exclude[1][None])

    def full_search() -> tuple[Array, Array]:
        found = two_pass(query[None], index.items, exclude_row, allowed, score=dot, k=k, block=None)
        return jax.tree.map(lambda a: a[0], found)

    n_groups = 2 * k  # groups that are scored: about 1.4 k have been needed (normal vectors, 1M to 10M)
    if n_groups >= m_padded // BOUND_GROUP:
        return full_search()

    valid = jnp.arange(m_padded) < m
    if allowed is not None:
        valid &= jnp.pad(allowed, (0, m_padded - m))
    if exclude is not None:
        valid = valid.at[jnp.where(exclude[1], exclude[0], m)].set(False, mode="drop")
    # The bounds of a query with NaN or infinity are NaN: they become infinite, so that the full catalog is searched.
    # The barrier keeps the compiler from computing the bounds one number at a time inside the maximum.
    bounds = jax.lax.optimization_barrier(jnp.where(valid, _bounds(query, index), -jnp.inf))
    bounds = jnp.where(jnp.isnan(bounds), jnp.inf, bounds)
    group_bounds, groups = largest(jnp.max(bounds.reshape(-1, BOUND_GROUP), axis=1)[:, None], n_groups + 1)
    groups = jnp.sort(groups[0, :n_groups])  # so that ties go to the lowest id
    ids = (groups[:, None] * BOUND_GROUP + jnp.arange(BOUND_GROUP, dtype=jnp.int32)[None, :]).reshape(-1)
    scores = dot(query[None], gather(index.items, jnp.minimum(ids, m - 1)))[0]
    scores = jnp.where(gather(valid, ids), orderable(scores), -jnp.inf)
    best, position = jax.lax.top_k(scores, k)
    result = best, jnp.where(best > -jnp.inf, gather(ids, position), 0)
    next_bound = group_bounds[0, n_groups]  # no item of the other groups scores higher
    return jax.lax.cond((next_bound < best[-1]) | (next_bound == -jnp.inf), lambda: result, full_search)


def _bounds(query: Array, index: Quantized) -> Float[Array, " m_filled"]:
    """Upper bounds on the scores, exact or in float32: s(i) (t z . codes(i) + B), where B is enlarged for rounding."""
    d = len(index.codes)
    z_max = min(2**15, (2**31 - 1) // (INT8_MAX * d))
    t = jnp.max(jnp.abs(query)) / z_max
    z = jnp.round(query / jnp.where(t > 0, t, 1)).astype(jnp.int32)
    product = index.codes[0].astype(jnp.int32) * z[0]
    for dim in range(1, d):  # one fused loop over the items
        product = product + index.codes[dim].astype(jnp.int32) * z[dim]
    b = jnp.sum(jnp.abs(query)) / 2 + INT8_MAX * jnp.sum(jnp.abs(query - t * z.astype(query.dtype)))
    return index.step * (product.astype(query.dtype) * t + b * (1 + d * 2**-15))
