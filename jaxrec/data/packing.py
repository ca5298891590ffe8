"""Sequences of events packed into arrays of one static shape, so that a sequence model compiles once.

Each user's events, oldest first, are one segment. Segments are packed into rows of one length, several into a row,
because sequences are of very different lengths: of Amazon's Beauty, padded to 50 events each, 83 % would be padding.
A model must keep the segments of a row apart: an event attends to events of its own segment only.

>>> ratings = Ratings([0, 0, 0, 1, 1, 2], [5, 3, 4, 0, 1, 2], [1] * 6, 3, 6)
>>> packed = sequences(ratings, length=4, order="position")
>>> packed.item.tolist()
[[5, 3, 4, 2], [0, 1, 0, 0]]
>>> packed.segment.tolist()  # 0 is padding
[[1, 1, 1, 2], [1, 1, 0, 0]]
>>> packed.position.tolist()
[[0, 1, 2, 0], [0, 1, 0, 0]]
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec import check
from jaxrec.events import Order, events_in_order
from jaxrec.pytree import register_dataclass
from jaxrec.types import Ratings

__all__ = ["Sequences", "sequences"]


@register_dataclass
@dataclass(frozen=True)
class Sequences:
    """The users' events in rows of one length, one segment per user; a pytree.

    Attributes:
        item: int32 [n_rows, length], 0 in padding.
        where: bool [n_rows, length], False in padding.
        segment: int32 [n_rows, length], from 1 within each row, 0 in padding: which events are of one user.
        position: int32 [n_rows, length], from 0 for the oldest event that was kept of its user, 0 in padding.
        user: int32 [n_rows, length], 0 in padding.
        weights: [n_rows, length], the ratings' weights, 0 in padding; None for ones.
        gap: float32 [n_rows, length], the time since the user's event before, in the ratings' unit of time, 0 for an
            event without one; None if there are no times.
        row: int32 [n_users], the row of each user's events; 0 for a user without any.
        last: int32 [n_users], the column of each user's last event; 0 for a user without any.
        count: int32 [n_users], the number of events that were kept.
        dropped: int32 [n_users], the number of events that were dropped, the oldest of sequences beyond `length`.
        n_items: the size of the item table.
    """

    item: Array
    where: Array
    segment: Array
    position: Array
    user: Array
    weights: Array | None
    gap: Array | None
    row: Array
    last: Array
    count: Array
    dropped: Array
    n_items: int = field(metadata={"static": True})

    @property
    def length(self) -> int:
        """The length of the rows."""
        return self.item.shape[1]

    @property
    def n_dropped(self) -> int:
        """The number of events of all users that were dropped."""
        return int(self.dropped.sum())


def sequences(ratings: Ratings, *, length: int, order: Order = "time", pad_to_multiple: int = 1) -> Sequences:
    """Packs each user's events, oldest first, into rows of one length.

    Of a user with more than `length` events the newest `length` are kept; `dropped` has the number of others. Longest
    segments are placed first, each into the row with the least room that is enough (best fit, decreasing).

    A user with one event is a segment of one: there is nothing to predict it from, and nothing after it. For published
    protocols, which hold out each user's last event, split first: `data.splits.leave_last(ratings, order="position")`,
    or by time, `data.splits.global_time`.

    Args:
        ratings: the events. Values are not used; a user may have an item several times.
        length: of the rows.
        order: by 'time', where among equal times the later row is the later event; or by 'position', for ratings
            without times whose rows are in order.
        pad_to_multiple: the number of rows is padded to a multiple of it, with rows of padding.

    Raises:
        ValueError: no ratings; length or pad_to_multiple < 1; the ratings have no times, with order='time'.
    """
    check.whole_number("length", length, least=1)
    check.whole_number("pad_to_multiple", pad_to_multiple, least=1)
    start, rows = events_in_order(ratings, order)
    if len(ratings) == 0:
        raise ValueError("ratings: expected at least one event, got none.")
    n_events = np.diff(start)
    count = np.minimum(n_events, length)
    row, offset, segment = _best_fit(count, length)

    user = np.repeat(np.arange(ratings.n_users), n_events)
    position = np.arange(len(user)) - start[user] - (n_events - count)[user]  # negative for what is dropped
    kept = position >= 0
    user, position, source = user[kept], position[kept], rows[kept]
    n_rows = int(row.max()) + 1
    n_rows += -n_rows % pad_to_multiple

    def packed(column: np.ndarray) -> Array:
        table = np.zeros((n_rows, length), column.dtype)
        table[row[user], offset[user] + position] = column
        return jnp.asarray(table)

    ids = lambda column: jnp.asarray(column.astype(np.int32))
    gap = None
    if ratings.time is not None:
        time = ratings.time[source]
        gap = packed(np.where(position > 0, np.diff(time, prepend=time[:1]), 0).astype(np.float32))
    return Sequences(
        item=packed(ratings.item[source].astype(np.int32)),
        where=packed(np.ones(len(user), bool)),
        segment=packed(segment[user].astype(np.int32)),
        position=packed(position.astype(np.int32)),
        user=packed(user.astype(np.int32)),
        weights=None if ratings.weights is None else packed(ratings.weights[source]),
        gap=gap,
        row=ids(row),
        last=ids(np.where(count > 0, offset + count - 1, 0)),
        count=ids(count),
        dropped=ids(n_events - count),
        n_items=ratings.n_items,
    )


class _Places(NamedTuple):
    row: np.ndarray
    offset: np.ndarray
    segment: np.ndarray


def _best_fit(count: np.ndarray, length: int) -> _Places:
    """Where each segment of `count` entries goes in rows of `length`; segments of 0 entries stay at (0, 0, 0)."""
    row, offset, segment = (np.zeros(len(count), np.int64) for _ in range(3))
    open_rows: dict[int, list[int]] = {}  # free entries of a row -> such rows
    free_sizes: list[int] = []  # the keys, ascending
    segments_of_row: list[int] = []
    for index in np.argsort(-count, kind="stable")[: np.count_nonzero(count)].tolist():
        size = int(count[index])
        place = bisect_left(free_sizes, size)
        if place == len(free_sizes):
            free, chosen = length, len(segments_of_row)
            segments_of_row.append(0)
        else:
            free = free_sizes[place]
            chosen = open_rows[free].pop()
            if not open_rows[free]:
                del open_rows[free], free_sizes[place]
        segments_of_row[chosen] += 1
        row[index], offset[index], segment[index] = chosen, length - free, segments_of_row[chosen]
        if left := free - size:
            if left not in open_rows:
                open_rows[left] = []
                insort(free_sizes, left)
            open_rows[left].append(chosen)
    return _Places(row, offset, segment)
