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
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped

from jaxrec import check
from jaxrec.counting_sort import group_by
from jaxrec.data.layouts import pad_rows
from jaxrec.kernels.topk import Exclude, orderable
from jaxrec.kernels.topk_select import largest
from jaxrec.prediction import Vectors, scorer_vectors
from jaxrec.retrieval import related_ids, top_k
from jaxrec.scorers import OneScorer, Score, Scorer, as_one_scorer, scores_of
from jaxrec.types import Factors, Ratings

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["Recommendations", "RelatedItems", "recommend", "related"]

Seen = tuple[np.ndarray, np.ndarray]  # (start [n_users + 1], items sorted by user)
# Scores of a function of users in memory at once.
MAX_SCORES = 2**24


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
    scorer: Scorer,
    train: Ratings,
    users: Any = None,
    *,
    k: int = 10,
    titles: Sequence[str] | np.ndarray | None = None,
    state: Any = None,
    allowed: Bool[ArrayLike, " n_items"] | None = None,
    exclude_seen: bool = True,
    batch_size: int | None = None,
) -> Recommendations:
    """The k items with the highest score for every user, best first, excluding those that the user has rated.

    A user has fewer than k rows if fewer items remain: items that are seen, not allowed or scored -inf never fill up a
    list. Equal scores go to the lowest position in the items' table.

    Args:
        scorer: any scorer of `evaluation.evaluate`: Factors; the users' and the items' vectors, whose product is the
            full score, and of which all scores never exist at once; or a function of user indices, int32 [n], that
            returns scores [n, n_items], such as a `models.linear.LinearScorer`.
        train: the training ratings, which define the users' and items' ids and what each user has seen.
        users: one raw id or several (contiguous ids if train has no raw ids); None for all users.
        k: the number of items per user.
        titles: [n_items], shown with the ids.
        state: a pytree of arrays, if the scorer is a function of (state, users).
        allowed: [n_items], False for items that no user may get.
        exclude_seen: False also recommends items that the user has rated.
        batch_size: users scored at once; None: 1,024, and of a function at most as many as 64 MiB of scores hold.

    Raises:
        ValueError: an unknown user; tables whose sizes differ from train's, or that are not finite; scores of another
            shape, NaN or +infinity; k not in [1, n_items]; titles or allowed of another length; batch_size < 1.
    """
    find: Callable[..., tuple[np.ndarray, np.ndarray]]
    vectors: Vectors | None = None
    if callable(scorer) or state is not None:
        one = as_one_scorer(scorer, state, train, of="train")
        _check_tables((train.n_users if one.n_users is None else one.n_users, one.n_items), train, titles)
        find = partial(_best_by_function, one, train)
        size = max(1, min(1024, MAX_SCORES // train.n_items)) if batch_size is None else batch_size
    else:
        vectors = Vectors(*check.as_floats(**scorer_vectors("scorer", scorer)._asdict()))
        _check_tables((len(vectors.users), len(vectors.items)), train, titles)
        find = partial(_best_by_vectors, vectors)
        size = 1024 if batch_size is None else batch_size
    if allowed is not None:
        allowed = check.mask("allowed", allowed, (train.n_items,))
    rows = np.arange(train.n_users) if users is None else _positions("users", train, users)
    _check_options(k, size, train.n_items)
    if vectors is not None and not bool(jnp.isfinite(vectors.users[rows]).all() & jnp.isfinite(vectors.items).all()):
        raise ValueError(
            "scorer: expected finite predictions, got NaN or infinity. The training diverged: use a smaller learning "
            "rate or more l2."
        )
    seen = None
    if exclude_seen:
        start, order = group_by(train.user, train.n_users)
        seen = start, train.item[order]
    size = max(1, min(size, len(rows)))
    batches = [find(rows[first : first + size], size, seen, allowed, k) for first in range(0, len(rows), size)]
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


def _best_by_vectors(
    vectors: Vectors, rows: np.ndarray, size: int, seen: Seen | None, allowed: Array | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, ids) [len(rows), k] of the users in `rows`, by products of vectors."""
    scores, best = top_k(vectors.users[rows], vectors.items, k, exclude=_exclude(seen, rows), allowed=allowed)
    return np.asarray(scores), np.asarray(best)


def _best_by_function(
    one: OneScorer, train: Ratings, rows: np.ndarray, size: int, seen: Seen | None, allowed: Array | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, ids) [len(rows), k] of the users in `rows`, `size` of them at most, by a function."""
    padded = np.pad(rows, (0, size - len(rows)), mode="edge")  # the last batch needs no other program
    users = jnp.asarray(padded.astype(np.int32))
    found = _best(one.state, users, _exclude(seen, padded), allowed, score=one.score, k=k)
    scores, ids, is_bad = (np.asarray(each)[: len(rows)] for each in found)
    if is_bad.any():
        user = _raw_ids(train.user_ids, rows[is_bad.argmax()]).item()
        raise ValueError(
            f"scorer: expected scores that are numbers or -inf, got NaN or +infinity for user {user!r}. Has training "
            "diverged?"
        )
    return scores, ids


@partial(jax.jit, static_argnames=("score", "k"))
def _best(
    state: Any, users: Array, exclude: Exclude | None, allowed: Array | None, *, score: Score, k: int
) -> tuple[Array, Array, Array]:
    """(scores, ids, whether a score is NaN or +infinity) of the k best, -inf where there are fewer."""
    (scores,) = check.as_floats(scores=scores_of(score, state, users))
    is_bad = ~jnp.all(scores < jnp.inf, axis=1)
    if exclude is not None:
        row = jnp.arange(len(users), dtype=jnp.int32)[:, None]
        scores = scores.at[row, jnp.where(exclude[1], exclude[0], scores.shape[1])].set(-jnp.inf, mode="drop")
    if allowed is not None:
        scores = jnp.where(allowed[None, :], scores, -jnp.inf)
    return *largest(orderable(scores).T, k), is_bad


def _exclude(seen: Seen | None, rows: np.ndarray) -> Exclude | None:
    """The items that users have seen, padded to a power of two: about ten shapes to compile, not one per length."""
    if seen is None:
        return None
    ids, where = pad_rows(*seen, rows)
    padding = (0, 0), (0, (1 << (ids.shape[1] - 1).bit_length()) - ids.shape[1])
    return jnp.asarray(np.pad(ids, padding)), jnp.asarray(np.pad(where, padding))


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
