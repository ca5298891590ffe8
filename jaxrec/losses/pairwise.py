"""Losses of an item that a user chose against items that they did not, from the scores of both: BPR, hinge, WARP, BCE.

All have one signature::

    loss(positive, negative, *, negative_where=None, where=None, weights=None) -> Total(sum, count)

`positive` [...] has the score of one chosen item per entry, `negative` [..., c] those of its c negatives, in the same
leading shape, which may be any; negatives that all entries share are scored to [..., c] too. `negative_where` [..., c]
is False for negatives that are left out, such as items that the user has seen; `where` [...] is False for padding,
where all arrays may hold anything; `weights` [...] is one per entry.

| loss | of one entry | the count |
| --- | --- | --- |
| `bpr` | sum over negatives of -log g(positive - negative) | of pairs (positive, negative) |
| `hinge` | sum over negatives of max(0, margin - positive + negative) | of pairs (positive, negative) |
| `warp` | a hinge with the first violating negative, times a weight that grows with the positive's rank | of entries |
| `bce` | -log g(positive) - sum over negatives of log(1 - g(negative)) | of entries |
| `gbce` | the same with g(positive)^beta | of entries |

Here g(z) = 1 / (1 + e^-z), computed from logits: no score gives NaN, and a loss is infinite only if an infinite score
is wrong. Equal infinite scores differ by 0. Counts are sums of weights; Totals of parts of the data add up.

>>> import jax, jax.numpy as jnp
>>> positive, negative = jnp.array([2.0, 0.0]), jnp.array([[2.0, 1.0], [jnp.nan, 0.0]])
>>> valid = jnp.array([[True, True], [False, True]])
>>> total = bpr(positive, negative, negative_where=valid)  # log 2, log(1 + e^-1), log 2
>>> round(float(total.sum), 4), float(total.count)
(1.6996, 3.0)
>>> hinge(positive, negative, negative_where=valid).sum  # 1, 0, 1
Array(2., dtype=float32)
>>> jax.grad(lambda p: hinge(p, negative, negative_where=valid).sum)(positive)
Array([-1., -1.], dtype=float32)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped

from jaxrec import check
from jaxrec.losses.pointwise import weighted_total
from jaxrec.types import Total

__all__ = ["bce", "bpr", "gbce", "hinge", "warp"]


def bpr(
    positive: Shaped[ArrayLike, "*n"],
    negative: Shaped[ArrayLike, "*n c"],
    *,
    negative_where: Bool[ArrayLike, "*n c"] | None = None,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Bayesian personalized ranking: sum over pairs of -log g(positive - negative).

    Raises:
        ValueError: arrays that do not fit one another.

    Source: Rendle et al. 2009, BPR: Bayesian personalized ranking from implicit feedback.
    """
    positive, negative, valid, weights = _clean(positive, negative, negative_where, where, weights)
    return _pair_total(jax.nn.softplus(_minus(negative, positive)), valid, weights)


def hinge(
    positive: Shaped[ArrayLike, "*n"],
    negative: Shaped[ArrayLike, "*n c"],
    *,
    margin: float | Shaped[ArrayLike, ""] = 1.0,
    negative_where: Bool[ArrayLike, "*n c"] | None = None,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Hinge: sum over pairs of max(0, margin - positive + negative). The gradient at the kink is 0.

    Raises:
        ValueError: arrays that do not fit one another; a margin that is not positive (not checked under jit).
    """
    check.strength("margin", margin)
    positive, negative, valid, weights = _clean(positive, negative, negative_where, where, weights)
    return _pair_total(jax.nn.relu(margin + _minus(negative, positive)), valid, weights)


def warp(
    positive: Shaped[ArrayLike, "*n"],
    negative: Shaped[ArrayLike, "*n c"],
    *,
    n_items: int,
    margin: float | Shaped[ArrayLike, ""] = 1.0,
    negative_where: Bool[ArrayLike, "*n c"] | None = None,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Weighted approximate-rank pairwise loss: errors at the top of a long list cost more.

    Negatives are trials, drawn uniformly, in their order. The first violating one, margin - positive + negative > 0, at
    trial N, estimates how many items rank above the positive, and weighs its hinge::

        rank = floor((n_items - 1) / N)        loss = (1 + 1/2 + ... + 1/rank) (margin - positive + negative)

    An entry without a violation in its c trials costs 0. The weight is held fixed: the derivative is the hinge's times
    it. Negatives that are left out are no trials.

    Args:
        positive: the scores of the chosen items.
        negative: the scores of their trials.
        n_items: the size of the catalog.
        margin: > 0.
        negative_where: as in all losses of this module.
        where: as in all losses of this module.
        weights: as in all losses of this module.

    Raises:
        ValueError: arrays that do not fit one another; n_items < 2; a margin that is not positive (not under jit).

    Source: Weston, Bengio, Usunier 2011, WSABIE: scaling up to large vocabulary image annotation.
    """
    check.strength("margin", margin)
    check.whole_number("n_items", n_items, least=2)
    positive, negative, valid, weights = _clean(positive, negative, negative_where, where, weights)
    excess = margin + _minus(negative, positive)
    violates = valid & (excess > 0)
    trial = jnp.cumsum(valid, axis=-1, dtype=jnp.int32)
    is_first = violates & (jnp.cumsum(violates, axis=-1, dtype=jnp.int32) == 1)
    first_trial = jnp.max(jnp.where(is_first, trial, 1), axis=-1, initial=1)
    rank = ((n_items - 1) // first_trial).astype(excess.dtype)
    weight = digamma(rank + 1) + jnp.euler_gamma  # the sum of 1/r up to the rank
    loss = jax.lax.stop_gradient(jnp.maximum(weight, 0)) * jnp.sum(jnp.where(is_first, excess, 0), axis=-1)
    return weighted_total(loss, None if where is None else jnp.asarray(where), weights)


def bce(
    positive: Shaped[ArrayLike, "*n"],
    negative: Shaped[ArrayLike, "*n c"],
    *,
    negative_where: Bool[ArrayLike, "*n c"] | None = None,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Binary cross-entropy of a chosen item and its negatives: -log g(positive) - sum over c of log(1 - g(negative)).

    Raises:
        ValueError: arrays that do not fit one another.

    Source: Kang and McAuley 2018, Self-attentive sequential recommendation (with c = 1).
    """
    return _cross_entropy(positive, negative, 1.0, negative_where, where, weights)


def gbce(
    positive: Shaped[ArrayLike, "*n"],
    negative: Shaped[ArrayLike, "*n c"],
    *,
    n_items: int,
    t: float = 0.75,
    negative_where: Bool[ArrayLike, "*n c"] | None = None,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Generalized binary cross-entropy, for few negatives: -log g(positive)^beta - sum over c of log(1 - g(negative)).

    With c negatives of n_items - 1, positives are overrepresented, and `bce` learns probabilities that are too high.
    With alpha = c / (n_items - 1), the sampling rate::

        beta = alpha (t (1 - 1/alpha) + 1/alpha)

    t = 0 is `bce` (beta = 1); t = 1 calibrates fully (beta = alpha): g(positive) is then the probability. Computed as
    -beta log g(positive), without the power.

    Args:
        positive: the scores of the chosen items.
        negative: the scores of their negatives, drawn uniformly.
        n_items: the size of the catalog.
        t: calibration, in [0, 1].
        negative_where: as in all losses of this module; c is the number that was drawn.
        where: as in all losses of this module.
        weights: as in all losses of this module.

    Raises:
        ValueError: arrays that do not fit one another; no negatives, or n_items < 2; t out of range.

    Source: Petrov and Macdonald 2023, gSASRec: reducing overconfidence in sequential recommendation trained with
    negative sampling.
    """
    check.whole_number("n_items", n_items, least=2)
    if not 0 <= t <= 1:
        raise ValueError(f"t: expected a number in [0, 1], got {t}.")
    c = jnp.shape(negative)[-1] if jnp.ndim(negative) else 0
    if c == 0:
        raise ValueError(
            "negative: expected at least one per positive, because beta depends on their number, got none."
        )
    alpha = c / (n_items - 1)
    return _cross_entropy(positive, negative, alpha * (t * (1 - 1 / alpha) + 1 / alpha), negative_where, where, weights)


def _cross_entropy(
    positive: ArrayLike,
    negative: ArrayLike,
    beta: float,
    negative_where: ArrayLike | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> Total:
    positive, negative, valid, weights = _clean(positive, negative, negative_where, where, weights)
    loss = beta * jax.nn.softplus(-positive) + jnp.sum(jnp.where(valid, jax.nn.softplus(negative), 0), axis=-1)
    return weighted_total(loss, None if where is None else jnp.asarray(where), weights)


def _clean(
    positive: ArrayLike,
    negative: ArrayLike,
    negative_where: ArrayLike | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Array, Array, Array | None]:
    """(positive, negative, which negatives count, weights) in one floating type, with 0 in masked entries."""
    check.same_shape(positive=positive, where=where, weights=weights)
    if jnp.ndim(negative) == 0 or jnp.shape(negative)[:-1] != jnp.shape(positive):
        raise ValueError(
            f"expected positive [...] and negative [..., c], got shapes {jnp.shape(positive)} and "
            f"{jnp.shape(negative)}. One negative per positive is negative[..., None]."
        )
    check.same_shape(negative=negative, negative_where=negative_where)
    positive, negative, weights = check.as_floats(positive=positive, negative=negative, weights=weights)
    valid = jnp.ones(negative.shape, bool) if negative_where is None else jnp.asarray(negative_where)
    if where is not None:
        entries = jnp.asarray(where)
        valid &= entries[..., None]
        positive, weights = (None if array is None else jnp.where(entries, array, 0) for array in (positive, weights))
    return positive, jnp.where(valid, negative, 0), valid, weights


def _minus(negative: Array, positive: Array) -> Array:
    """Negative - positive, where equal infinite scores differ by 0."""
    positive = jnp.broadcast_to(positive[..., None], negative.shape)
    tied = jnp.isinf(negative) & (negative == positive)
    return jnp.where(tied, 0, negative) - jnp.where(tied, 0, positive)


def _pair_total(loss: Array, valid: Array, weights: Array | None) -> Total:
    weights = None if weights is None else jnp.where(valid, weights[..., None], 0)
    return weighted_total(jnp.where(valid, loss, 0), valid, weights)
