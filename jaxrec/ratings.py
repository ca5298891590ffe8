"""Ratings on the host: columns with contiguous ids, and how they come from raw ids and files.

Letters as in `jaxrec.types`: i = item, j = user, y(i,j) the rating. A rating of 0 is a rating.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec import check

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

    @classmethod
    def from_csv(
        cls,
        path: str | PathLike[str],
        *,
        user: str = "user",
        item: str = "item",
        value: str | None = "rating",
        time: str | None = None,
        separator: str = ",",
        duplicates: Duplicates = "error",
    ) -> Ratings:
        """Ratings from a csv file with a header, read in one pass by polars.

        Args:
            path: the file.
            user: the column of user ids.
            item: the column of item ids.
            value: the column of ratings, or None for feedback without ratings.
            time: the column of times (integer seconds, or dates that polars recognizes), or None.
            separator: one character.
            duplicates: as in `from_columns`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a column that is not there, a cell empty or no number; all that `from_columns` raises.
        """
        import polars as pl

        wanted = [name for name in (user, item, value, time) if name is not None]
        numbers = {} if value is None else {value: pl.Float64}

        def read(infer_from: int | None) -> pl.DataFrame:
            return pl.read_csv(
                Path(path),
                separator=separator,
                columns=wanted,
                try_parse_dates=True,
                schema_overrides=numbers,
                infer_schema_length=infer_from,
            )

        try:
            header = pl.read_csv(Path(path), separator=separator, n_rows=0, infer_schema=False).columns
            if missing := [name for name in wanted if name not in header]:
                raise ValueError(f"{path}: expected the columns {wanted}, got {header}; not there: {missing}.")
            try:
                table = read(10_000)
            except pl.exceptions.ComputeError:  # ids that begin as numbers and go on as strings: look at all of them
                table = read(None)
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{path}: {error}") from error
        for name in wanted:
            if table[name].null_count():
                row = int(table[name].is_null().arg_max() or 0)
                raise ValueError(f"{path}: column {name!r} is empty in line {row + 2}; expected a value in every line.")

        def column(name: str | None) -> np.ndarray | None:
            if name is None:
                return None
            cells = table[name]
            return (cells.cast(pl.String) if cells.dtype == pl.Int128 else cells).to_numpy()  # ids beyond int64

        return cls.from_columns(column(user), column(item), column(value), time=column(time), duplicates=duplicates)


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
        known, contiguous = np.unique(raw, return_inverse=True)
        return contiguous, known
    known = np.asarray(known)
    if known.ndim != 1 or known.size == 0:
        raise ValueError(f"{name}_ids: expected one column with at least one id, got shape {known.shape}.")
    vocabulary = known
    if {known.dtype.kind, raw.dtype.kind} == {"i", "u"}:  # NumPy would compare them as float64, and mistake some
        known, raw = known.astype(object), raw.astype(object)
    order = np.argsort(known, kind="stable")
    if len(np.unique(known)) != len(known):
        raise ValueError(f"{name}_ids: expected distinct ids.")
    place = np.minimum(np.searchsorted(known[order], raw), len(known) - 1)
    contiguous = order[place]
    unknown = known[contiguous] != raw
    if unknown.any():
        first = raw[unknown][:1].tolist()[0]
        raise ValueError(
            f"{name}: {first!r} is not among the {len(known)} known ids ({int(unknown.sum())} such rows). "
            f"Leave {name}_ids out to take every id that occurs, or drop those rows."
        )
    return contiguous, vocabulary


def _without_duplicates(ratings: Ratings, policy: Duplicates) -> Ratings:
    pair = ratings.user.astype(np.int64) * ratings.n_items + ratings.item
    order = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[order], prepend=-1))
    if len(starts) == len(pair):
        return ratings
    if policy == "error":
        second = order[np.flatnonzero(np.diff(pair[order], prepend=-1) == 0)[0]]
        user, item = ratings.user[second], ratings.item[second]
        raw = lambda ids, k: k if ids is None else ids[k]
        raise ValueError(
            f"user {raw(ratings.user_ids, user)} rated item {raw(ratings.item_ids, item)} more than once "
            f"({len(pair) - len(starts)} such rows in all). Choose duplicates='first', 'last', 'mean' or 'sum'."
        )
    ends = np.append(starts[1:], len(pair))
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
