"""Ratings on the host: columns with contiguous ids, made from columns of raw ids.

Letters as in `jaxrec.types`: i = item, j = user, y(i,j) the rating. A rating of 0 is a rating.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec import check, raw_ids
from jaxrec.counting_sort import group_by
from jaxrec.times import UNITS, TimeUnit, as_times

if TYPE_CHECKING:
    pass

__all__ = ["Ratings", "align_ids", "check_same_ids", "immutable"]

Duplicates = Literal["error", "first", "last", "mean", "sum"]
Unknown = Literal["error", "drop"]
REAL = int | float | np.bool_ | np.integer | np.floating | Decimal | Fraction


@dataclass(frozen=True, eq=False)
class Ratings:
    """Observed ratings as columns on the host, with contiguous ids.

    The columns are immutable copies, so they stay as they were checked. (Copying 20M ratings takes 0.1 s.)

    Attributes:
        user: int32 [n], in [0, n_users).
        item: int32 [n], in [0, n_items).
        value: float32 [n], the rating; finite.
        n_users: the number of rows of the user table, including users without ratings.
        n_items: the number of rows of the item table.
        time: int64 [n], in `time_unit`, since 1970 for dates; None if the data has no times. May be passed as datetimes
            or ISO 8601 text (`jaxrec.times.as_times`), which are converted exactly and keep their order.
        weights: float32 [n], >= 0; None for all ones.
        user_ids: [n_users], the raw id of each user; None if there are no raw ids.
        item_ids: [n_items], the raw id of each item, or None.
        time_unit: 's', 'ms', 'us' or 'ns', the unit of times passed as numbers. For numbers with fractions and for
            datetimes it becomes the coarsest unit that represents every time exactly: seconds if possible.

    Raises:
        ValueError: an id is out of range (checked before the cast to int32); a number is NaN; columns differ in length;
            a time is refused by `jaxrec.times.as_times`; raw ids are not distinct integers or strings.

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
        """Checks every column, casts it to the type stated above, and stores a copy."""
        check.same_length(user=self.user, item=self.item, value=self.value, time=self.time, weights=self.weights)
        for name in ("user", "item", "value", "weights"):
            if np.ma.is_masked(getattr(self, name)):
                raise ValueError(f"{name}: expected a value in every row, got a masked array. Drop the masked rows.")
        put = lambda name, value: object.__setattr__(self, name, value)
        put("n_users", check.size_of_table("n_users", self.n_users))
        put("n_items", check.size_of_table("n_items", self.n_items))
        put("user", immutable(check.ids("user", self.user, size=self.n_users)))
        put("item", immutable(check.ids("item", self.item, size=self.n_items)))
        put("value", immutable(check.finite("value", _numbers("value", self.value))))
        check.choice("time_unit", self.time_unit, UNITS)
        if self.time is not None:
            time, unit = as_times("time", self.time, self.time_unit)
            put("time", immutable(time))
            put("time_unit", unit)
        if self.weights is not None:
            put("weights", immutable(check.finite("weights", _numbers("weights", self.weights))))
            if (self.weights < 0).any():
                raise ValueError(f"weights: expected numbers >= 0, got {self.weights.min()}.")
        for name, size in (("user_ids", self.n_users), ("item_ids", self.n_items)):
            if getattr(self, name) is not None:
                raw = raw_ids.known_ids(name, getattr(self, name))
                if len(raw) != size:
                    raise ValueError(f"{name}: expected one raw id per row of the table ({size}), got {len(raw)}.")
                put(name, immutable(raw))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and unpickles through the constructor; otherwise the copy's columns would be mutable."""
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __len__(self) -> int:
        """Returns the number of ratings."""
        return len(self.value)

    def __repr__(self) -> str:
        """Returns one line with the numbers of ratings, items and users."""
        return f"Ratings({len(self)} ratings of {self.n_items} items by {self.n_users} users)"

    def take(self, rows: Any) -> Ratings:
        """Returns the ratings at `rows` (positions, a slice or a mask), with the same users and items."""
        select = lambda column: None if column is None else column[rows]
        return dataclasses.replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            value=self.value[rows],
            time=select(self.time),
            weights=select(self.weights),
        )

    def user_index(self, raw: Any) -> Any:
        """Returns the positions of raw ids in the user table: int32 [n] for a list or an array, an int for one id.

        If there are no raw ids (`user_ids` is None), `raw` are positions, and are checked to lie in the table.

        Raises:
            ValueError: an id is unknown (three are named), or is of another type: 1 is neither "1" nor 1.0.

        >>> ratings = Ratings.from_columns(["ann", "bob"], [10, 30])
        >>> ratings.user_index("bob"), ratings.item_index([30, 10])
        (1, array([1, 0], dtype=int32))
        """
        return raw_ids.index("user", raw, self.user_ids, self.n_users)

    def item_index(self, raw: Any) -> Any:
        """Returns the positions of raw ids in the item table, as `user_index` does for users."""
        return raw_ids.index("item", raw, self.item_ids, self.n_items)

    def reindexed(self, *, user_ids: Any = None, item_ids: Any = None, unknown: Unknown = "error") -> Ratings:
        """Returns the same ratings with other tables of users and items: `user_ids` and `item_ids`, in their order.

        Args:
            user_ids: the raw ids of the new user table, such as `train.user_ids`; None keeps the table.
            item_ids: the same for items.
            unknown: what to do with ratings whose user or item is not in the new tables: 'error' or 'drop'.

        Raises:
            ValueError: the ratings have no raw ids; an id is unknown and `unknown='error'`; no rating is left.

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
                raise ValueError(f"{name}_ids: these ratings have no raw {name} ids to look up.")
            known = raw_ids.known_ids(f"{name}_ids", new)
            position = raw_ids.positions(old, known)[changed[name]]
            if unknown == "error" and (position < 0).any():
                advice = "Drop such rows by ratings.reindexed(user_ids=..., item_ids=..., unknown='drop')."
                raw_ids.refuse_unknown(name, old[changed[name]], position, known, advice)
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
        """Returns Ratings from columns of raw ids (integers or strings), which are made contiguous.

        A column is a list, an array, or a series of pandas or polars. Ids are all integers or all strings, also as an
        array of objects: floats (7.0), bools, Decimals and None are refused, for it is not certain which id they are.
        Numbers may be integers, floats, bools (1 and 0), Decimals and Fractions, also mixed; None and NaN are refused.

        Args:
            user: [n] raw ids.
            item: [n] raw ids.
            value: [n] numbers; None for all ones (feedback without ratings).
            time: [n] numbers in `time_unit` since 1970, or datetimes, or None.
            weights: [n] numbers >= 0, or None.
            user_ids: the known users, in the order of the table; None for those that occur, sorted.
            item_ids: the same for items.
            duplicates: what to do if a user rated an item more than once: 'error'; keep the 'first' or 'last' row in
                the input's order; or merge the rows by the 'mean' or 'sum' of their values, with the latest time and
                the sum of the weights.
            unknown: what to do with rows whose id is not in `user_ids` or `item_ids`: 'error' or 'drop'.
            time_unit: as in `Ratings`.

        Raises:
            ValueError: as `Ratings`; an id is unknown or missing; a pair is repeated and `duplicates='error'`; no row
                is left with `unknown='drop'`.

        >>> ratings = Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 0])
        >>> ratings.user, ratings.item_ids
        (array([0, 1, 1], dtype=int32), array([10, 30]))
        """
        check.choice("duplicates", duplicates, ("error", "first", "last", "mean", "sum"))
        check.choice("unknown", unknown, ("error", "drop"))
        for name, column in (("user", user), ("item", item), ("value", value), ("time", time), ("weights", weights)):
            if column is not None and not hasattr(column, "__len__"):
                raise ValueError(
                    f"{name}: expected a column (a list, an array, a series), got {type(column).__name__}."
                )
        value = np.ones(len(user), np.float32) if value is None else value
        check.same_length(user=user, item=item, value=value, time=time, weights=weights)
        user, user_ids = _encode("user", user, user_ids, unknown)
        item, item_ids = _encode("item", item, item_ids, unknown)
        kept = _known_rows(user, item)
        user, item = np.maximum(user, 0), np.maximum(item, 0)
        ratings = cls(user, item, value, len(user_ids), len(item_ids), time, weights, user_ids, item_ids, time_unit)
        return _without_duplicates(ratings.take(kept), duplicates)


def align_ids(*ratings: Ratings) -> tuple[Ratings, ...]:
    """Returns the same ratings with joint tables: the users and items of all of them, sorted.

    For train and test from two files, where a user of test may not be in train. To keep train's tables instead:
    `test.reindexed(user_ids=train.user_ids, item_ids=train.item_ids, unknown="drop")`.

    Raises:
        ValueError: ratings have no raw ids; ids are integers in one and strings in another.

    >>> train = Ratings.from_columns(["ann", "bob"], [10, 30])  # such as read_csv("train.csv")
    >>> test = Ratings.from_columns(["bob", "zoe"], [30, 20])
    >>> train, test = align_ids(train, test)
    >>> train.user_ids, test.user, test.item
    (array(['ann', 'bob', 'zoe'], dtype='<U3'), array([1, 2], dtype=int32), array([2, 1], dtype=int32))
    """
    joint: dict[str, Any] = {}
    for name in ("user_ids", "item_ids"):
        tables = [getattr(columns, name) for columns in ratings]
        if any(table is None for table in tables):
            raise ValueError(
                f"{name}: expected raw ids in all of the ratings, got some without. Ratings.from_columns keeps them."
            )
        joint[name] = immutable(raw_ids.union(name, tables))
    return tuple(columns.reindexed(**joint) for columns in ratings)


def check_same_ids(a: Ratings, b: Ratings, names: tuple[str, str] = ("train", "test")) -> None:
    """Checks that both have the same users and items at the same positions: tables of one size and equal raw ids.

    Raw ids are compared only if both have them. Parts of one split share their tables and are not compared either.

    Raises:
        ValueError: the tables differ; the message has the first position that differs and what to do.
    """
    first, second = names
    advice = (
        f"Use the same tables for both: {second}.reindexed(user_ids={first}.user_ids, item_ids={first}.item_ids, "
        "unknown='drop'), or data.align_ids for the ids of both."
    )
    for side in ("user", "item"):
        (n_a, ids_a), (n_b, ids_b) = ((getattr(r, f"n_{side}s"), getattr(r, f"{side}_ids")) for r in (a, b))
        if ids_a is None or ids_b is None:
            if n_a != n_b:
                raise ValueError(
                    f"expected {side} tables of one size, got {n_a} {side}s in {first}, {n_b} in {second}. "
                    "Build both with tables of the same size."
                )
            continue
        shorter = min(n_a, n_b)
        position = (
            raw_ids.first_difference(ids_a, ids_b)
            if n_a == n_b
            else raw_ids.first_difference(ids_a[:shorter], ids_b[:shorter])
        )
        if position is None and n_a != n_b:
            raise ValueError(f"expected the same {side}s, got {n_a} in {first} and {n_b} in {second}. {advice}")
        if position is not None:
            raise ValueError(
                f"expected the same {side} ids, got {ids_a[position].item()!r} in {first} and "
                f"{ids_b[position].item()!r} in {second} at position {position} ({n_a} and {n_b} {side}s). {advice}"
            )


def _encode(name: str, raw: Any, known: Any, unknown: Unknown) -> tuple[np.ndarray, np.ndarray]:
    """Returns (contiguous ids of the raw ids, -1 for unknown ones; the table of raw ids)."""
    ids = raw_ids.as_raw_ids(name, raw)
    if known is None:
        return raw_ids.distinct(ids)
    known = raw_ids.known_ids(f"{name}_ids", known)
    position = raw_ids.positions(ids, known)
    if unknown == "error" and (position < 0).any():
        advice = f"Leave {name}_ids out to use every id that occurs, or drop those rows (unknown='drop')."
        raw_ids.refuse_unknown(name, ids, position, known, advice)
    return position, known


def _numbers(name: str, values: Any) -> Any:
    """Returns a column of Python objects (Decimals, integers of any size) as float64, others as they are."""
    array = np.asarray(values)
    if array.dtype.kind not in "OUST" or array.ndim != 1:
        return array
    for position, value in enumerate(array.tolist()):
        if not isinstance(value, REAL) or isinstance(value, np.timedelta64):
            advice = (
                "Convert text first, for example by astype(float)."
                if isinstance(value, str | bytes)
                else "Drop such rows: pairs that were not rated have no row."
            )
            raise ValueError(
                f"{name}: expected numbers, one in every row, got {value!r} at position {position}. {advice}"
            )
    try:
        return array.astype(np.float64)
    except OverflowError as error:  # an integer of more than 308 digits
        raise ValueError(f"{name}: expected finite numbers: {error}.") from error


def _known_rows(user: np.ndarray, item: np.ndarray) -> np.ndarray | slice:
    """Returns the rows whose user and item are both known (not -1)."""
    kept = (user >= 0) & (item >= 0)
    if len(kept) and not kept.any():
        raise ValueError("unknown='drop' leaves no rating: none is of a known item by a known user.")
    return slice(None) if kept.all() else np.flatnonzero(kept)


def immutable(array: np.ndarray) -> np.ndarray:
    """Returns the array in immutable memory, which `setflags` cannot make writable: native code relies on its checks.

    This is a copy (30 ms for 20M ids), or the array itself if its memory is immutable already, as that of arrays from
    `take` and `dataclasses.replace` is.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if type(owner) is bytes and not array.flags.writeable:
        return array
    return np.ndarray(array.shape, array.dtype, array.tobytes())


def _without_duplicates(ratings: Ratings, policy: Duplicates) -> Ratings:
    """Merges the ratings of repeated (user, item) pairs, or raises, as `from_columns` says of `duplicates`."""
    _, by_item = group_by(ratings.item, ratings.n_items)  # two counting sorts: by user, then item, then row
    _, by_user = group_by(ratings.user[by_item], ratings.n_users)
    order = by_item[by_user]
    user, item = ratings.user[order], ratings.item[order]
    repeated = np.concatenate([[False], (user[1:] == user[:-1]) & (item[1:] == item[:-1])])[: len(order)]
    if not repeated.any():
        return ratings
    starts = np.flatnonzero(~repeated)
    if policy == "error":
        second = order[repeated.argmax()]
        user, item = ratings.user[second], ratings.item[second]
        raw = lambda ids, k: k if ids is None else ids[k]
        raise ValueError(
            f"user {raw(ratings.user_ids, user)} rated item {raw(ratings.item_ids, item)} more than once "
            f"({int(repeated.sum())} such rows in all). Choose duplicates='first', 'last', 'mean' or 'sum'."
        )
    ends = np.append(starts[1:], len(order))
    kept = np.sort(order[ends - 1 if policy == "last" else starts])
    if policy in ("first", "last"):
        return ratings.take(kept)
    rank = np.argsort(order[starts])  # sorts the groups by their first rows, which is the order of `kept`
    total = np.add.reduceat(ratings.value[order].astype(np.float64), starts)[rank]
    count = (ends - starts)[rank]
    merged = ratings.take(kept)
    return dataclasses.replace(
        merged,
        value=total / count if policy == "mean" else total,
        time=None if ratings.time is None else np.maximum.reduceat(ratings.time[order], starts)[rank],
        weights=None if ratings.weights is None else np.add.reduceat(ratings.weights[order], starts)[rank],
    )
