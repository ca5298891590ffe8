"""Lists of rows of a table, [n, e] ids for n queries: their weighted sums, and their scores, in chunks of queries.

The two are each other's derivatives: with ids held fixed,

    sum:    out[n] = sum over e of weight[n, e] table[ids[n, e]]      d out / d weight is a score
    score:  out[n, e] = query[n] . table[ids[n, e]]                   d out / d query is a sum

and both derivatives with respect to the table add weight[n, e] query[n] to row ids[n, e]. The gathered rows,
[n, e, d], exist for a chunk of queries only, also in the derivative. Reverse mode only.

| `platform` | numbers gathered at once |
| --- | --- |
| `"cpu"` | 2**17, which stay in the cache |
| `"gpu"` | 2**26 |
| `"tpu"` | 2**24 |
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from jaxrec.gather import gather
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.numerics import HIGHEST

__all__ = ["bag_scores", "bag_sum"]

GATHERED: dict[Platform, int] = {"cpu": 2**17, "gpu": 2**26, "tpu": 2**24}


@jax.custom_vjp
def bag_sum(weight: Float[Array, "n e"], table: Float[Array, "m d"], ids: Int[Array, "n e"]) -> Float[Array, "n d"]:
    """out[n] = sum over e of weight[n, e] table[ids[n, e]]; ids are trusted."""
    return _bag_sum(weight, table, ids)


@jax.custom_vjp
def bag_scores(query: Float[Array, "n d"], table: Float[Array, "m d"], ids: Int[Array, "n e"]) -> Float[Array, "n e"]:
    """out[n, e] = query[n] . table[ids[n, e]]; ids are trusted."""
    return _bag_scores(query, table, ids)


@jax.jit
def _bag_sum(weight: Array, table: Array, ids: Array) -> Array:
    return by_platform(partial(_in_chunks, "ne,ned->nd"), weight, table, ids)


@jax.jit
def _bag_scores(query: Array, table: Array, ids: Array) -> Array:
    return by_platform(partial(_in_chunks, "nd,ned->ne"), query, table, ids)


@jax.jit
def _table_gradient(weight: Array, query: Array, table: Array, ids: Array) -> Array:
    return by_platform(_scatter, weight, query, table, ids)


def _in_chunks(formula: str, left: Array, table: Array, ids: Array, *, platform: Platform) -> Array:
    """The formula of `left` and the gathered rows."""

    def chunk(rows: tuple[Array, Array]) -> Array:
        return jnp.einsum(formula, rows[0], gather(table, rows[1]), precision=HIGHEST)

    return by_chunks(chunk, (left, ids), _chunk_size(table, ids, platform))


def _scatter(weight: Array, query: Array, table: Array, ids: Array, *, platform: Platform) -> Array:
    """Adds weight[n, e] query[n] to row ids[n, e] of a table of zeros."""
    n, d = query.shape
    size = max(1, min(n, _chunk_size(table, ids, platform)))

    def chunk(number: Array, gradient: Array) -> Array:
        first = jnp.minimum(number * size, n - size)  # the last chunk begins early
        part = lambda array: jax.lax.dynamic_slice_in_dim(array, first, size)
        repeated = first + jnp.arange(size, dtype=jnp.int32) < number * size
        chunk_weight = jnp.where(repeated[:, None], 0, part(weight))
        rows = chunk_weight[:, :, None] * part(query)[:, None, :]
        return gradient.at[part(ids).reshape(-1)].add(rows.reshape(-1, d))

    zeros = jnp.zeros_like(table)
    return jax.lax.fori_loop(0, -(-n // size), chunk, zeros) if n else zeros


def _chunk_size(table: Array, ids: Array, platform: Platform) -> int:
    return max(1, GATHERED[platform] // max(1, ids.shape[1] * table.shape[1]))


def _forward_sum(weight: Array, table: Array, ids: Array) -> tuple[Array, Any]:
    return _bag_sum(weight, table, ids), (weight, table, ids)


def _backward_sum(saved: Any, g: Array) -> tuple[Array, Array, None]:
    weight, table, ids = saved
    return _bag_scores(g, table, ids), _table_gradient(weight, g, table, ids), None


def _forward_scores(query: Array, table: Array, ids: Array) -> tuple[Array, Any]:
    return _bag_scores(query, table, ids), (query, table, ids)


def _backward_scores(saved: Any, g: Array) -> tuple[Array, Array, None]:
    query, table, ids = saved
    return _bag_sum(g, table, ids), _table_gradient(g, query, table, ids), None


bag_sum.defvjp(_forward_sum, _backward_sum)
bag_scores.defvjp(_forward_scores, _backward_scores)
