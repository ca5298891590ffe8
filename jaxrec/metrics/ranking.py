"""How good ranked lists are: one number per list, from the ids that were recommended and the ids that were relevant.

Every function takes one list, or any number of them with leading axes, and returns one number per list:

    ids       [*n, k]  what was recommended, best first, as `retrieval.top_k` gives it; at a smaller k: ids[..., :k]
    relevant  [*n, e]  what would have been right (what the user liked later), padded; repeats count once
    where     [*n, e]  False at the padding of `relevant`; all True by default
    filled    [*n, k]  False at places that stand empty (scores > -inf); all True by default

Notation: hit(r) is 1 where place r = 1 .. k is filled by a relevant item that no earlier place has; R is how many
different items are relevant. A list with R = 0 has no value, NaN; the mean over users is `jnp.nanmean`, of how many is
for you to say.

| metric | one list's value | the peers' denominators |
| --- | --- | --- |
| precision | sum hit / k | implicit divides by min(k, R) and calls it precision |
| recall | sum hit / R | |
| hit_rate | 1 where any hit | |
| average_precision | sum_r hit(r) (hits up to r) / r / min(k, R); its mean is MAP | |
| reciprocal_rank | 1 / first r with hit(r), 0 without; its mean is MRR | |
| ndcg | sum_r hit(r) / log2(r + 1), over that of min(k, R) hits on top | some sum over all R |
| auc_at_k | see there | as implicit |

>>> import jax.numpy as jnp
>>> ids, liked = jnp.array([7, 3, 9, 4]), jnp.array([3, 4, 8, 0])
>>> among = jnp.array([True, True, True, False])  # three films; the 0 is padding
>>> [round(float(metric(ids, liked, where=among)), 4) for metric in (precision, recall, average_precision)]
[0.5, 0.6667, 0.3333]
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jaxrec import check

__all__ = [
    "OF_HITS",
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

# One list's value from where its hits stand: formula(hit [k] of 0. and 1., R, filled [k], n_candidates), R >= 1.
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
    """Sum hit / k: the share of the k places, filled or not, that hold something relevant."""
    return _per_list(_precision, ids, relevant, where, filled)


def recall(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Sum hit / R: the share of what is relevant that was found. With R > k it cannot reach 1."""
    return _per_list(_recall, ids, relevant, where, filled)


def hit_rate(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """1 where anything relevant is in the list, else 0."""
    return _per_list(_hit_rate, ids, relevant, where, filled)


def average_precision(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Sum_r hit(r) precision at r / min(k, R): 1 where all k places, or all R items, are right. Its mean is MAP."""
    return _per_list(_average_precision, ids, relevant, where, filled)


def reciprocal_rank(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """1 / the place of the first hit, counted from 1; 0 without a hit. Its mean is MRR."""
    return _per_list(_reciprocal_rank, ids, relevant, where, filled)


def ndcg(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Float[Array, "*n"]:
    """Normalized discounted cumulative gain: DCG / the DCG of the best list of k places, sum_{r <= min(k, R)}.

    DCG = sum_r hit(r) / log2(r + 1). Of more than k relevant items any k make the ideal list, so that 1 can be reached.

    Source: Järvelin and Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques; with gains of 0 and 1.
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
    """The chance that a random relevant item stands above a random other one, of a ranking known down to place k.

    What is not in the list is taken to follow it in random order: a pair of such items counts half. With the whole
    catalogue in the list it is the area under the ROC curve; `metrics.auc` has that from scores. Where everything is
    relevant there is no pair, and the value is NaN.

    Args:
        ids: the list, distinct ids.
        relevant: as everywhere.
        n_candidates: how many items could have been in the list: the catalogue less what was excluded.
        where: as everywhere.
        filled: as everywhere.
    """
    return _per_list(_auc_at_k, ids, relevant, where, filled, n_candidates)


def hits(
    ids: Ids,
    relevant: Relevant,
    *,
    where: Bool[ArrayLike, "*n e"] | None = None,
    filled: Bool[ArrayLike, "*n k"] | None = None,
) -> Bool[Array, "*n k"]:
    """Which places hold a relevant item that no earlier place holds: padding and repetition never count.

    Raises:
        ValueError: shapes that do not fit, or k = 0.
    """
    ids, relevant, where, filled = _lists(ids, relevant, where, filled)
    return _over_lists(_hits, ids.shape[:-1], ids, relevant, where, filled)


def _hits(ids: Array, relevant: Array, where: Array, filled: Array) -> Array:
    k = len(ids)
    place = jnp.arange(k, dtype=jnp.int32)[:, None]
    holds = (ids[:, None] == relevant[None, :]) & filled[:, None]
    first = jnp.min(jnp.where(holds, place, k), axis=0)  # of each relevant item: the first place that has it
    return jnp.any((place == first[None, :]) & where[None, :], axis=1)


def _distinct(relevant: Array, where: Array) -> Array:
    """How many different ids of [e] are unmasked."""
    masked, relevant = jax.lax.sort((~where, relevant), num_keys=2)
    repeats = jnp.concatenate([jnp.zeros(1, bool), relevant[1:] == relevant[:-1]])[: len(relevant)]
    return jnp.sum(~masked & ~repeats)


def _precision(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.sum(hit) / len(hit)


def _recall(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.sum(hit) / count


def _hit_rate(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.max(hit)


def _average_precision(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.sum(hit * jnp.cumsum(hit) / _places(hit)) / jnp.minimum(count, len(hit))


def _reciprocal_rank(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    return jnp.max(hit / _places(hit))


def _ndcg(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    discount = 1 / jnp.log2(_places(hit) + 1)
    return jnp.sum(hit * discount) / jnp.sum(discount, where=_places(hit) <= count)


def _auc_at_k(hit: Array, count: Array, filled: Array, n_candidates: Array) -> Array:
    miss, others = jnp.where(filled, 1 - hit, 0), n_candidates.astype(hit.dtype) - count
    among_the_listed = jnp.sum(miss * jnp.cumsum(hit))
    among_the_rest = (jnp.sum(hit) + count) / 2 * (others - jnp.sum(miss))
    return (among_the_listed + among_the_rest) / (count * others)  # no others: 0 / 0, NaN


# What each metric is computed from, for who knows where the hits stand without having the lists (`evaluation`).
OF_HITS: Mapping[Callable[..., Array], Formula] = MappingProxyType(
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
    ids, relevant, where, filled = _lists(ids, relevant, where, filled)

    def one(ids: Array, relevant: Array, where: Array, filled: Array, n_candidates: Array) -> Array:
        hit = _hits(ids, relevant, where, filled).astype(jnp.float32)
        count = _distinct(relevant, where).astype(hit.dtype)
        return jnp.where(count > 0, formula(hit, jnp.maximum(count, 1), filled, n_candidates), jnp.nan)

    lists = ids.shape[:-1]
    n_candidates = jnp.broadcast_to(check.as_array("n_candidates", n_candidates).astype(jnp.int32), lists)
    return _over_lists(one, lists, ids, relevant, where, filled, n_candidates)


def _over_lists(one: Callable[..., Array], lists: tuple[int, ...], *arrays: Array) -> Array:
    for _ in lists:
        one = jax.vmap(one)
    return one(*arrays)


def _places(hit: Array) -> Array:
    """1 .. k."""
    return jnp.arange(1, len(hit) + 1, dtype=hit.dtype)


def _lists(
    ids: Any, relevant: Any, where: ArrayLike | None, filled: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    """Arrays whose shapes fit, ids of one type, masks that are there."""
    ids, relevant = check.comparable_ids(ids=ids, relevant=relevant)
    where = jnp.ones(relevant.shape, bool) if where is None else jnp.asarray(where)
    filled = jnp.ones(ids.shape, bool) if filled is None else jnp.asarray(filled)
    right = ids.ndim > 0 and relevant.ndim > 0 and ids.shape[-1] > 0 and relevant.shape[:-1] == ids.shape[:-1]
    if not (right and where.shape == relevant.shape and filled.shape == ids.shape):
        arrays = {"ids": ids, "relevant": relevant, "where": where, "filled": filled}
        got = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"expected ids [*n, k] with k >= 1, relevant and where [*n, e], filled [*n, k]; got {got}.")
    return ids, relevant, where, filled
