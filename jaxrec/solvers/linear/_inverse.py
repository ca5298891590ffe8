"""The inverse of one large positive definite matrix, in place, by sweeping blocks of columns.

For the block k of columns, with K = A[k, k], C = A[:, k] and R = K^-1 C'::

    A[i, j] <- A[i, j] - C[i] R[:, j]     for rows i and columns j outside of k
    A[i, k] <- R[:, i]',   A[k, j] <- R[:, j],   A[k, k] <- -K^-1

After the last block A holds its negative inverse. On a positive definite matrix this needs no pivoting, and rounds as
Cholesky's factor does. A stays symmetric, so that its lower triangle is enough: the rows are cut in `PARTS`, each
updated as far to the right as its last row needs. These are products of matrices alone, as fast as such: 1.1 n^3
multiplications and additions for 8 parts, in the memory of one matrix and a strip of its rows. On one core n = 3883
took 0.67 s; LAPACK's inverse from Cholesky's factor (`spotri` of SciPy) 0.80; the factor's triangular solves, which
hold three matrices, 1.17. A batch of LAPACK's calls (a vmap over l2) deadlocks, see `kernels.cholesky`.

Over several devices each has a block of columns, all rows of them; the panel C comes from its owners by a sum.

The derivative is that of the inverse P, dP = -P dA P: two more products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.gather import gather
from jaxrec.numerics import product

__all__ = ["Inverse", "inverse", "inverse_of_columns"]

# Columns that are swept at once, and within the square that they have on the diagonal; rows that are updated at once;
# parts of the rows with a width of their own.
BLOCK, SMALL_BLOCK, STRIP_ROWS, PARTS = 256, 32, 512, 8

Invert = Callable[[Array, Array], "Inverse"]  # of a square on the diagonal, and the whole matrix's diagonal there


class Inverse(NamedTuple):
    """The inverse of a matrix A.

    Attributes:
        matrix: [n, n], or some columns of it.
        pivot_ratio: [], the smallest ratio of a pivot to its diagonal entry of A, as `kernels.cholesky.pivot_ratio`:
            the relative error is about 10 eps / ratio.
    """

    matrix: Array
    pivot_ratio: Array


@jax.custom_jvp
def inverse(matrix: Float[Array, "n n"]) -> Inverse:
    """The inverse of a symmetric positive definite matrix; meaningless where the pivot ratio is a few eps or below."""
    n = len(matrix)
    index = jnp.arange(n, dtype=jnp.int32)

    def panel(matrix: Array, first: Array, size: int) -> Array:  # what is above the diagonal is out of date
        below = _columns(matrix, first, size)
        above = jax.lax.dynamic_slice_in_dim(matrix, first, size).T
        return jnp.where(index[:, None] < first, above, below)

    swept = _sweep_all(matrix, jnp.diagonal(matrix), index, panel, _lower_parts(n), BLOCK, _invert_square)
    return Inverse(-_mirrored(swept.matrix), swept.pivot_ratio)


@inverse.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Inverse, Inverse]:
    out = inverse(*primals)
    change = -product(out.matrix, product(tangents[0], out.matrix))
    return out, Inverse(change, jnp.zeros_like(out.pivot_ratio))


def inverse_of_columns(columns: Float[Array, "n c"], axis_name: str) -> Inverse:
    """The columns of the inverse that this device has, from those of the matrix; to be called under `shard_map`.

    n is the number of columns of all devices together, in their order along the axis. Every device sends and receives
    n^2 numbers in all.
    """
    n, c = columns.shape
    column = jax.lax.axis_index(axis_name) * c + jnp.arange(c, dtype=jnp.int32)

    def panel(columns: Array, first: Array, size: int) -> Array:
        own = jnp.arange(size, dtype=jnp.int32)[None, :] + first == column[:, None]  # [c, size]
        return jax.lax.psum(product(columns, own.astype(columns.dtype)), axis_name)

    own = jnp.zeros(n, columns.dtype).at[column].set(columns[column, jnp.arange(c)])
    rows = min(STRIP_ROWS, n)
    parts = [_Part(0, n - n % rows, rows, c), _Part(n - n % rows, n, n % rows, c)] if n else []
    swept = _sweep_all(columns, jax.lax.psum(own, axis_name), column, panel, parts, BLOCK, _invert_square)
    return Inverse(-swept.matrix, swept.pivot_ratio)


class _Part(NamedTuple):
    """Rows first to end, which are updated in strips of `rows`, and as far to the right as `width`."""

    first: int
    end: int
    rows: int
    width: int


def _lower_parts(n: int) -> list[_Part]:
    """The rows in at most `PARTS`, each as wide as its last row's lower triangle; and what remains of a strip."""
    if n == 0:
        return []
    rows = min(STRIP_ROWS, n)
    ends = sorted({-(-part * (n // rows) // PARTS) * rows for part in range(PARTS + 1)})
    parts = [_Part(first, end, rows, end) for first, end in pairwise(ends)]
    return [*parts, _Part(ends[-1], n, n - ends[-1], n)]


def _sweep_all(
    matrix: Array,
    diagonal: Array,
    column: Array,
    panel: Callable[[Array, Array, int], Array],
    parts: Sequence[_Part],
    block: int,
    invert: Invert,
) -> Inverse:
    """Sweeps all blocks of columns, in place: the negative inverse.

    Args:
        matrix: all columns, or some.
        diagonal: [n], of the whole matrix.
        column: the numbers of its columns.
        panel: panel(matrix, first, size): `size` columns of the whole, from column `first`.
        parts: the rows, and how much of them is needed.
        block: how many columns at once.
        invert: of their square on the diagonal.
    """
    n = len(matrix)
    size = min(block, n)

    def sweep_block(state: Inverse, first: Array, size: int) -> Inverse:
        matrix, least = state
        c = panel(matrix, first, size)  # C
        head = jnp.tril(jax.lax.dynamic_slice(c, (first, jnp.int32(0)), (size, size)))
        head_inverse, ratio = invert(head + jnp.tril(head, -1).T, jax.lax.dynamic_slice_in_dim(diagonal, first, size))
        least = jnp.minimum(least, ratio)
        column_in_block = (column >= first) & (column < first + size)
        position = jnp.clip(column - first, 0, size - 1)
        right = product(head_inverse, gather(c, column).T)  # R
        right = jnp.where(column_in_block[None, :], -gather(head_inverse, position).T, right)
        left = jax.lax.dynamic_update_slice(c, -jnp.eye(size, dtype=c.dtype), (first, jnp.int32(0)))

        def update(start: Array, matrix: Array, part: _Part) -> Array:
            old = jax.lax.dynamic_slice(matrix, (start, jnp.int32(0)), (part.rows, part.width))
            row = start + jnp.arange(part.rows, dtype=jnp.int32)
            swept = ((row >= first) & (row < first + size))[:, None] | column_in_block[None, : part.width]
            change = product(jax.lax.dynamic_slice_in_dim(left, start, part.rows), right[:, : part.width])
            return jax.lax.dynamic_update_slice(matrix, jnp.where(swept, 0, old) - change, (start, jnp.int32(0)))

        # In strips, by a loop: the product is as large as a strip, and the matrix is updated in place. The barrier
        # hides the number of trips: XLA makes a loop of one trip straight, and then copies the matrix every time.
        for part in parts:
            step = lambda k, matrix, part=part: update(part.first + jnp.int32(k) * part.rows, matrix, part)
            if part.rows:
                trips = jax.lax.optimization_barrier(jnp.int32((part.end - part.first) // part.rows))
                matrix = jax.lax.fori_loop(0, trips, step, matrix)
        return Inverse(matrix, least)

    state = Inverse(matrix, jnp.ones((), matrix.dtype))
    if n == 0:
        return state
    state = jax.lax.fori_loop(0, n // size, lambda k, state: sweep_block(state, jnp.int32(k) * size, size), state)
    return sweep_block(state, jnp.int32(n - n % size), n % size) if n % size else state


def _mirrored(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The symmetric matrix whose lower triangle is here, in place, square by square; diagonal squares are complete."""
    n = len(matrix)
    size = min(STRIP_ROWS, n)
    if size in (0, n):
        return matrix
    starts = jnp.minimum(jnp.arange(-(-n // size), dtype=jnp.int32) * size, n - size)

    def row(i: Array, matrix: Array) -> Array:
        def square(j: Array, matrix: Array) -> Array:
            below = jax.lax.dynamic_slice(matrix, (starts[j], starts[i]), (size, size))
            return jax.lax.dynamic_update_slice(matrix, below.T, (starts[i], starts[j]))

        return jax.lax.fori_loop(i + 1, len(starts), square, matrix)

    return jax.lax.fori_loop(0, len(starts), row, matrix)


def _columns(matrix: Array, first: Array, size: int) -> Array:
    return jax.lax.dynamic_slice(matrix, (jnp.int32(0), first), (len(matrix), size))


def _invert_square(square: Float[Array, "s s"], diagonal: Float[Array, " s"]) -> Inverse:
    n = len(square)
    index, part = jnp.arange(n, dtype=jnp.int32), _Part(0, n, n, n)
    swept = _sweep_all(square, diagonal, index, _columns, [part], SMALL_BLOCK, _invert_small)
    return Inverse(-swept.matrix, swept.pivot_ratio)


def _invert_small(square: Float[Array, "s s"], diagonal: Float[Array, " s"]) -> Inverse:
    """By sweeping one column after the other."""
    index = jnp.arange(len(square), dtype=jnp.int32)

    def column(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, pivots = state
        pivot = a[k, k]
        safe = jnp.where(pivot == 0, 1, pivot)
        row = jnp.where(index == k, -1, a[k]) / safe
        factor = jnp.where(index == k, -1, a[k])
        is_k = index == k
        return jnp.where(is_k[:, None] | is_k[None, :], 0, a) - factor[:, None] * row[None, :], pivots.at[k].set(pivot)

    swept, pivots = jax.lax.fori_loop(0, len(square), column, (square, jnp.zeros_like(diagonal)))
    ratio = jnp.where(diagonal > 0, pivots / jnp.where(diagonal > 0, diagonal, 1), 0)
    return Inverse(-swept, jnp.min(ratio))
