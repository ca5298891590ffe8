"""Metrics of predicted binary labels: 1 for engaged, 0 for shown but not engaged.

>>> import jax.numpy as jnp
>>> logit, y = jnp.array([2.0, -1.0, 0.5, 9.0]), jnp.array([1.0, 0.0, 0.0, jnp.nan])
>>> shown = jnp.array([True, True, True, False])
>>> float(log_loss(logit, y, where=shown))  # (log(1 + e^-2) + log(1 + e^-1) + log(1 + e^0.5)) / 3
0.471422...
>>> float(auc(logit, y, where=shown))  # 2.0 is larger than both -1.0 and 0.5
1.0
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.numerics import binary_cross_entropy

__all__ = ["auc", "log_loss"]


def log_loss(
    logit: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Float[Array, ""]:
    """The (weighted) mean binary cross-entropy, from logits z: -y log g(z) - (1 - y) log(1 - g(z)).

    In nats: always predicting 1/2 gives log 2. Equals `losses.logistic(...).mean()`, which training minimizes.

    Args:
        logit: w . x + b, not the probability.
        target: labels or probabilities, in [0, 1]; numbers or bools.
        where: which entries count; all by default.
        weights: >= 0, all ones by default.

    Raises:
        ValueError: arrays of different shapes; a target outside [0, 1] (not checked under jit); nothing to average
            (under jit: NaN).
    """
    logit, target, weights = _clean(logit, target, where, weights, name="logit")
    if not check.traced(target) and not bool(jnp.all((target >= 0) & (target <= 1))):
        raise ValueError(
            f"target: expected labels in [0, 1], got from {float(jnp.min(target))} to {float(jnp.max(target))}. "
            "Make labels of ratings with data.labels."
        )
    count = jnp.sum(weights)
    if not check.traced(count) and not count > 0:
        raise ValueError("nothing to average: every entry is masked or has weight 0. Is the test part empty?")
    loss = binary_cross_entropy(logit, target)
    return jnp.sum(weights * jnp.where((weights == 0) & jnp.isinf(loss), 0, loss)) / count


def auc(
    score: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Float[Array, ""]:
    """The area under the ROC curve: the probability that a random 1 has a higher score than a random 0; ties count 1/2.

    AUC = weighted mean over the ones of (weight of zeros with a lower score + 1/2 weight of zeros with the same score)
    / weight of all zeros. For scores in order, all weights 1::

        score                     0.1  0.5  0.5  0.8
        target                      0    1    0    1
        zeros below                      1         2
        zeros with the same score        1         0
        fraction                      0.75         1     (1 + 1/2) / 2 and 2 / 2: AUC = 0.875

    All entries are pooled, so this is not a mean of per-user AUCs: for that, `vmap` over padded lists with `where` and
    leave out users with one class only (NaN).

    Args:
        score: anything that ranks: logits, probabilities, ratings; infinities too.
        target: labels, each 0 or 1; numbers or bools.
        where: which entries count; all by default.
        weights: >= 0, all ones by default.

    Raises:
        ValueError: arrays of different shapes; a target that is neither 0 nor 1 (not checked under jit); a NaN among
            the scores; no ones or no zeros of positive weight (under jit: NaN for the last two).
    """
    check.same_shape(score=score, target=target, where=where, weights=weights)
    score = _as_scores(score, where)
    _, target, weights = _clean(target, target, where, weights, name="label")
    score, target, weights = score.reshape(-1), target.reshape(-1), weights.reshape(-1)
    if not check.traced(target) and not bool(jnp.all((target == 0) | (target == 1))):
        raise ValueError(
            "target: expected labels that are 0 or 1, got others. Make labels of ratings with data.labels."
        )
    has_nan = jnp.any(jnp.isnan(score))
    if not check.traced(has_nan) and has_nan:
        raise ValueError(f"score: expected numbers, got {int(jnp.isnan(score).sum())} NaN. Has training diverged?")
    for label in (0, 1):
        if not check.traced(weights, target) and not jnp.sum(jnp.where(target == label, weights, 0)) > 0:
            raise ValueError(
                f"no {'ones' if label else 'zeros'}: expected labels of both classes, unmasked and with positive "
                "weight, since AUC compares ones with zeros."
            )
    order = jnp.argsort(score)
    score, is_one, weights = score[order], target[order] == 1, weights[order]
    zeros = jnp.where(is_one, 0, weights)
    cumulative = jnp.cumsum(zeros)
    # the first and last entry of each group of equal scores
    first = jnp.concatenate([jnp.ones(1, bool), score[1:] != score[:-1]])[: len(score)]
    last = jnp.concatenate([score[1:] != score[:-1], jnp.ones(1, bool)])[: len(score)]
    # `cumulative` never decreases, so a running maximum and minimum copy a group's end values to all its entries
    below = jax.lax.cummax(jnp.where(first, cumulative - zeros, 0))
    not_above = jax.lax.cummin(jnp.where(last, cumulative, jnp.inf), reverse=True)
    fraction = (below + not_above) / 2 / jnp.sum(zeros)
    ones = jnp.where(is_one, weights, 0)
    return jnp.where(has_nan, jnp.nan, jnp.sum(ones * fraction) / jnp.sum(ones))


def _clean(
    prediction: ArrayLike, target: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None, *, name: str
) -> tuple[Array, Array, Array]:
    """Returns all arrays in one floating type; masked entries are 0 and have weight 0."""
    check.same_shape(**{name: prediction}, target=target, where=where, weights=weights)
    prediction, target, weights = check.as_floats(**{name: prediction}, target=target, weights=weights)
    weights = jnp.ones_like(prediction) if weights is None else weights
    if where is None:
        return prediction, target, weights
    return jnp.where(where, prediction, 0), jnp.where(where, target, 0), jnp.where(where, weights, 0)


def _as_scores(score: ArrayLike, where: ArrayLike | None) -> Array:
    """Returns the scores, 0 where masked. 64-bit scores become their ranks, since float32 could make some equal."""
    if not isinstance(score, jax.Array) and not check.traced(where):
        array = np.where(True if where is None else np.asarray(where), np.asarray(score), 0)
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype and not np.isnan(array).any():
            return jnp.asarray(np.unique(array, return_inverse=True)[1].reshape(array.shape), jnp.int32)
        score = array
    score = check.as_array("score", score)
    return score if where is None else jnp.where(where, score, 0)
