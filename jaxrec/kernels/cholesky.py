"""Cholesky factors and solves of batches of small matrices.

| `platform` | implementation |
| --- | --- |
| `"cpu"` | blocks of 8 columns, by batched products, one chunk of matrices at a time |
| `"gpu"`, `"tpu"` | `jax.lax.linalg`: cuSOLVER and cuBLAS, or XLA's own |

16,384 x 64 on an H100: 2.5 ms for factor and solve by the library, 15 to 222 ms by the CPU's implementation.

The CPU does not use `jax.lax.linalg`: there it is a LAPACK call that hands its batch to the thread pool that runs it,
and waits. Two calls at once (two buckets of rows, say) on a 2-core machine wait for each other forever: jaxlib 0.10.2,
both workers in CholeskyFactorization::Kernel -> BlockingCounter::Wait, at d = 16 in most runs of an ALS sweep.

The CPU's implementation factorizes and inverts each diagonal block with the batch as the last axis, so that every
operation works on long vectors; the rest, d^3 / 3 of the work, is products of panels. `solve` on 2 cores against
LAPACK's factorization alone: 8192 x 32 takes 34 against 26 ms, 4096 x 64 49 against 56, 1024 x 128 65 against 54. With
the batch last in all columns it took 361, 549 and 947 ms (with other work running), with blocks of 16 columns 74, 86
and 65.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.numerics import HIGHEST

__all__ = ["cho_solve", "cholesky", "inverse", "pivot_ratio", "solve", "solve_transposed"]

BLOCK_COLUMNS = 8
# `solve` takes so many columns at a time where there are more: an update by 8 columns of a matrix that fills the cache
# takes as long as its reads and writes. CPU seconds per 1000 matrices, 2 cores with other work: 0.07 by 64 columns
# against 0.13 by 8 at d = 128, 0.18 against 0.68 at 192, and half as long to compile; at d = 64 there is no difference.
WIDE_COLUMNS = 64
# Floats of the matrices that a CPU works on at once: 2 MiB; 4 times as many take twice as long at d = 128.
MATRIX_FLOATS = 2**19
# Pivots are raised to this many eps of their diagonal entry: more than rounding may have taken from them.
MIN_PIVOT_EPS = 128


def cholesky(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """The lower triangular L with L L' = matrix; NaN where the matrix is not positive definite."""
    return _over_batch(matrix, cpu=_factorize, library=_factorize_by_library)


def cho_solve(lower: Float[Array, "*batch d d"], rhs: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Solves L L' z = rhs for z."""
    return _over_batch(lower, rhs, cpu=_solve_factored, library=_solve_factored_by_library)


def solve_transposed(lower: Float[Array, "*batch d d"], rhs: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Solves L' z = rhs for z by back substitution."""
    return _over_batch(lower, rhs, cpu=_backward, library=partial(_substitute, transposed=True))


def inverse(lower: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The inverse of L L'."""
    d = len(lower)
    identity = jnp.eye(d, dtype=lower.dtype)
    if d == 0:
        return identity

    def implementation(lower: Array, *, platform: Platform) -> Array:
        if platform == "cpu":  # one solve per column, because the CPU's implementation solves vectors
            columns = (jnp.broadcast_to(lower, (d, d, d)), identity)
            return by_chunks(lambda chunk: _solve_factored(*chunk), columns, _matrices_per_chunk(lower))
        half = _substitute_columns(lower[None], identity[None], transposed=False)
        return _substitute_columns(lower[None], half, transposed=True)[0]

    return by_platform(implementation, lower)


def pivot_ratio(lower: Float[Array, "*batch d d"]) -> Float[Array, "*batch"]:
    """The smallest ratio of a pivot to its diagonal entry, L_kk^2 / (L L')_kk, of a Cholesky factor.

    It is the part of a column that the columns before it do not explain; scales of rows and columns do not change it.
    The relative error of a solution is about 10 eps / ratio, and seldom 100 eps / ratio; a matrix that is singular up
    to rounding has a ratio of a few eps. NaN where the factor is.
    """
    diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)
    squares = jnp.sum(lower**2, axis=-1)
    return jnp.min(jnp.where(squares == 0, 0, diagonal**2 / jnp.where(squares == 0, 1, squares)), axis=-1, initial=1)


def solve(
    matrix: Float[Array, "b d d"],
    rhs: tuple[Float[Array, "b d"], ...],
    *,
    check_pivots: bool = True,
    platform: Platform | None = None,
) -> tuple[tuple[Float[Array, "b d"], ...], Float[Array, " b"]]:
    """(the z with matrix z = rhs for each rhs, the `pivot_ratio`), by a factor that is not kept.

    Twice as fast as `cho_solve` of one. Matrices that rounding has made singular or indefinite have a finite solution,
    which may mean little: the pivot ratio shows it. On a CPU such a pivot is raised to `MIN_PIVOT_EPS` eps of its
    diagonal entry; elsewhere, where the library's factor is NaN, the matrix is replaced by its diagonal and the ratio
    is 0. Without `check_pivots`, which saves a twentieth of a CPU's time, the solution may be NaN there, and all ratios
    are 1.

    Args:
        matrix: positive definite.
        rhs: right-hand sides, at least one. A CPU adds them to the matrix as rows: products of matrices with vectors
            would be compiled one by one.
        check_pivots: whether to compute the pivot ratios.
        platform: whose implementation to run; None: that of the platform the program is lowered for.
    """
    if matrix.size == 0:
        return rhs, jnp.ones(len(matrix), matrix.dtype)
    implementation = partial(_solve_for_platform, check_pivots=check_pivots)
    return (
        by_platform(implementation, matrix, rhs) if platform is None else implementation(matrix, rhs, platform=platform)
    )


@partial(jax.jit, static_argnames=("check_pivots", "platform"))
def _solve_for_platform(
    matrix: Array, rhs: tuple[Array, ...], *, check_pivots: bool, platform: Platform
) -> tuple[tuple[Array, ...], Array]:
    if platform != "cpu":
        return _solve_by_library(matrix, rhs, check_pivots)
    return by_chunks(lambda chunk: _solve(chunk[0], chunk[1], check_pivots), (matrix, rhs), _matrices_per_chunk(matrix))


def _matrices_per_chunk(matrix: Array) -> int:
    return max(1, MATRIX_FLOATS // max(1, matrix.shape[-1] ** 2))


def _solve_by_library(a: Array, rhs: tuple[Array, ...], check_pivots: bool) -> tuple[tuple[Array, ...], Array]:
    factorized = jnp.ones(len(a), bool)
    if check_pivots:  # factorizes twice: matrices without a factor must not enter the derivative either
        factorized = jnp.isfinite(jnp.sum(_factorize_by_library(jax.lax.stop_gradient(a)), axis=(1, 2)))
        diagonal = jnp.eye(a.shape[1], dtype=a.dtype)[None] * jnp.maximum(a, jnp.finfo(a.dtype).tiny)
        a = jnp.where(factorized[:, None, None], a, diagonal)
    lower = _factorize_by_library(a)
    columns = _substitute_columns(lower, jnp.stack(rhs, axis=-1), transposed=False)
    columns = _substitute_columns(lower, columns, transposed=True)
    ratio = jnp.where(factorized, pivot_ratio(lower), 0) if check_pivots else jnp.ones(len(a), a.dtype)
    return tuple(columns[..., n] for n in range(len(rhs))), ratio


def _factorize_by_library(a: Float[Array, "b d d"]) -> Float[Array, "b d d"]:
    return jax.lax.linalg.cholesky(a, symmetrize_input=False)


def _solve_factored_by_library(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return _substitute(lower, _substitute(lower, rhs, transposed=False), transposed=True)


def _substitute(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"], *, transposed: bool) -> Float[Array, "b d"]:
    return _substitute_columns(lower, rhs[..., None], transposed=transposed)[..., 0]


def _substitute_columns(
    lower: Float[Array, "b d d"], rhs: Float[Array, "b d c"], *, transposed: bool
) -> Float[Array, "b d c"]:
    """Solves L z = rhs, or L' z = rhs, for z."""
    return jax.lax.linalg.triangular_solve(lower, rhs, left_side=True, lower=True, transpose_a=transposed)


def _solve(a: Array, rhs: tuple[Array, ...], check_pivots: bool) -> tuple[tuple[Array, ...], Array]:
    """(solutions, pivot ratio) by blocks of columns, with the right-hand sides r as more rows of the matrix::

    [ A11  .   ]   [ L11  0   ]                    L11 factorizes A11
    [ A21  A22 ] = [ P    L22 ] [ L11'  P' ]       P = A21 L11^-T,   L22 L22' = A22 - P P'
    [ r1'  r2' ]   [ y1'  y2' ] [ 0     L22']      y1' = r1' L11^-T, then the same with r2' - y1' P'

    backward       z1' = (y1' - z2' P) L11^-1      once z2 is known
    """
    product = partial(jnp.einsum, precision=HIGHEST)
    n_rhs, diagonal = len(rhs), jnp.diagonal(a, axis1=1, axis2=2)
    ratio = jnp.ones(len(a), a.dtype)
    columns = BLOCK_COLUMNS if a.shape[-1] <= WIDE_COLUMNS else WIDE_COLUMNS
    a = jnp.concatenate([a, jnp.stack(rhs, axis=1)], axis=1)
    steps: list[tuple[Array, Array, Array]] = []  # (L11^-1, P, y1') of every block
    while a.shape[-1] > 0:
        size = min(columns, a.shape[-1])
        least = MIN_PIVOT_EPS * jnp.finfo(a.dtype).eps * diagonal[:, :size] if check_pivots else None
        inverse, pivots = _inverse_factor(a[:, :size, :size], least)
        if check_pivots:
            ratio = jnp.minimum(ratio, jnp.min(pivots / diagonal[:, :size], axis=1))
        diagonal = diagonal[:, size:]
        rows = product("bij,bkj->bik", a[:, size:, :size], inverse)
        panel, forward = rows[:, :-n_rhs], rows[:, -n_rhs:]
        steps.append((inverse, panel, forward))
        a = a[:, size:, size:] - product("bij,bkj->bik", rows, panel)
    solved = a  # empty, [b, n_rhs, 0]
    for inverse, panel, forward in reversed(steps):
        residual = forward - product("bnm,bms->bns", solved, panel)
        solved = jnp.concatenate([product("bns,bst->bnt", residual, inverse), solved], axis=2)
    return tuple(solved[:, n] for n in range(n_rhs)), ratio


def _inverse_factor(a: Float[Array, "b s s"], least: Float[Array, "b s"] | None) -> tuple[Array, Array]:
    """(L^-1, the squares of L's diagonal) of a diagonal block L L'; halves of more than `BLOCK_COLUMNS` one by one::

    P = A21 L11^-T        L22 L22' = A22 - P P'        L^-1 = [ L11^-1              0      ]
                                                              [ -L22^-1 P L11^-1    L22^-1 ]
    """
    size = a.shape[-1]
    if size <= BLOCK_COLUMNS:
        return _eliminate_with_identity(a, least)
    product = partial(jnp.einsum, precision=HIGHEST)
    half = BLOCK_COLUMNS * -(-size // (2 * BLOCK_COLUMNS))
    first, pivots = _inverse_factor(a[:, :half, :half], None if least is None else least[:, :half])
    panel = product("bij,bkj->bik", a[:, half:, :half], first)
    rest = a[:, half:, half:] - product("bij,bkj->bik", panel, panel)
    second, more = _inverse_factor(rest, None if least is None else least[:, half:])
    below = -product("bij,bjk->bik", product("bij,bjk->bik", second, panel), first)
    first = jnp.pad(first, ((0, 0), (0, 0), (0, size - half)))
    inverse = jnp.concatenate([first, jnp.concatenate([below, second], axis=2)], axis=1)
    return inverse, jnp.concatenate([pivots, more], axis=1)


@partial(jax.jit, static_argnames=("cpu", "library"))
def _over_batch(matrix: Array, *rhs: Array, cpu: Callable[..., Array], library: Callable[..., Array]) -> Array:
    """Applies a function of matrices [b, d, d] and right-hand sides [b, d]; the result has the last one's shape."""
    shape = (matrix, *rhs)[-1].shape
    if matrix.size == 0:
        return jnp.zeros(shape, matrix.dtype)
    d = matrix.shape[-1]
    flat = matrix.reshape(-1, d, d), *(each.reshape(-1, d) for each in rhs)

    def implementation(*args: Array, platform: Platform) -> Array:
        return (
            by_chunks(lambda chunk: cpu(*chunk), args, _matrices_per_chunk(matrix))
            if platform == "cpu"
            else library(*args)
        )

    return by_platform(implementation, *flat).reshape(shape)


def _factorize(a: Float[Array, "b d d"]) -> Float[Array, "b d d"]:
    columns: list[Array] = []
    for first in range(0, a.shape[-1], BLOCK_COLUMNS):
        size = min(BLOCK_COLUMNS, a.shape[-1])
        head = _eliminate(a[:, :size, :size])
        panel = jnp.einsum("bij,bkj->bik", a[:, size:, :size], _inverse(head), precision=HIGHEST)
        columns.append(jnp.pad(jnp.concatenate([head, panel], axis=1), ((0, 0), (first, 0), (0, 0))))
        a = a[:, size:, size:] - jnp.einsum("bij,bkj->bik", panel, panel, precision=HIGHEST)
    return jnp.concatenate(columns, axis=2)


def _solve_factored(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Solves L L' z = rhs for z."""
    return _backward(lower, _forward(lower, rhs))


def _forward(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Solves L z = rhs for z."""
    solved: list[Array] = []
    for first, inverse in _block_inverses(lower):
        size = inverse.shape[-1]
        residual = rhs[:, first : first + size]
        if solved:
            before, rows = jnp.concatenate(solved, axis=1), lower[:, first : first + size, :first]
            residual = residual - jnp.einsum("bij,bj->bi", rows, before, precision=HIGHEST)
        solved.append(jnp.einsum("bij,bj->bi", inverse, residual, precision=HIGHEST))
    return jnp.concatenate(solved, axis=1)


def _backward(lower: Float[Array, "b d d"], rhs: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Solves L' z = rhs for z."""
    solved = rhs[:, :0]
    for first, inverse in reversed(_block_inverses(lower)):
        last = first + inverse.shape[-1]
        residual = rhs[:, first:last] - jnp.einsum("bji,bj->bi", lower[:, last:, first:last], solved, precision=HIGHEST)
        solved = jnp.concatenate([jnp.einsum("bji,bj->bi", inverse, residual, precision=HIGHEST), solved], axis=1)
    return solved


def _block_inverses(lower: Float[Array, "b d d"]) -> list[tuple[int, Array]]:
    """(first column, inverse) of every diagonal block."""
    d = lower.shape[-1]
    blocks = [(k, lower[:, k : k + BLOCK_COLUMNS, k : k + BLOCK_COLUMNS]) for k in range(0, d, BLOCK_COLUMNS)]
    return [(k, _inverse(block)) for k, block in blocks]


def _eliminate(a: Float[Array, "b s s"]) -> Float[Array, "b s s"]:
    """The Cholesky factor of a diagonal block, by Gaussian elimination without pivoting.

    For a symmetric matrix this leaves U = D^(1/2) L', with D the pivots.
    """
    size = a.shape[-1]
    row_index = jnp.arange(size)[:, None]

    def column(j: Array, a: Array) -> Array:  # a: [s, s, b]
        pivot_row = jax.lax.dynamic_index_in_dim(a, j, keepdims=False)
        factor = jnp.where(row_index > j, pivot_row / jax.lax.dynamic_index_in_dim(pivot_row, j), 0)
        return a - factor[:, None, :] * pivot_row[None, :, :]

    upper = jax.lax.fori_loop(0, size, column, jnp.moveaxis(a, 0, -1))
    lower = jnp.moveaxis(upper, -1, 0).swapaxes(-1, -2) / jnp.sqrt(jnp.diagonal(upper))[:, None, :]
    return jnp.where(jnp.tri(size, dtype=bool)[None], lower, 0)


def _eliminate_with_identity(a: Float[Array, "b s s"], least: Float[Array, "b s"] | None) -> tuple[Array, Array]:
    """(L^-1, the pivots D) of a diagonal block L L', by Gaussian elimination of [A I]: it leaves [U, D^(1/2) L^-1].

    With `least` no pivot is smaller than it.
    """
    size = a.shape[-1]
    row_index = jnp.arange(size)[:, None]

    def column(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:  # [s, 2 s, b] and [s, b]
        rows, pivots = state
        pivot_row = jax.lax.dynamic_index_in_dim(rows, j, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(pivot_row, j)
        if least is not None:
            pivot = jnp.maximum(pivot, jax.lax.dynamic_index_in_dim(least.T, j))
        factor = jnp.where(row_index > j, pivot_row[:size] / pivot, 0)
        pivots = jax.lax.dynamic_update_slice_in_dim(pivots, pivot, j, 0)
        return rows - factor[:, None, :] * pivot_row[None], pivots

    identity = jnp.broadcast_to(jnp.eye(size, dtype=a.dtype)[:, :, None], (size, size, len(a)))
    rows = jnp.concatenate([jnp.moveaxis(a, 0, -1), identity], axis=1)
    rows, pivots = jax.lax.fori_loop(0, size, column, (rows, jnp.zeros((size, len(a)), a.dtype)))
    return jnp.moveaxis(rows[:, size:] / jnp.sqrt(pivots)[:, None], -1, 0), pivots.T


def _inverse(lower: Float[Array, "b s s"]) -> Float[Array, "b s s"]:
    """The inverse of a lower triangular block, row by row."""
    batch_last = jnp.moveaxis(lower, 0, -1)  # [s, s, b]
    identity = jnp.eye(lower.shape[-1], dtype=lower.dtype)

    def row(j: Array, z: Array) -> Array:
        lower_row = jax.lax.dynamic_index_in_dim(batch_last, j, keepdims=False)
        residual = identity[j][:, None] - jnp.sum(lower_row[:, None, :] * z, axis=0)
        return z.at[j].set(residual / jax.lax.dynamic_index_in_dim(lower_row, j))

    return jnp.moveaxis(jax.lax.fori_loop(0, len(identity), row, jnp.zeros_like(batch_last)), -1, 0)
