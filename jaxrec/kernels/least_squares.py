"""Least squares of many padded rows at once, features gathered from one table, with or without normal equations.

Row r has targets y [l] at the table's rows other [l]. All functions gather the features of a chunk of rows, [rows, l,
d], for everything that follows: two batched products for the normal equations, or two per step of conjugate gradients,
which never forms a Gram matrix. The implementations differ in the size of a chunk and in how it is gathered:

| `platform` | implementation |
| --- | --- |
| `"cpu"` | as many rows as stay in the cache (2 MiB), gathered with the mask products of `gather.rows_where` |
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

import jax
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
    "conjugate_gradient",
    "dual_least_squares",
    "list_normal_equations",
    "rows_per_chunk",
    "weighted_entries",
]

# Up to this many conjugate-gradient steps are unrolled on a CPU, where a step in a loop is slower. 20M ratings, d = 64,
# 2 cores: a sweep of 3 steps takes 3.2 s in a loop and 2.1 to 2.3 unrolled; one of 10 steps 5.8 s in a loop and 4.6
# unrolled, but that takes 47 s to compile instead of 20.
UNROLLED_STEPS = 4

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


def weighted_entries(table: Array, lists: Lists, *, platform: Platform) -> tuple[Array, Array, Array]:
    """(square roots of the weights, features and targets times them), 0 where masked."""
    where = lists.where
    root = where.astype(table.dtype)
    if lists.weights is not None:
        positive = where & (lists.weights > 0)
        root = jnp.where(positive, jnp.sqrt(jnp.where(positive, lists.weights, 1)), 0)
    x = rows_where(table, lists.other, where, platform=platform) * root[:, :, None]
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


def conjugate_gradient(
    table: Float[Array, "m d"],
    lists: Lists,
    warm_start: Float[Array, "r k"],
    precision: Float[Array, "r k"],
    shared: Float[Array, "k k"] | None = None,
    *,
    intercept: bool,
    steps: int,
    platform: Platform,
) -> Solved:
    """`steps` steps from `warm_start` towards the solution of (X' D X + P (+ shared)) v = X' D y of every row.

    The objective falls with every step. k steps are exact up to rounding; with a warm start in alternating least
    squares, two or three lose little. The preconditioner is the sum of the weights times the table's mean squares, plus
    the penalties: scales of features and of rows do not slow it down. (On ml-100k at rank 16, four sweeps of two steps
    end at 27,322, without it at 27,579, and exact ones at 27,205.) Convergence is not checked: rows whose weights are
    powers of ten apart need the exact solution.

    Args:
        table: features of all.
        lists: the rows.
        warm_start: the initial coefficients of each row; in training, those of the sweep before.
        precision: P, the penalties, one per coefficient.
        shared: a matrix that all rows share: in implicit feedback, the unobserved weight times the table's own Gram.
        intercept: whether the last coefficient is one.
        steps: number of steps.
        platform: whose implementation to run.

    Source: Takács, Pilászy, Tikk 2011, Applications of the conjugate gradient method for implicit feedback.
    """
    size = rows_per_chunk(lists.other.shape[1] * table.shape[1], platform)
    squares = jnp.mean(table * table, axis=0)
    squares = jnp.append(squares, jnp.ones(1, table.dtype)) if intercept else squares

    def solve(chunk: tuple[Lists, Array, Array]) -> Solved:
        lists, warm_start, precision = chunk
        return _conjugate_gradient(table, squares, lists, warm_start, precision, shared, intercept, steps, platform)

    return by_chunks(solve, (lists, warm_start, precision), size)


def _conjugate_gradient(
    table: Array,
    squares: Array,
    lists: Lists,
    warm_start: Array,
    precision: Array,
    shared: Array | None,
    intercept: bool,
    steps: int,
    platform: Platform,
) -> Solved:
    d, where = table.shape[1], lists.where
    weight = where.astype(table.dtype) if lists.weights is None else jnp.where(where, lists.weights, 0)
    # The barrier keeps the compiler from repeating the gather in every product.
    x = jax.lax.optimization_barrier(rows_where(table, lists.other, where, platform=platform))
    y = jnp.where(where, lists.y, 0)

    def forward(v: Array) -> Array:  # X v
        out = jnp.einsum("rld,rd->rl", x, v[:, :d], precision=HIGHEST)
        return out + v[:, d:] if intercept else out

    def backward(e: Array) -> Array:  # X' e
        out = jnp.einsum("rld,rl->rd", x, e, precision=HIGHEST)
        return jnp.concatenate([out, jnp.sum(e, axis=1, keepdims=True)], axis=1) if intercept else out

    def penalize(v: Array) -> Array:  # (P (+ shared)) v
        out = precision * v
        return out if shared is None else out + jnp.matmul(v, shared, precision=HIGHEST)

    # An estimate of the matrix' diagonal from the table's mean squares: the scales of the features, without a pass.
    diagonal = jnp.sum(weight, axis=1, keepdims=True) * squares[None] + precision
    diagonal = diagonal if shared is None else diagonal + jnp.diagonal(shared)[None]
    diagonal = jnp.where(diagonal > 0, diagonal, 1)

    dot = lambda a, b: jnp.sum(a * b, axis=1, keepdims=True)
    divide = lambda a, b: jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)  # a converged row stays where it is
    v, error = warm_start, y - forward(warm_start)  # y - X v is kept, so that the objective at the end costs no pass
    residual = backward(weight * error) - penalize(v)
    scaled = residual / diagonal
    direction, square = scaled, dot(residual, scaled)

    def move(v: Array, error: Array, direction: Array, square: Array) -> tuple[Array, ...]:
        """Minimizes the objective along a direction."""
        x_direction, penalty = forward(direction), penalize(direction)
        length = divide(square, dot(weight * x_direction, x_direction) + dot(direction, penalty))
        return v + length * direction, error - length * x_direction, x_direction, penalty, length

    def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        v, error, residual, direction, square = state
        v, error, x_direction, penalty, length = move(v, error, direction, square)
        residual = residual - length * (backward(weight * x_direction) + penalty)
        scaled = residual / diagonal
        square, previous = dot(residual, scaled), square
        return v, error, residual, scaled + divide(square, previous) * direction, square

    if steps > 0:  # the last step needs no X' e; a loop, because every unrolled step would be compiled for every bucket
        state = v, error, residual, direction, square
        unroll = platform == "cpu" and steps <= UNROLLED_STEPS
        v, error, _, direction, square = jax.lax.fori_loop(0, steps - 1, step, state, unroll=unroll or None)
        v, error, *_ = move(v, error, direction, square)
    objective = jnp.sum(weight * error * error, axis=1) / 2 + jnp.sum(v * penalize(v), axis=1) / 2
    return Solved(v, objective, jnp.ones_like(objective))


def rows_per_chunk(floats: int, platform: Platform) -> int:
    """Number of rows, of that many floats each, in one chunk."""
    return max(1, CHUNK_FLOATS[platform] // max(1, floats))
