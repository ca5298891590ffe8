"""Reading ratings: csv and parquet files, pandas and polars frames.

>>> import polars as pl
>>> frame = pl.DataFrame({"user": ["ann", "bob", "bob"], "item": [10, 10, 30], "rating": [5, 4, 0]})
>>> ratings = from_frame(frame)
>>> ratings.value
array([5., 4., 0.], dtype=float32)

For train and test in two files, `align_ids(read_csv("train.csv"), read_csv("test.csv"))` gives both the users and items
of either. To keep train's users and items, and drop ratings by or of any others:

>>> newer = pl.DataFrame({"user": ["bob", "zoe"], "item": [10, 10], "rating": [1.0, 2.0]})
>>> from_frame(newer, user_ids=ratings.user_ids, item_ids=ratings.item_ids, unknown="drop")
Ratings(1 ratings of 2 items by 2 users)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec import check
from jaxrec.ratings import Duplicates, Ratings, Unknown
from jaxrec.times import TimeUnit, as_times, from_text

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["from_frame", "read_csv", "read_parquet"]


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
