"""Softmax over a catalog, in tiles: neither value nor gradient ever holds queries x items.

The scores of a block of queries and a chunk of items are computed, used and forgotten. The forward pass keeps, for
every query, the largest score so far and the sum of exp(score - largest), which is rescaled when a larger one comes
(Milakov and Gimelshein 2018, Online normalizer calculation for softmax). The derivative computes each tile again: value
and gradient take four products of queries x items x d, where keeping the scores would take three.

| `platform` | tile, in scores |
| --- | --- |
| `"cpu"` | 2**18, at most 1,024 queries: they stay in the cache |
| `"gpu"` | 2**26 (256 MiB in float32): few launches |
| `"tpu"` | 2**24 |

Tiles are [items, queries], so that sums over items are sums of rows, which a CPU vectorizes. Reverse mode only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.numerics import product

__all__ = ["LogSumExp", "log_sum_exp"]

# Scores in a tile, and queries in it at most. 2,048 queries, 40,981 items, d = 128, 2 cores: value and gradient run at
# the speed of their products, 200 GFLOP/s, with any tile of 2**16 to 2**20 scores and of 256 to 2,048 queries.
TILE_SCORES: dict[Platform, int] = {"cpu": 2**18, "gpu": 2**26, "tpu": 2**24}
TILE_QUERIES: dict[Platform, int] = {"cpu": 2**10, "gpu": 2**13, "tpu": 2**12}


class LogSumExp(NamedTuple):
    """Log of the sum of exp(scores), in two parts, so that infinite scores are not lost.

    Attributes:
        top: [n], the largest score; it may be infinite, and no derivative passes through it.
        log_total: [n], log of the sum of exp(score - top), between 0 and log m; equal infinite scores differ by 0. Its
            derivative is that of both parts.
    """

    top: Array
    log_total: Array


@jax.custom_vjp
def log_sum_exp(
    queries: Float[Array, "n d"],
    items: Float[Array, "m d"],
    bias: Float[Array, " m"] | None = None,
    where: Bool[Array, "n m"] | None = None,
) -> LogSumExp:
    """Log-sum-exp of every query's scores query . item + bias(item) over all items, m >= 1.

    Scores may be infinite through the bias: an item of bias -inf counts only if all are -inf; +inf ones count equally,
    and alone. The derivative at a query whose largest score is infinite is 0.

    Args:
        queries: one per row.
        items: the catalog, or the items sampled for a batch.
        bias: one per item; None: 0.
        where: False where an item has score -inf for a query; for sampled items, because it is queries x items.
    """
    return _values(queries, items, bias, where)


@jax.jit
def _values(queries: Array, items: Array, bias: Array | None, where: Array | None) -> LogSumExp:
    return by_platform(_values_on, queries, items, bias, where)


def _values_on(
    queries: Array, items: Array, bias: Array | None, where: Array | None, *, platform: Platform
) -> LogSumExp:
    m = len(items)
    rows, size = _tile(len(queries), m, platform)

    def add_chunk(block: Any, number: Array, sums: LogSumExp) -> LogSumExp:
        q, q_where = block
        scores, _, _ = _scores(q, q_where, items, bias, number, size)
        top = jnp.maximum(sums.top, jnp.max(scores, axis=0))
        total = sums.log_total * jnp.exp(_difference(sums.top, top))
        return LogSumExp(top, total + jnp.sum(jnp.exp(_difference(scores, top[None, :])), axis=0))

    def sum_block(block: Any) -> LogSumExp:
        n, dtype = len(block[0]), queries.dtype
        start = LogSumExp(jnp.full(n, -jnp.inf, dtype), jnp.zeros(n, dtype))
        top, total = jax.lax.fori_loop(0, -(-m // size), lambda k, sums: add_chunk(block, k, sums), start)
        # where all scores are -inf, total also counts the items that the last chunk has twice
        return LogSumExp(top, jnp.log(jnp.where(top == -jnp.inf, m, total)))

    return by_chunks(sum_block, (queries, where), rows)


def _forward(queries: Array, items: Array, bias: Array | None, where: Array | None) -> tuple[LogSumExp, Any]:
    values = _values(queries, items, bias, where)
    return values, (queries, items, bias, where, values)


def _backward(saved: Any, cotangent: LogSumExp) -> tuple[Array, Array, Array | None, None]:
    return *_gradients(*saved, cotangent.log_total), None


@jax.jit
def _gradients(*args: Any) -> tuple[Array, Array, Array | None]:
    return by_platform(_gradients_on, *args)


def _gradients_on(
    queries: Array,
    items: Array,
    bias: Array | None,
    where: Array | None,
    values: LogSumExp,
    g: Array,
    *,
    platform: Platform,
) -> tuple[Array, Array, Array | None]:
    """With p(n, i) = g(n) softmax(n, i): p items, p' queries and the sums of p over the queries."""
    (n, d), m = queries.shape, len(items)
    rows, size = _tile(n, m, platform)
    finite = jnp.isfinite(values.top)
    g, top = jnp.where(finite, g, 0), jnp.where(finite, values.top, 0)

    def block(number: Array, gradients: Any) -> Any:
        first = jnp.minimum(number * rows, n - rows)
        part = lambda array: jax.lax.dynamic_slice_in_dim(array, first, rows)
        repeated = first + jnp.arange(rows, dtype=jnp.int32) < number * rows
        q, q_where, weight = part(queries), None if where is None else part(where), jnp.where(repeated, 0, part(g))
        q_top, q_log_total = part(top), part(values.log_total)

        def chunk(k: Array, sums: Any) -> Any:
            d_block, d_items, d_bias = sums
            scores, vectors, start = _scores(q, q_where, items, bias, k, size)
            # score - top is exact where it matters; an infinite score has weight 0, and exp(inf) * 0 would be NaN
            log_p = (scores - q_top[None, :]) - q_log_total[None, :]
            p = jnp.where(scores < jnp.inf, jnp.exp(log_p), 0) * weight[None, :]
            d_items = _add_at(d_items, start, product(p, q))
            d_bias = None if d_bias is None else _add_at(d_bias, start, product(p, jnp.ones((rows, 1), p.dtype))[:, 0])
            return d_block + product(p.T, vectors), d_items, d_bias

        d_queries, d_items, d_bias = gradients
        sums = jnp.zeros((rows, d), queries.dtype), d_items, d_bias
        d_block, d_items, d_bias = jax.lax.fori_loop(0, -(-m // size), chunk, sums)
        return _add_at(d_queries, first, d_block), d_items, d_bias

    zeros = jax.tree.map(jnp.zeros_like, (queries, items, bias))
    return jax.lax.fori_loop(0, -(-n // rows), block, zeros) if n else zeros


log_sum_exp.defvjp(_forward, _backward)


def _tile(n: int, m: int, platform: Platform) -> tuple[int, int]:
    """Queries and items of a tile."""
    rows = max(1, min(n, TILE_QUERIES[platform]))
    return rows, min(m, max(1, TILE_SCORES[platform] // rows))


def _scores(
    queries: Array, where: Array | None, items: Array, bias: Array | None, number: Array, size: int
) -> tuple[Float[Array, "size n"], Float[Array, "size d"], Array]:
    """(scores, the chunk's items, its first item). The last chunk begins early; what it repeats has score -inf."""
    first = jnp.minimum(number * size, len(items) - size)
    vectors = jax.lax.dynamic_slice_in_dim(items, first, size)
    scores = product(vectors, queries.T)
    if bias is not None:
        scores = scores + jax.lax.dynamic_slice_in_dim(bias, first, size)[:, None]
    counts = (first + jnp.arange(size, dtype=jnp.int32) >= number * size)[:, None]
    if where is not None:
        counts &= jax.lax.dynamic_slice_in_dim(where, first, size, axis=1).T
    return jnp.where(counts, scores, -jnp.inf), vectors, first


def _difference(a: Array, b: Array) -> Array:
    """The difference a - b, where equal infinities differ by 0."""
    return jnp.where(a == b, 0, a - b)


def _add_at(table: Array, first: Array, rows: Array) -> Array:
    old = jax.lax.dynamic_slice_in_dim(table, first, len(rows))
    return jax.lax.dynamic_update_slice_in_dim(table, old + rows, first, 0)
