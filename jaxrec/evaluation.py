"""Ranking the whole catalogue for every user, and how good the lists are: streamed, never users x items, no sampling.

For each user with something relevant, every item that she has not seen is ranked by her vector's product with it, and
the metrics of `metrics.ranking` are taken of the k best. What it computes is the rank of each relevant item, by
counting the items that score higher (ties go to the lower id, as in `retrieval.top_k`), on the CPU among the user's
best alone: a metric needs no more of a list than where the relevant items stand in it. No list is ever sorted.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings, metrics
>>> users, items = jnp.array([[1.0], [-1.0]]), jnp.array([[3.0], [2.0], [1.0]])
>>> seen = Ratings([0], [0], [1.0], 2, 3)  # user 0 has seen item 0
>>> liked = Ratings([0, 1], [2, 0], [1.0, 1.0], 2, 3)
>>> ranking(users, items, seen, liked, k=2, metrics={"recall": metrics.recall, "mrr": metrics.reciprocal_rank})
{'recall': array([1., 0.], dtype=float32), 'mrr': array([0.5, 0. ], dtype=float32)}
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from jaxrec.data.layouts import cut
from jaxrec.group import group
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.rank import ranks
from jaxrec.lookup import lookup
from jaxrec.types import Ratings

__all__ = ["ranking"]

# Scores made at once: 4 MiB.
SCORES = 2**20

# metric(ids [n, k], relevant [n, e], *, where [n, e]) -> [n], as those of `metrics.ranking`
Metric = Callable[..., Array]


def ranking(
    users: Float[Array, "n_users d"],
    items: Float[Array, "n_items d"],
    seen: Ratings | None,
    relevant: Ratings,
    *,
    k: int,
    metrics: Mapping[str, Metric],
    allowed: Bool[Array, " n_items"] | None = None,
    at_once: int | None = None,
) -> dict[str, np.ndarray]:
    """Name -> the metric of each user, float32 [n_users]; NaN for users with nothing relevant: np.nanmean is the mean.

    Per user, so that two models' differences can be tested pair by pair.

    Args:
        users: vectors, as `models.as_vectors` gives them: their product is the whole score.
        items: vectors.
        seen: pairs that are not ranked, such as train's; None: everything is.
        relevant: pairs that would have been right, such as test's. A pair that was seen too can never be found, but
            counts as relevant: take it out of one of the two.
        k: the lists' length; places beyond the catalogue stand empty.
        metrics: name -> a function of (ids, relevant, where=), `metrics.ndcg` or your own.
        allowed: items that may be ranked.
        at_once: users scored at once; memory is at_once * n_items numbers. None: as many as 4 MiB of scores are, but
            at least 64.

    Raises:
        ValueError: tables of other sizes than the ratings; vectors that are not finite or of different dimensions; k or
            at_once below 1.
    """
    at_once = max(64, SCORES // max(1, len(items))) if at_once is None else at_once
    _check(users, items, seen, relevant, k, allowed, at_once)
    out = {name: np.full(relevant.n_users, np.nan, np.float32) for name in metrics}
    answers, known = _by_user(relevant), None if seen is None else _by_user(seen)
    count = np.diff(answers[0])
    some = np.flatnonzero(count)
    which = np.ceil(np.log2(count[some])).astype(int)  # users with about as many are padded to one length, and compiled
    found = []  # read when all are under way: while the device ranks for some users, the host prepares the next
    for each in np.unique(which):
        asking = some[which == each]
        lists = cut(*answers, asking), None if known is None else cut(*known, asking)
        measured = _measure(
            users,
            asking.astype(np.int32),
            lists,
            items,
            allowed,
            k=k,
            metrics=tuple(metrics.values()),
            at_once=_even(len(asking), at_once),
        )
        found.append((asking, measured))
    for asking, measured in found:
        for name, values in zip(metrics, measured, strict=True):
            out[name][asking] = values
    return out


def _even(n: int, at_once: int) -> int:
    """As many at once as leave no small rest, and fill the CPU's vectors."""
    parts = -(-n // at_once)
    return min(at_once, -(-n // (8 * parts)) * 8)


def _by_user(ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """(where each user's begin, the items in the users' order)."""
    start, order = group(ratings.user, ratings.n_users)
    return start, ratings.item[order]


@partial(jax.jit, static_argnames=("k", "metrics", "at_once"))
def _measure(
    users: Array,
    asking: Array,
    lists: tuple[tuple[Array, Array], tuple[Array, Array] | None],
    items: Array,
    allowed: Array | None,
    *,
    k: int,
    metrics: tuple[Metric, ...],
    at_once: int,
) -> tuple[Array, ...]:
    def some(rows: tuple[Array, tuple[tuple[Array, Array], tuple[Array, Array] | None]]) -> tuple[Array, ...]:
        users, ((relevant, where), seen) = rows
        n, m = len(users), len(items)
        column = jnp.arange(n, dtype=jnp.int32)[None, :]
        scores = jnp.matmul(items, users.T, precision=jax.lax.Precision.HIGHEST)  # users last: vectors of them
        if allowed is not None:
            scores = jnp.where(allowed[:, None], scores, -jnp.inf)
        if seen is not None:
            scores = scores.at[jnp.where(seen[1], seen[0], m).T, column].set(-jnp.inf, mode="drop")
        mine = jnp.take_along_axis(scores, relevant.T, axis=0, mode="promise_in_bounds")
        rank = ranks(scores, relevant.T, k)
        there = where.T & (mine > -jnp.inf) & (rank < k)
        # a list of which only the relevant places are named; -1 is nobody's id
        ids = jnp.full((n, k), -1, jnp.int32).at[column, jnp.where(there, rank, k)].set(relevant.T, mode="drop")
        return tuple(
            jax.vmap(lambda *each, f=f: f(each[0], each[1], where=each[2]))(ids, relevant, where) for f in metrics
        )

    return by_chunks(some, (lookup(users, asking), lists), at_once)


def _check(
    users: Array, items: Array, seen: Ratings | None, relevant: Ratings, k: int, allowed: Array | None, at_once: int
) -> None:
    if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(f"expected users [n, d] and items [m, d] of one dimension, got {users.shape}, {items.shape}.")
    for name, ratings in (("seen", seen), ("relevant", relevant)):
        if ratings is not None and (ratings.n_users, ratings.n_items) != (len(users), len(items)):
            raise ValueError(
                f"{name}: expected ratings of {len(users)} users and {len(items)} items, as the vectors are, got "
                f"{ratings.n_users} and {ratings.n_items}."
            )
    if k < 1 or at_once < 1:
        raise ValueError(f"expected k and at_once >= 1, got {k} and {at_once}.")
    if allowed is not None and allowed.shape != (len(items),):
        raise ValueError(f"allowed: expected one flag per item, shape ({len(items)},), got {allowed.shape}.")
    for name, table in (("users", users), ("items", items)):
        if not bool(jnp.isfinite(table).all()):
            raise ValueError(f"{name}: expected finite vectors, got NaN or infinity. Has training diverged?")
