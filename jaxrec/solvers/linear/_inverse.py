"""The inverse of one large positive definite matrix, in place, by Gauss-Jordan elimination in blocks of columns.

For the block k of columns, with K = A[k, k], R = K^-1 A[k, :] and C = A[:, k]::

    A[i, :] <- A[i, :] - C[i] R   for the rows i outside of k, and      A[k, :] <- R
    A[i, k] <- -C[i] K^-1         for their columns in k                A[k, k] <- K^-1

After the last block A holds its inverse. On a positive definite matrix this needs no pivoting, and rounds as Cholesky's
factor does. It is products of matrices alone: n^3 multiplications for an inverse, n = 30,000 in 2.7e13, memory of one
matrix and a strip of it. LAPACK's factor and two triangular solves need no fewer, three matrices, and deadlock on a CPU
when batched (a vmap over l2), see `kernels.cholesky`.

The derivative is that of the inverse P, dP = -P dA P: two more products.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.numerics import product

__all__ = ["Inverse", "inverse"]

# Columns that are eliminated at once, and rows that are updated at once (the strip).
BLOCK, ROWS = 256, 1024


class Inverse(NamedTuple):
    """The inverse of a matrix A.

    Attributes:
        matrix: [n, n].
        pivot_ratio: [], the smallest ratio of a pivot to its diagonal entry of A, as `kernels.cholesky.pivot_ratio`:
            the relative error is about 10 eps / ratio.
    """

    matrix: Array
    pivot_ratio: Array


@jax.custom_jvp
def inverse(matrix: Float[Array, "n n"]) -> Inverse:
    """The inverse of a symmetric positive definite matrix; meaningless where the pivot ratio is a few eps or below."""
    n = len(matrix)
    diagonal = jnp.diagonal(matrix)
    least = jnp.ones((), matrix.dtype)
    size = min(BLOCK, n)
    step = partial(_eliminate, diagonal=diagonal, size=size)
    if n > 0:
        matrix, least = jax.lax.fori_loop(0, n // size, lambda k, state: step(state, k * size), (matrix, least))
    if n > 0 and n % size > 0:
        rest = n - n % size
        matrix, least = _eliminate((matrix, least), jnp.int32(rest), diagonal=diagonal, size=n - rest)
    return Inverse(matrix, least)


@inverse.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Inverse, Inverse]:
    out = inverse(*primals)
    change = -product(out.matrix, product(tangents[0], out.matrix))
    return out, Inverse(change, jnp.zeros_like(out.pivot_ratio))


def _eliminate(state: tuple[Array, Array], first: Array, *, diagonal: Array, size: int) -> tuple[Array, Array]:
    """One block of columns, first : first + size."""
    matrix, least = state
    n = len(matrix)
    panel = jax.lax.dynamic_slice(matrix, (first, jnp.int32(0)), (size, n))
    head, pivots = _invert_small(jax.lax.dynamic_slice(panel, (jnp.int32(0), first), (size, size)))
    own = jax.lax.dynamic_slice_in_dim(diagonal, first, size)
    least = jnp.minimum(least, jnp.min(jnp.where(own > 0, pivots / jnp.where(own > 0, own, 1), 0)))
    panel = jax.lax.dynamic_update_slice(product(head, panel), head, (jnp.int32(0), first))
    column = jnp.arange(n, dtype=jnp.int32)
    in_block = (column >= first) & (column < first + size)

    def update(start: Array, count: int, matrix: Array) -> Array:
        rows = jax.lax.dynamic_slice(matrix, (start, jnp.int32(0)), (count, n))
        row = start + jnp.arange(count, dtype=jnp.int32)
        is_pivot = (row >= first) & (row < first + size)
        factor = jax.lax.dynamic_slice(rows, (jnp.int32(0), first), (count, size))
        identity = (row[:, None] - first == jnp.arange(size, dtype=jnp.int32)[None, :]).astype(rows.dtype)
        factor = jnp.where(is_pivot[:, None], -identity, factor)
        rows = jnp.where(is_pivot[:, None] | in_block[None, :], 0, rows) - product(factor, panel)
        return jax.lax.dynamic_update_slice(matrix, rows, (start, jnp.int32(0)))

    count = min(ROWS, n)
    matrix = jax.lax.fori_loop(0, n // count, lambda k, matrix: update(k * count, count, matrix), matrix)
    if n % count > 0:
        matrix = update(jnp.int32(n - n % count), n % count, matrix)
    return matrix, least


def _invert_small(block: Float[Array, "s s"]) -> tuple[Float[Array, "s s"], Float[Array, " s"]]:
    """(the inverse, the pivots), one column after the other."""
    index = jnp.arange(len(block), dtype=jnp.int32)

    def column(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, pivots = state
        pivot = a[k, k]
        safe = jnp.where(pivot == 0, 1, pivot)
        row = jnp.where(index == k, 1, a[k]) / safe
        factor = jnp.where(index == k, 0, a[:, k])
        a = jnp.where((index == k)[None, :], 0, a) - factor[:, None] * row[None, :]
        return jnp.where((index == k)[:, None], row[None, :], a), pivots.at[k].set(pivot)

    return jax.lax.fori_loop(0, len(block), column, (block, jnp.zeros(len(block), block.dtype)))
