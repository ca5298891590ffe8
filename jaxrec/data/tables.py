"""Columns of tables, one value per row: which values are missing, and which are equal.

A table is a polars or pandas frame, or a dict of columns: lists, NumPy arrays, masked arrays, series. A value is
missing if it is None, null, NA, NaN, NaT or masked. An empty string is a value, and so is the text "nan".
"""

import datetime
import math
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["align", "as_list", "column", "keys", "missing", "names", "number", "text"]


def names(table: Any) -> list[str]:
    """Returns the names of a table's columns."""
    return list(table.keys()) if isinstance(table, Mapping) else list(table.columns)


def column(table: Any, name: str) -> list[Any]:
    """Returns the values of one column, as `as_list` does.

    Raises:
        ValueError: no column or several have that name.
    """
    columns = names(table)
    if (count := columns.count(name)) != 1:
        repeated = f"{count} of that name among " if count else ""
        raise ValueError(f"expected a column {name!r}, got a table with {repeated}{', '.join(map(repr, columns))}.")
    return as_list(name, table[name])


def as_list(name: str, values: Any) -> list[Any]:
    """Returns a column's values as Python objects, but NumPy scalars for float16, float32 and times.

    Raises:
        ValueError: `values` is not a column but one value, a string or a mapping.
    """
    narrow = str(getattr(values, "dtype", "")).lower() in ("float16", "float32", "bfloat16")  # polars has Float32
    if hasattr(values, "to_list") and not narrow:  # a series of polars or pandas
        return values.to_list()
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    elif hasattr(values, "__array__") and not isinstance(values, np.ndarray):  # a JAX array
        values = np.asarray(values)
    if (
        isinstance(values, str | bytes | Mapping)
        or not hasattr(values, "__iter__")
        or getattr(values, "shape", 1) == ()
    ):
        raise ValueError(f"{name}: expected a column, a list of one value per row, got {values!r}.")
    if isinstance(values, np.ndarray):
        if narrow and values.dtype.kind == "V":  # bfloat16, which is not one of NumPy's own types
            values = values.astype(np.float32)
        return list(values) if narrow or values.dtype.kind in "mM" else values.tolist()
    return list(values)


def align(table: Any, id_column: str, ids: Sequence[Any] | np.ndarray | None) -> dict[str, list[Any]]:
    """Returns a table's rows in the order of `ids`: row n is that of ids[n], to match ratings with those raw ids.

    Rows with other ids or without an id are dropped. 1 and 1.0 are one id, as in Python, so integer ids are found in a
    column that became floats because an id is missing; "1" is a different id.

    Args:
        table: a frame or a dict of columns.
        id_column: its column of raw ids.
        ids: `ratings.user_ids` or `ratings.item_ids`.

    Raises:
        ValueError: no ids; an id has no row, or several; one of `ids` is missing; ids are floats of 2**53 or more,
            which cannot represent every integer.

    >>> align({"user": ["b", "a"], "age": [30, 20]}, "user", ["a", "b"])
    {'user': ['a', 'b'], 'age': [20, 30]}
    """
    if ids is None:
        raise ValueError("ids: expected raw ids, got None: the ratings have positions from the start. Pass range(n).")
    position: dict[Any, int] = {}
    for n, raw in enumerate(keys(id_column, column(table, id_column))):
        if raw is None:
            continue
        if raw in position:
            raise ValueError(f"{id_column}: expected one row per id, got rows {position[raw]} and {n} for {raw!r}.")
        position[raw] = n
    required = keys("ids", as_list("ids", ids))
    if None in required:
        raise ValueError(f"ids: expected raw ids, got a missing one at position {required.index(None)}.")
    if absent := [raw for raw in required if raw not in position]:
        raise ValueError(
            f"{id_column}: {len(absent)} of {len(required)} ids have no row, such as {absent[0]!r}; the table has "
            f"{len(position)} ids, such as {next(iter(position), None)!r}. Check that the ids have one type, or add "
            "the rows, with None for unknown values."
        )
    order = [position[raw] for raw in required]
    return {name: [values[n] for n in order] for name in names(table) for values in (column(table, name),)}


def missing(value: Any) -> bool:
    """Returns whether a value is None, NA, NaN of any type, NaT or masked."""
    if value is None or value is np.ma.masked:
        return True
    pandas = sys.modules.get("pandas")
    if pandas is not None and (value is pandas.NA or value is pandas.NaT):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    # NaN and NaT are not equal to themselves. A list or an array of them is not missing.
    return isinstance(value, float | np.inexact | np.datetime64 | np.timedelta64) and bool(value != value)


def number(name: str, value: Any, row: int) -> float:
    """Returns a finite float64 number for an integer of any size, a float, a bool (1 or 0), a Decimal or a Fraction.

    Raises:
        ValueError: the value is something else, or infinite in float64.
    """
    kinds = int | float | np.bool_ | np.integer | np.floating | Decimal | Fraction
    if isinstance(value, kinds) and not isinstance(value, np.timedelta64):
        try:
            converted = float(value)
        except OverflowError:  # an integer of more than 308 digits
            converted = math.inf
        if math.isfinite(converted):
            return converted
    raise ValueError(
        f"{name}: expected finite numbers, got {value!r} in row {row}. Use None or NaN for unknown values, and "
        "Category() for values that are not numbers."
    )


def text(value: Any) -> str | None:
    """Returns a value's text, which is the same for equal values of different types; None for a missing value.

    >>> [text(value) for value in (1, 1.0, -0.0, 0.1, np.float32(0.1), np.datetime64("2020-12-31"), "01", True)]
    ['1', '1', '0', '0.1', '0.1', '2020-12-31', '01', 'True']
    """
    if missing(value):
        return None
    match value:
        case bytes():
            return value.decode()
        case bool() | np.bool_():
            return str(bool(value))
        case datetime.timedelta():
            # without pandas' subclass, which has another text
            return str(datetime.timedelta(value.days, value.seconds, value.microseconds))
        case np.timedelta64():  # before np.integer, of which it is a subclass
            return text(value.astype("timedelta64[us]").item())
        case int() | np.integer():
            return str(int(value))
        case float() | np.floating() | Decimal() | Fraction():
            return _number_text(value)
        case datetime.datetime():
            return _short_time((value if value.tzinfo is None else value.astimezone(datetime.UTC)).isoformat())
        case datetime.date():
            return value.isoformat()
        case np.datetime64():
            coarse = np.datetime_data(value.dtype)[0] in "YMW"  # years, months or weeks
            return _short_time(str(value.astype("datetime64[D]") if coarse else value))
    return str(value)


def keys(name: str, values: Sequence[Any]) -> list[Any]:
    """Returns raw ids as Python objects, among which 1 and 1.0 are equal; None for missing ids.

    Raises:
        ValueError: a float is so large that its type cannot represent every integer of its size.
    """
    for value in values:
        if isinstance(value, float | np.floating) and abs(value) >= 2 ** (np.finfo(type(value)).nmant + 1):
            raise ValueError(
                f"{name}: expected ids, got {value!r}, a float, which cannot represent every integer of this size. "
                "Read the column as integers (pandas: dtype='Int64'), or as text."
            )
    return [None if missing(v) else v.item() if isinstance(v, np.number) else v for v in values]


def _number_text(value: Any) -> str:
    if not math.isfinite(value):
        return str(float(value))
    if value == int(value):
        return str(int(value))
    if isinstance(value, np.floating):
        return str(value)  # the shortest digits that are unique in its type: np.float32(0.1) is 0.1
    short = repr(float(value))
    return short if isinstance(value, float) or Decimal(short) == value else str(value)


def _short_time(iso: str) -> str:
    """Returns an ISO time without trailing zeros; only the day at midnight."""
    day, _, time = iso.partition("T")
    clock, zone = time.removesuffix("+00:00"), "+00:00" if time.endswith("+00:00") else ""
    if "." in clock:
        clock = clock.rstrip("0").rstrip(".")
    if clock:
        clock += ":00" * (2 - clock.count(":"))  # NumPy may write hours, or hours and minutes, only
    return day if not zone and clock in ("", "00:00:00") else f"{day}T{clock}{zone}"
