"""Writing ratings: csv and parquet files, pandas and polars frames, with raw ids, times and weights.

Round trips are exact: raw ids, values bit for bit, times, weights, ratings of 0. (In a csv file, text ids that look
like numbers need `text_ids=` to be read as text.) Files and frames hold ratings only: users and items without ratings
are lost unless `user_ids=` and `item_ids=` name them when reading.

>>> to_polars(Ratings.from_columns(["ann", "bob", "bob"], [10, 10, 30], [5, 4, 0])).rows()
[('ann', 10, 5.0), ('bob', 10, 4.0), ('bob', 30, 0.0)]
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.atomic import replacing
from jaxrec.ratings import Ratings
from jaxrec.times import decimal_seconds

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["to_pandas", "to_polars", "write_csv", "write_parquet"]


def write_csv(
    ratings: Ratings,
    path: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
    separator: str = ",",
) -> None:
    """Writes ratings to a csv file with a header, atomically; with raw ids, times and weights if the ratings have them.

    The other arguments name the columns. `read_csv(path, time="time", ...)` reads the file back: times are decimal
    seconds, and text ids that look like numbers ("7") need `text_ids=True`, 'user' or 'item'.
    """
    table = to_polars(ratings, user=user, item=item, value=value, time=time, weights=weights)
    if ratings.time is not None and ratings.time_unit != "s":
        table = table.with_columns(decimal_seconds(ratings.time, ratings.time_unit).alias(time))
    with replacing(path) as temporary:
        table.write_csv(temporary, separator=separator)


def write_parquet(
    ratings: Ratings,
    path: str | PathLike[str],
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
) -> None:
    """Writes ratings to a parquet file, as `write_csv` does."""
    table = to_polars(ratings, user=user, item=item, value=value, time=time, weights=weights)
    with replacing(path) as temporary:
        table.write_parquet(temporary)


def to_polars(
    ratings: Ratings,
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
) -> pl.DataFrame:
    """Returns a polars frame with one row per rating; with raw ids, times and weights if the ratings have them."""
    import polars as pl

    return pl.DataFrame(_columns(ratings, user, item, value, time, weights))


def to_pandas(
    ratings: Ratings,
    *,
    user: str = "user",
    item: str = "item",
    value: str = "rating",
    time: str = "time",
    weights: str = "weights",
) -> pd.DataFrame:
    """Returns a pandas frame, as `to_polars` does; needs pandas."""
    import pandas as pd

    return pd.DataFrame(_columns(ratings, user, item, value, time, weights))


def _columns(ratings: Ratings, user: str, item: str, value: str, time: str, weights: str) -> dict[str, np.ndarray]:
    """Returns the columns of a frame by name, without those that the ratings do not have."""
    raw = lambda ids, known: ids if known is None else known[ids]
    times = ratings.time
    if times is not None and ratings.time_unit != "s":
        times = times.astype(f"M8[{ratings.time_unit}]")  # datetimes carry their unit
    columns = [(user, raw(ratings.user, ratings.user_ids)), (item, raw(ratings.item, ratings.item_ids))]
    columns += [(value, ratings.value), (time, times), (weights, ratings.weights)]
    columns = [(name, column) for name, column in columns if column is not None]
    if len(dict(columns)) < len(columns):
        raise ValueError(f"expected different names for all columns, got {[name for name, _ in columns]}.")
    return dict(columns)
