"""The compiled part of `evaluate`: scores of chunks of users, ranks of their relevant items, metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxrec import check
from jaxrec.evaluation._ties import EXPECTED_FORMULAS, expected_positions, tie_groups, worst_rank
from jaxrec.gather import gather
from jaxrec.kernels.chunks import by_chunks
from jaxrec.kernels.platform import Platform, by_platform
from jaxrec.kernels.rank_by_count import ranks
from jaxrec.kernels.topk import orderable
from jaxrec.kernels.topk_select import largest
from jaxrec.metrics.ranking import HIT_FORMULAS, auc_at_k
from jaxrec.scorers import Score, product, scores_of

__all__ = ["IdLists", "Measured", "Metric", "Ties", "accepts", "measure"]

# Scores in memory at once: 4 MiB on a CPU; 1 GiB elsewhere, where few large steps are fastest.
SCORES_PER_CHUNK: dict[Platform, int] = {"cpu": 2**20, "gpu": 2**28, "tpu": 2**28}

# metric(ids [n, k], relevant [n, e], *, where [n, e]) -> [n], optionally with filled= [n, k] and n_candidates= [n]
Metric = Callable[..., Array]
IdLists = tuple[Array, Array]  # ids [n, length] and where [n, length]
Ties = Literal["lowest_id", "worst", "expected"]


class Measured(NamedTuple):
    """Metrics of n users.

    Attributes:
        values: float32 [n] for each metric.
        overlap: [n], the number of test items that are in train too.
        n_candidates: int32 [n], the number of ranked items; None if no metric needs it or the lists.
        is_bad: [n], whether a score is NaN or +infinity.
    """

    values: tuple[Array, ...]
    overlap: Array
    n_candidates: Array | None
    is_bad: Array


@partial(jax.jit, static_argnames=("score", "metrics", "batch_size", "n_items", "ties"))
def measure(
    state: Any,
    user_rows: Array,
    lists: tuple[IdLists, IdLists | None],
    allowed: Array | None,
    negatives: Array | None,
    *,
    score: Score,
    metrics: tuple[tuple[Metric, int], ...],
    batch_size: int | None,
    n_items: int,
    ties: Ties,
) -> Measured:
    """Metrics of the users in `user_rows`, whose test and train items are `lists`, by chunks of users.

    For user j and item i::

        score(i, j) = the scorer's, or -inf if i is in j's train part, not allowed, or not among j's candidates
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
    1 and the reciprocal rank 1/2. Three items are ranked (n_candidates), so all three positions are filled. Tied items
    are ordered by their ids, or as `_ties` says.
    """
    k_max = max(k for _, k in metrics)
    needs_lists = any(metric not in HIT_FORMULAS for metric, _ in metrics)
    needs_n_candidates = needs_lists or any(metric is auc_at_k for metric, _ in metrics)

    def raw_scores(users: Array) -> Array:
        """[n_items, n]: users last, along the CPU's vector registers."""
        if score is product:  # no transposition of the scores
            vectors, items = state
            return jnp.matmul(items, gather(vectors, users).T, precision=jax.lax.Precision.HIGHEST)
        return check.as_floats(scores=scores_of(score, state, users))[0].T

    def measure_chunk(rows: Any, platform: Platform) -> Measured:
        users, ((relevant, where), seen), own_negatives = rows
        n, m = len(users), n_items
        column = jnp.arange(n, dtype=jnp.int32)[None, :]
        scores = raw_scores(users)
        # finite products need no look at each, as `evaluate` has checked
        is_bad = jnp.zeros(n, bool) if score is product else ~jnp.all(scores < jnp.inf, axis=0)
        seen_score = -jnp.inf if score is product else jnp.inf  # which no item that is not seen can have
        if seen is not None:
            seen_rows = jnp.where(seen[1], seen[0], m).T
            scores = scores.at[seen_rows, column].set(seen_score, mode="drop")
        relevant_scores = jnp.take_along_axis(scores, relevant.T, axis=0, mode="promise_in_bounds")  # [e, n]
        overlap = where & (relevant_scores == seen_score).T
        if seen is not None and score is not product:
            scores = scores.at[seen_rows, column].set(-jnp.inf, mode="drop")
        where = where & ~overlap
        candidate = None if allowed is None else jnp.broadcast_to(allowed[:, None], (m, n))
        if own_negatives is not None:
            candidate = jnp.zeros((m, n), bool).at[own_negatives.T, column].set(True)
            candidate = candidate.at[jnp.where(where, relevant, m).T, column].set(True, mode="drop")
        if candidate is not None:
            scores = jnp.where(candidate, scores, -jnp.inf)
            relevant_scores = jnp.take_along_axis(scores, relevant.T, axis=0, mode="promise_in_bounds")
        n_candidates = (
            jnp.sum(scores > -jnp.inf, axis=0, dtype=jnp.int32) if needs_n_candidates else jnp.full(n, m, jnp.int32)
        )
        filled = jnp.arange(k_max, dtype=jnp.int32)[None, :] < n_candidates[:, None]
        count = jnp.sum(where, axis=1, dtype=jnp.float32)
        if ties == "expected":
            groups = tie_groups(scores, relevant.T, where.T)
            positions = expected_positions(groups, k_max)
        else:
            if ties == "worst":
                rank = worst_rank(tie_groups(scores, relevant.T, where.T))
            else:
                rank = ranks(scores, relevant.T, k_max, platform=platform)
            is_hit = where.T & (relevant_scores > -jnp.inf) & (rank < k_max)
            hit = jnp.zeros((n, k_max), jnp.float32).at[column, jnp.where(is_hit, rank, k_max)].set(1, mode="drop")
        ids = _top_ids(scores, k_max, filled, platform) if needs_lists else jnp.zeros((n, 0), jnp.int32)

        def metric_values(metric: Metric, k: int) -> Array:
            if ties == "expected":
                first_k = jax.tree.map(lambda each: each[:, :k], positions)
                values = EXPECTED_FORMULAS[metric](first_k, jnp.maximum(count, 1))
            elif metric in HIT_FORMULAS:
                values = jax.vmap(HIT_FORMULAS[metric])(hit[:, :k], jnp.maximum(count, 1), filled[:, :k], n_candidates)
            else:
                optional = {"filled": filled[:, :k], "n_candidates": n_candidates}
                kwargs = {name: array for name, array in optional.items() if accepts(metric, name)}
                one_user = lambda ids, relevant, where, kwargs: metric(ids, relevant, where=where, **kwargs)
                values = jax.vmap(one_user)(ids[:, :k], relevant, where, kwargs)
            if values.shape != (n,):
                raise ValueError(
                    f"metrics: expected a number for every user, got shape {values.shape[1:]} of {metric}."
                )
            return jnp.where(count > 0, values.astype(jnp.float32), jnp.nan)

        values = tuple(metric_values(metric, k) for metric, k in metrics)
        return Measured(values, jnp.sum(overlap, axis=1), n_candidates if needs_n_candidates else None, is_bad)

    def measure_all(rows: Any, *, platform: Platform) -> Measured:
        size = max(64, SCORES_PER_CHUNK[platform] // max(1, n_items)) if batch_size is None else batch_size
        return by_chunks(partial(measure_chunk, platform=platform), rows, _chunk_size(len(user_rows), size))

    return by_platform(measure_all, (user_rows, lists, negatives))


def _chunk_size(n: int, batch_size: int) -> int:
    """Users per chunk: chunks of nearly equal size, a multiple of 8 to fill the CPU's vector registers."""
    n_chunks = -(-n // batch_size)
    return min(batch_size, -(-n // (8 * n_chunks)) * 8)


def _top_ids(scores: Array, k: int, filled: Array, platform: Platform) -> Array:
    """The ids of each column's k best, best first; 0 at empty positions."""
    n_listed = min(k, len(scores))
    _, ids = largest(orderable(scores), n_listed, platform=platform)
    return jnp.where(filled, jnp.pad(ids, ((0, 0), (0, k - n_listed))), 0)


def accepts(metric: Metric, name: str) -> bool:
    """Whether the metric takes a keyword argument of this name."""
    parameters = inspect.signature(metric).parameters.values()
    return any(each.name == name or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
