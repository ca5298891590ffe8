"""Metrics of ranked lists: one number per list, from the recommended ids and the relevant ids.

Every function takes one list, or several with leading axes, and returns one number per list:

    ids       [*n, k]  recommended ids, best first, as `retrieval.top_k` returns; for a smaller k: ids[..., :k]
    relevant  [*n, e]  relevant ids (such as what the user liked later), padded; duplicates count once
    where     [*n, e]  False at the padding of `relevant`; all True by default
    filled    [*n, k]  False at empty positions of `ids` (scores > -inf gives it); all True by default

Notation: hit(r) is 1 if position r = 1 .. k is filled by a relevant item that no earlier position has, else 0; R is the
number of distinct relevant items. The value of a list with R = 0 is NaN. Average over users with `jnp.nanmean`, and
report how many users that leaves.

| metric | value of one list | other libraries |
| --- | --- | --- |
| precision | sum hit / k | implicit divides by min(k, R) and calls it precision |
| recall | sum hit / R | |
| hit_rate | 1 if there is any hit | |
| average_precision | sum_r hit(r) (hits up to r) / r / min(k, R); its mean is MAP | |
| reciprocal_rank | 1 / first r with hit(r), 0 without hits; its mean is MRR | |
| ndcg | sum_r hit(r) / log2(r + 1), over the same sum of min(k, R) hits at the top | some sum over all R |
| auc_at_k | see its docstring | as in implicit |

In the example hit = 0 1 0 1 and R = 3: precision 2/4, recall 2/3, average precision (1/2 + 2/4) / 3.

>>> import jax.numpy as jnp
>>> ids, liked = jnp.array([7, 3, 9, 4]), jnp.array([3, 4, 8, 0])
>>> valid = jnp.array([True, True, True, False])  # three films; the 0 is padding
>>> [round(float(metric(ids, liked, where=valid)), 4) for metric in (precision, recall, average_precision)]
[0.5, 0.6667, 0.3333]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxrec import check
from jaxrec.metrics._lists import each_list

__all__ = [
    "HIT_FORMULAS",
    "Formula",
    "auc_at_k",
    "average_precision",
    "hit_rate",
    "hits",
    "ndcg",
    "precision",
    "recall",
    "reciprocal_rank",
]

# The value of one list from its hits: formula(hit [k] of 0.0 and 1.0, R, filled [k], n_candidates), with R >= 1.
Formula = Callable[[Array, Array, Array, Array], Array]
Ids = Int[ArrayLike, "*n k"] | Sequence[Any]
Relevant = Int[ArrayLike, "*n e"] | Sequence[Any]


def precision(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Sum hit / k: the fraction of the k positions, filled or empty, that hold a relevant item."""
    return _per_list(_precision, ids, relevant, where, filled)


def recall(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Sum hit / R: the fraction of the relevant items that are in the list. With R > k it cannot reach 1."""
    return _per_list(_recall, ids, relevant, where, filled)


def hit_rate(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """1 if any relevant item is in the list, else 0."""
    return _per_list(_hit_rate, ids, relevant, where, filled)


def average_precision(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Sum_r hit(r) precision_at(r) / min(k, R): 1 if the first min(k, R) positions are all hits. Its mean is MAP."""
    return _per_list(_average_precision, ids, relevant, where, filled)


def reciprocal_rank(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """1 / position of the first hit, counted from 1; 0 without a hit. Its mean is MRR."""
    return _per_list(_reciprocal_rank, ids, relevant, where, filled)


def ndcg(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Normalized discounted cumulative gain: DCG / DCG of the ideal list, with binary gains.

    DCG = sum_r hit(r) / log2(r + 1); ideal DCG = sum_{r <= min(k, R)} 1 / log2(r + 1), so that 1 can be reached even
    with R > k.

    Source: Järvelin and Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques.
    """
    return _per_list(_ndcg, ids, relevant, where, filled)


def auc_at_k(
    ids: Ids,
    relevant: Relevant,
    *,
    n_candidates: int | Int[ArrayLike, "*n"],
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """The probability that a random relevant item is ranked above a random other item, for a ranking cut off at k.

    Unlisted items are taken to follow the list in random order, so a pair of them counts 1/2. With H hits, and M misses
    (filled positions without a hit) among the n_candidates - R other items::

        AUC = (sum over misses of the hits above it + (H + R) / 2 * (n_candidates - R - M)) / (R (n_candidates - R))

    An unlisted other item is below the H hits and ties with the R - H unlisted relevant items: H + (R - H) / 2. For
    hit = 1 0 1, R = 3 and n_candidates = 10: (1 + 2.5 * 6) / 21 = 0.76.

    For a list of the full catalog this is the area under the ROC curve, which `metrics.auc` computes from scores. If
    all candidates are relevant there is no pair, and the value is NaN.

    Args:
        ids: the list, distinct ids.
        relevant: the relevant ids.
        n_candidates: how many items could have been in the list: the catalog less the excluded items.
        where: False at the padding of `relevant`.
        filled: False at empty positions of `ids`.
    """
    return _per_list(_auc_at_k, ids, relevant, where, filled, n_candidates)


def hits(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Bool[Array, "*n k"]:
    """Which positions hold a relevant item that no earlier position holds: padding and duplicates never count.

    Raises:
        ValueError: shapes that do not fit, or k = 0.
    """
    ids, relevant, where, filled = _as_arrays(ids, relevant, where, filled)
    return each_list(_hits, ids.shape[:-1], ids, relevant, where, filled)


def _hits(ids: Array, relevant: Array, where: Array, filled: Array) -> Array:
    k = len(ids)
    position = jnp.arange(k, dtype=jnp.int32)[:, None]
    match = (ids[:, None] == relevant[None, :]) & filled[:, None]
    first = jnp.min(jnp.where(match, position, k), axis=0)  # the first position of each relevant item, k if unlisted
    return jnp.any((position == first[None, :]) & where[None, :], axis=1)


def _n_distinct(relevant: Array, where: Array) -> Array:
    """The number of distinct unmasked ids of [e]."""
    masked, relevant = jax.lax.sort((~where, relevant), num_keys=2)
    duplicate = jnp.concatenate([jnp.zeros(1, bool), relevant[1:] == relevant[:-1]])[: len(relevant)]
    return jnp.sum(~masked & ~duplicate)


def _precision(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.sum(hit) / len(hit)


def _recall(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.sum(hit) / count


def _hit_rate(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.max(hit)


def _average_precision(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.sum(hit * jnp.cumsum(hit) / _ranks(hit)) / jnp.minimum(count, len(hit))


def _reciprocal_rank(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.max(hit / _ranks(hit))


def _ndcg(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    discount = 1 / jnp.log2(_ranks(hit) + 1)
    return jnp.sum(hit * discount) / jnp.sum(discount, where=_ranks(hit) <= count)


def _auc_at_k(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    miss, n_others = jnp.where(filled, 1 - hit, 0), n_candidates.astype(hit.dtype) - count
    listed_pairs = jnp.sum(miss * jnp.cumsum(hit))
    unlisted_pairs = (jnp.sum(hit) + count) / 2 * (n_others - jnp.sum(miss))
    return (listed_pairs + unlisted_pairs) / (count * n_others)  # without other items 0 / 0 = NaN


# The formula of each metric, for callers that know the hits without having the lists (`evaluation`).
HIT_FORMULAS: Mapping[Callable[..., Array], Formula] = MappingProxyType(
    {
        precision: _precision,
        recall: _recall,
        hit_rate: _hit_rate,
        average_precision: _average_precision,
        reciprocal_rank: _reciprocal_rank,
        ndcg: _ndcg,
        auc_at_k: _auc_at_k,
    }
)


def _per_list(
    formula: Formula,
    ids: Any,
    relevant: Any,
    where: ArrayLike | None,
    filled: ArrayLike | None,
    n_candidates: ArrayLike = 0,
) -> Array:
    """formula(hit, R, filled, n_candidates) of every list; NaN where R = 0."""
    ids, relevant, where, filled = _as_arrays(ids, relevant, where, filled)

    def one_list(ids: Array, relevant: Array, where: Array, filled: Array, n_candidates: Array) -> Array:
        hit = _hits(ids, relevant, where, filled).astype(jnp.float32)
        count = _n_distinct(relevant, where).astype(hit.dtype)
        return jnp.where(count > 0, formula(hit, jnp.maximum(count, 1), filled, n_candidates), jnp.nan)

    shape = ids.shape[:-1]
    n_candidates = jnp.broadcast_to(check.as_array("n_candidates", n_candidates).astype(jnp.int32), shape)
    return each_list(one_list, shape, ids, relevant, where, filled, n_candidates)


def _ranks(hit: Array) -> Array:
    """1 .. k."""
    return jnp.arange(1, len(hit) + 1, dtype=hit.dtype)


def _as_arrays(
    ids: Any, relevant: Any, where: ArrayLike | None, filled: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    """Returns ids of one type and masks (all True for None), with their shapes checked."""
    ids, relevant = check.comparable_ids(ids=ids, relevant=relevant)
    where = jnp.ones(relevant.shape, bool) if where is None else jnp.asarray(where)
    filled = jnp.ones(ids.shape, bool) if filled is None else jnp.asarray(filled)
    fits = ids.ndim > 0 and relevant.ndim > 0 and ids.shape[-1] > 0 and relevant.shape[:-1] == ids.shape[:-1]
    if not (fits and where.shape == relevant.shape and filled.shape == ids.shape):
        arrays = {"ids": ids, "relevant": relevant, "where": where, "filled": filled}
        got = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"expected ids [*n, k] with k >= 1, relevant and where [*n, e], filled [*n, k]; got {got}.")
    return ids, relevant, where, filled
