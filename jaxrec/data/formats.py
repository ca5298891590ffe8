"""Reading and writing ratings: csv and parquet files, pandas and polars frames, SciPy sparse and NumPy dense matrices.

Round trips are exact: raw ids, values bit for bit, times, weights, ratings of 0. (In a csv file, text ids that look
like numbers need `text_ids=` to be read as text.) Files and frames hold ratings only: users and items without ratings
are lost unless `user_ids=` and `item_ids=` name them when reading. A path is a file's path, never a pattern or a URL.

>>> import polars as pl
>>> ratings = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 0])
>>> frame = to_polars(ratings)
>>> frame.rows()
[('ann', 10, 5.0), ('bob', 10, 4.0), ('bob', 30, 0.0)]
>>> from_frame(frame).value
array([5., 4., 0.], dtype=float32)
>>> to_csr(ratings).nnz  # a rating of 0 is stored
3

For train and test in two files, `align_ids(read_csv("train.csv"), read_csv("test.csv"))` gives both the users and items
of either. To keep train's users and items, and drop ratings by or of any others:

>>> newer = pl.DataFrame({"user": ["bob", "zoe"], "item": [10, 10], "rating": [1.0, 2.0]})
>>> from_frame(newer, user_ids=ratings.user_ids, item_ids=ratings.item_ids, unknown="drop")
Ratings(1 ratings of 2 items by 2 users)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from jaxrec import check
from jaxrec.atomic import replacing
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
    """Reads ratings from a csv file with a header, in one pass by polars.

    Args:
        path: the file.
        user: the column of user ids.
        item: the column of item ids.
        value: the column of ratings, or None for feedback without ratings.
        time: the column of times, or None. Times are numbers in `time_unit` ('1577836800', '1577836800.25') or ISO 8601
            text ('2020-01-01', '2020-01-01 02:00:00', '2020-01-01T02:00:00.25+02:00'; UTC if there is no time zone).
        weights: the column of weights, or None.
        separator: one character.
        text_ids: True reads both id columns as text, 'user' or 'item' one of them. Otherwise a column is read as
            integers if every cell is a canonical integer ('7', '-3'), and as text if any is not ('007', 'b').
        user_ids: as in `Ratings.from_columns`: the known users, including those without ratings.
        item_ids: the same for items.
        duplicates: as in `Ratings.from_columns`.
        unknown: as in `Ratings.from_columns`: 'drop' removes the rows of unknown users and items.
        time_unit: the unit of numeric times: 's', 'ms', 'us' or 'ns'.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing or occurs twice; a cell is empty or is not a number; the ids of a column are
            all numbers but not all integers ('1.0'; text_ids=True reads them as text); a time has another form; and
            whatever `Ratings.from_columns` raises.
    """
    import polars as pl

    check.choice("text_ids", text_ids, (False, True, "user", "item"))
    required = [name for name in (user, item, value, time, weights) if name is not None]
    types = {name: pl.Float64 if name in (value, weights) else pl.String for name in required}
    with _path_in_errors(path):
        with open(path, "rb") as file:  # polars would interpret a path as a pattern or a URL
            header = pl.read_csv(file, separator=separator, n_rows=0, infer_schema=False).columns
        _check_columns(header, required, path)
        with open(path, "rb") as file:
            table = pl.read_csv(file, separator=separator, columns=required, schema_overrides=types)
    _check_filled(table, required, path, "line", 2)
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
    """Reads ratings from a parquet file; arguments and errors are those of `read_csv`."""
    import polars as pl

    required = [name for name in (user, item, value, time, weights) if name is not None]
    with _path_in_errors(path):
        with open(path, "rb") as file:
            _check_columns(list(pl.read_parquet_schema(file)), required, path)
        with open(path, "rb") as file:
            table = pl.read_parquet(file, columns=required)
    _check_filled(table, required, path, "row", 0)
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
    """Returns the ratings in a pandas or polars frame; arguments and errors are those of `read_csv`."""
    required = [name for name in (user, item, value, time, weights) if name is not None]
    _check_columns(list(frame.columns), required, "frame")
    _check_filled(frame, required, "frame", "row", 0)
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    options: dict[str, Any] = {"duplicates": duplicates, "unknown": unknown, "time_unit": time_unit}
    return _from_table(frame, "frame", names, user_ids=user_ids, item_ids=item_ids, **options)


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
    """Writes ratings to a csv file with a header, atomically; with raw ids, times and weights if the ratings have them.

    The other arguments name the columns. `read_csv(path, time="time", ...)` reads the file back: times are decimal
    seconds, and text ids that look like numbers ("7") need `text_ids=True`, 'user' or 'item'.
    """
    table = to_polars(ratings, user=user, item=item, value=value, time=time, weights=weights)
    if ratings.time is not None and ratings.time_unit != "s":
        table = table.with_columns(decimal_seconds(ratings.time, ratings.time_unit).alias(time))
    with replacing(path) as temporary:
        table.write_csv(temporary, separator=separator)


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
    """Writes ratings to a parquet file, as `write_csv` does."""
    table = to_polars(ratings, user=user, item=item, value=value, time=time, weights=weights)
    with replacing(path) as temporary:
        table.write_parquet(temporary)


def to_polars(
    ratings: Ratings,
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
) -> pl.DataFrame:
    """Returns a polars frame with one row per rating; with raw ids, times and weights if the ratings have them."""
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
    """Returns a pandas frame, as `to_polars` does; needs pandas."""
    import pandas as pd

    return pd.DataFrame(_columns(ratings, user, item, value, time, weights))


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


def _columns(ratings: Ratings, user: str, item: str, value: str, time: str, weights: str) -> dict[str, np.ndarray]:
    """Returns the columns of a frame by name, without those that the ratings do not have."""
    raw = lambda ids, known: ids if known is None else known[ids]
    times = ratings.time
    if times is not None and ratings.time_unit != "s":
        times = times.astype(f"M8[{ratings.time_unit}]")  # datetimes carry their unit
    columns = [(user, raw(ratings.user, ratings.user_ids)), (item, raw(ratings.item, ratings.item_ids))]
    columns += [(value, ratings.value), (time, times), (weights, ratings.weights)]
    columns = [(name, column) for name, column in columns if column is not None]
    if len(dict(columns)) < len(columns):
        raise ValueError(f"expected different names for all columns, got {[name for name, _ in columns]}.")
    return dict(columns)


def _from_table(
    table: Any, source: Any, names: dict[str, str | None], *, time_unit: TimeUnit, **options: Any
) -> Ratings:
    """Returns the ratings in the columns of a polars or pandas frame, none of which has an empty cell."""
    columns: dict[str, Any] = {role: None if name is None else table[name] for role, name in names.items()}
    for role in ("user", "item"):
        if str(columns[role].dtype) in ("Int128", "UInt128"):  # NumPy has no such types
            columns[role] = columns[role].to_list()
    if columns["time"] is not None:
        label = f"{source}: column {names['time']!r}"
        columns["time"], time_unit = as_times(label, columns["time"], time_unit)
    return Ratings.from_columns(**columns, time_unit=time_unit, **options)


def _integers_where_canonical(name: str, cells: pl.Series) -> pl.Series:
    """Returns a text column as integers if every cell is a canonical integer, else unchanged: '001' and '1' differ."""
    import polars as pl

    for integers in (pl.Int64, pl.UInt64):
        numbers = cells.cast(integers, strict=False)
        if numbers.null_count() == 0 and (numbers.cast(pl.String) == cells).all():
            return numbers
    number, integer = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$", r"^[+-]?\d+$"
    if cells.str.contains(number).all() and not (is_integer := cells.str.contains(integer)).all():
        raise ValueError(
            f"{name}: expected ids that are integers or strings, got numbers such as {cells.filter(~is_integer)[0]!r}. "
            "Use text_ids=True to read them as text."
        )
    return cells


def _from_positions(user: Any, item: Any, value: Any, shape: Any, user_ids: Any, item_ids: Any) -> Ratings:
    """Returns the ratings with these values at these positions of a matrix [n_users, n_items]."""
    n_users, n_items = shape
    if len(user) == 0:
        raise ValueError(f"expected at least one rating, got none in a matrix of {n_users} users and {n_items} items.")
    for name, size in (("n_users", n_users), ("n_items", n_items)):
        check.size_of_table(name, size)
    ratings = Ratings.from_columns(user, item, value, user_ids=np.arange(n_users), item_ids=np.arange(n_items))
    return dataclasses.replace(ratings, user_ids=user_ids, item_ids=item_ids)


def _check_columns(columns: list[str], required: list[str], source: Any) -> None:
    if missing := [name for name in required if name not in columns]:
        raise ValueError(f"{source}: expected the columns {required}, got {columns}; missing: {missing}.")
    # polars renames repeated columns to name_duplicated_0, ...
    if repeated := [name for name in required if columns.count(name) > 1 or f"{name}_duplicated_0" in columns]:
        raise ValueError(f"{source}: expected the columns {required} once each, got {columns}; repeated: {repeated}.")
    if len(set(required)) < len(required):
        raise ValueError(f"{source}: expected a different column for each role, got {required}.")


def _check_filled(table: Any, required: list[str], source: Any, unit: str, first: int) -> None:
    """Checks that no required column has an empty cell; rows are numbered from `first`, in units of 'line' or 'row'."""
    for name in required:
        cells = table[name]
        empty = np.asarray(cells.is_null() if hasattr(cells, "is_null") else cells.isna())
        if empty.any():
            row = int(empty.argmax()) + first
            raise ValueError(f"{source}: column {name!r} is empty in {unit} {row}; expected a value in every {unit}.")


@contextlib.contextmanager
def _path_in_errors(path: Any) -> Iterator[None]:
    """Turns errors of polars into ValueErrors that name the file."""
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_once(ratings: Ratings, cells: int) -> None:
    if cells != len(ratings):
        raise ValueError(
            f"expected each (user, item) pair once, got {len(ratings) - cells} ratings that repeat a pair. "
            "Ratings.from_columns(..., duplicates=...) merges them."
        )
