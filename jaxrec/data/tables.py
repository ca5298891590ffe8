"""The columns of tables, one value per row: what is missing, and which values are one.

A table is a polars or pandas frame, or a dict of columns: lists, NumPy's arrays, masked ones, series. A value is
missing where it is None, null, NA, NaN, NaT or masked. An empty string is a value, and so is the text "nan".
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
    """The names of a table's columns."""
    return list(table.keys()) if isinstance(table, Mapping) else list(table.columns)


def column(table: Any, name: str) -> list[Any]:
    """One column's values, as `as_list` gives them.

    Raises:
        ValueError: there is none of that name, or there are several.
    """
    every = names(table)
    if (times := every.count(name)) != 1:
        found = f"{times} of that name among " if times else ""
        raise ValueError(f"expected a column {name!r}, the table has {found}{', '.join(map(repr, every))}.")
    return as_list(name, table[name])


def as_list(name: str, values: Any) -> list[Any]:
    """A column's values as Python has them, but for NumPy's narrow floats and times, which it does not have.

    Raises:
        ValueError: no column: one value, or a text, whose letters are no values.
    """
    narrow = str(getattr(values, "dtype", "")).lower() in ("float16", "float32", "bfloat16")  # polars has Float32
    if hasattr(values, "to_list") and not narrow:  # a series of polars or pandas
        return values.to_list()
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    elif hasattr(values, "__array__") and not isinstance(values, np.ndarray):  # JAX's
        values = np.asarray(values)
    if (
        isinstance(values, str | bytes | Mapping)
        or not hasattr(values, "__iter__")
        or getattr(values, "shape", 1) == ()
    ):
        raise ValueError(f"{name}: expected a column, a list of one value per row, got {values!r}.")
    if isinstance(values, np.ndarray):
        if narrow and values.dtype.kind == "V":  # bfloat16, whose numbers no other type knows
            values = values.astype(np.float32)
        return list(values) if narrow or values.dtype.kind in "mM" else values.tolist()
    return list(values)


def align(table: Any, id_column: str, ids: Sequence[Any]) -> dict[str, list[Any]]:
    """A table's rows in the order of `ids`: row n is of ids[n], as ratings with those raw ids need it.

    Rows of other ids are left out, and so are rows without an id. 1 and 1.0 are one id, as in Python, so that integers
    which a missing id turned into floats are found; "1" is another.

    Args:
        table: a frame or a dict of columns.
        id_column: its column of raw ids.
        ids: `ratings.user_ids` or `ratings.item_ids`.

    Raises:
        ValueError: an id has no row, or several; an id is missing; keys are floats of 2**53 or more, which do not tell
            integers apart.

    >>> align({"user": ["b", "a"], "age": [30, 20]}, "user", ["a", "b"])
    {'user': ['a', 'b'], 'age': [20, 30]}
    """
    position: dict[Any, int] = {}
    for n, raw in enumerate(keys(id_column, column(table, id_column))):
        if raw is None:
            continue
        if raw in position:
            raise ValueError(f"{id_column}: {raw!r} has rows {position[raw]} and {n}: expected one row of every id.")
        position[raw] = n
    wanted = keys("ids", as_list("ids", ids))
    if None in wanted:
        raise ValueError(f"ids: expected raw ids, got a missing one at position {wanted.index(None)}.")
    if absent := [raw for raw in wanted if raw not in position]:
        raise ValueError(
            f"{id_column}: {len(absent)} of {len(wanted)} ids have no row, such as {absent[0]!r}; the table has "
            f"{len(position)}, such as {next(iter(position), None)!r}. Ids of one type? Add the rows, with None for "
            "what is not known."
        )
    order = [position[raw] for raw in wanted]
    return {name: [values[n] for n in order] for name in names(table) for values in (column(table, name),)}


def missing(value: Any) -> bool:
    """Whether a value is None, NA, NaN of any type, NaT or masked."""
    if value is None or value is np.ma.masked:
        return True
    pandas = sys.modules.get("pandas")
    if pandas is not None and (value is pandas.NA or value is pandas.NaT):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    # not equal to itself; a list or an array of such is not missing
    return isinstance(value, float | np.inexact | np.datetime64 | np.timedelta64) and bool(value != value)


def number(name: str, value: Any, row: int) -> float:
    """A finite number in float64, of an integer of any size, a float, a bool (1 or 0), a Decimal or a Fraction.

    Raises:
        ValueError: something else, or infinite in float64.
    """
    kinds = int | float | np.bool_ | np.integer | np.floating | Decimal | Fraction
    if isinstance(value, kinds) and not isinstance(value, np.timedelta64):
        try:
            out = float(value)
        except OverflowError:  # an integer of more than 308 digits
            out = math.inf
        if math.isfinite(out):
            return out
    raise ValueError(
        f"{name}: expected finite numbers, got {value!r} in row {row}. What is not known is None or NaN; what is no "
        "number is a Category()."
    )


def text(value: Any) -> str | None:
    """The one text of all values that are equal, whatever their types; None where it is missing.

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
            return str(datetime.timedelta(value.days, value.seconds, value.microseconds))  # pandas writes its own
        case np.timedelta64():  # an np.integer, too
            return text(value.astype("timedelta64[us]").item())
        case int() | np.integer():
            return str(int(value))
        case float() | np.floating() | Decimal() | Fraction():
            return _text_of_number(value)
        case datetime.datetime():
            return _short_time((value if value.tzinfo is None else value.astimezone(datetime.UTC)).isoformat())
        case datetime.date():
            return value.isoformat()
        case np.datetime64():
            months = np.datetime_data(value.dtype)[0] in "YMW"
            return _short_time(str(value.astype("datetime64[D]") if months else value))
    return str(value)


def keys(name: str, values: Sequence[Any]) -> list[Any]:
    """Raw ids as Python has them, None where missing: 1 and 1.0 are one there.

    Raises:
        ValueError: floats so large that they do not tell integers apart.
    """
    for value in values:
        if isinstance(value, float | np.floating) and abs(value) >= 2 ** (np.finfo(type(value)).nmant + 1):
            raise ValueError(
                f"{name}: {value!r} is a float, which does not tell integers of this size apart. Read the column as "
                "integers (pandas: dtype='Int64'), or as text."
            )
    return [None if missing(v) else v.item() if isinstance(v, np.number) else v for v in values]


def _text_of_number(value: Any) -> str:
    if not math.isfinite(value):
        return str(float(value))
    if value == int(value):
        return str(int(value))
    if isinstance(value, np.floating):
        return str(value)  # as few digits as tell it from its neighbors: np.float32(0.1) is 0.1
    short = repr(float(value))
    return short if isinstance(value, float) or Decimal(short) == value else str(value)


def _short_time(iso: str) -> str:
    """An ISO time without the zeros at its end; at midnight the day alone."""
    day, _, time = iso.partition("T")
    clock, zone = time.removesuffix("+00:00"), "+00:00" if time.endswith("+00:00") else ""
    if "." in clock:
        clock = clock.rstrip("0").rstrip(".")
    if clock:
        clock += ":00" * (2 - clock.count(":"))  # NumPy's hours and minutes
    return day if not zone and clock in ("", "00:00:00") else f"{day}T{clock}{zone}"
