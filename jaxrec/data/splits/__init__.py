"""Splits into disjoint train and test parts, which keep the input's order, users and items.

| split | test part | measures |
| --- | --- | --- |
| random, k_fold | ratings drawn uniformly | how well missing ratings are predicted |
| leave_last | each user's newest ratings, or last rows | what known users rate next |
| by_time | all ratings from a time on | what is rated next, with nothing known of the future |
| global_time | of each user's ratings from a time on: all, the first, the last, or a random one | the same, per user |
| by_user | ratings of users who are not in train | how well new users are served |
| canonical | the dataset's published test part | the same as published figures |

Which split is chosen can change which of two models is better (Meng et al., "Exploring data splitting strategies for
the evaluation of recommendation models", RecSys 2020). A split that is not by time trains on ratings that were given
after those it predicts: `evaluation.audit(train, test)` counts them, and more that a split may leak.

>>> from jaxrec import Ratings
>>> ratings = Ratings.from_columns(range(10), [0] * 10, range(10))
>>> train, test = random(ratings, test_fraction=0.2, rng=0)
>>> len(train), len(test), train.n_users
(8, 2, 10)
"""

from jaxrec.data.splits._parts import ByUser, GlobalTime, Split
from jaxrec.data.splits._rows import canonical, k_fold, random
from jaxrec.data.splits._times import by_time, global_time
from jaxrec.data.splits._users import by_user, leave_last

__all__ = [
    "ByUser",
    "GlobalTime",
    "Split",
    "by_time",
    "by_user",
    "canonical",
    "global_time",
    "k_fold",
    "leave_last",
    "random",
]
