"""Declared columns: by hand, against scikit-learn, unknown values, what is refused, saving."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest

from jaxrec.data import features
from jaxrec.data.features import Category, Numeric, Tags, Text

TABLE = {
    "age": [20, 30, None, 40],
    "job": ["writer", "doctor", "writer", None],
    "genres": [["Drama"], [], ["Crime", "Drama"], None],
    "title": ["The red house", "Red river", None, "A house on the river"],
}
COLUMNS = {"age": Numeric(), "job": Category(), "genres": Tags(), "title": Text(min_count=1)}


@pytest.fixture
def encoder():
    return features.fit(TABLE, COLUMNS)


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
    np.testing.assert_array_equal(features.fit(table, columns)(table), encoder(TABLE)[:, 1:])


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
    encode = lambda **rule: features.fit({"job": known}, {"job": kind(**rule)})
    with pytest.raises(ValueError, match=r"job: 'pilot' in row 0 was not there in fitting.*unknown='zeros'"):
        encode()({"job": [row]})
    assert encode(unknown="zeros")({"job": [row]}).tolist() == [[0, 0]]
    other = encode(unknown="other", min_count=2)
    assert other.names == ("job=writer", "job=(other)")
    assert other({"job": [row, known[2], known[0]]}).tolist() == [[0, 1], [0, 1], [1, 0]]
    with pytest.raises(ValueError, match="job: unknown: expected one of 'error'"):
        encode(unknown="ignore")


def test_statistics_come_from_fitting_alone():
    encoder = features.fit({"age": [0.0, 2.0]}, {"age": Numeric()})
    assert encoder({"age": [101.0]}).tolist() == [[100.0]]
    assert features.fit({"age": [7, 7]}, {"age": Numeric()})({"age": [7, 8]}).tolist() == [[0], [1]]
    assert Numeric(mean=1.0, std=2.0).fit("age", [5, 6]) == Numeric(1.0, 2.0)
    assert features.fit({"age": [None]}, {"age": Numeric()})({"age": [None]}).tolist() == [[0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "20"])
def test_numbers_that_are_none_are_refused(encoder, bad):
    with pytest.raises(ValueError, match=r"age: expected finite numbers, got .* in row 1"):
        encoder({**TABLE, "age": [1, bad, 2, 3]})


def test_what_else_is_refused(encoder):
    with pytest.raises(ValueError, match=r"expected a column 'title', the table has 'age', 'job', 'genres'\."):
        encoder({name: TABLE[name] for name in ("age", "job", "genres")})
    with pytest.raises(ValueError, match="columns of one length"):
        encoder({**TABLE, "age": [1]})
    with pytest.raises(ValueError, match="expected at least one"):
        features.fit(TABLE, {})
    with pytest.raises(ValueError, match="age: expected Numeric"):
        features.fit(TABLE, {"age": "numeric"})
    with pytest.raises(ValueError, match="expected a list of tags"):
        features.fit({"genres": ["Drama"]}, {"genres": Tags()})
    with pytest.raises(ValueError, match="title: no word is in 5 of the 4 texts"):
        features.fit(TABLE, {"title": Text(min_count=5)})


def test_a_table_is_brought_into_the_order_of_the_ids():
    table = {"film": [7, 3, 9], "year": [1995, 1999, 2003]}
    assert features.align(table, "film", np.array([3, 7])) == {"film": [3, 7], "year": [1999, 1995]}
    assert features.align(pl.DataFrame(table), "film", [9])["year"] == [2003]
    with pytest.raises(ValueError, match=r"film: 1 of 2 ids have no row, such as 4"):
        features.align(table, "film", [3, 4])
    with pytest.raises(ValueError, match="ids have no row, such as '3'"):
        features.align(table, "film", ["3"])
    with pytest.raises(ValueError, match=r"film: 3 has rows 0 and 1"):
        features.align({"film": [3, 3]}, "film", [3])
