"""The k nearest columns of a sparse matrix for each of its columns: what `solvers.neighbors` stands on.

On the host, because the product of two sparse matrices is SciPy's work: gowalla (810k pairs, 40,981 items) takes 63
million multiplications and has 42 million pairs of items with a common user, 1,000 of an item's 40,981. Blocks of
columns as dense matrices on the device took four times as long, with two billion multiplications and a selection among
16,000 items for each. Similarities are computed on the device, for the pairs alone.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec.models.neighbors import NearestNeighbors, Similarity

__all__ = ["nearest"]

BLOCK_PRODUCTS = 2**22  # multiplications of a block, which has at most as many pairs
THREADS = min(4, os.cpu_count() or 1)  # each has a block and its similarities
LEAST = 2**14  # pairs for which the similarity is compiled; then four times as many, and so on


def nearest(
    left: Any,
    right: Any,
    squares: np.ndarray,
    shrinkage: float,
    *,
    similarity: Similarity,
    k: int,
    batch_size: int | None,
) -> NearestNeighbors:
    """For every column of `right`, the k columns of `left` with the largest similarity; both are sparse, [users, n]."""
    n, by_column = left.shape[1], right.T.tocsr()
    squares = squares.astype(np.float32)
    keys = np.zeros((n, k), np.uint64)
    similarity_of = partial(_similarities, similarity=similarity, shrinkage=shrinkage)

    def fill(block: tuple[int, int]) -> None:
        first, last = block
        products = by_column[first:last] @ left
        column = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(products.indptr))
        found = similarity_of(products.data, squares[products.indices], squares[column])
        if (wrong := ~np.isfinite(found)).any():
            bad = column[wrong.argmax()]
            raise ValueError(f"similarity: expected finite numbers, got NaN or infinity for column {bad}.")
        found[products.indices == column] = 0  # nobody is their own neighbor
        pairs = _keys(found, products.indices)
        for row, (start, end) in zip(keys[first:last], pairwise(products.indptr), strict=True):
            largest = np.partition(pairs[start:end], -k)[-k:] if end - start > k else pairs[start:end]
            row[k - len(largest) :] = largest
        keys[first:last].sort(axis=1)

    with ThreadPoolExecutor(THREADS) as threads:  # SciPy and NumPy let go of the interpreter while they compute
        for _ in threads.map(fill, _blocks(by_column, left, batch_size)):
            pass
    ids, values = _pairs(keys[:, ::-1])
    return NearestNeighbors(jnp.asarray(ids), jnp.asarray(values))


def _keys(similarity: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Numbers in the order of the similarities; of equal ones the lowest id's is the largest, and negative ones are 0.

    The upper half is the similarity's bits, since those of positive floats are in the order of the floats.
    """
    upper = similarity.astype(np.float32).view(np.uint32).astype(np.uint64) << np.uint64(32)
    return np.where(similarity > 0, upper | (2**32 - 1 - ids.astype(np.uint64)), np.uint64(0))


def _pairs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, similarities) of keys; zeros of 0."""
    values = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    ids = 2**32 - 1 - (keys & np.uint64(2**32 - 1))
    return np.where(values > 0, ids, 0).astype(np.int32), values


def _blocks(by_column: Any, left: Any, batch_size: int | None) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the columns of a block: `batch_size`, or as many as BLOCK_PRODUCTS allow, at least one."""
    n = by_column.shape[0]
    if batch_size is not None:
        yield from ((first, min(first + batch_size, n)) for first in range(0, n, batch_size))
        return
    # the multiplications up to each column: an entry (column, user) takes as many as the user has entries
    total = np.concatenate([[0], np.cumsum(np.diff(left.indptr)[by_column.indices])])[by_column.indptr]
    first = 0
    while first < n:
        last = max(first + 1, int(np.searchsorted(total, total[first] + BLOCK_PRODUCTS, side="right")) - 1)
        yield first, last
        first = last


def _similarities(
    products: np.ndarray,
    row_squares: np.ndarray,
    column_squares: np.ndarray,
    *,
    similarity: Similarity,
    shrinkage: float,
) -> np.ndarray:
    """The similarity of every pair; padded to a few lengths, so that few programs are compiled."""
    size = LEAST
    while size < len(products):
        size *= 4
    pad = lambda each: jnp.asarray(np.pad(each, (0, size - len(each)), constant_values=1))
    pairs = pad(products), pad(row_squares), pad(column_squares)
    return np.array(_pair_similarities(*pairs, jnp.float32(shrinkage), similarity=similarity))[: len(products)]


@partial(jax.jit, static_argnames="similarity")
def _pair_similarities(
    products: Array, row_squares: Array, column_squares: Array, shrinkage: Array, *, similarity: Similarity
) -> Array:
    one = lambda product, row, column: similarity(product[None, None], row[None, None], column[None, None], shrinkage)
    return jax.vmap(lambda *pair: one(*pair)[0, 0])(products, row_squares, column_squares)
