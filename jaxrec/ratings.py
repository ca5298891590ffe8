"""Ratings on the host: columns with contiguous ids, and how they come from raw ids and files.

Letters as in `jaxrec.types`: i = item, j = user, y(i,j) the rating. A rating of 0 is a rating.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec import check
from jaxrec.group import group

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Dataset", "Ratings"]

Duplicates = Literal["error", "first", "last", "mean", "sum"]


@dataclass(frozen=True, eq=False)
class Ratings:
    """Observed ratings as columns on the host, with contiguous ids.

    Attributes:
        user: int32 [n], in [0, n_users).
        item: int32 [n], in [0, n_items).
        value: float32 [n], the rating; finite.
        n_users: rows of the user table; users without ratings count.
        n_items: rows of the item table.
        time: int64 [n], seconds since 1970, or None where the data has none.
        weights: float32 [n], >= 0, or None for all ones.
        user_ids: [n_users], the raw id of each user, or None where ids were contiguous from the start.
        item_ids: [n_items], the raw id of each item, or None.

    Raises:
        ValueError: an id out of range (checked before the cast to int32), a NaN, columns of different lengths.

    >>> Ratings(user=[0, 1, 1], item=[0, 0, 2], value=[5, 4, 0], n_users=3, n_items=3)
    Ratings(3 ratings of 3 items by 3 users)
    """

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    n_users: int
    n_items: int
    time: np.ndarray | None = None
    weights: np.ndarray | None = None
    user_ids: np.ndarray | None = None
    item_ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Checks every column and casts it to the type promised above."""
        check.same_length(user=self.user, item=self.item, value=self.value, time=self.time, weights=self.weights)
        put = lambda name, value: object.__setattr__(self, name, value)
        put("n_users", check.size_of_table("n_users", self.n_users))
        put("n_items", check.size_of_table("n_items", self.n_items))
        put("user", check.ids("user", self.user, size=self.n_users))
        put("item", check.ids("item", self.item, size=self.n_items))
        put("value", check.finite("value", self.value))
        if self.time is not None:
            time = np.asarray(self.time)
            if time.dtype.kind == "M":
                time = time.astype("datetime64[s]")
                if np.isnat(time).any():
                    raise ValueError("time: expected a time for every rating, got NaT. Drop those rows, or the column.")
            elif (np.abs(check.finite("time", time, dtype=np.float64)) >= 2.0**63).any():
                raise ValueError(f"time: expected seconds that fit in int64, got {time.max()}. Are these nanoseconds?")
            put("time", time.astype(np.int64))
        if self.weights is not None:
            put("weights", check.finite("weights", self.weights))
            if (self.weights < 0).any():
                raise ValueError(f"weights: expected numbers >= 0, got {self.weights.min()}.")
        for name, size in (("user_ids", self.n_users), ("item_ids", self.n_items)):
            raw = getattr(self, name)
            if raw is not None:
                put(name, np.asarray(raw))
                if len(raw) != size:
                    raise ValueError(f"{name}: expected one raw id per row of the table ({size}), got {len(raw)}.")
                if len(set(getattr(self, name).tolist())) != size:
                    raise ValueError(f"{name}: expected distinct ids, got some twice.")

    def __len__(self) -> int:
        """The number of ratings."""
        return len(self.value)

    def __repr__(self) -> str:
        """A line, not a million numbers."""
        return f"Ratings({len(self)} ratings of {self.n_items} items by {self.n_users} users)"

    def take(self, rows: Any) -> Ratings:
        """The ratings at `rows` (positions, a slice or a mask), over the same users and items."""
        cut = lambda column: None if column is None else column[rows]
        return dataclasses.replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            value=self.value[rows],
            time=cut(self.time),
            weights=cut(self.weights),
        )

    @classmethod
    def from_columns(
        cls,
        user: Any,
        item: Any,
        value: Any = None,
        *,
        time: Any = None,
        weights: Any = None,
        user_ids: Any = None,
        item_ids: Any = None,
        duplicates: Duplicates = "error",
    ) -> Ratings:
        """Ratings from columns of raw ids (integers or strings), made contiguous.

        Args:
            user: [n] raw ids.
            item: [n] raw ids.
            value: [n] numbers; all ones where None (feedback without ratings).
            time: [n] seconds since 1970 or datetime64, or None.
            weights: [n] numbers >= 0, or None.
            user_ids: the known users in the order wanted; by default those that occur, sorted. An id that is not
                among them is an error: nothing is dropped in silence.
            item_ids: the same for items.
            duplicates: what to do where a user rated an item more than once: 'error'; keep the 'first' or 'last' row
                as given; the 'mean' or 'sum' of the values (their time the latest, their weights' sum).

        Raises:
            ValueError: as `Ratings`; unknown or missing ids; duplicate pairs where `duplicates='error'`.

        >>> ratings = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 0])
        >>> ratings.user, ratings.item_ids
        (array([0, 1, 1], dtype=int32), array([10, 30]))
        """
        check.choice("duplicates", duplicates, ("error", "first", "last", "mean", "sum"))
        value = np.ones(len(user), np.float32) if value is None else value
        check.same_length(user=user, item=item, value=value, time=time, weights=weights)
        user, user_ids = _encode("user", user, user_ids)
        item, item_ids = _encode("item", item, item_ids)
        ratings = cls(user, item, value, len(user_ids), len(item_ids), time, weights, user_ids, item_ids)
        return _without_duplicates(ratings, duplicates)


def _encode(name: str, raw: Any, known: Any) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous ids of raw ids, and the raw id of each: a sorted look-up, whatever the type of the ids."""
    given, raw = raw, np.asarray(raw)
    if raw.ndim != 1 or raw.size == 0:
        raise ValueError(f"{name}: expected one column with at least one raw id, got shape {raw.shape}.")
    # NumPy makes strings of a mixed list, and objects of a column with None
    if raw.dtype.kind == "O" or (raw.dtype.kind == "U" and isinstance(given, list | tuple)):
        if any(not isinstance(x, str) for x in given):
            raise ValueError(f"{name}: expected raw ids that are all integers or all strings, got a mixture or None.")
        raw = raw.astype(str)
    if raw.dtype.kind not in "iuUS":
        raise ValueError(f"{name}: expected raw ids that are integers or strings, got {raw.dtype}.")
    if known is None:
        return _distinct(raw)
    known = np.asarray(known)
    if known.ndim != 1 or known.size == 0:
        raise ValueError(f"{name}_ids: expected one column with at least one id, got shape {known.shape}.")
    if len(set(known.tolist())) != len(known):
        raise ValueError(f"{name}_ids: expected distinct ids.")
    contiguous = _place(raw, known)
    unknown = contiguous < 0
    if unknown.any():
        first = raw[unknown][:1].tolist()[0]
        raise ValueError(
            f"{name}: {first!r} is not among the {len(known)} known ids ({int(unknown.sum())} such rows). "
            f"Leave {name}_ids out to take every id that occurs, or drop those rows."
        )
    return contiguous, known


def _distinct(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the number of each id among the distinct ones, those ones sorted): by a table where ids are near one another.

    20M integer ids: .2 s by the table, 2 to 5 s by a sort; np.unique with its inverse takes 20 to 30 s.
    """
    if (span := _span(raw, len(raw))) is not None:
        wide = _wide(raw)
        low = wide.min()
        there = np.zeros(span, bool)
        there[wide - low] = True
        number = np.cumsum(there, dtype=np.int32) - np.int32(1)
        return number[wide - low], (np.flatnonzero(there).astype(wide.dtype) + low).astype(raw.dtype)
    ordered = np.sort(raw)
    known = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return np.searchsorted(known, raw), known


def _place(raw: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where each raw id stands among the known ones, in any order; -1 where it is not among them."""
    if raw.dtype.kind == known.dtype.kind and (span := _span(known, len(raw))) is not None:
        wide = _wide(known)
        low, high = wide.min(), wide.max()
        table = np.full(span, -1, np.int32)
        table[wide - low] = np.arange(len(known))
        wide = _wide(raw)
        inside = (wide >= low) & (wide <= high)
        return np.where(inside, table[np.where(inside, wide, low) - low], -1)
    if {known.dtype.kind, raw.dtype.kind} == {"i", "u"}:  # NumPy would compare them as float64, and mistake some
        known, raw = known.astype(object), raw.astype(object)
    order = np.argsort(known, kind="stable")
    place = np.minimum(np.searchsorted(known[order], raw), len(known) - 1)
    return np.where(known[order[place]] == raw, order[place], -1)


def _wide(ids: np.ndarray) -> np.ndarray:
    """Integers whose differences do not overflow, where they are near one another: 100 - (-20) is no int8."""
    return ids if ids.dtype.itemsize == 8 else ids.astype(np.int64)


def _span(ids: np.ndarray, n: int) -> int | None:
    """How many numbers the integer ids range over, where a table of so many is worth it; else None."""
    if ids.dtype.kind not in "iu":
        return None
    span = int(ids.max()) - int(ids.min()) + 1
    return span if span <= 4 * max(n, len(ids)) + 1_000_000 else None


def _without_duplicates(ratings: Ratings, policy: Duplicates) -> Ratings:
    _, by_item = group(ratings.item, ratings.n_items)  # two counting sorts: by user, then item, then row
    _, by_user = group(ratings.user[by_item], ratings.n_users)
    order = by_item[by_user]
    user, item = ratings.user[order], ratings.item[order]
    again = np.concatenate([[False], (user[1:] == user[:-1]) & (item[1:] == item[:-1])])[: len(order)]
    if not again.any():
        return ratings
    starts = np.flatnonzero(~again)
    if policy == "error":
        second = order[again.argmax()]
        user, item = ratings.user[second], ratings.item[second]
        raw = lambda ids, k: k if ids is None else ids[k]
        raise ValueError(
            f"user {raw(ratings.user_ids, user)} rated item {raw(ratings.item_ids, item)} more than once "
            f"({int(again.sum())} such rows in all). Choose duplicates='first', 'last', 'mean' or 'sum'."
        )
    ends = np.append(starts[1:], len(order))
    kept = np.sort(order[ends - 1 if policy == "last" else starts])
    if policy in ("first", "last"):
        return ratings.take(kept)
    rank = np.argsort(order[starts])  # groups in the order of their first rows, as `kept` has them
    total = np.add.reduceat(ratings.value[order].astype(np.float64), starts)[rank]
    count = (ends - starts)[rank]
    merged = ratings.take(kept)
    return dataclasses.replace(
        merged,
        value=total / count if policy == "mean" else total,
        time=None if ratings.time is None else np.maximum.reduceat(ratings.time[order], starts)[rank],
        weights=None if ratings.weights is None else np.add.reduceat(ratings.weights[order], starts)[rank],
    )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named dataset: its ratings, and what is known of its users and items.

    Attributes:
        name: as `data.load` knows it, such as 'ml-100k'.
        ratings: all of them, in the order of the source, with raw ids.
        titles: [n_items] strings, one per item, or None.
        users: a polars table with one row per user in the ratings' order, or None.
        items: a polars table with one row per item, or None.
        scale: the lowest and the highest rating there can be, or None where the data has no scale.
        source: where it was found.
        published: the splits that figures are published on: name -> bool [n], the rows of test; `splits.canonical`.
        negatives: int32 [n_users, k], the items that each user's held-out one is ranked among, where a protocol has
            sampled them; or None.
        truth: the Factors that synthetic ratings were drawn from, or None.
    """

    name: str
    ratings: Ratings
    titles: np.ndarray | None = None
    users: pl.DataFrame | None = None
    items: pl.DataFrame | None = None
    scale: tuple[float, float] | None = None
    source: str = ""
    published: Mapping[str, np.ndarray] = field(default_factory=dict)
    negatives: np.ndarray | None = None
    truth: Any = None


def check_same_ids(*a):
    pass
