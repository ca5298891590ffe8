"""Costs of matrix factorization from implicit feedback: pairs (user, item) that were chosen, without ratings.

The score is the prediction without b(j), which all items of a user share: s(i,j) = w(j) . x(i) + c(i) + mu(i). With
`cosine`, w and x are divided by their norms; rank by `models.unit_factors(factors)` then. Each cost takes a layout
`Observed`, whose values are not read (but its weights and mask are), and returns a Total, for `training.fit`:

| cost | compares a pair with |
| --- | --- |
| `catalogue_cost` | all items, by softmax |
| `sampled_cost` | sampled items that the batch shares, by softmax |
| `bpr_cost` | sampled items, one by one |

>>> import jax, jaxrec, optax
>>> from jaxrec.training import negatives
>>> train = jaxrec.data.synthetic.low_rank(30, 20, 200, rng=0).ratings
>>> def cost(factors, pairs, *, key):
...     drawn = negatives.uniform((len(pairs.user), 1), 20, key=key)
...     return bpr_cost(factors, pairs, drawn.ids, l2=0.01)
>>> factors, history = jaxrec.training.fit(
...     cost, jaxrec.models.init(30, 20, 4, key=jax.random.key(0)), jaxrec.data.minibatches(train, 50, rng=0),
...     optimizer=optax.adam(0.05), key=jax.random.key(1), epochs=5, progress=False)
>>> bool(history.loss[-1] < history.loss[0])
True

For tables of millions of rows use `training.lazy` with `losses.softmax.sampled` or `losses.bpr` on the rows looked up:
an optimizer of the full tables reads and writes all of them in every step.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.losses.layouts import check_tables
from jaxrec.losses.pairwise import bpr
from jaxrec.losses.penalty import L2, l2_penalty
from jaxrec.losses.softmax import catalogue_softmax, sampled
from jaxrec.numerics import HIGHEST, product, unit_vectors
from jaxrec.prediction import item_term
from jaxrec.types import Factors, Observed, Total

__all__ = ["bpr_cost", "catalogue_cost", "sampled_cost"]


def catalogue_cost(
    factors: Factors,
    pairs: Observed,
    *,
    temperature: Shaped[ArrayLike, ""] = 1.0,
    cosine: bool = False,
    l2: L2 | None = None,
) -> Total:
    """Softmax over the whole catalog, `losses.catalogue_softmax` of s(i,j) / temperature, plus the penalty.

    Args:
        factors: the parameters.
        pairs: the chosen pairs, or a minibatch of them.
        temperature: > 0; about 0.1 with `cosine`.
        cosine: whether w and x are divided by their norms.
        l2: strength of `losses.penalty.l2_penalty`, added to the sum; a minibatch with counts has its share of it.

    Raises:
        ValueError: factors whose parts do not fit; ids that are not in the tables (not checked under jit).
    """
    w, x, bias = _tables(factors, pairs)
    total = catalogue_softmax(
        _rows(w, pairs.user, cosine),
        unit_vectors(x) if cosine else x,
        pairs.item,
        bias=None if bias is None else bias / temperature,
        temperature=temperature,
        where=pairs.where,
        weights=pairs.weights,
    )
    return _with_penalty(total, factors, pairs, l2)


def sampled_cost(
    factors: Factors,
    pairs: Observed,
    negative: Int[ArrayLike, " c"],
    *,
    log_q: Shaped[ArrayLike, " c"] | None = None,
    temperature: Shaped[ArrayLike, ""] = 1.0,
    cosine: bool = False,
    l2: L2 | None = None,
) -> Total:
    """Sampled softmax, `losses.softmax.sampled` of s(i,j) / temperature, plus the penalty.

    Args:
        factors: the parameters.
        pairs: the chosen pairs, or a minibatch of them.
        negative: ids of items that all pairs share, such as `negatives.uniform((1000,), n_items, key=key).ids`.
        log_q: their log-probabilities, to correct for the sampling; None for no correction.
        temperature: as in `catalogue_cost`.
        cosine: as in `catalogue_cost`.
        l2: as in `catalogue_cost`.

    Raises:
        ValueError: as `catalogue_cost`.
    """
    w, x, bias = _tables(factors, pairs)
    negative = check.row_ids("negative", negative, size=len(x))
    v_user, v_item, v_negative = (_rows(*pair, cosine) for pair in ((w, pairs.user), (x, pairs.item), (x, negative)))
    if bias is not None:  # the bias is one more number of the vectors
        ones = jnp.ones((len(v_user), 1), v_user.dtype)
        v_user = jnp.concatenate([v_user, ones], axis=1)
        v_item = jnp.concatenate([v_item, gather(bias, pairs.item)[:, None]], axis=1)
        v_negative = jnp.concatenate([v_negative, gather(bias, negative)[:, None]], axis=1)
    total = sampled(
        v_user,
        v_item,
        v_negative,
        pairs.item,
        negative,
        log_q=log_q,
        temperature=temperature,
        where=pairs.where,
        weights=pairs.weights,
    )
    return _with_penalty(total, factors, pairs, l2)


def bpr_cost(
    factors: Factors,
    pairs: Observed,
    negative: Int[ArrayLike, "*n c"],
    *,
    negative_where: Bool[ArrayLike, "n c"] | None = None,
    l2: L2 | None = None,
) -> Total:
    """BPR, `losses.bpr` of s(i,j), plus the penalty.

    Args:
        factors: the parameters.
        pairs: the chosen pairs, or a minibatch of them.
        negative: ids of each pair's negatives, [n, c], or of those that all share, [c].
        negative_where: False for negatives that are left out, such as items that the user has seen.
        l2: as in `catalogue_cost`.

    Raises:
        ValueError: as `catalogue_cost`; negatives that do not fit the pairs.
    """
    w, x, bias = _tables(factors, pairs)
    negative = check.row_ids("negative", negative, size=len(x))
    if negative.ndim not in (1, 2) or negative.shape[:-1] not in ((), np.shape(pairs.user)):
        raise ValueError(
            f"negative: expected ids [c], or [n, c] of the {len(pairs.user)} pairs, got shape {negative.shape}."
        )
    v_user, v_item, v_negative = gather(w, pairs.user), gather(x, pairs.item), gather(x, negative)
    dot = lambda v: jnp.einsum("nd,n...d->n...", v_user, v, precision=HIGHEST)
    positive, score = dot(v_item), product(v_user, v_negative.T) if negative.ndim == 1 else dot(v_negative)
    if bias is not None:
        positive, score = (
            positive + gather(bias, pairs.item),
            score + jnp.broadcast_to(gather(bias, negative), score.shape),
        )
    total = bpr(positive, score, negative_where=negative_where, where=pairs.where, weights=pairs.weights)
    return _with_penalty(total, factors, pairs, l2)


def _tables(factors: Factors, pairs: Observed) -> tuple[Array, Array, Array | None]:
    """(w, x, c + mu or None), in one floating type."""
    check_tables(factors, pairs)
    has_bias = factors.c is not None or factors.mu is not None
    w, x, bias = check.as_floats(w=factors.w, x=factors.x, bias=item_term(factors) if has_bias else None)
    return w, x, bias


def _rows(table: Array, ids: Array, cosine: bool) -> Array:
    rows = gather(table, ids)
    return unit_vectors(rows) if cosine else rows


def _with_penalty(total: Total, factors: Factors, pairs: Observed, l2: L2 | None) -> Total:
    return total if l2 is None else Total(total.sum + l2_penalty(factors, l2=l2, batch=pairs), total.count)
