"""Splits at one time for all users: of all later ratings, or of some chosen among each user's."""

import datetime
from typing import Literal

import numpy as np

from jaxrec import check
from jaxrec.data.splits._parts import GlobalTime, Split, check_fraction, divide, rank_in_user, times
from jaxrec.times import as_ticks
from jaxrec.types import Ratings

__all__ = ["by_time", "global_time"]

Moment = float | datetime.date | np.datetime64 | str


def by_time(ratings: Ratings, *, test_fraction: float | None = None, start_time: Moment | None = None) -> Split:
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
    return divide(ratings, *_from_start(ratings, "by_time", test_fraction, start_time))


def global_time(
    ratings: Ratings,
    *,
    target: Literal["all", "first", "last", "random"],
    new_users: Literal["keep", "drop"],
    test_fraction: float | None = None,
    start_time: Moment | None = None,
    rng: np.random.Generator | int | None = None,
) -> GlobalTime:
    """Splits at one time for all users, and chooses which of each user's later ratings are predicted.

    Every rating from the start on is later than every train rating. Of each user's ratings from the start on, sorted
    by time (among equal times the later row of the input is the later rating), the target is test, those before it are
    `given`, and those after it are `unused`::

        user's ratings     a   b | c   d   e      | is the start
        target='all'       train | test test test
        target='first'     train | test unused unused
        target='last'      train | given given test
        target='random'    train | given test unused      d was drawn, each with probability 1/3

    The four parts are disjoint and together all ratings. For a validation part, split `train` in the same way again.
    `last` is nearest to the common leave-one-out, but trains on nothing of the future; `random` is spread over the
    test period, as requests are (Gusak et al., "Time to split: exploring data splitting strategies for offline
    evaluation of sequential recommenders", RecSys 2025, arXiv 2507.16289).

    Args:
        ratings: ratings with times.
        target: which of a user's later ratings is predicted: 'all', the 'first', the 'last', or one drawn at 'random'.
        new_users: what to do with the later ratings of users who have none in train: 'keep' them like others, or
            'drop' them all into `unused`.
        test_fraction: the fraction of the ratings that are later than train, in (0, 1), as in `by_time`; of these,
            `target` chooses.
        start_time: instead of a fraction, the time from which on ratings are later than train, as in `by_time`.
        rng: a generator or a seed, for `target='random'` only; the same seed gives the same split.

    Raises:
        ValueError: as `by_time`; `target` or `new_users` is none of the above; `rng` is missing for 'random', or passed
            for another target; no rating is left to predict, because all later ones are of users to drop.

    >>> ratings = Ratings([0, 0, 0, 0, 1], [0, 1, 2, 3, 0], [1] * 5, 2, 4, time=[1, 5, 6, 7, 8])
    >>> parts = global_time(ratings, target="last", new_users="drop", start_time=5)
    >>> [part.item.tolist() for part in parts]
    [[0], [1, 2], [3], [0]]
    """
    check.choice("target", target, ("all", "first", "last", "random"))
    check.choice("new_users", new_users, ("keep", "drop"))
    if (target == "random") != (rng is not None):
        raise ValueError(f"rng: expected a generator or a seed for target='random' only, got {rng} for {target!r}.")
    is_later, options = _from_start(ratings, "global_time", test_fraction, start_time)
    train, _ = divide(ratings, is_later, options)
    rows = np.flatnonzero(is_later)
    rows = rows[np.argsort(times(ratings, "global_time")[rows], kind="stable")]
    user = ratings.user[rows]
    rank, count = rank_in_user(user, ratings.n_users)
    match target:
        case "all":
            target_rank = rank
        case "first":
            target_rank = np.zeros_like(rank)
        case "last":
            target_rank = count - 1
        case "random":
            n_later = np.bincount(user, minlength=ratings.n_users)
            target_rank = np.random.default_rng(rng).integers(np.maximum(n_later, 1))[user]
    # 1 is given, 2 is test, 3 is unused.
    part = 2 + np.sign(rank - target_rank)
    if new_users == "drop":
        in_train = np.bincount(train.user, minlength=ratings.n_users) > 0
        part[~in_train[user]] = 3
    if not (part == 2).any():
        raise ValueError(
            f"{options}: no user has ratings both before and after the start, so with new_users='drop' nothing is left "
            "to predict. Choose another start, or new_users='keep'."
        )
    return GlobalTime(train, *(ratings.take(np.sort(rows[part == number])) for number in (1, 2, 3)))


def _from_start(
    ratings: Ratings, split: str, test_fraction: float | None, start_time: Moment | None
) -> tuple[np.ndarray, str]:
    """Returns (the mask of the ratings from the start on, the options in words)."""
    time = times(ratings, split)
    if (test_fraction is None) == (start_time is None):
        raise ValueError(
            f"{split}: expected either test_fraction or start_time, got test_fraction={test_fraction} and "
            f"start_time={start_time}."
        )
    if test_fraction is None:
        return time >= as_ticks("start_time", start_time, ratings.time_unit), f"start_time={start_time}"
    check_fraction("test_fraction", test_fraction)
    n_test = min(max(round(test_fraction * len(ratings)), 1), len(ratings))
    first = int(np.partition(time, -n_test)[-n_test]) if len(time) else 0
    # Of the ratings at time `first` all or none are in test, whichever is nearer to n_test; no part is empty.
    with_ties, without_ties = int((time >= first).sum()), int((time > first).sum())
    if with_ties == len(time) or (without_ties > 0 and n_test - without_ties < with_ties - n_test):
        first += 1
    return time >= first, f"test_fraction={test_fraction} of {len(ratings)} ratings"
