"""Own ratings in and out: csv and parquet files, pandas and polars frames, SciPy's sparse matrices, NumPy's dense ones.

What goes out comes back the same: raw ids, values bit for bit, times, weights, ratings of 0. (In a csv file text that
reads as a number needs `text_ids=` to come back as text.) Files and frames hold the ratings only, so users and items
without any are gone unless `user_ids=` and `item_ids=` name them on the way in. A path is a path: no pattern, no URL.

>>> import polars as pl
>>> ratings = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 0])
>>> frame = to_polars(ratings)
>>> frame.rows()
[('ann', 10, 5.0), ('bob', 10, 4.0), ('bob', 30, 0.0)]
>>> from_frame(frame).value
array([5., 4., 0.], dtype=float32)
>>> to_csr(ratings).nnz  # a rating of 0 is stored
3

Train and test from two files stand over joint ids by `align_ids(read_csv("train.csv"), read_csv("test.csv"))`, or over
train's, without whom train does not know, by

>>> newer = pl.DataFrame({"user": ["bob", "zoe"], "item": [10, 10], "rating": [1.0, 2.0]})
>>> from_frame(newer, user_ids=ratings.user_ids, item_ids=ratings.item_ids, unknown="drop")
Ratings(1 ratings of 2 items by 2 users)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jaxrec import check
from jaxrec.ratings import Duplicates, Ratings, Unknown
from jaxrec.times import TimeUnit, as_times, decimal_seconds, from_text

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from scipy import sparse

__all__ = [
    "UserItemMatrix",
    "from_csr",
    "from_frame",
    "from_user_item_matrix",
    "read_csv",
    "read_parquet",
    "to_csr",
    "to_pandas",
    "to_polars",
    "to_user_item_matrix",
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
    text_ids: bool | Literal["user", "item"] = False,
    user_ids: Any = None,
    item_ids: Any = None,
    duplicates: Duplicates = "error",
    unknown: Unknown = "error",
    time_unit: TimeUnit = "s",
) -> Ratings:
    """Ratings from a csv file with a header, read in one pass by polars.

    Args:
        path: the file.
        user: the column of user ids.
        item: the column of item ids.
        value: the column of ratings, or None for feedback without ratings.
        time: the column of times, or None: numbers in `time_unit` ('1577836800', '1577836800.25'), or dates as in
            ISO 8601 ('2020-01-01', '2020-01-01 02:00:00', '2020-01-01T02:00:00.25+02:00'; UTC where no zone is named).
        weights: the column of weights, or None.
        separator: one character.
        text_ids: True keeps ids as they are written, 'user' or 'item' those of one column. Otherwise a column is one of
            integers where every cell is written as an integer is ('7', '-3'), and text where some are not ('007', 'b').
        user_ids: as in `Ratings.from_columns`: the known users, those without ratings too.
        item_ids: the same for items.
        duplicates: as in `Ratings.from_columns`.
        unknown: as in `Ratings.from_columns`: 'drop' leaves out the rows of users and items that are not known.
        time_unit: of times that are numbers: 's', 'ms', 'us' or 'ns'.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that is not there, or twice; a cell empty or no number; ids that are all numbers but not
            all integers ('1.0'; text_ids=True keeps them); times of another form; all that `from_columns` raises.
    """
    import polars as pl

    check.choice("text_ids", text_ids, (False, True, "user", "item"))
    wanted = [name for name in (user, item, value, time, weights) if name is not None]
    types = {name: pl.Float64 if name in (value, weights) else pl.String for name in wanted}
    with _path_in_errors(path):
        with open(path, "rb") as file:  # polars would take a name for a pattern, or a URL
            header = pl.read_csv(file, separator=separator, n_rows=0, infer_schema=False).columns
        _check_columns(header, wanted, path)
        with open(path, "rb") as file:
            table = pl.read_csv(file, separator=separator, columns=wanted, schema_overrides=types)
    _check_filled(table, wanted, path, "line", 2)
    for side, name in (("user", user), ("item", item)):
        if text_ids not in (True, side):
            table = table.with_columns(_integers_where_canonical(f"{path}: column {name!r}", table[name]))
    if time is not None:
        ticks, time_unit = from_text(f"{path}: column {time!r}", table[time], time_unit)
        table = table.with_columns(pl.Series(time, ticks))
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    options: dict[str, Any] = {"duplicates": duplicates, "unknown": unknown, "time_unit": time_unit}
    return _from_table(table, path, names, user_ids=user_ids, item_ids=item_ids, **options)


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
    unknown: Unknown = "error",
    time_unit: TimeUnit = "s",
) -> Ratings:
    """Ratings from a parquet file; arguments and errors as `read_csv`."""
    import polars as pl

    wanted = [name for name in (user, item, value, time, weights) if name is not None]
    with _path_in_errors(path):
        with open(path, "rb") as file:
            _check_columns(list(pl.read_parquet_schema(file)), wanted, path)
        with open(path, "rb") as file:
            table = pl.read_parquet(file, columns=wanted)
    _check_filled(table, wanted, path, "row", 0)
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    options: dict[str, Any] = {"duplicates": duplicates, "unknown": unknown, "time_unit": time_unit}
    return _from_table(table, path, names, user_ids=user_ids, item_ids=item_ids, **options)


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
    unknown: Unknown = "error",
    time_unit: TimeUnit = "s",
) -> Ratings:
    """Ratings from a pandas or polars frame; arguments and errors as `read_csv`."""
    wanted = [name for name in (user, item, value, time, weights) if name is not None]
    _check_columns(list(frame.columns), wanted, "frame")
    _check_filled(frame, wanted, "frame", "row", 0)
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    options: dict[str, Any] = {"duplicates": duplicates, "unknown": unknown, "time_unit": time_unit}
    return _from_table(frame, "frame", names, user_ids=user_ids, item_ids=item_ids, **options)


def from_csr(matrix: Any, *, user_ids: Any = None, item_ids: Any = None) -> Ratings:
    """Ratings from a SciPy sparse matrix or array [n_users, n_items], of any format: what is stored was rated, 0 too.

    Args:
        matrix: users in rows.
        user_ids: [n_users] raw ids, or None.
        item_ids: [n_items] raw ids, or None.

    Raises:
        ValueError: nothing is stored; an entry stored twice; a NaN; ids of another number than rows or columns; no
            sparse matrix, or one whose indices are not in order.
    """
    from scipy import sparse

    if not sparse.issparse(matrix) or len(matrix.shape) != 2:
        raise ValueError(f"expected a SciPy sparse matrix [n_users, n_items], got {type(matrix).__name__}.")
    if hasattr(matrix, "check_format"):
        matrix.check_format()  # the conversion is native code, which trusts indptr
    entries = matrix.tocoo()
    return _from_places(entries.row, entries.col, entries.data, matrix.shape, user_ids, item_ids)


def from_user_item_matrix(value: Any, where: Any, *, user_ids: Any = None, item_ids: Any = None) -> Ratings:
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

    The names are those of the columns. `read_csv(path, time="time", ...)` reads it back: times are decimal seconds, and
    raw ids that are text but read as numbers ("7") come back as text by `text_ids=True`, 'user' or 'item'.
    """
    table = to_polars(ratings, user=user, item=item, value=value, time=time, weights=weights)
    if ratings.time is not None and ratings.time_unit != "s":
        table = table.with_columns(decimal_seconds(ratings.time, ratings.time_unit).alias(time))
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


class UserItemMatrix(NamedTuple):
    """Ratings as a table of all pairs, users first.

    Attributes:
        value: float32 [n_users, n_items], 0 where nothing was rated.
        where: bool [n_users, n_items], True where something was.
    """

    value: np.ndarray
    where: np.ndarray


def to_user_item_matrix(ratings: Ratings) -> UserItemMatrix:
    """The ratings as a matrix of users by items, for small data. (`data.dense` is of items by users, for the device.)

    Raises:
        ValueError: a pair occurs twice.
    """
    value = np.zeros((ratings.n_users, ratings.n_items), np.float32)
    where = np.zeros(value.shape, bool)
    value[ratings.user, ratings.item], where[ratings.user, ratings.item] = ratings.value, True
    _check_once(ratings, int(where.sum()))
    return UserItemMatrix(value, where)


def _columns(ratings: Ratings, user: str, item: str, value: str, time: str, weights: str) -> dict[str, np.ndarray]:
    raw = lambda ids, known: ids if known is None else known[ids]
    times = ratings.time
    if times is not None and ratings.time_unit != "s":
        times = times.astype(f"M8[{ratings.time_unit}]")  # a column that says its unit
    columns = [(user, raw(ratings.user, ratings.user_ids)), (item, raw(ratings.item, ratings.item_ids))]
    columns += [(value, ratings.value), (time, times), (weights, ratings.weights)]
    columns = [(name, column) for name, column in columns if column is not None]
    if len(dict(columns)) < len(columns):
        raise ValueError(f"expected a name of its own for each column, got {[name for name, _ in columns]}.")
    return dict(columns)


def _from_table(
    table: Any, source: Any, names: dict[str, str | None], *, time_unit: TimeUnit, **options: Any
) -> Ratings:
    """Columns of a polars or pandas frame, none of which has an empty cell."""
    columns: dict[str, Any] = {role: None if name is None else table[name] for role, name in names.items()}
    for role in ("user", "item"):
        if str(columns[role].dtype) in ("Int128", "UInt128"):  # which NumPy has not
            columns[role] = columns[role].to_list()
    if columns["time"] is not None:
        label = f"{source}: column {names['time']!r}"
        columns["time"], time_unit = as_times(label, columns["time"], time_unit)
    return Ratings.from_columns(**columns, time_unit=time_unit, **options)


def _integers_where_canonical(name: str, cells: pl.Series) -> pl.Series:
    """A column of text as integers where each is written as an integer is, or else as it is: '001' and '1' are two."""
    import polars as pl

    for integers in (pl.Int64, pl.UInt64):
        numbers = cells.cast(integers, strict=False)
        if numbers.null_count() == 0 and (numbers.cast(pl.String) == cells).all():
            return numbers
    number, integer = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$", r"^[+-]?\d+$"
    if cells.str.contains(number).all() and not (whole := cells.str.contains(integer)).all():
        raise ValueError(
            f"{name}: expected ids that are integers or strings, got numbers such as {cells.filter(~whole)[0]!r}. "
            "text_ids=True keeps them as they are written."
        )
    return cells


def _from_places(user: Any, item: Any, value: Any, shape: Any, user_ids: Any, item_ids: Any) -> Ratings:
    n_users, n_items = shape
    if len(user) == 0:
        raise ValueError(f"a table of {n_users} users and {n_items} items holds no rating. Expected at least one.")
    for name, size in (("n_users", n_users), ("n_items", n_items)):
        check.size_of_table(name, size)
    ratings = Ratings.from_columns(user, item, value, user_ids=np.arange(n_users), item_ids=np.arange(n_items))
    return dataclasses.replace(ratings, user_ids=user_ids, item_ids=item_ids)


def _check_columns(there: list[str], wanted: list[str], source: Any) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{source}: expected the columns {wanted}, got {there}; not there: {missing}.")
    if twice := [name for name in wanted if there.count(name) > 1 or f"{name}_duplicated_0" in there]:  # polars' names
        raise ValueError(f"{source}: expected the columns {wanted} once each, got {there}; there twice: {twice}.")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"{source}: expected a column of its own for each role, got {wanted}.")


def _check_filled(table: Any, wanted: list[str], source: Any, unit: str, first: int) -> None:
    for name in wanted:
        cells = table[name]
        empty = np.asarray(cells.is_null() if hasattr(cells, "is_null") else cells.isna())
        if empty.any():
            row = int(empty.argmax()) + first
            raise ValueError(f"{source}: column {name!r} is empty in {unit} {row}; expected a value in every {unit}.")


@contextlib.contextmanager
def _path_in_errors(path: Any) -> Iterator[None]:
    """What polars cannot read is a ValueError that names the file."""
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {error}") from error


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
