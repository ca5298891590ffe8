"""Round trips through files, frames and matrices are exact; what cannot be read is an error that says why and where."""

import os
import re
import stat
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from jaxrec import Ratings, data


def as_rows(ratings):
    raw = lambda ids, known: (ids if known is None else np.asarray(known)[ids]).tolist()
    none = [None] * len(ratings)
    columns = [raw(ratings.user, ratings.user_ids), raw(ratings.item, ratings.item_ids), ratings.value.tolist()]
    columns += [none if c is None else c.tolist() for c in (ratings.time, ratings.weights)]
    return list(zip(*columns, strict=True))


def hard(kind="text"):
    """Ratings that are hard to keep: values with all digits, 0, below 0; times, weights, ids that look like numbers."""
    value = np.array([0.1, 0.0, -1 / 3, 16777216.0, 1e-30, np.float32(2) / 3], np.float32)
    user = {"text": ["007", "b,c", 'say "x"', "007", "é", "b,c"], "number": [7, -3, 2**60, 7, 0, -3]}[kind]
    time = np.array([0, -5, 2**40, 978300760, 1, 2])
    return Ratings.from_columns(user, [3, 1, 3, 2, 2, 2], value, time=time, weights=value**2)


def same(a, b):
    assert as_rows(a) == as_rows(b)
    for column in ("value", "time", "weights", "user_ids", "item_ids"):
        assert getattr(a, column).dtype.kind == getattr(b, column).dtype.kind


NAMES = {"user": "who", "item": "what", "value": "stars", "time": "when", "weights": "sure"}


# Round trips


@pytest.mark.parametrize("kind", ["text", "number"])
@pytest.mark.parametrize("names", [{}, NAMES], ids=["default", "named"])
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "polars", "pandas"])
def test_round_trips(tmp_path, kind, names, form):
    ratings = hard(kind)
    back = names or {"time": "time", "weights": "weights"}
    match form:
        case "csv" | "tsv":
            separator = {"csv": ",", "tsv": "\t"}[form]
            data.write_csv(ratings, tmp_path / "r", separator=separator, **names)
            again = (
                data.read_csv(tmp_path / "r", separator=separator, text_ids=kind == "text", **back)
                if kind == "text"
                else data.read_csv(tmp_path / "r", separator=separator, **back)
            )
            if kind == "text":  # text_ids is for both columns
                assert again.item_ids.tolist() == ["1", "2", "3"]
                again = Ratings.from_columns(
                    again.user_ids[again.user],
                    again.item_ids[again.item].astype(int),
                    again.value,
                    time=again.time,
                    weights=again.weights,
                )
        case "parquet":
            data.write_parquet(ratings, tmp_path / "r", **names)
            again = data.read_parquet(tmp_path / "r", **back)
        case "polars":
            again = data.from_frame(data.to_polars(ratings, **names), **back)
        case "pandas":
            again = data.from_frame(data.to_pandas(ratings, **names), **back)
    same(ratings, again)


def test_positions_are_written_if_there_are_no_raw_ids():
    ratings = Ratings([2, 0], [1, 1], [5.0, 3.0], 4, 3)
    assert data.to_polars(ratings).columns == ["user", "item", "rating"]
    assert data.to_polars(ratings).rows() == [(2, 1, 5.0), (0, 1, 3.0)]


def test_known_ids_keep_those_without_ratings(tmp_path):
    ratings = Ratings([2, 0], [1, 1], [5.0, 3.0], 4, 3)
    known = {"user_ids": np.arange(4), "item_ids": np.arange(3)}
    data.write_csv(ratings, tmp_path / "r")
    data.write_parquet(ratings, tmp_path / "p")
    for again in (
        data.read_csv(tmp_path / "r", **known),
        data.read_parquet(tmp_path / "p", **known),
        data.from_frame(data.to_pandas(ratings), **known),
    ):
        assert (again.n_users, again.n_items) == (4, 3)
        np.testing.assert_array_equal(again.user, ratings.user)


def test_frames_and_parquet_take_duplicates_and_no_values(tmp_path):
    frame = pl.DataFrame({"user": [1, 1], "item": [2, 2], "rating": [3.0, 4.0]})
    frame.write_parquet(tmp_path / "p")
    for read in (
        lambda **options: data.from_frame(frame, **options),
        lambda **options: data.from_frame(pd.DataFrame(frame.to_dict(as_series=False)), **options),
        lambda **options: data.read_parquet(tmp_path / "p", **options),
    ):
        assert read(duplicates="mean").value.tolist() == [3.5]
        assert read(value=None, duplicates="first").value.tolist() == [1.0]
        with pytest.raises(ValueError, match="rated item 2 more than once"):
            read()


@pytest.mark.parametrize("frame", [pl.DataFrame, pd.DataFrame])
def test_frames_that_lack_something(frame):
    with pytest.raises(ValueError, match=r"frame: expected the columns .* missing: \['rating'\]"):
        data.from_frame(frame({"user": [1], "item": [1]}))
    with pytest.raises(ValueError, match="frame: column 'item' is empty in row 1"):
        data.from_frame(frame({"user": ["a", "b"], "item": ["x", None], "rating": [1.0, 2.0]}))


def test_pandas_dates_are_times():
    frame = pd.DataFrame({"user": [1], "item": [1], "rating": [1.0], "t": pd.to_datetime(["1970-01-02"])})
    assert data.from_frame(frame, time="t").time.tolist() == [86400]


def test_parquet_files_that_are_missing_invalid_or_lack_a_column(tmp_path):
    with pytest.raises(FileNotFoundError):
        data.read_parquet(tmp_path / "nowhere")
    (tmp_path / "p").write_text("user,item,rating")
    with pytest.raises(ValueError, match="p: "):
        data.read_parquet(tmp_path / "p")
    pl.DataFrame({"user": [1], "item": [2]}).write_parquet(tmp_path / "q")
    with pytest.raises(ValueError, match=r"q: expected the columns .* missing: \['rating'\]"):
        data.read_parquet(tmp_path / "q")


@pytest.mark.parametrize("write", [data.write_csv, data.write_parquet])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, write):
    path = tmp_path / "r"
    write(hard(), path)
    before = path.read_bytes()

    def half(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pl.DataFrame, "write_csv", half)
    monkeypatch.setattr(pl.DataFrame, "write_parquet", half)
    with pytest.raises(OSError, match="disk full"):
        write(hard("number"), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["r"]


def test_files_have_the_mode_of_any_new_file(tmp_path):
    data.write_csv(hard(), tmp_path / "r")
    (tmp_path / "plain").write_text("")
    mode = lambda name: stat.S_IMODE((tmp_path / name).stat().st_mode)
    assert mode("r") == mode("plain")


# Sparse and dense matrices


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array, sparse.csc_array, sparse.coo_array])
def test_a_stored_zero_is_a_rating(form):
    matrix = form(sparse.coo_array(([5.0, 0.0, -1.5], ([0, 2, 2], [1, 0, 1])), shape=(4, 3)))
    ratings = data.from_csr(matrix, user_ids=list("abcd"))
    assert sorted(as_rows(ratings)) == [
        ("a", 1, 5.0, None, None),
        ("c", 0, 0.0, None, None),
        ("c", 1, -1.5, None, None),
    ]
    assert (ratings.n_users, ratings.n_items, ratings.item_ids) == (4, 3, None)
    again = data.to_csr(ratings)
    assert again.nnz == 3
    np.testing.assert_array_equal(again.toarray(), matrix.toarray())


def test_sparse_matrices_that_are_refused():
    twice = sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2))
    with pytest.raises(ValueError, match="user 0 rated item 1 more than once"):
        data.from_csr(twice)
    with pytest.raises(ValueError, match="expected at least one rating"):
        data.from_csr(sparse.csr_array((2, 2)))
    with pytest.raises(ValueError, match="expected finite numbers, got nan"):
        data.from_csr(sparse.coo_array(([np.nan], ([0], [1])), shape=(2, 2)))
    with pytest.raises(ValueError, match=r"user_ids: expected one raw id per row of the table \(2\), got 1"):
        data.from_csr(sparse.coo_array(([1.0], ([0], [1])), shape=(2, 2)), user_ids=["a"])
    with pytest.raises(ValueError, match="got 1 ratings that repeat a"):
        data.to_csr(Ratings([0, 0], [1, 1], [1.0, 2.0], 2, 2))


def test_dense_matrices_round_trip():
    where = np.array([[True, False, True], [False, False, True]])
    value = np.where(where, [[1.0, 9.0, 0.0], [9.0, 9.0, 2.5]], np.nan)  # masked entries may have any value
    ratings = data.from_user_item_matrix(value, where, item_ids=list("xyz"))
    assert as_rows(ratings) == [(0, "x", 1.0, None, None), (0, "z", 0.0, None, None), (1, "z", 2.5, None, None)]
    again, mask = data.to_user_item_matrix(ratings)
    np.testing.assert_array_equal(mask, where)
    np.testing.assert_array_equal(again, np.where(where, value, 0))
    with pytest.raises(ValueError, match="got 1 ratings that repeat a"):
        data.to_user_item_matrix(Ratings([0, 0], [1, 1], [1.0, 2.0], 2, 2))


@pytest.mark.parametrize("where", [np.ones((2, 3)), np.ones((3, 2), bool), np.ones(2, bool)])
def test_invalid_masks(where):
    with pytest.raises(ValueError, match=r"expected a matrix \[n_users, n_items\] and a bool mask of its shape"):
        data.from_user_item_matrix(np.ones((2, 3)), where)


def test_a_table_without_ratings():
    with pytest.raises(ValueError, match="got none in a matrix of 2 users and 3 items"):
        data.from_user_item_matrix(np.ones((2, 3)), np.zeros((2, 3), bool))


# Csv files


@pytest.fixture
def csv(tmp_path):
    def write(text):
        path = tmp_path / "ratings.csv"
        path.write_text(text)
        return path

    return write


def test_csv(csv):
    ratings = data.read_csv(csv("rating,user,item\n4.5,ann,10\n0,bob,30\n"))
    assert as_rows(ratings) == [("ann", 10, 4.5, None, None), ("bob", 30, 0, None, None)]


def test_csv_with_every_option(csv):
    path = csv("who|what|stars|when|more\n7|b|2|50|x\n7|a|3|60|y\n7|b|4|40|z\n")
    options = {"user": "who", "item": "what", "value": "stars", "time": "when", "separator": "|"}
    assert as_rows(data.read_csv(path, **options, duplicates="mean")) == [
        (7, "b", 3, 50, None),
        (7, "a", 3, 60, None),
    ]
    assert as_rows(data.read_csv(path, **options, duplicates="last")) == [
        (7, "a", 3, 60, None),
        (7, "b", 4, 40, None),
    ]
    with pytest.raises(ValueError, match=r"^user 7 rated item b more than once"):
        data.read_csv(path, **options)


def test_csv_without_values(csv):
    ratings = data.read_csv(csv("user,item\n1,2\n3,4\n"), value=None)
    assert as_rows(ratings) == [(1, 2, 1, None, None), (3, 4, 1, None, None)]


@pytest.mark.parametrize(("cell", "seconds"), [("86400", 86400), ("1970-01-02", 86400), ("1970-01-02T00:00:05", 86405)])
def test_csv_times(csv, cell, seconds):
    ratings = data.read_csv(csv(f"user,item,rating,t\n1,2,3,{cell}\n"), time="t")
    assert ratings.time.tolist() == [seconds]


def test_csv_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        data.read_csv(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("column", ["user", "item", "value", "time"])
def test_csv_without_a_column(csv, column):
    path = csv("user,item,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(ValueError, match=r"columns \[.*'nope'.*\], got \['user', 'item', 'rating', 'timestamp'\]"):
        data.read_csv(path, **{column: "nope"})


@pytest.mark.parametrize(
    ("row", "column"), [(",2,3,4", "user"), ("1,,3,4", "item"), ("1,2,,4", "rating"), ("1,2,3,", "t")]
)
def test_csv_with_an_empty_cell(csv, row, column):
    path = csv(f"user,item,rating,t\n5,6,1,2\n7,8,1,2\n{row}\n9,9,1,2\n")
    with pytest.raises(ValueError, match=f"column '{column}' is empty in line 4"):
        data.read_csv(path, time="t")


@pytest.mark.parametrize("before", [0, 300], ids=["first", "late"])
def test_csv_with_a_rating_that_is_not_a_number(csv, before):
    rows = "".join(f"{n},1,4\n" for n in range(before))
    with pytest.raises(ValueError, match=r"number|parse"):
        data.read_csv(csv(f"user,item,rating\n{rows}999,1,good\n"))


def test_csv_with_nan(csv):
    with pytest.raises(ValueError, match=r"^value: expected finite numbers, got nan at position 1"):
        data.read_csv(csv("user,item,rating\n1,2,3\n4,5,NaN\n"))


def test_csv_whose_first_fraction_comes_late(csv):
    rows = "".join(f"{n},1,4\n" for n in range(300))
    ratings = data.read_csv(csv(f"user,item,rating\n{rows}999,1,4.5\n"))
    assert len(ratings) == 301
    assert ratings.value[-2:].tolist() == [4, 4.5]


def test_csv_whose_first_letter_comes_late(csv):
    rows = "".join(f"1,{n},4\n" for n in range(300))  # ISBNs: most are digits, some end in X
    ratings = data.read_csv(csv(f"user,item,rating\n{rows}1,034545104X,4\n"))
    assert "034545104X" in ratings.item_ids.tolist()
    assert ratings.user_ids.tolist() == [1], "users stay integers, whatever the items are"
    assert len(ratings) == 301


@pytest.mark.parametrize("text", ["", "user,item,rating\n"], ids=["nothing", "header"])
def test_csv_without_rows(csv, text):
    with pytest.raises(ValueError, match=r"ratings\.csv|at least one"):
        data.read_csv(csv(text))


def test_csv_with_ids_beyond_int64(csv):
    ratings = data.read_csv(csv(f"user,item,rating\n{2**63 + 1},1,3\n{2**63 + 2},1,4\n"))
    assert [int(raw) for raw in ratings.user_ids[ratings.user]] == [2**63 + 1, 2**63 + 2]


def test_csv_ids_as_they_are_written(csv):
    path = csv("user,item,rating\n001,1e3,5\n01,7,4\n")
    assert data.read_csv(path, text_ids=True).user_ids.tolist() == ["001", "01"]
    with pytest.raises(ValueError, match=r"more than once|not|integers or strings"):
        data.read_csv(path, item="user", user="item")


def test_csv_weights(csv):
    ratings = data.read_csv(csv("user,item,rating,sure\n1,2,3,0.5\n"), weights="sure")
    assert ratings.weights.tolist() == [0.5]


# Paths are not patterns


@pytest.mark.parametrize("name", ["g[1]", "g*", "g?", "~", "~root", "{a,b}", "http:", "s3:x", "%41", "a b"])
def test_a_path_is_not_a_pattern(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for write, read in ((data.write_csv, data.read_csv), (data.write_parquet, data.read_parquet)):
        for other in ("g1", "gg", "a", "b", "A"):
            write(Ratings.from_columns(["other"], [0]), other)
        with pytest.raises(FileNotFoundError):
            read(name)
        for path in (name, tmp_path / name):
            write(Ratings.from_columns(["right"], [1]), path)
            assert read(path).user_ids.tolist() == ["right"]
            (tmp_path / name).unlink()


# Ids that are text


@pytest.mark.parametrize(
    "ids",
    [
        ["001", "1"],
        ["-0", "0"],
        ["+5", "5"],
        ["7", "b"],
        ["1", str(2**64)],
        ["-1", str(2**63)],
        [" 7", "8"],
        ["nan", "NA"],
        ["null", "None"],
        ["true", "false"],
        ["inf", "-inf"],
        ["", "x"],
        ['"', "'"],
        ["a,b", "a;b"],
        ["a\nb", "a\r\nb"],
        ["#1", "\ufeff"],
        ["2020-01-01", "2020-01-02"],
        ["é", "e\u0301"],
    ],
    ids=str,
)
def test_ids_that_are_text_come_back_as_text(tmp_path, ids):
    for user, item in ((ids, [1, 2]), ([1, 2], ids)):
        ratings = Ratings.from_columns(user, item, [5, 4])
        data.write_csv(ratings, tmp_path / "r")
        assert as_rows(data.read_csv(tmp_path / "r")) == as_rows(ratings)


@pytest.mark.parametrize("ids", [["1", "2"], ["1.0", "2.5"], ["1e3", "7"]], ids=str)
def test_ids_that_look_like_numbers_stay_text_with_text_ids(tmp_path, ids):
    ratings = Ratings.from_columns(ids, [30, 10], [5, 4])
    data.write_csv(ratings, tmp_path / "r")
    assert as_rows(data.read_csv(tmp_path / "r", text_ids="user")) == as_rows(ratings)
    assert data.read_csv(tmp_path / "r", text_ids=True).item_ids.tolist() == ["10", "30"]
    if ids == ["1", "2"]:
        assert data.read_csv(tmp_path / "r").user_ids.tolist() == [1, 2]
        assert data.read_csv(tmp_path / "r", text_ids="item").user_ids.tolist() == [1, 2]
    else:
        with pytest.raises(
            ValueError, match="column 'user': expected ids that are integers or strings, got .*text_ids=T"
        ):
            data.read_csv(tmp_path / "r")
    with pytest.raises(ValueError, match="^text_ids: expected one of"):
        data.read_csv(tmp_path / "r", text_ids="both")


TEXT = st.text(max_size=5).filter(lambda text: not text.endswith("\0"))
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
INTEGERS = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.integers(0, 2**64 - 1)))
TICKS = st.lists(st.integers(-(2**62), 2**62), min_size=6, max_size=6)


def round_trips(ratings, folder, text_ids):
    """Yields the name of each form, and the ratings after a round trip through it."""
    columns = {"time": "time", "weights": "weights"}
    data.write_csv(ratings, folder / "c")
    data.write_parquet(ratings, folder / "p")
    yield "csv", data.read_csv(folder / "c", text_ids=text_ids, **columns)
    yield "parquet", data.read_parquet(folder / "p", **columns)
    yield "polars", data.from_frame(data.to_polars(ratings), **columns)
    yield "pandas", data.from_frame(data.to_pandas(ratings), **columns)


@settings(deadline=None, max_examples=60)
@given(
    ids=st.one_of(st.lists(TEXT, min_size=1), INTEGERS.filter(bool)),
    ticks=TICKS,
    unit=st.sampled_from(["s", "ms", "us", "ns"]),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=6, max_size=6),
)
def test_any_ratings_survive_a_round_trip(ids, ticks, unit, values):
    ids, n = ids[:6], len(ids[:6])
    times = np.array(ticks[:n])
    times = times if unit == "s" else times.astype(f"M8[{unit}]")
    weights = np.abs(values[:n])
    ratings = Ratings.from_columns(ids, range(n), values[:n], time=times, weights=weights)
    numbers = isinstance(ids[0], str) and all(NUMBER.fullmatch(one) for one in ids)
    with tempfile.TemporaryDirectory() as folder:
        for form, again in round_trips(ratings, Path(folder), "user" if numbers else False):
            assert as_rows(again) == as_rows(ratings), form
            assert again.time_unit == ratings.time_unit, form
            assert again.value.tobytes() == ratings.value.tobytes(), form


# Times


@pytest.mark.parametrize("form", ["csv", "parquet", "polars", "pandas"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_the_last_item_within_a_second(tmp_path, form, unit):
    times = np.array([900, 100, 500]).astype(f"M8[{unit}]")
    ratings = Ratings([0, 0, 0], [0, 1, 2], [1, 1, 1], 1, 3, time=times, weights=[1, 1, 1])
    again = dict(round_trips(ratings, tmp_path, False))[form]
    assert data.splits.leave_last(again)[1].item.tolist() == [0]


ZONED = [pd.Timestamp("2020-01-01 00:30", tz="Europe/Berlin"), pd.Timestamp("2020-01-01 00:00", tz="UTC")]


@pytest.mark.parametrize(
    "times",
    [
        pd.Series(pd.to_datetime(ZONED, utc=True)).dt.tz_convert("Asia/Tokyo"),
        pd.Series(ZONED, dtype=object),
        pl.Series([stamp.tz_convert("UTC") for stamp in ZONED]).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([stamp.tz_convert("UTC") for stamp in ZONED])
        .dt.convert_time_zone("Asia/Tokyo")
        .dt.cast_time_unit("ns"),
        pl.Series(["2020-01-01T00:30:00+01:00", "2020-01-01T00:00:00Z"]),
    ],
    ids=["pandas", "pandas objects", "polars", "polars ns", "polars text"],
)
def test_time_zones_of_frames(tmp_path, times):
    columns = {"user": [1, 1], "item": [1, 2], "rating": [1.0, 2.0], "t": times}
    frame = (pd.DataFrame if isinstance(times, pd.Series) else pl.DataFrame)(columns)
    expected = [1_577_836_800 - 1800, 1_577_836_800]
    assert data.from_frame(frame, time="t").time.tolist() == expected
    if isinstance(frame, pl.DataFrame):
        frame.write_parquet(tmp_path / "p")
        assert data.read_parquet(tmp_path / "p", time="t").time.tolist() == expected


def test_polars_dates_are_times():
    frame = pl.DataFrame({"user": [1], "item": [1], "rating": [1.0], "t": pl.Series(["1970-01-02"]).str.to_date()})
    assert data.from_frame(frame, time="t").time.tolist() == [86400]


@pytest.mark.parametrize(
    ("cells", "ticks", "unit"),
    [
        (["2020-01-01T00:30:00+01:00", "2020-01-01T00:00:00Z"], [1577835000, 1577836800], "s"),
        (["2020-01-01 00:00:00.25", "2020-01-01 00:00:00"], [1577836800250, 1577836800000], "ms"),
        (["1577836800.25", "1577836800"], [1577836800250, 1577836800000], "ms"),
        (["1577836800.123456789", "-0.5"], [1577836800123456789, -500000000], "ns"),
        (["1577836800.0", "5"], [1577836800, 5], "s"),
        (["1.5778368e9", "5"], [1577836800, 5], "s"),
        (["9007199254740993", "-5"], [9007199254740993, -5], "s"),
    ],
)
def test_csv_times_of_many_forms(csv, cells, ticks, unit):
    path = csv("user,item,rating,t\n" + "".join(f"1,{k},1,{cell}\n" for k, cell in enumerate(cells)))
    ratings = data.read_csv(path, time="t")
    assert (ratings.time.tolist(), ratings.time_unit) == (ticks, unit)


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        (["12/31/2019", "2020-01-01"], "12/31/2019"),
        (["2020-01-01", "yesterday"], "yesterday"),
        (["01-02-2020", "01-02-2020"], "01-02-2020"),
        (["1577836800", "soon"], "1577836800"),
        (["2020-01-01", "1577836800"], "1577836800"),
    ],
)
def test_csv_times_of_forms_that_are_not_recognized(csv, cells, wrong):
    path = csv("user,item,rating,t\n" + "".join(f"1,{k},1,{cell}\n" for k, cell in enumerate(cells)))
    with pytest.raises(ValueError, match=rf"ratings.csv: column 't': .* got '{wrong}' at position .*to_datetime"):
        data.read_csv(path, time="t")


@pytest.mark.parametrize("frame", [pl.DataFrame, pd.DataFrame])
def test_frame_times_that_are_refused_name_their_column(frame):
    for times in (["12/31/2019"], np.float32([978_300_760])):
        with pytest.raises(ValueError, match=r"^frame: column 't': "):
            data.from_frame(frame({"user": [1], "item": [1], "rating": [1.0], "t": times}), time="t")


def test_milliseconds_as_integers(csv):
    path = csv("user,item,rating,t\n1,2,3,1577836800250\n")
    ratings = data.read_csv(path, time="t", time_unit="ms")
    assert (ratings.time.tolist(), ratings.time_unit) == ([1577836800250], "ms")
    assert data.from_frame(pl.read_csv(path), time="t", time_unit="ms").time_unit == "ms"


# Known ids


def test_every_reader_drops_unknown_ids_on_request(tmp_path):
    ratings = Ratings.from_columns(["ann", "zoe"], [1, 2], [5, 4])
    known = {"user_ids": ["bob", "ann"], "item_ids": [2, 1]}
    data.write_csv(ratings, tmp_path / "c")
    data.write_parquet(ratings, tmp_path / "p")
    for read in (
        lambda **o: data.read_csv(tmp_path / "c", **o),
        lambda **o: data.read_parquet(tmp_path / "p", **o),
        lambda **o: data.from_frame(data.to_pandas(ratings), **o),
        lambda **o: data.from_frame(data.to_polars(ratings), **o),
    ):
        assert as_rows(read(**known, unknown="drop")) == [("ann", 1, 5, None, None)]
        with pytest.raises(ValueError, match="'zoe' is not among the 2 known ids"):
            read(**known)


# Repeated names and unusual types


def test_two_columns_of_one_name(csv):
    with pytest.raises(ValueError, match="expected different names for all columns"):
        data.to_polars(hard(), user="id", item="id")
    with pytest.raises(ValueError, match=r"repeated: \['user'\]"):
        data.read_csv(csv("user,user,item,rating\n1,2,3,4\n"))
    frame = pd.DataFrame([[1, 2, 3, 4.0]], columns=["user", "user", "item", "rating"])
    with pytest.raises(ValueError, match=r"repeated: \['user'\]"):
        data.from_frame(frame)
    with pytest.raises(ValueError, match="a different column for each role"):
        data.read_csv(csv("user,item,rating\n1,2,3\n"), item="user")


@pytest.mark.parametrize("dtype", [pl.Int128, pl.Int64, pl.UInt64, pl.Int8])
def test_polars_integers_of_every_width(dtype):
    frame = pl.DataFrame({"user": pl.Series([3, 1], dtype=dtype), "item": [1, 2], "rating": [1.0, 2.0]})
    assert data.from_frame(frame).user_ids.tolist() == [1, 3]


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["b", "a"]), pl.String])
def test_polars_text_of_every_kind(dtype):
    frame = pl.DataFrame({"user": pl.Series(["b", "a"], dtype=dtype), "item": [1, 2], "rating": [1.0, 2.0]})
    assert data.from_frame(frame).user_ids.tolist() == ["a", "b"]


def test_invalid_matrices():
    with pytest.raises(ValueError, match="expected a SciPy sparse matrix"):
        data.from_csr(np.ones((2, 2)))
    with pytest.raises(ValueError, match="expected a SciPy sparse matrix"):
        data.from_csr(sparse.coo_array(np.ones(3)))
    broken = sparse.csr_array(np.ones((2, 2)))
    broken.indptr[1] = 10**6
    with pytest.raises(ValueError, match=r"index|indptr|indices"):
        data.from_csr(broken)


def test_a_matrix_wider_than_int32():
    wide = sparse.coo_array(([1.0], ([0], [2**31 + 5])), shape=(1, 2**32))
    with pytest.raises(ValueError, match=r"^n_items: expected between 1 and 2147483647 rows"):
        data.from_csr(wide)
