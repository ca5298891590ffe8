"""Pointwise losses: (prediction, target) -> Total, and their derivatives in the prediction.

One contract for all of them::

    loss(prediction, target, *, where=None, weights=None) -> Total(sum, count)

`prediction`, `target`, `where` (bool) and `weights` have one shape, any shape, and any type of numbers: all is computed
in float32, or in float64 where one of them is. The sum runs over the entries where `where` is True, each times its
weight; the count is the sum of those weights. What is masked is replaced before the arithmetic, so that NaN or inf
under the mask reaches neither the value nor a gradient. Means are the caller's: Totals of batches, of padded parts and
of devices add up exactly. Arrays of different shapes are a ValueError.

A loss may carry its `slope`, the derivative of one entry's loss in its prediction, which is all that a closed form
needs to know of it; `slope_of` takes it by autodiff where it does not. An element-wise function becomes a loss by
`from_elementwise`.

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
    """Sum of (prediction - target)^2: for RMSE, and for the towers' cost."""
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    return _total((prediction - target) ** 2, where, weights)


def half_squared_error(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """1/2 sum of (prediction - target)^2: the notes' costs. The 1/2 makes the slope prediction - target."""
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    return _total(0.5 * (prediction - target) ** 2, where, weights)


def absolute_error(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Sum of |prediction - target|: for MAE. Its gradient where they are equal is 0."""
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    error = prediction - target  # jnp.abs has slope 1 at 0, sign has 0
    return _total(error * jax.lax.stop_gradient(jnp.sign(error)), where, weights)


def logistic(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Total:
    """Binary cross-entropy from logits: sum of -y log g(z) - (1 - y) log(1 - g(z)), g(z) = 1 / (1 + e^-z).

    Computed as y softplus(-z) + (1 - y) softplus(z), so that g is never formed: only an infinite logit on the wrong
    side costs infinity, and no logit makes a NaN, in value or gradient.

    Args:
        prediction: z, the logits.
        target: y, 1 engaged and 0 shown and not engaged (or a probability between).
        where: True where the item was shown.
        weights: one per entry.
    """
    prediction, target, where, weights = _clean(prediction, target, where, weights)
    return _total(binary_cross_entropy(prediction, target), where, weights)


def from_elementwise(function: Callable[[Array, Array], Array], *, slope: Slope | None = None) -> PointwiseLoss:
    """A pointwise loss from function(prediction, target) -> the loss of each entry, such as `optax.huber_loss`.

    Args:
        function: element-wise, for arrays of any shape.
        slope: its derivative in the prediction, where that is cheaper than autodiff; None: by autodiff.

    Returns:
        The same loss for the same arguments, so that what is compiled for it is found again.

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
        return _total(function(y_hat, y), mask, weight)

    loss.__name__ = loss.__qualname__ = getattr(function, "__name__", "loss")
    loss.__doc__ = f"The pointwise loss of {loss.__name__}."
    if slope is not None:
        loss.slope = slope  # type: ignore[attr-defined]
    return loss


def slope_of(loss: PointwiseLoss) -> Slope:
    """The derivative of an entry's loss in its prediction: `loss.slope` where there is one, otherwise by autodiff."""
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
    """All in one floating type, and 0 where masked."""
    check.same_shape(prediction=prediction, target=target, where=where, weights=weights)
    prediction, target, weights = check.as_floats(prediction=prediction, target=target, weights=weights)
    if where is None:
        return prediction, target, None, weights
    zero = lambda array: jnp.where(where, array, 0)
    return zero(prediction), zero(target), jnp.asarray(where), None if weights is None else zero(weights)


def _total(unreduced: Array, where: Array | None, weights: Array | None) -> Total:
    if weights is not None:  # already 0 under the mask; and what has weight 0 may be infinite
        unreduced = jnp.where((weights == 0) & jnp.isinf(unreduced), 0, unreduced)
        return Total(jnp.sum(unreduced * weights), jnp.sum(weights))
    if where is None:
        return Total(jnp.sum(unreduced), jnp.asarray(unreduced.size, unreduced.dtype))
    return Total(jnp.sum(unreduced, where=where), jnp.sum(where, dtype=unreduced.dtype))
