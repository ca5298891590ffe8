"""Ratings on the host: columns with contiguous ids, and how they come from raw ids and files.

Letters as in `jaxrec.types`: i = item, j = user, y(i,j) the rating. A rating of 0 is a rating.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec import check, raw_ids
from jaxrec.counting_sort import group_by
from jaxrec.times import UNITS, TimeUnit, as_times

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Dataset", "Ratings", "align_ids", "check_same_ids"]

Duplicates = Literal["error", "first", "last", "mean", "sum"]
Unknown = Literal["error", "drop"]


@dataclass(frozen=True, eq=False)
class Ratings:
    """Observed ratings as columns on the host, with contiguous ids.

    The columns are copies that nobody can change: what was checked here stays so. (20M ratings: 0.1 s of copying.)

    Attributes:
        user: int32 [n], in [0, n_users).
        item: int32 [n], in [0, n_items).
        value: float32 [n], the rating; finite.
        n_users: rows of the user table; users without ratings count.
        n_items: rows of the item table.
        time: int64 [n], in `time_unit` since 1970 where they are dates; or None where the data has none. Datetimes may
            be given, and text as in ISO 8601 (`jaxrec.times.as_times`): they are kept exactly and in their order.
        weights: float32 [n], >= 0, or None for all ones.
        user_ids: [n_users], the raw id of each user, or None where ids were contiguous from the start.
        item_ids: [n_items], the raw id of each item, or None.
        time_unit: 's', 'ms', 'us' or 'ns': of times that are given as numbers. Where those have fractions, and for
            datetimes, it becomes the coarsest unit that holds every time: seconds wherever nothing is lost.

    Raises:
        ValueError: an id out of range (checked before the cast to int32), a NaN, columns of different lengths; times
            as `jaxrec.times.as_times`; raw ids that are not distinct integers or strings.

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
    time_unit: TimeUnit = "s"

    def __post_init__(self) -> None:
        """Checks every column, casts it to the type promised above, and keeps a copy."""
        check.same_length(user=self.user, item=self.item, value=self.value, time=self.time, weights=self.weights)
        for name in ("user", "item", "value", "weights"):
            if np.ma.is_masked(getattr(self, name)):
                raise ValueError(f"{name}: expected a value in every row, got a masked array. Drop the rows masked.")
        put = lambda name, value: object.__setattr__(self, name, value)
        put("n_users", check.size_of_table("n_users", self.n_users))
        put("n_items", check.size_of_table("n_items", self.n_items))
        put("user", _frozen(check.ids("user", self.user, size=self.n_users)))
        put("item", _frozen(check.ids("item", self.item, size=self.n_items)))
        put("value", _frozen(check.finite("value", self.value)))
        check.choice("time_unit", self.time_unit, UNITS)
        if self.time is not None:
            time, unit = as_times("time", self.time, self.time_unit)
            put("time", _frozen(time))
            put("time_unit", unit)
        if self.weights is not None:
            put("weights", _frozen(check.finite("weights", self.weights)))
            if (self.weights < 0).any():
                raise ValueError(f"weights: expected numbers >= 0, got {self.weights.min()}.")
        for name, size in (("user_ids", self.n_users), ("item_ids", self.n_items)):
            if getattr(self, name) is not None:
                raw = raw_ids.known_ids(name, getattr(self, name))
                if len(raw) != size:
                    raise ValueError(f"{name}: expected one raw id per row of the table ({size}), got {len(raw)}.")
                put(name, _frozen(raw))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made by the constructor, or their columns could be changed."""
        return type(self), tuple(getattr(self, one.name) for one in dataclasses.fields(self))

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

    def user_index(self, raw: Any) -> Any:
        """Positions in the user table of raw ids: int32 [n] of a list or an array, an int of one id.

        Without raw ids (`user_ids` is None) they are the positions themselves, checked to lie in the table.

        Raises:
            ValueError: an id that is not there (the first is named), or of another kind: 1 is not "1" and not 1.0.

        >>> ratings = Ratings.from_columns(["ann", "bob"], [10, 30])
        >>> ratings.user_index("bob"), ratings.item_index([30, 10])
        (1, array([1, 0], dtype=int32))
        """
        return raw_ids.index("user", raw, self.user_ids, self.n_users)

    def item_index(self, raw: Any) -> Any:
        """Positions in the item table of raw ids, as `user_index`."""
        return raw_ids.index("item", raw, self.item_ids, self.n_items)

    def reindexed(self, *, user_ids: Any = None, item_ids: Any = None, unknown: Unknown = "error") -> Ratings:
        """The same ratings over other tables: those of `user_ids` and `item_ids`, in their order.

        Args:
            user_ids: the raw ids of the new user table, such as `train.user_ids`; None keeps the table.
            item_ids: the same for items.
            unknown: what to do with ratings by users or of items that are not in the new tables: 'error' or 'drop'.

        Raises:
            ValueError: ratings without raw ids; unknown ids where `unknown='error'`; no rating is left.

        >>> train = Ratings.from_columns(["ann", "bob"], [10, 30])
        >>> test = Ratings.from_columns(["bob", "zoe"], [30, 30])
        >>> test.reindexed(user_ids=train.user_ids, item_ids=train.item_ids, unknown="drop").user
        array([1], dtype=int32)
        """
        check.choice("unknown", unknown, ("error", "drop"))
        changed: dict[str, Any] = {"user": self.user, "item": self.item}
        for name, new in (("user", user_ids), ("item", item_ids)):
            if new is None:
                continue
            old = getattr(self, f"{name}_ids")
            if old is None:
                raise ValueError(f"{name}_ids: these ratings have no raw {name} ids, which could be looked up there.")
            known = raw_ids.known_ids(f"{name}_ids", new)
            position = raw_ids.positions(old, known)[changed[name]]
            if unknown == "error" and (position < 0).any():
                raw_ids.refuse_unknown(name, old[changed[name]], position, known)
            changed |= {name: position, f"{name}_ids": known, f"n_{name}s": len(known)}
        kept = _known_rows(changed["user"], changed["item"])
        changed |= {name: np.maximum(changed[name], 0) for name in ("user", "item")}
        return dataclasses.replace(self, **changed).take(kept)

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
        unknown: Unknown = "error",
        time_unit: TimeUnit = "s",
    ) -> Ratings:
        """Ratings from columns of raw ids (integers or strings), made contiguous.

        Args:
            user: [n] raw ids.
            item: [n] raw ids.
            value: [n] numbers; all ones where None (feedback without ratings).
            time: [n] numbers in `time_unit` since 1970, or datetimes, or None.
            weights: [n] numbers >= 0, or None.
            user_ids: the known users in the order wanted; by default those that occur, sorted.
            item_ids: the same for items.
            duplicates: what to do where a user rated an item more than once: 'error'; keep the 'first' or 'last' row
                as given; the 'mean' or 'sum' of the values (their time the latest, their weights' sum).
            unknown: what to do with rows whose id is not among `user_ids` or `item_ids`: 'error', or 'drop' them.
            time_unit: as in `Ratings`.

        Raises:
            ValueError: as `Ratings`; unknown or missing ids; duplicate pairs where `duplicates='error'`; no row is left
                where `unknown='drop'`.

        >>> ratings = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 0])
        >>> ratings.user, ratings.item_ids
        (array([0, 1, 1], dtype=int32), array([10, 30]))
        """
        check.choice("duplicates", duplicates, ("error", "first", "last", "mean", "sum"))
        check.choice("unknown", unknown, ("error", "drop"))
        value = np.ones(len(user), np.float32) if value is None else value
        check.same_length(user=user, item=item, value=value, time=time, weights=weights)
        user, user_ids = _encode("user", user, user_ids, unknown)
        item, item_ids = _encode("item", item, item_ids, unknown)
        kept = _known_rows(user, item)
        user, item = np.maximum(user, 0), np.maximum(item, 0)
        ratings = cls(user, item, value, len(user_ids), len(item_ids), time, weights, user_ids, item_ids, time_unit)
        return _without_duplicates(ratings.take(kept), duplicates)


def align_ids(*ratings: Ratings) -> tuple[Ratings, ...]:
    """The same ratings over joint tables: every user and every item of any of them, sorted.

    For train and test from two files, where a user of test may be new. To keep train's tables as they are instead:
    `test.reindexed(user_ids=train.user_ids, item_ids=train.item_ids, unknown="drop")`.

    Raises:
        ValueError: ratings without raw ids; ids that are integers in one and strings in another.

    >>> train = Ratings.from_columns(["ann", "bob"], [10, 30])  # such as read_csv("train.csv")
    >>> test = Ratings.from_columns(["bob", "zoe"], [30, 20])
    >>> train, test = align_ids(train, test)
    >>> train.user_ids, test.user, test.item
    (array(['ann', 'bob', 'zoe'], dtype='<U3'), array([1, 2], dtype=int32), array([2, 1], dtype=int32))
    """
    joint: dict[str, Any] = {}
    for name in ("user_ids", "item_ids"):
        tables = [getattr(one, name) for one in ratings]
        if any(table is None for table in tables):
            raise ValueError(f"{name}: expected raw ids in all of the ratings, got some without: theirs are positions.")
        joint[name] = _frozen(raw_ids.union(name, tables))
    return tuple(one.reindexed(**joint) for one in ratings)


def check_same_ids(a: Ratings, b: Ratings, names: tuple[str, str] = ("train", "test")) -> None:
    """Checks that a position means the same user and the same item in both: tables of one size, of the same raw ids.

    Raw ids that only one of them knows are not compared. Parts of one split share their tables, which costs nothing.

    Raises:
        ValueError: with the first position that differs, and what to do.
    """
    first, second = names
    advice = (
        f"Bring both over one table: {second}.reindexed(user_ids={first}.user_ids, item_ids={first}.item_ids, "
        "unknown='drop'), or data.align_ids for the ids of both."
    )
    for side in ("user", "item"):
        (n, ids), (m, others) = ((getattr(one, f"n_{side}s"), getattr(one, f"{side}_ids")) for one in (a, b))
        if ids is None or others is None:
            if n != m:
                raise ValueError(f"expected {side} tables of one size, got {n} {side}s in {first}, {m} in {second}.")
            continue
        shorter = min(n, m)
        at = (
            raw_ids.first_difference(ids, others)
            if n == m
            else raw_ids.first_difference(ids[:shorter], others[:shorter])
        )
        if at is None and n != m:
            raise ValueError(f"expected the same {side}s, got {n} in {first} and {m} in {second}. {advice}")
        if at is not None:
            raise ValueError(
                f"expected the same {side} ids, got {ids[at].item()!r} in {first} and {others[at].item()!r} in "
                f"{second} at position {at} ({n} and {m} {side}s). {advice}"
            )


def _encode(name: str, raw: Any, known: Any, unknown: Unknown) -> tuple[np.ndarray, np.ndarray]:
    """(contiguous ids of raw ids, -1 where they are not among the known; the raw id of each)."""
    ids = raw_ids.as_raw_ids(name, raw)
    if known is None:
        return raw_ids.distinct(ids)
    known = raw_ids.known_ids(f"{name}_ids", known)
    position = raw_ids.positions(ids, known)
    if unknown == "error" and (position < 0).any():
        raw_ids.refuse_unknown(name, ids, position, known)
    return position, known


def _known_rows(user: np.ndarray, item: np.ndarray) -> np.ndarray | slice:
    kept = (user >= 0) & (item >= 0)
    if len(kept) and not kept.any():
        raise ValueError("unknown='drop' leaves no rating: none is of a known item by a known user.")
    return slice(None) if kept.all() else np.flatnonzero(kept)


def _frozen(array: np.ndarray) -> np.ndarray:
    """The array over bytes that nobody can change, not by `setflags` either: native code trusts what was checked once.

    A copy (30 ms for 20M ids); or the array itself where it stands on such bytes already, as what `take` and
    `dataclasses.replace` hand on does.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if type(owner) is bytes and not array.flags.writeable:
        return array
    return np.ndarray(array.shape, array.dtype, array.tobytes())


def _without_duplicates(ratings: Ratings, policy: Duplicates) -> Ratings:
    _, by_item = group_by(ratings.item, ratings.n_items)  # two counting sorts: by user, then item, then row
    _, by_user = group_by(ratings.user[by_item], ratings.n_users)
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
    """A named dataset: its ratings, and what is known of its users and items. Arrays are copies that nobody can change.

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

    Raises:
        ValueError: titles, negatives or tables of another length than the ratings' tables; negatives that are no items.
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

    def __post_init__(self) -> None:
        """Checks that what is beside the ratings fits their tables, and keeps copies of the arrays."""
        n_users, n_items = self.ratings.n_users, self.ratings.n_items
        sizes = {"titles": n_items, "items": n_items, "users": n_users, "negatives": n_users}
        for name, size in sizes.items():
            if (given := getattr(self, name)) is not None and len(given) != size:
                raise ValueError(f"{name}: expected {size} rows, one per row of the ratings' table, got {len(given)}.")
        put = lambda name, value: object.__setattr__(self, name, value)
        if self.titles is not None:
            put("titles", _frozen(raw_ids.as_raw_ids("titles", self.titles)))
        if self.negatives is not None:
            negatives = np.asarray(self.negatives)
            flat = check.ids("negatives", negatives.reshape(-1), size=n_items)
            put("negatives", _frozen(flat.reshape(negatives.shape)))
        put("published", {name: _frozen(np.asarray(mask)) for name, mask in self.published.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        """As of `Ratings`."""
        return type(self), tuple(getattr(self, one.name) for one in dataclasses.fields(self))
