"""Evaluation of rankings: ranks items for every user by any scorer, in chunks of users and without sampling items.

For each user with test items, all items that the user does not have in train are ranked by their score, and metrics are
computed from the k best. The metrics of `metrics.ranking` only need the ranks of the test items, so no lists are made
for them: a rank is the number of items that score higher, which on the CPU are counted among the user's best only.
User-defined metrics receive the lists.

>>> import jax.numpy as jnp
>>> from jaxrec import Ratings
>>> vectors = jnp.array([[1.0], [-1.0]]), jnp.array([[3.0], [2.0], [1.0]])  # of the users, of the items
>>> train = Ratings([0], [0], [1.0], 2, 3)  # user 0 has seen item 0
>>> test = Ratings([0, 1], [2, 0], [1.0, 1.0], 2, 3)
>>> found = evaluate(vectors, train, test, k=2, metrics=["recall", "reciprocal_rank"])
>>> found
metric               mean  std. error
recall@2           0.5000      0.5000
reciprocal_rank@2  0.2500      0.2500
2 users
candidates: the whole catalog; seen: masked; ties: lowest_id; relevant: every test pair
>>> found.per_user["recall@2"]
array([1., 0.], dtype=float32)
>>> by_popularity = lambda popularity, users: jnp.broadcast_to(popularity, (len(users), 3))
>>> evaluate(by_popularity, train, test, k=2, metrics=["recall"], state=jnp.array([2.0, 0.0, 1.0])).mean
{'recall@2': 1.0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Int

from jaxrec import check
from jaxrec.counting_sort import group_by
from jaxrec.data.layouts import pad_rows
from jaxrec.evaluation._measure import Measured, Metric, Ties, accepts, measure
from jaxrec.evaluation._result import Evaluation
from jaxrec.evaluation._ties import EXPECTED_FORMULAS
from jaxrec.metrics.ranking import HIT_FORMULAS
from jaxrec.ratings import check_same_ids
from jaxrec.scorers import OneScorer, Scorer, as_one_scorer
from jaxrec.types import Ratings

__all__ = ["evaluate"]

# Comparisons of scores that take about 10 ms; to compile a bucket of users takes a second.
COMPARISONS_PER_COMPILATION = 2**25

# Metrics by their names, and those that are measured if none are passed.
METRICS: Mapping[str, Metric] = {metric.__name__: metric for metric in HIT_FORMULAS}
DEFAULT_METRICS = ("precision", "recall", "hit_rate", "ndcg", "average_precision", "reciprocal_rank")


def evaluate(
    scorer: Scorer,
    train: Ratings | None,
    test: Ratings,
    *,
    k: int | Sequence[int] = 10,
    metrics: Mapping[str, Metric | str] | Sequence[str] | None = None,
    state: Any = None,
    mask_seen: bool = True,
    ties: Ties = "lowest_id",
    allowed: Bool[ArrayLike, " n_items"] | None = None,
    negatives: Int[ArrayLike, "n_users c"] | None = None,
    relevant_from: float | None = None,
    batch_size: int | None = None,
    overlap: Literal["error", "drop"] = "error",
) -> Evaluation:
    """Ranks items for every user; returns every user's metrics, their means and standard errors, and what was ranked.

    Args:
        scorer: what scores items for users: `Factors`; the users' and the items' vectors, whose product is the full
            score; or a pure function of user indices, int32 [n], that returns scores [n, n_items]. It is compiled once
            per call for a new function object, and run on blocks of users. A score of -inf leaves an item out. Of a
            function that is a pytree of arrays (`models.linear.LinearScorer`, a registered dataclass with `__call__`)
            the arrays are arguments of the compiled program.
        train: pairs that are not ranked, because the user has seen them; None ranks all items.
        test: the pairs to be found; a pair that occurs twice counts once.
        k: the length of the lists, or several; positions beyond the ranked items are empty.
        metrics: names of `metrics.ranking`; or name -> one of these or a user-defined function: metric(ids, relevant,
            *, where) of one user, with the ids of the best items [k], best first, and of the relevant items [e], padded
            where `where` is False. It may also take `filled`, False at empty positions of the list, and `n_candidates`,
            the number of ranked items. None: precision, recall, hit_rate, ndcg, average_precision, reciprocal_rank.
        state: a pytree of arrays: the scorer is called as scorer(state, users), so that its tables are arguments of the
            compiled program and not constants in it.
        mask_seen: False ranks the items of `train` too.
        ties: how items of one score are ordered: by 'lowest_id', as `retrieval.top_k` does; the 'worst' for the model,
            relevant items last; or the 'expected' value over all orders, in closed form, for metrics of
            `metrics.ranking` but auc_at_k.
        allowed: [n_items], False for items that are not ranked.
        negatives: [n_users, c], items among which a user's relevant items are ranked, in place of all items. Metrics
            from sampled candidates reorder models (Krichene and Rendle 2020): the result says that they were sampled.
        relevant_from: the lowest rating that makes a test pair relevant; None: every test pair is.
        batch_size: users scored at once; memory is batch_size * n_items numbers. None: as many as 4 MiB of scores hold
            on a CPU, or 1 GiB elsewhere, but at least 64.
        overlap: what to do with pairs in both `train` and `test`, which are never recommended: 'error', or 'drop' them
            from `test`.

    Raises:
        ValueError: tables whose sizes differ from the ratings'; `train` and `test` of different raw ids; pairs in both;
            vectors that are not finite, whose products may overflow, or of different dimensions; scores of another
            shape, NaN (which a count of what ranks higher would put first) or +infinity; unknown metrics, or metrics
            that have no expected value; negatives out of range; k or batch_size below 1; lists with empty positions for
            a metric without `filled`.
    """
    one = as_one_scorer(scorer, state, test, of="test")
    lengths = (k,) if isinstance(k, int | np.integer) else tuple(k)
    _check(one, train, test, lengths, allowed, negatives, batch_size)
    check.choice("overlap", overlap, ("error", "drop"))
    check.choice("ties", ties, ("lowest_id", "worst", "expected"))
    metrics_at_k = {f"{name}@{n}": (metric, n) for n in lengths for name, metric in _named(metrics, ties).items()}
    out = {name: np.full(test.n_users, np.nan, np.float32) for name in metrics_at_k}
    relevant = test if relevant_from is None else test.take(test.value >= relevant_from)
    relevant_by_user = _by_user(_unique_pairs(relevant))
    seen_by_user = _by_user(train) if train is not None and mask_seen else None
    count = np.diff(relevant_by_user[0])
    test_users = np.flatnonzero(count)
    options = {"score": one.score, "metrics": tuple(metrics_at_k.values()), "n_items": test.n_items, "ties": ties}
    results = []  # read after the last dispatch: the host prepares a bucket while the device ranks the one before
    for users in _buckets(test_users, count[test_users], test.n_items):
        lists = pad_rows(*relevant_by_user, users), None if seen_by_user is None else pad_rows(*seen_by_user, users)
        measured = measure(
            one.state,
            users.astype(np.int32),
            lists,
            None if allowed is None else jnp.asarray(allowed),
            None if negatives is None else np.asarray(negatives)[users].astype(np.int32),
            **options,
            batch_size=batch_size,
        )
        results.append((users, measured))
    n_overlapping = np.zeros(test.n_users, np.int64)
    for users, measured in results:
        if (is_bad := np.asarray(measured.is_bad)).any():
            raise ValueError(
                "scorer: expected scores that are numbers or -inf, got NaN or +infinity for user "
                f"{users[is_bad.argmax()]}. Has training diverged?"
            )
        n_overlapping[users] = measured.overlap
    if overlap == "error" and train is not None:
        _check_overlap(int(n_overlapping.sum()), train, relevant)
    for users, measured in results:
        _check_filled(metrics_at_k, measured, users)
        for name, values in zip(metrics_at_k, measured.values, strict=True):
            out[name][users] = values
    all_dropped = int(((n_overlapping == count) & (count > 0)).sum())
    left_out = {"without relevant items": test.n_users - len(test_users), "with all of them in train": all_dropped}
    protocol = {
        "candidates": _candidates(allowed, negatives),
        "seen": "none" if train is None else "masked" if mask_seen else "ranked",
        "ties": ties,
        "relevant": "every test pair" if relevant_from is None else f"ratings from {relevant_from:g}",
    }
    return Evaluation(out, len(test_users) - all_dropped, left_out, protocol, test.user_ids)


def _named(metrics: Mapping[str, Metric | str] | Sequence[str] | None, ties: Ties) -> dict[str, Metric]:
    """Name -> metric, after checking that the metrics are known and have the values that `ties` asks for."""
    if isinstance(metrics, str):
        metrics = (metrics,)
    chosen = DEFAULT_METRICS if metrics is None else metrics
    by_name = dict(chosen) if isinstance(chosen, Mapping) else {name: name for name in chosen}
    named: dict[str, Metric] = {}
    for name, metric in by_name.items():
        if isinstance(metric, str):
            check.choice("metrics", metric, tuple(METRICS))
            metric = METRICS[metric]
        if not callable(metric):
            raise ValueError(f"metrics: expected names of metrics, or name -> function, got {metric!r}.")
        if ties == "expected" and metric not in EXPECTED_FORMULAS:
            raise ValueError(
                f"metrics: {name} has no expected value over the orders of tied items. Use ties='worst' or "
                f"'lowest_id', or one of {', '.join(each.__name__ for each in EXPECTED_FORMULAS)}."
            )
        named[name] = metric
    if not named:
        raise ValueError("metrics: expected at least one, got none.")
    return named


def _candidates(allowed: Any, negatives: Any) -> str:
    """What was ranked, in words."""
    if negatives is not None:
        return f"sampled, the relevant items and {np.shape(negatives)[1]} negatives of each user"
    if allowed is not None:
        return f"{int(np.sum(allowed))} allowed items of {len(np.asarray(allowed))}"
    return "the whole catalog"


def _by_user(ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """(start [n_users + 1], items sorted by user): the items of user j are items[start[j] : start[j + 1]]."""
    start, order = group_by(ratings.user, ratings.n_users)
    return start, ratings.item[order]


def _buckets(users: np.ndarray, count: np.ndarray, n_items: int) -> list[np.ndarray]:
    """The users by the number of their relevant items, each bucket of one padded length and so of one compilation.

    Lengths double from bucket to bucket. A bucket joins the next where its padding to that length costs less than a
    compilation, which few users or a small catalog do.
    """
    level = np.ceil(np.log2(count)).astype(int)
    buckets, members = [], np.zeros(0, np.intp)
    for each in np.unique(level):
        added = 2 ** int(each) - int(count[members].max(initial=0))  # Python's integers do not overflow
        if len(members) * added * n_items > COMPARISONS_PER_COMPILATION:
            buckets.append(users[np.sort(members)])
            members = members[:0]
        members = np.concatenate([members, np.flatnonzero(level == each)])
    return [*buckets, users[np.sort(members)]] if len(members) else buckets


def _unique_pairs(ratings: Ratings) -> Ratings:
    """The ratings without repeated pairs; the first of each is kept."""
    pair = ratings.user * np.int64(ratings.n_items) + ratings.item
    first = np.unique(pair, return_index=True)[1]
    return ratings if len(first) == len(ratings) else ratings.take(np.sort(first))


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


def _check_filled(metrics_at_k: Mapping[str, tuple[Metric, int]], measured: Measured, users: np.ndarray) -> None:
    """Raises a ValueError if a list has empty positions and a metric does not take `filled`, which masks them."""
    for name, (metric, k) in metrics_at_k.items():
        if metric in HIT_FORMULAS or accepts(metric, "filled"):
            continue
        n_candidates = np.asarray(measured.n_candidates)
        if (n_candidates < k).any():
            position = int((n_candidates < k).argmax())
            raise ValueError(
                f"{name.rpartition('@')[0]}: expected lists of k={k} items, got one of {n_candidates[position]} for "
                f"user {users[position]}, and the metric does not mask empty positions. Let it take filled= (bool [k], "
                "False at empty positions), or use a smaller k."
            )


def _check(
    one: OneScorer,
    train: Ratings | None,
    test: Ratings,
    lengths: tuple[int, ...],
    allowed: ArrayLike | None,
    negatives: ArrayLike | None,
    batch_size: int | None,
) -> None:
    n_users = test.n_users if one.n_users is None else one.n_users
    for name, ratings in (("train", train), ("test", test)):
        if ratings is not None and (ratings.n_users, ratings.n_items) != (n_users, one.n_items):
            raise ValueError(
                f"{name}: expected ratings of {n_users} users and {one.n_items} items, like the scorer, got "
                f"{ratings.n_users} and {ratings.n_items}. Bring them over the model's tables: "
                "ratings.reindexed(user_ids=..., item_ids=...)."
            )
    if train is not None:
        check_same_ids(train, test, ("train", "test"))
    if not lengths or min(lengths) < 1 or (batch_size is not None and batch_size < 1):
        raise ValueError(f"expected k and batch_size >= 1, got {lengths} and {batch_size}.")
    if allowed is not None and jnp.shape(allowed) != (one.n_items,):
        raise ValueError(f"allowed: expected one flag per item, shape ({one.n_items},), got {jnp.shape(allowed)}.")
    if negatives is not None:
        if allowed is not None:
            raise ValueError("allowed, negatives: expected one of the two, got both.")
        if np.ndim(negatives) != 2 or len(np.asarray(negatives)) != n_users or np.shape(negatives)[1] == 0:
            raise ValueError(f"negatives: expected ids [{n_users}, c] with c >= 1, got shape {np.shape(negatives)}.")
        check.ids("negatives", np.asarray(negatives).reshape(-1), size=one.n_items)
