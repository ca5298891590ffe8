"""Softmax losses: of a pair against its batch, and of a list of candidates.

>>> import jax.numpy as jnp
>>> total = listwise(jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]))
>>> round(float(total.sum), 4), float(total.count)  # log 3
(1.0986, 1.0)
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.numerics import log_softmax, product
from jaxrec.types import Total

__all__ = ["in_batch", "listwise", "log_popularity"]


def log_popularity(count: Shaped[ArrayLike, " n_items"]) -> Float[Array, " n_items"]:
    """Log q(i), the log-chance that a random training pair has item i: log count(i) - log of all. -inf for none.

    As a logarithm from the start: a chance of 1e-9 is no 0, and nothing is clipped.

    Raises:
        ValueError: counts that are negative, not finite or all 0 (under jit: NaN).
    """
    (count,) = check.as_floats(count=count)
    total = jnp.sum(count)
    if not check.traced(count) and not bool(jnp.all(count >= 0) & (total > 0) & jnp.isfinite(total)):
        raise ValueError("count: expected numbers >= 0, one at least > 0. Is the train part empty?")
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
    """Each pair's item against the other items of the batch: sum over pairs n of -log softmax_m(s(n, m)) at m = n.

    s(n, m) = v_user(n) . v_item(m) / temperature - log q(m): an item's chance to stand in the batch as a negative is
    its popularity q, which the correction takes out (without it the popular are pushed down). Accidental hits, other
    columns with the same item, and with `user` also those of the same user, are no negatives: they leave the sum.

    Args:
        v_user: f_u of each pair's user.
        v_item: f_m of its item.
        item: its id, by which accidental hits are known.
        log_q: log q of its item, `log_popularity(count)[item]`; None: no correction. An item of log q = -inf, of which
            training has none, is no negative of other pairs, and its own pair costs what q -> 0 makes of it: 0.
        temperature: > 0.
        user: the pair's user id; None looks at items only.
        where: False for padding, which is neither a pair nor a negative.
        weights: one per pair.

    Raises:
        ValueError: arrays that do not fit one another; ids that are no integers; a log q of +inf or NaN, or a
            temperature that is not positive (under jit they are trusted).

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
    itself = jnp.eye(n, dtype=bool)
    hit = item[:, None] == item[None, :]
    if user is not None:
        (user,) = check.comparable_ids(user=user)
        hit |= user[:, None] == user[None, :]
    if log_q is not None:
        log_q = jnp.where(where, log_q, 0)
        if not check.traced(log_q) and not bool(jnp.all(log_q < jnp.inf)):
            raise ValueError("log_q: expected logarithms of chances, got +inf or NaN. See log_popularity.")
        never = log_q == -jnp.inf
        hit |= never[None, :]
        score = jnp.where(itself & never[:, None], jnp.inf, score - jnp.where(never, 0, log_q)[None, :])
    log_probability = log_softmax(score, (where[None, :] & ~hit) | itself)
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
    """Cross-entropy of what was relevant in each list.

    sum over n of - sum_i p(n, i) log softmax(score(n, .))_i, where p(n, .) is relevance(n, .) over its sum.

    A list's level does not matter, its order does: adding a number to all scores of a list changes nothing. Lists
    without anything relevant are left out, of the count too.

    An infinite score costs 0 where it is right and infinity where it is wrong, and never makes a NaN.

    Args:
        score: of each request's candidates.
        relevance: >= 0, such as 1 where the user liked it.
        where: False at places that are empty, which may hold anything, NaN too.
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
    some = total > 0
    share = relevance / jnp.where(some, total, 1)[:, None]
    # a list that is left out counts as one of zeros, so that it has a gradient, of zeros
    score = jnp.where(where & some[:, None], score, 0)
    log_probability = log_softmax(score, where | ~some[:, None])
    loss = -jnp.sum(jnp.where(share > 0, share * jnp.where(share > 0, log_probability, 0), 0), axis=1)
    weight = jnp.where(some, 1.0 if weights is None else weights, 0.0).astype(loss.dtype)
    loss = jnp.where((weight == 0) & jnp.isinf(loss), 0, loss)
    return Total(jnp.sum(loss * weight), jnp.sum(weight))
