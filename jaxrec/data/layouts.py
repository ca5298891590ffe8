"""Fixed shapes for the device: Dense, Observed, Linked, Rows. Vectorized; each crosses to the device once."""

import jax.numpy as jnp
import numpy as np

from jaxrec import check
from jaxrec.types import Bucket, Dense, Linked, Observed, Ratings, Rows

__all__ = ["dense", "linked", "observed", "rows"]


def dense(ratings: Ratings) -> Dense:
    """Y and R as the notes print them, [n_items, n_users]: small data only (n_items * n_users * 5 bytes).

    Raises:
        ValueError: a pair occurs twice: one cell cannot hold both.
    """
    shape = (ratings.n_items, ratings.n_users)
    cells = {"value": ratings.value, "where": np.ones(len(ratings), bool), "weights": ratings.weights}
    arrays = {}
    for name, column in cells.items():
        if column is not None:
            arrays[name] = np.zeros(shape, column.dtype)
            arrays[name][ratings.item, ratings.user] = column
    if arrays["where"].sum() != len(ratings):
        raise ValueError(
            f"{len(ratings) - int(arrays['where'].sum())} ratings repeat a (user, item) pair, and a cell holds one. "
            "Ratings.from_columns(..., duplicates=...) merges them."
        )
    return Dense(**{name: jnp.asarray(array) for name, array in arrays.items()})


def observed(ratings: Ratings, *, multiple: int = 1) -> Observed:
    """The ratings as columns, in their order, padded to a multiple of `multiple`."""
    columns = _padded({"user": ratings.user, "item": ratings.item, "value": ratings.value}, ratings.weights, multiple)
    return Observed(**columns)


def linked(ratings: Ratings, *, multiple: int = 1) -> Linked:
    """The ratings sorted by user and linked to the order by item; padded at the end to a multiple of `multiple`."""
    _, order = _group(ratings.user, ratings.n_users)
    by_user = ratings.take(order)
    columns = _padded({"user": by_user.user, "item": by_user.item, "value": by_user.value}, by_user.weights, multiple)
    # Padding carries the last ids, so that both orders stay sorted; `where` keeps it out of every sum.
    user = np.pad(by_user.user, (0, len(columns["user"]) - len(ratings)), constant_values=ratings.n_users - 1)
    item = np.pad(by_user.item, (0, len(columns["user"]) - len(ratings)), constant_values=ratings.n_items - 1)
    user_start, _ = _group(user, ratings.n_users)
    item_start, by_item = _group(item, ratings.n_items)
    links = {"user_start": user_start, "by_item": by_item, "item_start": item_start, "user": user, "item": item}
    return Linked(**columns | {name: jnp.asarray(array.astype(np.int32, copy=False)) for name, array in links.items()})


def rows(ratings: Ratings, side: str, *, growth: float = 1.5, shortest: int = 8, multiple: int = 1) -> Rows:
    """Each user's (or item's) ratings as a padded list, in buckets of similar length.

    Args:
        ratings: any.
        side: 'user' or 'item': what a row is.
        growth: a bucket's longest row over the next shorter bucket's. Nearer to 1 pads less and compiles more shapes.
        shortest: the first bucket's length; rows without ratings stand there.
        multiple: every bucket's number of rows is padded to a multiple of this (for sharding).

    Raises:
        ValueError: a side that is neither; growth <= 1.
    """
    check.choice("side", side, ("user", "item"))
    if growth <= 1:
        raise ValueError(f"growth: expected a number > 1, got {growth}.")
    if shortest < 1:
        raise ValueError(f"shortest: expected a length >= 1, got {shortest}.")
    _check_multiple(multiple)
    by_user = side == "user"
    own, other = (ratings.user, ratings.item) if by_user else (ratings.item, ratings.user)
    n_rows, n_others = (ratings.n_users, ratings.n_items) if by_user else (ratings.n_items, ratings.n_users)
    start, order = _group(own, n_rows)
    length = np.diff(start)

    limits = [shortest]
    while limits[-1] < length.max():
        limits.append(int(np.ceil(limits[-1] * growth)))
    which = np.searchsorted(limits, length)

    buckets, place, placed = [], np.zeros(n_rows, np.int32), 0
    for number in np.unique(which):
        members = np.flatnonzero(which == number)
        place[members] = placed + np.arange(len(members))
        row = np.pad(members, (0, -len(members) % multiple))
        placed += len(row)
        column = np.arange(max(1, length[members].max()))
        where = column < length[row][:, None]
        where[len(members) :] = False
        source = np.where(where, start[row][:, None] + column, 0)
        source = order[source] if len(order) else source

        def cut(values: np.ndarray, where: np.ndarray = where, source: np.ndarray = source) -> jnp.ndarray:
            zero = values.dtype.type(0)
            return jnp.asarray(np.where(where, values[source], zero) if len(values) else np.full(where.shape, zero))

        buckets.append(
            Bucket(
                row=jnp.asarray(row.astype(np.int32)),
                other=cut(other),
                value=cut(ratings.value),
                where=jnp.asarray(where),
                weights=None if ratings.weights is None else cut(ratings.weights),
            )
        )
    return Rows(tuple(buckets), jnp.asarray(place), side, n_others)


def _group(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(start [size + 1], order [n]): a stable counting sort; group g is order[start[g] : start[g + 1]].

    The transpose of a matrix with one entry a row, which SciPy does in O(n): 20M ids in a quarter of argsort's time.
    """
    from scipy import sparse  # 0.1 s to import, and only this needs it

    n = len(ids)
    one_each = sparse.csr_array((np.ones(n, np.int8), ids, np.arange(n + 1)), shape=(n, size))
    columns = one_each.tocsc()
    return columns.indptr, columns.indices


def _padded(columns: dict[str, np.ndarray], weights: np.ndarray | None, multiple: int) -> dict[str, jnp.ndarray]:
    """Columns, weights and `where` on the device, padded at the end with zeros (a valid id, False)."""
    _check_multiple(multiple)
    columns = columns | {"where": np.ones(len(columns["value"]), bool)}
    if weights is not None:
        columns["weights"] = weights
    return {name: jnp.asarray(np.pad(column, (0, -len(column) % multiple))) for name, column in columns.items()}


def _check_multiple(multiple: int) -> None:
    if multiple < 1:
        raise ValueError(f"multiple: expected a number >= 1, got {multiple}.")
