"""The last items of every user: what they did most recently, as the history that they are scored from.

>>> ratings = Ratings(user=[0, 0, 1, 0], item=[3, 1, 2, 0], value=[1, 1, 1, 1], n_users=2, n_items=4, time=[5, 9, 1, 7])
>>> last_items(ratings, 2).item.tolist()  # user 0 had items 1 and 0 last
[1, 2, 0]
"""

import numpy as np

from jaxrec import check
from jaxrec.counting_sort import group_by
from jaxrec.types import Ratings

__all__ = ["last_items"]


def last_items(ratings: Ratings, n: int) -> Ratings:
    """Returns the last n ratings of every user, in the order of the input; all of a user who has fewer.

    Last is by time, and among equal times by the order of the input; without times it is by that order alone. A scorer
    from other histories than those it was fitted to takes them like this::

        knn = solvers.neighbors.item_knn(train, k=100)
        models.neighbors.item_scorer(data.last_items(train, 5), knn.rows)

    Raises:
        ValueError: n is not a whole number >= 1.
    """
    check.whole_number("n", n, least=1)
    order = np.arange(len(ratings)) if ratings.time is None else np.argsort(ratings.time, kind="stable")
    start, by_user = group_by(ratings.user[order], ratings.n_users)
    until_end = np.repeat(start[1:], np.diff(start)) - np.arange(len(ratings))  # 1 for a user's last rating
    return ratings.take(np.sort(order[by_user[until_end <= n]]))
