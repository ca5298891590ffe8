"""Own ratings in and out: what goes out comes back bit for bit, and what cannot be read says why and where."""

import os
import stat

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse

from jaxrec import Ratings, data


def as_rows(ratings):
    raw = lambda ids, known: (ids if known is None else np.asarray(known)[ids]).tolist()
    none = [None] * len(ratings)
    columns = [raw(ratings.user, ratings.user_ids), raw(ratings.item, ratings.item_ids), ratings.value.tolist()]
    columns += [none if c is None else c.tolist() for c in (ratings.time, ratings.weights)]
    return list(zip(*columns, strict=True))


def hard(kind="text"):
    """Values that need every digit, a 0, a negative one; times and weights; ids that look like numbers, or are."""
    value = np.array([0.1, 0.0, -1 / 3, 16777216.0, 1e-30, np.float32(2) / 3], np.float32)
    user = {"text": ["007", "b,c", 'say "x"', "007", "é", "b,c"], "number": [7, -3, 2**60, 7, 0, -3]}[kind]
    time = np.array([0, -5, 2**40, 978300760, 1, 2])
    return Ratings.from_columns(user, [3, 1, 3, 2, 2, 2], value, time=time, weights=value**2)


def same(a, b):
    assert as_rows(a) == as_rows(b)
    for column in ("value", "time", "weights", "user_ids", "item_ids"):
        assert getattr(a, column).dtype.kind == getattr(b, column).dtype.kind


NAMES = {"user": "who", "item": "what", "value": "stars", "time": "when", "weights": "sure"}


# there and back


@pytest.mark.parametrize("kind", ["text", "number"])
@pytest.mark.parametrize("names", [{}, NAMES], ids=["default", "named"])
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "polars", "pandas"])
def test_there_and_back(tmp_path, kind, names, form):
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


def test_contiguous_ids_go_out_where_there_are_no_raw_ones():
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
    with pytest.raises(ValueError, match=r"frame: expected the columns .* not there: \['rating'\]"):
        data.from_frame(frame({"user": [1], "item": [1]}))
    with pytest.raises(ValueError, match="frame: column 'item' is empty in row 1"):
        data.from_frame(frame({"user": ["a", "b"], "item": ["x", None], "rating": [1.0, 2.0]}))


def test_pandas_dates_are_times():
    frame = pd.DataFrame({"user": [1], "item": [1], "rating": [1.0], "t": pd.to_datetime(["1970-01-02"])})
    assert data.from_frame(frame, time="t").time.tolist() == [86400]


def test_parquet_that_is_none_or_lacks_a_column(tmp_path):
    with pytest.raises(FileNotFoundError):
        data.read_parquet(tmp_path / "nowhere")
    (tmp_path / "p").write_text("user,item,rating")
    with pytest.raises(ValueError, match="p: "):
        data.read_parquet(tmp_path / "p")
    pl.DataFrame({"user": [1], "item": [2]}).write_parquet(tmp_path / "q")
    with pytest.raises(ValueError, match=r"q: expected the columns .* not there: \['rating'\]"):
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


# sparse and dense matrices


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
    with pytest.raises(ValueError, match="holds no rating"):
        data.from_csr(sparse.csr_array((2, 2)))
    with pytest.raises(ValueError, match="expected finite numbers, got nan"):
        data.from_csr(sparse.coo_array(([np.nan], ([0], [1])), shape=(2, 2)))
    with pytest.raises(ValueError, match=r"user_ids: expected one raw id per row of the table \(2\), got 1"):
        data.from_csr(sparse.coo_array(([1.0], ([0], [1])), shape=(2, 2)), user_ids=["a"])
    with pytest.raises(ValueError, match="1 ratings repeat a"):
        data.to_csr(Ratings([0, 0], [1, 1], [1.0, 2.0], 2, 2))


def test_dense_tables_there_and_back():
    where = np.array([[True, False, True], [False, False, True]])
    value = np.where(where, [[1.0, 9.0, 0.0], [9.0, 9.0, 2.5]], np.nan)  # what the mask hides may be anything
    ratings = data.from_dense(value, where, item_ids=list("xyz"))
    assert as_rows(ratings) == [(0, "x", 1.0, None, None), (0, "z", 0.0, None, None), (1, "z", 2.5, None, None)]
    again, mask = data.to_dense(ratings)
    np.testing.assert_array_equal(mask, where)
    np.testing.assert_array_equal(again, np.where(where, value, 0))
    with pytest.raises(ValueError, match="1 ratings repeat a"):
        data.to_dense(Ratings([0, 0], [1, 1], [1.0, 2.0], 2, 2))


@pytest.mark.parametrize("where", [np.ones((2, 3)), np.ones((3, 2), bool), np.ones(2, bool)])
def test_a_mask_that_is_none(where):
    with pytest.raises(ValueError, match=r"expected a table \[n_users, n_items\] and a bool mask of its shape"):
        data.from_dense(np.ones((2, 3)), where)


def test_a_table_without_ratings():
    with pytest.raises(ValueError, match="2 users and 3 items holds no rating"):
        data.from_dense(np.ones((2, 3)), np.zeros((2, 3), bool))


# csv


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
def test_csv_with_a_rating_that_is_no_number(csv, before):
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
