"""Splits: train and test together are the input, in its order; the same seed gives the same split."""

import dataclasses
import datetime
from collections import Counter

import numpy as np
import pytest

from jaxrec import Dataset, Ratings
from jaxrec.data import splits


def draw(seed, n=40):
    """Ratings with repeated pairs and values, so that a lost row is found only by counting."""
    rng = np.random.default_rng(seed)
    return Ratings(
        user=rng.integers(6, size=n),
        item=rng.integers(5, size=n),
        value=rng.integers(3, size=n),
        n_users=8,
        n_items=5,
        time=np.arange(n),
        weights=rng.integers(3, size=n),
        user_ids=list("abcdefgh"),
    )


def timed(seed, n=40):
    """Ratings with many equal times in random order; the weights number the rows."""
    rng = np.random.default_rng(seed)
    columns = rng.integers(6, size=n), rng.integers(5, size=n), np.ones(n)
    return Ratings(*columns, 8, 5, time=rng.integers(9, size=n), weights=np.arange(n))


def as_rows(ratings):
    columns = (ratings.user, ratings.item, ratings.value, ratings.time, ratings.weights)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def assert_parts(ratings, *parts):
    """Checks that the parts together are the input, with the same users and items, each in the order of the input."""
    assert sum((Counter(as_rows(part)) for part in parts), Counter()) == Counter(as_rows(ratings))
    row = {content: number for number, content in enumerate(as_rows(ratings))}
    assert len(row) == len(ratings), "the test needs rows that differ"
    for part in parts:
        numbers = [row[content] for content in as_rows(part)]
        assert numbers == sorted(numbers)
        assert (part.n_users, part.n_items) == (ratings.n_users, ratings.n_items)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_parts_are_disjoint_and_together_the_input(seed, share):
    ratings = draw(seed)
    train, test = splits.random(ratings, test_fraction=share, rng=seed)
    assert Counter(as_rows(train)) + Counter(as_rows(test)) == Counter(as_rows(ratings))
    assert not set(train.time) & set(test.time)  # the time numbers the rows
    for part in (train, test):
        assert (np.diff(part.time) > 0).all(), "the order of the input is kept"
        assert (part.n_users, part.n_items, part.user_ids.tolist()) == (8, 5, list("abcdefgh"))


@pytest.mark.parametrize(
    ("n", "share", "expected"), [(40, 0.1, 4), (40, 0.77, 31), (10, 0.26, 3), (3, 0.5, 2), (2, 0.3, 1)]
)
def test_the_size_is_exact(n, share, expected):
    train, test = splits.random(draw(0, n), test_fraction=share, rng=0)
    assert (len(train), len(test)) == (n - expected, expected)


def test_the_same_seed_gives_the_same_split():
    ratings = draw(0)
    one, other = (splits.random(ratings, test_fraction=0.3, rng=7)[1].time.tolist() for _ in range(2))
    assert one == other
    assert splits.random(ratings, test_fraction=0.3, rng=np.random.default_rng(7))[1].time.tolist() == one
    assert splits.random(ratings, test_fraction=0.3, rng=8)[1].time.tolist() != one


def test_a_generator_gives_another_split_each_time():
    rng = np.random.default_rng(0)
    one, other = (splits.random(draw(0), test_fraction=0.3, rng=rng)[1].time.tolist() for _ in range(2))
    assert one != other


def test_every_rating_has_an_equal_chance():
    ratings, times = draw(0), np.zeros(40)
    for seed in range(400):
        times[splits.random(ratings, test_fraction=0.25, rng=seed)[1].time] += 1
    # 400 draws of chance 1/4: mean 100, standard deviation sqrt(400 * 3/16) = 8.7
    assert times.sum() == 400 * 10
    assert abs(times - 100).max() < 5 * 8.7


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_and_1(share):
    with pytest.raises(ValueError, match=r"^test_fraction: expected a fraction in \(0, 1\)"):
        splits.random(draw(0), test_fraction=share, rng=0)


@pytest.mark.parametrize(("share", "empty"), [(0.01, "test"), (0.99, "train")])
def test_an_empty_part(share, empty):
    with pytest.raises(ValueError, match=rf"^test_fraction={share} of 10 ratings leaves the {empty} part empty"):
        splits.random(draw(0, 10), test_fraction=share, rng=0)


# k_fold


@pytest.mark.parametrize(("n", "k"), [(40, 5), (41, 4), (7, 7), (2, 2)])
def test_every_rating_is_in_exactly_one_fold(n, k):
    ratings = draw(0, n)
    folds = splits.k_fold(ratings, k, rng=1)
    assert len(folds) == k
    for train, test in folds:
        assert_parts(ratings, train, test)
    assert sorted(time for _, test in folds for time in test.time.tolist()) == list(range(n))
    assert {len(test) for _, test in folds} <= {n // k, -(-n // k)}


def test_folds_are_drawn_by_seed():
    tests = lambda rng: [test.time.tolist() for _, test in splits.k_fold(draw(0), 4, rng=rng)]
    assert tests(7) == tests(7) == tests(np.random.default_rng(7))
    assert tests(7) != tests(8)
    assert tests(7)[0] != list(range(0, 40, 4)), "shuffled"


def test_every_rating_has_an_equal_chance_of_each_fold():
    first = np.zeros(12)
    for seed in range(600):
        first[splits.k_fold(draw(0, 12), 3, rng=seed)[0][1].time] += 1
    assert abs(first - 200).max() < 5 * np.sqrt(600 * 2 / 9)


@pytest.mark.parametrize("k", [1, 0, -2, 41])
def test_a_number_of_folds_that_leaves_one_empty(k):
    with pytest.raises(ValueError, match=rf"^k: expected between 2 and 40 folds \(one rating in each\), got {k}"):
        splits.k_fold(draw(0), k, rng=0)


# leave_last


def slow_last(ratings, k):
    """The rows that are test, user by user."""
    rows = []
    for user in range(ratings.n_users):
        own = [row for row in range(len(ratings)) if ratings.user[row] == user]
        own.sort(key=lambda row: (ratings.time[row], row))
        rows += own[-k:] if len(own) > k else []
    return sorted(rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 6])
def test_the_last_k_of_each_user(seed, k):
    ratings = timed(seed)
    train, test = splits.leave_last(ratings, k)
    assert_parts(ratings, train, test)
    assert test.weights.tolist() == slow_last(ratings, k)
    for user in set(test.user.tolist()):
        assert train.time[train.user == user].max() <= test.time[test.user == user].min(), "no leakage for one user"


def test_one_is_left_out_by_default():
    train, test = splits.leave_last(timed(0))
    assert np.bincount(test.user).max() == 1
    assert set(test.user.tolist()) <= set(train.user.tolist())


def test_of_equal_times_the_later_row_is_later():
    ratings = Ratings([0, 1, 0, 0, 1], [0, 0, 1, 2, 1], [1] * 5, 2, 3, time=[7, 5, 7, 7, 4])
    train, test = splits.leave_last(ratings)
    assert test.item.tolist() == [0, 2]  # user 1's at 5, user 0's last row of three at 7
    assert train.item.tolist() == [0, 1, 1]


def test_users_with_no_more_than_k_stay_whole_in_train():
    ratings = Ratings([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [1] * 5, 3, 3, time=[1, 2, 3, 4, 5])
    train, test = splits.leave_last(ratings, 2)
    assert test.user.tolist() == [1, 1]
    assert train.user.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"^leave_last with k=3: .* leaves the test part empty"):
        splits.leave_last(ratings, 3)


@pytest.mark.parametrize("k", [0, -1])
def test_a_last_k_below_one(k):
    with pytest.raises(ValueError, match=rf"^k: expected a number >= 1, got {k}"):
        splits.leave_last(timed(0), k)


WITHOUT_TIMES = {
    "leave_last": splits.leave_last,
    "by_time": lambda ratings: splits.by_time(ratings, test_fraction=0.1),
    "global_time": lambda ratings: splits.global_time(ratings, target="all", new_users="keep", test_fraction=0.1),
    "by_user": lambda ratings: splits.by_user(ratings, test_fraction=0.5, given_fraction=0.5, order="time", rng=0),
}


@pytest.mark.parametrize("name", WITHOUT_TIMES)
def test_ratings_without_times(name):
    with pytest.raises(ValueError, match=rf"^{name}: these ratings have no times .* Use splits.random") as raised:
        WITHOUT_TIMES[name](Ratings([0, 0, 1], [0, 1, 0], [1, 2, 3], 2, 2))
    assert ("order='position'" in str(raised.value)) == (name in ("leave_last", "by_user"))


def slow_last_rows(ratings, k):
    """The rows that are test, by position: from the end, a user's first k rows, if more are left."""
    taken, rows = Counter(), []
    for row in reversed(range(len(ratings))):
        user = int(ratings.user[row])
        if taken[user] < k < Counter(ratings.user.tolist())[user]:
            rows.append(row)
        taken[user] += 1
    return rows[::-1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 6])
def test_the_last_k_rows_of_each_user_by_position(seed, k):
    ratings = timed(seed)
    train, test = splits.leave_last(ratings, k, order="position")
    assert_parts(ratings, train, test)
    assert test.weights.tolist() == slow_last_rows(ratings, k)
    without = dataclasses.replace(ratings, time=None)
    assert splits.leave_last(without, k, order="position").test.weights.tolist() == test.weights.tolist()
    in_order = dataclasses.replace(ratings, time=np.arange(40))
    assert splits.leave_last(in_order, k).test.weights.tolist() == test.weights.tolist()


def test_an_order_of_another_name():
    with pytest.raises(ValueError, match=r"^order: expected one of 'time', 'position', got 'random'"):
        splits.leave_last(timed(0), order="random")
    with pytest.raises(ValueError, match=r"^order: expected one of 'random', 'time', 'position', got 'last'"):
        splits.by_user(timed(0), test_fraction=0.5, given_fraction=0.5, order="last", rng=0)


# by_time


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_all_of_test_is_later_than_all_of_train(seed, share):
    ratings = timed(seed)
    train, test = splits.by_time(ratings, test_fraction=share)
    assert_parts(ratings, train, test)
    assert train.time.max() < test.time.min()
    sizes = [int((ratings.time >= at).sum()) for at in np.unique(ratings.time)[1:]]  # all possible cuts
    assert abs(len(test) - round(share * 40)) == min(abs(size - round(share * 40)) for size in sizes)


def test_with_distinct_times_the_fraction_is_exact():
    order = np.random.default_rng(0).permutation(20)
    ratings = Ratings(np.zeros(20, int), np.arange(20), np.ones(20), 1, 20, time=order)
    assert sorted(splits.by_time(ratings, test_fraction=0.25)[1].time.tolist()) == [15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([1, 2, 3, 3, 3, 3], [3] * 4),
        ([1, 1, 1, 1, 2, 3], [2, 3]),
        ([1, 1, 1, 1, 1, 3], [3]),
        ([1, 3, 3, 3, 3, 3], [3] * 5),
    ],
)
def test_equal_times_stay_together_on_the_side_that_is_nearer_to_the_fraction(times, expected):
    ratings = Ratings(np.zeros(6, int), np.arange(6), np.ones(6), 1, 6, time=times)
    assert splits.by_time(ratings, test_fraction=0.5)[1].time.tolist() == expected


def test_from_a_start_time_on():
    ratings = Ratings([0] * 4, range(4), [1] * 4, 1, 4, time=[40, 10, 30, 20])
    train, test = splits.by_time(ratings, start_time=30)
    assert (train.time.tolist(), test.time.tolist()) == ([10, 20], [40, 30])
    assert splits.by_time(ratings, start_time=20.5)[1].time.tolist() == [40, 30]
    for at, empty in ((10, "train"), (41, "test")):
        with pytest.raises(ValueError, match=rf"^start_time={at} leaves the {empty} part empty"):
            splits.by_time(ratings, start_time=at)


def test_equal_times_only():
    with pytest.raises(ValueError, match=r"leaves the test part empty"):
        splits.by_time(Ratings([0] * 4, range(4), [1] * 4, 1, 4, time=[5] * 4), test_fraction=0.5)


@pytest.mark.parametrize("options", [{}, {"test_fraction": 0.5, "start_time": 3}], ids=["neither", "both"])
def test_either_a_fraction_or_a_start_time(options):
    with pytest.raises(ValueError, match=r"^by_time: expected either test_fraction or start_time"):
        splits.by_time(timed(0), **options)


# global_time


def slow_global_time(ratings, start, target, new_users, chosen):
    """(given, test, unused) rows from a time on, user by user; `chosen` is the drawn target of a user."""
    given, test, unused = [], [], []
    for user in range(ratings.n_users):
        own = sorted((int(ratings.time[row]), row) for row in range(len(ratings)) if ratings.user[row] == user)
        later = [row for time, row in own if time >= start]
        if new_users == "drop" and len(later) == len(own):
            unused += later
        elif target == "all":
            test += later
        elif later:
            place = {"first": 0, "last": len(later) - 1}.get(target)
            place = later.index(chosen[user]) if place is None else place
            given, test, unused = given + later[:place], [*test, later[place]], unused + later[place + 1 :]
    return sorted(given), sorted(test), sorted(unused)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("target", ["all", "first", "last", "random"])
@pytest.mark.parametrize("new_users", ["keep", "drop"])
def test_targets_after_a_time(seed, target, new_users):
    ratings = timed(seed, n=24)
    start = 6 if seed % 2 else 4
    rng = seed if target == "random" else None
    parts = splits.global_time(ratings, target=target, new_users=new_users, start_time=start, rng=rng)
    assert_parts(ratings, *parts)
    numbers = [part.weights.astype(int).tolist() for part in parts]
    assert numbers[0] == [row for row in range(24) if ratings.time[row] < start]
    chosen = {int(ratings.user[row]): row for row in numbers[2]}
    assert tuple(numbers[1:]) == slow_global_time(ratings, start, target, new_users, chosen)
    assert parts.train.time.max() < min(part.time.min(initial=99) for part in parts[1:])
    if target != "all":
        assert np.bincount(parts.test.user).max() == 1
    if new_users == "drop":
        assert set(parts.test.user.tolist()) <= set(parts.train.user.tolist())
    if target == "all" and new_users == "keep":
        both = splits.by_time(ratings, start_time=start)
        assert [as_rows(part) for part in both] == [as_rows(parts.train), as_rows(parts.test)]
        assert len(parts.given) == len(parts.unused) == 0


def test_some_of_the_cases_above_have_new_users():
    later_only = 0
    for seed in range(8):
        ratings = timed(seed, n=24)
        early = set(ratings.user[ratings.time < (6 if seed % 2 else 4)].tolist())
        later_only += len(set(ratings.user.tolist()) - early)
    assert later_only > 0


def test_every_later_rating_has_an_equal_chance_to_be_the_target():
    ratings = Ratings([0] * 5 + [1] * 3, range(8), [1] * 8, 2, 8, time=[1, 5, 6, 7, 8, 2, 9, 9])
    drawn = np.zeros(8)
    for seed in range(800):
        parts = splits.global_time(ratings, target="random", new_users="keep", start_time=5, rng=seed)
        drawn[parts.test.item] += 1
    # User 0's four: mean 200, standard deviation sqrt(800 * 3/16) = 12.2; user 1's two: 400, sqrt(800 / 4) = 14.1.
    assert abs(drawn - [0, 200, 200, 200, 200, 0, 400, 400]).max() < 5 * 14.1


def test_the_start_time_of_a_fraction_is_that_of_by_time():
    ratings = timed(3)
    parts = splits.global_time(ratings, target="first", new_users="keep", test_fraction=0.3)
    assert as_rows(parts.train) == as_rows(splits.by_time(ratings, test_fraction=0.3).train)


GLOBAL = {"target": "last", "new_users": "keep", "start_time": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "next"}, r"^target: expected one of 'all', 'first', 'last', 'random', got 'next'"),
        ({"new_users": "error"}, r"^new_users: expected one of 'keep', 'drop', got 'error'"),
        ({"target": "random"}, r"^rng: expected a generator or a seed for target='random' only, got None for 'random'"),
        ({"rng": 0}, r"^rng: expected a generator or a seed for target='random' only, got 0 for 'last'"),
        ({"test_fraction": 0.5}, r"^global_time: expected either test_fraction or start_time"),
        ({"start_time": 99}, r"^start_time=99 leaves the test part empty"),
        ({"start_time": None, "test_fraction": 2.0}, r"^test_fraction: expected a fraction in \(0, 1\), got 2.0"),
    ],
)
def test_options_of_a_global_time_split_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        splits.global_time(timed(0), **GLOBAL | options)


def test_only_new_users_after_the_start():
    ratings = Ratings([0, 1], [0, 0], [1, 1], 2, 1, time=[1, 5])
    assert len(splits.global_time(ratings, **GLOBAL).test) == 1
    with pytest.raises(ValueError, match=r"^start_time=4: no user has ratings both before and after the start"):
        splits.global_time(ratings, **GLOBAL | {"new_users": "drop"})


# by_user


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("given", [0.01, 0.5, 0.8, 0.99])
def test_test_users_are_absent_from_train(seed, given):
    ratings = draw(seed)
    parts = splits.by_user(ratings, test_fraction=0.5, given_fraction=given, rng=seed)
    assert_parts(ratings, *parts)
    theirs = set(parts.given.user.tolist())
    assert not theirs & set(parts.train.user.tolist())
    assert set(parts.test.user.tolist()) <= theirs, "something is known of whoever is predicted"
    with_ratings = set(ratings.user.tolist())
    assert len(theirs) == round(0.5 * len(with_ratings))
    for user in theirs:
        n = int((ratings.user == user).sum())
        expected = 1 if n == 1 else min(max(round(given * n), 1), n - 1)
        assert int((parts.given.user == user).sum()) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", ["time", "position"])
@pytest.mark.parametrize("given", [0.2, 0.5, 0.8])
def test_the_oldest_or_first_ratings_are_given(seed, order, given):
    ratings = timed(seed)
    options = {"test_fraction": 0.5, "given_fraction": given, "rng": seed}
    parts = splits.by_user(ratings, order=order, **options)
    assert_parts(ratings, *parts)
    drawn = splits.by_user(ratings, **options)
    assert as_rows(parts.train) == as_rows(drawn.train), "the same test users"
    expected = []
    for user in set(parts.given.user.tolist()):
        own = [row for row in range(len(ratings)) if ratings.user[row] == user]
        own.sort(key=lambda row: (ratings.time[row] if order == "time" else 0, row))
        expected += own[: 1 if len(own) == 1 else min(max(round(given * len(own)), 1), len(own) - 1)]
    assert sorted(expected) == parts.given.weights.tolist()


def test_an_only_rating_is_given():
    ratings = Ratings([0, 1, 1, 1, 2, 2], range(6), [1] * 6, 9, 6)  # users 3 to 8 have none, and are not drawn
    drawn = set()
    for seed in range(20):
        parts = splits.by_user(ratings, test_fraction=2 / 3, given_fraction=0.5, rng=seed)
        users = set(parts.given.user.tolist())
        assert len(users) == 2
        assert 0 not in parts.test.user
        drawn |= users
    assert drawn == {0, 1, 2}


def test_nothing_to_predict():
    with pytest.raises(ValueError, match=r"^none of the 2 test users has two ratings, so nothing is left to predict"):
        splits.by_user(Ratings([0, 1, 2, 3], [0] * 4, [1] * 4, 4, 1), test_fraction=0.5, given_fraction=0.5, rng=0)


def test_users_and_their_given_ratings_are_drawn_by_seed():
    rows = lambda rng: [
        part.time.tolist() for part in splits.by_user(draw(0), test_fraction=0.4, given_fraction=0.5, rng=rng)
    ]
    assert rows(7) == rows(7) == rows(np.random.default_rng(7))
    assert rows(7) != rows(8)


def test_every_rating_of_a_test_user_has_an_equal_chance_to_be_given():
    ratings = Ratings(np.repeat([0, 1], 8), np.tile(range(8), 2), np.ones(16), 2, 8)
    given = np.zeros((2, 8))
    for seed in range(800):
        part = splits.by_user(ratings, test_fraction=0.5, given_fraction=0.25, rng=seed).given
        given[part.user, part.item] += 1
    # 800 draws of chance 1/2 (the user) * 1/4: mean 100, standard deviation sqrt(800 * 7/64) = 9.4
    assert abs(given - 100).max() < 5 * 9.4


@pytest.mark.parametrize(
    "options", [{"test_fraction": 0.0, "given_fraction": 0.5}, {"test_fraction": 0.5, "given_fraction": 1.0}], ids=str
)
def test_fractions_outside_0_and_1(options):
    with pytest.raises(ValueError, match=r"^(test|given)_fraction: expected a fraction in \(0, 1\), got"):
        splits.by_user(draw(0), **options, rng=0)


@pytest.mark.parametrize(("share", "number"), [(0.01, 0), (0.99, 6)])
def test_no_users_or_all(share, number):
    with pytest.raises(ValueError, match=rf"^test_fraction={share} of 6 users with ratings makes {number} test users"):
        splits.by_user(draw(0), test_fraction=share, given_fraction=0.5, rng=0)


# canonical


FIFTH = {f"u{fold}": np.arange(25) // 5 == fold - 1 for fold in range(1, 6)}


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_published_splits(fold):
    train, test = splits.canonical(Dataset("ml-100k", draw(0, 25), published=FIFTH), f"u{fold}")
    expected = list(range(5 * fold - 5, 5 * fold))
    assert test.time.tolist() == expected
    assert train.time.tolist() == [row for row in range(25) if row not in expected]


@pytest.mark.parametrize("name", ["u0", "u6", "ua", "1", ""])
def test_a_published_split_of_another_name(name):
    with pytest.raises(ValueError, match=rf"^split: 'ml-100k' has no published split '{name}'. It has 'u1', .*, 'u5'"):
        splits.canonical(Dataset("ml-100k", draw(0, 25), published=FIFTH), name)


def test_a_dataset_without_published_splits():
    with pytest.raises(ValueError, match=r"'ml-1m' has no published split 'u1'. It has none: use splits.random"):
        splits.canonical(Dataset("ml-1m", draw(0, 25)), "u1")


@pytest.mark.parametrize("mask", [FIFTH["u1"][:20], np.arange(25)], ids=["short", "numbers"])
def test_a_published_split_of_other_ratings(mask):
    with pytest.raises(ValueError, match=r"^split u1 of 'ml-100k': expected a mask over its 25 ratings, got"):
        splits.canonical(Dataset("ml-100k", draw(0, 25), published={"u1": mask}), "u1")


# times finer than seconds


def moments(*fractions, unit="ms"):
    """One user's ratings within a second; the items number the rows."""
    times = np.array(fractions).astype(f"M8[{unit}]")
    n = len(fractions)
    return Ratings([0] * n, range(n), [1] * n, 1, n, time=times)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_the_last_within_a_second(unit):
    _, test = splits.leave_last(moments(900, 100, 500, unit=unit))
    assert test.item.tolist() == [0]
    assert splits.by_time(moments(900, 100, 500, unit=unit), test_fraction=1 / 3)[1].item.tolist() == [0]


def test_the_last_of_float_seconds():
    ratings = Ratings([0, 0, 0], [0, 1, 2], [1] * 3, 1, 3, time=[978300760.7, 978300760.2, 978300760.5])
    assert splits.leave_last(ratings)[1].item.tolist() == [0]


@pytest.mark.parametrize(
    "at",
    [
        "2020-01-01T02:00:00.5+02:00",
        np.datetime64("2020-01-01T00:00:00.500"),
        datetime.datetime(2020, 1, 1, 0, 0, 0, 500_000),
        datetime.datetime(2020, 1, 1, 2, 0, 0, 500_000, datetime.timezone(datetime.timedelta(hours=2))),
        1_577_836_800_500,
        1_577_836_800_499.5,
    ],
    ids=str,
)
def test_from_a_datetime_on(at):
    times = np.datetime64("2020-01-01", "ms") + np.array([499, 500, 501], "m8[ms]")
    train, test = splits.by_time(Ratings([0] * 3, range(3), [1] * 3, 1, 3, time=times), start_time=at)
    assert (train.item.tolist(), test.item.tolist()) == ([0], [1, 2])


def test_a_start_time_in_nanoseconds_is_compared_exactly():
    times = 2**60 + np.arange(3)  # equal in float64
    _, test = splits.by_time(
        Ratings([0] * 3, range(3), [1] * 3, 1, 3, time=times, time_unit="ns"), start_time=2**60 + 1
    )
    assert test.item.tolist() == [1, 2]


def test_a_start_time_of_another_form():
    with pytest.raises(ValueError, match=r"^start_time: expected numbers, .*, got '12/31/2019'"):
        splits.by_time(timed(0), start_time="12/31/2019")


@pytest.mark.parametrize("split", [splits.leave_last, lambda ratings, k: splits.k_fold(ratings, k, rng=0)])
@pytest.mark.parametrize("k", [2.5, 2.0, "2", True, None])
def test_a_number_that_is_not_whole(split, k):
    with pytest.raises(ValueError, match=r"^k: expected a whole number, got"):
        split(timed(0), k)
