"""Errors of predicted ratings.

>>> import jax.numpy as jnp
>>> prediction, y = jnp.array([4.0, 3.0, 9.0]), jnp.array([5.0, 3.0, jnp.nan])
>>> rated = jnp.array([True, True, False])
>>> float(rmse(prediction, y, where=rated)), float(mae(prediction, y, where=rated))  # sqrt((1 + 0) / 2), (1 + 0) / 2
(0.707106..., 0.5)
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check

__all__ = ["mae", "rmse"]


def rmse(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Float[Array, ""]:
    """Root of the (weighted) mean of (prediction - target)^2 over the entries where `where` is True.

    Computed in float32, or in float64 if an array has that type. All entries are pooled: this is not a mean of users'
    or batches' RMSEs. To pool batches, add up their `losses.squared_error` Totals and take the root of the mean.
    Predictions are not clipped to the rating scale; clip them first to report clipped errors.

    Raises:
        ValueError: arrays of different shapes; nothing to average (under jit: NaN).
    """
    return jnp.sqrt(_mean(jnp.square, prediction, target, where, weights))


def mae(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Float[Array, ""]:
    """The (weighted) mean of |prediction - target| over the entries where `where` is True. Raises as `rmse`."""
    return _mean(jnp.abs, prediction, target, where, weights)


def _mean(
    error: Callable[[Array], Array],
    prediction: ArrayLike,
    target: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> Array:
    check.same_shape(prediction=prediction, target=target, where=where, weights=weights)
    prediction, target, weights = check.as_floats(prediction=prediction, target=target, weights=weights)
    where = jnp.ones(prediction.shape, bool) if where is None else jnp.asarray(where)
    weights = jnp.where(where, jnp.ones_like(prediction) if weights is None else weights, 0)
    count = jnp.sum(weights)
    if not check.traced(count) and not count > 0:
        raise ValueError("nothing to average: every entry is masked or has weight 0. Is the test part empty?")
    return jnp.sum(weights * error(jnp.where(where, prediction - target, 0))) / count
