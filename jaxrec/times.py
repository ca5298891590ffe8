"""Conversion of a column of times to int64, in the coarsest of four units that represents all of them exactly.

The order of the times is kept. Datetimes with a time zone are converted to UTC, those without are taken as UTC. Numbers
are in the unit that the user names; fractions of it are converted to a finer unit, and an error if no unit fits.

>>> as_times("time", [1.2, 1.7, 2.0])
(array([1200, 1700, 2000]), 'ms')
>>> as_times("time", ["2020-01-01T02:00:00+02:00", "2020-01-01T00:00:01Z"])
(array([1577836800, 1577836801]), 's')
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from decimal import Decimal
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
    """Returns one column of times as int64 [n], and their unit.

    Args:
        name: the column's name in error messages.
        values: [n] integers, floats or Decimals, in `unit`; or datetimes of any unit: datetime64, Python's datetime or
            date, pandas or polars columns of these, ISO 8601 text ('2020-01-01T00:00:00+02:00').
        unit: the unit of numbers: 's', 'ms', 'us' or 'ns'.

    Raises:
        ValueError: a time is missing; text has another form; a fraction fits no unit; float32 numbers are so large that
            neighboring times were rounded to one number; times do not fit in int64; some datetimes have a time zone and
            others do not.
    """
    check.choice("time_unit", unit, UNITS)
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: expected a time for every rating, got a masked array. Drop the masked rows.")
    if getattr(getattr(values, "dtype", None), "tz", None) is not None and hasattr(values, "dt"):
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)  # pandas: NumPy would make an array of objects
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one column of times, got an array of shape {array.shape}.")
    if array.dtype.kind in "OT" or (isinstance(values, list | tuple) and array.dtype.kind in "fUb"):
        return _from_objects(name, array.tolist() if array.dtype.kind in "OT" else values, unit)
    match array.dtype.kind:
        case "M":
            return _from_datetimes(name, array)
        case "U":
            return from_text(name, array.tolist(), unit, numbers=False)
        case "i" | "u":
            return _from_integers(name, array), unit
        case "f":
            return _from_floats(name, array, unit)
    raise ValueError(f"{name}: expected numbers, got {array.dtype}. Use integer seconds, or datetimes.")


def as_ticks(name: str, moment: Any, unit: TimeUnit) -> int | float:
    """Returns a time as the smallest integer of a unit that is not earlier; a number is in that unit already."""
    if isinstance(moment, int | np.integer):
        return int(moment)
    if isinstance(moment, float | np.floating):
        return math.ceil(moment) if math.isfinite(moment) else float(moment)
    (ticks,), own_unit = as_times(name, [moment])
    return -(-int(ticks) * _nanoseconds_per(own_unit) // _nanoseconds_per(unit))


def from_text(name: str, texts: Any, unit: TimeUnit = "s", *, numbers: bool = True) -> tuple[np.ndarray, TimeUnit]:
    """Returns `as_times` of text, a list or a polars column: ISO 8601, or decimal numbers in `unit` if `numbers`."""
    import polars as pl

    texts = pl.Series(texts, dtype=pl.String).str.strip_chars()
    if numbers and (integers := texts.cast(pl.Int64, strict=False)).null_count() == 0:
        return _from_integers(name, integers.to_numpy()), unit
    if numbers and texts.str.contains(DECIMAL).all():
        sign, whole, fraction = texts.str.extract_groups(DECIMAL).struct.unnest()
        ticks = whole.cast(pl.Int64, strict=False)
        if ticks.null_count():
            raise ValueError(f"{name}: expected times that fit in int64, got {texts.filter(ticks.is_null())[0]}.")
        billionths = fraction.fill_null("").str.pad_end(9, "0").cast(pl.Int64).to_numpy()
        negative, magnitude = (sign == "-").to_numpy(), ticks.to_numpy()
        borrow = negative & (billionths > 0)  # -1.25 = -2 + 0.75
        return _coarsest(
            name,
            np.where(negative, -magnitude, magnitude) - borrow,
            np.where(borrow, 10**9 - billionths, billionths),
            unit,
        )
    if numbers and (floats := texts.cast(pl.Float64, strict=False)).null_count() == 0:
        return _from_floats(name, floats.to_numpy(), unit)
    day, hour, minute, second, fraction, zone = texts.str.extract_groups(ISO).struct.unnest()
    days = day.str.to_date("%Y-%m-%d", strict=False)
    hour, minute, second = (part.fill_null("0").cast(pl.Int64) for part in (hour, minute, second))
    invalid = days.is_null() | (hour > 23) | (minute > 59) | (second > 59)
    if invalid.any():
        position = int(invalid.arg_max() or 0)
        raise ValueError(
            f"{name}: expected numbers, datetimes or text such as 2019-12-31 or 2019-12-31T23:59:59.5+01:00, got "
            f"{texts[position]!r} at position {position}. Convert it first, for example by polars' "
            "str.to_datetime(format)."
        )
    _check_same_zoning(name, zone.is_not_null().to_numpy(), texts)
    seconds = days.cast(pl.Int64) * 86_400 + hour * 3_600 + minute * 60 + second - _utc_offset(zone)
    nanoseconds = fraction.fill_null("").str.pad_end(9, "0").cast(pl.Int64)
    return _coarsest(name, seconds.to_numpy(), nanoseconds.to_numpy(), "s")


def decimal_seconds(ticks: np.ndarray, unit: TimeUnit) -> pl.Series:
    """Returns times in finer units than seconds as exact text in seconds: '1.500' for 1500 ms."""
    import polars as pl

    ticks_per_second = _nanoseconds_per("s") // _nanoseconds_per(unit)
    magnitude = pl.Series(np.abs(ticks))
    sign = pl.Series(ticks < 0).replace_strict({True: "-", False: ""}, return_dtype=pl.String)
    fraction = (magnitude % ticks_per_second).cast(pl.String).str.zfill(3 * UNITS.index(unit))
    return sign + (magnitude // ticks_per_second).cast(pl.String) + "." + fraction


def _utc_offset(zone: pl.Series) -> pl.Series:
    """Returns how many seconds the clocks of a time zone (+02:00) are ahead of UTC."""
    import polars as pl

    sign, hours, minutes = zone.str.extract_groups(r"^([+-])(\d\d):?(\d\d)?$").struct.unnest()
    size = hours.fill_null("0").cast(pl.Int64) * 3_600 + minutes.fill_null("0").cast(pl.Int64) * 60
    return size * (1 - 2 * (sign == "-").fill_null(False).cast(pl.Int64))


def _from_objects(name: str, values: Sequence[Any], unit: TimeUnit) -> tuple[np.ndarray, TimeUnit]:
    """Converts Python objects: all text, all datetimes or dates, or all numbers."""
    types = set(map(type, values))
    all_are = lambda *family: all(issubclass(kind, family) and kind is not bool for kind in types)
    for position, value in enumerate(values if not all_are(str, int) else ()):
        if not isinstance(value, str | int | float | np.number | Decimal | np.datetime64 | datetime.date):
            raise ValueError(f"{name}: expected a time for every rating, got {value!r} at position {position}.")
    if all_are(str):
        return from_text(name, values, unit, numbers=False)
    if all_are(int, np.integer):
        return _from_integers(name, np.array(values, object)), unit
    if all_are(Decimal):
        return from_text(name, [format(value, "f") for value in values], unit)  # exact, also beyond 53 bits
    if all_are(np.datetime64):
        return _from_datetimes(name, np.array(values))
    if all_are(datetime.date):
        datetimes = [value for value in values if isinstance(value, datetime.datetime)]
        _check_same_zoning(name, np.array([value.tzinfo is not None for value in datetimes], bool), datetimes)
        times = np.array([_since_1970(name, value) for value in values], np.int64)
        return _coarsest(name, times[:, 0], times[:, 1], "s")
    if all_are(int, float, np.number):
        array = np.array(values, np.float64)
        for value, number in zip(values, array.tolist(), strict=True):
            if isinstance(value, int | np.integer) and int(value) != number:
                raise ValueError(f"{name}: expected integers or floats, got both, and float64 cannot hold {value}.")
        return _from_floats(name, array, unit)
    kinds = ", ".join(sorted(kind.__name__ for kind in types))
    raise ValueError(f"{name}: expected numbers, got {kinds}. Use integer seconds, or datetimes.")


def _since_1970(name: str, time: datetime.date) -> tuple[int, int]:
    """Returns (seconds, nanoseconds) since 1970 of a datetime (also one of pandas), or of the midnight of a date."""
    if not isinstance(time, datetime.datetime):
        return (time.toordinal() - datetime.date(1970, 1, 1).toordinal()) * 86_400, 0
    if time != time:  # pandas' NaT is a datetime too
        raise ValueError(f"{name}: expected a time for every rating, got {time!r}. Drop those rows, or the column.")
    since = time - datetime.datetime(1970, 1, 1, tzinfo=None if time.tzinfo is None else datetime.UTC)
    return since.days * 86_400 + since.seconds, since.microseconds * 1_000 + getattr(since, "nanoseconds", 0)


def _check_same_zoning(name: str, zoned: np.ndarray, times: Any) -> None:
    """Checks that all times have a time zone, or none has."""
    if zoned.any() and not zoned.all():
        raise ValueError(
            f"{name}: expected a time zone with every time or with none, got {times[int(zoned.argmax())]} and "
            f"{times[int(zoned.argmin())]}."
        )


def _from_datetimes(name: str, array: np.ndarray) -> tuple[np.ndarray, TimeUnit]:
    if np.isnat(array).any():
        raise ValueError(f"{name}: expected a time for every rating, got NaT. Drop those rows, or the column.")
    for unit in UNITS:
        try:
            ticks = array.astype(f"M8[{unit}]")
            exact = (ticks.astype(array.dtype) == array).all()  # nothing was truncated or wrapped
        except OverflowError:  # NumPy 2.5 raises on overflow, earlier versions wrap
            continue
        if exact:
            return ticks.astype(np.int64), unit
    raise ValueError(f"{name}: expected times that fit in int64 seconds to nanoseconds, got {array.dtype} that do not.")


def _from_integers(name: str, array: np.ndarray) -> np.ndarray:
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low == INT64.min:
        raise ValueError(
            f"{name}: expected a time for every rating, got {low}, the integer of a missing datetime (NaT). "
            "Drop those rows."
        )
    if low < INT64.min or high > INT64.max:
        raise ValueError(f"{name}: expected times that fit in int64, got {high if high > INT64.max else low}.")
    return array.astype(np.int64, copy=False)


def _from_floats(name: str, array: np.ndarray, unit: TimeUnit) -> tuple[np.ndarray, TimeUnit]:
    """Converts floats to the coarsest unit in which integers give the same floats: 1.2 s is 1200 / 1000, so 1200 ms."""
    check.finite(name, array, dtype=array.dtype)
    exact_limit = 2.0 ** (np.finfo(array.dtype).nmant + 1)
    if array.dtype.itemsize < 8 and (large := np.abs(array) >= exact_limit).any():
        raise ValueError(
            f"{name}: expected whole numbers up to {exact_limit:.0f} in {array.dtype}, got {array[large][0]:.0f}: "
            "nearby times were rounded to one number. Read the column from its source as float64 or integers."
        )
    numbers = array.astype(np.float64, copy=False)
    if (large := np.abs(numbers) >= 2.0**63).any():
        raise ValueError(f"{name}: expected times that fit in int64, got {array[large][0]}. Are these nanoseconds?")
    whole, fraction = np.trunc(numbers), np.fmod(numbers, 1.0)  # both exact
    for digits in range(0, 3 * (len(UNITS) - UNITS.index(unit)), 3):
        scale = 10.0**digits
        ticks = np.rint(fraction * scale)
        # Rounded once, which is right if the numerator is exact; otherwise rounded twice.
        same = ((whole * scale + ticks) / scale).astype(array.dtype) == array
        same |= (whole + ticks / scale).astype(array.dtype) == array
        if same.all():
            borrow = ticks < 0  # -0.25 = -1 + 0.75
            billionths = (ticks + borrow * scale).astype(np.int64) * 10 ** (9 - digits)
            return _coarsest(name, whole.astype(np.int64) - borrow, billionths, unit)
    raise ValueError(
        f"{name}: expected numbers of {unit} with at most {digits} digits after the point, got "
        f"{array[fraction != 0][0]}. Round them (np.round), or use integers of a finer time_unit, or datetimes."
    )


def _coarsest(name: str, whole: np.ndarray, billionths: np.ndarray, unit: TimeUnit) -> tuple[np.ndarray, TimeUnit]:
    """Returns the times (whole + billionths / 10**9) units as integers of the coarsest unit that represents them all.

    For example, 1.25 s is whole = 1 and billionths = 250,000,000: a multiple of the 10**6 billionths of a second in a
    millisecond, so it is 1 * 1000 + 250 = 1250 ms.
    """
    for finer in UNITS[UNITS.index(unit) :]:
        step = 10**9 * _nanoseconds_per(finer) // _nanoseconds_per(unit)
        if (billionths % step == 0).all():
            break
    else:
        raise ValueError(f"{name}: expected whole nanoseconds, got fractions of them.")
    ratio = _nanoseconds_per(unit) // _nanoseconds_per(finer)
    if len(whole) and not (INT64.min < int(whole.min()) * ratio and int(whole.max()) * ratio + ratio - 1 <= INT64.max):
        raise ValueError(
            f"{name}: expected times that fit in int64 {finer} (in ns, within 292 years of 1970), got others."
        )
    return whole * ratio + billionths // step, finer


def _nanoseconds_per(unit: TimeUnit) -> int:
    return 10 ** (9 - 3 * UNITS.index(unit))
