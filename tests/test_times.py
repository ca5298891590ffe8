"""Times keep their order and value exactly, or the column is an error that names it."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.times import UNITS, as_ticks, as_times, decimal_seconds, from_text

NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
examples = settings(deadline=None, max_examples=100)


def in_ns(values, unit="s"):
    ticks, unit = as_times("time", values, unit)
    assert ticks.dtype == np.int64
    return [int(tick) * NS[unit] for tick in ticks]


@examples
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1), st.sampled_from(UNITS))
def test_datetimes_are_kept_in_the_coarsest_unit_that_holds_them(numbers, unit):
    ticks, chosen = as_times("time", np.array(numbers, np.int64).astype(f"M8[{unit}]"))
    assert [int(tick) * NS[chosen] for tick in ticks] == [number * NS[unit] for number in numbers]
    coarser = UNITS[: UNITS.index(chosen)]
    assert all(any(number * NS[unit] % NS[one] for number in numbers) for one in coarser)


@examples
@given(st.lists(st.integers(-(2**50), 2**50), min_size=1), st.sampled_from(UNITS))
def test_numbers_are_kept_as_they_are(numbers, unit):
    ticks, chosen = as_times("time", numbers, unit)
    assert (ticks.tolist(), chosen) == (numbers, unit)


@examples
@given(st.lists(st.integers(-(2**45), 2**45), min_size=1), st.sampled_from([1, 10, 1000, 10**6]))
def test_floats_of_decimal_fractions_are_exact(numbers, per):
    floats = [number / per for number in numbers]
    ticks, unit = as_times("time", floats)
    back = ticks / (10 ** (3 * UNITS.index(unit)))
    assert back.tolist() == floats
    np.testing.assert_array_equal(np.argsort(ticks, kind="stable"), np.argsort(floats, kind="stable"))


@examples
@given(st.lists(st.floats(-1e12, 1e12), min_size=2), st.sampled_from([np.float64, np.float32, np.float16]))
def test_floats_keep_their_order_or_are_refused(numbers, dtype):
    with np.errstate(over="ignore"):
        floats = np.array(numbers).astype(dtype)
    try:
        ticks, _ = as_times("time", floats)
    except ValueError:
        return
    np.testing.assert_array_equal(np.argsort(ticks, kind="stable"), np.argsort(floats, kind="stable"))
    assert len(np.unique(ticks)) == len(np.unique(floats))


@examples
@given(st.lists(st.datetimes(timezones=st.timezones()), min_size=1))
def test_python_datetimes_with_time_zones(moments):
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    whole = lambda since: (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000
    expected = [whole(moment - epoch) for moment in moments]
    assert in_ns(moments) == expected
    assert in_ns([moment.isoformat() for moment in moments if moment.utcoffset().seconds % 60 == 0]) == [
        ns for moment, ns in zip(moments, expected, strict=True) if moment.utcoffset().seconds % 60 == 0
    ]


@examples
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1), st.sampled_from(UNITS[1:]))
def test_decimal_seconds_round_trip(numbers, unit):
    ticks, chosen = from_text("time", decimal_seconds(np.array(numbers), unit))
    assert [int(tick) * NS[chosen] for tick in ticks] == [number * NS[unit] for number in numbers]


@pytest.mark.parametrize("column", [list, lambda one: np.array(one, object), pl.Series, pd.Series])
@pytest.mark.parametrize(
    ("number", "ticks", "unit"),
    [
        ("1577836800", 1577836800, "s"),
        ("1577836800.000", 1577836800, "s"),
        ("1577836800.123456789", 1577836800123456789, "ns"),  # more digits than float64 has
        ("-0.25", -250, "ms"),
        ("1.5E+3", 1500, "s"),
    ],
)
def test_decimals_are_exact(column, number, ticks, unit):
    times, chosen = as_times("time", column([Decimal(number)]))
    assert (times.tolist(), chosen) == ([ticks], unit)


HOUR = 3_600 * 10**9
NEW_YEAR = 1_577_836_800 * 10**9  # 2020-01-01 UTC


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2020-01-01", 0),
        ("2020-01-01 00:00", 0),
        ("2020-01-01T00:00:00Z", 0),
        ("2020-01-01T00:00:00z", 0),
        ("2020-01-01 00:00:00 UTC", 0),
        ("2020-01-01T00:00:00+02:00", -2 * HOUR),
        ("2020-01-01T00:00:00-0530", 5 * HOUR + HOUR // 2),
        ("2020-01-01T00:00:00+02", -2 * HOUR),
        ("2020-01-01T00:00:00.5", HOUR // 7200),
        ("2020-01-01T00:00:00.000000001", 1),
        ("2020-01-01T00:00:00.1230000000000", 123_000_000),
    ],
)
@pytest.mark.parametrize("column", [list, np.array, pl.Series, lambda one: np.array(one, object), pd.Series])
def test_iso_text(text, ns, column):
    assert in_ns(column([text])) == [NEW_YEAR + ns]


AWARE = dt.datetime(2020, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))


@pytest.mark.parametrize(
    "column",
    [
        [AWARE],
        [dt.datetime(2020, 1, 1)],
        [dt.date(2020, 1, 1)],
        [np.datetime64("2020-01-01")],
        [pd.Timestamp(AWARE)],
        np.array(["2020"], "M8[Y]"),
        np.array(["2020-01-01"], "M8[25s]"),
        pd.Series([AWARE]),
        pd.DatetimeIndex([AWARE]),
        pd.Series(pd.to_datetime(["2020-01-01"])),
        pd.Series(["2020-01-01"], dtype="string"),
        pd.Series(["2020-01-01"], dtype="category"),
        pl.Series([dt.date(2020, 1, 1)]),
        pl.Series([AWARE]),
        pl.Series([AWARE]).dt.convert_time_zone("Asia/Tokyo"),
        [1_577_836_800],
        [1_577_836_800.0],
    ],
    ids=lambda column: f"{type(column).__module__}.{type(column).__name__}",
)
def test_every_form_of_one_time(column):
    assert as_times("time", column)[1] == "s"
    assert in_ns(column) == [NEW_YEAR]


def test_nanoseconds_of_pandas():
    stamp = pd.Timestamp("2020-01-01T00:00:00.000000001", tz="Europe/Berlin")
    assert in_ns([stamp]) == in_ns(pd.Series([stamp])) == [NEW_YEAR - HOUR + 1]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            ["2020-01-01", "12/31/2019"],
            r"expected numbers, datetimes or text .*, got '12/31/2019' at position 1. Convert it",
        ),
        (["yesterday"], "got 'yesterday' at position 0"),
        (["2020-02-30"], "got '2020-02-30'"),
        (["2020-01-01T24:00"], "got '2020-01-01T24:00'"),
        (["2020-01-01T00:00:60"], "got '2020-01-01T00:00:60'"),
        (["1577836800"], "expected numbers, datetimes or text .*, got '1577836800'"),
        (
            ["2020-01-01T00:00:00.0000000001"],
            "expected numbers, datetimes or text .*, got '2020-01-01T00:00:00.0000000001'",
        ),
        (["2020-01-01T00:00Z", "2020-01-01T00:00"], "a time zone with every time or with none"),
        ([AWARE, dt.datetime(2020, 1, 1)], "a time zone with every time or with none"),
        ([1, "2020-01-01"], "got int, str"),
        ([1, Decimal(1)], "got Decimal, int"),
        ([Decimal("NaN")], "finite"),
        ([Decimal("0.1234567891")], "at most 9 digits after the point"),
        ([1, dt.datetime(2020, 1, 1)], "got datetime, int"),
        ([True, False], "got bool"),
        (np.array([True]), "got bool"),
        ([1, None], "expected a time for every rating, got None at position 1"),
        (pl.Series([AWARE, None]), "expected a time for every rating, got NaT"),
        ([pd.NaT], "expected a time for every rating, got NaT"),
        ([np.datetime64("NaT", "s")], "expected a time for every rating, got NaT"),
        (pd.Series([1, None], dtype="Int64"), "got nan at position 1"),
        (np.ma.array([1, 2], mask=[False, True]), "masked"),
        (np.array([-(2**63)]), "missing datetime"),
        ([2**63], r"fit in int64, got 9223372036854775808"),
        ([2**63 + 1, -1], r"fit in int64, got 9223372036854775809"),
        ([1e300], "fit in int64"),
        (np.float32([978_300_760, 1]), "expected whole numbers up to 16777216 in float32, got 978300736: .*float64"),
        (np.float16([2048]), "expected whole numbers up to 2048 in float16"),
        ([0.1 + 0.2], "at most 9 digits after the point"),
        ([2**53 + 1, 0.5], "got both, and float64 cannot hold 9007199254740993"),
        (np.array([10**17], "M8[D]"), "fit in int64"),
        (np.array([5], "M8[ps]"), "fit in int64 seconds to nanoseconds"),
        (np.array([5], "m8[s]"), "got timedelta64"),
        ([dt.time(1)], "expected a time for every rating"),
        ([[1]], "one column of times"),
        (5, "one column of times"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40].replace("\n", " "),
)
def test_errors(column, message):
    with pytest.raises(ValueError, match=f"^when: .*{message}"):
        as_times("when", column)


def test_a_fraction_whose_nanoseconds_do_not_fit():
    with pytest.raises(ValueError, match=r"^time: expected times that fit in int64 ns"):
        as_times("time", ["1600-01-01", "2020-01-01T00:00:00.000000001"])


def test_an_unknown_unit():
    with pytest.raises(ValueError, match=r"^time_unit: expected one of 's', 'ms', 'us', 'ns', got 'D'"):
        as_times("time", [1], "D")


@pytest.mark.parametrize(
    ("moment", "unit", "tick"),
    [
        (5, "ms", 5),
        (5.5, "s", 6),
        (np.int64(2**62 + 1), "ns", 2**62 + 1),
        ("1970-01-01T00:00:01", "ms", 1000),
        ("1970-01-01T00:00:00.001", "s", 1),
        ("1969-12-31T23:59:59.5", "s", 0),
        (dt.date(1970, 1, 2), "s", 86_400),
        (np.datetime64(1, "us"), "ns", 1000),
        (pd.Timestamp(1, unit="s", tz="UTC"), "s", 1),
    ],
)
def test_the_first_tick_that_is_not_earlier(moment, unit, tick):
    assert as_ticks("at", moment, unit) == tick
