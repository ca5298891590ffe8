"""Times: whatever a user's column holds -> int64 in the coarsest of four units in which none of them is changed.

Order is that of the times as given. Datetimes with a time zone become UTC, those without are taken as UTC. Numbers are
in the unit that the user says; what is no whole number of it goes to a finer one, and what no unit holds is refused.

>>> as_times("time", [1.2, 1.7, 2.0])
(array([1200, 1700, 2000]), 'ms')
>>> as_times("time", ["2020-01-01T02:00:00+02:00", "2020-01-01T00:00:01Z"])
(array([1577836800, 1577836801]), 's')
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec import check

if TYPE_CHECKING:
    import polars as pl

__all__ = ["UNITS", "TimeUnit", "as_ticks", "as_times", "decimal_seconds", "from_text"]

TimeUnit = Literal["s", "ms", "us", "ns"]
UNITS: tuple[TimeUnit, ...] = ("s", "ms", "us", "ns")
INT64 = np.iinfo(np.int64)

ISO = (  # date, hour, minute, second, digits of the fraction, time zone
    r"^(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9})0*)?)?(?: ?(Z|z|UTC|[+-]\d\d(?::?\d\d)?))?)?$"
)
DECIMAL = r"^([+-]?)(\d+)(?:\.(\d{0,9})0*)?$"


def as_times(name: str, values: Any, unit: TimeUnit = "s") -> tuple[np.ndarray, TimeUnit]:
    """(int64 [n], their unit) of one column of times.

    Args:
        name: what the messages call the column.
        values: [n] integers or floats, in `unit`; or datetimes, in whatever unit they are: datetime64, Python's
            datetime or date, pandas' or polars' columns of these, text as in ISO 8601 ('2020-01-01T00:00:00+02:00').
        unit: of numbers: 's', 'ms', 'us' or 'ns'.

    Raises:
        ValueError: a missing time; text of another form; a fraction that no unit holds, or float32 numbers so large
            that neighbors became one number; times that do not fit in int64; datetimes some with a time zone and
            some without.
    """
    check.choice("time_unit", unit, UNITS)
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: expected a time for every rating, got a masked array with rows masked.")
    if getattr(getattr(values, "dtype", None), "tz", None) is not None and hasattr(values, "dt"):
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)  # pandas: NumPy would make an object of each
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one column of times, got an array of shape {array.shape}.")
    if array.dtype.kind in "OT" or (isinstance(values, list | tuple) and array.dtype.kind in "fUb"):
        return _of_objects(name, array.tolist() if array.dtype.kind in "OT" else values, unit)
    match array.dtype.kind:
        case "M":
            return _of_datetimes(name, array)
        case "U":
            return from_text(name, array.tolist(), unit, numbers=False)
        case "i" | "u":
            return _of_integers(name, array), unit
        case "f":
            return _of_floats(name, array, unit)
    raise ValueError(f"{name}: expected numbers, got {array.dtype}. Give integer seconds, or datetimes.")


def as_ticks(name: str, moment: Any, unit: TimeUnit) -> int | float:
    """The first tick of a unit that is not before a moment; a number is in that unit already."""
    if isinstance(moment, int | np.integer):
        return int(moment)
    if isinstance(moment, float | np.floating):
        return math.ceil(moment) if math.isfinite(moment) else float(moment)
    (ticks,), own = as_times(name, [moment])
    return -(-int(ticks) * _billionths(own) // _billionths(unit))


def from_text(name: str, texts: Any, unit: TimeUnit = "s", *, numbers: bool = True) -> tuple[np.ndarray, TimeUnit]:
    """`as_times` of text, a list or a polars column: ISO 8601, or decimal numbers in `unit` where those are allowed."""
    import polars as pl

    texts = pl.Series(texts, dtype=pl.String).str.strip_chars()
    if numbers and (integers := texts.cast(pl.Int64, strict=False)).null_count() == 0:
        return _of_integers(name, integers.to_numpy()), unit
    if numbers and texts.str.contains(DECIMAL).all():
        sign, whole, fraction = texts.str.extract_groups(DECIMAL).struct.unnest()
        ticks = whole.cast(pl.Int64, strict=False)
        if ticks.null_count():
            raise ValueError(f"{name}: expected times that fit in int64, got {texts.filter(ticks.is_null())[0]}.")
        small = fraction.fill_null("").str.pad_end(9, "0").cast(pl.Int64).to_numpy()
        negative, magnitude = (sign == "-").to_numpy(), ticks.to_numpy()
        borrowed = negative & (small > 0)  # -1.25 is -2 and 0.75
        return _coarsest(
            name,
            np.where(negative, -magnitude, magnitude) - borrowed,
            np.where(borrowed, 10**9 - small, small),
            unit,
        )
    if numbers and (floats := texts.cast(pl.Float64, strict=False)).null_count() == 0:
        return _of_floats(name, floats.to_numpy(), unit)
    day, hour, minute, second, fraction, zone = texts.str.extract_groups(ISO).struct.unnest()
    days = day.str.to_date("%Y-%m-%d", strict=False)
    hour, minute, second = (part.fill_null("0").cast(pl.Int64) for part in (hour, minute, second))
    wrong = days.is_null() | (hour > 23) | (minute > 59) | (second > 59)
    if wrong.any():
        at = int(wrong.arg_max() or 0)
        raise ValueError(
            f"{name}: expected numbers, got {texts[at]!r} at position {at}, a form of time that is not recognized. "
            "Recognized are datetimes, and text such as 2019-12-31 or 2019-12-31T23:59:59.5+01:00; convert it first, "
            "for example by polars' str.to_datetime(format)."
        )
    _one_clock(name, zone.is_not_null().to_numpy(), texts)
    seconds = days.cast(pl.Int64) * 86_400 + hour * 3_600 + minute * 60 + second - _offset(zone)
    small = fraction.fill_null("").str.pad_end(9, "0").cast(pl.Int64)
    return _coarsest(name, seconds.to_numpy(), small.to_numpy(), "s")


def decimal_seconds(ticks: np.ndarray, unit: TimeUnit) -> pl.Series:
    """Text of times as seconds, exact: 1500 ms as '1.500'."""
    import polars as pl

    per = _billionths("s") // _billionths(unit)
    magnitude = pl.Series(np.abs(ticks))
    sign = pl.Series(ticks < 0).replace_strict({True: "-", False: ""}, return_dtype=pl.String)
    fraction = (magnitude % per).cast(pl.String).str.zfill(3 * UNITS.index(unit))
    return sign + (magnitude // per).cast(pl.String) + "." + fraction


def _offset(zone: pl.Series) -> pl.Series:
    """Seconds that clocks of a time zone (+02:00) are ahead of UTC."""
    import polars as pl

    sign, hours, minutes = zone.str.extract_groups(r"^([+-])(\d\d):?(\d\d)?$").struct.unnest()
    size = hours.fill_null("0").cast(pl.Int64) * 3_600 + minutes.fill_null("0").cast(pl.Int64) * 60
    return size * (1 - 2 * (sign == "-").fill_null(False).cast(pl.Int64))


def _of_objects(name: str, items: Sequence[Any], unit: TimeUnit) -> tuple[np.ndarray, TimeUnit]:
    """Python's objects: all text, all datetimes or dates, or all numbers."""
    types = set(map(type, items))
    of = lambda *family: all(issubclass(one, family) and one is not bool for one in types)
    for at, item in enumerate(items if not of(str, int) else ()):
        if not isinstance(item, str | int | float | np.number | np.datetime64 | datetime.date):
            raise ValueError(f"{name}: expected a time for every rating, got {item!r} at position {at}.")
    if of(str):
        return from_text(name, items, unit, numbers=False)
    if of(int, np.integer):
        return _of_integers(name, np.array(items, object)), unit
    if of(np.datetime64):
        return _of_datetimes(name, np.array(items))
    if of(datetime.date):
        clocks = [item for item in items if isinstance(item, datetime.datetime)]
        _one_clock(name, np.array([clock.tzinfo is not None for clock in clocks], bool), clocks)
        moments = np.array([_moment(name, item) for item in items], np.int64)
        return _coarsest(name, moments[:, 0], moments[:, 1], "s")
    if of(int, float, np.number):
        array = np.array(items, np.float64)
        for item, number in zip(items, array.tolist(), strict=True):
            if isinstance(item, int | np.integer) and int(item) != number:
                raise ValueError(f"{name}: expected integers or floats, got both, and {item} is no float.")
        return _of_floats(name, array, unit)
    kinds = ", ".join(sorted(one.__name__ for one in types))
    raise ValueError(f"{name}: expected numbers, got {kinds}. Give integer seconds, or datetimes.")


def _moment(name: str, item: datetime.date) -> tuple[int, int]:
    """(seconds since 1970, billionths of a second) of a datetime, pandas' too, or of a date's beginning."""
    if not isinstance(item, datetime.datetime):
        return (item.toordinal() - datetime.date(1970, 1, 1).toordinal()) * 86_400, 0
    if item != item:  # pandas' NaT is a datetime, too
        raise ValueError(f"{name}: expected a time for every rating, got {item!r}. Drop those rows, or the column.")
    since = item - datetime.datetime(1970, 1, 1, tzinfo=None if item.tzinfo is None else datetime.UTC)
    return since.days * 86_400 + since.seconds, since.microseconds * 1_000 + getattr(since, "nanoseconds", 0)


def _one_clock(name: str, zoned: np.ndarray, items: Any) -> None:
    if zoned.any() and not zoned.all():
        raise ValueError(
            f"{name}: expected a time zone with every time or with none, got {items[int(zoned.argmax())]} and "
            f"{items[int(zoned.argmin())]}."
        )


def _of_datetimes(name: str, array: np.ndarray) -> tuple[np.ndarray, TimeUnit]:
    if np.isnat(array).any():
        raise ValueError(f"{name}: expected a time for every rating, got NaT. Drop those rows, or the column.")
    for unit in UNITS:
        try:
            ticks = array.astype(f"M8[{unit}]")
            same = (ticks.astype(array.dtype) == array).all()  # nothing is cut, and nothing wraps
        except OverflowError:  # NumPy 2.5 says so, where those before it wrapped
            continue
        if same:
            return ticks.astype(np.int64), unit
    raise ValueError(f"{name}: expected times that fit in int64 seconds to nanoseconds, got {array.dtype} that do not.")


def _of_integers(name: str, array: np.ndarray) -> np.ndarray:
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low == INT64.min:
        raise ValueError(f"{name}: got {low}, which is what a missing datetime (NaT) becomes. Drop those rows.")
    if low < INT64.min or high > INT64.max:
        raise ValueError(f"{name}: expected times that fit in int64, got {high if high > INT64.max else low}.")
    return array.astype(np.int64, copy=False)


def _of_floats(name: str, array: np.ndarray, unit: TimeUnit) -> tuple[np.ndarray, TimeUnit]:
    """Each unit is tried for numbers that divide back to the very floats that came: 1.2 is 1200 / 1000."""
    check.finite(name, array, dtype=array.dtype)
    exact = 2.0 ** (np.finfo(array.dtype).nmant + 1)
    if array.dtype.itemsize < 8 and (large := np.abs(array) >= exact).any():
        raise ValueError(
            f"{name}: {array.dtype} holds whole numbers up to {exact:.0f}, got {array[large][0]:.0f}: times near "
            "one another have become one number. Read the column as float64 or integers, from its source."
        )
    numbers = array.astype(np.float64, copy=False)
    if (large := np.abs(numbers) >= 2.0**63).any():
        raise ValueError(f"{name}: expected times that fit in int64, got {array[large][0]}. Are these nanoseconds?")
    whole, fraction = np.trunc(numbers), np.fmod(numbers, 1.0)  # exact, both
    for digits in range(0, 3 * (len(UNITS) - UNITS.index(unit)), 3):
        per = 10.0**digits
        ticks = np.rint(fraction * per)
        # by one rounding, which is right as long as the numerator is exact; by two where it is not
        same = ((whole * per + ticks) / per).astype(array.dtype) == array
        same |= (whole + ticks / per).astype(array.dtype) == array
        if same.all():
            borrowed = ticks < 0  # -0.25 is -1 and 0.75
            billionths = (ticks + borrowed * per).astype(np.int64) * 10 ** (9 - digits)
            return _coarsest(name, whole.astype(np.int64) - borrowed, billionths, unit)
    raise ValueError(
        f"{name}: expected numbers of {unit} with at most {digits} digits after the point, got "
        f"{array[fraction != 0][0]}. Round them (np.round), or give integers of a finer time_unit, or datetimes."
    )


def _coarsest(name: str, whole: np.ndarray, billionths: np.ndarray, unit: TimeUnit) -> tuple[np.ndarray, TimeUnit]:
    """(whole + billionths / 10**9) of a unit, as integers of the coarsest unit that has no fractions left."""
    for finer in UNITS[UNITS.index(unit) :]:
        step = 10**9 * _billionths(finer) // _billionths(unit)
        if (billionths % step == 0).all():
            break
    else:
        raise ValueError(f"{name}: expected times of whole nanoseconds, got some of less.")
    per = _billionths(unit) // _billionths(finer)
    if len(whole) and not (INT64.min < int(whole.min()) * per and int(whole.max()) * per + per - 1 <= INT64.max):
        raise ValueError(
            f"{name}: expected times that fit in int64 {finer} (292 years around 1970, in ns), got some further off."
        )
    return whole * per + billionths // step, finer


def _billionths(unit: TimeUnit) -> int:
    """Of a second."""
    return 10 ** (9 - 3 * UNITS.index(unit))
