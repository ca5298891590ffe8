"""The inverse of one large positive definite matrix, in place, by Gauss-Jordan elimination of blocks of columns.

For the block k of columns, with K = A[k, k], C = A[:, k] and R = K^-1 A[k, :]::

    A[i, j] <- A[i, j] - C[i] R[j]     for rows i and columns j outside of k
    A[i, k] <- -C[i] K^-1,   A[k, j] <- R[j],   A[k, k] <- K^-1

After the last block A holds its inverse. On a positive definite matrix this needs no pivoting, and rounds as Cholesky's
factor does. It is products of matrices alone, as fast as these: n^3 multiplications, in the memory of one matrix and a
strip of its rows. LAPACK's inverse took 4 times as long on two cores (n = 3706), its Cholesky factor and triangular
solves hold three matrices, and a batch of them (a vmap over l2) deadlocks there, see `kernels.cholesky`.

Over several devices each has a block of columns, all rows of them; the panel C comes from its owners by a sum.

The derivative is that of the inverse P, dP = -P dA P: two more products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.gather import gather
from jaxrec.numerics import product

__all__ = ["Inverse", "inverse", "inverse_of_columns"]

# Columns that are eliminated at once, and rows that are updated at once.
BLOCK, STRIP_ROWS = 256, 1024


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

    def panel(matrix: Array, first: Array, size: int) -> Array:
        return jax.lax.dynamic_slice(matrix, (jnp.int32(0), first), (n, size))

    return _eliminate_all(matrix, jnp.diagonal(matrix), jnp.arange(n, dtype=jnp.int32), panel)


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
    return _eliminate_all(columns, jax.lax.psum(own, axis_name), column, panel)


def _eliminate_all(
    matrix: Array,
    diagonal: Array,
    column: Array,
    panel: Callable[[Array, Array, int], Array],
) -> Inverse:
    """Eliminates all blocks of columns, in place.

    Args:
        matrix: all columns, or some.
        diagonal: [n], of the whole matrix.
        column: the numbers of its columns.
        panel: panel(matrix, first, size): `size` columns of the whole, from column `first`.
    """
    n = len(matrix)
    size = min(BLOCK, n)

    def eliminate_block(state: Inverse, first: Array, size: int) -> Inverse:
        matrix, least = state
        c = panel(matrix, first, size)  # C
        head = jax.lax.dynamic_slice(c, (first, jnp.int32(0)), (size, size))
        head_inverse, pivots = _invert_small((head + head.T) / 2)
        own = jax.lax.dynamic_slice_in_dim(diagonal, first, size)
        least = jnp.minimum(least, jnp.min(jnp.where(own > 0, pivots / jnp.where(own > 0, own, 1), 0)))
        column_in_block = (column >= first) & (column < first + size)
        right = product(head_inverse, jax.lax.dynamic_slice_in_dim(matrix, first, size))
        position = jnp.clip(column - first, 0, size - 1)
        right = jnp.where(column_in_block[None, :], gather(head_inverse.T, position).T, right)
        left = jax.lax.dynamic_update_slice(c, -jnp.eye(size, dtype=c.dtype), (first, jnp.int32(0)))

        def update(start: Array, matrix: Array, rows: int) -> Array:
            old = jax.lax.dynamic_slice_in_dim(matrix, start, rows)
            row = start + jnp.arange(rows, dtype=jnp.int32)
            swept = ((row >= first) & (row < first + size))[:, None] | column_in_block[None, :]
            change = product(jax.lax.dynamic_slice_in_dim(left, start, rows), right)
            return jax.lax.dynamic_update_slice_in_dim(matrix, jnp.where(swept, 0, old) - change, start, 0)

        # in strips, by a loop: the product is as large as a strip, and the matrix is updated in place
        rows = min(STRIP_ROWS, n)
        matrix = jax.lax.fori_loop(0, n // rows, lambda k, matrix: update(jnp.int32(k) * rows, matrix, rows), matrix)
        matrix = update(jnp.int32(n - n % rows), matrix, n % rows) if n % rows else matrix
        return Inverse(matrix, least)

    state = Inverse(matrix, jnp.ones((), matrix.dtype))
    if n == 0:
        return state
    state = jax.lax.fori_loop(0, n // size, lambda k, state: eliminate_block(state, jnp.int32(k) * size, size), state)
    return eliminate_block(state, jnp.int32(n - n % size), n % size) if n % size else state


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
