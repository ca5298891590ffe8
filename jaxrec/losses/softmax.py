"""Softmax losses: of a pair against the whole catalog, against sampled items or the items of its batch; of lists.

| loss | a pair's negatives | cost of a step |
| --- | --- | --- |
| `catalogue_softmax` | all items | n_items products per row of v_user, in tiles |
| `sampled` | items drawn for the batch, or for every pair | one product per negative |
| `in_batch` | the other pairs' items | one product per pair of the batch |
| `listwise` | the other candidates of a list | |

With cosines (`models.two_tower.unit_vectors` of both sides) the temperature matters: about 0.1. Two users, three items;
user 0 has chosen item 1, user 1 items 0 and 2:

>>> import jax, jax.numpy as jnp
>>> v_user, v_item = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0]])
>>> chosen, valid = jnp.array([[1, 0], [0, 2]]), jnp.array([[True, False], [True, True]])
>>> total = catalogue_softmax(v_user, v_item, chosen, where=valid)
>>> round(float(total.sum), 4), float(total.count)  # log(e^2 + 2) - 2 + 2 (log(2 e + 1) - 1)
(1.9635, 3.0)

>>> total = listwise(jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]))
>>> round(float(total.sum), 4), float(total.count)  # log 3
(1.0986, 1.0)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec import check
from jaxrec.gather import gather
from jaxrec.kernels.bags import bag_scores
from jaxrec.kernels.streaming_softmax import log_sum_exp
from jaxrec.losses.pointwise import weighted_total
from jaxrec.numerics import HIGHEST, log_softmax, product
from jaxrec.types import Total

__all__ = ["catalogue_softmax", "in_batch", "listwise", "log_popularity", "sampled"]


def catalogue_softmax(
    v_user: Shaped[ArrayLike, "n d"],
    v_item: Shaped[ArrayLike, "m d"],
    item: Int[ArrayLike, "n ..."],
    *,
    bias: Shaped[ArrayLike, " m"] | None = None,
    temperature: Shaped[ArrayLike, ""] = 1.0,
    where: Bool[ArrayLike, "n ..."] | None = None,
    weights: Shaped[ArrayLike, "n ..."] | None = None,
) -> Total:
    """Softmax over the whole catalog: sum over pairs (n, i) of -log softmax_i(s(n, .)), without n x m numbers.

    s(n, i) = v_user(n) . v_item(i) / temperature + bias(i). Scores are computed in tiles, and again for the derivative
    (`kernels.streaming_softmax`), which exists in reverse mode only: `jax.grad`, not `jax.jvp`. Cotangents reach
    v_user, v_item, bias, temperature and weights.

    One row of v_user may have one item, or a padded list of them: a user's log-sum-exp is then computed once for all of
    the user's items, which is the multinomial loss of Mult-DAE and Mult-VAE: the negative log-likelihood of the items
    that a user chose, as draws from one softmax.

    Args:
        v_user: a vector per row, such as each pair's user, or each user.
        v_item: a vector for every item of the catalog.
        item: [n], the id of each row's item; or [n, e], of its items.
        bias: one per item; -inf leaves an item out of the softmax (a pair with it then has an infinite loss).
        temperature: > 0.
        where: False for padding, where item may be anything; a row without items may have any vector, NaN too.
        weights: one per pair.

    Returns:
        The sum over pairs and the sum of their weights.

    Raises:
        ValueError: arrays that do not fit one another, no items; ids that are no items of the catalog, a temperature
            that is not positive (not checked under jit).

    Source: Liang et al. 2018, Variational autoencoders for collaborative filtering (the multinomial likelihood).
    """
    n, m, e = _catalog_sizes(v_user, v_item, item, bias)
    check.same_shape(item=item, where=where, weights=weights)
    check.strength("temperature", temperature)
    ids = check.row_ids("item", item, size=m, where=where).reshape(n, e)
    v_user, v_item, bias, weights = check.as_floats(v_user=v_user, v_item=v_item, bias=bias, weights=weights)
    if where is not None:
        where = jnp.asarray(where)
        valid = where.reshape(n, e)
        v_user, ids = jnp.where(jnp.any(valid, axis=1, keepdims=True), v_user, 0), jnp.where(valid, ids, 0)
        weights = None if weights is None else jnp.where(where, weights, 0)
    queries = v_user / temperature
    top, log_total = log_sum_exp(queries, v_item, bias)
    score = bag_scores(queries, v_item, ids)
    score = score if bias is None else score + gather(bias, ids)
    # loss = top + log_total - score, where equal infinities differ by 0 and have no derivative
    finite = jnp.isfinite(top)[:, None] & jnp.isfinite(score)
    infinite_loss = jnp.where(score == top[:, None], 0, jnp.inf)
    loss = jnp.where(finite, jnp.where(finite, top[:, None], 0) - jnp.where(finite, score, 0), infinite_loss)
    return weighted_total((log_total[:, None] + loss).reshape(np.shape(item)), where, weights)


def _catalog_sizes(
    v_user: ArrayLike, v_item: ArrayLike, item: ArrayLike, bias: ArrayLike | None
) -> tuple[int, int, int]:
    """Returns (n, m, e) after checking the shapes of the arguments of `catalogue_softmax`."""
    users, items, ids = np.shape(v_user), np.shape(v_item), np.shape(item)
    if len(users) != 2 or len(items) != 2 or users[1] != items[1] or len(ids) not in (1, 2) or ids[0] != users[0]:
        raise ValueError(
            f"expected v_user [n, d], v_item [n_items, d] and item [n] or [n, e], got shapes {users}, {items}, {ids}."
        )
    if items[0] == 0:
        raise ValueError("v_item: expected at least one item, got none.")
    if bias is not None and np.shape(bias) != items[:1]:
        raise ValueError(f"bias: expected one per item, shape {items[:1]}, got shape {np.shape(bias)}.")
    return users[0], items[0], ids[1] if len(ids) == 2 else 1


def sampled(
    v_user: Shaped[ArrayLike, "n d"],
    v_item: Shaped[ArrayLike, "n d"],
    v_negative: Shaped[ArrayLike, "*n c d"],
    item: Int[ArrayLike, " n"],
    negative: Int[ArrayLike, "*n c"],
    *,
    log_q: Shaped[ArrayLike, "*n c"] | None = None,
    temperature: Shaped[ArrayLike, ""] = 1.0,
    negative_where: Bool[ArrayLike, "*n c"] | Bool[ArrayLike, "n c"] | None = None,
    where: Bool[ArrayLike, " n"] | None = None,
    weights: Shaped[ArrayLike, " n"] | None = None,
) -> Total:
    """Sampled softmax: sum over pairs n of -log of the pair's share among its own item and c sampled negatives.

    With s = v_user . v / temperature, and the negatives k drawn with probabilities q(k)::

        loss(n) = -s(n, item(n)) + log(exp s(n, item(n)) + sum over k of exp(s(n, k) - log(c q(k))))

    The sum is then an unbiased estimate of that over all other items, so that the loss tends to `catalogue_softmax` as
    c grows; it equals it for c = n_items negatives, every item once, and q = 1 / n_items. Without `log_q` nothing is
    subtracted: popular negatives push as often as they are drawn. Accidental hits, negatives that are the pair's own
    item, are left out. For item = [7, 9] and shared negatives [9, 3]::

        pair | own item  9  3
          0  |    +      -  -      + the pair's item    - a negative
          1  |    +      .  -      . an accidental hit, left out

    It takes vectors, not tables, so that factors, towers and `training.lazy` can use it: v_negative = x[negative].

    Args:
        v_user: a vector for each pair's user.
        v_item: a vector for each pair's item.
        v_negative: [c, d], of negatives that all pairs share: one product; or [n, c, d], of each pair's own.
        item: each pair's item id, to find accidental hits.
        negative: [c] or [n, c], the negatives' ids.
        log_q: log q of each negative, as `training.negatives` returns it with the ids; None for no correction. One with
            log q = -inf cannot have been drawn, and is left out.
        temperature: > 0.
        negative_where: False for negatives that are left out, such as items that the user has seen; may be [n, c] for
            shared negatives too. c stays the number that was drawn.
        where: False for padding, which is no pair.
        weights: one per pair.

    Raises:
        ValueError: arrays that do not fit one another; ids that are not integers; a log q of +inf or NaN, or a
            temperature that is not positive (not checked under jit).

    Source: Bengio and Senecal 2008, Adaptive importance sampling to accelerate training of a neural probabilistic
    language model; Jean et al. 2015, On using very large target vocabulary for neural machine translation.
    """
    check.vector_pairs(v_user, v_item, item=item, where=where, weights=weights)
    n, c = np.shape(item)[0], np.shape(negative)[-1:]
    if np.shape(negative) not in (c, (n, *c)) or np.shape(v_negative) != (*np.shape(negative), *np.shape(v_user)[1:]):
        raise ValueError(
            f"expected negative [c] and v_negative [c, d], or [n, c] and [n, c, d], for n, d = {np.shape(v_user)}, got "
            f"shapes {np.shape(negative)} and {np.shape(v_negative)}."
        )
    check.same_shape(negative=negative, log_q=log_q)
    if negative_where is not None and np.shape(negative_where) not in (c, (n, *c)):
        raise ValueError(f"negative_where: expected shape {c} or {(n, *c)}, got {np.shape(negative_where)}.")
    check.strength("temperature", temperature)
    v_user, v_item, v_negative, log_q, weights = check.as_floats(
        v_user=v_user, v_item=v_item, v_negative=v_negative, log_q=log_q, weights=weights
    )
    item, negative = check.comparable_ids(item=item, negative=negative)
    valid = (
        jnp.ones((n, *c), bool) if negative_where is None else jnp.broadcast_to(jnp.asarray(negative_where), (n, *c))
    )
    if where is not None:
        where = jnp.asarray(where)
        v_user, v_item = (jnp.where(where[:, None], v, 0) for v in (v_user, v_item))
        weights = None if weights is None else jnp.where(where, weights, 0)
        valid &= where[:, None]
    shared = negative.ndim == 1
    counts = jnp.any(valid, axis=0) if shared else valid
    v_negative = jnp.where(counts[..., None], v_negative, 0)
    valid &= item[:, None] != (negative[None, :] if shared else negative)
    correction = None
    if log_q is not None:
        log_q = jnp.where(counts, log_q, 0)
        if not check.traced(log_q) and not bool(jnp.all(log_q < jnp.inf)):
            raise ValueError("log_q: expected logarithms of probabilities, got +inf or NaN.")
        possible = log_q > -jnp.inf
        correction = jnp.where(possible, -jnp.where(possible, log_q, 0) - np.log(max(1, *c)), -jnp.inf)
    own = jnp.einsum("nd,nd->n", v_user, v_item, precision=HIGHEST) / temperature
    if shared and c != (0,):
        top, log_total = log_sum_exp(v_user / temperature, v_negative, correction, valid)
        return weighted_total(jax.nn.softplus((top - own) + log_total), where, weights)
    score = jnp.einsum("nd,ncd->nc", v_user, jnp.broadcast_to(v_negative, (n, *c, v_user.shape[1])), precision=HIGHEST)
    score = score / temperature if correction is None else score / temperature + correction
    every = jnp.concatenate([own[:, None], score], axis=1)
    log_probability = log_softmax(every, jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True))[:, 0]
    return weighted_total(-log_probability, where, weights)


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
