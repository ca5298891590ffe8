"""Packed sequences against lists of each user's events, and what they refuse."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec import Ratings, data
from jaxrec.events import events_in_order


def random_events(seed, *, n_users=9, n_items=7, n=60, times=True, weights=True):
    """Events with repeated items, a user with one event, and two users without any."""
    rng = np.random.default_rng(seed)
    user = np.append(rng.integers(0, n_users - 3, n), n_users - 3)
    item = rng.integers(0, n_items, n + 1)
    time = rng.integers(0, 30, n + 1) if times else None  # with ties
    return Ratings(user, item, np.ones(n + 1), n_users, n_items, time=time, weights=rng.random(n + 1) + 1)


def lists(ratings, order):
    """user -> rows of their events, oldest first, by a loop."""
    found = {}
    for j in range(ratings.n_users):
        rows = [row for row in range(len(ratings)) if ratings.user[row] == j]
        found[j] = sorted(rows, key=lambda row: ratings.time[row]) if order == "time" else rows
    return found


def check_packed(ratings, packed, order, length):
    tables = {name: np.asarray(getattr(packed, name)) for name in ("item", "segment", "position", "user", "where")}
    seen = np.zeros(packed.item.shape, bool)
    for j, rows in lists(ratings, order).items():
        kept = rows[-length:]
        assert (int(packed.count[j]), int(packed.dropped[j])) == (len(kept), len(rows) - len(kept))
        if not kept:
            assert (int(packed.row[j]), int(packed.last[j])) == (0, 0)
            continue
        r, last = int(packed.row[j]), int(packed.last[j])
        columns = slice(last - len(kept) + 1, last + 1)
        assert tables["item"][r, columns].tolist() == ratings.item[kept].tolist()
        assert tables["position"][r, columns].tolist() == list(range(len(kept)))
        assert (tables["user"][r, columns] == j).all()
        assert tables["where"][r, columns].all()
        assert len(set(tables["segment"][r, columns])) == 1
        assert (tables["segment"][r] == tables["segment"][r, last]).sum() == len(kept)  # no other user's
        np.testing.assert_array_equal(packed.weights[r, columns], ratings.weights[kept])
        if ratings.time is None:
            assert packed.gap is None
        else:
            gaps = np.diff(ratings.time[kept], prepend=ratings.time[kept[0]])
            np.testing.assert_array_equal(packed.gap[r, columns], gaps)
        assert not seen[r, columns].any()
        seen[r, columns] = True
    assert (tables["where"] == seen).all()
    for name in ("item", "segment", "position", "user"):
        assert (tables[name][~seen] == 0).all()
    assert packed.n_dropped == int(np.asarray(packed.dropped).sum())


@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from(["time", "position"]), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_every_event_that_is_kept_is_at_its_place(seed, length, order, multiple):
    ratings = random_events(seed, times=order == "time" or seed % 2 == 0)
    packed = data.sequences(ratings, length=length, order=order, pad_to_multiple=multiple)
    assert packed.length == length
    assert packed.item.shape[0] % multiple == 0
    check_packed(ratings, packed, order, length)


def test_rows_are_full_where_segments_fit():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 51, 2000)
    user = np.repeat(np.arange(2000), counts)
    ratings = Ratings(user, np.zeros(len(user), int), np.ones(len(user)), 2000, 1)
    packed = data.sequences(ratings, length=50, order="position")
    assert packed.item.shape[0] <= 1.03 * counts.sum() / 50


def test_a_pytree_of_one_shape():
    packed = data.sequences(random_events(0), length=20)
    leaves, tree = jax.tree.flatten(packed)
    assert jax.tree.unflatten(tree, leaves).n_items == 7
    assert {leaf.shape for leaf in leaves} == {packed.item.shape, (9,)}


def test_events_by_time_keep_the_order_of_equal_times():
    ratings = Ratings([0, 0, 0, 1], [0, 1, 2, 3], np.ones(4), 2, 4, time=[5, 3, 5, 1])
    start, rows = events_in_order(ratings, "time")
    assert (start.tolist(), rows.tolist()) == ([0, 3, 4], [1, 0, 2, 3])


def test_the_splits_of_published_tables_fit():
    """Last event test, the one before it validation; by time too."""
    ratings = random_events(1)
    for order in ("time", "position"):
        rest, test = data.splits.leave_last(ratings, order=order)
        train, validation = data.splits.leave_last(rest, order=order)
        for j, rows in lists(ratings, order).items():
            if len(rows) > 2:
                assert test.item[test.user == j].tolist() == [ratings.item[rows[-1]]]
                assert validation.item[validation.user == j].tolist() == [ratings.item[rows[-2]]]
                packed = data.sequences(train, length=100, order=order)
                r, last = int(packed.row[j]), int(packed.last[j])
                assert int(packed.item[r, last]) == ratings.item[rows[-3]]
    parts = data.splits.global_time(ratings, target="last", new_users="drop", start_time=20)
    assert data.sequences(parts.train, length=8).n_items == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length: expected a whole number >= 1"),
        ({"length": 2.5}, "length: expected a whole number"),
        ({"length": 3, "pad_to_multiple": 0}, "pad_to_multiple: expected a whole number >= 1"),
        ({"length": 3, "order": "rank"}, "order: expected one of"),
        ({"length": 3, "order": "time"}, "no times"),
    ],
)
def test_bad_options(options, message, as_users_run):
    ratings = Ratings([0], [0], [1.0], 1, 1)
    with pytest.raises(ValueError, match=message):
        data.sequences(ratings, **options)


def test_no_events():
    with pytest.raises(ValueError, match="at least one event"):
        data.sequences(Ratings([], [], [], 2, 2), length=3, order="position")


@pytest.mark.parametrize(("user", "item"), [([2], [0]), ([0], [3]), ([-1], [0]), ([0], [-1])])
def test_ids_out_of_range_never_reach_a_layout(user, item):
    with pytest.raises(ValueError, match="expected"):
        data.sequences(Ratings(user, item, [1.0], 2, 3), length=3, order="position")
