"""Recommendations in raw ids and titles: where vectors, seen items and names meet.

>>> import jaxrec
>>> data = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0)
>>> factors = jaxrec.models.baselines.popularity(data.ratings)
>>> found = recommend(factors, data.ratings, users=[7, 8], k=2, titles=data.titles)
>>> found.to_polars()[["user", "rank", "item", "title", "score"]].rows()
[(7, 1, 18, 'Film 18', 16.0), (7, 2, 3, 'Film 3', 14.0), (8, 1, 3, 'Film 3', 14.0), (8, 2, 14, 'Film 14', 14.0)]
"""

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
from jaxrec.prediction import as_vectors
from jaxrec.retrieval import related_ids, top_k
from jaxrec.types import Factors, Ratings

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["Recommendations", "RelatedItems", "recommend", "related"]


class Recommendations(NamedTuple):
    """A table of recommendations, a row for every user and rank; its columns are of one length.

    Attributes:
        user: the users' raw ids, each as often as it has items, in the order in which they were asked for.
        rank: int64, 1 for a user's best item.
        item: the items' raw ids.
        title: the items' titles; None in every row where no titles were given.
        score: float, the predicted ratings.
    """

    user: np.ndarray
    rank: np.ndarray
    item: np.ndarray
    title: np.ndarray
    score: np.ndarray

    def to_polars(self) -> "pl.DataFrame":
        """The table as a polars DataFrame."""
        import polars

        return polars.DataFrame(self._asdict())

    def to_pandas(self) -> "pd.DataFrame":
        """The table as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self._asdict())


class RelatedItems(NamedTuple):
    """A table of the items nearest to one, nearest first; its columns are of one length.

    Attributes:
        item: the items' raw ids.
        title: the items' titles; None in every row where no titles were given.
        distance: float, the squared distance of their features.
    """

    item: np.ndarray
    title: np.ndarray
    distance: np.ndarray

    def to_polars(self) -> "pl.DataFrame":
        """The table as a polars DataFrame."""
        import polars

        return polars.DataFrame(self._asdict())

    def to_pandas(self) -> "pd.DataFrame":
        """The table as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(self._asdict())


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
    """The k items with the highest score for every user, best first, without those that the user has rated.

    A user has fewer than k rows where fewer items are left: what is seen or not allowed never fills a list up.

    Args:
        factors: the model; or the users' and the items' vectors, whose product is the whole score.
        train: what it was trained on: who the users are, and what each has seen.
        users: raw ids, several or one (contiguous ones, where train has no raw ids); None: all users.
        k: how many for each.
        titles: [n_items], to show beside the ids.
        allowed: [n_items], False for items that nobody gets.
        exclude_seen: False also recommends what the user has rated.
        batch_size: users scored at once.

    Raises:
        ValueError: an unknown user; tables of other sizes than train, or not finite; k not in [1, n_items]; titles or
            allowed of another length; batch_size < 1.
    """
    vectors = as_vectors(factors) if isinstance(factors, Factors) else factors
    own, items = check.as_floats(users=vectors[0], items=vectors[1])
    _check_tables((len(own), len(items)), train, titles)
    if allowed is not None:
        allowed = check.mask("allowed", allowed, (len(items),))
    rows = np.arange(train.n_users) if users is None else _positions("users", train, users)
    _check_options(k, batch_size, len(items))
    if not bool(jnp.isfinite(own[rows]).all() & jnp.isfinite(items).all()):
        raise ValueError(
            "factors: their predictions are NaN or infinite. The training diverged: a smaller learning rate, more l2."
        )
    seen = None
    if exclude_seen:
        start, order = group_by(train.user, train.n_users)
        seen = start, train.item[order]
    size = max(1, min(batch_size, len(rows)))
    found = [_of_batch(own, items, rows[first : first + size], seen, allowed, k) for first in range(0, len(rows), size)]
    scores, ids = (np.concatenate([part[name] for part in found]) if found else np.zeros((0, k)) for name in (0, 1))
    filled = scores > -np.inf
    row, column = np.nonzero(filled)
    item = ids[filled].astype(np.int64)
    return Recommendations(
        user=_raw(train.user_ids, rows[row]),
        rank=column + 1,
        item=_raw(train.item_ids, item),
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
    """The k items whose features are nearest to an item's, nearest first.

    Args:
        factors: the model, whose x are compared; or the items' vectors.
        train: what it was trained on: who the items are.
        item: a raw id (a contiguous one, where train has no raw ids).
        k: how many, at most n_items - 1.
        titles: [n_items], to show beside the ids.

    Raises:
        ValueError: an unknown item; a table of another size than train; k out of range; features that are not finite.
    """
    x = factors.x if isinstance(factors, Factors) else jnp.asarray(factors)
    n_users = len(factors.w) if isinstance(factors, Factors) else train.n_users
    _check_tables((n_users, len(x)), train, titles)
    if np.ndim(item) != 0:
        raise ValueError(f"item: expected one raw id, got {np.ndim(item)} dimensions.")
    (position,) = _positions("item", train, item)
    distances, ids = related_ids(x, int(position), k)
    found = np.asarray(ids)
    return RelatedItems(_raw(train.item_ids, found), _titles(titles, found), np.asarray(distances))


def _of_batch(
    users: Array,
    items: Array,
    rows: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray] | None,
    allowed: Array | None,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, ids) [len(rows), k] of these users."""
    exclude: tuple[Array, Array] | None = None
    if seen is not None:
        ids, where = pad_rows(*seen, rows)
        # to a power of two: some ten shapes to compile, not one for every number of seen items
        extra = (0, 0), (0, (1 << (ids.shape[1] - 1).bit_length()) - ids.shape[1])
        exclude = jnp.asarray(np.pad(ids, extra)), jnp.asarray(np.pad(where, extra))
    scores, best = top_k(users[rows], items, k, exclude=exclude, allowed=allowed)
    return np.asarray(scores), np.asarray(best)


def _positions(name: str, ratings: Ratings, raw: Any) -> np.ndarray:
    """Where raw ids stand in their table."""
    of_users = name == "users"
    index = ratings.user_index if of_users else ratings.item_index
    several = [raw] if np.ndim(raw) == 0 else raw
    if len(several) == 0:
        return np.zeros(0, np.int64)
    try:
        return np.asarray(index(several), np.int64)
    except ValueError as error:
        known, size = (ratings.user_ids, ratings.n_users) if of_users else (ratings.item_ids, ratings.n_items)
        first, last = (np.arange(size) if known is None else known)[[0, -1]].tolist()
        unknown = next((one for one in several if not _is_known(index, one)), several)
        message = f"{name}: {unknown!r} is not among the {size} known ids, such as {first!r} and {last!r}."
        raise ValueError(message) from error


def _is_known(index: Callable[[Any], Any], raw: Any) -> bool:
    try:
        index(raw)
    except ValueError:
        return False
    return True


def _titles(titles: Sequence[str] | np.ndarray | None, items: np.ndarray) -> np.ndarray:
    return np.full(len(items), None, object) if titles is None else np.asarray(titles)[items]


def _raw(known: np.ndarray | None, positions: np.ndarray) -> np.ndarray:
    return positions if known is None else known[positions]


def _check_tables(sizes: tuple[int, int], ratings: Ratings, titles: Sequence[str] | np.ndarray | None) -> None:
    if sizes != (expected := (ratings.n_users, ratings.n_items)):
        raise ValueError(f"factors: expected tables of {expected} users and items, as train has, got {sizes}.")
    if titles is not None and len(titles) != ratings.n_items:
        raise ValueError(f"titles: expected one per item ({ratings.n_items}), got {len(titles)}.")


def _check_options(k: int, batch_size: int, n_items: int) -> None:
    if not 1 <= k <= n_items:
        raise ValueError(f"k: expected between 1 and the catalogue's {n_items} items, got {k}.")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
