"""The k nearest columns of a sparse matrix for each of its columns, by blocks: what `solvers.neighbors` stands on.

A block is some columns, 64 on gowalla (810k pairs, 29,858 users, 40,981 items). Its products with all columns are sums
over the users who have an entry in it, and only items of these users have a product: so a block multiplies the
histories of 1,300 users by its columns, and ranks 16,000 items. That is 2 billion multiplications for all blocks;
all histories times all columns would be 33 billion, and the products of dense columns 50 trillion. The host prepares
the next blocks while the device computes. Selecting the k largest is most of the work: equal similarities are common
among rare items, and `kernels.topk_select` is slower for them.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec.gather import gather
from jaxrec.kernels.csr import csr_matmul
from jaxrec.models.neighbors import NearestNeighbors, Similarity, nearest_columns

__all__ = ["nearest"]

# Numbers of a block of products: the number of items times the block's columns. gowalla: 64 columns.
BLOCK_PRODUCTS, MIN_COLUMNS, MAX_COLUMNS = 3 * 2**20, 8, 256
# Blocks that are computed while the host prepares the next one.
IN_FLIGHT = 2


def nearest(
    left: Any,
    right: Any,
    row_squares: np.ndarray,
    shrinkage: float,
    *,
    similarity: Similarity,
    k: int,
    batch_size: int | None,
) -> NearestNeighbors:
    """For every column of `right`, the k columns of `left` with the largest similarity; both are sparse, [users, n]."""
    n = left.shape[1]
    size = int(np.clip(BLOCK_PRODUCTS // n // 8 * 8, MIN_COLUMNS, MAX_COLUMNS)) if batch_size is None else batch_size
    size = min(size, n)
    squares, shrink = row_squares.astype(np.float32), jnp.asarray(shrinkage, jnp.float32)
    parts: list[NearestNeighbors] = []
    for number, block in enumerate(_blocks(left, right, size, k)):
        products = _products(block.start, block.user, block.weight, block.columns)
        of_rows, of_columns = jnp.asarray(squares[block.row]), jnp.asarray(squares[block.column])
        row, column = jnp.asarray(block.row), jnp.asarray(block.column)
        parts.append(_select(products, of_rows, of_columns, shrink, row, column, similarity=similarity, k=k))
        if number >= IN_FLIGHT:  # waits for an earlier block, so that the prepared ones are few
            parts[number - IN_FLIGHT] = jax.device_get(parts[number - IN_FLIGHT])
    ids, similarities = (np.concatenate([np.asarray(part[j]) for part in parts])[:n] for j in (0, 1))
    if (wrong := ~np.isfinite(similarities).all(axis=1)).any():
        raise ValueError(f"similarity: expected finite numbers, got NaN or infinity for column {wrong.argmax()}.")
    return NearestNeighbors(jnp.asarray(ids), jnp.asarray(similarities))


class _Block(NamedTuple):
    """The factors of a block of products, rows times columns, over the users of the block's columns.

    Attributes:
        start: int32 [rows + 1], the rows as a compressed sparse matrix.
        user: int32 [e].
        weight: [e].
        columns: [users, size], dense.
        row: int32 [rows], the rows' ids, ascending; padding has no entries.
        column: int32 [size], the columns' ids.
    """

    start: np.ndarray
    user: np.ndarray
    weight: np.ndarray
    columns: np.ndarray
    row: np.ndarray
    column: np.ndarray


def _blocks(left: Any, right: Any, size: int, k: int) -> Iterator[_Block]:
    """The blocks of columns of `right`. Only users with an entry in a block have a product with it, and only what is in
    the histories of these users is a row of it. Sizes are padded to a few, so that few programs are compiled.
    """
    n = left.shape[1]
    by_column = right.tocsc()
    for first in range(0, n, size):
        start = by_column.indptr[first : min(first + size, n) + 1]
        entries = slice(start[0], start[-1])
        users, position = np.unique(by_column.indices[entries], return_inverse=True)
        columns = np.zeros((_padded(len(users), 1024, 4), size), np.float32)
        columns[position, np.repeat(np.arange(len(start) - 1), np.diff(start))] = by_column.data[entries]
        by_row = left[users].tocsc()
        row = np.flatnonzero(np.diff(by_row.indptr))
        n_rows = min(n, _padded(max(k, len(row)), 8192, 2))
        padding = 0, _padded(by_row.nnz, 16384, 4) - by_row.nnz  # zeros that belong to the last row
        row_start = np.full(n_rows + 1, by_row.nnz, np.int32)
        row_start[: len(row)] = by_row.indptr[row]
        row_start[-1] += padding[1]
        yield _Block(
            start=row_start,
            user=np.pad(by_row.indices.astype(np.int32), padding),
            weight=np.pad(by_row.data, padding),
            columns=columns,
            row=np.pad(row, (0, n_rows - len(row)), constant_values=n - 1).astype(np.int32),
            column=np.minimum(first + np.arange(size), n - 1).astype(np.int32),
        )


def _padded(length: int, least: int, factor: int) -> int:
    """The first of least, least * factor, least * factor^2, ... that is at least `length`."""
    while least < length:
        least *= factor
    return least


_products = jax.jit(csr_matmul)


@partial(jax.jit, static_argnames=("similarity", "k"))
def _select(
    products: Array,
    row_squares: Array,
    column_squares: Array,
    shrinkage: Array,
    row: Array,
    column: Array,
    *,
    similarity: Similarity,
    k: int,
) -> NearestNeighbors:
    """`nearest_columns` of a block, whose rows are the ids `row` and whose columns are the ids `column`."""
    products = jnp.where(row[:, None] == column[None, :], 0, products)  # nobody is their own neighbor
    found = nearest_columns(products, row_squares, column_squares, shrinkage, similarity=similarity, k=k)
    return NearestNeighbors(jnp.where(found.similarity > 0, gather(row, found.ids), 0), found.similarity)
