"""A dataset: ratings, and what is known of their users and items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec import check, raw_ids
from jaxrec.ratings import Ratings, immutable

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named dataset: its ratings, and data about its users and items. Arrays are immutable copies.

    Attributes:
        name: its name in `data.load`, such as 'ml-100k'.
        ratings: all ratings, in the order of the source, with raw ids.
        titles: [n_items] strings, one per item, or None.
        users: a polars table with one row per user, in the order of the user table, or None.
        items: a polars table with one row per item, in the order of the item table, or None.
        scale: the lowest and highest possible ratings, or None if the data has no scale.
        source: where the data was found.
        published: the splits used for published figures: a mask bool [n] of the test rows for each name. See
            `splits.canonical`.
        negatives: int32 [n_users, k], the items among which a protocol ranks each user's held-out item, or None.
        truth: the Factors from which synthetic ratings were drawn, or None.

    Raises:
        ValueError: titles, negatives, users or items differ in length from the ratings' tables; negatives are not valid
            items.
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
        """Checks that the other data fits the ratings' tables, and stores copies of the arrays."""
        n_users, n_items = self.ratings.n_users, self.ratings.n_items
        sizes = {"titles": n_items, "items": n_items, "users": n_users, "negatives": n_users}
        for name, size in sizes.items():
            if (table := getattr(self, name)) is not None and len(table) != size:
                raise ValueError(f"{name}: expected {size} rows, one per row of the ratings' table, got {len(table)}.")
        put = lambda name, value: object.__setattr__(self, name, value)
        if self.titles is not None:
            put("titles", immutable(raw_ids.as_raw_ids("titles", self.titles)))
        if self.negatives is not None:
            negatives = np.asarray(self.negatives)
            flat = check.ids("negatives", negatives.reshape(-1), size=n_items)
            put("negatives", immutable(flat.reshape(negatives.shape)))
        put("published", {name: immutable(np.asarray(mask)) for name, mask in self.published.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and unpickles through the constructor, as `Ratings` does."""
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))
