"""Ratings: which columns are errors and with which messages, which rows are kept and in which order."""

import copy
import dataclasses
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest

from jaxrec import Dataset, Ratings
from jaxrec.models import init, predict
from jaxrec.ratings import align_ids, check_same_ids

RAW = {"user": ["ann", "bob", "bob"], "item": [30, 10, 30]}


def make(**columns):
    start = {"user": [0, 1, 1], "item": [0, 0, 2], "value": [5.0, 4.0, 0.0], "n_users": 3, "n_items": 3}
    return Ratings(**start | columns)


# The constructor


def test_columns_are_cast_to_what_is_promised():
    ratings = make(value=[5, 4, 0], time=[1.0, 2.0, 3.0], weights=[1, 0, 2], user_ids=["a", "b", "c"])
    dtypes = [column.dtype for column in (ratings.user, ratings.item, ratings.value, ratings.time, ratings.weights)]
    assert dtypes == [np.int32, np.int32, np.float32, np.int64, np.float32]
    assert isinstance(ratings.user_ids, np.ndarray)
    assert ratings.item_ids is None
    assert len(ratings) == 3
    assert repr(ratings) == "Ratings(3 ratings of 3 items by 3 users)"


def test_zero_is_a_rating():
    ratings = make(value=[0, 0, 0])
    assert len(ratings) == 3
    np.testing.assert_array_equal(ratings.value, [0, 0, 0])


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(
    "wrong",
    [3, -1, 2**31 + 5, 2**32 + 1, -(2**32) + 1, 2**63 - 1],
    ids=["size", "negative", "wraps below", "wraps to 1", "wraps to 1 from below", "largest"],
)
def test_an_id_out_of_range_is_named_as_it_came(side, wrong):
    with pytest.raises(ValueError, match=rf"^{side}: expected ids in \[0, 3\), got {wrong} at position 1"):
        make(**{side: np.array([0, wrong, 1])})


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_uint64_id_does_not_wrap(side):
    with pytest.raises(ValueError, match=rf"^{side}: .* got {2**64 - 1} at position 2"):
        make(**{side: np.array([0, 1, 2**64 - 1], np.uint64)})


def test_the_largest_id_is_in_range():
    np.testing.assert_array_equal(make(user=[0, 2, 2]).user, [0, 2, 2])


@pytest.mark.parametrize("ids", [[0.0, 1.0, 1.0], ["0", "1", "1"], [True, False, True]])
def test_ids_that_are_not_integers(ids):
    with pytest.raises(ValueError, match=r"^item: expected integer ids, got .* Ratings\.from_columns"):
        make(item=ids)


def test_ids_in_two_dimensions():
    with pytest.raises(ValueError, match=r"^user: expected one column of ids, got an array of shape \(3, 1\)"):
        make(user=np.zeros((3, 1), int))


@pytest.mark.parametrize("table", ["n_users", "n_items"])
@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_a_table_that_int32_cannot_address(table, size):
    with pytest.raises(ValueError, match=f"^{table}: .* got {size}"):
        make(**{table: size})


@pytest.mark.parametrize("column", ["value", "weights"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39], ids=["nan", "inf", "-inf", "overflows float32"])
def test_numbers_that_are_not_finite(column, wrong):
    with pytest.raises(ValueError, match=f"^{column}: expected finite numbers, got .* at position 2 .1 in all"):
        make(**{column: [1.0, 2.0, wrong]})


def test_a_rating_that_overflows_is_shown_as_it_came():
    with pytest.raises(ValueError, match=r"got 1e\+39 at position 0 \(2 in all\)"):
        make(value=[1e39, 1.0, -1e39])


@pytest.mark.parametrize("column", ["value", "weights", "time"])
def test_text_is_not_a_number(column):
    with pytest.raises(ValueError, match=f"^{column}: expected numbers.*, got"):
        make(**{column: ["5", "4", "0"]})


def test_values_in_two_dimensions():
    with pytest.raises(ValueError, match=r"^value: expected one column of numbers, got an array of shape \(3, 1\)"):
        make(value=np.zeros((3, 1)))


@pytest.mark.parametrize("column", ["user", "item", "value", "time", "weights"])
def test_columns_of_different_lengths(column):
    with pytest.raises(ValueError, match=rf"^expected columns of one length, got .*\b{column}: 2"):
        make(**{"time": [1, 2, 3], "weights": [1.0, 1.0, 1.0]} | {column: [0, 1]})


def test_weights():
    with pytest.raises(ValueError, match=r"^weights: expected numbers >= 0, got -0\.5"):
        make(weights=[1.0, -0.5, 2.0])
    np.testing.assert_array_equal(make(weights=[0.0, 0.5, 2.0]).weights, np.float32([0, 0.5, 2]))


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_dates_become_seconds_since_1970(unit):
    dates = np.array(["1970-01-01T00:00:07", "1970-01-02", "1969-12-31T23:59:59"], f"datetime64[{unit}]")
    ratings = make(time=dates)
    assert ratings.time.dtype == np.int64
    assert ratings.time.tolist() == [7, 24 * 60 * 60, -1]


def test_a_missing_date():
    with pytest.raises(ValueError, match=r"^time: expected a time for every rating, got NaT"):
        make(time=np.array(["2020-01-01", "NaT", "2020-01-02"], "datetime64[s]"))


def test_a_missing_time():
    with pytest.raises(ValueError, match=r"^time: expected finite numbers, got nan at position 1"):
        make(time=[1.0, np.nan, 3.0])


def test_times_beyond_float32_stay_exact():
    times = [2**31 + 5, 2**53 + 1, -(2**40)]
    assert make(time=times).time.tolist() == times


@pytest.mark.parametrize("late", [np.array([1, 2, 2**63 + 1], np.uint64), [1.0, 2.0, 1e20]], ids=["uint64", "float"])
def test_a_time_beyond_int64_is_an_error_and_does_not_wrap(late):
    with pytest.raises(ValueError, match=r"^time: "):
        make(time=late)


@pytest.mark.parametrize("side", ["user_ids", "item_ids"])
def test_one_raw_id_per_row_of_the_table(side):
    with pytest.raises(ValueError, match=rf"^{side}: expected one raw id per row of the table \(3\), got 2"):
        make(**{side: ["a", "b"]})


# take


@pytest.mark.parametrize("rows", [[2, 0], slice(None, None, -1), np.array([True, False, True])])
def test_take(rows):
    ratings = make(time=[7, 8, 9], weights=[1.0, 2.0, 3.0], user_ids=["a", "b", "c"])
    taken = ratings.take(rows)
    for name in ("user", "item", "value", "time", "weights"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(ratings, name)[rows], err_msg=name)
    assert (taken.n_users, taken.n_items) == (3, 3)
    assert taken.user_ids.tolist() == ["a", "b", "c"]


def test_take_without_times_and_weights():
    taken = make().take([1])
    assert taken.time is None
    assert taken.weights is None
    assert taken.value.tolist() == [4]


# from_columns


def test_raw_ids_in_sorted_order():
    ratings = Ratings.from_columns(**RAW, value=[5, 4, 0])
    assert ratings.user.tolist() == [0, 1, 1]
    assert ratings.item.tolist() == [1, 0, 1]
    assert ratings.user_ids.tolist() == ["ann", "bob"]
    assert ratings.item_ids.tolist() == [10, 30]
    assert (ratings.n_users, ratings.n_items) == (2, 2)


def test_without_values_every_rating_is_one():
    np.testing.assert_array_equal(Ratings.from_columns(**RAW).value, np.ones(3, np.float32))


def test_raw_ids_beyond_int32_are_fine():
    raw = [2**31 + 5, -3, 2**62, 2**62 + 1]
    ratings = Ratings.from_columns(raw, [0, 0, 0, 0])
    assert ratings.user_ids[ratings.user].tolist() == raw
    assert sorted(ratings.user.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "raw",
    [
        np.array(["b", "a"], object),
        np.array([b"b", b"a"]),
        pl.Series(["b", "a"]),
        np.array([2, 1], np.uint8),
        pl.Series([2, 1]),
    ],
    ids=["object", "bytes", "polars strings", "uint8", "polars integers"],
)
def test_raw_ids_of_many_types(raw):
    ratings = Ratings.from_columns(raw, [7, 7])
    assert ratings.user.tolist() == [1, 0]
    assert ratings.user_ids[ratings.user].tolist() == raw.to_list() if isinstance(raw, pl.Series) else raw.tolist()


@pytest.mark.parametrize(
    "raw",
    [np.array([1, "a"], object), np.array(["a", None], object), [None, "a"], [1, "a"], pl.Series(["a", None])],
    ids=["mixed object", "None object", "None list", "mixed list", "polars null"],
)
@pytest.mark.parametrize("side", ["user", "item"])
def test_raw_ids_of_mixed_types(side, raw):
    columns = {"user": [0, 1], "item": [0, 1]} | {side: raw}
    with pytest.raises(ValueError, match=f"^{side}: expected raw ids that are all integers or all strings"):
        Ratings.from_columns(**columns)


@pytest.mark.parametrize("raw", [[1.0, 2.0], pl.Series([1, None]), np.array(["2020-01-01"] * 2, "M8[D]")])
def test_raw_ids_that_are_neither_integers_nor_strings(raw):
    with pytest.raises(ValueError, match=r"^item: expected raw ids that are integers or strings, got"):
        Ratings.from_columns([0, 1], raw)


def test_empty_columns():
    with pytest.raises(ValueError, match=r"^user: expected one column with at least one raw id, got shape \(0,\)"):
        Ratings.from_columns([], [])


def test_raw_columns_of_different_lengths():
    with pytest.raises(ValueError, match=r"^expected columns of one length, got user: 2, item: 1, value: 2"):
        Ratings.from_columns([1, 2], [1])


def test_known_ids_keep_their_order():
    ratings = Ratings.from_columns(**RAW, user_ids=["zoe", "bob", "ann"], item_ids=[30, 99, 10, 20])
    assert ratings.user.tolist() == [2, 1, 1]
    assert ratings.item.tolist() == [0, 2, 0]
    assert ratings.user_ids.tolist() == ["zoe", "bob", "ann"]
    assert (ratings.n_users, ratings.n_items) == (3, 4)


@pytest.mark.parametrize("missing", ["aaa", "bobby", "zzz"], ids=["below all", "between", "above all"])
def test_an_unknown_id_is_an_error(missing):
    with pytest.raises(ValueError, match=rf"^user: .*'{missing}'.* is not among the 2 known ids \(.*\b2\b.*\)"):
        Ratings.from_columns(["bob", missing, missing], [1, 2, 3], user_ids=["bob", "carol"])


def test_an_unknown_item():
    with pytest.raises(ValueError, match=r"^item: .*30.* is not among the 1 known ids \(.*\b2\b.*\). Leave item_ids"):
        Ratings.from_columns(**RAW, item_ids=[10])


def test_known_strings_for_integer_ids_match_nothing():
    with pytest.raises(ValueError, match=r"^user: .* is not among the 2 known ids"):
        Ratings.from_columns([1, 2], [0, 1], user_ids=["1", "2"])


def test_known_ids_that_repeat():
    with pytest.raises(ValueError, match=r"^item_ids: expected distinct ids"):
        Ratings.from_columns(**RAW, item_ids=[10, 30, 10])


def test_no_known_ids():
    with pytest.raises(ValueError, match=r"^user"):
        Ratings.from_columns(**RAW, user_ids=[])


def test_known_ids_of_another_integer_type_are_compared_exactly():
    high = [2**62 + 1, 2**62 + 2, 2**62 + 3]  # float64, where NumPy's uint64 and int64 meet, cannot tell these apart
    ratings = Ratings.from_columns(np.array(high, np.uint64), [0, 0, 0], user_ids=np.array(high[::-1], np.int64))
    assert ratings.user.tolist() == [2, 1, 0]


# duplicates

TWICE = {  # three rows of (bob, 7), two of (ann, 5), one of (ann, 9)
    "user": ["bob", "ann", "bob", "ann", "ann", "bob"],
    "item": [7, 5, 7, 9, 5, 7],
    "value": [1, 2, 4, 3, 5, 0],
    "time": [10, 20, 5, 30, 40, 7],
    "weights": [1, 2, 0.5, 1, 3, 1],
}
MERGED = {  # policy: rows (user, item, value, time, weight), by hand
    "first": [("bob", 7, 1, 10, 1), ("ann", 5, 2, 20, 2), ("ann", 9, 3, 30, 1)],
    "last": [("ann", 9, 3, 30, 1), ("ann", 5, 5, 40, 3), ("bob", 7, 0, 7, 1)],
    "mean": [("bob", 7, 5 / 3, 10, 2.5), ("ann", 5, 7 / 2, 40, 5), ("ann", 9, 3, 30, 1)],
    "sum": [("bob", 7, 5, 10, 2.5), ("ann", 5, 7, 40, 5), ("ann", 9, 3, 30, 1)],
}


def as_rows(ratings):
    time = ratings.time if ratings.time is not None else [None] * len(ratings)
    weights = ratings.weights if ratings.weights is not None else [None] * len(ratings)
    users, items = ratings.user_ids[ratings.user].tolist(), ratings.item_ids[ratings.item].tolist()
    return list(zip(users, items, ratings.value, time, weights, strict=True))


@pytest.mark.parametrize("policy", MERGED)
def test_duplicates(policy):
    merged = Ratings.from_columns(**TWICE, duplicates=policy)
    assert as_rows(merged) == [(u, i, np.float32(y), t, w) for u, i, y, t, w in MERGED[policy]]
    assert merged.user_ids.tolist() == ["ann", "bob"]
    assert merged.item_ids.tolist() == [5, 7, 9]


@pytest.mark.parametrize("policy", MERGED)
def test_duplicates_without_times_and_weights(policy):
    columns = {name: TWICE[name] for name in ("user", "item", "value")}
    merged = Ratings.from_columns(**columns, duplicates=policy)
    assert as_rows(merged) == [(u, i, np.float32(y), None, None) for u, i, y, _, _ in MERGED[policy]]


@pytest.mark.parametrize("policy", [*MERGED, "error"])
def test_without_duplicates_every_policy_keeps_the_rows_as_given(policy):
    merged = Ratings.from_columns([3, 1, 2], [9, 8, 9], [1, 2, 3], time=[3, 2, 1], duplicates=policy)
    assert as_rows(merged) == [(3, 9, 1, 3, None), (1, 8, 2, 2, None), (2, 9, 3, 1, None)]


def test_duplicates_are_an_error_by_default():
    with pytest.raises(ValueError, match=r"^user ann rated item 5 more than once \(3 such rows in all\)"):
        Ratings.from_columns(**TWICE)


@pytest.mark.parametrize("policy", ["max", None, ""])
def test_an_unknown_policy(policy):
    with pytest.raises(ValueError, match=r"^duplicates: expected one of 'error', 'first', 'last', 'mean', 'sum'"):
        Ratings.from_columns(**RAW, duplicates=policy)


def test_a_sum_that_overflows():
    with pytest.raises(ValueError, match=r"^value: expected finite numbers"):
        Ratings.from_columns([1, 1], [2, 2], [3e38, 3e38], duplicates="sum")


@pytest.mark.parametrize("seed", range(3))
def test_sums_over_many_duplicates_equal_a_dictionary(seed):
    rng = np.random.default_rng(seed)
    user, item, value = rng.integers(7, size=200), rng.integers(5, size=200), rng.integers(10, size=200)
    total = {}  # in the order of the first rows
    for u, i, y in zip(user.tolist(), item.tolist(), value.tolist(), strict=True):
        total[u, i] = total.get((u, i), 0) + y
    merged = Ratings.from_columns(user, item, value, duplicates="sum")
    got = zip(merged.user_ids[merged.user].tolist(), merged.item_ids[merged.item].tolist(), merged.value, strict=True)
    assert [((u, i), y) for u, i, y in got] == list(total.items())


# Ids in a small range are looked up in a table, others are sorted


@pytest.mark.parametrize("spread", [1, 3, 10**9], ids=["dense", "near", "far"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int8])
def test_encoding_agrees_with_numpys_unique(spread, dtype):
    rng = np.random.default_rng(0)
    raw = (rng.integers(-20, 100, 500) * spread).astype(dtype)
    other = np.arange(500)
    ratings = Ratings.from_columns(raw, other)
    known, contiguous = np.unique(raw, return_inverse=True)
    np.testing.assert_array_equal(ratings.user_ids, known)
    assert ratings.user_ids.dtype == dtype
    np.testing.assert_array_equal(ratings.user, contiguous)
    shuffled = rng.permutation(known)
    by_known = Ratings.from_columns(raw, other, user_ids=shuffled)
    np.testing.assert_array_equal(shuffled[by_known.user], raw)
    if len(known) > 1:  # 10**9 times anything is 0 as an int8
        with pytest.raises(ValueError, match=f"^user: {raw[0]} is not among the"):
            Ratings.from_columns(raw, other, user_ids=known[known != raw[0]])


def test_the_ends_of_int64_are_ids():
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    ratings = Ratings.from_columns(np.array([high, low, 0]), [1, 2, 3])
    assert ratings.user_ids[ratings.user].tolist() == [high, low, 0]
    with pytest.raises(ValueError, match="is not among"):
        Ratings.from_columns(np.array([high, low]), [1, 2], user_ids=[5, 6])


@pytest.mark.parametrize("name", ["user_ids", "item_ids"])
def test_a_raw_id_twice_is_an_error(name):
    with pytest.raises(ValueError, match=f"^{name}: expected distinct ids"):
        Ratings([0], [0], [1.0], 2, 2, **{name: ["a", "a"]})


# unknown="drop"


def test_rows_of_unknown_ids_are_dropped_on_request():
    columns = {"user": ["ann", "zoe", "bob", "ann"], "item": [10, 10, 30, 99], "value": [1, 2, 3, 4]}
    known = {"user_ids": ["bob", "ann"], "item_ids": [30, 10]}
    ratings = Ratings.from_columns(**columns, time=[4, 3, 2, 1], weights=[1, 2, 3, 4], **known, unknown="drop")
    assert as_rows(ratings) == [("ann", 10, 1, 4, 1), ("bob", 30, 3, 2, 3)]
    assert ratings.user_ids.tolist() == ["bob", "ann"]
    only_users = Ratings.from_columns(**columns, user_ids=known["user_ids"], unknown="drop")
    assert only_users.item_ids.tolist() == [10, 30, 99]
    with pytest.raises(ValueError, match=r"^user: 'zoe' is not among the 2 known ids \(1 such rows\).*unknown='drop'"):
        Ratings.from_columns(**columns, **known)


def test_duplicates_among_dropped_rows_are_no_error():
    ratings = Ratings.from_columns([1, 1, 2], [7, 7, 7], user_ids=[2, 3], unknown="drop")
    assert ratings.user.tolist() == [0]


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match=r"^unknown='drop' leaves no rating"):
        Ratings.from_columns([1, 2], [7, 8], user_ids=[3], unknown="drop")
    with pytest.raises(ValueError, match=r"^unknown='drop' leaves no rating"):
        Ratings.from_columns([1], [7]).reindexed(item_ids=[8], unknown="drop")


@pytest.mark.parametrize("unknown", ["ignore", None, True])
def test_other_values_of_unknown(unknown):
    for call in (
        lambda **o: Ratings.from_columns([1], [2], user_ids=[1], **o),
        Ratings.from_columns([1], [2]).reindexed,
    ):
        with pytest.raises(ValueError, match=r"^unknown: expected one of 'error', 'drop', got"):
            call(unknown=unknown)


def test_a_string_is_not_the_integer_it_reads_as():
    with pytest.raises(
        ValueError, match=r"'1' is not among the 2 known ids .2 such rows.. Known ids are integers, these are st"
    ):
        Ratings.from_columns(["1", "2"], [0, 1], user_ids=[1, 2])


# user_index, item_index


def test_positions_of_raw_ids():
    ratings = Ratings.from_columns(["ann", "bob", "bob"], np.uint64([10, 2**63 + 1, 30]))
    assert ratings.user_index("bob") == 1
    assert isinstance(ratings.user_index("bob"), int)
    assert ratings.user_index(np.array("bob")) == ratings.user_index(np.str_("bob")) == 1
    assert ratings.item_index(np.uint64(2**63 + 1)) == 2
    assert ratings.item_index(np.array(30, np.int8)) == 1
    found = ratings.user_index(["bob", "ann", "bob"])
    assert (found.dtype, found.tolist()) == (np.int32, [1, 0, 1])
    assert ratings.item_index([]).dtype == np.int32
    np.testing.assert_array_equal(ratings.user_index(ratings.user_ids[ratings.user]), ratings.user)


@pytest.mark.parametrize("seed", range(3))
def test_positions_are_those_of_the_columns(seed):
    rng = np.random.default_rng(seed)
    raw = rng.choice(10**9, 50), rng.integers(-20, 20, 50).astype(str)
    ratings = Ratings.from_columns(*raw, duplicates="first")
    np.testing.assert_array_equal(ratings.user_ids[ratings.user_index(raw[0])], raw[0])
    np.testing.assert_array_equal(ratings.item_ids[ratings.item_index(raw[1])], raw[1])


def test_unknown_ids_are_named_and_counted():
    ratings = Ratings.from_columns(["ann", "bob"], [10, 30])
    with pytest.raises(ValueError, match=r"^user: 'zoe' is not among the 2 known ids \(2 such rows\)"):
        ratings.user_index(["ann", "zoe", "max"])
    for wrong in (11, "10", [10, 11], 2**70, 10.0, True, None, np.nan):
        with pytest.raises(ValueError, match=r"^item: "):
            ratings.item_index(wrong)


def test_without_raw_ids_positions_are_checked():
    ratings = make()
    assert ratings.user_index(2) == 2
    assert ratings.item_index(np.array([2, 0], np.uint64)).tolist() == [2, 0]
    for wrong in (3, -1, [0, 3], 2**32, np.uint64(2**63), "0", 0.0, True):
        with pytest.raises(ValueError, match=r"^user: "):
            ratings.user_index(wrong)


# Two Ratings with the same tables


def two_files():
    train = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 3], time=[1, 2, 3])
    test = Ratings.from_columns(["bob", "zoe"], [20, 30], [2, 1], weights=[1, 2])
    return train, test


def test_align_ids_is_the_union():
    train, test = two_files()
    a, b = align_ids(train, test)
    assert as_rows(a) == as_rows(train)
    assert as_rows(b) == as_rows(test)
    assert a.user_ids is b.user_ids
    assert a.user_ids.tolist() == ["ann", "bob", "zoe"]
    assert a.item_ids.tolist() == b.item_ids.tolist() == [10, 20, 30]
    check_same_ids(a, b)


def test_reindexed_is_over_the_tables_given():
    train, test = two_files()
    with pytest.raises(ValueError, match=r"^user: 'zoe' is not among the 2 known ids \(1 such rows\)"):
        test.reindexed(user_ids=train.user_ids)
    moved = test.reindexed(user_ids=train.user_ids, item_ids=[30, 20], unknown="drop")
    assert as_rows(moved) == [("bob", 20, 2, None, 1)]
    assert (moved.n_users, moved.n_items, moved.item.tolist()) == (2, 2, [1])
    assert as_rows(train.reindexed()) == as_rows(train)
    assert train.reindexed(user_ids=["zoe", "bob", "ann"]).user.tolist() == [2, 1, 1]


def test_positions_are_not_looked_up_as_raw_ids():
    with pytest.raises(ValueError, match=r"^user_ids: these ratings have no raw user ids"):
        make().reindexed(user_ids=[0, 1, 2])
    with pytest.raises(ValueError, match=r"^user_ids: expected raw ids in all of the ratings"):
        align_ids(two_files()[0], make())
    with pytest.raises(ValueError, match=r"^user_ids: expected ids of one kind, got strings and integers"):
        align_ids(two_files()[0], Ratings.from_columns([1], [2]))


SAME = {
    "the same arrays": (["a", "b", "c"], ["a", "b", "c"], None),
    "another type": (np.int8([1, 2, 3]), np.uint64([1, 2, 3]), None),
    "one without": (["a", "b", "c"], None, None),
    "none": (None, None, None),
    "the third": ([1, 2, 3], [1, 2, 4], r"got 3 in train and 4 in test at position 2"),
    "beyond float64": (
        [1, 2, 2**53],
        [1, 2, 2**53 + 1],
        rf"got {2**53} in train and {2**53 + 1} in test at position 2",
    ),
    "int64 and uint64": (np.array([1, 2, 2**53 + 1]), np.uint64([1, 2, 2**53]), r".* at position 2"),
    "text": ([1, 2, 3], ["1", "2", "3"], r"got 1 in train and '1' in test at position 0"),
    "text and longer text": (["a", "b", "c"], ["a", "b", "cc"], r"got 'c' in train and 'cc' in test at position 2"),
    "sorted otherwise": (["a", "b", "c"], ["c", "b", "a"], r"got 'a' in train and 'c' in test at position 0"),
}


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(("a", "b", "message"), SAME.values(), ids=SAME)
def test_the_same_ids(side, a, b, message):
    a, b = (make(**{f"{side}_ids": ids}) for ids in (a, b))
    if message is None:
        check_same_ids(a, b)
    else:
        with pytest.raises(
            ValueError, match=rf"^expected the same {side} ids, {message}.*test.reindexed\(user_ids=train"
        ):
            check_same_ids(a, b)
        with pytest.raises(ValueError, match=r"in seen and .* in liked.*liked.reindexed\(user_ids=seen"):
            check_same_ids(a, b, names=("seen", "liked"))


def test_tables_of_another_size():
    with pytest.raises(ValueError, match=r"^expected user tables of one size, got 3 users in train, 4 in test"):
        check_same_ids(make(), make(n_users=4))
    a, b = Ratings.from_columns([1, 2], [1, 2]), Ratings.from_columns([1, 2, 4], [1, 2, 2])
    with pytest.raises(ValueError, match=r"^expected the same users, got 2 in train and 3 in test. .*reindexed"):
        check_same_ids(a, b)
    c = Ratings.from_columns([1, 3, 4], [1, 2, 2])
    with pytest.raises(
        ValueError, match=r"^expected the same user ids, got 2 in train and 3 in test at position 1 .2 and 3"
    ):
        check_same_ids(a, c)


# times


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_fractions_of_seconds_stay(unit):
    times = np.array([1500, 200, 900]).astype(f"M8[{unit}]")
    ratings = make(time=times)
    assert (ratings.time.tolist(), ratings.time_unit) == ([1500, 200, 900], unit)
    for later in (ratings.take([2, 1]), dataclasses.replace(ratings, value=ratings.value + 1).take([2, 1])):
        assert (later.time.tolist(), later.time_unit) == ([900, 200], unit)
    assert ratings.take([0, 0]).time_unit == unit, "parts of one table share its unit"


def test_the_unit_of_numbers_is_time_unit():
    assert make(time=[1, 2, 3], time_unit="ms").time_unit == "ms"
    assert make(time=[1.5, 2, 3], time_unit="ms").time.tolist() == [1500, 2000, 3000]
    assert make(time=[1.5, 2, 3], time_unit="ms").time_unit == "us"
    ratings = Ratings.from_columns([1, 2], [3, 4], time=[10, 20], time_unit="ns")
    assert (ratings.time.tolist(), ratings.time_unit) == ([10, 20], "ns")
    with pytest.raises(ValueError, match=r"^time_unit: expected one of"):
        make(time_unit="D")


def test_merged_duplicates_have_the_latest_fraction():
    times = np.array([1500, 1700], "M8[ms]")
    merged = Ratings.from_columns([1, 1], [2, 2], [3, 4], time=times, duplicates="mean")
    assert (merged.time.tolist(), merged.time_unit) == ([1700], "ms")


# The caller's arrays are not aliased

COLUMNS = {
    "user": np.array([0, 1, 1], np.int32),
    "item": np.array([0, 0, 2], np.int32),
    "value": np.array([5, 4, 0], np.float32),
    "time": np.array([7, 8, 9], np.int64),
    "weights": np.array([1, 2, 3], np.float32),
    "user_ids": np.array([7, 8, 9]),
    "item_ids": np.array(["a", "b", "c"]),
}


def frozen_by_the_caller(array):
    array.setflags(write=False)
    return array, lambda: array.setflags(write=True)


def read_only_view(array):
    view = array.view()
    view.setflags(write=False)
    return view, lambda: None


FORMS = {
    "array": lambda array: (array, lambda: None),
    "frozen, and opened again": frozen_by_the_caller,
    "read-only view": read_only_view,
    "slice": lambda array: (array[:], lambda: None),
    "memoryview": lambda array: (memoryview(array), lambda: None),
    "bytearray": lambda array: (np.frombuffer(bytearray(array.tobytes()), array.dtype), lambda: None),
    "pandas": lambda array: (pd.Series(array, copy=False), lambda: None),
    "polars": lambda array: (pl.Series(array), lambda: None),
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("form", FORMS)
def test_later_changes_of_the_callers_arrays_change_nothing(column, form):
    if form == "memoryview" and column == "item_ids":
        pytest.skip("NumPy makes no text of a memoryview of it")
    given = COLUMNS | {column: COLUMNS[column].copy()}
    array = given[column]
    given[column], unlock = FORMS[form](array)
    made = [Ratings(**given, n_users=3, n_items=3), dataclasses.replace(make(), **{column: given[column]})]
    unlock()
    target = given[column] if form == "bytearray" else array
    target[:] = target[::-1].copy() if column == "item_ids" else 10**9
    for ratings in made:
        np.testing.assert_array_equal(getattr(ratings, column), COLUMNS[column])


@pytest.mark.parametrize(
    "again",
    [
        lambda ratings: ratings,
        copy.copy,
        copy.deepcopy,
        lambda ratings: pickle.loads(pickle.dumps(ratings)),
        lambda ratings: ratings.take([0, 1, 2]),
        lambda ratings: ratings.take(slice(None)),
        lambda ratings: dataclasses.replace(ratings, value=[1, 2, 3]),
        lambda ratings: ratings.reindexed(user_ids=[9, 8, 7]),
        lambda ratings: align_ids(ratings)[0],
        lambda ratings: Ratings.from_columns(**COLUMNS | {"user": [7, 8, 8], "item": ["a", "a", "c"]}),
    ],
)
def test_columns_are_immutable(again):
    ratings = again(Ratings(**COLUMNS, n_users=3, n_items=3))
    for name in COLUMNS:
        column = getattr(ratings, name)
        with pytest.raises(ValueError, match="read-only"):
            column[0] = column[1]
        with pytest.raises(ValueError, match="WRITEABLE"):
            column.setflags(write=True)


def test_unchanged_columns_are_not_copied_again():
    ratings = Ratings(**COLUMNS, n_users=3, n_items=3)
    replaced = dataclasses.replace(ratings, value=[1, 2, 3])
    taken = ratings.take([1])
    for name in set(COLUMNS) - {"value"}:
        assert getattr(replaced, name) is getattr(ratings, name)
    assert taken.user_ids is ratings.user_ids
    assert taken.item_ids is ratings.item_ids
    assert Ratings.from_columns([7], [1], user_ids=ratings.user_ids).user_ids is ratings.user_ids


def test_jax_arrays_are_columns():
    given = {name: jnp.asarray(COLUMNS[name]) for name in ("user", "item", "value", "weights")}
    ratings = Ratings(**given, n_users=3, n_items=3)
    for name, column in given.items():
        assert isinstance(getattr(ratings, name), np.ndarray)
        np.testing.assert_array_equal(getattr(ratings, name), COLUMNS[name])
        column.delete()
        np.testing.assert_array_equal(getattr(ratings, name), COLUMNS[name])


@pytest.mark.parametrize("column", ["user", "item", "value", "weights", "time", "user_ids", "item_ids"])
def test_masked_values_are_errors(column):
    with pytest.raises(ValueError, match=f"^{column}: .*masked"):
        make(**{column: np.ma.array([0, 1, 2], mask=[False, True, False])})


# Dataset


def dataset(**more):
    titles = np.array(["x", "y", "z"])
    return Dataset("small", make(), **{"titles": titles, "negatives": np.zeros((3, 2), np.int32)} | more)


def test_a_dataset_keeps_copies():
    arrays = {"titles": np.array(["x", "y", "z"]), "negatives": np.zeros((3, 2), np.int32)}
    mask, published = np.array([True, False, False]), {}
    published["last"] = mask
    made = dataset(**arrays, published=published)
    mask[:] = True
    published["other"] = mask
    arrays["titles"][0], arrays["negatives"][0] = "q", 10**9
    for one in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made)), dataclasses.replace(made, name="b")):
        assert list(one.published) == ["last"]
        assert one.published["last"].tolist() == [True, False, False]
        assert one.titles.tolist() == ["x", "y", "z"]
        assert one.negatives.max() == 0
        for array in (one.published["last"], one.titles, one.negatives):
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.setflags(write=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"titles": ["x"]}, r"^titles: expected 3 rows"),
        ({"titles": ["x", None, "z"]}, r"^titles: "),
        ({"users": pl.DataFrame({"age": [1]})}, r"^users: expected 3 rows"),
        ({"items": pl.DataFrame({"year": [1]})}, r"^items: expected 3 rows"),
        ({"negatives": np.zeros((2, 2), int)}, r"^negatives: expected 3 rows"),
        ({"negatives": np.full((3, 2), 3)}, r"^negatives: expected ids in \[0, 3\), got 3"),
        ({"negatives": np.full((3, 2), 2**32)}, r"^negatives: expected ids in \[0, 3\), got 4294967296"),
        ({"negatives": np.zeros((3, 2))}, r"^negatives: expected integer ids"),
    ],
)
def test_a_dataset_whose_parts_do_not_fit(more, message):
    with pytest.raises(ValueError, match=message):
        dataset(**more)


# Messages of unknown ids

TABLE = Ratings.from_columns(["ann", "bob"], [10, 30])
UNKNOWN = {  # a public function: a call with unknown ids, and the advice in its message
    "from_columns": (
        lambda raw: Ratings.from_columns(raw, range(len(raw)), user_ids=TABLE.user_ids),
        "Leave user_ids out .* or drop those rows .unknown='drop'.",
    ),
    "reindexed": (
        lambda raw: Ratings.from_columns(raw, range(len(raw))).reindexed(user_ids=TABLE.user_ids),
        r"Drop such rows by ratings.reindexed\(user_ids=..., item_ids=..., unknown='drop'\)",
    ),
    "predict": (
        lambda raw: predict(
            init(2, 2, 3, key=jax.random.key(0)),
            Ratings([*range(len(raw))], [0] * len(raw), [1] * len(raw), len(raw), 2, user_ids=raw, item_ids=[10, 30]),
            train=TABLE,
        ),
        r"Drop such rows by ratings.reindexed\(user_ids=..., item_ids=..., unknown='drop'\)",
    ),
    "user_index": (TABLE.user_index, r"The known ids are ratings.user_ids\."),
}


@pytest.mark.parametrize("function", UNKNOWN)
@pytest.mark.parametrize(
    ("raw", "first", "rows", "said"),
    [
        (["zoe", "ann"], "zoe", 1, "Of 2 ids, 1 are unknown ('zoe')."),
        (["ann", "zoe", "max"], "zoe", 2, "Of 3 ids, 2 are unknown ('zoe', 'max')."),
        (["zoe", "max", "eve"], "zoe", 3, "Of 3 ids, 3 are unknown ('zoe', 'max', 'eve')."),
        (["zoe", "ann", "max", "eve", "kim", "bob"], "zoe", 4, "Of 6 ids, 4 are unknown ('zoe', 'max', 'eve', ...)."),
    ],
)
def test_unknown_ids_are_named_and_counted_and_the_message_has_advice(function, raw, first, rows, said):
    call, advice = UNKNOWN[function]
    message = re.escape(f"user: '{first}' is not among the 2 known ids ({rows} such rows). {said}")
    with pytest.raises(ValueError, match=f"^{message} .*{advice}"):
        call(raw)


def test_an_unknown_id_in_several_rows_is_one_id():
    with pytest.raises(ValueError, match=r"\(3 such rows\)\. Of 3 ids, 2 are unknown \('zoe', 'max'\)\."):
        TABLE.user_index(["zoe", "ann", "max", "zoe", "ann"])


def test_unknown_positions_say_which_there_are():
    with pytest.raises(
        ValueError, match=r"^item: 3 .*Of 2 ids, 1 are unknown \(3\)\. Known are the positions 0 to 2\."
    ):
        make().item_index([0, 3])
