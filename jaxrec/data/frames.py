"""Ratings of frames and parquet files: pandas and polars frames, dicts of columns.

>>> import polars as pl
>>> frame = pl.DataFrame({"user": ["ann", "bob", "bob"], "item": [10, 10, 30], "rating": [5, 4, 0]})
>>> ratings = from_frame(frame)
>>> ratings.value
array([5., 4., 0.], dtype=float32)

To keep the users and items of other ratings, and drop ratings by or of any others:

>>> newer = pl.DataFrame({"user": ["bob", "zoe"], "item": [10, 10], "rating": [1.0, 2.0]})
>>> from_frame(newer, user_ids=ratings.user_ids, item_ids=ratings.item_ids, unknown="drop")
Ratings(1 ratings of 2 items by 2 users)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.data import tables
from jaxrec.ratings import Duplicates, Ratings, Unknown
from jaxrec.times import TimeUnit, as_times

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["FilePath", "as_paths", "check_columns", "from_frame", "name_of_all", "read_parquet"]

FilePath = str | PathLike[str]


def from_frame(
    frame: pd.DataFrame | pl.DataFrame | Mapping[str, Any],
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
    """Returns the ratings in a pandas or polars frame, or in a dict of columns: lists, arrays or series.

    Arguments and errors are those of `read_csv`, and `Ratings.from_columns` says which values a column may have.

    >>> from_frame({"user": ["ann", "bob"], "item": [10, 30], "rating": [4.5, 3]})
    Ratings(2 ratings of 2 items by 2 users)
    """
    if not isinstance(frame, Mapping) and not (hasattr(frame, "to_dict") and hasattr(frame, "columns")):
        raise ValueError(
            f"frame: expected a pandas or polars frame or a dict of columns, got {type(frame).__name__}. Other tables "
            "become one by polars.from_arrow(table), a LazyFrame by collect()."
        )
    required = [name for name in (user, item, value, time, weights) if name is not None]
    check_columns(tables.names(frame), required, "frame")
    _check_filled(frame, required, "frame")
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    options: dict[str, Any] = {"duplicates": duplicates, "unknown": unknown, "time_unit": time_unit}
    return _from_table(frame, "frame", names, user_ids=user_ids, item_ids=item_ids, **options)


def read_parquet(
    path: FilePath | Iterable[FilePath],
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
    """Reads ratings from parquet files, one or several; arguments and errors are those of `read_csv`.

    A column has one type in all files, but integers and floats may differ in their width.
    """
    import polars as pl

    required = [name for name in (user, item, value, time, weights) if name is not None]
    paths, parts = as_paths(path), []
    for one in paths:
        with _path_in_errors(one):
            with open(one, "rb") as file:  # polars would interpret a path as a pattern or a URL
                check_columns(list(pl.read_parquet_schema(file)), required, one)
            with open(one, "rb") as file:
                parts.append(pl.read_parquet(file, columns=required))
        _check_filled(parts[-1], required, one)
    names = {"user": user, "item": item, "value": value, "time": time, "weights": weights}
    options: dict[str, Any] = {"duplicates": duplicates, "unknown": unknown, "time_unit": time_unit}
    table = _one_table(parts, paths)
    return _from_table(table, name_of_all(paths), names, user_ids=user_ids, item_ids=item_ids, **options)


def as_paths(path: FilePath | Iterable[FilePath]) -> list[FilePath]:
    """Returns one file or several as a list."""
    paths = [path] if isinstance(path, str | PathLike) else list(path)
    if not paths:
        raise ValueError("path: expected a file or several, got an empty list.")
    return paths


def name_of_all(sources: Sequence[Any]) -> str:
    """Returns the name of one or several files, for an error of a whole column."""
    return str(sources[0]) if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more files"


def check_columns(columns: Sequence[str], required: Sequence[str], source: Any) -> None:
    """Checks that a table has every required column once, and that no column has two roles."""
    if missing := [name for name in required if name not in columns]:
        raise ValueError(f"{source}: expected the columns {required}, got {columns}; missing: {missing}.")
    if repeated := [name for name in required if list(columns).count(name) > 1]:
        raise ValueError(f"{source}: expected the columns {required} once each, got {columns}; repeated: {repeated}.")
    if len(set(required)) < len(required):
        raise ValueError(f"{source}: expected a different column for each role, got {required}.")


def _from_table(
    table: Any, source: Any, names: dict[str, str | None], *, time_unit: TimeUnit, **options: Any
) -> Ratings:
    """Returns the ratings in the columns of a polars or pandas frame, none of which has an empty cell."""
    columns: dict[str, Any] = {role: None if name is None else table[name] for role, name in names.items()}
    for role, column in columns.items():
        if str(getattr(column, "dtype", "")) in ("Int128", "UInt128"):  # NumPy has no such types
            columns[role] = column.to_list()
    if columns["time"] is not None:
        label = f"{source}: column {names['time']!r}"
        columns["time"], time_unit = as_times(label, columns["time"], time_unit)
    return Ratings.from_columns(**columns, time_unit=time_unit, **options)


def _one_table(parts: Sequence[pl.DataFrame], paths: Sequence[FilePath]) -> pl.DataFrame:
    """Returns the rows of several tables, whose columns have the same types, or integers or floats of other widths."""
    import polars as pl

    for name in parts[0].columns:
        types = [part.schema[name] for part in parts]
        families = [_family(one) for one in types]
        for path, one, family in zip(paths, types, families, strict=True):
            if family != families[0]:
                raise ValueError(
                    f"{path}: column {name!r}: expected one type in all files, got {one} here and {types[0]} in "
                    f"{paths[0]}. Cast one of them first: 1 is not '1'."
                )
    return pl.concat(parts, how="vertical_relaxed" if len(parts) > 1 else "vertical")


def _family(dtype: pl.DataType) -> str:
    """Returns what columns that can be joined without loss have in common: int64 and uint64 would meet in float64."""
    for family in ("is_signed_integer", "is_unsigned_integer", "is_float"):
        if getattr(dtype, family)():
            return family
    return str(dtype)


def _check_filled(table: Any, required: Sequence[str], source: Any) -> None:
    """Checks that no required column has an empty cell; rows are numbered from 0, as in the frame."""
    for name in required:
        empty = _is_empty(table[name])
        if empty.any():
            row = int(empty.argmax())
            raise ValueError(f"{source}: column {name!r} is empty in row {row}; expected a value in every row.")


def _is_empty(cells: Any) -> np.ndarray:
    """Returns which cells of a series, an array or a list are None, NA, NaN or NaT."""
    if hasattr(cells, "is_null"):
        return np.asarray(cells.is_null())
    if hasattr(cells, "isna"):
        return np.asarray(cells.isna())
    if isinstance(cells, np.ndarray) and cells.dtype.kind not in "OMfT":
        return np.zeros(0, bool)
    return np.fromiter(map(tables.missing, cells), bool)


@contextlib.contextmanager
def _path_in_errors(path: Any) -> Iterator[None]:
    """Turns errors of polars into ValueErrors that name the file."""
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {error}") from error
