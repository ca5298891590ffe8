"""Ranking the whole catalogue for every user, and how good the lists are: streamed, never users x items, no sampling.

For each user with something relevant, every item that the user has not seen is ranked by the product of their vectors,
and metrics are taken of the k best. Those of `metrics.ranking` need no more of a list than where its hits stand, so
that no list is made for them: the rank of each relevant item is counted, as the items that score higher (ties go to the
lower id, as in `retrieval.top_k`), on the CPU among the user's best alone. A metric of your own gets the lists.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings, metrics
>>> users, items = jnp.array([[1.0], [-1.0]]), jnp.array([[3.0], [2.0], [1.0]])
>>> seen = Ratings([0], [0], [1.0], 2, 3)  # user 0 has seen item 0
>>> liked = Ratings([0, 1], [2, 0], [1.0, 1.0], 2, 3)
>>> ranking(users, items, seen, liked, k=2, metrics={"recall": metrics.recall, "mrr": metrics.reciprocal_rank})
{'recall': array([1., 0.], dtype=float32), 'mrr': array([0.5, 0. ], dtype=float32)}
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped

from jaxrec import check
from jaxrec.data.layouts import cut
from jaxrec.group import group
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import On, by_platform
from jaxrec.kernels.rank import ranks
from jaxrec.kernels.select import largest
from jaxrec.kernels.topk import orderable
from jaxrec.lookup import lookup
from jaxrec.metrics.ranking import OF_HITS, auc_at_k
from jaxrec.ratings import check_same_ids
from jaxrec.types import Ratings

__all__ = ["ranking"]

# Scores made at once: 4 MiB on a CPU, 1 GiB elsewhere, where few steps are fast ones.
SCORES: dict[On, int] = {"cpu": 2**20, "gpu": 2**28, "tpu": 2**28}

# metric(ids [n, k], relevant [n, e], *, where [n, e]) -> [n], and where it takes them filled= [n, k], n_candidates= [n]
Metric = Callable[..., Array]
Padded = tuple[Array, Array]


def ranking(
    users: Shaped[ArrayLike, "n_users d"],
    items: Shaped[ArrayLike, "n_items d"],
    seen: Ratings | None,
    relevant: Ratings,
    *,
    k: int | Sequence[int],
    metrics: Mapping[str, Metric],
    allowed: Bool[ArrayLike, " n_items"] | None = None,
    at_once: int | None = None,
    overlap: Literal["error", "drop"] = "error",
) -> dict[str, np.ndarray]:
    """Name -> the metric of each user, float32 [n_users]; NaN for users with nothing relevant: np.nanmean is the mean.

    Per user, so that two models' differences can be tested pair by pair. Of several k the names are "ndcg@10", ...

    Args:
        users: vectors, as `models.as_vectors` gives them: their product is the whole score.
        items: vectors.
        seen: pairs that are not ranked, such as train's; None: everything is.
        relevant: pairs that would have been right, such as test's; a pair that occurs twice counts once.
        k: the lists' length, or several; places beyond the catalogue stand empty.
        metrics: name -> `metrics.ndcg`, or a function of your own: metric(ids, relevant, *, where) of one user, who has
            the best items' ids [k], best first, and the relevant ones' [e], padded where `where` is False. It may take
            `filled`, False at the places of a list that are empty, and `n_candidates`, how many items were ranked.
        allowed: items that may be ranked.
        at_once: users scored at once; memory is at_once * n_items numbers. None: as many as 4 MiB of scores are on a
            CPU, and 1 GiB elsewhere, but at least 64.
        overlap: what to do with pairs in both `seen` and `relevant`, which can never be found: 'error', or 'drop' them
            from `relevant`.

    Raises:
        ValueError: tables of other sizes than the ratings; `seen` and `relevant` of other raw ids; pairs in both;
            vectors that are not finite, whose products may not be, or of different dimensions; k or at_once below 1;
            lists with empty places for a metric without `filled`.
    """
    users, items = check.as_floats(users=users, items=items)
    lengths = (k,) if isinstance(k, int | np.integer) else tuple(k)
    _check(users, items, seen, relevant, lengths, allowed, at_once)
    check.choice("overlap", overlap, ("error", "drop"))
    named = {
        name if isinstance(k, int | np.integer) else f"{name}@{n}": (f, n)
        for n in lengths
        for name, f in metrics.items()
    }
    out = {name: np.full(relevant.n_users, np.nan, np.float32) for name in named}
    answers, known = _by_user(_once(relevant)), None if seen is None else _by_user(seen)
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
            None if allowed is None else jnp.asarray(allowed),
            metrics=tuple(named.values()),
            at_once=at_once,
        )
        found.append((asking, measured))
    if overlap == "error" and seen is not None:
        _refuse_overlap(sum(int(np.sum(measured.overlap)) for _, measured in found), seen, relevant)
    for asking, measured in found:
        _refuse_empty_places(named, measured, asking)
        for name, values in zip(named, measured.values, strict=True):
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


def _once(ratings: Ratings) -> Ratings:
    """Every pair once."""
    pair = ratings.user * np.int64(ratings.n_items) + ratings.item
    first = np.unique(pair, return_index=True)[1]
    return ratings if len(first) == len(ratings) else ratings.take(np.sort(first))


class _Measured(NamedTuple):
    """Of some users: each metric's values, how many relevant items were seen, how many items were ranked."""

    values: tuple[Array, ...]
    overlap: Array
    n_candidates: Array | None  # where a metric asks for them, or for lists


@partial(jax.jit, static_argnames=("metrics", "at_once"))
def _measure(
    users: Array,
    asking: Array,
    lists: tuple[Padded, Padded | None],
    items: Array,
    allowed: Array | None,
    *,
    metrics: tuple[tuple[Metric, int], ...],
    at_once: int | None,
) -> _Measured:
    longest = max(k for _, k in metrics)
    makes_lists = any(metric not in OF_HITS for metric, _ in metrics)
    counts = makes_lists or any(metric is auc_at_k for metric, _ in metrics)

    def chunk(rows: tuple[Array, tuple[Padded, Padded | None]], on: On) -> _Measured:
        users, ((relevant, where), seen) = rows
        n, m = len(users), len(items)
        column = jnp.arange(n, dtype=jnp.int32)[None, :]
        scores = jnp.matmul(items, users.T, precision=jax.lax.Precision.HIGHEST)  # users last: vectors of them
        if seen is not None:
            scores = scores.at[jnp.where(seen[1], seen[0], m).T, column].set(-jnp.inf, mode="drop")
        own = jnp.take_along_axis(scores, relevant.T, axis=0, mode="promise_in_bounds")
        too = where & jnp.isneginf(own.T)  # seen, for all products are finite
        where = where & ~too
        if allowed is not None:
            scores = jnp.where(allowed[:, None], scores, -jnp.inf)
            own = jnp.where(lookup(allowed, relevant.T), own, -jnp.inf)
        rank = ranks(scores, relevant.T, longest, on=on)
        listed = where.T & (own > -jnp.inf) & (rank < longest)
        hit = jnp.zeros((n, longest), jnp.float32).at[column, jnp.where(listed, rank, longest)].set(1, mode="drop")
        n_candidates = jnp.sum(scores > -jnp.inf, axis=0, dtype=jnp.int32) if counts else jnp.full(n, m, jnp.int32)
        filled = jnp.arange(longest, dtype=jnp.int32)[None, :] < n_candidates[:, None]
        ids = _best(scores, longest, filled, on) if makes_lists else jnp.zeros((n, 0), jnp.int32)
        count = jnp.sum(where, axis=1, dtype=jnp.float32)

        def one(metric: Metric, k: int) -> Array:
            if metric in OF_HITS:
                values = jax.vmap(OF_HITS[metric])(hit[:, :k], jnp.maximum(count, 1), filled[:, :k], n_candidates)
            else:
                more = {"filled": filled[:, :k], "n_candidates": n_candidates}
                given = {name: each for name, each in more.items() if _takes(metric, name)}
                call = lambda ids, relevant, where, given: metric(ids, relevant, where=where, **given)
                values = jax.vmap(call)(ids[:, :k], relevant, where, given)
            if values.shape != (n,):
                raise ValueError(
                    f"metrics: expected a number for every user, got shape {values.shape[1:]} of {metric}."
                )
            return jnp.where(count > 0, values.astype(jnp.float32), jnp.nan)

        values = tuple(one(metric, k) for metric, k in metrics)
        return _Measured(values, jnp.sum(too, axis=1), n_candidates if counts else None)

    def form(rows: tuple[Array, tuple[Padded, Padded | None]], *, on: On) -> _Measured:
        size = max(64, SCORES[on] // max(1, len(items))) if at_once is None else at_once
        return by_chunks(partial(chunk, on=on), rows, _even(len(asking), size))

    return by_platform(form, (lookup(users, asking), lists))


def _best(scores: Array, k: int, filled: Array, on: On) -> Array:
    """The ids of each column's k best, best first; 0 at places that are empty."""
    listed = min(k, len(scores))
    _, ids = largest(orderable(scores), listed, on=on)
    return jnp.where(filled, jnp.pad(ids, ((0, 0), (0, k - listed))), 0)


def _takes(metric: Metric, name: str) -> bool:
    parameters = inspect.signature(metric).parameters.values()
    return any(each.name == name or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _refuse_overlap(count: int, seen: Ratings, relevant: Ratings) -> None:
    if count == 0:
        return
    code = lambda ratings: ratings.user * np.int64(ratings.n_items) + ratings.item
    at = int(np.isin(code(relevant), code(seen)).argmax())
    raw = lambda ids, position: int(position) if ids is None else ids[position].item()
    user, item = raw(relevant.user_ids, relevant.user[at]), raw(relevant.item_ids, relevant.item[at])
    raise ValueError(
        f"relevant: {count} pairs are in `seen` too, such as user {user!r} and item {item!r}. They are never "
        "recommended, but would count as relevant. Take them out of one of the two, or let overlap='drop' do so."
    )


def _refuse_empty_places(named: Mapping[str, tuple[Metric, int]], measured: _Measured, asking: np.ndarray) -> None:
    """A place that is empty has no id to read, which only a metric that takes `filled` can know."""
    for name, (metric, k) in named.items():
        if metric in OF_HITS or _takes(metric, "filled"):
            continue
        n_candidates = np.asarray(measured.n_candidates)
        if (n_candidates < k).any():
            at = int((n_candidates < k).argmax())
            raise ValueError(
                f"{name}: the list of user {asking[at]} has {n_candidates[at]} items, not k={k}, and the metric cannot "
                "know: let it take filled=, bool [k], False at empty places. Or take a smaller k."
            )


def _check(
    users: Array,
    items: Array,
    seen: Ratings | None,
    relevant: Ratings,
    lengths: tuple[int, ...],
    allowed: ArrayLike | None,
    at_once: int | None,
) -> None:
    if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(f"expected users [n, d] and items [m, d] of one dimension, got {users.shape}, {items.shape}.")
    for name, ratings in (("seen", seen), ("relevant", relevant)):
        if ratings is not None and (ratings.n_users, ratings.n_items) != (len(users), len(items)):
            raise ValueError(
                f"{name}: expected ratings of {len(users)} users and {len(items)} items, as the vectors are, got "
                f"{ratings.n_users} and {ratings.n_items}."
            )
    if seen is not None:
        check_same_ids(seen, relevant, ("seen", "relevant"))
    if not lengths or min(lengths) < 1 or (at_once is not None and at_once < 1):
        raise ValueError(f"expected k and at_once >= 1, got {lengths} and {at_once}.")
    if allowed is not None and jnp.shape(allowed) != (len(items),):
        raise ValueError(f"allowed: expected one flag per item, shape ({len(items)},), got {jnp.shape(allowed)}.")
    for name, table in (("users", users), ("items", items)):
        if not bool(jnp.isfinite(table).all()):
            raise ValueError(f"{name}: expected finite vectors, got NaN or infinity. Has training diverged?")
    bound = float(jnp.max(jnp.abs(users), initial=0)) * float(jnp.max(jnp.abs(items), initial=0)) * users.shape[1]
    if bound > float(jnp.finfo(users.dtype).max):
        raise ValueError(f"users, items: their products may reach {bound:.3g}, which {users.dtype} does not hold.")
