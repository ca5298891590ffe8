"""Least squares of many padded rows at once, features gathered from one table, by normal equations or in the dual.

Row r has targets y [l] at the table's rows other [l]. All functions gather the features of a chunk of rows, [rows, l,
d], for everything that follows. (So do `conjugate_gradient` and `blocks`.) The implementations differ in the size of a
chunk and in how it is gathered:

| `platform` | implementation |
| --- | --- |
| `"cpu"` | as many rows as stay in the cache (2 MiB), by the mask products of `gather.rows_where`; sums by `moments` |
| `"gpu"` | as many rows as 512 MiB hold, because a loop of small steps is a loop of launches; XLA's plain gather |
| `"tpu"` | normal equations: rows copied into VMEM one by one (`tpu_gram`). Everything else as on a GPU |

20M ratings, d = 64, a sweep on an H100: 2.4 s in chunks of 2 MiB, 0.13 s of 64 MiB, 0.06 s of 512 MiB.

What a sweep of ALS over n ratings moves: 2 n d floats gathered; the Gram matrices take 4 n d^2 flops, s steps of
conjugate gradients 4 (2 s + 1) n d. On 2 cores (d = 64, per 2M entries) the gather takes 17 ms (23 GB/s), a pair of
products of the conjugate gradients 9 to 11 ms, the Gram matrices 77 ms. Multiplying one of the Gram product's two sides
by the weights makes that 172 ms (another buffer), so both sides get their square root, in the gather.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.gather import rows_where
from jaxrec.kernels import cholesky
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import Platform, with_derivative_of
from jaxrec.numerics import HIGHEST

__all__ = [
    "CHUNK_FLOATS",
    "Equations",
    "Lists",
    "Solved",
    "dual_least_squares",
    "equations_of",
    "list_normal_equations",
    "moments",
    "rows_per_chunk",
    "weighted_entries",
    "with_columns",
]

# Floats of features (or of matrices) in one chunk. On a CPU 2 MiB: 1/4 and 4 times as many were up to a fifth slower.
# Elsewhere 512 MiB, which bounds each of the gathered features, a chunk's Gram matrices and their factors.
CHUNK_FLOATS: dict[Platform, int] = {"cpu": 2**19, "gpu": 2**27, "tpu": 2**27}


class Lists(NamedTuple):
    """Padded rows.

    Attributes:
        other: int32 [r, l], rows of the table; trusted.
        y: [r, l], targets.
        where: bool [r, l], False at padding.
        weights: [r, l], >= 0, or None for ones.
    """

    other: Array
    y: Array
    where: Array
    weights: Array | None


class Equations(NamedTuple):
    """Sums over the entries of rows, with D the weights.

    Attributes:
        gram: [r, d, d], X' D X.
        rhs: [r, d] each: X' D y and, with an intercept, X' D 1.
        sums: [r, 3], of D y^2, D y and D.
    """

    gram: Array
    rhs: tuple[Array, ...]
    sums: Array


class Solved(NamedTuple):
    """Coefficients of rows, and the objective at them.

    Attributes:
        v: [r, k].
        objective: [r], 1/2 sum of weight (x . v - y)^2 + 1/2 v' P v (+ 1/2 v' shared v) at v.
        pivot_ratio: [r], `cholesky.pivot_ratio` of the equations; 1 where there are none.
    """

    v: Array
    objective: Array
    pivot_ratio: Array


def list_normal_equations(
    table: Float[Array, "m d"], lists: Lists, *, intercept: bool, platform: Platform
) -> Equations:
    """The sums over every row's entries that its regression needs.

    The derivative with respect to a weight is exact where the weight is > 0, and 0 where it is 0.

    Args:
        table: features of all.
        lists: the rows.
        intercept: whether the rows have one: if so, `rhs` also has the sums of the features.
        platform: whose implementation to run.
    """
    plain = partial(_by_xla, intercept=intercept, platform=platform)
    fits = table.dtype == jnp.float32 and table.shape[1] <= 255  # larger ones do not fit in a TPU's VMEM
    if platform == "tpu" and fits:
        return with_derivative_of(plain, partial(_by_pallas, intercept=intercept))(table, lists)
    return plain(table, lists)


def _by_xla(table: Array, lists: Lists, *, intercept: bool, platform: Platform) -> Equations:
    if platform == "cpu":
        return equations_of(moments(with_columns(table), lists), intercept=intercept)
    size = rows_per_chunk(lists.other.shape[1] * table.shape[1], platform)
    return by_chunks(lambda chunk: _equations(table, chunk, intercept, platform), lists, size)


def _by_pallas(table: Array, lists: Lists, *, intercept: bool) -> Equations:
    """The Gram matrices from rows copied into VMEM one by one, without [r, l, d] in HBM; the other sums are small."""
    from jaxrec.kernels import tpu_gram  # takes 0.15 s to import

    (other, y, where, weights), d = lists, table.shape[1]
    table = jnp.concatenate([table, jnp.ones((len(table), 1), table.dtype)], axis=1) if intercept else table
    gram, rhs = tpu_gram.tpu_normal_equations(table, other, y, where, weights)
    right_sides = (rhs[:, :d], gram[:, :d, d]) if intercept else (rhs,)
    weight = jnp.where(where, 1.0 if weights is None else weights, 0.0).astype(table.dtype)
    y = jnp.where(where, y, 0)
    sums = jnp.stack([weight * y * y, weight * y, weight], axis=2)
    return Equations(gram[:, :d, :d], right_sides, jnp.sum(sums, axis=1))


def with_columns(table: Array) -> Array:
    """The table with two more columns, of ones and of zeros: what `moments` takes."""
    return jnp.concatenate([table, jnp.ones((len(table), 1), table.dtype), jnp.zeros((len(table), 1), table.dtype)], 1)


def moments(columns: Float[Array, "m d+2"], lists: Lists) -> Float[Array, "r d+2 d+2"]:
    """The sums over every row's entries of D (x, 1, y) (x, 1, y)', on a CPU: all sums by one product.

    As a Gram matrix and three kinds of sums, an exact sweep over 20M ratings takes a fifth longer (6.7 s in place of
    5.5 at d = 64, on 2 cores), and five more programs are compiled for every bucket.

    Args:
        columns: of `with_columns`, which is called once for all chunks.
        lists: the rows.
    """
    is_y = (jnp.arange(columns.shape[1], dtype=jnp.int32) == columns.shape[1] - 1).astype(columns.dtype)

    def chunk_moments(lists: Lists) -> Array:
        _, x, y = weighted_entries(columns, lists, platform="cpu")
        entries = x + y[:, :, None] * is_y[None, None]
        return jnp.einsum("rld,rle->rde", entries, entries, precision=HIGHEST)

    return by_chunks(chunk_moments, lists, rows_per_chunk(lists.other.shape[1] * columns.shape[1], "cpu"))


def equations_of(moments: Float[Array, "r d+2 d+2"], *, intercept: bool) -> Equations:
    """The parts of the moments."""
    d = moments.shape[1] - 2
    rhs = moments[:, d + 1, :d], *((moments[:, d, :d],) if intercept else ())
    sums = moments[:, d + 1, d + 1], moments[:, d, d + 1], moments[:, d, d]
    return Equations(moments[:, :d, :d], rhs, jnp.stack(sums, axis=1))


def weighted_entries(table: Array, lists: Lists, *, platform: Platform) -> tuple[Array, Array, Array]:
    """(square roots of the weights, features and targets times them), 0 where masked."""
    where = lists.where
    root = where.astype(table.dtype)
    if lists.weights is not None:
        positive = where & (lists.weights > 0)
        root = jnp.where(positive, jnp.sqrt(jnp.where(positive, lists.weights, 1)), 0)
    x = rows_where(table, lists.other, where, platform=platform) * root[..., None]
    return root, x, jnp.where(where, lists.y, 0) * root


def _equations(table: Array, lists: Lists, intercept: bool, platform: Platform) -> Equations:
    root, x, y = weighted_entries(table, lists, platform=platform)
    gram = jnp.einsum("rld,rle->rde", x, x, precision=HIGHEST)
    # one product per side: both at once are no matrix-vector product, and take five times as long
    rhs = tuple(jnp.einsum("rld,rl->rd", x, side, precision=HIGHEST) for side in ((y, root) if intercept else (y,)))
    sums = [jnp.sum(each, axis=1) for each in (y * y, root * y, root * root)]
    return Equations(gram, rhs, jnp.stack(sums, axis=1))


def dual_least_squares(
    table: Float[Array, "m d"], lists: Lists, precision: Float[Array, "r k"], *, intercept: bool, platform: Platform
) -> Solved:
    """The rows' solutions from l x l equations instead of k x k ones, for rows with fewer entries than features.

    With X and y multiplied by the square roots r of the weights, P the penalties of all coefficients but the intercept
    b, and beta the penalty of b:

        (X P^-1 X' + 1) e = y - b r        r' e = beta b        v = P^-1 X' e

    Here e is the weighted residual y - X v - b r of the solution, and the objective is y' e / 2.

    Args:
        table: features of all.
        lists: the rows.
        precision: > 0 except for the intercept.
        intercept: whether the last coefficient is one.
        platform: whose implementation to run.
    """
    size = rows_per_chunk(lists.other.shape[1] * table.shape[1], platform)
    return by_chunks(lambda chunk: _dual(table, chunk[0], chunk[1], intercept, platform), (lists, precision), size)


def _dual(table: Array, lists: Lists, precision: Array, intercept: bool, platform: Platform) -> Solved:
    d = table.shape[1]
    root, x, y = weighted_entries(table, lists, platform=platform)
    x_over_precision = x / precision[:, None, :d]
    kernel = jnp.einsum("rld,rmd->rlm", x, x_over_precision, precision=HIGHEST)
    kernel = kernel + jnp.eye(x.shape[1], dtype=x.dtype)[None]
    (residual, *adjoint), ratio = cholesky.solve(kernel, (y, root) if intercept else (y,), platform=platform)
    if intercept:
        pivot = precision[:, d] + jnp.sum(root * adjoint[0], axis=1)
        bias = jnp.where(pivot > 0, jnp.sum(root * residual, axis=1) / jnp.where(pivot > 0, pivot, 1), 0)
        residual = residual - bias[:, None] * adjoint[0]
    v = jnp.einsum("rld,rl->rd", x_over_precision, residual, precision=HIGHEST)
    v = jnp.concatenate([v, bias[:, None]], axis=1) if intercept else v
    return Solved(v, jnp.sum(y * residual, axis=1) / 2, ratio)


def rows_per_chunk(floats: int, platform: Platform) -> int:
    """Number of rows, of that many floats each, in one chunk."""
    return max(1, CHUNK_FLOATS[platform] // max(1, floats))
