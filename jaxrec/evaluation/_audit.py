"""Audit of a split: what test tells of train, and how the two differ, before any model is fitted.

>>> from jaxrec import Ratings
>>> train = Ratings([0, 0, 1], [0, 1, 1], [5.0, 4.0, 3.0], 2, 3, time=[1, 2, 9])
>>> test = Ratings([0, 1], [2, 1], [2.0, 3.0], 2, 3, time=[3, 10])
>>> found = audit(train, test)
>>> found.pairs_in_both, found.unseen_items, found.users_before_others_train
(1, 1, 0.5)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrec import check, raw_ids
from jaxrec.evaluation._drift import compare_counts, ks_of_samples
from jaxrec.evaluation._near_duplicates import near_duplicates
from jaxrec.ratings import check_same_ids
from jaxrec.times import UNITS, TimeUnit
from jaxrec.types import Ratings

__all__ = ["Audit", "audit"]

INT64 = np.iinfo(np.int64)
EXAMPLES = 5  # near-duplicate items that are named
ABOUT_TIMES = (
    *("time_unit", "train_times", "test_times"),
    *("ratings_before_own_train", "ratings_before_others_train", "users_before_others_train"),
)


@dataclass(frozen=True, repr=False)
class Audit:
    """What `audit` found; its `repr` is a table, and `to_dict()` is for JSON. Shares are in [0, 1].

    Attributes:
        train_ratings, test_ratings: the numbers of rows, n and m.
        train_users, test_users: the numbers of users with ratings in a part.
        train_items, test_items: the same of items.
        train_repeats, test_repeats: rows of a (user, item) pair that an earlier row of the same part has.
        pairs_in_both: the number of distinct pairs that are in both parts.
        unseen_users, unseen_items: the numbers of test's users and items without ratings in train.
        unseen_users_share, unseen_items_share: these, of test's users and items.
        unseen_ratings_share: of test's ratings, those of an unseen user or item.
        time_unit: the unit of the times below, the finer of the parts'; this and all below None without times in both.
        train_times, test_times: the earliest and the latest time.
        ratings_before_own_train: of test's ratings, those earlier than the latest train rating of the same user.
        ratings_before_others_train: of test's ratings, those earlier than the latest train rating of another user.
        users_before_others_train: of test's users, those with such a rating.
        near_duplicates: the number of pairs of items that nearly the same users rated.
        near_duplicate_examples: of these, those with the highest cosines, as (item, item, cosine), by raw ids.
        near_duplicate_cosine, min_ratings: the arguments.
        item_drift, user_drift: total variation between train's and test's distribution over items, users.
        item_drift_if_random, user_drift_if_random: its mean over random splits of the same sizes.
        item_popularity_ks, user_activity_ks: the Kolmogorov-Smirnov distance of the popularity of a rating's item, and
            of the activity of its user, between train and test.
        train_mean, test_mean: the mean rating.
        rating_ks: the Kolmogorov-Smirnov distance of the ratings.
    """

    train_ratings: int
    test_ratings: int
    train_users: int
    test_users: int
    train_items: int
    test_items: int
    train_repeats: int
    test_repeats: int
    pairs_in_both: int
    unseen_users: int
    unseen_users_share: float
    unseen_items: int
    unseen_items_share: float
    unseen_ratings_share: float
    time_unit: TimeUnit | None
    train_times: tuple[int, int] | None
    test_times: tuple[int, int] | None
    ratings_before_own_train: float | None
    ratings_before_others_train: float | None
    users_before_others_train: float | None
    near_duplicates: int
    near_duplicate_examples: tuple[tuple[int | str, int | str, float], ...]
    near_duplicate_cosine: float
    min_ratings: int
    item_drift: float
    item_drift_if_random: float
    item_popularity_ks: float
    user_drift: float
    user_drift_if_random: float
    user_activity_ks: float
    train_mean: float
    test_mean: float
    rating_ks: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes by name, as what JSON can hold: tuples are lists."""
        return {field.name: _to_lists(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        """Returns a table of two columns, train and test, and what concerns both."""
        both = [
            ("", "train", "test"),
            ("ratings", f"{self.train_ratings:,}", f"{self.test_ratings:,}"),
            ("users", f"{self.train_users:,}", f"{self.test_users:,}"),
            ("items", f"{self.train_items:,}", f"{self.test_items:,}"),
            ("ratings per user", *(f"{n / users:.1f}" for n, users in self._sizes())),
            ("repeated pairs", f"{self.train_repeats:,}", f"{self.test_repeats:,}"),
            ("mean rating", f"{self.train_mean:.4f}", f"{self.test_mean:.4f}"),
        ]
        if self.train_times is not None and self.test_times is not None:
            moments = zip(("first time", "last time"), self.train_times, self.test_times, strict=True)
            both += [(name, *(_date(time, self.time_unit) for time in pair)) for name, *pair in moments]
        width = [max(len(row[column]) for row in both) for column in range(3)]
        lines = ["  ".join(text.ljust(n) for text, n in zip(row, width, strict=True)).rstrip() for row in both]
        return "\n".join(lines + [f"{name}: {text}" for name, text in self._of_both()])

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.train_ratings, self.train_users), (self.test_ratings, self.test_users)

    def _of_both(self) -> list[tuple[str, str]]:
        """(what, how much) of each line under the table."""
        lines = [
            ("in test", f"{self.test_ratings / (self.train_ratings + self.test_ratings):.1%} of the ratings"),
            ("pairs in both", f"{self.pairs_in_both:,}"),
            ("users of test not in train", f"{self.unseen_users:,} ({self.unseen_users_share:.1%})"),
            ("items of test not in train", f"{self.unseen_items:,} ({self.unseen_items_share:.1%})"),
            ("test ratings of an unseen user or item", f"{self.unseen_ratings_share:.1%}"),
        ]
        if self.users_before_others_train is not None:
            lines += [
                ("test ratings before the user's latest in train", f"{self.ratings_before_own_train:.1%}"),
                ("test ratings before others' latest in train", f"{self.ratings_before_others_train:.1%}"),
                ("test users with a rating before others' latest in train", f"{self.users_before_others_train:.1%}"),
            ]
        else:
            lines += [("times", "not in both parts, so their order is not known")]
        pairs = ", ".join(f"{a!r} and {b!r} ({cosine:.3f})" for a, b, cosine in self.near_duplicate_examples)
        of = f"cosine of their users >= {self.near_duplicate_cosine:g}, {self.min_ratings} ratings or more"
        drift = "{:.4f} ({:.4f} in a random split of these sizes)".format
        return [
            *lines,
            (f"pairs of near-duplicate items ({of})", f"{self.near_duplicates:,}" + (f": {pairs}" if pairs else "")),
            ("drift of items, total variation", drift(self.item_drift, self.item_drift_if_random)),
            ("drift of users, total variation", drift(self.user_drift, self.user_drift_if_random)),
            ("Kolmogorov-Smirnov distance of item popularity", f"{self.item_popularity_ks:.4f}"),
            ("Kolmogorov-Smirnov distance of user activity", f"{self.user_activity_ks:.4f}"),
            ("Kolmogorov-Smirnov distance of ratings", f"{self.rating_ks:.4f}"),
        ]


def audit(train: Ratings, test: Ratings, *, near_duplicate_cosine: float = 0.9, min_ratings: int = 10) -> Audit:
    """Counts what a split leaks from test to train, and measures how the parts differ.

    With n rows in train and m in test; n(i) and m(i) of them of item i (or user j); U(i) the users who rated i in
    either part; t the time of a row, and t*(j) the latest of user j in train::

        repeats                      n - the number of distinct pairs (j, i)
        pairs in both                |{(j, i) of train} and {(j, i) of test}|
        unseen items                 |{i: m(i) > 0, n(i) = 0}|, and over |{i: m(i) > 0}|
        ratings before own train     mean over test's rows of [t < t*(j)]
        ratings before others' train mean over test's rows of [t < max over j' != j of t*(j')]
        users before others' train   mean over test's users of [any row of theirs is]
        near-duplicates              |{i < i': cos(i, i') >= near_duplicate_cosine, |U(i)| and |U(i')| >= min_ratings}|,
                                     cos(i, i') = |U(i) and U(i')| / sqrt(|U(i)| |U(i')|)
        drift                        1/2 sum over i of |n(i) / n - m(i) / m|
        drift if random              its mean over all splits of the n + m rows into n and m, exactly
        item popularity KS           max over c of |F(c) - G(c)|, the shares of train's and test's rows whose item has
                                     n(i) + m(i) <= c
        rating KS                    the same with the rating in place of n(i) + m(i)

    A drift near `drift if random` is that of chance: with few ratings per item the parts differ much without any
    reason. Weights are not read. A rating at the very time of the latest in train is not before it.

    What to make of it. Pairs in both are found by any model that memorizes. Test ratings before train's let a model
    learn from the future (Ji et al., "A critical study on data leakage in recommender system offline evaluation", TOIS
    2023): no share is above 0 in `splits.by_time` and `global_time`. Users and items not in train are scored by a
    model's prior alone. Near-duplicate items, such as two editions of a film, give each other away. In data where most
    users rated most items, all items are near-duplicates by this definition.

    NumPy and SciPy on the host: the rows are sorted a few times, in about 50 bytes per rating and 250 MB. Only items
    that share one of their least active users are compared for near-duplicates, which misses none; where nearly all
    items are near-duplicates, that is nearly all pairs.

    Args:
        train: the ratings that models are fitted to.
        test: the ratings that are predicted. If both have raw ids, their tables may differ: ids are matched.
        near_duplicate_cosine: the cosine from which on two items count as near-duplicates, in (0, 1]. The search takes
            longer for lower ones.
        min_ratings: items with fewer users than these are no near-duplicates: two items with one and the same user
            have a cosine of 1 by chance.

    Raises:
        ValueError: a part has no ratings; tables differ in size and one has no raw ids, or ids are integers in one and
            strings in the other; times do not fit in the finer of two units; an argument is out of range.
    """
    for name, part in (("train", train), ("test", test)):
        if len(part) == 0:
            raise ValueError(f"{name}: expected at least one rating, got none.")
    if not 0 < near_duplicate_cosine <= 1:
        raise ValueError(f"near_duplicate_cosine: expected a cosine in (0, 1], got {near_duplicate_cosine}.")
    check.whole_number("min_ratings", min_ratings, least=1)
    train, test = _with_same_ids(train, test)
    train_pairs, test_pairs = _distinct_pairs(train), _distinct_pairs(test)
    in_train = _is_in(test_pairs, train_pairs)
    every_pair = np.sort(np.concatenate([train_pairs, test_pairs[~in_train]]), kind="stable")  # merges two sorted runs
    duplicates = near_duplicates(every_pair, train.n_users, train.n_items, near_duplicate_cosine, min_ratings, EXAMPLES)
    items, users = compare_counts(train, test, "item"), compare_counts(train, test, "user")
    item_ids = train.item_ids if train.item_ids is not None else test.item_ids
    raw = lambda i: i if item_ids is None else _for_json(item_ids[i].item())
    return Audit(
        train_ratings=len(train),
        test_ratings=len(test),
        train_users=users.n_train,
        test_users=users.n_test,
        train_items=items.n_train,
        test_items=items.n_test,
        train_repeats=len(train) - len(train_pairs),
        test_repeats=len(test) - len(test_pairs),
        pairs_in_both=int(in_train.sum()),
        unseen_users=int(users.unseen.sum()),
        unseen_users_share=float(users.unseen.sum() / users.n_test),
        unseen_items=int(items.unseen.sum()),
        unseen_items_share=float(items.unseen.sum() / items.n_test),
        unseen_ratings_share=float(np.mean(users.unseen[test.user] | items.unseen[test.item])),
        **_order_in_time(train, test),
        near_duplicates=duplicates.n_pairs,
        near_duplicate_examples=tuple((raw(a), raw(b), cosine) for a, b, cosine in duplicates.examples),
        near_duplicate_cosine=float(near_duplicate_cosine),
        min_ratings=int(min_ratings),
        item_drift=items.drift,
        item_drift_if_random=items.drift_if_random,
        item_popularity_ks=items.ks,
        user_drift=users.drift,
        user_drift_if_random=users.drift_if_random,
        user_activity_ks=users.ks,
        train_mean=float(train.value.mean(dtype=np.float64)),
        test_mean=float(test.value.mean(dtype=np.float64)),
        rating_ks=ks_of_samples(train.value, test.value),
    )


def _with_same_ids(train: Ratings, test: Ratings) -> tuple[Ratings, Ratings]:
    """Returns both with the same tables: the joint raw ids of a side, where both have raw ids and these differ."""
    joint: dict[str, Any] = {}
    for name in ("user_ids", "item_ids"):
        a, b = getattr(train, name), getattr(test, name)
        if a is not None and b is not None and (len(a) != len(b) or raw_ids.first_difference(a, b) is not None):
            joint[name] = raw_ids.union(name, [a, b])
    if joint:
        train, test = train.reindexed(**joint), test.reindexed(**joint)
    check_same_ids(train, test)
    return train, test


def _distinct_pairs(ratings: Ratings) -> np.ndarray:
    """The distinct (user, item) pairs as user * n_items + item, ascending."""
    pairs = np.sort(ratings.user * np.int64(ratings.n_items) + ratings.item)
    return pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]


def _is_in(some: np.ndarray, known: np.ndarray) -> np.ndarray:
    """For each of some numbers, whether it is among the known, which are ascending; a mask."""
    return known[np.minimum(np.searchsorted(known, some), len(known) - 1)] == some


def _order_in_time(train: Ratings, test: Ratings) -> dict[str, Any]:
    """The attributes of `Audit` about times."""
    if train.time is None or test.time is None:
        return dict.fromkeys(ABOUT_TIMES)
    unit = UNITS[max(UNITS.index(part.time_unit) for part in (train, test))]
    train_time = _in_unit(train.time, train.time_unit, unit)
    test_time = _in_unit(test.time, test.time_unit, unit)
    latest = np.full(train.n_users, INT64.min)  # a time that no rating has
    np.maximum.at(latest, train.user, train_time)
    # The latest train rating of the other users is the latest of all, but for the one user who may have given that.
    newest = int(latest.argmax())
    latest_of_others = np.full(train.n_users, latest[newest])
    latest_of_others[newest] = np.delete(latest, newest).max(initial=INT64.min)
    before_others = test_time < latest_of_others[test.user]
    is_test_user = np.bincount(test.user, minlength=test.n_users) > 0
    users_before = np.bincount(test.user[before_others], minlength=test.n_users) > 0
    values = (
        unit,
        *((int(time.min()), int(time.max())) for time in (train_time, test_time)),
        float(np.mean(test_time < latest[test.user])),
        float(np.mean(before_others)),
        float(users_before.sum() / is_test_user.sum()),
    )
    return dict(zip(ABOUT_TIMES, values, strict=True))


def _in_unit(time: np.ndarray, unit: TimeUnit, finer: TimeUnit) -> np.ndarray:
    """Returns times in a finer unit; raises if they do not fit in int64."""
    ratio = 1000 ** (UNITS.index(finer) - UNITS.index(unit))
    if ratio > 1 and max(abs(int(time.min())), abs(int(time.max()))) * ratio > INT64.max:
        raise ValueError(
            f"expected times of train and test in one unit, got {unit} that do not fit in {finer}. Build both with the "
            "same times and time_unit."
        )
    return time * ratio if ratio > 1 else time


def _to_lists(value: Any) -> Any:
    return [_to_lists(each) for each in value] if isinstance(value, tuple) else value


def _for_json(raw_id: Any) -> int | str:
    return raw_id.decode(errors="backslashreplace") if isinstance(raw_id, bytes) else raw_id


def _date(time: int, unit: Any) -> str:
    """A time as a number, and the date that it is if it counts from 1970."""
    return f"{time} {unit} ({np.datetime64(time, unit).astype('M8[D]')})"
