"""Ratings as matrices: SciPy sparse matrices and NumPy dense ones, users by items, in and out.

>>> import numpy as np
>>> ratings = from_user_item_matrix(np.array([[5, 0], [4, 3]]), np.array([[True, True], [False, True]]))
>>> to_csr(ratings).nnz  # a rating of 0 is stored
3
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrec import check
from jaxrec.ratings import Ratings

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["UserItemMatrix", "from_csr", "from_user_item_matrix", "to_csr", "to_user_item_matrix"]


def from_csr(matrix: Any, *, user_ids: Any = None, item_ids: Any = None) -> Ratings:
    """Returns the entries of a SciPy sparse matrix as ratings; every stored entry is a rating, including stored zeros.

    Args:
        matrix: a SciPy sparse matrix or array [n_users, n_items] of any format.
        user_ids: [n_users] raw ids, or None.
        item_ids: [n_items] raw ids, or None.

    Raises:
        ValueError: `matrix` is not sparse, or its index arrays are invalid; no entry is stored, or one is stored twice;
            a value is NaN; the number of raw ids is not that of the rows or columns.
    """
    from scipy import sparse

    if not sparse.issparse(matrix) or len(matrix.shape) != 2:
        raise ValueError(f"expected a SciPy sparse matrix [n_users, n_items], got {type(matrix).__name__}.")
    if hasattr(matrix, "check_format"):
        matrix.check_format()  # the conversion is native code that does not check indptr
    entries = matrix.tocoo()
    return _from_positions(entries.row, entries.col, entries.data, matrix.shape, user_ids, item_ids)


def from_user_item_matrix(value: Any, where: Any, *, user_ids: Any = None, item_ids: Any = None) -> Ratings:
    """Returns the ratings in a matrix [n_users, n_items]; `where`, bool of its shape, is True for the rated entries.

    Raises:
        ValueError: the mask has another shape or type; nothing is rated; and whatever `Ratings` raises.
    """
    value, where = np.asarray(value), np.asarray(where)
    if value.ndim != 2 or where.shape != value.shape or where.dtype != bool:
        raise ValueError(
            f"expected a matrix [n_users, n_items] and a bool mask of its shape, got {value.shape} and {where.dtype} "
            f"{where.shape}. If a number marks entries that were not rated, use where=(matrix != number)."
        )
    user, item = np.nonzero(where)
    return _from_positions(user, item, value[where], value.shape, user_ids, item_ids)


def to_csr(ratings: Ratings) -> sparse.csr_array:
    """Returns the values as a SciPy CSR array [n_users, n_items], storing ratings of 0; without weights and times.

    Raises:
        ValueError: a (user, item) pair occurs twice (SciPy would add the two values).
    """
    from scipy import sparse

    positions = ratings.user, ratings.item
    matrix = sparse.coo_array((ratings.value, positions), shape=(ratings.n_users, ratings.n_items)).tocsr()
    _check_once(ratings, matrix.nnz)
    return matrix


class UserItemMatrix(NamedTuple):
    """Ratings as a dense matrix, users first.

    Attributes:
        value: float32 [n_users, n_items], 0 where not rated.
        where: bool [n_users, n_items], True where rated.
    """

    value: np.ndarray
    where: np.ndarray


def to_user_item_matrix(ratings: Ratings) -> UserItemMatrix:
    """Returns the ratings as a matrix, users by items, for small data. (`data.dense` is items by users, on the device.)

    Raises:
        ValueError: a (user, item) pair occurs twice.
    """
    value = np.zeros((ratings.n_users, ratings.n_items), np.float32)
    where = np.zeros(value.shape, bool)
    value[ratings.user, ratings.item], where[ratings.user, ratings.item] = ratings.value, True
    _check_once(ratings, int(where.sum()))
    return UserItemMatrix(value, where)


def _from_positions(user: Any, item: Any, value: Any, shape: Any, user_ids: Any, item_ids: Any) -> Ratings:
    """Returns the ratings with these values at these positions of a matrix [n_users, n_items]."""
    n_users, n_items = shape
    if len(user) == 0:
        raise ValueError(f"expected at least one rating, got none in a matrix of {n_users} users and {n_items} items.")
    for name, size in (("n_users", n_users), ("n_items", n_items)):
        check.size_of_table(name, size)
    ratings = Ratings.from_columns(user, item, value, user_ids=np.arange(n_users), item_ids=np.arange(n_items))
    return dataclasses.replace(ratings, user_ids=user_ids, item_ids=item_ids)


def _check_once(ratings: Ratings, cells: int) -> None:
    if cells != len(ratings):
        raise ValueError(
            f"expected each (user, item) pair once, got {len(ratings) - cells} ratings that repeat a pair. "
            "Ratings.from_columns(..., duplicates=...) merges them."
        )
