"""Splits of each user's ratings, or of the users."""

from typing import Literal

import numpy as np

from jaxrec import check
from jaxrec.data.splits._parts import ByUser, Split, check_fraction, check_whole, divide, rank_in_user, times
from jaxrec.types import Ratings

__all__ = ["by_user", "leave_last"]


def leave_last(ratings: Ratings, k: int = 1, *, order: Literal["time", "position"] = "time") -> Split:
    """Splits off each user's last k ratings as test.

    All ratings of a user with k or fewer stay in train, since otherwise none would be left to fit that user. No train
    rating of a user is later than their test ratings, but it may be later than those of other users: use `by_time` or
    `global_time` if that matters.

    Args:
        ratings: the ratings to split.
        k: the number of test ratings per user.
        order: what is last: by 'time', where among equal times the later row of the input is the later rating; or by
            'position', the later row itself, for ratings without times whose rows are in the order in which they were
            given. (A table sorted by item is not: then the last row of every user is of an item with a high id.) No
            two rows have the same position, so that there are no ties; times, if there are any, are not read.

    Raises:
        ValueError: the ratings have no times, with `order='time'`; k < 1; no user has more than k ratings.

    >>> ratings = Ratings([0, 1, 0, 0, 1], [2, 0, 0, 1, 3], [1] * 5, 2, 4)
    >>> train, test = leave_last(ratings, order="position")
    >>> test.user, test.item
    (array([0, 1], dtype=int32), array([1, 3], dtype=int32))
    """
    check.choice("order", order, ("time", "position"))
    rows = _sorted_rows(ratings, np.arange(len(ratings)), order, "leave_last")
    check_whole("k", k)
    if k < 1:
        raise ValueError(f"k: expected a number >= 1, got {k}.")
    rank, count = rank_in_user(ratings.user[rows], ratings.n_users)
    in_test = np.zeros(len(ratings), bool)
    in_test[rows] = (rank >= count - k) & (count > k)
    return divide(ratings, in_test, f"leave_last with k={k}: a user with {k} or fewer ratings stays in train, which")


def by_user(
    ratings: Ratings,
    *,
    test_fraction: float,
    given_fraction: float,
    order: Literal["random", "time", "position"] = "random",
    rng: np.random.Generator | int,
) -> ByUser:
    """Splits for strong generalization: a fraction of the users is not in train, but some of their ratings are `given`.

    For a test user with n >= 2 ratings, round(given_fraction * n) of them, but at least 1 and at most n - 1, are
    `given`, and the others are test. The only rating of a test user is in `given`, with none to predict. Users without
    ratings are not drawn. (Liang et al., "Variational autoencoders for collaborative filtering", WWW 2018, give 80 %,
    drawn at random. For their validation users, split `train` in the same way again.)

    Args:
        ratings: the ratings to split; all three parts have their users and items.
        test_fraction: the fraction of test users among the users with ratings, in (0, 1); there are
            round(test_fraction * users).
        given_fraction: the fraction of each test user's ratings that is in `given`, in (0, 1).
        order: which of a test user's ratings are given: drawn uniformly at 'random'; the oldest, by 'time', where among
            equal times the later row of the input is the later rating; or the first rows, by 'position', for ratings
            without times. Ratings in train may be later than those in test.
        rng: a generator or a seed; the same seed gives the same split, and the same test users for every `order`.

    Raises:
        ValueError: a fraction is not in (0, 1); no or all users would be test users; no rating is left to predict; the
            ratings have no times, with `order='time'`.

    >>> ratings = Ratings([0, 0, 0, 1, 1, 1], range(6), [1] * 6, 2, 6, time=[3, 1, 2, 6, 5, 4])
    >>> parts = by_user(ratings, test_fraction=0.5, given_fraction=0.67, order="time", rng=0)
    >>> [part.time.tolist() for part in parts]
    [[6, 5, 4], [1, 2], [3]]
    """
    check_fraction("test_fraction", test_fraction)
    check_fraction("given_fraction", given_fraction)
    check.choice("order", order, ("random", "time", "position"))
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
    rows = np.flatnonzero(is_test_user[ratings.user])
    # Random rows are in random order within each user too.
    rows = rng.permutation(rows) if order == "random" else _sorted_rows(ratings, rows, order, "by_user")
    rank, count = rank_in_user(ratings.user[rows], ratings.n_users)
    n_given = np.clip(np.round(given_fraction * count).astype(np.int64), 1, np.maximum(count - 1, 1))
    test_rows = rows[rank >= n_given]
    if len(test_rows) == 0:
        raise ValueError(
            f"none of the {n_test} test users has two ratings, so nothing is left to predict. "
            "Choose a larger test_fraction."
        )
    part = np.where(is_test_user[ratings.user], np.int8(1), np.int8(0))
    part[test_rows] = 2
    return ByUser(*(ratings.take(np.flatnonzero(part == number)) for number in range(3)))


def _sorted_rows(ratings: Ratings, rows: np.ndarray, order: str, split: str) -> np.ndarray:
    """Returns rows, which are ascending, from the first rating to the last."""
    if order == "position":
        return rows
    alternative = "Use splits.random, or order='position' if the rows are in the order in which they were given."
    return rows[np.argsort(times(ratings, split, alternative=alternative)[rows], kind="stable")]
