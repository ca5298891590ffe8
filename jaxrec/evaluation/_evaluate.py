"""Evaluation of rankings: ranks the full catalog for every user, in chunks of users and without sampling items.

For each user with test items, all items that the user does not have in train are ranked by their score, the product of
the user's and the item's vectors, and metrics are computed from the k best. The metrics of `metrics.ranking` only need
the ranks of the test items, so no lists are made for them: a rank is the number of items that score higher (ties go to
the lower id, as in `retrieval.top_k`), which on the CPU are counted among the user's best only. User-defined metrics
receive the lists.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings, metrics
>>> vectors = jnp.array([[1.0], [-1.0]]), jnp.array([[3.0], [2.0], [1.0]])  # of the users, of the items
>>> train = Ratings([0], [0], [1.0], 2, 3)  # user 0 has seen item 0
>>> test = Ratings([0, 1], [2, 0], [1.0, 1.0], 2, 3)
>>> evaluate(vectors, train, test, k=2, metrics={"recall": metrics.recall, "mrr": metrics.reciprocal_rank})
{'recall': array([1., 0.], dtype=float32), 'mrr': array([0.5, 0. ], dtype=float32)}
"""

from __future__ import annotations

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
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.kernels.rank_by_count import ranks
from jaxrec.kernels.topk import orderable
from jaxrec.kernels.topk_select import largest
from jaxrec.metrics.ranking import (
    HIT_FORMULAS,
    auc_at_k,
    average_precision,
    hit_rate,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
)
from jaxrec.prediction import scorer_vectors
from jaxrec.ratings import check_same_ids
from jaxrec.types import Factors, Ratings

__all__ = ["evaluate"]

# Scores in memory at once: 4 MiB on a CPU; 1 GiB elsewhere, where few large steps are fastest.
SCORES_PER_CHUNK: dict[Platform, int] = {"cpu": 2**20, "gpu": 2**28, "tpu": 2**28}

# The metrics of `evaluate` if none are passed.
DEFAULT_METRICS: Mapping[str, Metric] = {
    "precision": precision,
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "average_precision": average_precision,
    "reciprocal_rank": reciprocal_rank,
}

# metric(ids [n, k], relevant [n, e], *, where [n, e]) -> [n], optionally with filled= [n, k] and n_candidates= [n]
Metric = Callable[..., Array]
IdLists = tuple[Array, Array]  # ids [n, length] and where [n, length]


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
    """Ranks the catalog for every user and returns name -> the metric of each user, float32 [n_users].

    Users without test items have NaN: average by np.nanmean. Values are per user so that two models can be compared by
    paired tests. With several k the names are "ndcg@10", ...

    Args:
        scorer: `Factors`; or the users' and the items' vectors, whose product is the full score.
        train: pairs that are not ranked, because the user has seen them; None ranks all items.
        test: the relevant pairs; a pair that occurs twice counts once.
        k: the length of the lists, or several; positions beyond the catalog are empty.
        metrics: name -> `metrics.ndcg`, or a user-defined function: metric(ids, relevant, *, where) of one user, with
            the ids of the best items [k], best first, and of the test items [e], padded where `where` is False. It may
            also take `filled`, False at empty positions of the list, and `n_candidates`, the number of ranked items.
            None: precision, recall, hit_rate, ndcg, average_precision, reciprocal_rank.
        allowed: [n_items], False for items that are not ranked.
        batch_size: users scored at once; memory is batch_size * n_items numbers. None: as many as 4 MiB of scores hold
            on a CPU, or 1 GiB elsewhere, but at least 64.
        overlap: what to do with pairs in both `train` and `test`, which are never recommended: 'error', or 'drop' them
            from `test`.

    Raises:
        ValueError: tables whose sizes differ from the ratings'; `train` and `test` of different raw ids; pairs in both;
            vectors that are not finite, whose products may overflow, or of different dimensions; k or batch_size below
            1; lists with empty positions for a metric without `filled`.
    """
    users, items = scorer_vectors("scorer", scorer)
    users, items = check.as_floats(users=users, items=items)
    lengths = (k,) if isinstance(k, int | np.integer) else tuple(k)
    _check(users, items, train, test, lengths, allowed, batch_size)
    check.choice("overlap", overlap, ("error", "drop"))
    metrics_at_k = {
        name if isinstance(k, int | np.integer) else f"{name}@{n}": (metric, n)
        for n in lengths
        for name, metric in (DEFAULT_METRICS if metrics is None else metrics).items()
    }
    out = {name: np.full(test.n_users, np.nan, np.float32) for name in metrics_at_k}
    relevant_by_user, seen_by_user = _by_user(_unique_pairs(test)), None if train is None else _by_user(train)
    count = np.diff(relevant_by_user[0])
    test_users = np.flatnonzero(count)
    bucket_of_user = np.ceil(np.log2(count[test_users])).astype(int)  # one padded length, one compilation per bucket
    results = []  # read after the last dispatch: the host prepares a bucket while the device ranks the one before
    for bucket in np.unique(bucket_of_user):
        bucket_users = test_users[bucket_of_user == bucket]
        lists = (
            pad_rows(*relevant_by_user, bucket_users),
            None if seen_by_user is None else pad_rows(*seen_by_user, bucket_users),
        )
        measured = _measure(
            users,
            bucket_users.astype(np.int32),
            lists,
            items,
            None if allowed is None else jnp.asarray(allowed),
            metrics=tuple(metrics_at_k.values()),
            batch_size=batch_size,
        )
        results.append((bucket_users, measured))
    if overlap == "error" and train is not None:
        _check_overlap(sum(int(np.sum(measured.overlap)) for _, measured in results), train, test)
    for bucket_users, measured in results:
        _check_filled(metrics_at_k, measured, bucket_users)
        for name, values in zip(metrics_at_k, measured.values, strict=True):
            out[name][bucket_users] = values
    return out


def _chunk_size(n: int, batch_size: int) -> int:
    """Users per chunk: chunks of nearly equal size, a multiple of 8 to fill the CPU's vector registers."""
    n_chunks = -(-n // batch_size)
    return min(batch_size, -(-n // (8 * n_chunks)) * 8)


def _by_user(ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """(start [n_users + 1], items sorted by user): the items of user j are items[start[j] : start[j + 1]]."""
    start, order = group_by(ratings.user, ratings.n_users)
    return start, ratings.item[order]


def _unique_pairs(ratings: Ratings) -> Ratings:
    """The ratings without repeated pairs; the first of each is kept."""
    pair = ratings.user * np.int64(ratings.n_items) + ratings.item
    first = np.unique(pair, return_index=True)[1]
    return ratings if len(first) == len(ratings) else ratings.take(np.sort(first))


class _Measured(NamedTuple):
    """Metrics of n users.

    Attributes:
        values: float32 [n] for each metric.
        overlap: [n], the number of test items that are in train too.
        n_candidates: int32 [n], the number of ranked items; None if no metric needs it or the lists.
    """

    values: tuple[Array, ...]
    overlap: Array
    n_candidates: Array | None


@partial(jax.jit, static_argnames=("metrics", "batch_size"))
def _measure(
    users: Array,
    user_rows: Array,
    lists: tuple[IdLists, IdLists | None],
    items: Array,
    allowed: Array | None,
    *,
    metrics: tuple[tuple[Metric, int], ...],
    batch_size: int | None,
) -> _Measured:
    """Metrics of the users in `user_rows`, whose test and train items are `lists`, by chunks of users.

    For user j and item i::

        score(i, j) = x(i) . w(j), or -inf if i is in j's train part or not allowed
        rank(i, j)  = the number of items i' with a higher score, or with the same score and i' < i
        hit(j, r)   = 1 if rank(i, j) = r for a test item i of j with a finite score, r = 0 .. k - 1
        count(j)    = the number of j's test items that are not in train

    and a metric of `metrics.ranking` is a function of hit(j, :), count(j) and the number of ranked items. For example,
    with one user and k = 3::

        item i     0     1     2     3
        x . w      5     2     7     1
        train                  yes
        test             yes   yes
        score      5     2    -inf   1
        rank       0     1     3     2

    Item 2 counts as overlap and not as a test item. Item 1 has rank 1, so hit = [0, 1, 0] and count = 1: the recall is
    1 and the reciprocal rank 1/2. Three items are ranked (n_candidates), so all three positions are filled.
    """
    k_max = max(k for _, k in metrics)
    needs_lists = any(metric not in HIT_FORMULAS for metric, _ in metrics)
    needs_n_candidates = needs_lists or any(metric is auc_at_k for metric, _ in metrics)

    def measure_chunk(rows: tuple[Array, tuple[IdLists, IdLists | None]], platform: Platform) -> _Measured:
        users, ((relevant, where), seen) = rows
        n, m = len(users), len(items)
        column = jnp.arange(n, dtype=jnp.int32)[None, :]
        # [m, n]: users last, along the CPU's vector registers
        scores = jnp.matmul(items, users.T, precision=jax.lax.Precision.HIGHEST)
        if seen is not None:
            scores = scores.at[jnp.where(seen[1], seen[0], m).T, column].set(-jnp.inf, mode="drop")
        relevant_scores = jnp.take_along_axis(scores, relevant.T, axis=0, mode="promise_in_bounds")  # [e, n]
        overlap = where & jnp.isneginf(relevant_scores.T)  # -inf only where seen: all products are finite
        where = where & ~overlap
        if allowed is not None:
            scores = jnp.where(allowed[:, None], scores, -jnp.inf)
            relevant_scores = jnp.where(gather(allowed, relevant.T), relevant_scores, -jnp.inf)
        rank = ranks(scores, relevant.T, k_max, platform=platform)
        is_hit = where.T & (relevant_scores > -jnp.inf) & (rank < k_max)
        hit = jnp.zeros((n, k_max), jnp.float32).at[column, jnp.where(is_hit, rank, k_max)].set(1, mode="drop")
        n_candidates = (
            jnp.sum(scores > -jnp.inf, axis=0, dtype=jnp.int32) if needs_n_candidates else jnp.full(n, m, jnp.int32)
        )
        filled = jnp.arange(k_max, dtype=jnp.int32)[None, :] < n_candidates[:, None]
        ids = _top_ids(scores, k_max, filled, platform) if needs_lists else jnp.zeros((n, 0), jnp.int32)
        count = jnp.sum(where, axis=1, dtype=jnp.float32)

        def metric_values(metric: Metric, k: int) -> Array:
            if metric in HIT_FORMULAS:
                values = jax.vmap(HIT_FORMULAS[metric])(hit[:, :k], jnp.maximum(count, 1), filled[:, :k], n_candidates)
            else:
                optional = {"filled": filled[:, :k], "n_candidates": n_candidates}
                kwargs = {name: array for name, array in optional.items() if _accepts(metric, name)}
                one_user = lambda ids, relevant, where, kwargs: metric(ids, relevant, where=where, **kwargs)
                values = jax.vmap(one_user)(ids[:, :k], relevant, where, kwargs)
            if values.shape != (n,):
                raise ValueError(
                    f"metrics: expected a number for every user, got shape {values.shape[1:]} of {metric}."
                )
            return jnp.where(count > 0, values.astype(jnp.float32), jnp.nan)

        values = tuple(metric_values(metric, k) for metric, k in metrics)
        return _Measured(values, jnp.sum(overlap, axis=1), n_candidates if needs_n_candidates else None)

    def measure(rows: tuple[Array, tuple[IdLists, IdLists | None]], *, platform: Platform) -> _Measured:
        size = max(64, SCORES_PER_CHUNK[platform] // max(1, len(items))) if batch_size is None else batch_size
        return by_chunks(partial(measure_chunk, platform=platform), rows, _chunk_size(len(user_rows), size))

    return by_platform(measure, (gather(users, user_rows), lists))


def _top_ids(scores: Array, k: int, filled: Array, platform: Platform) -> Array:
    """The ids of each column's k best, best first; 0 at empty positions."""
    n_listed = min(k, len(scores))
    _, ids = largest(orderable(scores), n_listed, platform=platform)
    return jnp.where(filled, jnp.pad(ids, ((0, 0), (0, k - n_listed))), 0)


def _accepts(metric: Metric, name: str) -> bool:
    """Whether the metric takes a keyword argument of this name."""
    parameters = inspect.signature(metric).parameters.values()
    return any(each.name == name or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _check_overlap(count: int, train: Ratings, test: Ratings) -> None:
    """Raises a ValueError that names one of the `count` pairs in both, if there are any."""
    if count == 0:
        return
    pair = lambda ratings: ratings.user * np.int64(ratings.n_items) + ratings.item
    position = int(np.isin(pair(test), pair(train)).argmax())
    raw_id = lambda ids, index: int(index) if ids is None else ids[index].item()
    user, item = raw_id(test.user_ids, test.user[position]), raw_id(test.item_ids, test.item[position])
    raise ValueError(
        f"test: {count} pairs are in `train` too, such as user {user!r} and item {item!r}. They are never recommended "
        "and so cannot be found. Remove them from one, or pass overlap='drop', which leaves them out of test."
    )


def _check_filled(metrics_at_k: Mapping[str, tuple[Metric, int]], measured: _Measured, users: np.ndarray) -> None:
    """Raises a ValueError if a list has empty positions and a metric does not take `filled`, which masks them."""
    for name, (metric, k) in metrics_at_k.items():
        if metric in HIT_FORMULAS or _accepts(metric, "filled"):
            continue
        n_candidates = np.asarray(measured.n_candidates)
        if (n_candidates < k).any():
            position = int((n_candidates < k).argmax())
            raise ValueError(
                f"{name}: expected lists of k={k} items, got one of {n_candidates[position]} for user "
                f"{users[position]}, and the metric does not mask empty positions. Let it take filled= (bool [k], "
                "False at empty positions), or use a smaller k."
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
                f"{name}: expected ratings of {len(users)} users and {len(items)} items, like the vectors, got "
                f"{ratings.n_users} and {ratings.n_items}. Bring them over the model's tables: "
                "ratings.reindexed(user_ids=..., item_ids=...)."
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
        raise ValueError(f"users, items: their products may reach {bound:.3g}, which {users.dtype} cannot hold.")
