"""Raw ids are compared exactly in every function; ids that NumPy would truncate, round or wrap are errors."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxrec import Ratings
from jaxrec.raw_ids import as_raw_ids, distinct, first_difference, known_ids, positions, union

examples = settings(deadline=None, max_examples=100)

KNOWN = Ratings.from_columns([7, 8], ["x", "y"])

# Every public function of raw ids, as a function of a column of two.
FUNCTIONS = {
    "from_columns, user": lambda ids: Ratings.from_columns(ids, [0, 1]),
    "from_columns, item": lambda ids: Ratings.from_columns([0, 1], ids),
    "from_columns, user_ids": lambda ids: Ratings.from_columns([7, 8], [0, 1], user_ids=ids),
    "from_columns, item_ids": lambda ids: Ratings.from_columns([0, 1], [7, 8], item_ids=ids),
    "Ratings, user_ids": lambda ids: Ratings([0], [0], [1.0], 2, 2, user_ids=ids),
    "Ratings, item_ids": lambda ids: Ratings([0], [0], [1.0], 2, 2, item_ids=ids),
    "user_index": lambda ids: KNOWN.user_index(ids),
    "item_index": lambda ids: KNOWN.item_index(ids),
    "reindexed, user_ids": lambda ids: KNOWN.reindexed(user_ids=ids),
}

WRONG = {
    "2.0**53": [2.0**53, 1.0],
    "float32": np.float32([7, 8]),
    "float": [7.0, 8.0],
    "NaN": [7, float("nan")],
    "NaN objects": np.array([7, np.nan], object),
    "None": [7, None],
    "None and text": ["x", None],
    "bools": [True, False],
    "a bool among integers": [7, True],
    "a mixture": [7, "8"],
    "a mixture of objects": np.array([7, "8"], object),
    "bytes and text": ["x", b"y"],
    "beyond uint64": [7, 2**64],
    "beyond int64, and below 0": [2**63, -1],
    "numpy's, beyond int64, and below 0": [np.uint64(2**63), np.int64(-1)],
    "a NUL at the end": ["x", "y\0"],
    "bytes with a NUL at the end": [b"x", b"y\0"],
    "pandas NA": pd.Series([7, None], dtype="Int64"),
    "pandas NA text": pd.Series(["x", None], dtype="string"),
    "pandas NaN": pd.Series([7, None]),
    "pandas category": pd.Series(["x", None], dtype="category"),
    "polars null": pl.Series([7, None]),
    "polars null text": pl.Series(["x", None]),
    "polars decimal": pl.Series(["7", "8"]).cast(pl.Decimal(10, 2)),
    "dates": np.array(["2020-01-01", "2020-01-02"], "M8[D]"),
    "complex": [1j, 2j],
    "masked": np.ma.array([7, 8], mask=[False, True]),
    "two dimensions": [[7], [8]],
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("ids", WRONG.values(), ids=WRONG)
def test_invalid_ids_are_refused_by_every_function(function, ids):
    name = function.partition(", ")[2] or function.partition("_")[0]
    with pytest.raises(ValueError, match=f"^{name}.*: (expected|got)"):
        FUNCTIONS[function](ids)


RIGHT = {
    "list": [8, 7],
    "uint8": np.uint8([8, 7]),
    "big endian": np.array([8, 7], ">i8"),
    "objects": np.array([8, 7], object),
    "pandas": pd.Series([8, 7], index=[3, 4]),
    "pandas Int64": pd.Series([8, 7], dtype="Int64"),
    "pandas category": pd.Series([8, 7], dtype="category"),
    "polars": pl.Series([8, 7]),
    "polars UInt16": pl.Series([8, 7], dtype=pl.UInt16),
    "NumPy's, of two types": [np.uint64(8), np.int64(7)],
    "a range": range(8, 6, -1),
    "a memoryview": memoryview(np.array([8, 7])),
}


@pytest.mark.parametrize("ids", RIGHT.values(), ids=RIGHT)
def test_integers_in_every_form(ids):
    assert KNOWN.user_index(ids).tolist() == [1, 0]
    assert Ratings.from_columns(ids, ["x", "y"], user_ids=ids).user.tolist() == [0, 1]
    assert Ratings.from_columns([7, 8], ["x", "y"], user_ids=ids).user.tolist() == [1, 0]


@pytest.mark.parametrize(
    "ids",
    [
        ["y", "x"],
        np.array(["y", "x"]),
        np.array(["y", "x"], object),
        np.array(["y", "x"], np.dtypes.StringDType()),
        pd.Series(["y", "x"]),
        pd.Series(["y", "x"], dtype="string"),
        pd.Series(["y", "x"], dtype="category"),
        pl.Series(["y", "x"]),
        pl.Series(["y", "x"], dtype=pl.Categorical),
        pl.Series(["y", "x"], dtype=pl.Enum(["x", "y"])),
    ],
    ids=lambda ids: f"{type(ids).__module__} {getattr(ids, 'dtype', '')}",
)
def test_strings_in_every_form(ids):
    assert KNOWN.item_index(ids).tolist() == [1, 0]


INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(2**53 - 3, 2**53 + 3),
    st.integers(0, 9),
    st.integers(2**63 - 2, 2**64 - 1),
)
TEXT = st.text(max_size=4).filter(lambda text: not text.endswith("\0"))


def fits(ids):
    return min(ids) >= 0 or max(ids) < 2**63


@examples
@given(st.lists(INTEGERS, min_size=1), st.lists(INTEGERS, min_size=1, unique=True))
def test_integers_are_looked_up_by_value(raw, known):
    assume(fits(raw))
    assume(fits(known))
    expected = [known.index(one) if one in known else -1 for one in raw]
    assert positions(as_raw_ids("user", raw), known_ids("user_ids", known)).tolist() == expected


@examples
@given(st.lists(TEXT, min_size=1), st.lists(TEXT, min_size=1, unique=True))
def test_strings_are_looked_up_by_value(raw, known):
    expected = [known.index(one) if one in known else -1 for one in raw]
    assert positions(as_raw_ids("user", raw), known_ids("user_ids", known)).tolist() == expected


@examples
@given(st.one_of(st.lists(INTEGERS, min_size=1).filter(fits), st.lists(TEXT, min_size=1)))
def test_every_id_round_trips(raw):
    number, known = distinct(as_raw_ids("user", raw))
    assert known[number].tolist() == raw
    assert known.tolist() == sorted(set(raw))


@examples
@given(st.lists(INTEGERS, min_size=1).filter(fits), st.lists(INTEGERS, min_size=1).filter(fits))
def test_a_union_is_exact_or_refused(a, b):
    columns = [as_raw_ids("user_ids", a), as_raw_ids("user_ids", b)]
    if not fits(a + b):
        with pytest.raises(ValueError, match="^user_ids: expected integers that all fit"):
            union("user_ids", columns)
    else:
        assert union("user_ids", columns).tolist() == sorted(set(a + b))


@examples
@given(st.lists(INTEGERS, min_size=1).filter(fits), st.data())
def test_the_first_difference(a, draw):
    b = draw.draw(st.lists(INTEGERS, min_size=len(a), max_size=len(a)).filter(fits))
    expected = next((k for k in range(len(a)) if a[k] != b[k]), None)
    assert first_difference(as_raw_ids("a", a), as_raw_ids("b", b)) == expected


def test_neighbors_that_float64_cannot_tell_apart_differ():
    a, b = np.array([2**53 + 1, 2**63 - 1]), np.array([2**53 + 1, 2**63], np.uint64)
    assert first_difference(a, b) == 1
    assert positions(b, a).tolist() == [0, -1]
    assert positions(a, b).tolist() == [0, -1]


def test_integers_and_strings_have_nothing_in_common():
    with pytest.raises(
        ValueError, match=r"^user_ids: expected ids of one kind, got integers and strings. 1 is not '1'"
    ):
        union("user_ids", [np.array([1]), np.array(["1"])])
    assert first_difference(np.array([1]), np.array(["1"])) == 0
    assert positions(np.array([1]), np.array(["1"])).tolist() == [-1]
    assert positions(np.array([b"a"]), np.array(["a"])).tolist() == [-1]
