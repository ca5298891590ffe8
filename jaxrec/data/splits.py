"""Splits into disjoint train and test parts, which keep the input's order, users and items.

| split | test part | measures |
| --- | --- | --- |
| random, k_fold | ratings drawn uniformly | how well missing ratings are predicted |
| leave_last | each user's newest ratings | what known users rate next |
| by_time | all ratings from a time on | what is rated next, with nothing known of the future |
| by_user | ratings of users who are not in train | how well new users are served |
| canonical | the dataset's published test part | the same as published figures |

>>> from jaxrec import Ratings
>>> ratings = Ratings.from_columns(range(10), [0] * 10, range(10))
>>> train, test = random(ratings, test_fraction=0.2, rng=0)
>>> len(train), len(test), train.n_users
(8, 2, 10)
"""

import datetime
from typing import Any, NamedTuple

import numpy as np

from jaxrec.counting_sort import group_by
from jaxrec.times import as_ticks
from jaxrec.types import Dataset, Ratings

__all__ = ["ByUser", "Split", "by_time", "by_user", "canonical", "k_fold", "leave_last", "random"]


class Split(NamedTuple):
    """Two disjoint parts of the same ratings, over the same users and items.

    Attributes:
        train: the ratings to fit a model to.
        test: the ratings to predict.
    """

    train: Ratings
    test: Ratings


class ByUser(NamedTuple):
    """A split for strong generalization: no rating of the test users is in train.

    Attributes:
        train: all ratings of the other users.
        given: the ratings of the test users to use for fold-in.
        test: the ratings of the test users to predict.
    """

    train: Ratings
    given: Ratings
    test: Ratings


def random(ratings: Ratings, *, test_fraction: float, rng: np.random.Generator | int) -> Split:
    """Splits off round(test_fraction * n) of the n ratings as test, drawn uniformly without replacement.

    Args:
        ratings: the ratings to split.
        test_fraction: the fraction of the ratings in the test part, in (0, 1).
        rng: a generator or a seed; the same seed gives the same split.

    Raises:
        ValueError: `test_fraction` is not in (0, 1), or one part would be empty.
    """
    _check_fraction("test_fraction", test_fraction)
    in_test = np.zeros(len(ratings), bool)
    in_test[np.random.default_rng(rng).permutation(len(ratings))[: round(test_fraction * len(ratings))]] = True
    return _divide(ratings, in_test, f"test_fraction={test_fraction} of {len(ratings)} ratings")


def k_fold(ratings: Ratings, k: int, *, rng: np.random.Generator | int) -> list[Split]:
    """Returns k splits; every rating is in exactly one test part, drawn uniformly, and their sizes differ by at most 1.

    Args:
        ratings: the ratings to split.
        k: the number of folds. Together they hold k copies of the ratings.
        rng: a generator or a seed; the same seed gives the same folds.

    Raises:
        ValueError: k is not in [2, n]: with fewer ratings than folds a test part would be empty.
    """
    _check_whole("k", k)
    if not 2 <= k <= len(ratings):
        raise ValueError(f"k: expected between 2 and {len(ratings)} folds (one rating in each), got {k}.")
    fold = (np.arange(len(ratings)) % k).astype(np.min_scalar_type(k))  # a small type is faster to shuffle and compare
    np.random.default_rng(rng).shuffle(fold)
    return [_divide(ratings, fold == number, f"fold {number} of {k}") for number in range(k)]


def leave_last(ratings: Ratings, k: int = 1) -> Split:
    """Splits off each user's last k ratings as test; among equal times the later row of the input is the later rating.

    All ratings of a user with k or fewer stay in train, since otherwise none would be left to fit that user. No train
    rating of a user is later than their test ratings, but it may be later than those of other users: use `by_time` if
    that matters.

    Args:
        ratings: ratings with times.
        k: the number of test ratings per user.

    Raises:
        ValueError: the ratings have no times; k < 1; no user has more than k ratings.
    """
    time = _times(ratings, "leave_last")
    _check_whole("k", k)
    if k < 1:
        raise ValueError(f"k: expected a number >= 1, got {k}.")
    by_time = np.argsort(time, kind="stable")
    start, order = group_by(ratings.user[by_time], ratings.n_users)
    count = np.diff(start)
    rank_from_last = np.repeat(start[1:], count) - np.arange(len(ratings))  # 1 for a user's last rating
    in_test = np.zeros(len(ratings), bool)
    in_test[by_time[order]] = (rank_from_last <= k) & np.repeat(count > k, count)
    return _divide(ratings, in_test, f"leave_last with k={k}: a user with {k} or fewer ratings stays in train, which")


def by_time(
    ratings: Ratings,
    *,
    test_fraction: float | None = None,
    start_time: float | datetime.date | np.datetime64 | str | None = None,
) -> Split:
    """Splits off the newest ratings as test: each is later than every train rating, never of the same time.

    Args:
        ratings: ratings with times.
        test_fraction: the fraction of the ratings in the test part, in (0, 1). Equal times stay together, so the
            fraction is met as closely as the times allow.
        start_time: instead of a fraction, the earliest time of the test part: a datetime (UTC if it has no time zone),
            a date, a datetime64, text such as '2020-01-01T00:00:00+02:00', or a number in `ratings.time_unit`.

    Raises:
        ValueError: the ratings have no times; both or neither of `test_fraction` and `start_time` are passed; the
            fraction is not in (0, 1); a part is empty.

    >>> when = np.array(["2019-12-31T23:59", "2020-01-01"], "datetime64[m]")
    >>> train, test = by_time(Ratings([0, 0], [0, 1], [5, 3], 1, 2, time=when), start_time=datetime.date(2020, 1, 1))
    >>> test.item
    array([1], dtype=int32)
    """
    time = _times(ratings, "by_time")
    if (test_fraction is None) == (start_time is None):
        raise ValueError(
            f"by_time: expected either test_fraction or start_time, got test_fraction={test_fraction} and "
            f"start_time={start_time}."
        )
    options = f"start_time={start_time}"
    if test_fraction is not None:
        _check_fraction("test_fraction", test_fraction)
        options = f"test_fraction={test_fraction} of {len(ratings)} ratings"
        n_test = min(max(round(test_fraction * len(ratings)), 1), len(ratings))
        first: int | float = int(np.partition(time, -n_test)[-n_test]) if len(time) else 0
        # Of the ratings at time `first` all or none are in test, whichever is nearer to n_test; no part is empty.
        with_ties, without_ties = int((time >= first).sum()), int((time > first).sum())
        if with_ties == len(time) or (without_ties > 0 and n_test - without_ties < with_ties - n_test):
            first += 1
    else:
        first = as_ticks("start_time", start_time, ratings.time_unit)
    return _divide(ratings, time >= first, options)


def by_user(ratings: Ratings, *, test_fraction: float, given_fraction: float, rng: np.random.Generator | int) -> ByUser:
    """Splits for strong generalization: a fraction of the users is not in train, but some of their ratings are `given`.

    For a test user with n >= 2 ratings, round(given_fraction * n) of them, but at least 1 and at most n - 1, are drawn
    uniformly into `given`, and the others are test. The only rating of a test user is in `given`, with none to predict.
    Users without ratings are not drawn.

    Args:
        ratings: the ratings to split; all three parts have their users and items.
        test_fraction: the fraction of test users among the users with ratings, in (0, 1); there are
            round(test_fraction * users).
        given_fraction: the fraction of each test user's ratings that is in `given`, in (0, 1).
        rng: a generator or a seed; the same seed gives the same split.

    Raises:
        ValueError: a fraction is not in (0, 1); no or all users would be test users; no rating is left to predict.
    """
    _check_fraction("test_fraction", test_fraction)
    _check_fraction("given_fraction", given_fraction)
    rng = np.random.default_rng(rng)
    users = np.flatnonzero(np.bincount(ratings.user, minlength=ratings.n_users))
    n_test = round(test_fraction * len(users))
    if not 0 < n_test < len(users):
        raise ValueError(
            f"test_fraction={test_fraction} of {len(users)} users with ratings makes {n_test} test users. "
            "Choose another test_fraction."
        )
    is_test_user = np.zeros(ratings.n_users, bool)
    is_test_user[rng.permutation(users)[:n_test]] = True
    rows = rng.permutation(np.flatnonzero(is_test_user[ratings.user]))  # in random order, also within each user
    start, order = group_by(ratings.user[rows], ratings.n_users)
    count = np.diff(start)
    n_given = np.clip(np.round(given_fraction * count).astype(count.dtype), 1, np.maximum(count - 1, 1))
    position = np.arange(len(rows)) - np.repeat(start[:-1], count)
    test_rows = rows[order[position >= np.repeat(n_given, count)]]
    if len(test_rows) == 0:
        raise ValueError(
            f"none of the {n_test} test users has two ratings, so nothing is left to predict. "
            "Choose a larger test_fraction."
        )
    part = np.where(is_test_user[ratings.user], np.int8(1), np.int8(0))
    part[test_rows] = 2
    return ByUser(*(ratings.take(np.flatnonzero(part == number)) for number in range(3)))


def canonical(dataset: Dataset, name: str) -> Split:
    """Returns a split published with the dataset, such as 'u1' of MovieLens 100K, to compare with published figures.

    Raises:
        ValueError: the dataset has no split of that name (the message lists its splits), or the split does not fit its
            ratings.

    >>> from jaxrec import data
    >>> four = Ratings(user=[0, 0, 1, 1], item=[0, 1, 0, 1], value=[5, 4, 3, 2], n_users=2, n_items=2)
    >>> canonical(Dataset("four", four, published={"last": np.array([False, False, False, True])}), "last")[1].value
    array([2.], dtype=float32)
    """
    if name not in dataset.published:
        names = ", ".join(map(repr, sorted(dataset.published))) or "none: use splits.random, by_time or by_user"
        raise ValueError(f"split: {dataset.name!r} has no published split {name!r}. It has {names}.")
    in_test = np.asarray(dataset.published[name])
    if in_test.shape != (len(dataset.ratings),) or in_test.dtype != bool:
        raise ValueError(
            f"split {name} of {dataset.name!r}: expected a mask over its {len(dataset.ratings)} ratings, got "
            f"{in_test.dtype} of shape {in_test.shape}. Masks do not fit ratings that were selected or merged."
        )
    return _divide(dataset.ratings, in_test, f"split {name}")


def _times(ratings: Ratings, split: str) -> np.ndarray:
    if ratings.time is None:
        raise ValueError(f"{split}: these ratings have no times (time is None). Use splits.random, k_fold or by_user.")
    return ratings.time


def _check_whole(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise ValueError(f"{name}: expected a whole number, got {number!r}.")


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"{name}: expected a fraction in (0, 1), got {fraction}.")


def _divide(ratings: Ratings, in_test: np.ndarray, options: str) -> Split:
    """Returns the split by a mask of the test rows; raises if a part is empty, naming the options that made it so."""
    if in_test.all() or not in_test.any():
        empty = "train" if in_test.all() else "test"
        raise ValueError(f"{options} leaves the {empty} part empty. Choose another split, or use more ratings.")
    # Positions are faster than masks.
    return Split(ratings.take(np.flatnonzero(~in_test)), ratings.take(np.flatnonzero(in_test)))
