"""Splits into (train, test): together the input, disjoint, over the same users and items, in the order of the input.

| split | test is | asks |
| --- | --- | --- |
| random, k_fold | ratings drawn with equal chance | how well are missing ratings filled in? |
| leave_last | each user's newest | what comes next, for users that are known? |
| by_time | everything after a moment | what comes next, with nothing known of the future? |
| by_user | users who are not in train at all | how well are new users served? |
| canonical | the dataset's own | the same as published figures |

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
        train: what a model learns from.
        test: what is to be predicted.
    """

    train: Ratings
    test: Ratings


class ByUser(NamedTuple):
    """Strong generalization: train has nothing of the test users; `given` and `test` are theirs.

    Attributes:
        train: all ratings of the other users.
        given: what may be known of the test users, for fold-in.
        test: what is to be predicted for them.
    """

    train: Ratings
    given: Ratings
    test: Ratings


def random(ratings: Ratings, *, test_fraction: float, rng: np.random.Generator | int) -> Split:
    """Every rating goes to test with equal chance; exactly round(test_fraction * n) of them do, in input order.

    Args:
        ratings: what to split.
        test_fraction: the share of the test part, in (0, 1).
        rng: a generator, or a seed: the same seed gives the same split.

    Raises:
        ValueError: `test_fraction` is not in (0, 1), or one part would be empty.
    """
    _check_share("test_fraction", test_fraction)
    in_test = np.zeros(len(ratings), bool)
    in_test[np.random.default_rng(rng).permutation(len(ratings))[: round(test_fraction * len(ratings))]] = True
    return _divide(ratings, in_test, f"test_fraction={test_fraction} of {len(ratings)} ratings")


def k_fold(ratings: Ratings, k: int, *, rng: np.random.Generator | int) -> list[Split]:
    """K pairs (train, test): every rating in exactly one test, with equal chance; their sizes differ by at most 1.

    Args:
        ratings: what to split.
        k: the number of folds. Together they hold k copies of the ratings.
        rng: a generator, or a seed: the same seed gives the same folds.

    Raises:
        ValueError: k is not in [2, n]: with fewer ratings than folds a test would be empty.
    """
    _check_whole("k", k)
    if not 2 <= k <= len(ratings):
        raise ValueError(f"k: expected between 2 and {len(ratings)} folds (one rating in each), got {k}.")
    fold = (np.arange(len(ratings)) % k).astype(np.min_scalar_type(k))  # a small type shuffles and compares faster
    np.random.default_rng(rng).shuffle(fold)
    return [_divide(ratings, fold == number, f"fold {number} of {k}") for number in range(k)]


def leave_last(ratings: Ratings, k: int = 1) -> Split:
    """Each user's last k ratings by time are test; of equal times the later row of the input is the later rating.

    A user with no more than k ratings stays whole in train: she would be left with nothing to be known by. For one
    user nothing of train is later than her test; between users it may be: use `by_time` where that matters.

    Args:
        ratings: with times.
        k: ratings of each user in test.

    Raises:
        ValueError: ratings without times; k < 1; no user has more than k ratings.
    """
    time = _times(ratings, "leave_last")
    _check_whole("k", k)
    if k < 1:
        raise ValueError(f"k: expected a number >= 1, got {k}.")
    by_time = np.argsort(time, kind="stable")
    start, order = group_by(ratings.user[by_time], ratings.n_users)
    count = np.diff(start)
    from_the_end = np.repeat(start[1:], count) - np.arange(len(ratings))  # 1 for a user's last
    in_test = np.zeros(len(ratings), bool)
    in_test[by_time[order]] = (from_the_end <= k) & np.repeat(count > k, count)
    return _divide(ratings, in_test, f"leave_last with k={k}: a user with {k} or fewer ratings stays in train, which")


def by_time(
    ratings: Ratings,
    *,
    test_fraction: float | None = None,
    start_time: float | datetime.date | np.datetime64 | str | None = None,
) -> Split:
    """The newest ratings are test: every one of them is later than every one of train, never of the same moment.

    Args:
        ratings: with times.
        test_fraction: the share of the test part, in (0, 1). Equal times stay together, so the share is met as nearly
            as the times allow.
        start_time: instead of a share, the first moment of the test part: a datetime (UTC where it has no time zone),
            a date, a datetime64, text such as '2020-01-01T00:00:00+02:00', or a number in `ratings.time_unit`.

    Raises:
        ValueError: ratings without times; both or neither of `test_fraction` and `start_time`; a share outside (0, 1);
            an empty part.

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
    what = f"start_time={start_time}"
    if test_fraction is not None:
        _check_share("test_fraction", test_fraction)
        what = f"test_fraction={test_fraction} of {len(ratings)} ratings"
        wanted = min(max(round(test_fraction * len(ratings)), 1), len(ratings))
        first: int | float = int(np.partition(time, -wanted)[-wanted]) if len(time) else 0
        with_ties, without = int((time >= first).sum()), int((time > first).sum())
        if with_ties == len(time) or (without > 0 and wanted - without < with_ties - wanted):
            first += 1
    else:
        first = as_ticks("start_time", start_time, ratings.time_unit)
    return _divide(ratings, time >= first, what)


def by_user(ratings: Ratings, *, test_fraction: float, given_fraction: float, rng: np.random.Generator | int) -> ByUser:
    """Strong generalization: a share of the users is absent from train; a part of their ratings is given for fold-in.

    Of a test user with n >= 2 ratings, round(given_fraction * n) drawn at random are given, but at least 1 and at most
    n - 1, so that something is known and something is to be predicted. A test user's only rating is given: nothing is
    left to predict for that user. Users without ratings are not drawn.

    Args:
        ratings: what to split; all three parts have its users and items.
        test_fraction: the share of the users who have ratings, in (0, 1); round(test_fraction * users) are test users.
        given_fraction: the share of each test user's ratings that is given, in (0, 1).
        rng: a generator, or a seed: the same seed gives the same split.

    Raises:
        ValueError: a share outside (0, 1); no or all users would be test users; nothing is left to predict.
    """
    _check_share("test_fraction", test_fraction)
    _check_share("given_fraction", given_fraction)
    rng = np.random.default_rng(rng)
    users = np.flatnonzero(np.bincount(ratings.user, minlength=ratings.n_users))
    n_test = round(test_fraction * len(users))
    if not 0 < n_test < len(users):
        raise ValueError(
            f"test_fraction={test_fraction} of {len(users)} users with ratings makes {n_test} test users. "
            "Take another share."
        )
    is_test_user = np.zeros(ratings.n_users, bool)
    is_test_user[rng.permutation(users)[:n_test]] = True
    theirs = rng.permutation(np.flatnonzero(is_test_user[ratings.user]))  # rows in random order, then grouped
    start, order = group_by(ratings.user[theirs], ratings.n_users)
    count = np.diff(start)
    n_given = np.clip(np.round(given_fraction * count).astype(count.dtype), 1, np.maximum(count - 1, 1))
    position = np.arange(len(theirs)) - np.repeat(start[:-1], count)
    to_predict = theirs[order[position >= np.repeat(n_given, count)]]
    if len(to_predict) == 0:
        raise ValueError(f"none of the {n_test} test users has two ratings, so nothing is left to predict. Take more.")
    part = np.where(is_test_user[ratings.user], np.int8(1), np.int8(0))
    part[to_predict] = 2
    return ByUser(*(ratings.take(np.flatnonzero(part == which)) for which in range(3)))


def canonical(dataset: Dataset, name: str) -> Split:
    """A split that came with the dataset, such as MovieLens 100K's 'u1': the rows that published figures are made on.

    Raises:
        ValueError: the dataset has no split of that name (the message lists those it has), or one of other ratings.

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
            f"{in_test.dtype} of shape {in_test.shape}. Masks do not fit ratings that have been cut or merged."
        )
    return _divide(dataset.ratings, in_test, f"split {name}")


def _times(ratings: Ratings, split: str) -> np.ndarray:
    if ratings.time is None:
        raise ValueError(f"{split}: these ratings have no times (time is None). Use splits.random, k_fold or by_user.")
    return ratings.time


def _check_whole(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise ValueError(f"{name}: expected a whole number, got {number!r}.")


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name}: expected a share in (0, 1), got {share}.")


def _divide(ratings: Ratings, in_test: np.ndarray, what: str) -> Split:
    if in_test.all() or not in_test.any():
        empty = "train" if in_test.all() else "test"
        raise ValueError(f"{what} leaves the {empty} part empty. Take another share, or more ratings.")
    return Split(ratings.take(np.flatnonzero(~in_test)), ratings.take(np.flatnonzero(in_test)))  # faster than masks
