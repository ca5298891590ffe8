"""Recommendations and related items as tables of raw ids, titles and scores.

>>> import jaxrec
>>> data = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0)
>>> factors = jaxrec.models.baselines.popularity(data.ratings)
>>> found = recommend(factors, data.ratings, users=[7, 8], k=2, titles=data.titles)
>>> found.to_polars()[["user", "rank", "item", "title", "score"]].rows()
[(7, 1, 18, 'Film 18', 16.0), (7, 2, 3, 'Film 3', 14.0), (8, 1, 3, 'Film 3', 14.0), (8, 2, 14, 'Film 14', 14.0)]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped

from jaxrec import check
from jaxrec.counting_sort import group_by
from jaxrec.data.layouts import pad_rows
from jaxrec.prediction import scorer_vectors
from jaxrec.retrieval import related_ids, top_k
from jaxrec.types import Factors, Ratings

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["Recommendations", "RelatedItems", "recommend", "related"]


class Recommendations(NamedTuple):
    """A table of recommendations with one row per user and rank; all columns have one length.

    Attributes:
        user: the users' raw ids, in the order of `users`, each repeated once per recommended item.
        rank: int64, 1 for a user's best item.
        item: the items' raw ids.
        title: the items' titles; None in every row if no titles were passed.
        score: float, the predicted ratings.
    """

    user: np.ndarray
    rank: np.ndarray
    item: np.ndarray
    title: np.ndarray
    score: np.ndarray

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars DataFrame."""
        return _to_polars(self._asdict())

    def to_pandas(self) -> pd.DataFrame:
        """The table as a pandas DataFrame."""
        return _to_pandas(self._asdict())


class RelatedItems(NamedTuple):
    """A table of an item's nearest neighbors, nearest first; all columns have one length.

    Attributes:
        item: the items' raw ids.
        title: the items' titles; None in every row if no titles were passed.
        distance: float, the squared distance of their features.
    """

    item: np.ndarray
    title: np.ndarray
    distance: np.ndarray

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars DataFrame."""
        return _to_polars(self._asdict())

    def to_pandas(self) -> pd.DataFrame:
        """The table as a pandas DataFrame."""
        return _to_pandas(self._asdict())


def recommend(
    factors: Factors | tuple[Shaped[ArrayLike, "n_users d"], Shaped[ArrayLike, "n_items d"]],
    train: Ratings,
    users: Any = None,
    *,
    k: int = 10,
    titles: Sequence[str] | np.ndarray | None = None,
    allowed: Bool[ArrayLike, " n_items"] | None = None,
    exclude_seen: bool = True,
    batch_size: int = 1024,
) -> Recommendations:
    """The k items with the highest score for every user, best first, excluding those that the user has rated.

    A user has fewer than k rows if fewer items remain: items that are seen or not allowed never fill up a list.

    Args:
        factors: the model; or the users' and the items' vectors, whose product is the full score.
        train: the training ratings, which define the users' and items' ids and what each user has seen.
        users: one raw id or several (contiguous ids if train has no raw ids); None for all users.
        k: the number of items per user.
        titles: [n_items], shown with the ids.
        allowed: [n_items], False for items that no user may get.
        exclude_seen: False also recommends items that the user has rated.
        batch_size: users scored at once.

    Raises:
        ValueError: an unknown user; tables whose sizes differ from train's, or that are not finite; k not in
            [1, n_items]; titles or allowed of another length; batch_size < 1.
    """
    vectors = scorer_vectors("factors", factors)
    user_vectors, items = check.as_floats(users=vectors.users, items=vectors.items)
    _check_tables((len(user_vectors), len(items)), train, titles)
    if allowed is not None:
        allowed = check.mask("allowed", allowed, (len(items),))
    rows = np.arange(train.n_users) if users is None else _positions("users", train, users)
    _check_options(k, batch_size, len(items))
    if not bool(jnp.isfinite(user_vectors[rows]).all() & jnp.isfinite(items).all()):
        raise ValueError(
            "factors: expected finite predictions, got NaN or infinity. The training diverged: use a smaller learning "
            "rate or more l2."
        )
    seen = None
    if exclude_seen:
        start, order = group_by(train.user, train.n_users)
        seen = start, train.item[order]
    size = max(1, min(batch_size, len(rows)))
    batches = [
        _recommend_batch(user_vectors, items, rows[first : first + size], seen, allowed, k)
        for first in range(0, len(rows), size)
    ]
    scores, ids = (np.concatenate([pair[n] for pair in batches]) if batches else np.zeros((0, k)) for n in (0, 1))
    filled = scores > -np.inf
    row, column = np.nonzero(filled)
    item = ids[filled].astype(np.int64)
    return Recommendations(
        user=_raw_ids(train.user_ids, rows[row]),
        rank=column + 1,
        item=_raw_ids(train.item_ids, item),
        title=_titles(titles, item),
        score=scores[filled],
    )


def related(
    factors: Factors | Shaped[ArrayLike, "n_items d"],
    train: Ratings,
    item: Any,
    *,
    k: int = 10,
    titles: Sequence[str] | np.ndarray | None = None,
) -> RelatedItems:
    """The k items whose features are nearest to those of an item, nearest first.

    Args:
        factors: the model, whose x are compared; or the items' vectors.
        train: the training ratings, which define the items' ids.
        item: a raw id (a contiguous id if train has no raw ids).
        k: the number of items, at most n_items - 1.
        titles: [n_items], shown with the ids.

    Raises:
        ValueError: an unknown item; a table whose size differs from train's; k out of range; features that are not
            finite.
    """
    if hasattr(factors, "factors"):
        check.factors("factors", factors, alternative="the items' vectors")
    x = factors.x if isinstance(factors, Factors) else jnp.asarray(factors)
    n_users = len(factors.w) if isinstance(factors, Factors) else train.n_users
    _check_tables((n_users, len(x)), train, titles)
    if np.ndim(item) != 0:
        raise ValueError(f"item: expected one raw id, got {np.ndim(item)} dimensions.")
    (position,) = _positions("item", train, item)
    distances, ids = related_ids(x, int(position), k)
    neighbors = np.asarray(ids)
    return RelatedItems(_raw_ids(train.item_ids, neighbors), _titles(titles, neighbors), np.asarray(distances))


def _recommend_batch(
    users: Array,
    items: Array,
    rows: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray] | None,
    allowed: Array | None,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, ids) [len(rows), k] of the users in `rows`."""
    exclude: tuple[Array, Array] | None = None
    if seen is not None:
        ids, where = pad_rows(*seen, rows)
        # Padded to a power of two: about ten shapes to compile, not one per number of seen items.
        padding = (0, 0), (0, (1 << (ids.shape[1] - 1).bit_length()) - ids.shape[1])
        exclude = jnp.asarray(np.pad(ids, padding)), jnp.asarray(np.pad(where, padding))
    scores, best = top_k(users[rows], items, k, exclude=exclude, allowed=allowed)
    return np.asarray(scores), np.asarray(best)


def _positions(name: str, ratings: Ratings, raw: Any) -> np.ndarray:
    """Contiguous ids of one raw id or several."""
    are_users = name == "users"
    index = ratings.user_index if are_users else ratings.item_index
    raw_ids = [raw] if np.ndim(raw) == 0 else raw
    if len(raw_ids) == 0:
        return np.zeros(0, np.int64)
    try:
        return np.asarray(index(raw_ids), np.int64)
    except ValueError as error:
        known, size = (ratings.user_ids, ratings.n_users) if are_users else (ratings.item_ids, ratings.n_items)
        first, last = (np.arange(size) if known is None else known)[[0, -1]].tolist()
        unknown = next((raw_id for raw_id in raw_ids if not _is_known(index, raw_id)), raw_ids)
        message = f"{name}: {unknown!r} is not among the {size} known ids, such as {first!r} and {last!r}."
        raise ValueError(message) from error


def _is_known(index: Callable[[Any], Any], raw_id: Any) -> bool:
    try:
        index(raw_id)
    except ValueError:
        return False
    return True


def _titles(titles: Sequence[str] | np.ndarray | None, items: np.ndarray) -> np.ndarray:
    return np.full(len(items), None, object) if titles is None else np.asarray(titles)[items]


def _raw_ids(known: np.ndarray | None, positions: np.ndarray) -> np.ndarray:
    return positions if known is None else known[positions]


def _check_tables(sizes: tuple[int, int], ratings: Ratings, titles: Sequence[str] | np.ndarray | None) -> None:
    if sizes != (expected := (ratings.n_users, ratings.n_items)):
        raise ValueError(f"factors: expected tables of {expected} users and items, as train has, got {sizes}.")
    if titles is not None and len(titles) != ratings.n_items:
        raise ValueError(f"titles: expected one per item ({ratings.n_items}), got {len(titles)}.")


def _check_options(k: int, batch_size: int, n_items: int) -> None:
    if not 1 <= k <= n_items:
        raise ValueError(f"k: expected between 1 and the catalog's {n_items} items, got {k}.")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")


def _to_polars(columns: dict[str, np.ndarray]) -> pl.DataFrame:
    import polars

    # without titles the column is of objects, which polars could not write to a file
    titles = {"title": columns["title"].tolist()}
    return polars.DataFrame(columns | titles, schema_overrides={"title": polars.String})


def _to_pandas(columns: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas

    return pandas.DataFrame(columns)
