"""The parts of splits, and what several splits share: checks, orders of rows, and the division by a mask."""

from typing import Any, NamedTuple

import numpy as np

from jaxrec.counting_sort import group_by
from jaxrec.types import Ratings

__all__ = ["ByUser", "GlobalTime", "Split", "check_fraction", "check_whole", "divide", "rank_in_user", "times"]


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


class GlobalTime(NamedTuple):
    """A split at one time for all users, with the ratings to predict chosen among each user's later ones.

    Attributes:
        train: all ratings before the time: fit a model to these only.
        given: each user's later ratings that precede their test ratings: known when the test ratings are predicted,
            so they may be folded in or read as a sequence.
        test: the ratings to predict.
        unused: the later ratings in no other part: those after a user's test rating, and all of users who have none in
            train, if these are dropped.
    """

    train: Ratings
    given: Ratings
    test: Ratings
    unused: Ratings


def times(ratings: Ratings, split: str, *, alternative: str = "Use splits.random, k_fold or by_user.") -> np.ndarray:
    """Returns the times of the ratings; raises if there are none, naming the alternative."""
    if ratings.time is None:
        raise ValueError(f"{split}: these ratings have no times (time is None). {alternative}")
    return ratings.time


def rank_in_user(user: np.ndarray, n_users: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of n rows in an order: (the number of earlier rows of the same user, the number of the user's rows).

    >>> rank_in_user(np.array([3, 1, 3, 3]), 4)
    (array([0, 0, 1, 2]), array([3, 1, 3, 3]))
    """
    start, order = group_by(user, n_users)
    count = np.diff(start).astype(np.int64)
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - np.repeat(start[:-1], count)
    return rank, count[user]


def check_whole(name: str, number: Any) -> None:
    """Checks that a number is a whole one."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise ValueError(f"{name}: expected a whole number, got {number!r}.")


def check_fraction(name: str, fraction: float) -> None:
    """Checks that a fraction is neither nothing nor all."""
    if not 0 < fraction < 1:
        raise ValueError(f"{name}: expected a fraction in (0, 1), got {fraction}.")


def divide(ratings: Ratings, in_test: np.ndarray, options: str) -> Split:
    """Returns the split by a mask of the test rows; raises if a part is empty, naming the options that made it so."""
    if in_test.all() or not in_test.any():
        empty = "train" if in_test.all() else "test"
        raise ValueError(f"{options} leaves the {empty} part empty. Choose another split, or use more ratings.")
    # Positions are faster than masks.
    return Split(ratings.take(np.flatnonzero(~in_test)), ratings.take(np.flatnonzero(in_test)))
