"""Grouping of rows: by id with a counting sort, which splits, layouts and duplicate checks use, and by length."""

import numpy as np

from jaxrec import check

__all__ = ["CHUNK_ENTRIES", "divisor_from", "group_by", "partition", "row_counts"]

# Padded rows are as long as a divisor of this, so that chunks of so many entries (or of twice or half as many, ...)
# consist of whole rows: 2^5 3^2 5 7, with 72 divisors, each at most 1.25 times the one before up to 252.
CHUNK_ENTRIES = 10_080


def group_by(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(start [size + 1], order [n]): the rows of group g are order[start[g] : start[g + 1]], in their order in `ids`.

    This transposes a matrix with one entry per row, which SciPy does in O(n): 20M ids in a quarter of argsort's time.

    Args:
        ids: [n] contiguous ids, in [0, size).
        size: the number of groups; empty ones count.

    Raises:
        ValueError: ids out of range, with which SciPy would write out of bounds.

    >>> start, order = group_by(np.array([2, 0, 2, 1]), 4)
    >>> start.tolist(), order.tolist()
    ([0, 1, 2, 4, 4], [1, 3, 0, 2])
    """
    from scipy import sparse  # takes 0.1 s to import, and only this function needs it

    ids = check.ids("ids", ids, size=size)
    n = len(ids)
    position = np.arange(
        n + 1, dtype=np.int32 if n < check.INT32_MAX else np.int64
    )  # SciPy sorts in this type: int32 is 4 times faster
    matrix = sparse.csr_array((np.ones(n, np.int8), ids, position), shape=(n, size))
    columns = matrix.tocsc()
    return columns.indptr, columns.indices


def row_counts(ids: np.ndarray) -> np.ndarray:
    """For each row, the number of rows with the same id: float32 [n], to divide by. Ids are integers >= 0.

    >>> row_counts(np.array([2, 0, 2])).tolist()
    [2.0, 1.0, 2.0]
    """
    return np.bincount(ids, minlength=1)[ids].astype(np.float32)


def partition(length: np.ndarray, count: np.ndarray, price: float) -> list[tuple[int, int]]:
    """Cuts sorted lengths into the runs [first, last) with the least padding plus `price` per run.

    Every row of a run is padded to the run's longest, so the cost is the sum over runs of rows * longest + `price`.
    The minimum is exact, by dynamic programming over where the last run begins: K^2 steps for K lengths.

    Args:
        length: [K], ascending.
        count: [K], rows of each length.
        price: of a run, in padded entries.

    >>> partition(np.array([1, 2, 50, 60]), np.array([9, 1, 1, 1]), price=20)
    [(0, 2), (2, 4)]
    """
    rows_before = np.concatenate([[0], np.cumsum(count)]).astype(np.float64)  # rows of the first k lengths
    least_cost, run_start = np.zeros(len(length) + 1), np.zeros(len(length) + 1, int)
    for last in range(1, len(length) + 1):
        costs = least_cost[:last] + (rows_before[last] - rows_before[:last]) * length[last - 1] + price
        run_start[last] = costs.argmin()
        least_cost[last] = costs[run_start[last]]
    runs = []
    last = len(length)
    while last > 0:
        runs.append((int(run_start[last]), last))
        last = int(run_start[last])
    return runs[::-1]


def divisor_from(length: int, n: int = CHUNK_ENTRIES) -> int:
    """The smallest divisor of n that is at least `length`, which is at most n.

    >>> divisor_from(37), divisor_from(10_080)
    (40, 10080)
    """
    return next(divisor for divisor in range(max(1, length), n + 1) if n % divisor == 0)
