"""How well binary labels are predicted: 1 engaged, 0 shown and not engaged.

>>> import jax.numpy as jnp
>>> logit, y = jnp.array([2.0, -1.0, 0.5, 9.0]), jnp.array([1.0, 0.0, 0.0, jnp.nan])
>>> shown = jnp.array([True, True, True, False])
>>> float(log_loss(logit, y, where=shown))  # (log(1 + e^-2) + log(1 + e^-1) + log(1 + e^0.5)) / 3
0.471422...
>>> float(auc(logit, y, where=shown))  # 2.0 is above both -1.0 and 0.5
1.0
"""

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

    In nats; log 2 is a coin's. The same mean as `losses.logistic(...).mean()`, which is what training minimizes.

    Args:
        logit: w . x + b, not the probability.
        target: labels or probabilities, in [0, 1]; numbers or bools.
        where: what to count; all by default.
        weights: >= 0, all ones by default.

    Raises:
        ValueError: arrays of different shapes; a target outside [0, 1]; nothing to average (under jit: NaN for that,
            and targets are trusted).
    """
    logit, target, weights = _clean(logit, target, where, weights, name="logit")
    if not check.traced(target) and not bool(jnp.all((target >= 0) & (target <= 1))):
        raise ValueError(
            f"target: expected labels in [0, 1], got from {float(jnp.min(target))} to {float(jnp.max(target))}. "
            "Ratings become labels in data.labels."
        )
    count = jnp.sum(weights)
    if not check.traced(count) and not count > 0:
        raise ValueError("nothing to average: every entry is masked or has weight 0. Is the test part empty?")
    each = binary_cross_entropy(logit, target)
    return jnp.sum(weights * jnp.where((weights == 0) & jnp.isinf(each), 0, each)) / count


def auc(
    score: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Float[Array, ""]:
    """The area under the ROC curve: the chance that a random 1 is scored above a random 0; ties count half.

    AUC = mean over the ones of (weight of the zeros scored below + 1/2 of those scored the same) / weight of all zeros,
    the mean weighted as the ones are. One sort; every entry counts alike, so this is no mean of users' AUCs: for those,
    `vmap` over padded lists with `where`, and leave out the users of one class only (NaN).

    Args:
        score: anything that ranks: logits, probabilities, ratings; infinities too.
        target: labels, each 0 or 1; numbers or bools.
        where: what to count; all by default.
        weights: >= 0, all ones by default.

    Raises:
        ValueError: arrays of different shapes; a target that is neither 0 nor 1; a NaN among the scores; no ones or no
            zeros of positive weight (under jit: NaN for the last two, and targets are trusted).
    """
    check.same_shape(score=score, target=target, where=where, weights=weights)
    score = _in_order(score, where)
    _, target, weights = _clean(target, target, where, weights, name="label")
    score, target, weights = score.reshape(-1), target.reshape(-1), weights.reshape(-1)
    if not check.traced(target) and not bool(jnp.all((target == 0) | (target == 1))):
        raise ValueError("target: expected labels that are 0 or 1, got others. Ratings become labels in data.labels.")
    undefined = jnp.any(jnp.isnan(score))
    if not check.traced(undefined) and undefined:
        raise ValueError(f"score: expected numbers, got {int(jnp.isnan(score).sum())} NaN. Has training diverged?")
    for label in (0, 1):
        if not check.traced(weights, target) and not jnp.sum(jnp.where(target == label, weights, 0)) > 0:
            raise ValueError(
                f"no {'ones' if label else 'zeros'}: expected labels of both classes, unmasked and of positive weight: "
                "AUC compares ones with zeros."
            )
    order = jnp.argsort(score)
    score, one, weights = score[order], target[order] == 1, weights[order]
    zeros = jnp.where(one, 0, weights)
    up_to = jnp.cumsum(zeros)
    new = jnp.concatenate([jnp.ones(1, bool), score[1:] != score[:-1]])[: len(score)]  # a group of equal scores begins
    last = jnp.concatenate([score[1:] != score[:-1], jnp.ones(1, bool)])[: len(score)]
    # `up_to` never falls, so a group's ends are carried over it by a running maximum and minimum
    below = jax.lax.cummax(jnp.where(new, up_to - zeros, 0))
    not_above = jax.lax.cummin(jnp.where(last, up_to, jnp.inf), reverse=True)
    share = (below + not_above) / 2 / jnp.sum(zeros)
    ones = jnp.where(one, weights, 0)
    return jnp.where(undefined, jnp.nan, jnp.sum(ones * share) / jnp.sum(ones))


def _clean(
    prediction: ArrayLike, target: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None, *, name: str
) -> tuple[Array, Array, Array]:
    """All in one floating type, with 0 in place of whatever stands under the mask, and as its weight."""
    check.same_shape(**{name: prediction}, target=target, where=where, weights=weights)
    prediction, target, weights = check.as_floats(**{name: prediction}, target=target, weights=weights)
    weights = jnp.ones_like(prediction) if weights is None else weights
    if where is None:
        return prediction, target, weights
    return jnp.where(where, prediction, 0), jnp.where(where, target, 0), jnp.where(where, weights, 0)


def _in_order(score: ArrayLike, where: ArrayLike | None) -> Array:
    """The scores, 0 where masked. Those of 64 bits become their numbers in order: float32 would make some the same."""
    if not isinstance(score, jax.Array) and not check.traced(where):
        array = np.where(True if where is None else np.asarray(where), np.asarray(score), 0)
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype and not np.isnan(array).any():
            return jnp.asarray(np.unique(array, return_inverse=True)[1].reshape(array.shape), jnp.int32)
        score = array
    score = check.as_array("score", score)
    return score if where is None else jnp.where(where, score, 0)
