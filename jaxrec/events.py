"""The order of events: each user's rows of ratings, from the oldest to the newest.

>>> events = events_in_order(Ratings([0, 1, 0], [2, 0, 1], [1] * 3, 2, 3, time=[7, 1, 5]), "time")
>>> events.start.tolist(), events.rows.tolist()
([0, 2, 3], [2, 0, 1])
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxrec import check
from jaxrec.counting_sort import group_by
from jaxrec.types import Ratings

__all__ = ["Events", "Order", "events_in_order"]

Order = Literal["time", "position"]


class Events(NamedTuple):
    """Rows of ratings, each user's from the oldest to the newest.

    Attributes:
        start: int64 [n_users + 1]; user j's events are rows[start[j] : start[j + 1]].
        rows: [n], positions in the ratings.
    """

    start: np.ndarray
    rows: np.ndarray


def events_in_order(ratings: Ratings, order: Order) -> Events:
    """Returns each user's rows from the oldest to the newest.

    Args:
        ratings: the events; values are not used.
        order: by 'time', where among equal times the later row is the later event; or by 'position', the later row
            itself, for ratings without times whose rows are in order.

    Raises:
        ValueError: the ratings have no times, with order='time'; another order.
    """
    check.choice("order", order, ("time", "position"))
    if order == "position":
        rows = np.arange(len(ratings))
    elif ratings.time is not None:
        rows = np.argsort(ratings.time, kind="stable")
    else:
        raise ValueError(
            "order: these ratings have no times (time is None). Pass order='position' if their rows are in the order "
            "of the events."
        )
    start, by_user = group_by(ratings.user[rows], ratings.n_users)
    return Events(start.astype(np.int64), rows[by_user])
