"""Pointwise losses: (prediction, target) -> Total, and their derivatives in the prediction.

One contract for all of them::

    loss(prediction, target, *, where=None, weights=None) -> Total(sum, count)

`prediction`, `target`, `where` (bool) and `weights` have one shape, any shape, and any type of numbers: all is computed
in float32, or in float64 where one of them is. The sum runs over the entries where `where` is True, each times its
weight; the count is the sum of those weights. What is masked is replaced before the arithmetic, so that NaN or inf
under the mask reaches neither the value nor a gradient. Means are the caller's: Totals of batches, of padded parts and
of devices add up exactly. Arrays of different shapes are a ValueError.

A `slope` is the derivative of one entry's loss in its prediction, which is all that a closed form needs to know of
a loss: `slope(prediction, target) -> array of their shape`.

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

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check
from jaxrec.numerics import binary_cross_entropy
from jaxrec.types import Total

__all__ = [
    "PointwiseLoss",
    "Slope",
    "absolute_error",
    "half_squared_error",
    "half_squared_error_slope",
    "logistic",
    "logistic_slope",
    "squared_error",
    "squared_error_slope",
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


def squared_error_slope(prediction: Shaped[ArrayLike, "*n"], target: Shaped[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    """2 (prediction - target)."""
    prediction, target = check.as_floats(prediction=prediction, target=target)
    return 2 * (prediction - target)


def half_squared_error_slope(
    prediction: Shaped[ArrayLike, "*n"], target: Shaped[ArrayLike, "*n"]
) -> Float[Array, "*n"]:
    """Prediction - target: the residual."""
    prediction, target = check.as_floats(prediction=prediction, target=target)
    return prediction - target


def logistic_slope(prediction: Shaped[ArrayLike, "*n"], target: Shaped[ArrayLike, "*n"]) -> Float[Array, "*n"]:
    """g(prediction) - target."""
    prediction, target = check.as_floats(prediction=prediction, target=target)
    return jax.nn.sigmoid(prediction) - target


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
