"""The inverse of one large positive definite matrix, in place, by eliminating blocks of columns (the sweep operator).

For the block k of columns, with K = A[k, k] and C = A[:, k]::

    A[i, j] <- A[i, j] - C[i] K^-1 C[j]'     for rows i and columns j outside of k
    A[i, k] <- C[i] K^-1,   A[k, j] <- K^-1 C[j]',   A[k, k] <- -K^-1

After the last block A holds minus its inverse. A stays symmetric, so that one triangle is computed, in strips of rows
as wide as the diagonal. On a positive definite matrix this needs no pivoting, and rounds as Cholesky's factor does.
It is products of matrices alone, as fast as these: n^3 / 2 multiplications, for n = 30,000 1.3e13, in the memory of one
matrix and a strip. LAPACK's factor and its triangular solves take more, hold three matrices, and a batch of them (a
vmap over l2) deadlocks on a CPU, see `kernels.cholesky`.

Over several devices each has a block of columns, all rows of them; the panel C comes from its owners by a sum.

The derivative is that of the inverse P, dP = -P dA P: two more products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.numerics import product

__all__ = ["Inverse", "inverse", "inverse_of_columns"]

# Columns that are eliminated at once, rows of a strip of a large matrix (of a small one: BLOCK), groups of strips of
# one width: 4 compute 5/8 of the matrix, and each is compiled.
BLOCK, STRIP_ROWS, GROUPS = 256, 1024, 4


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
    groups = _groups(n)
    column = jnp.arange(n, dtype=jnp.int32)

    def panel(matrix: Array, first: Array, size: int) -> Array:
        """Columns of the symmetric matrix, whose upper triangle is not up to date."""
        zero = jnp.int32(0)
        above = jax.lax.dynamic_slice(matrix, (first, zero), (size, n)).T
        return jnp.where(column[:, None] < first, above, jax.lax.dynamic_slice(matrix, (zero, first), (n, size)))

    strips = _strips(n, [(start, stop, stop) for start, stop in groups])
    swept = _sweep(matrix, jnp.diagonal(matrix), column, panel, strips)
    matrix = -swept.matrix
    for start, stop in groups[:-1]:
        matrix = matrix.at[start:stop, stop:].set(matrix[stop:, start:stop].T)
    return Inverse(matrix, swept.pivot_ratio)


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
    swept = _sweep(columns, jax.lax.psum(own, axis_name), column, panel, _strips(n, [(0, n, c)]))
    return Inverse(-swept.matrix, swept.pivot_ratio)


def _groups(n: int) -> list[tuple[int, int]]:
    """(first row, row after the last) of groups of rows that are as wide as their last row's diagonal."""
    unit = STRIP_ROWS if n >= 8 * STRIP_ROWS else BLOCK
    rows = max(1, -(-n // (GROUPS * unit))) * unit
    return [(start, min(start + rows, n)) for start in range(0, n, rows)]


def _strips(n: int, widths: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """(first row, number of strips, rows of each, columns), of groups (first row, row after the last, columns)."""
    unit, strips = STRIP_ROWS if n >= 8 * STRIP_ROWS else BLOCK, []
    for start, stop, width in widths:
        whole, rest = divmod(stop - start, unit)
        strips += [(start, whole, unit, width)] if whole else []
        strips += [(stop - rest, 1, rest, width)] if rest else []
    return strips


def _sweep(
    matrix: Array,
    diagonal: Array,
    column: Array,
    panel: Callable[[Array, Array, int], Array],
    strips: list[tuple[int, int, int, int]],
) -> Inverse:
    """Sweeps all blocks of columns.

    Args:
        matrix: all columns, or some.
        diagonal: [n], of the whole matrix.
        column: the numbers of its columns.
        panel: panel(matrix, first, size): `size` columns of the whole, from column `first`.
        strips: of `_strips`, the rows and columns that are updated.
    """
    n = len(matrix)
    size = min(BLOCK, n)

    def sweep_block(state: Inverse, first: Array, size: int) -> Inverse:
        matrix, least = state
        c = panel(matrix, first, size)  # C
        head = jax.lax.dynamic_slice(c, (first, jnp.int32(0)), (size, size))
        head_inverse, pivots = _invert_small((head + head.T) / 2)
        own = jax.lax.dynamic_slice_in_dim(diagonal, first, size)
        least = jnp.minimum(least, jnp.min(jnp.where(own > 0, pivots / jnp.where(own > 0, own, 1), 0)))
        column_in_block = (column >= first) & (column < first + size)
        right = product(head_inverse, jnp.take(c, column, axis=0).T)
        position = jnp.clip(column - first, 0, size - 1)
        right = jnp.where(column_in_block[None, :], -jnp.take(head_inverse, position, axis=1), right)
        left = jax.lax.dynamic_update_slice(c, -jnp.eye(size, dtype=c.dtype), (first, jnp.int32(0)))

        def update(start: Array, matrix: Array, rows: int, width: int) -> Array:
            old = jax.lax.dynamic_slice(matrix, (start, jnp.int32(0)), (rows, width))
            row = start + jnp.arange(rows, dtype=jnp.int32)
            swept = ((row >= first) & (row < first + size))[:, None] | column_in_block[None, :width]
            change = product(jax.lax.dynamic_slice_in_dim(left, start, rows), right[:, :width])
            return jax.lax.dynamic_update_slice(matrix, jnp.where(swept, 0, old) - change, (start, jnp.int32(0)))

        # loops, because XLA would copy the matrix for a sequence of updates
        for start, trips, rows, width in strips:
            step = partial(update, rows=rows, width=width)
            matrix = jax.lax.fori_loop(
                0, trips, lambda k, matrix, s=start, r=rows, f=step: f(s + k * r, matrix), matrix
            )
        return Inverse(matrix, least)

    state = Inverse(matrix, jnp.ones((), matrix.dtype))
    if n == 0:
        return state
    state = jax.lax.fori_loop(0, n // size, lambda k, state: sweep_block(state, k * size, size), state)
    return sweep_block(state, jnp.int32(n - n % size), n % size) if n % size else state


def _invert_small(block: Float[Array, "s s"]) -> tuple[Float[Array, "s s"], Float[Array, " s"]]:
    """(the inverse, the pivots) of a positive definite block, by sweeping one column after the other."""
    index = jnp.arange(len(block), dtype=jnp.int32)

    def column(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, pivots = state
        pivot = a[k, k]
        safe = jnp.where(pivot == 0, 1, pivot)
        row = jnp.where(index == k, -1, a[k]) / safe
        factor = jnp.where(index == k, -1, a[k])
        is_k = index == k
        return jnp.where(is_k[:, None] | is_k[None, :], 0, a) - factor[:, None] * row[None, :], pivots.at[k].set(pivot)

    swept, pivots = jax.lax.fori_loop(0, len(block), column, (block, jnp.zeros(len(block), block.dtype)))
    return -swept, pivots
