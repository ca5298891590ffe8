"""Pointwise losses, (prediction, target) -> Total, and their derivatives with respect to the prediction.

All have one signature::

    loss(prediction, target, *, where=None, weights=None) -> Total(sum, count)

`prediction`, `target`, `where` (bool) and `weights` have the same shape, which may be any, and any numeric type: the
computation is in float32, or in float64 if one of them is. The sum is over the entries where `where` is True, each
times its weight; the count is the sum of these weights. Masked entries are set to 0 before the arithmetic, so that NaN
or inf there reaches neither the value nor a gradient. The caller takes the mean, at the end: Totals of batches, padded
chunks and devices add up exactly. Arrays of different shapes raise a ValueError.

A loss may have an attribute `slope`, the derivative of one entry's loss with respect to its prediction; closed forms
need nothing else of a loss. `slope_of` returns it, or derives it by autodiff. `from_elementwise` makes a loss of an
element-wise function.

>>> import jax, jax.numpy as jnp
>>> prediction, target = jnp.array([4.0, 3.0, 1.0]), jnp.array([5.0, 3.0, jnp.nan])
>>> rated = jnp.array([True, True, False])
>>> half_squared_error(prediction, target, where=rated).sum  # (1^2 + 0^2) / 2
Array(0.5, dtype=float32)
>>> squared_error(prediction, target, where=rated).mean()  # 1 / 2
Array(0.5, dtype=float32)
>>> jax.grad(lambda p: half_squared_error(p, target, where=rated).sum)(prediction)
Array([-1.,  0.,  0.], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped

from jaxrec import check
from jaxrec.numerics import binary_cross_entropy
from jaxrec.types import Total

__all__ = [
    "PointwiseLoss",
    "Slope",
    "absolute_error",
    "from_elementwise",
    "half_squared_error",
    "logistic",
    "slope_of",
    "squared_error",
    "weighted_total",
]


# loss(prediction, target, *, where=None, weights=None) -> Total
PointwiseLoss = Callable[..., Total]
# slope(prediction, target) -> d loss / d prediction, element-wise
Slope = Callable[[Array, Array], Array]


def squared_error(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Sum of (prediction - target)^2, for RMSE and for the two-tower cost."""
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    return weighted_total((prediction - target) ** 2, where, weights)


def half_squared_error(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """1/2 sum of (prediction - target)^2, the default of `cost`. The 1/2 makes the slope prediction - target."""
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    return weighted_total(0.5 * (prediction - target) ** 2, where, weights)


def absolute_error(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Sum of |prediction - target|, for MAE. The gradient is 0 where they are equal."""
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    error = prediction - target  # the slope of jnp.abs at 0 is 1; sign gives 0
    return weighted_total(error * jax.lax.stop_gradient(jnp.sign(error)), where, weights)


def logistic(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Binary cross-entropy from logits: sum of -y log g(z) - (1 - y) log(1 - g(z)), g(z) = 1 / (1 + e^-z).

    Computed as y softplus(-z) + (1 - y) softplus(z), without g: the loss is infinite only for an infinite logit of the
    wrong sign, and no logit gives NaN, in value or gradient.

    Args:
        prediction: z, the logits.
        target: y: 1 for engaged, 0 for shown but not engaged, or a probability.
        where: True where the item was shown.
        weights: one per entry.
    """
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    return weighted_total(binary_cross_entropy(prediction, target), where, weights)


def from_elementwise(function: Callable[[Array, Array], Array], *, slope: Slope | None = None) -> PointwiseLoss:
    """Makes a pointwise loss of function(prediction, target) -> loss of each entry, such as `optax.huber_loss`.

    Args:
        function: element-wise, for arrays of any shape.
        slope: its derivative with respect to the prediction, if that is cheaper than autodiff; None uses autodiff.

    Returns:
        The loss. The same arguments return the same object, so that functions compiled for it are reused.

    >>> import optax
    >>> huber = from_elementwise(optax.huber_loss)
    >>> float(huber(jnp.array([4.0, 0.0]), jnp.array([5.0, 3.0])).sum)  # 1/2 + (3 - 1/2)
    3.0
    """
    return _from_elementwise(function, slope)


@cache
def _from_elementwise(function: Callable[[Array, Array], Array], slope: Slope | None) -> PointwiseLoss:
    def loss(
        prediction: ArrayLike, target: ArrayLike, *, where: ArrayLike | None = None, weights: ArrayLike | None = None
    ) -> Total:
        y_hat, y, mask, weight = _clean(prediction, target, where, weights)
        return weighted_total(function(y_hat, y), mask, weight)

    loss.__name__ = loss.__qualname__ = getattr(function, "__name__", "loss")
    loss.__doc__ = f"Pointwise loss of {loss.__name__}."
    if slope is not None:
        loss.slope = slope  # type: ignore[attr-defined]
    return loss


def slope_of(loss: PointwiseLoss) -> Slope:
    """Derivative of an entry's loss with respect to its prediction: `loss.slope` if it exists, else by autodiff."""
    return getattr(loss, "slope", None) or partial(_slope_by_autodiff, loss)


def _slope_by_autodiff(loss: PointwiseLoss, prediction: Array, target: Array) -> Array:
    return jax.grad(lambda prediction: loss(prediction, target).sum)(prediction)


def _squared_error_slope(prediction: Array, target: Array) -> Array:
    return 2 * (prediction - target)


def _half_squared_error_slope(prediction: Array, target: Array) -> Array:
    return prediction - target


def _logistic_slope(prediction: Array, target: Array) -> Array:
    return jax.nn.sigmoid(prediction) - target


squared_error.slope = _squared_error_slope  # type: ignore[attr-defined]
half_squared_error.slope = _half_squared_error_slope  # type: ignore[attr-defined]
logistic.slope = _logistic_slope  # type: ignore[attr-defined]


def _clean(
    prediction: ArrayLike, target: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Array, Array, Array | None, Array | None]:
    """Returns all arrays in one floating type, with 0 in masked entries."""
    check.same_shape(prediction=prediction, target=target, where=where, weights=weights)
    prediction, target, weights = check.as_floats(prediction=prediction, target=target, weights=weights)
    if where is None:
        return prediction, target, None, weights
    zero_masked = lambda array: jnp.where(where, array, 0)
    prediction, target = zero_masked(prediction), zero_masked(target)
    return prediction, target, jnp.asarray(where), None if weights is None else zero_masked(weights)


def weighted_total(loss: Array, where: Array | None, weights: Array | None) -> Total:
    """Sum of the entries' losses under the mask, times weights that are 0 where masked, and the sum of these weights.

    An entry of weight 0 counts as 0 even if its loss is infinite.
    """
    if weights is not None:
        loss = jnp.where((weights == 0) & jnp.isinf(loss), 0, loss)
        return Total(jnp.sum(loss * weights), jnp.sum(weights))
    if where is None:
        return Total(jnp.sum(loss), jnp.asarray(loss.size, loss.dtype))
    return Total(jnp.sum(loss, where=where), jnp.sum(where, dtype=loss.dtype))
