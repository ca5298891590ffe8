"""Pointwise losses: (prediction, target) -> Total, and their derivatives in the prediction.

One contract for all of them::

    loss(prediction, target, *, where=None, weights=None) -> Total(sum, count)

`prediction`, `target`, `where` (bool) and `weights` have one shape, any shape. The sum runs over the entries where
`where` is True, each times its weight; the count is the sum of those weights. What is masked is replaced before
the arithmetic, so that NaN or inf under the mask reaches neither the value nor a gradient. Means are the caller's:
Totals of batches, of padded parts and of devices add up exactly.

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
from jaxtyping import Bool, Float

from jaxrec import check
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
    prediction: Float[Array, "*n"],
    target: Float[Array, "*n"],
    *,
    where: Bool[Array, "*n"] | None = None,
    weights: Float[Array, "*n"] | None = None,
) -> Total:
    """Sum of (prediction - target)^2: for RMSE, and for the towers' cost."""
    prediction, target, weights = _clean(prediction, target, where, weights)
    return _total((prediction - target) ** 2, where, weights)


def half_squared_error(
    prediction: Float[Array, "*n"],
    target: Float[Array, "*n"],
    *,
    where: Bool[Array, "*n"] | None = None,
    weights: Float[Array, "*n"] | None = None,
) -> Total:
    """1/2 sum of (prediction - target)^2: the notes' costs. The 1/2 makes the slope prediction - target."""
    prediction, target, weights = _clean(prediction, target, where, weights)
    return _total(0.5 * (prediction - target) ** 2, where, weights)


def absolute_error(
    prediction: Float[Array, "*n"],
    target: Float[Array, "*n"],
    *,
    where: Bool[Array, "*n"] | None = None,
    weights: Float[Array, "*n"] | None = None,
) -> Total:
    """Sum of |prediction - target|: for MAE. Its gradient where they are equal is 0."""
    prediction, target, weights = _clean(prediction, target, where, weights)
    error = prediction - target  # jnp.abs has slope 1 at 0, sign has 0
    return _total(error * jax.lax.stop_gradient(jnp.sign(error)), where, weights)


def logistic(
    prediction: Float[Array, "*n"],
    target: Float[Array, "*n"],
    *,
    where: Bool[Array, "*n"] | None = None,
    weights: Float[Array, "*n"] | None = None,
) -> Total:
    """Binary cross-entropy from logits: sum of -y log g(z) - (1 - y) log(1 - g(z)), g(z) = 1 / (1 + e^-z).

    Computed as softplus(z) - y z, which no logit makes infinite; g itself is never formed.

    Args:
        prediction: z, the logits.
        target: y, 1 engaged and 0 shown and not engaged (or a probability between).
        where: True where the item was shown.
        weights: one per entry.
    """
    prediction, target, weights = _clean(prediction, target, where, weights)
    return _total(jax.nn.softplus(prediction) - target * prediction, where, weights)


def squared_error_slope(prediction: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """2 (prediction - target)."""
    return 2 * (prediction - target)


def half_squared_error_slope(prediction: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Prediction - target: the residual."""
    return prediction - target


def logistic_slope(prediction: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """g(prediction) - target."""
    return jax.nn.sigmoid(prediction) - target


def _clean(
    prediction: Array, target: Array, where: Array | None, weights: Array | None
) -> tuple[Array, Array, Array | None]:
    check.same_shape(prediction=prediction, target=target, where=where, weights=weights)
    if where is None:
        return prediction, target, weights
    zero = lambda array: jnp.where(where, array, 0)
    return zero(prediction), zero(target), None if weights is None else zero(weights)


def _total(unreduced: Array, where: Array | None, weights: Array | None) -> Total:
    if weights is not None:  # already 0 under the mask
        return Total(jnp.sum(unreduced * weights), jnp.sum(weights))
    if where is None:
        return Total(jnp.sum(unreduced), jnp.asarray(unreduced.size, unreduced.dtype))
    return Total(jnp.sum(unreduced, where=where), jnp.sum(where, dtype=unreduced.dtype))
