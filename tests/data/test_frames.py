"""Frames, dicts of columns and parquet files: which values a column may have, and the messages of the others."""

import array
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest

from jaxrec import Ratings, data

ROWS = {"user": ["a", "b", "a"], "item": [3, 1, 1], "rating": [4.5, 0.0, -1.0]}


def as_rows(ratings):
    columns = ratings.user_ids[ratings.user], ratings.item_ids[ratings.item], ratings.value
    return list(zip(*(column.tolist() for column in columns), strict=True))


# Tables, as a function of a dict of columns


def frame_of(library):
    """Returns a function that makes a frame of the library, or None where it refuses a column or changes it."""

    def build(columns):
        for column in columns.values():
            foreign = isinstance(column, pd.Series | pl.Series) and not isinstance(column, library.Series)
            objects = library is pl and isinstance(column, np.ndarray) and column.dtype == object
            if foreign or objects:
                return None
        try:
            columns = {name: list(column) if isinstance(column, range) else column for name, column in columns.items()}
            return library.DataFrame(columns)
        except (ValueError, TypeError, OverflowError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            return None

    return build


TABLES = {"dict": dict, "pandas": frame_of(pd), "polars": frame_of(pl)}


def cases(columns, *doors):
    """Every (name of a column, door that takes it): the doors themselves, and the tables that can hold the column."""
    return [
        (name, door)
        for name, (column, _) in columns.items()
        for door in (*doors, *TABLES)
        if door in doors or TABLES[door]({"column": column}) is not None
    ]


# A column of ids, and the ids that result from it; or the message, if it is an error.
FAMILY = "expected raw ids that are (all )?integers or (all )?strings, got"
IDS = {
    "list": ([8, 7, 8], [8, 7, 8]),
    "tuple": ((8, 7, 8), [8, 7, 8]),
    "range": (range(7, 10), [7, 8, 9]),
    "array.array": (array.array("q", [8, 7, 8]), [8, 7, 8]),
    "int8": (np.int8([8, 7, 8]), [8, 7, 8]),
    "uint64": (np.uint64([2**63 + 1, 7, 8]), [2**63 + 1, 7, 8]),
    "JAX": (jnp.array([8, 7, 8]), [8, 7, 8]),
    "integers as objects": (np.array([8, 7, 8], object), [8, 7, 8]),
    "large integers as objects": (np.array([2**62 + 1, 7, 8], object), [2**62 + 1, 7, 8]),
    "NumPy's integers as objects": (np.array([np.int8(8), np.uint64(7), 8], object), [8, 7, 8]),
    "pandas Int64": (pd.Series([8, 7, 8], dtype="Int64"), [8, 7, 8]),
    "pandas category": (pd.Series([8, 7, 8], dtype="category"), [8, 7, 8]),
    "pandas objects": (pd.Series([8, 7, 8], dtype=object), [8, 7, 8]),
    "pandas, of another index": (pd.Series([8, 7, 8], index=[5, 5, 1]), [8, 7, 8]),
    "polars Int16": (pl.Series([8, 7, 8], dtype=pl.Int16), [8, 7, 8]),
    "text": (["8", "b", "8"], ["8", "b", "8"]),
    "text as objects": (np.array(["8", "b", "8"], object), ["8", "b", "8"]),
    "NumPy's text": (np.array(["8", "b", "8"]), ["8", "b", "8"]),
    "NumPy's text of any length": (np.array(["8", "b", "8"], np.dtypes.StringDType()), ["8", "b", "8"]),
    "pandas string": (pd.Series(["8", "b", "8"], dtype="string"), ["8", "b", "8"]),
    "polars Categorical": (pl.Series(["8", "b", "8"], dtype=pl.Categorical), ["8", "b", "8"]),
    # refused
    "None": ([8, None, 8], f"is empty in row 1|{FAMILY} .*Drop the rows without an id"),
    "None as an object": (np.array([8, None, 8], object), "is empty in row 1|got .*Drop the rows without an id"),
    "NaN as an object": (np.array([8, np.nan, 8], object), f"is empty in row 1|{FAMILY}"),
    "pandas NA": (pd.Series([8, None, 8], dtype="Int64"), f"is empty in row 1|{FAMILY} float64. Pandas converts"),
    "a mixture": ([8, "8", 8], r"\(int, str\), such as 8 and, at position 1, '8'"),
    "a mixture of objects": (np.array([8, "8", 8], object), r"such as 8 and, at position 1, '8'"),
    "bools": ([True, False, True], f"{FAMILY} bool. If True and False are two ids, use 1 and 0"),
    "NumPy's bools": (np.array([True, False, True]), f"{FAMILY} bool. If True and False are two ids, use 1 and 0"),
    "bools as objects": (np.array([True, False, True], object), f"{FAMILY} bool. If True and False are two ids"),
    "a bool among objects": (np.array([8, True, 8], object), r"\(bool, int\), such as 8 and, at position 1, True"),
    "whole floats": ([8.0, 7.0, 8.0], f"{FAMILY} float.*use astype.int."),
    "NumPy's whole floats": (np.array([8.0, 7.0, 8.0]), f"{FAMILY} float64. .*use astype.int."),
    "whole floats as objects": (np.array([8.0, 7.0, 8.0], object), f"{FAMILY} float.*use astype.int."),
    "Decimals": ([Decimal(8), Decimal(7), Decimal(8)], f"{FAMILY} Decimal. If they are integers, convert them by int"),
    "dates": (np.array(["2020-01-01"] * 3, "M8[D]"), FAMILY),
    "two dimensions": (np.ones((3, 1), int), "expected one column .* got shape"),
}


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(("name", "table"), cases(IDS, "from_columns"))
def test_ids(name, table, side):
    column, expected = IDS[name]
    columns = ROWS | {"user": ["a", "b", "c"], "item": [1, 2, 3]} | {side: column}

    def read():
        if table == "from_columns":
            return Ratings.from_columns(columns["user"], columns["item"], columns["rating"])
        return data.from_frame(TABLES[table](columns))

    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read()
        return
    ratings = read()
    ids, known = getattr(ratings, side), getattr(ratings, f"{side}_ids")
    assert known[ids].tolist() == expected
    for again in (data.from_frame(data.to_pandas(ratings)), data.from_frame(data.to_polars(ratings))):
        assert as_rows(again) == as_rows(ratings)


# The same for numbers: ratings and weights.
NUMBERS = {
    "list": ([4, 0, 1], [4, 0, 1]),
    "tuple of floats": ((4.5, 0.0, 1.0), [4.5, 0, 1]),
    "int8": (np.int8([4, 0, 1]), [4, 0, 1]),
    "float16": (np.float16([4.5, 0, 1]), [4.5, 0, 1]),
    "bool": ([True, False, True], [1, 0, 1]),
    "bool as objects": (np.array([True, False, True], object), [1, 0, 1]),
    "JAX": (jnp.array([4.5, 0, 1]), [4.5, 0, 1]),
    "Decimals": ([Decimal("4.5"), Decimal(0), Decimal("0.1")], [4.5, 0, 0.1]),
    "Decimals of polars": (pl.Series([Decimal("4.5"), Decimal(0), Decimal("0.1")]), [4.5, 0, 0.1]),
    "Decimals of pandas": (pd.Series([Decimal("4.5"), Decimal(0), Decimal("0.1")]), [4.5, 0, 0.1]),
    "Fractions": ([Fraction(9, 2), Fraction(0), Fraction(1, 3)], [4.5, 0, 1 / 3]),
    "integers as objects": (np.array([4, 0, 1], object), [4, 0, 1]),
    "a mixture": (np.array([4, 0.5, Decimal(1)], object), [4, 0.5, 1]),
    "large integers": ([10**30, 0, 1], [1e30, 0, 1]),
    "pandas Int64": (pd.Series([4, 0, 1], dtype="Int64"), [4, 0, 1]),
    "pandas Float64": (pd.Series([4.5, 0, 1], dtype="Float64"), [4.5, 0, 1]),
    # refused
    "None": ([4, None, 1], "is empty in row 1|got None at position 1. Drop such rows|got nan at position 1"),
    "None as an object": (np.array([4, None, 1], object), "is empty in row 1|got None at position 1. Drop such rows"),
    "NaN": ([4, float("nan"), 1], "is empty in row 1|got nan at position 1"),
    "a Decimal that is NaN": ([Decimal(4), Decimal("NaN"), Decimal(1)], "is empty in row 1|got nan|NaN"),
    "pandas NA": (pd.Series([4, None, 1], dtype="Int64"), "is empty in row 1|got nan at position 1"),
    "pandas bool and NA": (pd.Series([True, None, True], dtype="boolean"), "is empty in row 1|got <NA> at position 1"),
    "text": (["4", "0", "1"], "expected numbers, .* got '4' at position 0. Convert text first"),
    "text as objects": (np.array(["4", "0", "1"], object), "expected numbers, .* got '4' at position 0"),
    "text of pandas": (pd.Series(["4", "0", "1"]), "expected numbers, .* got '4' at position 0"),
    "text of polars": (pl.Series(["4", "0", "1"]), "expected numbers, .* got '4' at position 0"),
    "text among numbers": (np.array([4, "0", 1], object), "got '0' at position 1"),
    "complex": ([4j, 0, 1], "expected numbers, .*got .*(complex|4j)"),
    "durations": (np.array([4, 0, 1], "m8[s]"), "expected numbers, got timedelta64"),
    "durations as objects": (
        np.array([np.timedelta64(4, "s"), 0, 1], object),
        "expected numbers, one in every row, got np.timedelta64",
    ),
    "lists": ([[4], [0], [1]], r"expected numbers|one column of numbers"),
    "too large": ([10**400, 0, 1], "finite|too large|overflow"),
}


@pytest.mark.parametrize("role", ["rating", "weights"])
@pytest.mark.parametrize(("name", "table"), cases(NUMBERS, "from_columns", "Ratings"))
def test_numbers(name, table, role):
    column, expected = NUMBERS[name]
    columns = {"user": [0, 1, 2], "item": [0, 1, 2], "rating": [1, 2, 3], "weights": [1, 1, 1]} | {role: column}

    def read():
        three = columns["user"], columns["item"], columns["rating"]
        if table == "from_columns":
            return Ratings.from_columns(*three, weights=columns["weights"])
        if table == "Ratings":
            return Ratings(*three, 3, 3, weights=columns["weights"])
        return data.from_frame(TABLES[table](columns), weights="weights")

    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read()
        return
    ratings = read()
    got = ratings.value if role == "rating" else ratings.weights
    np.testing.assert_array_equal(got, np.float32(expected))
    for again in (data.to_pandas(ratings), data.to_polars(ratings)):
        again = data.from_frame(again, weights="weights")
        np.testing.assert_array_equal(again.value, ratings.value)
        np.testing.assert_array_equal(again.weights, ratings.weights)


@pytest.mark.parametrize("column", ["user", "item", "value", "time", "weights"])
@pytest.mark.parametrize("wrong", [5, iter([1, 2, 3])], ids=["a number", "an iterator"])
def test_values_that_are_not_columns(column, wrong):
    columns = {"user": [1, 2, 3], "item": [1, 2, 3], "value": [1, 2, 3]} | {column: wrong}
    with pytest.raises(ValueError, match=f"^{column}: expected a column .a list, an array, a series., got"):
        Ratings.from_columns(**columns)


@pytest.mark.parametrize("frame", [None, 5, [1, 2], pl.LazyFrame({"user": [1]}), np.ones((3, 3))], ids=type)
def test_values_that_are_not_frames(frame):
    with pytest.raises(ValueError, match="^frame: expected a pandas or polars frame or a dict of columns, got"):
        data.from_frame(frame)


def test_dicts_that_lack_something():
    with pytest.raises(ValueError, match=r"^frame: expected the columns .*missing: \['rating'\]"):
        data.from_frame({"user": [1], "item": [2]})
    with pytest.raises(ValueError, match="^expected columns of one length, got user: 1, item: 2"):
        data.from_frame({"user": [1], "item": [2, 3]}, value=None)
    with pytest.raises(ValueError, match="column 'when' is empty in row 1"):
        data.from_frame(
            {"user": [1, 2], "item": [2, 3], "when": np.array(["2020", "NaT"], "M8[D]")}, value=None, time="when"
        )


# Several parquet files


def parquet(folder, **files):
    for name, columns in files.items():
        pl.DataFrame(columns).write_parquet(folder / name)
    return [folder / name for name in files]


def test_parquet_files_follow_one_another(tmp_path):
    one = {"user": ["b", "a"], "item": pl.Series([9, 1], dtype=pl.Int8), "rating": [1, 2]}
    two = {"rating": [3, 4], "item": [2**40, 1], "user": ["c", "b"]}
    paths = parquet(tmp_path, one=one, two=two)
    assert as_rows(data.read_parquet(paths)) == [("b", 9, 1), ("a", 1, 2), ("c", 2**40, 3), ("b", 1, 4)]
    assert len(data.read_parquet(paths[:1])) == 2
    with pytest.raises(ValueError, match="^path: expected a file or several"):
        data.read_parquet([])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1], ["1"]),
        (pl.Series([1], dtype=pl.Int64), pl.Series([2**63], dtype=pl.UInt64)),  # their common type would be float64
        (pl.Series([1], dtype=pl.Int64), [1.0]),
    ],
    ids=["integers and text", "int64 and uint64", "integers and floats"],
)
def test_parquet_files_of_other_types(tmp_path, first, second):
    rest = {"item": [1], "rating": [1.0]}
    paths = parquet(tmp_path, one={"user": first} | rest, two={"user": second} | rest)
    with pytest.raises(
        ValueError, match=r"two: column 'user': expected one type in all files, got .* and Int64 in .*one"
    ):
        data.read_parquet(paths)


def test_errors_in_parquet_files_name_the_file(tmp_path):
    one = {"user": [1, 2], "item": [1, 2], "rating": [1.0, 2.0]}
    paths = parquet(tmp_path, one=one, two=one | {"item": [3, None]}, three={"user": [1], "item": [7]})
    with pytest.raises(ValueError, match="two: column 'item' is empty in row 1"):
        data.read_parquet(paths[:2])
    with pytest.raises(ValueError, match=r"three: expected the columns .*missing: \['rating'\]"):
        data.read_parquet([paths[0], paths[2]])
