"""Softmax losses: of a pair against the items of its batch, and of lists of candidates.

>>> import jax.numpy as jnp
>>> total = listwise(jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]))
>>> round(float(total.sum), 4), float(total.count)  # log 3
(1.0986, 1.0)
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.numerics import log_softmax, product
from jaxrec.types import Total

__all__ = ["in_batch", "listwise", "log_popularity"]


def log_popularity(count: Shaped[ArrayLike, " n_items"]) -> Float[Array, " n_items"]:
    """Log q(i) = log count(i) - log sum of counts, the log-probability of item i in a random training pair.

    Items without pairs get -inf. Small probabilities are neither rounded to 0 nor clipped.

    Raises:
        ValueError: counts that are negative, not finite or all 0 (under jit: NaN).
    """
    (count,) = check.as_floats(count=count)
    total = jnp.sum(count)
    if not check.traced(count) and not bool(jnp.all(count >= 0) & (total > 0) & jnp.isfinite(total)):
        raise ValueError("count: expected finite numbers >= 0, at least one of them > 0. Is the train part empty?")
    return jnp.log(count) - jnp.log(total)


def in_batch(
    v_user: Shaped[ArrayLike, "n d"],
    v_item: Shaped[ArrayLike, "n d"],
    item: Int[ArrayLike, " n"],
    *,
    log_q: Shaped[ArrayLike, " n"] | None = None,
    temperature: Shaped[ArrayLike, ""] = 1.0,
    user: Int[ArrayLike, " n"] | None = None,
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
) -> Total:
    """In-batch softmax: sum over pairs n of -log softmax_m(s(n, m)) at m = n, with the other pairs' items as negatives.

    s(n, m) = v_user(n) . v_item(m) / temperature - log q(m). An item is a negative as often as its popularity q says;
    subtracting log q corrects for this (without it popular items are scored too low). Accidental hits, the other
    columns with the pair's item or (if `user` is given) its user, are left out of the softmax. For item = [7, 9, 7]::

        pair | item    7  9  7
              0        +  -  .      + the pair's item
              1        -  +  -      - a negative
              2        .  -  +      . an accidental hit, left out

    Args:
        v_user: f_u of each pair's user.
        v_item: f_m of each pair's item.
        item: each pair's item id, to find accidental hits.
        log_q: log q of each pair's item, `log_popularity(count)[item]`; None for no correction. An item with
            log q = -inf, which is not in the training data, is never a negative, and its own pair has the loss of the
            limit q -> 0, which is 0.
        temperature: > 0.
        user: each pair's user id; None finds accidental hits by item only.
        where: False for padding, which is neither a pair nor a negative.
        weights: one per pair.

    Raises:
        ValueError: arrays that do not fit one another; ids that are not integers; a log q of +inf or NaN, or a
            temperature that is not positive (not checked under jit).

    Source: Yi et al. 2019, Sampling-bias-corrected neural modeling for large corpus item recommendations.
    """
    check.vector_pairs(v_user, v_item, item=item, user=user, log_q=log_q, where=where, weights=weights)
    n = jnp.shape(item)[0]
    check.strength("temperature", temperature)
    v_user, v_item, log_q, weights = check.as_floats(v_user=v_user, v_item=v_item, log_q=log_q, weights=weights)
    (item,) = check.comparable_ids(item=item)
    where = jnp.ones(n, bool) if where is None else jnp.asarray(where)
    v_user, v_item = (jnp.where(where[:, None], v, 0) for v in (v_user, v_item))
    score = product(v_user, v_item.T) / temperature
    diagonal = jnp.eye(n, dtype=bool)
    excluded = item[:, None] == item[None, :]
    if user is not None:
        (user,) = check.comparable_ids(user=user)
        excluded |= user[:, None] == user[None, :]
    if log_q is not None:
        log_q = jnp.where(where, log_q, 0)
        if not check.traced(log_q) and not bool(jnp.all(log_q < jnp.inf)):
            raise ValueError("log_q: expected logarithms of probabilities, got +inf or NaN. See log_popularity.")
        unseen = log_q == -jnp.inf
        excluded |= unseen[None, :]
        score = jnp.where(diagonal & unseen[:, None], jnp.inf, score - jnp.where(unseen, 0, log_q)[None, :])
    log_probability = log_softmax(score, (where[None, :] & ~excluded) | diagonal)
    weight = jnp.where(where, 1.0 if weights is None else weights, 0.0).astype(score.dtype)
    loss = jnp.where(where, -jnp.diagonal(log_probability), 0)
    loss = jnp.where((weight == 0) & jnp.isinf(loss), 0, loss)
    return Total(jnp.sum(loss * weight), jnp.sum(weight))


def listwise(
    score: Shaped[ArrayLike, "n c"],
    relevance: Shaped[ArrayLike, "n c"],
    *,
    where: Bool[ArrayLike, "n c"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
) -> Total:
    """Cross-entropy between each list's relevance and the softmax of its scores.

    sum over n of - sum_i p(n, i) log softmax(score(n, .))_i, where p(n, .) is relevance(n, .) over its sum.

    Adding a constant to all scores of a list does not change its loss. Lists without relevant candidates are left out,
    also of the count. An infinite score gives a loss of 0 where it is right, infinity where it is wrong, and never NaN.

    Args:
        score: [n, c], one list of candidates per request.
        relevance: >= 0, such as 1 where the user liked the candidate.
        where: False at padding, where the arrays may hold anything, including NaN.
        weights: one per list.

    Raises:
        ValueError: arrays of different shapes.

    Source: Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach (ListNet's top-one).
    """
    check.same_shape(score=score, relevance=relevance, where=where)
    if weights is not None and jnp.shape(weights) != jnp.shape(score)[:1]:
        raise ValueError(f"weights: expected one per list, {jnp.shape(score)[:1]}, got shape {jnp.shape(weights)}.")
    score, relevance, weights = check.as_floats(score=score, relevance=relevance, weights=weights)
    where = jnp.ones(score.shape, bool) if where is None else jnp.asarray(where)
    relevance = jnp.where(where, relevance, 0)
    total = jnp.sum(relevance, axis=1)
    has_relevant = total > 0
    p = relevance / jnp.where(has_relevant, total, 1)[:, None]
    # the scores of a list that is left out become zeros, so that its gradient is 0 and not NaN
    score = jnp.where(where & has_relevant[:, None], score, 0)
    log_probability = log_softmax(score, where | ~has_relevant[:, None])
    loss = -jnp.sum(jnp.where(p > 0, p * jnp.where(p > 0, log_probability, 0), 0), axis=1)
    weight = jnp.where(has_relevant, 1.0 if weights is None else weights, 0.0).astype(loss.dtype)
    loss = jnp.where((weight == 0) & jnp.isinf(loss), 0, loss)
    return Total(jnp.sum(loss * weight), jnp.sum(weight))
