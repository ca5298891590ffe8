"""Layouts: each holds every rating exactly once, with its value and weight; padding has no effect and is in range."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.counting_sort import CHUNK_ENTRIES
from jaxrec.data import dense, layouts, linked, memory, observed, rows
from jaxrec.data.bucket_plan import plan_buckets

N_USERS, N_ITEMS = 11, 7


def draw(seed, n=30, weighted=True):
    """Distinct pairs in random order; users 0 and 10 and item 3 have no ratings; some values and weights are 0."""
    rng = np.random.default_rng(seed)
    pairs = [(j, i) for j in range(1, N_USERS - 1) for i in range(N_ITEMS) if i != 3]
    user, item = np.array(pairs)[rng.permutation(len(pairs))[:n]].T
    weights = rng.integers(0, 4, size=n) / 2 if weighted else None
    return Ratings(user, item, rng.integers(-2, 6, size=n), N_USERS, N_ITEMS, weights=weights)


def host(layout):
    """Arrays for NumPy: an eager reduction in JAX would compile for every shape."""
    return jax.tree.map(np.asarray, layout)


def table(user, item, value, weights):
    """The ratings as a sorted list of (user, item, value, weight)."""
    ones = np.ones(len(value))
    columns = (user, item, value, ones if weights is None else weights)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def expected(ratings):
    return table(ratings.user, ratings.item, ratings.value, ratings.weights)


def of_columns(layout):
    where = np.asarray(layout.where)
    cut = lambda column: None if column is None else np.asarray(column)[where]
    return table(cut(layout.user), cut(layout.item), cut(layout.value), cut(layout.weights))


def of_rows(layout):
    parts = []
    for bucket in layout.buckets:
        where = bucket.where
        own, other = np.broadcast_to(bucket.row[:, None], where.shape)[where], bucket.other[where]
        weights = None if bucket.weights is None else bucket.weights[where]
        user, item = (own, other) if layout.side == "user" else (other, own)
        parts += table(user, item, bucket.value[where], weights)
    return sorted(parts)


CASES = pytest.mark.parametrize(
    "ratings",
    [
        *(draw(seed) for seed in range(4)),
        draw(9, weighted=False),
        draw(10, n=1),
        Ratings([4], [0], [0.0], N_USERS, N_ITEMS),
        Ratings([0], [0], [2.0], 1, 1),
        draw(11, n=9 * 6),
    ],
    ids=["seed0", "seed1", "seed2", "seed3", "unweighted", "one", "one, rated 0", "one by one", "full"],
)


# Dense


@CASES
def test_dense_holds_every_rating_once(ratings):
    layout = host(dense(ratings))
    assert layout.value.shape == layout.where.shape == (ratings.n_items, ratings.n_users)  # items first
    item, user = np.nonzero(layout.where)
    weights = None if layout.weights is None else layout.weights[item, user]
    assert table(user, item, layout.value[item, user], weights) == expected(ratings)
    assert not layout.value[~layout.where].any()


def test_dense_tells_a_rating_of_0_from_no_rating():
    layout = dense(Ratings([1], [0], [0.0], 2, 2))
    assert layout.where.tolist() == [[False, True], [False, False]]


def test_dense_refuses_a_pair_that_occurs_twice():
    ratings = Ratings([0, 1, 0, 0], [2, 2, 2, 2], [1, 2, 1, 4], 2, 3)
    with pytest.raises(ValueError, match=r"^expected each \(user, item\) pair once, got 2 ratings that repeat a pair"):
        dense(ratings)


@pytest.mark.parametrize("weights", [None, [1.0]])
def test_dense_refuses_what_does_not_fit_before_it_allocates(weights):
    ratings = Ratings([0], [0], [1.0], 2_000_000, 3_000_000, weights=weights)
    gib = 2e6 * 3e6 * (5 if weights is None else 9) / 2**30
    with pytest.raises(
        MemoryError, match=rf"^dense: 3000000 items x 2000000 users take {gib:.1f} GiB, twice that .* and .* free. Use"
    ):
        dense(ratings)


def test_dense_is_limited_by_the_free_memory(monkeypatch):
    ratings = draw(0, weighted=False)
    needed = 2 * N_USERS * N_ITEMS * 5
    free = lambda number: monkeypatch.setattr(layouts, "free_memory", lambda: number)
    free(needed)
    dense(ratings)
    free(needed - 1)
    with pytest.raises(MemoryError, match=r"^dense: "):
        dense(ratings)


@pytest.mark.parametrize("text", ["", "MemTotal:  1 kB\n"])
def test_without_the_kernels_figure_the_limit_is_the_total_memory(monkeypatch, text):
    monkeypatch.setattr(layouts.Path, "read_text", lambda self: text)
    assert layouts.free_memory() >= 2**30


def test_free_memory_is_read_from_the_kernel():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**26 < layouts.free_memory() <= total


def test_dtypes():
    ratings = draw(0)
    by_row = rows(ratings, "user")
    for layout in (dense(ratings), observed(ratings), linked(ratings), by_row.buckets[0]):
        assert (layout.value.dtype, layout.where.dtype, layout.weights.dtype) == (jnp.float32, bool, jnp.float32)
    links = linked(ratings)
    ids = [
        observed(ratings).user,
        links.user,
        links.item,
        links.user_start,
        links.by_item,
        links.item_start,
        links.user_by_item,
    ]
    ids += [by_row.position, by_row.buckets[0].row, by_row.buckets[0].other]
    assert {array.dtype for array in ids} == {jnp.dtype("int32")}


@CASES
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_length": 1, "bucket_growth": 1.2},
        {"min_length": 2, "bucket_growth": 3.0, "pad_to_multiple": 4},
        {"pad_to_multiple": 64},
    ],
    ids=str,
)
def test_memory_is_what_the_layouts_take(ratings, options):
    pad_to_multiple = {"pad_to_multiple": options["pad_to_multiple"]} if "pad_to_multiple" in options else {}
    layouts = {
        "dense": dense(ratings),
        "observed": observed(ratings, **pad_to_multiple),
        "linked": linked(ratings, **pad_to_multiple),
        "rows_user": rows(ratings, "user", **options),
        "rows_item": rows(ratings, "item", **options),
    }
    taken = {name: sum(array.nbytes for array in jax.tree.leaves(layout)) for name, layout in layouts.items()}
    assert memory(ratings, **options) == taken


def test_memory_of_what_could_not_be_built():
    n_users, n_items = 2_000_000, 1_000_000
    taken = memory(Ratings([0, 0, 1], [0, 1, 5], [1, 2, 3], n_users, n_items))
    assert taken["dense"] == n_users * n_items * 5
    assert taken["observed"] == 3 * (4 + 4 + 4 + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket_growth": 1}, "bucket_growth: expected"),
        ({"min_length": 0}, "min_length: expected"),
        ({"pad_to_multiple": 0}, "pad_to_multiple: expected"),
    ],
)
def test_memory_refuses_what_rows_refuses(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        memory(draw(0), **options)


@pytest.mark.parametrize("layout", [observed, linked, dense])
def test_a_layout_has_its_own_copy(layout):
    ratings = draw(1, n=64 * 16 // 32)
    own = np.array(ratings.value)
    object.__setattr__(ratings, "value", own)  # their columns are immutable otherwise
    built = layout(ratings)
    before = np.array(built.value)
    own[:] = 99
    np.testing.assert_array_equal(built.value, before)


# Observed and Linked


@CASES
@pytest.mark.parametrize("layout", [observed, linked])
@pytest.mark.parametrize("pad_to_multiple", [1, 4, 64])
def test_columns_hold_every_rating_once(ratings, layout, pad_to_multiple):
    columns = host(layout(ratings, pad_to_multiple=pad_to_multiple))
    assert of_columns(columns) == expected(ratings)
    n = len(columns.value)
    assert n % pad_to_multiple == 0
    assert n - len(ratings) < pad_to_multiple, "no more padding than needed"
    assert int(columns.where.sum()) == len(ratings)
    for ids, size in ((columns.user, ratings.n_users), (columns.item, ratings.n_items)):
        assert ids.shape == (n,)
        assert 0 <= int(ids.min()) <= int(ids.max()) < size, "padding carries valid ids"


@CASES
def test_observed_keeps_the_order(ratings):
    columns = host(observed(ratings, pad_to_multiple=8))
    np.testing.assert_array_equal(columns.user[: len(ratings)], ratings.user)
    np.testing.assert_array_equal(columns.value[: len(ratings)], ratings.value)
    assert columns.where.tolist() == [n < len(ratings) for n in range(len(columns.where))]
    assert columns.user_count is None
    assert columns.item_count is None


@CASES
@pytest.mark.parametrize("pad_to_multiple", [1, 4, 64])
def test_linked_orders(ratings, pad_to_multiple):
    links = host(linked(ratings, pad_to_multiple=pad_to_multiple))
    user, item, by_item = links.user, links.item, links.by_item
    assert (np.diff(user) >= 0).all(), "sorted by user, padding included"
    assert sorted(by_item.tolist()) == list(range(len(item))), "a permutation"
    assert (np.diff(item[by_item]) >= 0).all(), "sorted by item, padding included"
    np.testing.assert_array_equal(links.user_by_item, user[by_item])
    # group g is at start[g] : start[g + 1]; computed slowly
    for start, ids, size in (
        (links.user_start, user, ratings.n_users),
        (links.item_start, item[by_item], ratings.n_items),
    ):
        assert start.shape == (size + 1,)
        assert start.tolist() == [int((ids < group).sum()) for group in range(size + 1)]


def test_linked_is_stable():
    ratings = Ratings([1, 0, 1, 0], [1, 1, 0, 1], [1, 2, 3, 4], 2, 2)  # user 0 rated item 1 twice: 2, then 4
    assert linked(ratings).value.tolist() == [2, 4, 1, 3]


@pytest.mark.parametrize("layout", [observed, linked])
@pytest.mark.parametrize("pad_to_multiple", [0, -2])
def test_a_multiple_below_one(layout, pad_to_multiple):
    with pytest.raises(ValueError, match=r"^pad_to_multiple: expected a number >= 1, got"):
        layout(draw(0), pad_to_multiple=pad_to_multiple)


# Rows


@CASES
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize(
    "options",
    [{}, {"min_length": 1, "bucket_growth": 1.2}, {"min_length": 2, "bucket_growth": 3.0, "pad_to_multiple": 4}],
    ids=str,
)
def test_rows_hold_every_rating_once(ratings, side, options):
    layout = host(rows(ratings, side, **options))
    assert of_rows(layout) == expected(ratings)
    own, n_others = (ratings.n_users, ratings.n_items) if side == "user" else (ratings.n_items, ratings.n_users)
    assert (layout.side, layout.n_others, layout.position.shape) == (side, n_others, (own,))

    pad_to_multiple = options.get("pad_to_multiple", 1)
    rows_seen = []
    for bucket in layout.buckets:
        assert bucket.other.shape == bucket.value.shape == bucket.where.shape
        assert bucket.where.shape[0] == bucket.row.shape[0]
        assert bucket.row.shape[0] % pad_to_multiple == 0
        assert bucket.where.shape[1] >= 1
        assert 0 <= int(bucket.row.min()) <= int(bucket.row.max()) < own
        assert 0 <= int(bucket.other.min()) <= int(bucket.other.max()) < n_others
        assert not bucket.value[~bucket.where].any()
        rows_seen += bucket.row[bucket.where.any(axis=1)].tolist()
    assert len(rows_seen) == len(set(rows_seen)), "a row's ratings stand in one place"


@CASES
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("pad_to_multiple", [1, 8])
@pytest.mark.parametrize("devices", [None, 1, pytest.param(3, marks=pytest.mark.devices)])
def test_map_gives_one_result_per_row_in_row_order(ratings, side, pad_to_multiple, devices):
    devices = devices and jax.devices()[:devices]
    layout = rows(ratings, side, min_length=1, pad_to_multiple=pad_to_multiple, devices=devices)
    own, size = (ratings.user, ratings.n_users) if side == "user" else (ratings.item, ratings.n_items)
    sums = lambda b, more: {"row": b.row + more, "sum": b.value.sum(1), "count": b.where.sum(1)[:, None]}
    every = jax.jit(lambda layout, more: layout.map(lambda buckets, more: [sums(b, more) for b in buckets], more))
    got = host(every(layout, jnp.int32(0)))  # without jit each case compiles thirty programs
    assert got["row"].tolist() == list(range(size)), "rows without ratings too"
    np.testing.assert_array_equal(got["sum"], [ratings.value[own == row].sum() for row in range(size)])
    np.testing.assert_array_equal(got["count"], [[(own == row).sum()] for row in range(size)])


@CASES
@pytest.mark.devices
def test_every_device_holds_its_part_of_every_bucket(ratings):
    devices = jax.devices()[:3]
    layout = rows(ratings, "user", pad_to_multiple=2, devices=devices)
    for leaf in jax.tree.leaves(layout.buckets):
        parts = [shard.data for shard in leaf.addressable_shards]
        assert [part.devices() for part in parts] == [{device} for device in devices]
        assert {len(part) for part in parts} == {len(leaf) // 3}
        assert len(leaf) % 6 == 0
    assert layout.position.sharding.is_fully_replicated


@pytest.mark.parametrize("devices", [[], [0, 0]])
def test_no_devices_and_repeated_devices(devices):
    with pytest.raises(ValueError, match="devices: expected distinct devices, at least one"):
        rows(staircase(), "user", devices=[jax.devices()[number] for number in devices])


def staircase():
    """User j has j ratings, for j = 0 .. 60."""
    user, item = np.array([(j, i) for j in range(61) for i in range(j)]).T
    return Ratings(user, item, np.ones(len(user)), 61, 60)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        # the shortest length, then ceil(length * growth) repeatedly; the last is the longest row's
        ({"min_length": 2, "bucket_growth": 1.5}, [2, 3, 5, 8, 12, 18, 27, 41, 60]),
        ({"min_length": 10, "bucket_growth": 2}, [10, 20, 40, 60]),
        ({"min_length": 100}, [60]),
        ({}, [60]),  # one more bucket costs more than all padding
        ({"min_length": 45, "bucket_growth": 1.001}, list(range(45, 61))),
    ],
    ids=str,
)
def test_lengths_of_buckets(options, lengths):
    layout = host(rows(staircase(), "user", **options))
    assert [bucket.where.shape[1] for bucket in layout.buckets] == lengths
    for shorter, bucket in zip([-1, *lengths], layout.buckets, strict=False):
        longest = bucket.where.shape[1]
        assert sorted(bucket.row.tolist()) == list(range(shorter + 1, longest + 1)), (
            "each row in the min_length that fits"
        )


def test_by_default_lengths_divide_the_chunks_of_the_solvers():
    rng = np.random.default_rng(0)
    length = np.minimum(30_000, (20 * rng.pareto(0.8, 20_000)).astype(int))
    plan = plan_buckets(length, bucket_growth=None, min_length=8, pad_to_multiple=1)
    assert len(plan) > 10
    assert sum(longest > CHUNK_ENTRIES for _, _, longest in plan) > 0
    for members, n_lines, longest in plan:
        assert n_lines == len(members)
        assert longest == length[members].max() or CHUNK_ENTRIES % longest == 0
        assert longest > CHUNK_ENTRIES or CHUNK_ENTRIES % longest == 0
    assert sum(len(members) for members, _, _ in plan) == len(length)


def test_padding_rows_have_no_ratings():
    layout = host(rows(staircase(), "user", min_length=10, bucket_growth=2, pad_to_multiple=16))
    assert [bucket.row.shape[0] for bucket in layout.buckets] == [16, 16, 32, 32]  # of 11, 10, 20, 20
    assert [int(bucket.where.any(axis=1).sum()) for bucket in layout.buckets] == [10, 10, 20, 20]


@pytest.mark.parametrize("side", ["users", "", None, 0])
def test_a_side_that_is_neither_user_nor_item(side):
    with pytest.raises(ValueError, match=r"^side: expected one of 'user', 'item', got"):
        rows(draw(0), side)


@pytest.mark.parametrize("growth", [1, 1.0, 0.5, -2])
def test_growth_that_does_not_grow(growth):
    with pytest.raises(ValueError, match=r"^bucket_growth: expected a number > 1, or None, got"):
        rows(draw(0), "user", bucket_growth=growth)


@pytest.mark.parametrize("min_length", [0, -3])
def test_a_shortest_length_from_which_nothing_grows(min_length):
    nothing = Ratings([], [], [], 3, 2)  # with ratings, a library that does not refuse this would loop forever
    with pytest.raises(ValueError, match=rf"^min_length: expected .*, got {min_length}"):
        rows(nothing, "user", min_length=min_length)


def test_rows_with_a_multiple_below_one():
    with pytest.raises(ValueError, match=r"^pad_to_multiple: expected a number >= 1, got 0"):
        rows(draw(0), "user", pad_to_multiple=0)


@pytest.mark.parametrize("layout", [dense, observed, linked, lambda r: rows(r, "user"), lambda r: rows(r, "item")])
def test_no_ratings_at_all(layout):
    empty = layout(Ratings([], [], [], 3, 2))
    parts = getattr(empty, "buckets", (empty,))
    assert not any(bool(part.where.any()) for part in parts)
    if hasattr(empty, "buckets"):
        assert empty.map(lambda buckets: [bucket.row for bucket in buckets]).tolist() == list(
            range(3 if empty.side == "user" else 2)
        )
