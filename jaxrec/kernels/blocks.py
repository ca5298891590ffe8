"""Least squares of many padded rows at once, one block of coordinates after another.

For every block, all rows make one Newton step in its coordinates, which is exact because the objective is quadratic;
then the residuals of their entries are updated. With n entries, d coordinates, and blocks of B of them, a pass over all
blocks takes 2 n d B flops for Gram matrices and d B^2 / 3 per row for their factors, where exact solutions take
2 n d^2 and d^3 / 3.

The loop over the blocks is around the loop over the rows, so that the program of one block, with one Cholesky solve, is
all that is compiled. The table is stored block by block: what is gathered are consecutive floats of a table that a
cache may hold (27k rows of 64 floats take 7 MB, of 512 floats 55 MB).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.gather import rows_where
from jaxrec.kernels import cholesky
from jaxrec.kernels.chunks import by_chunks, each_by_chunks
from jaxrec.kernels.least_squares import Lists, Solved, rows_per_chunk, weighted_entries
from jaxrec.kernels.platform import Platform
from jaxrec.numerics import HIGHEST, product

__all__ = ["BlockRows", "block_least_squares"]


class BlockRows(NamedTuple):
    """Rows of one padded length.

    Attributes:
        lists: their entries.
        v: [r, d], the coefficients to start from.
        precision: [r, d], P, the penalties of the coefficients, > 0.
    """

    lists: Lists
    v: Array
    precision: Array


class _Step(NamedTuple):
    """What one block's step of some rows needs.

    Attributes:
        lists: the rows' entries.
        error: [r, l], y - X v.
        slope: [r, B], the penalties' derivative (P + shared) v at the block's coordinates.
        precision: [r, B].
    """

    lists: Lists
    error: Array
    slope: Array
    precision: Array


def block_least_squares(
    table: Float[Array, "m d"],
    rows: Sequence[BlockRows],
    shared: Float[Array, "d d"],
    *,
    block_size: int,
    platform: Platform,
) -> list[Solved]:
    """One pass over the blocks of coordinates towards the solution of (X' D X + P + shared) v = X' D y of every row.

    With e = y - X v the residuals, and A_B the entries of that matrix at the coordinates of a block B::

        A_B step = X_B' D e - ((P + shared) v)_B        v_B <- v_B + step        e <- e - X_B step

    The objective never rises, and a block of all coordinates gives the exact solution. If d is not a multiple of
    `block_size`, the last block is padded with coordinates whose features are 0.

    Args:
        table: features of all.
        rows: the rows, those of one padded length in one part.
        shared: a matrix that all rows share, as in `conjugate_gradient`.
        block_size: coordinates per block, >= 1.
        platform: whose implementation to run.

    Source: Rendle, Krichene, Zhang, Koren 2021, iALS++: speeding up matrix factorization with subspace optimization.
    """
    d = table.shape[1]
    n_blocks = -(-d // block_size)
    extra = n_blocks * block_size - d
    widen = lambda a, fill=0: jnp.pad(a, ((0, 0), (0, extra)), constant_values=fill)
    blocks = jnp.moveaxis(widen(table).reshape(len(table), n_blocks, block_size), 1, 0)
    shared = jnp.pad(shared, (0, extra))
    precisions = [widen(part.precision, 1) for part in rows]
    errors = [
        _subtract_products(table, part.lists, jnp.where(part.lists.where, part.lists.y, 0), part.v, platform)
        for part in rows
    ]

    def pass_block(k: Array, state: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        values, errors = state
        block, first = jax.lax.dynamic_index_in_dim(blocks, k, keepdims=False), k * block_size
        columns = lambda a: jax.lax.dynamic_slice_in_dim(a, first, block_size, axis=1)
        shared_columns = columns(shared)
        steps = [
            _Step(part.lists, error, columns(precision) * columns(v) + product(v, shared_columns), columns(precision))
            for part, error, precision, v in zip(rows, errors, precisions, values, strict=True)
        ]
        shared_block = jax.lax.dynamic_slice_in_dim(shared_columns, first, block_size)
        changes = _newton_steps(block, steps, shared_block, platform)
        values = [
            jax.lax.dynamic_update_slice_in_dim(v, columns(v) + change, first, axis=1)
            for v, change in zip(values, changes, strict=True)
        ]
        errors = [
            _subtract_products(block, part.lists, error, change, platform)
            for part, error, change in zip(rows, errors, changes, strict=True)
        ]
        return values, errors

    values, errors = jax.lax.fori_loop(0, n_blocks, pass_block, ([widen(part.v) for part in rows], errors))

    def solved(part: BlockRows, v: Array, precision: Array, error: Array) -> Solved:
        where, weights = part.lists.where, part.lists.weights
        weights = where.astype(v.dtype) if weights is None else jnp.where(where, weights, 0)
        square = jnp.sum(weights * error * error, axis=1)
        penalty = jnp.sum((precision * v + product(v, shared)) * v, axis=1)
        return Solved(v[:, :d], (square + penalty) / 2, jnp.ones(len(v), v.dtype))

    return list(map(solved, rows, values, precisions, errors))


def _newton_steps(block: Array, steps: Sequence[_Step], shared: Array, platform: Platform) -> list[Array]:
    """The change of every row's coefficients at the coordinates of a block."""
    size = block.shape[1]

    def equations(step: _Step) -> tuple[Array, Array]:
        _, x, error = weighted_entries(block, step.lists._replace(y=step.error), platform=platform)
        gram = jnp.einsum("rld,rle->rde", x, x, precision=HIGHEST) + shared[None]
        rhs = jnp.einsum("rld,rl->rd", x, error, precision=HIGHEST) - step.slope
        return gram + jnp.eye(size, dtype=x.dtype)[None] * step.precision[:, :, None], rhs

    def solve(equations: tuple[Array, Array]) -> Array:
        gram, rhs = equations
        (change,), _ = cholesky.solve(gram, (rhs,), check_pivots=False, platform=platform)
        return change

    if platform == "cpu":  # one solve is compiled for all parts, as in `batched_ridge`
        return each_by_chunks(equations, solve, steps, max(1, cholesky.MATRIX_FLOATS // size**2))
    length = lambda step: max(step.error.shape[1], size)
    return [
        by_chunks(lambda chunk: solve(equations(chunk)), step, rows_per_chunk(length(step) * size, platform))
        for step in steps
    ]


def _subtract_products(table: Array, lists: Lists, error: Array, v: Array, platform: Platform) -> Array:
    """Subtracts X v from every entry of `error`."""

    def subtract(chunk: tuple[Lists, Array, Array]) -> Array:
        lists, error, v = chunk
        x = rows_where(table, lists.other, lists.where, platform=platform)
        return error - jnp.einsum("rld,rd->rl", x, v, precision=HIGHEST)

    return by_chunks(subtract, (lists, error, v), rows_per_chunk(error.shape[1] * table.shape[1], platform))
