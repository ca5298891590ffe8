"""Declared columns: results by hand and by scikit-learn, unknown values, errors, saving."""

import datetime
import json
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import features
from jaxrec.data.features import Category, Numeric, Tags, Text

TABLE = {
    "age": [20, 30, None, 40],
    "job": ["writer", "doctor", "writer", None],
    "genres": [["Drama"], [], ["Crime", "Drama"], None],
    "title": ["The red house", "Red river", None, "A house on the river"],
}
COLUMNS = {"age": Numeric(), "job": Category(), "genres": Tags(), "title": Text(min_count=1)}

DAY = datetime.date(2020, 12, 31)


@pytest.fixture
def encoder():
    return features.fit_encoder(TABLE, COLUMNS)


def test_by_hand(encoder):
    x = encoder(TABLE)
    assert x.dtype == np.float32
    assert encoder.names[:5] == ("age", "job=doctor", "job=writer", "genres=Crime", "genres=Drama")
    std = np.sqrt(200 / 3)
    np.testing.assert_allclose(x[:, 0], [-10 / std, 0, 0, 10 / std], rtol=1e-6)
    assert x[:, 1:3].tolist() == [[0, 1], [1, 0], [0, 1], [0, 0]]
    assert x[:, 3:5].tolist() == [[0, 1], [0, 0], [1, 1], [0, 0]]


def test_text_is_tf_idf_by_the_formula(encoder):
    assert encoder.names[5:] == ("title:house", "title:red", "title:river")
    idf = np.log((1 + 4) / (1 + 2)) + 1  # each word is in two of the four texts (None is an empty one)
    row = np.array([idf, idf, 0]) / np.hypot(idf, idf)
    np.testing.assert_allclose(encoder(TABLE)[0, 5:], row, rtol=1e-6)
    assert encoder(TABLE)[2, 5:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("frame", [pl.DataFrame, lambda table: pd.DataFrame(table).astype(object)])
def test_frames_are_tables(encoder, frame):
    table = frame({name: TABLE[name] for name in ("job", "genres", "title")})
    columns = {name: COLUMNS[name] for name in ("job", "genres", "title")}
    if not isinstance(table, pl.DataFrame):
        table = table.where(table.notna(), None)
    np.testing.assert_array_equal(features.fit_encoder(table, columns)(table), encoder(TABLE)[:, 1:])


def test_a_vector_is_read_back(encoder):
    read = encoder.read(encoder(TABLE)[1])
    assert set(read) == {"job=doctor", "title:red", "title:river"}
    with pytest.raises(ValueError, match="expected 8 features"):
        encoder.read(np.zeros(7))


def test_saved_and_read_it_is_the_same(encoder):
    again = features.Encoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    assert again == encoder
    np.testing.assert_array_equal(again(TABLE), encoder(TABLE))
    with pytest.raises(ValueError, match="age: kind: expected one of"):
        features.Encoder.from_dict({"age": {"kind": "Pickle"}})


@pytest.mark.parametrize(("kind", "row"), [(Category, "pilot"), (Tags, ["pilot"])])
def test_unknown_values_need_a_rule(kind, row):
    known = ["writer", "writer", "doctor"] if kind is Category else [["writer"], ["writer"], ["doctor"]]
    encode = lambda **rule: features.fit_encoder({"job": known}, {"job": kind(**rule)})
    with pytest.raises(
        ValueError, match=r"job: expected one of the .* fitted values.*, got 'pilot' in row 0.*unknown='zeros'"
    ):
        encode()({"job": [row]})
    assert encode(unknown="zeros")({"job": [row]}).tolist() == [[0, 0]]
    other = encode(unknown="other", min_count=2)
    assert other.names == ("job=writer", "job=(other)")
    assert other({"job": [row, known[2], known[0]]}).tolist() == [[0, 1], [0, 1], [1, 0]]
    with pytest.raises(ValueError, match="job: unknown: expected one of 'error'"):
        encode(unknown="ignore")


def test_statistics_come_from_fitting_alone():
    encoder = features.fit_encoder({"age": [0.0, 2.0]}, {"age": Numeric()})
    assert encoder({"age": [101.0]}).tolist() == [[100.0]]
    assert features.fit_encoder({"age": [7, 7]}, {"age": Numeric()})({"age": [7, 8]}).tolist() == [[0], [1]]
    assert Numeric(mean=1.0, std=2.0).fit("age", [5, 6]) == Numeric(1.0, 2.0)
    assert features.fit_encoder({"age": [None]}, {"age": Numeric()})({"age": [None]}).tolist() == [[0]]


@pytest.mark.parametrize(
    "bad",
    [
        float("inf"),
        -np.inf,
        np.float32("inf"),
        Decimal("Infinity"),
        10**400,
        "20",
        1j,
        [1],
        np.timedelta64(1, "s"),
        DAY,
    ],
)
def test_values_that_are_not_numbers_are_refused(encoder, bad):
    with pytest.raises(ValueError, match=r"age: expected finite numbers, got .* in row 1"):
        encoder({**TABLE, "age": [1, bad, 2, 3]})


def test_other_errors(encoder):
    with pytest.raises(ValueError, match=r"expected a column 'title', got a table with 'age', 'job', 'genres'\."):
        encoder({name: TABLE[name] for name in ("age", "job", "genres")})
    with pytest.raises(ValueError, match="columns of one length"):
        encoder({**TABLE, "age": [1]})
    with pytest.raises(ValueError, match="expected at least one"):
        features.fit_encoder(TABLE, {})
    with pytest.raises(ValueError, match="age: expected Numeric"):
        features.fit_encoder(TABLE, {"age": "numeric"})
    with pytest.raises(ValueError, match="expected a list of tags"):
        features.fit_encoder({"genres": ["Drama"]}, {"genres": Tags()})
    with pytest.raises(ValueError, match="title: no word occurs in 5 of the 4 texts"):
        features.fit_encoder(TABLE, {"title": Text(min_count=5)})


def test_a_table_is_brought_into_the_order_of_the_ids():
    table = {"film": [7, 3, 9], "year": [1995, 1999, 2003]}
    assert features.align(table, "film", np.array([3, 7])) == {"film": [3, 7], "year": [1999, 1995]}
    assert features.align(pl.DataFrame(table), "film", [9])["year"] == [2003]
    with pytest.raises(ValueError, match=r"film: 1 of 2 ids have no row, such as 4"):
        features.align(table, "film", [3, 4])
    with pytest.raises(ValueError, match="ids have no row, such as '3'"):
        features.align(table, "film", ["3"])
    with pytest.raises(ValueError, match=r"film: expected one row per id, got rows 0 and 1 for 3"):
        features.align({"film": [3, 3]}, "film", [3])


# Missing values are the same in every kind of column, frame and request

MISSING = [
    None, float("nan"), np.float32("nan"), np.float16("nan"), np.datetime64("NaT", "s"), np.timedelta64("NaT", "s"),
    pd.NA, pd.NaT, Decimal("NaN"), Decimal("sNaN"), np.ma.masked,
]  # fmt: skip
KINDS = {
    "Numeric": (Numeric(), [1.0, 3.0]),
    "Category": (Category(), ["b", "a"]),
    "Tags": (Tags(), [["b"], ["a", "b"]]),
    "Text": (Text(min_count=1), ["red house", "blue house"]),
}


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_missing_is_zeros_in_fitting_and_in_requests(kind, missing):
    column, known = KINDS[kind]
    fit = lambda third: features.fit_encoder({"a": [*known, third]}, {"a": column})
    assert fit(missing) == fit(None)
    again = features.Encoder.from_dict(json.loads(json.dumps(fit(missing).to_dict())))
    for encoder in (fit(missing), again):
        assert not any("nan" in name.lower() or "na" in name.lower() for name in encoder.names)
        assert encoder({"a": [missing, known[0]]}).tolist()[0] == [0] * len(encoder.names)
        np.testing.assert_array_equal(encoder({"a": [missing, *known]})[1:], encoder({"a": known}))


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("unknown", ["error", "zeros", "other"])
def test_missing_is_not_unknown_and_missing_tags_are_left_out(missing, unknown):
    column = {"job": Category(unknown=unknown), "genres": Tags(unknown=unknown)}
    table = {"job": ["a", "b", missing], "genres": [["x", missing], [missing], missing]}
    encoder = features.fit_encoder(table, column)
    other = 1 if unknown == "other" else 0
    assert len(encoder.names) == 3 + 2 * other
    assert encoder(table)[:, 0].tolist() == [1, 0, 0]
    assert encoder(table)[2].tolist() == [0] * len(encoder.names)
    assert encoder(table)[1, 2 + other :].tolist() == [0] * (1 + other)
    with pytest.raises(ValueError, match="values: expected no missing value, got one at position 1"):
        Category(values=("a", missing))


FRAMES = {
    "pandas object": pd.Series(["b", None, "a", np.nan], dtype=object),
    "pandas string": pd.Series(["b", None, "a", pd.NA], dtype="string"),
    "pandas categorical": pd.Series(["b", None, "a", None], dtype="category"),
    "pandas float": pd.Series([2.0, np.nan, 1.0, np.nan]),
    "pandas float32": pd.Series([2.0, np.nan, 1.0, np.nan], dtype="float32"),
    "pandas Float32": pd.Series([2.0, None, 1.0, None], dtype="Float32"),
    "pandas Int64": pd.Series([2, None, 1, None], dtype="Int64"),
    "pandas boolean": pd.Series([True, None, False, None], dtype="boolean"),
    "pandas bool objects": pd.Series([True, None, False, np.nan], dtype=object),
    "pandas datetime": pd.Series(pd.to_datetime(["2020-02-01", None, "2020-01-01", None])),
    "pandas datetime with a zone": pd.Series(pd.to_datetime(["2020-02-01", None, "2020-01-01", None], utc=True)),
    "polars string": pl.Series(["b", None, "a", None]),
    "polars categorical": pl.Series(["b", None, "a", None], dtype=pl.Categorical),
    "polars int": pl.Series([2, None, 1, None]),
    "polars float, null and NaN": pl.Series([2.0, None, 1.0, float("nan")]),
    "polars Float32": pl.Series([2.0, None, 1.0, float("nan")], dtype=pl.Float32),
    "polars bool": pl.Series([True, None, False, None]),
    "polars date": pl.Series([datetime.date(2020, 2, 1), None, datetime.date(2020, 1, 1), None]),
    "polars datetime": pl.Series([datetime.datetime(2020, 2, 1), None, datetime.datetime(2020, 1, 1), None]),
    "numpy float": np.array([2, np.nan, 1, np.nan]),
    "numpy float16": np.array([2, np.nan, 1, np.nan], np.float16),
    "numpy object": np.array(["b", None, "a", np.nan], object),
    "numpy datetime64": np.array(["2020-02", "NaT", "2020-01", "NaT"], "datetime64[M]"),
    "numpy masked integers": np.ma.masked_array([2, 7, 1, 8], mask=[False, True, False, True]),
    "numpy masked text": np.ma.masked_array(["b", "x", "a", "y"], mask=[False, True, False, True]),
    "numpy masked float32": np.ma.masked_array(np.float32([2, 7, 1, 8]), mask=[False, True, False, True]),
    "bfloat16": np.array([2, np.nan, 1, np.nan], jnp.bfloat16),
    "jax": jnp.array([2, jnp.nan, 1, jnp.nan]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_missing_in_every_frame_and_type(name):
    series = FRAMES[name]
    frame = {"pandas": pd.DataFrame, "polars": pl.DataFrame}.get(name.split()[0], dict)({"a": series})
    encoder = features.fit_encoder(frame, {"a": Category()})
    assert len(encoder.names) == 2
    assert encoder(frame).tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    if not any(word in name for word in ("date", "object", "string", "categorical", "text")):
        numeric = features.fit_encoder(frame, {"a": Numeric()})
        assert numeric(frame).ravel().tolist() == [1, 0, -1, 0]


def test_lists_in_frames():
    rows = [["x", None], None, [], ["y", "x"]]
    for frame in (
        pl.DataFrame({"a": rows}),
        pd.DataFrame({"a": rows}),
        pd.DataFrame({"a": [*rows[:1], np.nan, *rows[2:]]}),
    ):
        encoder = features.fit_encoder(frame, {"a": Tags()})
        assert encoder.names == ("a=x", "a=y")
        assert encoder(frame).tolist() == [[1, 0], [0, 0], [0, 0], [1, 1]]
    array = np.ma.masked_array([["x", "y"], ["x", "x"]], mask=[[False, True], [True, True]])
    assert encoder({"a": array}).tolist() == [[1, 0], [0, 0]]


def test_text_that_looks_like_a_missing_value_is_a_value():
    words = ["nan", "", "None", "NaT", "<NA>"]
    encoder = features.fit_encoder({"a": words}, {"a": Category()})
    assert encoder({"a": words}).sum(axis=1).tolist() == [1] * 5


# Equal values are one category

NOON = datetime.datetime(2020, 12, 31, 12)
ZONE = datetime.timezone(datetime.timedelta(hours=5))
SAME = {
    "1": [1, 1.0, True, np.int64(1), np.uint8(1), np.float16(1), np.float32(1), np.bool_(True), Decimal("1.00"), "1",
          Fraction(2, 2), jnp.int32(1).item(), np.str_("1")],
    "0": [0, -0.0, 0.0, False, Decimal("-0"), np.float32(-0.0), "0"],
    "0.1": [0.1, np.float32(0.1), Decimal("0.10"), Fraction(1, 10), np.float64(0.1), "0.1"],
    "1e-07": [1e-7, np.float32(1e-7), Decimal("0.0000001")],
    "100000000000000000000": [10**20, 1e20, Decimal("1E20")],
    "2020-12-31": [DAY, datetime.datetime(2020, 12, 31), pd.Timestamp("2020-12-31"), np.datetime64("2020-12-31"),
                   np.datetime64("2020-12-31T00:00:00.000000000"), np.datetime64("2020-12-31T00"), "2020-12-31"],
    "2020-12-31T12:00:00": [NOON, pd.Timestamp(NOON), np.datetime64(NOON), np.datetime64("2020-12-31T12", "h")],
    "2020-12-31T12:00:00.500000001": [pd.Timestamp("2020-12-31T12:00:00.500000001"),
                                      np.datetime64("2020-12-31T12:00:00.500000001")],
    "2020-12-31T07:00:00+00:00": [NOON.replace(tzinfo=ZONE), pd.Timestamp(NOON, tz=ZONE),
                                  pd.Timestamp("2020-12-31T07", tz="UTC")],
    "2020-01-01": [np.datetime64("2020"), np.datetime64("2020-01"), datetime.date(2020, 1, 1)],
    "1 day, 0:00:00": [datetime.timedelta(1), pd.Timedelta("1D"), np.timedelta64(24, "h")],
    "x": ["x", b"x", np.str_("x"), np.bytes_(b"x")],
}  # fmt: skip


@pytest.mark.parametrize("canonical", SAME)
@pytest.mark.parametrize("kind", [Category, Tags])
def test_equal_values_are_one_category_in_fitting_requests_and_by_hand(canonical, kind):
    values = SAME[canonical]
    row = (lambda value: value) if kind is Category else (lambda value: [value])
    other = row("~ else")
    assert features.fit_encoder({"a": [*map(row, values), other]}, {"a": kind()}).names == (
        f"a={canonical}",
        "a=~ else",
    )
    for value in values:
        fitted = features.fit_encoder({"a": [row(value), other]}, {"a": kind()})
        given = features.fit_encoder({"a": [other]}, {"a": kind(values=(value, "~ else"))})
        again = features.Encoder.from_dict(json.loads(json.dumps(fitted.to_dict())))
        for encoder in (fitted, given, again):
            assert encoder({"a": [*map(row, values), other]}).tolist() == [[1, 0]] * len(values) + [[0, 1]]
        with pytest.raises(ValueError, match="values: expected distinct values"):
            kind(values=(value, values[0]))


def test_columns_of_bools_keep_their_names_and_are_asked_with_anything():
    encoder = features.fit_encoder({"a": [True, False]}, {"a": Category()})
    assert encoder.names == ("a=False", "a=True")
    asked = [True, 1, 1.0, "1", "True", np.bool_(True), 0, "False", None]
    assert encoder({"a": asked})[:, 1].tolist() == [1] * 6 + [0] * 3
    assert encoder({"a": asked})[:, 0].tolist() == [0] * 6 + [1, 1, 0]


def test_text_is_compared_exactly():
    words = ["01", "1", "1.0", " 1", "A", "a"]
    encoder = features.fit_encoder({"a": words}, {"a": Category()})
    assert encoder({"a": words}).sum(axis=0).tolist() == [1] * 6
    assert encoder({"a": [1]}).argmax() == encoder.names.index("a=1")


def test_a_column_of_integers_that_a_missing_value_made_floats():
    before = features.fit_encoder(pd.DataFrame({"a": [1, 2, 10]}), {"a": Category()})
    after = features.fit_encoder(pd.DataFrame({"a": [1, 2, 10, None]}), {"a": Category()})
    assert before == after
    assert before(pd.DataFrame({"a": [10, None]})).tolist() == [[0, 1, 0], [0, 0, 0]]


@given(st.lists(st.one_of(st.integers(-3, 3), st.floats(allow_infinity=False), st.booleans(), st.none()), min_size=1))
@settings(deadline=None)
def test_in_any_column_two_rows_are_alike_where_their_values_are_equal(values):
    for kind, rows in ((Category(), values), (Tags(), [[value] for value in values])):
        encoder = features.fit_encoder({"a": rows}, {"a": kind})
        again = features.Encoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
        x = again({"a": rows})
        np.testing.assert_array_equal(x, encoder({"a": rows}))
        for one, a in zip(values, x, strict=True):
            assert a.sum() == (one is not None and one == one)
            for other, b in zip(values, x, strict=True):
                if one == other:
                    assert (a == b).all()
                elif one is not None and other is not None:
                    assert not (a * b).any()


def test_a_value_twice_in_a_row_counts_once():
    rows = [["a", "a", "b"], ["b", 1, True]]
    encoder = features.fit_encoder({"a": rows}, {"a": Tags(min_count=2, unknown="zeros")})
    assert encoder.names == ("a=b",)
    assert features.fit_encoder({"a": rows}, {"a": Tags()})({"a": rows}).tolist() == [[0, 1, 1], [1, 0, 1]]


# Numbers


@pytest.mark.parametrize(
    "values",
    [
        [0.1, 0.1, 0.1],
        [0.1 + 0.2, 0.3, 0.3],
        np.float32([0.1 + 0.2, 0.3, 0.1 * 3]),
        np.array([np.float32(0.1) * 3, np.nextafter(np.float32(0.1) * 3, np.float32(1))]),
        [1e300, 1e300],
        [4.1e-300] * 7,
        [0, 0.0, None],
        [7],
        [-1e6 / 3, -2e6 / 6, float("nan")],
    ],
    ids=str,
)
def test_constant_up_to_rounding_is_constant(values):
    encoder = features.fit_encoder({"a": values}, {"a": Numeric()})
    assert encoder.columns["a"].std == 1
    assert encoder({"a": [float(values[0]) + 0.01]})[0, 0] == pytest.approx(0.01, rel=1e-2) or values[0] in (1e300,)


@pytest.mark.parametrize(
    "values", [[0.1, 0.2], [1e15, 1e15 + 2], [1e-200, 2e-200], [1e200, 3e200], [1.6e9, 1.6e9 + 1], [16777217, 16777218]]
)
def test_what_is_not_constant_is_standardized_at_any_size(values):
    assert features.fit_encoder({"a": values}, {"a": Numeric()})({"a": values}).tolist() == [[-1], [1]]


@pytest.mark.parametrize(
    "values",
    [[2, 4], [2.0, Decimal("4")], [Fraction(2), np.float16(4)], np.uint8([2, 4]), [np.int8(2), 4.0]],
)
def test_numbers_of_any_type(values):
    assert features.fit_encoder({"a": values}, {"a": Numeric()}).columns["a"] == Numeric(3.0, 1.0)
    assert features.fit_encoder({"a": [True, False]}, {"a": Numeric()})({"a": [1, 0, True]}).tolist() == [
        [1],
        [-1],
        [1],
    ]
    assert features.fit_encoder({"a": [2**70, 3 * 2**70]}, {"a": Numeric()})({"a": [2**70]}).tolist() == [[-1]]


def test_features_beyond_float32_are_refused():
    encoder = features.fit_encoder({"a": [1.0, 3.0], "b": [1, 2]}, {"b": Numeric(), "a": Numeric()})
    for huge in (1e39, -1.7e308, 10**300):
        with pytest.raises(ValueError, match=r"a: expected features that fit in float32, got .* in row 1.*"):
            encoder({"a": [1, huge], "b": [1, 2]})
    spread = Numeric(mean=-1.7e308, std=1e-3)
    with pytest.raises(ValueError, match="a: expected features that fit in float32, got inf"):
        features.fit_encoder({"a": [0]}, {"a": spread})({"a": [1.7e308]})


@pytest.mark.parametrize("wrong", [{"std": 0}, {"std": -1.0}, {"std": np.nan}, {"std": np.inf}, {"mean": np.nan}])
def test_invalid_means_and_deviations_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a finite number"):
        Numeric(**wrong)
    with pytest.raises(ValueError, match="expected a finite number"):
        features.Encoder.from_dict({"age": {"kind": "Numeric", **{"mean": 0.0, "std": 1.0, **wrong}}})


def test_what_is_given_is_not_fitted_again():
    words = Text(words=("red", "blue"), idf=(1.0, 2.0))
    assert words.fit("a", ["green house", "green"]) == words
    assert Category(values=()).fit("a", ["x"]).values == ()
    assert Numeric(np.float32(1), np.int8(2)) == Numeric(1.0, 2.0)
    json.dumps(features.fit_encoder({"a": [1]}, {"a": Numeric(np.float32(1), np.int8(2))}).to_dict())
    with pytest.raises(ValueError, match="words and idf: expected one weight for every word"):
        Text(words=("red",))


def test_two_features_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"expected different names .* got 'a=\(other\)' more than once"):
        features.fit_encoder({"a": ["(other)", "b"]}, {"a": Category(unknown="other")})


@pytest.mark.parametrize("wrong", ["writer", b"writer", 3, None, np.array(3.0), {"a": 1}])
def test_a_single_value_is_not_a_column(wrong):
    encoder = features.fit_encoder({"job": ["writer", "w", "r", "i", "t", "e"]}, {"job": Category()})
    with pytest.raises(ValueError, match="job: expected a column, a list of one value per row, got"):
        encoder({"job": wrong})


def test_a_frame_with_a_name_twice():
    frame = pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"])
    with pytest.raises(ValueError, match="expected a column 'a', got a table with 2 of that name"):
        features.fit_encoder(frame, {"a": Numeric()})


def test_keys_of_a_table():
    table = pd.DataFrame({"film": [7.0, 3.0, np.nan, np.nan], "year": [1995, 1999, 2003, 2004]})
    assert features.align(table, "film", np.array([3, 7]))["year"] == [1999, 1995]
    assert features.align({"film": [None, 3], "year": [1, 2]}, "film", [3.0])["year"] == [2]
    with pytest.raises(ValueError, match=r"ids: expected raw ids, got a missing one at position 1"):
        features.align(table, "film", [3, None])
    for wide in (np.array([2.0**53]), np.float32([2**24]), [2.0**60]):
        with pytest.raises(
            ValueError, match="film: expected ids, got .*, a float, which cannot represent every integer of this size"
        ):
            features.align({"film": wide, "year": [1]}, "film", [3])
    wide = {"film": [2**53 + 1, 2**53], "year": [1, 2]}
    assert features.align(wide, "film", np.array([2**53, 2**53 + 1]))["year"] == [2, 1]
    assert features.align(pd.DataFrame(wide), "film", [2**53 + 1])["year"] == [1]
