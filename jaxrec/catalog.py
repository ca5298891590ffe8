"""Recommendations in raw ids and titles: where vectors, seen items and names meet.

>>> import jax, jaxrec
>>> data = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0)
>>> factors = jaxrec.models.baselines.popularity(data.ratings)
>>> for film in recommend(factors, data.ratings, user=7, k=2, titles=data.titles):
...     print(film.item, film.title, film.score)
18 Film 18 16.0
3 Film 3 14.0
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrec.models.factors import as_vectors
from jaxrec.retrieval import related as related_ids
from jaxrec.retrieval import top_k
from jaxrec.types import Factors, Ratings

__all__ = ["Recommendation", "Related", "recommend", "related"]


class Recommendation(NamedTuple):
    """An item for a user: its raw id, its title (or None), and the predicted rating."""

    item: Any
    title: str | None
    score: float


class Related(NamedTuple):
    """An item near another: its raw id, its title (or None), and the squared distance of their features."""

    item: Any
    title: str | None
    distance: float


def recommend(
    factors: Factors,
    ratings: Ratings,
    user: Any,
    *,
    k: int = 10,
    titles: np.ndarray | None = None,
    exclude_seen: bool = True,
) -> list[Recommendation]:
    """The k items that a user would rate highest, best first, none of which the user has rated.

    Fewer than k where the user has rated nearly everything: nothing seen fills the list up.

    Args:
        factors: the model.
        ratings: what it was trained on: who the users are, and what each has seen.
        user: a raw id (a contiguous one, where the ratings have no raw ids).
        k: how many.
        titles: [n_items], to show beside the ids.
        exclude_seen: False keeps what the user has rated in the list.

    Raises:
        ValueError: an unknown user; factors of other tables than the ratings, or not finite; k above the catalogue.
    """
    _check_tables(factors, ratings, titles)
    j = _position("user", ratings, user)
    seen = ratings.item[ratings.user == j] if exclude_seen else np.zeros(0, np.int32)
    users, items = as_vectors(factors)
    padded = 1 << max(0, len(seen) - 1).bit_length()  # a power of two: some ten shapes to compile, not one per user
    exclude = jnp.asarray(np.pad(seen, (0, padded - len(seen))))[None], jnp.asarray(np.arange(padded) < len(seen))[None]
    if not bool(jnp.isfinite(users[j]).all() & jnp.isfinite(items).all()):
        raise ValueError(
            "factors: their predictions are NaN or infinite. The training diverged: a smaller learning rate, more l2."
        )
    scores, ids = top_k(users[j : j + 1], items, k, exclude=exclude)
    return [
        Recommendation(*_name(ratings, titles, i), float(s))
        for s, i in zip(scores[0], ids[0], strict=True)
        if s > -jnp.inf
    ]


def related(
    factors: Factors, ratings: Ratings, item: Any, *, k: int = 10, titles: np.ndarray | None = None
) -> list[Related]:
    """The k items whose features are nearest to an item's, nearest first; `item` is a raw id. Raises as `recommend`."""
    _check_tables(factors, ratings, titles)
    i = _position("item", ratings, item)
    distances, ids = related_ids(factors.x, jnp.array([i]), k)
    return [Related(*_name(ratings, titles, n), float(d)) for d, n in zip(distances[0], ids[0], strict=True)]


def _position(side: str, ratings: Ratings, raw: Any) -> int:
    """Where a raw id stands in its table."""
    known, size = (ratings.user_ids, ratings.n_users) if side == "user" else (ratings.item_ids, ratings.n_items)
    try:
        if np.ndim(raw) != 0:
            raise ValueError(f"{side}: expected one raw id, got {np.ndim(raw)} dimensions.")
        return ratings.user_index(raw) if side == "user" else ratings.item_index(raw)
    except ValueError as error:
        first, last = (np.arange(size) if known is None else known)[[0, -1]].tolist()
        message = f"{side}: {raw!r} is not among the {size} known ids, such as {first!r} and {last!r}."
        raise ValueError(message) from error


def _name(ratings: Ratings, titles: np.ndarray | None, item: Any) -> tuple[Any, str | None]:
    raw = int(item) if ratings.item_ids is None else ratings.item_ids[int(item)]
    raw = raw.item() if isinstance(raw, np.generic) else raw  # Python's own int or str
    return raw, None if titles is None else str(titles[int(item)])


def _check_tables(factors: Factors, ratings: Ratings, titles: np.ndarray | None) -> None:
    got, expected = (len(factors.w), len(factors.x)), (ratings.n_users, ratings.n_items)
    if got != expected:
        raise ValueError(f"factors: expected tables of {expected} users and items, as the ratings have, got {got}.")
    if titles is not None and len(titles) != ratings.n_items:
        raise ValueError(f"titles: expected one per item ({ratings.n_items}), got {len(titles)}.")
