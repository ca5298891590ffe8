"""Evaluation of rankings: the whole catalogue ranked for every user, streamed, never users x items, no sampling.

For each user with something in test, every item that is not in the user's train part is ranked by its score, the
product of the user's and the item's vectors, and metrics are taken of the k best. Those of `metrics.ranking` need no
more of a list than the ranks of its hits, so that no list is made for them: the rank of each test item is the number of
items that score higher (ties go to the lower id, as in `retrieval.top_k`), counted on the CPU among the user's best
alone. A metric of your own gets the lists.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings, metrics
>>> vectors = jnp.array([[1.0], [-1.0]]), jnp.array([[3.0], [2.0], [1.0]])  # users', items'
>>> train = Ratings([0], [0], [1.0], 2, 3)  # user 0 has seen item 0
>>> test = Ratings([0, 1], [2, 0], [1.0, 1.0], 2, 3)
>>> evaluate(vectors, train, test, k=2, metrics={"recall": metrics.recall, "mrr": metrics.reciprocal_rank})
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
from jaxrec.counting_sort import group_by
from jaxrec.data.layouts import pad_rows
from jaxrec.gather import gather
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import On, by_platform
from jaxrec.kernels.rank_by_count import ranks
from jaxrec.kernels.topk import orderable
from jaxrec.kernels.topk_select import largest
from jaxrec.metrics.ranking import (
    OF_HITS,
    auc_at_k,
    average_precision,
    hit_rate,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
)
from jaxrec.prediction import as_vectors
from jaxrec.ratings import check_same_ids
from jaxrec.types import Factors, Ratings

__all__ = ["evaluate"]

# Scores made at once: 4 MiB on a CPU, 1 GiB elsewhere, where few steps are fast ones.
SCORES: dict[On, int] = {"cpu": 2**20, "gpu": 2**28, "tpu": 2**28}

# The metrics of `evaluate` where none are named.
DEFAULT: Mapping[str, "Metric"] = {
    "precision": precision,
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "average_precision": average_precision,
    "reciprocal_rank": reciprocal_rank,
}

# metric(ids [n, k], relevant [n, e], *, where [n, e]) -> [n], and where it takes them filled= [n, k], n_candidates= [n]
Metric = Callable[..., Array]
Padded = tuple[Array, Array]


def evaluate(
    scorer: Factors | tuple[Shaped[ArrayLike, "n_users d"], Shaped[ArrayLike, "n_items d"]],
    train: Ratings | None,
    test: Ratings,
    *,
    k: int | Sequence[int] = 10,
    metrics: Mapping[str, Metric] | None = None,
    allowed: Bool[ArrayLike, " n_items"] | None = None,
    batch_size: int | None = None,
    overlap: Literal["error", "drop"] = "error",
) -> dict[str, np.ndarray]:
    """Name -> the metric of each user, float32 [n_users]; NaN for users without test items: np.nanmean is the mean.

    Per user, so that the differences of two models can be tested pair by pair. With several k the names are "ndcg@10",
    ...

    Args:
        scorer: `Factors`; or the users' and the items' vectors, whose product is the whole score.
        train: pairs that are not ranked, because the user has seen them; None: everything is ranked.
        test: pairs that would have been right; a pair that occurs twice counts once.
        k: the lists' length, or several; places beyond the catalogue stand empty.
        metrics: name -> `metrics.ndcg`, or a function of your own: metric(ids, relevant, *, where) of one user, who has
            the best items' ids [k], best first, and the test items' [e], padded where `where` is False. It may take
            `filled`, False at the places of a list that are empty, and `n_candidates`, how many items were ranked.
            None: precision, recall, hit_rate, ndcg, average_precision, reciprocal_rank.
        allowed: items that may be ranked.
        batch_size: users scored at once; memory is batch_size * n_items numbers. None: as many as 4 MiB of scores are
            on a CPU, and 1 GiB elsewhere, but at least 64.
        overlap: what to do with pairs in both `train` and `test`, which can never be found: 'error', or 'drop' them
            from `test`.

    Raises:
        ValueError: tables of other sizes than the ratings; `train` and `test` of other raw ids; pairs in both; vectors
            that are not finite, whose products may not be, or of different dimensions; k or batch_size below 1; lists
            with empty places for a metric without `filled`.
    """
    users, items = as_vectors(scorer) if isinstance(scorer, Factors) else scorer
    users, items = check.as_floats(users=users, items=items)
    lengths = (k,) if isinstance(k, int | np.integer) else tuple(k)
    _check(users, items, train, test, lengths, allowed, batch_size)
    check.choice("overlap", overlap, ("error", "drop"))
    named = {
        name if isinstance(k, int | np.integer) else f"{name}@{n}": (f, n)
        for n in lengths
        for name, f in (DEFAULT if metrics is None else metrics).items()
    }
    out = {name: np.full(test.n_users, np.nan, np.float32) for name in named}
    answers, known = _by_user(_once(test)), None if train is None else _by_user(train)
    count = np.diff(answers[0])
    some = np.flatnonzero(count)
    which = np.ceil(np.log2(count[some])).astype(int)  # users with about as many are padded to one length, and compiled
    found = []  # read when all are under way: while the device ranks for some users, the host prepares the next
    for each in np.unique(which):
        asking = some[which == each]
        lists = pad_rows(*answers, asking), None if known is None else pad_rows(*known, asking)
        measured = _measure(
            users,
            asking.astype(np.int32),
            lists,
            items,
            None if allowed is None else jnp.asarray(allowed),
            metrics=tuple(named.values()),
            batch_size=batch_size,
        )
        found.append((asking, measured))
    if overlap == "error" and train is not None:
        _refuse_overlap(sum(int(np.sum(measured.overlap)) for _, measured in found), train, test)
    for asking, measured in found:
        _refuse_empty_places(named, measured, asking)
        for name, values in zip(named, measured.values, strict=True):
            out[name][asking] = values
    return out


def _even(n: int, batch_size: int) -> int:
    """As many at once as leave no small rest, and fill the CPU's vectors."""
    parts = -(-n // batch_size)
    return min(batch_size, -(-n // (8 * parts)) * 8)


def _by_user(ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """(where each user's begin, the items in the users' order)."""
    start, order = group_by(ratings.user, ratings.n_users)
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


@partial(jax.jit, static_argnames=("metrics", "batch_size"))
def _measure(
    users: Array,
    asking: Array,
    lists: tuple[Padded, Padded | None],
    items: Array,
    allowed: Array | None,
    *,
    metrics: tuple[tuple[Metric, int], ...],
    batch_size: int | None,
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
            own = jnp.where(gather(allowed, relevant.T), own, -jnp.inf)
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
        size = max(64, SCORES[on] // max(1, len(items))) if batch_size is None else batch_size
        return by_chunks(partial(chunk, on=on), rows, _even(len(asking), size))

    return by_platform(form, (gather(users, asking), lists))


def _best(scores: Array, k: int, filled: Array, on: On) -> Array:
    """The ids of each column's k best, best first; 0 at places that are empty."""
    listed = min(k, len(scores))
    _, ids = largest(orderable(scores), listed, on=on)
    return jnp.where(filled, jnp.pad(ids, ((0, 0), (0, k - listed))), 0)


def _takes(metric: Metric, name: str) -> bool:
    parameters = inspect.signature(metric).parameters.values()
    return any(each.name == name or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _refuse_overlap(count: int, train: Ratings, test: Ratings) -> None:
    if count == 0:
        return
    code = lambda ratings: ratings.user * np.int64(ratings.n_items) + ratings.item
    at = int(np.isin(code(test), code(train)).argmax())
    raw = lambda ids, position: int(position) if ids is None else ids[position].item()
    user, item = raw(test.user_ids, test.user[at]), raw(test.item_ids, test.item[at])
    raise ValueError(
        f"test: {count} pairs are in `train` too, such as user {user!r} and item {item!r}. They are never recommended "
        "but still count as relevant, which lowers recall. Remove them from one, or let overlap='drop' do so."
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
    train: Ratings | None,
    test: Ratings,
    lengths: tuple[int, ...],
    allowed: ArrayLike | None,
    batch_size: int | None,
) -> None:
    if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
        raise ValueError(f"expected users [n, d] and items [m, d] of one dimension, got {users.shape}, {items.shape}.")
    for name, ratings in (("train", train), ("test", test)):
        if ratings is not None and (ratings.n_users, ratings.n_items) != (len(users), len(items)):
            raise ValueError(
                f"{name}: expected ratings of {len(users)} users and {len(items)} items, as the vectors are, got "
                f"{ratings.n_users} and {ratings.n_items}."
            )
    if train is not None:
        check_same_ids(train, test, ("train", "test"))
    if not lengths or min(lengths) < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"expected k and batch_size >= 1, got {lengths} and {batch_size}.")
    if allowed is not None and jnp.shape(allowed) != (len(items),):
        raise ValueError(f"allowed: expected one flag per item, shape ({len(items)},), got {jnp.shape(allowed)}.")
    for name, table in (("users", users), ("items", items)):
        if not bool(jnp.isfinite(table).all()):
            raise ValueError(f"{name}: expected finite vectors, got NaN or infinity. Has training diverged?")
    bound = float(jnp.max(jnp.abs(users), initial=0)) * float(jnp.max(jnp.abs(items), initial=0)) * users.shape[1]
    if bound > float(jnp.finfo(users.dtype).max):
        raise ValueError(f"users, items: their products may reach {bound:.3g}, which {users.dtype} does not hold.")
