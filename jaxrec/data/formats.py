"""Own ratings in and out: csv and parquet files, pandas and polars frames, SciPy's sparse matrices, NumPy's dense ones.

What goes out comes back the same: raw ids, values bit for bit, times, weights, ratings of 0. Files and frames hold the
ratings only, so users and items without any are gone unless `user_ids=` and `item_ids=` name them on the way in.

>>> ratings = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 0])
>>> frame = to_polars(ratings)
>>> frame.rows()
[('ann', 10, 5.0), ('bob', 10, 4.0), ('bob', 30, 0.0)]
>>> from_frame(frame).value
array([5., 4., 0.], dtype=float32)
>>> to_csr(ratings).nnz  # a rating of 0 is stored
3
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.ratings import Duplicates, Ratings

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from scipy import sparse

__all__ = [
    "from_csr",
    "from_dense",
    "from_frame",
    "read_csv",
    "read_parquet",
    "to_csr",
    "to_dense",
    "to_pandas",
    "to_polars",
    "write_csv",
    "write_parquet",
]


def read_csv(
    path: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    value: str | None = "rating",
    time: str | None = None,
    weights: str | None = None,
    separator: str = ",",
    text_ids: bool = False,
    user_ids: Any = None,
    item_ids: Any = None,
    duplicates: Duplicates = "error",
) -> Ratings:
    """Ratings from a csv file with a header, read in one pass by polars.

    Args:
        path: the file.
        user: the column of user ids.
        item: the column of item ids.
        value: the column of ratings, or None for feedback without ratings.
        time: the column of times (integer seconds, or dates that polars recognizes), or None.
        weights: the column of weights, or None.
        separator: one character.
        text_ids: True keeps ids as they are written, '001' as '001'; else a column of whole numbers is read as such.
        user_ids: as in `Ratings.from_columns`: the known users, those without ratings too.
        item_ids: the same for items.
        duplicates: as in `Ratings.from_columns`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that is not there, a cell empty or no number; all that `from_columns` raises.
    """
    import polars as pl

    wanted = [name for name in (user, item, value, time, weights) if name is not None]
    types: dict[str, Any] = {name: pl.Float64 for name in (value, weights) if name is not None}
    if text_ids:
        types |= {user: pl.String, item: pl.String}

    def read(infer_from: int | None) -> pl.DataFrame:
        return pl.read_csv(
            Path(path),
            separator=separator,
            columns=wanted,
            try_parse_dates=True,
            schema_overrides=types,
            infer_schema_length=infer_from,
        )

    try:
        header = pl.read_csv(Path(path), separator=separator, n_rows=0, infer_schema=False).columns
        _check_columns(header, wanted, path)
        try:
            table = read(10_000)
        except pl.exceptions.ComputeError:  # ids that begin as numbers and go on as strings: look at all of them
            table = read(None)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {error}") from error
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    known = {"user_ids": user_ids, "item_ids": item_ids}
    return _from_table(table, str(path), "line", 2, duplicates=duplicates, **names, **known)


def read_parquet(
    path: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    value: str | None = "rating",
    time: str | None = None,
    weights: str | None = None,
    user_ids: Any = None,
    item_ids: Any = None,
    duplicates: Duplicates = "error",
) -> Ratings:
    """Ratings from a parquet file; arguments and errors as `read_csv`."""
    import polars as pl

    wanted = [name for name in (user, item, value, time, weights) if name is not None]
    try:
        _check_columns(list(pl.read_parquet_schema(Path(path))), wanted, path)
        table = pl.read_parquet(Path(path), columns=wanted)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {error}") from error
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    known = {"user_ids": user_ids, "item_ids": item_ids}
    return _from_table(table, str(path), "row", 0, duplicates=duplicates, **names, **known)


def from_frame(
    frame: pd.DataFrame | pl.DataFrame,
    *,
    user: str = "user",
    item: str = "item",
    value: str | None = "rating",
    time: str | None = None,
    weights: str | None = None,
    user_ids: Any = None,
    item_ids: Any = None,
    duplicates: Duplicates = "error",
) -> Ratings:
    """Ratings from a pandas or polars frame; arguments and errors as `read_csv`."""
    wanted = [name for name in (user, item, value, time, weights) if name is not None]
    _check_columns(list(frame.columns), wanted, "frame")
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    known = {"user_ids": user_ids, "item_ids": item_ids}
    return _from_table(frame, "frame", "row", 0, duplicates=duplicates, **names, **known)


def from_csr(matrix: Any, *, user_ids: Any = None, item_ids: Any = None) -> Ratings:
    """Ratings from a SciPy sparse matrix or array [n_users, n_items], of any format: what is stored was rated, 0 too.

    Args:
        matrix: users in rows.
        user_ids: [n_users] raw ids, or None.
        item_ids: [n_items] raw ids, or None.

    Raises:
        ValueError: nothing is stored; an entry stored twice; a NaN; ids of another number than rows or columns.
    """
    entries = matrix.tocoo()
    return _from_places(entries.row, entries.col, entries.data, matrix.shape, user_ids, item_ids)


def from_dense(value: Any, where: Any, *, user_ids: Any = None, item_ids: Any = None) -> Ratings:
    """Ratings from a NumPy table [n_users, n_items] and a bool mask of it, True where the user rated the item.

    Raises:
        ValueError: a mask of another shape or type; nothing rated; all that `Ratings` raises.
    """
    value, where = np.asarray(value), np.asarray(where)
    if value.ndim != 2 or where.shape != value.shape or where.dtype != bool:
        raise ValueError(
            f"expected a table [n_users, n_items] and a bool mask of its shape, got {value.shape} and {where.dtype} "
            f"{where.shape}. Where a number stands for what was not rated: where=(table != number)."
        )
    user, item = np.nonzero(where)
    return _from_places(user, item, value[where], value.shape, user_ids, item_ids)


def write_csv(
    ratings: Ratings,
    path: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
    separator: str = ",",
) -> None:
    """Writes a csv file with a header, whole or not at all: raw ids where there are any, times and weights if any.

    The names are those of the columns. `read_csv(path, time="time", ...)` reads it back.
    """
    table = to_polars(ratings, user=user, item=item, value=value, time=time, weights=weights)
    _write(path, lambda temporary: table.write_csv(temporary, separator=separator))


def write_parquet(
    ratings: Ratings,
    path: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
) -> None:
    """Writes a parquet file, as `write_csv` does."""
    table = to_polars(ratings, user=user, item=item, value=value, time=time, weights=weights)
    _write(path, table.write_parquet)


def to_polars(
    ratings: Ratings,
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
) -> pl.DataFrame:
    """A polars frame of one row per rating: raw ids where there are any, times and weights where there are any."""
    import polars as pl

    return pl.DataFrame(_columns(ratings, user, item, value, time, weights))


def to_pandas(
    ratings: Ratings,
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
) -> pd.DataFrame:
    """A pandas frame, as `to_polars`; needs pandas."""
    import pandas as pd

    return pd.DataFrame(_columns(ratings, user, item, value, time, weights))


def to_csr(ratings: Ratings) -> sparse.csr_array:
    """A SciPy CSR array [n_users, n_items] of the values; a rating of 0 is stored. Weights and times are not in it.

    Raises:
        ValueError: a pair occurs twice (SciPy would add the two up).
    """
    from scipy import sparse

    places = ratings.user, ratings.item
    matrix = sparse.coo_array((ratings.value, places), shape=(ratings.n_users, ratings.n_items)).tocsr()
    _check_once(ratings, matrix.nnz)
    return matrix


def to_dense(ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """(value, where), float32 and bool [n_users, n_items]: for small data. The device's form is `data.dense`.

    Raises:
        ValueError: a pair occurs twice.
    """
    value = np.zeros((ratings.n_users, ratings.n_items), np.float32)
    where = np.zeros(value.shape, bool)
    value[ratings.user, ratings.item], where[ratings.user, ratings.item] = ratings.value, True
    _check_once(ratings, int(where.sum()))
    return value, where


def _columns(ratings: Ratings, user: str, item: str, value: str, time: str, weights: str) -> dict[str, np.ndarray]:
    raw = lambda ids, known: ids if known is None else known[ids]
    columns = {user: raw(ratings.user, ratings.user_ids), item: raw(ratings.item, ratings.item_ids)}
    columns[value] = ratings.value
    if ratings.time is not None:
        columns[time] = ratings.time
    if ratings.weights is not None:
        columns[weights] = ratings.weights
    return columns


def _from_table(
    table: Any,
    source: str,
    unit: str,
    first: int,
    *,
    duplicates: Duplicates,
    user_ids: Any,
    item_ids: Any,
    **names: Any,
) -> Ratings:
    """Columns of a polars or pandas frame, having checked that no cell is empty."""
    columns: dict[str, Any] = {}
    for role, name in names.items():
        if name is None:
            columns[role] = None
            continue
        cells = table[name]
        empty = np.asarray(cells.is_null() if hasattr(cells, "is_null") else cells.isna())
        if empty.any():
            row = int(empty.argmax()) + first
            raise ValueError(f"{source}: column {name!r} is empty in {unit} {row}; expected a value in every {unit}.")
        if str(getattr(cells, "dtype", "")) == "Int128":  # ids beyond int64
            cells = cells.cast(str)
        columns[role] = cells.to_numpy()
    user, item = columns.pop("user"), columns.pop("item")
    return Ratings.from_columns(user, item, **columns, user_ids=user_ids, item_ids=item_ids, duplicates=duplicates)


def _from_places(user: Any, item: Any, value: Any, shape: Any, user_ids: Any, item_ids: Any) -> Ratings:
    n_users, n_items = shape
    if len(user) == 0:
        raise ValueError(f"a table of {n_users} users and {n_items} items holds no rating. Expected at least one.")
    ratings = Ratings.from_columns(user, item, value, user_ids=np.arange(n_users), item_ids=np.arange(n_items))
    return dataclasses.replace(ratings, user_ids=user_ids, item_ids=item_ids)


def _check_columns(there: list[str], wanted: list[str], source: Any) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{source}: expected the columns {wanted}, got {there}; not there: {missing}.")


def _check_once(ratings: Ratings, cells: int) -> None:
    if cells != len(ratings):
        raise ValueError(
            f"{len(ratings) - cells} ratings repeat a (user, item) pair, and a cell holds one. "
            "Ratings.from_columns(..., duplicates=...) merges them."
        )


def _write(path: str | PathLike[str], write: Callable[[Path], Any]) -> None:
    """Under a temporary name in the same folder, then renamed: never half a file, and the old one until then."""
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / path.name  # a file of its own making has the mode that the umask gives
        write(temporary)
        os.replace(temporary, path)
