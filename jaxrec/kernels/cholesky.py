"""Cholesky factors and solves for batches of small matrices.

| `on` | |
| --- | --- |
| `"cpu"` | blocks of 8 columns, by batched products, some matrices at a time |
| `"gpu"`, `"tpu"` | `jax.lax.linalg`: cuSOLVER and cuBLAS, or XLA's own |

16,384 x 64 on an H100: 2.5 ms for factor and solve by the library, 15 to 222 by the CPU's form.

Why not `jax.lax.linalg` on the CPU too: there it is a LAPACK call that hands its batch to the thread pool that runs it,
and waits. Two at once (two buckets of rows, say) on a 2-core machine wait for each other for ever: jaxlib 0.10.2,
both workers in CholeskyFactorization::Kernel -> BlockingCounter::Wait, at d = 16 in most runs of an ALS sweep.

The CPU's form: a block of the diagonal is factorized and inverted with the batch as the last axis, where every
operation is one of long vectors; the rest, d^3 / 3 of it, is products of panels. `solve`, 2 cores, against LAPACK's
factor alone: 8192 x 32 34 against 26 ms, 4096 x 64 49 against 56, 1024 x 128 65 against 54. All columns batch-last took
361, 549, 947 (with other work beside them), blocks of 16 columns 74, 86, 65.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import On, by_platform

__all__ = ["cho_solve", "cholesky", "inverse", "shares", "solve", "solve_transposed"]

BLOCK = 8
# Floats of matrices that a CPU works on at once: 2 MiB; 4 times as many take twice as long at d = 128.
CHUNK = 2**19
HIGHEST = jax.lax.Precision.HIGHEST
# A pivot is held to so many eps of its diagonal entry: more than the rounding that may have eaten it.
LEAST = 128


def cholesky(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """The lower triangular L with L L' = matrix; NaN where the matrix is not positive definite."""
    return _over_batch(matrix, cpu=_factorize, library=_factorize_by_library)


def cho_solve(lower: Float[Array, "*batch d d"], rhs: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Z with L L' z = rhs."""
    return _over_batch(lower, rhs, cpu=_both_ways, library=_both_ways_by_library)


def solve_transposed(lower: Float[Array, "*batch d d"], rhs: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Z with L' z = rhs, by back substitution."""
    return _over_batch(lower, rhs, cpu=_backward, library=partial(_substitute, transposed=True))


def inverse(lower: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The inverse of L L'."""
    d = len(lower)
    one = jnp.eye(d, dtype=lower.dtype)
    if d == 0:
        return one

    def form(lower: Array, *, on: On) -> Array:
        if on == "cpu":  # a solve a column, which are vectors there
            return by_chunks(lambda part: _both_ways(*part), (jnp.broadcast_to(lower, (d, d, d)), one), _at_once(lower))
        half = _substitute_columns(lower[None], one[None], transposed=False)
        return _substitute_columns(lower[None], half, transposed=True)[0]

    return by_platform(form, lower)


def shares(lower: Float[Array, "*batch d d"]) -> Float[Array, "*batch"]:
    """The smallest pivot beside its diagonal entry: how much of a column is not said by those before it.

    Scales of rows and columns do not change it. A solution's relative error is about 10 times eps over it, and seldom
    100 times; a matrix that is singular up to rounding has a share of some eps. NaN where the factor is.
    """
    diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)
    of_all = jnp.sum(lower**2, axis=-1)
    return jnp.min(jnp.where(of_all == 0, 0, diagonal**2 / jnp.where(of_all == 0, 1, of_all)), axis=-1, initial=1)


def solve(
    matrix: Float[Array, "b d d"], rhs: tuple[Float[Array, "b d"], ...], *, watch: bool = True, on: On | None = None
) -> tuple[tuple[Float[Array, "b d"], ...], Float[Array, " b"]]:
    """(the z with matrix z = rhs of each, the `shares`), by a factor not kept: twice as fast as `cho_solve` of one.

    What rounding has made singular or indefinite has a finite answer, which may mean little: its share says so. On a
    CPU such a pivot is raised to `LEAST` eps of its diagonal entry; elsewhere, where the library's factor is NaN, the
    answer is the diagonal's and the share 0. Without `watch`, in a tenth less of a CPU's time, the answer may be NaN
    there, and shares are all 1.

    Args:
        matrix: positive definite.
        rhs: right-hand sides, each with products of its own on a CPU, for a matrix of two columns is multiplied far
            slower than two vectors.
        watch: whether to look at the pivots.
        on: the form; None: by the platform.
    """
    if matrix.size == 0:
        return rhs, jnp.ones(len(matrix), matrix.dtype)
    form = partial(_solve_on, watch=watch)
    return by_platform(form, matrix, rhs) if on is None else form(matrix, rhs, on=on)


@partial(jax.jit, static_argnames=("watch", "on"))
def _solve_on(matrix: Array, rhs: tuple[Array, ...], *, watch: bool, on: On) -> tuple[tuple[Array, ...], Array]:
    if on != "cpu":
        return _solve_by_library(matrix, rhs, watch)
    return by_chunks(lambda part: _solve(part[0], part[1], watch), (matrix, rhs), _at_once(matrix))


def _at_once(matrix: Array) -> int:
    return max(1, CHUNK // max(1, matrix.shape[-1] ** 2))


def _solve_by_library(a: Array, rhs: tuple[Array, ...], watch: bool) -> tuple[tuple[Array, ...], Array]:
    there = jnp.ones(len(a), bool)
    if watch:  # factorized again, for what has no factor must have no part in the derivative either
        there = jnp.isfinite(jnp.sum(_factorize_by_library(jax.lax.stop_gradient(a)), axis=(1, 2)))
        own = jnp.eye(a.shape[1], dtype=a.dtype)[None] * jnp.maximum(a, jnp.finfo(a.dtype).tiny)
        a = jnp.where(there[:, None, None], a, own)
    lower = _factorize_by_library(a)
    columns = _substitute_columns(lower, jnp.stack(rhs, axis=-1), transposed=False)
    columns = _substitute_columns(lower, columns, transposed=True)
    share = jnp.where(there, shares(lower), 0) if watch else jnp.ones(len(a), a.dtype)
    return tuple(columns[..., n] for n in range(len(rhs))), share


def _factorize_by_library(a: Float[Array, "b d d"]) -> Float[Array, "b d d"]:
    return jax.lax.linalg.cholesky(a, symmetrize_input=False)


def _both_ways_by_library(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return _substitute(lower, _substitute(lower, rhs, transposed=False), transposed=True)


def _substitute(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"], *, transposed: bool) -> Float[Array, "b d"]:
    return _substitute_columns(lower, rhs[..., None], transposed=transposed)[..., 0]


def _substitute_columns(
    lower: Float[Array, "b d d"], rhs: Float[Array, "b d c"], *, transposed: bool
) -> Float[Array, "b d c"]:
    """Z with L z = rhs, or L' z = rhs."""
    return jax.lax.linalg.triangular_solve(lower, rhs, left_side=True, lower=True, transpose_a=transposed)


def _solve(a: Array, rhs: tuple[Array, ...], watch: bool) -> tuple[tuple[Array, ...], Array]:
    product = partial(jnp.einsum, precision=HIGHEST)
    whole = jnp.diagonal(a, axis1=1, axis2=2)
    share = jnp.ones(len(a), a.dtype)
    steps: list[tuple[Array, Array, list[Array]]] = []  # of each block: its inverse, the panel below, L^-1 rhs there
    while a.shape[-1] > 0:
        size = min(BLOCK, a.shape[-1])
        least = LEAST * jnp.finfo(a.dtype).eps * whole[:, :size] if watch else None
        head = _eliminate(a[:, :size, :size], least=least)
        inverse = _inverse(head)
        if watch:
            share = jnp.minimum(share, jnp.min(jnp.diagonal(head, axis1=1, axis2=2) ** 2 / whole[:, :size], axis=1))
        whole = whole[:, size:]
        panel = product("bij,bkj->bik", a[:, size:, :size], inverse)
        forward = [product("bij,bj->bi", inverse, each[:, :size]) for each in rhs]
        steps.append((inverse, panel, forward))
        a = a[:, size:, size:] - product("bij,bkj->bik", panel, panel)
        rhs = tuple(
            each[:, size:] - product("bij,bj->bi", panel, done) for each, done in zip(rhs, forward, strict=True)
        )
    solved = rhs  # nothing is left
    for inverse, panel, forward in reversed(steps):
        left = [done - product("bij,bi->bj", panel, z) for done, z in zip(forward, solved, strict=True)]
        mine = [product("bji,bj->bi", inverse, each) for each in left]
        solved = tuple(jnp.concatenate(pair, axis=1) for pair in zip(mine, solved, strict=True))
    return solved, share


@partial(jax.jit, static_argnames=("cpu", "library"))
def _over_batch(matrix: Array, *rhs: Array, cpu: Callable[..., Array], library: Callable[..., Array]) -> Array:
    """A function of matrices [b, d, d] and right-hand sides [b, d], in the shape of the last."""
    shape = (matrix, *rhs)[-1].shape
    if matrix.size == 0:
        return jnp.zeros(shape, matrix.dtype)
    d = matrix.shape[-1]
    flat = matrix.reshape(-1, d, d), *(each.reshape(-1, d) for each in rhs)

    def form(*given: Array, on: On) -> Array:
        return by_chunks(lambda part: cpu(*part), given, _at_once(matrix)) if on == "cpu" else library(*given)

    return by_platform(form, *flat).reshape(shape)


def _factorize(a: Float[Array, "b d d"]) -> Float[Array, "b d d"]:
    columns: list[Array] = []
    for done in range(0, a.shape[-1], BLOCK):
        size = min(BLOCK, a.shape[-1])
        head = _eliminate(a[:, :size, :size])
        panel = jnp.einsum("bij,bkj->bik", a[:, size:, :size], _inverse(head), precision=HIGHEST)
        columns.append(jnp.pad(jnp.concatenate([head, panel], axis=1), ((0, 0), (done, 0), (0, 0))))
        a = a[:, size:, size:] - jnp.einsum("bij,bkj->bik", panel, panel, precision=HIGHEST)
    return jnp.concatenate(columns, axis=2)


def _both_ways(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """L L' z = rhs."""
    return _backward(lower, _forward(lower, rhs))


def _forward(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """L z = rhs."""
    solved: list[Array] = []
    for first, inverse in _inverses(lower):
        size = inverse.shape[-1]
        left = rhs[:, first : first + size]
        if solved:
            before = jnp.concatenate(solved, axis=1)
            left = left - jnp.einsum("bij,bj->bi", lower[:, first : first + size, :first], before, precision=HIGHEST)
        solved.append(jnp.einsum("bij,bj->bi", inverse, left, precision=HIGHEST))
    return jnp.concatenate(solved, axis=1)


def _backward(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """L' z = rhs."""
    after = rhs[:, :0]
    for first, inverse in reversed(_inverses(lower)):
        last = first + inverse.shape[-1]
        left = rhs[:, first:last] - jnp.einsum("bji,bj->bi", lower[:, last:, first:last], after, precision=HIGHEST)
        after = jnp.concatenate([jnp.einsum("bji,bj->bi", inverse, left, precision=HIGHEST), after], axis=1)
    return after


def _inverses(lower: Float[Array, "b d d"]) -> list[tuple[int, Array]]:
    """(the first column, the inverse) of every block of the diagonal."""
    d = lower.shape[-1]
    blocks = [(k, lower[:, k : k + BLOCK, k : k + BLOCK]) for k in range(0, d, BLOCK)]
    return [(k, _inverse(block)) for k, block in blocks]


def _eliminate(a: Float[Array, "b s s"], least: Float[Array, "b s"] | None = None) -> Float[Array, "b s s"]:
    """Gaussian elimination without pivoting, which for a symmetric matrix leaves U = D^(1/2) L'.

    With `least` no pivot is smaller than that.
    """
    size = a.shape[-1]
    below = jnp.arange(size)[:, None]

    def column(j: Array, a: Array) -> Array:  # a: [s, s, b]
        pivot = jax.lax.dynamic_index_in_dim(a, j, keepdims=False)
        if least is not None:
            pivot = jnp.where(below == j, jnp.maximum(pivot, least.T), pivot)
            a = jax.lax.dynamic_update_index_in_dim(a, pivot, j, 0)
        factor = jnp.where(below > j, pivot / jax.lax.dynamic_index_in_dim(pivot, j), 0)
        return a - factor[:, None, :] * pivot[None, :, :]

    upper = jax.lax.fori_loop(0, size, column, jnp.moveaxis(a, 0, -1))
    lower = jnp.moveaxis(upper, -1, 0).swapaxes(-1, -2) / jnp.sqrt(jnp.diagonal(upper))[:, None, :]
    return jnp.where(jnp.tri(size, dtype=bool)[None], lower, 0)


def _inverse(lower: Float[Array, "b s s"]) -> Float[Array, "b s s"]:
    """Of a lower triangular block, row by row."""
    batch_last = jnp.moveaxis(lower, 0, -1)  # [s, s, b]
    one = jnp.eye(lower.shape[-1], dtype=lower.dtype)

    def row(j: Array, z: Array) -> Array:
        mine = jax.lax.dynamic_index_in_dim(batch_last, j, keepdims=False)
        left = one[j][:, None] - jnp.sum(mine[:, None, :] * z, axis=0)
        return z.at[j].set(left / jax.lax.dynamic_index_in_dim(mine, j))

    return jnp.moveaxis(jax.lax.fori_loop(0, len(one), row, jnp.zeros_like(batch_last)), -1, 0)
