"""Audits of splits equal slow loops over dictionaries; a planted leak, duplicate and near-duplicate are each found."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from jaxrec import Ratings
from jaxrec.data import splits
from jaxrec.evaluation import _near_duplicates, audit
from jaxrec.evaluation._drift import mean_deviation


def draw(seed, n=70, n_users=9, n_items=12, raw=False):
    """Random ratings with repeated pairs and equal times; the last user and the last item have none."""
    rng = np.random.default_rng(seed)
    item = np.minimum(rng.geometric(0.2, n) - 1, n_items - 2)
    ids = {"user_ids": [f"u{j}" for j in range(n_users)], "item_ids": np.arange(n_items) * 10 + 7} if raw else {}
    value = rng.integers(1, 6, n) / 2
    user, time = rng.integers(n_users - 1, size=n), rng.integers(30, size=n)
    return Ratings(user, item, value, n_users, n_items, time=time, **ids)


def parts(seed, **options):
    return splits.random(draw(seed, **options), test_fraction=0.3, rng=seed)


def loops(train, test, least_cosine, min_ratings):
    """Every attribute by the definitions, over rows as tuples (user, item, value, time)."""
    columns = [[getattr(part, name).tolist() for name in ("user", "item", "value", "time")] for part in (train, test)]
    a, b = rows = [list(zip(*part, strict=True)) for part in columns]
    pairs = [[(j, i) for j, i, *_ in part] for part in rows]
    users, items = ([{row[side] for row in part} for part in rows] for side in (0, 1))
    earlier = lambda row, mine: any(row[3] < t and (row[0] == j) == mine for j, _, _, t in a)
    before_others = [row for row in b if earlier(row, False)]
    fans = {i: {j for j, item in pairs[0] + pairs[1] if item == i} for i in items[0] | items[1]}
    cosine = {
        (i, k): len(fans[i] & fans[k]) / math.sqrt(len(fans[i]) * len(fans[k]))
        for i, k in itertools.combinations(sorted(fans), 2)
        if min(len(fans[i]), len(fans[k])) >= min_ratings
    }
    near = sorted((-c, *pair) for pair, c in cosine.items() if c >= least_cosine)
    out = {
        "train_ratings": len(a),
        "test_ratings": len(b),
        "train_users": len(users[0]),
        "test_users": len(users[1]),
        "train_items": len(items[0]),
        "test_items": len(items[1]),
        "train_repeats": sum(pair in pairs[0][:n] for n, pair in enumerate(pairs[0])),
        "test_repeats": sum(pair in pairs[1][:n] for n, pair in enumerate(pairs[1])),
        "pairs_in_both": len([pair for pair in set(pairs[1]) if pair in pairs[0]]),
        "unseen_users": len(users[1] - users[0]),
        "unseen_users_share": len(users[1] - users[0]) / len(users[1]),
        "unseen_items": len(items[1] - items[0]),
        "unseen_items_share": len(items[1] - items[0]) / len(items[1]),
        "unseen_ratings_share": sum(j not in users[0] or i not in items[0] for j, i in pairs[1]) / len(b),
        "time_unit": "s",
        "train_times": (min(row[3] for row in a), max(row[3] for row in a)),
        "test_times": (min(row[3] for row in b), max(row[3] for row in b)),
        "ratings_before_own_train": sum(earlier(row, True) for row in b) / len(b),
        "ratings_before_others_train": len(before_others) / len(b),
        "users_before_others_train": len({row[0] for row in before_others}) / len(users[1]),
        "near_duplicates": len(near),
        "near_duplicate_examples": tuple((i, k, -c) for c, i, k in near[:5]),
        "near_duplicate_cosine": least_cosine,
        "min_ratings": min_ratings,
        "train_mean": sum(row[2] for row in a) / len(a),
        "test_mean": sum(row[2] for row in b) / len(b),
        "rating_ks": slow_ks([row[2] for row in a], [row[2] for row in b]),
    }
    for side, name, ks in ((0, "user", "user_activity_ks"), (1, "item", "item_popularity_ks")):
        counts = [Counter(row[side] for row in part) for part in rows]
        total = counts[0] + counts[1]
        out[f"{name}_drift"] = sum(abs(counts[0][i] / len(a) - counts[1][i] / len(b)) for i in total) / 2
        out[f"{name}_drift_if_random"] = sum(
            slow_deviation(c, len(b), len(a) + len(b)) * (1 / len(a) + 1 / len(b)) / 2 for c in total.values()
        )
        out[ks] = slow_ks(*([total[row[side]] for row in part] for part in rows))
    return out


def slow_ks(a, b):
    return max(abs(sum(x <= y for x in a) / len(a) - sum(x <= y for x in b) / len(b)) for y in {*a, *b})


def slow_deviation(count, m, total):
    """E|X - E X| of a hypergeometric number by its definition."""
    chance = lambda x: math.comb(count, x) * math.comb(total - count, m - x) / math.comb(total, m)
    return sum(abs(x - count * m / total) * chance(x) for x in range(max(0, m + count - total), min(count, m) + 1))


def assert_is(found, expected):
    assert {field.name for field in dataclasses.fields(found)} == set(expected)
    for name, value in expected.items():
        tolerant = pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
        assert getattr(found, name) == tolerant, name


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("least_cosine", "min_ratings"), [(0.9, 1), (0.6, 2), (0.3, 4), (1.0, 1)])
def test_every_number_equals_that_of_loops(seed, least_cosine, min_ratings):
    train, test = parts(seed)
    found = audit(train, test, near_duplicate_cosine=least_cosine, min_ratings=min_ratings)
    assert_is(found, loops(train, test, least_cosine, min_ratings))


def test_the_cases_above_have_what_is_counted():
    every = [audit(*parts(seed), near_duplicate_cosine=0.6, min_ratings=2) for seed in range(12)]
    for name in ("train_repeats", "test_repeats", "pairs_in_both", "unseen_items", "near_duplicates"):
        assert any(getattr(found, name) for found in every), name
    assert any(audit(*parts(seed, n=12)).unseen_users for seed in range(12))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [1, 7, 40])
def test_near_duplicates_by_small_blocks(seed, block, monkeypatch):
    monkeypatch.setattr(_near_duplicates, "ENTRIES_PER_BLOCK", block)
    train, test = parts(seed, n=200, n_users=30, n_items=25)
    found = audit(train, test, near_duplicate_cosine=0.5, min_ratings=3)
    assert found.near_duplicates > 0
    assert_is(found, loops(train, test, 0.5, 3))


def test_blocks_are_as_long_as_the_memory_allows(monkeypatch):
    monkeypatch.setattr(_near_duplicates, "ENTRIES_PER_BLOCK", 7)
    blocks = list(_near_duplicates._blocks(np.array([3, 4, 1, 9, 0, 7, 2])))
    assert blocks == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]  # sums 7, 1, 9 (a single row), 7, 2


@pytest.mark.parametrize("least_cosine", [0.5, 0.75, 0.8, 0.9, 1.0])
def test_no_near_duplicate_is_missed(least_cosine):
    """Groups of items that nearly the same users rated, with cosines at the very threshold among them."""
    rng = np.random.default_rng(0)
    item_of, users = [], []
    for item in range(60):
        fans = set(range(item // 4 * 3, item // 4 * 3 + 16))
        dropped = rng.choice(sorted(fans), item % 4, replace=False).tolist()
        users += (own := sorted(fans - set(dropped)))
        item_of += [item] * len(own)
    order = rng.permutation(len(users))
    ratings = Ratings(np.array(users)[order], np.array(item_of)[order], np.ones(len(users)), 80, 60, time=order)
    train, test = splits.random(ratings, test_fraction=0.4, rng=1)
    found = audit(train, test, near_duplicate_cosine=least_cosine, min_ratings=1)
    assert found.near_duplicates > 0 or least_cosine == 1
    assert_is(found, loops(train, test, least_cosine, 1))


# what is planted is found


def clean():
    """Train before test, every user and item in both, and no pair in both."""
    user, item = np.divmod(np.arange(600), 20)
    rng = np.random.default_rng(0)
    keep = rng.random(600) < 0.5
    ratings = Ratings(user[keep], item[keep], rng.integers(1, 6, keep.sum()), 30, 20, time=rng.permutation(keep.sum()))
    return splits.by_time(ratings, test_fraction=0.3)


def with_rows(ratings, user, item, time):
    """The ratings and more, of value 3."""
    join = lambda name, more: np.concatenate([getattr(ratings, name), more])
    columns = join("user", user), join("item", item), join("value", np.full(len(user), 3.0)), ratings.n_users
    return Ratings(*columns, ratings.n_items, time=join("time", time))


def test_a_split_by_time_leaks_nothing():
    found = audit(*clean())
    assert (found.pairs_in_both, found.train_repeats, found.test_repeats, found.near_duplicates) == (0, 0, 0, 0)
    assert (found.unseen_users, found.unseen_items, found.unseen_ratings_share) == (0, 0, 0)
    before = found.ratings_before_own_train, found.ratings_before_others_train, found.users_before_others_train
    assert before == (0, 0, 0)


def test_a_planted_leak_in_time():
    train, test = clean()
    user, n, latest = int(test.user[0]), len(test), int(test.time.max())
    late = audit(with_rows(train, [user], [0], [latest + 1]), test)  # one user's rating after all of test
    assert late.ratings_before_own_train == pytest.approx(np.mean(test.user == user))
    assert late.ratings_before_others_train == pytest.approx(np.mean(test.user != user))
    assert late.users_before_others_train == pytest.approx(1 - 1 / len(set(test.user.tolist())))
    early = audit(train, with_rows(test, [user], [0], [int(train.time.min()) - 1]))
    assert early.ratings_before_others_train == pytest.approx(1 / (n + 1))
    assert early.users_before_others_train == pytest.approx(1 / len(set(test.user.tolist())))


def test_a_planted_duplicate():
    train, test = clean()
    again = audit(with_rows(train, train.user[:1], train.item[:1], [0]), test)
    assert (again.train_repeats, again.test_repeats, again.pairs_in_both) == (1, 0, 0)
    in_both = audit(with_rows(train, test.user[:2], test.item[:2], [0, 0]), test)
    assert (in_both.train_repeats, in_both.test_repeats, in_both.pairs_in_both) == (0, 0, 2)
    in_test = audit(train, with_rows(test, test.user[:2], test.item[:2], [900, 900]))
    assert (in_test.train_repeats, in_test.test_repeats, in_test.pairs_in_both) == (0, 2, 0)


def test_a_planted_near_duplicate_by_raw_id():
    train, test = clean()
    fans = np.unique(np.concatenate([part.user[part.item == 4] for part in (train, test)]))
    more = fans[:-1]  # all but one of the users of item 4, in train whichever part item 4's rating is in
    train = dataclasses.replace(train, n_items=21)
    train = with_rows(train, more, np.full(len(more), 20), np.zeros(len(more), int))
    names = [f"film {i}" for i in range(20)] + ["film 4, restored"]
    train = dataclasses.replace(train, item_ids=names)
    found = audit(train, dataclasses.replace(test, n_items=21))
    ((one, other, cosine),) = found.near_duplicate_examples
    assert (found.near_duplicates, one, other) == (1, "film 4", "film 4, restored")
    assert cosine == pytest.approx(math.sqrt(len(more) / len(fans)))
    assert "'film 4' and 'film 4, restored'" in repr(found)
    few = audit(train, dataclasses.replace(test, n_items=21), min_ratings=len(fans))
    assert few.near_duplicates == 0


def test_planted_drift():
    rng = np.random.default_rng(0)
    user, item, value = rng.integers(50, size=(2, 2000)), rng.integers(40, size=(2, 2000)), rng.normal(size=(2, 2000))
    train, test = Ratings(user[0], item[0], value[0], 50, 80), Ratings(user[1], item[1] + 20, value[1] + 1, 50, 80)
    found = audit(train, test)
    assert found.item_drift == pytest.approx(0.5, abs=0.05)
    assert found.user_drift == pytest.approx(found.user_drift_if_random, abs=0.04)
    # Two normal distributions one apart: the largest difference of their distribution functions is 2 Phi(1/2) - 1.
    assert found.rating_ks == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.04)
    assert found.test_mean - found.train_mean == pytest.approx(1, abs=0.1)


def test_the_drift_of_random_splits_is_that_by_chance():
    ratings = draw(0, n=300)
    every = [audit(*splits.random(ratings, test_fraction=0.2, rng=seed)) for seed in range(300)]
    for name in ("item", "user"):
        drifts = [getattr(found, f"{name}_drift") for found in every]
        expected = getattr(every[0], f"{name}_drift_if_random")
        assert np.mean(drifts) == pytest.approx(expected, abs=4 * np.std(drifts) / math.sqrt(300))


@pytest.mark.parametrize(("m", "total"), [(1, 2), (3, 7), (6, 7), (5, 20), (10, 20)])
def test_the_mean_deviation_of_a_hypergeometric_number(m, total):
    counts = np.arange(total + 1)
    expected = [slow_deviation(int(count), m, total) for count in counts]
    np.testing.assert_allclose(mean_deviation(counts, m, total), expected, rtol=1e-9, atol=1e-12)


def test_the_mean_deviation_of_large_numbers_is_that_of_a_normal_number():
    count, m, total = 2_000_000, 4_000_000, 20_000_000
    variance = count * (m / total) * (1 - m / total) * (total - count) / (total - 1)
    found = mean_deviation(np.array([count]), m, total)[0]
    assert found == pytest.approx(math.sqrt(2 * variance / math.pi), rel=1e-4)


# ids and times


def renumbered(ratings, rng):
    """The same ratings with the raw ids in another order."""
    ids = {name: rng.permutation(getattr(ratings, name)) for name in ("user_ids", "item_ids")}
    return ratings.reindexed(**ids)


def test_raw_ids_are_matched_where_the_tables_differ():
    train, test = parts(3, raw=True)
    expected = audit(train, test, near_duplicate_cosine=0.6, min_ratings=2)
    rng = np.random.default_rng(0)
    found = audit(renumbered(train, rng), renumbered(test, rng), near_duplicate_cosine=0.6, min_ratings=2)
    assert found.near_duplicates > 0
    cosines = [[cosine for *_, cosine in one.near_duplicate_examples] for one in (found, expected)]
    assert cosines[0] == cosines[1]  # of equal cosines, which pairs are examples depends on the tables' order
    assert_is(dataclasses.replace(found, near_duplicate_examples=expected.near_duplicate_examples), vars(expected))


def test_a_user_and_an_item_of_test_only():
    train = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 3])
    test = Ratings.from_columns(["bob", "zoe"], [20, 10], [2, 4])
    found = audit(train, test)
    assert (found.unseen_users, found.unseen_items, found.unseen_ratings_share) == (1, 1, 1.0)
    assert found.pairs_in_both == 0  # although both have the pair of positions (0, 0) or (1, 0)


def test_examples_are_named_by_the_part_that_has_raw_ids():
    user, item = np.divmod(np.arange(24), 2)
    ratings = Ratings(user, item, np.ones(24), 12, 2)
    train, test = splits.random(ratings, test_fraction=0.25, rng=0)
    assert audit(train, test).near_duplicate_examples == ((0, 1, 1.0),)
    named = dataclasses.replace(test, item_ids=[b"A", b"\xff"])
    assert audit(train, named).near_duplicate_examples == (("A", "\\xff", 1.0),)
    assert json.loads(json.dumps(audit(train, named).to_dict()))["near_duplicate_examples"] == [["A", "\\xff", 1.0]]


def test_times_of_two_units():
    train, test = parts(1)
    expected = audit(train, test)
    milliseconds = dataclasses.replace(test, time=test.time * 1000, time_unit="ms")
    found = audit(train, milliseconds)
    assert (found.time_unit, found.ratings_before_own_train) == ("ms", expected.ratings_before_own_train)
    assert found.train_times == tuple(1000 * time for time in expected.train_times)
    distant = dataclasses.replace(train, time=train.time + 2**55)
    with pytest.raises(ValueError, match=r"^expected times of train and test in one unit, got s that do not fit in ms"):
        audit(distant, milliseconds)


def test_a_part_without_times():
    train, test = parts(1)
    found = audit(dataclasses.replace(train, time=None), test)
    assert (found.time_unit, found.test_times, found.users_before_others_train) == (None, None, None)
    assert "times: not in both parts" in repr(found)


def test_one_user_has_no_others():
    train, test = Ratings([0], [0], [1], 1, 2, time=[9]), Ratings([0], [1], [1], 1, 2, time=[3])
    found = audit(train, test)
    assert (found.ratings_before_own_train, found.users_before_others_train) == (1, 0)


# what it returns


def test_the_table_and_json_have_the_numbers():
    train, test = splits.random(draw(0, n=4000), test_fraction=0.3, rng=0)
    found = audit(train, test)
    lines = repr(found).splitlines()
    assert lines[0].split() == ["train", "test"]
    assert lines[1].split() == ["ratings", "2,800", "1,200"]
    assert ["first", "time", "0", "s", "(1970-01-01)", "0", "s", "(1970-01-01)"] in [line.split() for line in lines]
    assert "in test: 30.0% of the ratings" in lines
    assert f"pairs in both: {found.pairs_in_both}" in lines
    assert str(found) == repr(found)
    assert max(map(len, lines)) < 200
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["train_times"] == list(found.train_times)
    assert set(content) == {field.name for field in dataclasses.fields(found)}
    assert content["item_drift"] == found.item_drift


def test_the_order_of_rows_and_weights_change_nothing():
    train, test = parts(2)
    rng = np.random.default_rng(0)
    shuffled = [part.take(rng.permutation(len(part))) for part in (train, test)]
    shuffled[0] = dataclasses.replace(shuffled[0], weights=np.zeros(len(train)))
    assert_is(audit(*shuffled), vars(audit(train, test)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near_duplicate_cosine": 0.0}, r"^near_duplicate_cosine: expected a cosine in \(0, 1\], got 0.0"),
        ({"near_duplicate_cosine": float("nan")}, r"^near_duplicate_cosine: expected a cosine in \(0, 1\], got nan"),
        ({"min_ratings": 0}, r"^min_ratings: expected a whole number >= 1, got 0"),
        ({"min_ratings": 2.5}, r"^min_ratings: expected a whole number >= 1, got 2.5"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        audit(*parts(0), **options)


def test_parts_that_do_not_fit():
    train, test = parts(0)
    with pytest.raises(ValueError, match=r"^test: expected at least one rating, got none"):
        audit(train, test.take([]))
    with pytest.raises(ValueError, match=r"^train: expected at least one rating, got none"):
        audit(train.take([]), test)
    with pytest.raises(ValueError, match=r"^expected item tables of one size, got 12 items in train, 13 in test"):
        audit(train, dataclasses.replace(test, n_items=13))
    with pytest.raises(ValueError, match=r"^user_ids: expected ids of one kind, got integers and strings"):
        audit(Ratings.from_columns([1], [1]), Ratings.from_columns(["1"], [1]))
