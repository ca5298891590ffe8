"""Calibration of predicted ratings: is what was predicted as about 4 stars observed as 4 stars, on average?

The pairs are put into bins by their prediction, and each bin compares the mean of the predictions with the mean of the
observed ratings. Probabilities are calibrated in the same way, with labels as the observed.

>>> import jax.numpy as jnp
>>> prediction, y = jnp.array([1.5, 1.75, 3.0, 4.5]), jnp.array([1.0, 2.0, 5.0, 4.0])
>>> curve = calibration_curve(prediction, y, jnp.array([1.0, 2.0, 3.5, 5.0]))
>>> curve.prediction.tolist(), curve.target.tolist(), curve.weight.tolist()
([1.625, 3.0, 4.5], [1.5, 5.0, 4.0], [2.0, 1.0, 1.0])
>>> float(calibration_error(prediction, y, jnp.array([1.0, 2.0, 3.5, 5.0])))  # (2 * 0.125 + 2 + 0.5) / 4
0.6875
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from jaxrec import check

__all__ = ["CalibrationCurve", "calibration_curve", "calibration_error"]


class CalibrationCurve(NamedTuple):
    """Result of `calibration_curve`: what was predicted and what was observed, in each of b bins of the predictions.

    Attributes:
        prediction: [b], the (weighted) mean of the predictions; NaN in an empty bin.
        target: [b], the (weighted) mean of what was observed; NaN in an empty bin.
        weight: [b], the sum of the weights: the number of pairs, unless weights are given.
    """

    prediction: Array
    target: Array
    weight: Array


def calibration_curve(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    edges: Shaped[ArrayLike, " b1"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> CalibrationCurve:
    """The mean prediction and the mean target of each bin of the predictions.

    Bin m holds edges[m] < prediction <= edges[m + 1]; the first and the last bin also hold whatever lies outside, so
    that no pair is lost. These are the bins of scikit-learn's calibration_curve, for numpy.linspace(0, 1, b + 1) as its
    'uniform' and the quantiles of the predictions as its 'quantile'; it leaves out empty bins.

    Args:
        prediction: ratings, or probabilities.
        target: the observed ratings, or labels.
        edges: b + 1 increasing numbers.
        where: which entries count; all by default.
        weights: >= 0, all ones by default.

    Raises:
        ValueError: arrays of different shapes; fewer than two edges, or edges that do not increase (not checked under
            jit).

    Source: Murphy and Winkler 1977, Reliability of subjective probability forecasts of precipitation and temperature.
    """
    check.same_shape(prediction=prediction, target=target, where=where, weights=weights)
    prediction, target, weights, edges = check.as_floats(
        prediction=prediction, target=target, weights=weights, edges=edges
    )
    increasing = jnp.all(jnp.diff(edges) > 0)
    if edges.ndim != 1 or len(edges) < 2 or (not check.traced(increasing) and not increasing):
        raise ValueError(f"edges: expected at least two numbers that increase, got {edges}.")
    where = jnp.ones(prediction.shape, bool) if where is None else jnp.asarray(where)
    weights = jnp.where(where, jnp.ones_like(prediction) if weights is None else weights, 0).reshape(-1)
    prediction, target = (jnp.where(where, each, 0).reshape(-1) for each in (prediction, target))
    n_bins = len(edges) - 1
    position = jnp.searchsorted(edges[1:-1], prediction) if n_bins > 1 else jnp.zeros(prediction.shape, jnp.int32)
    add = lambda values: jnp.zeros(n_bins, values.dtype).at[position].add(values)
    count = add(weights)
    mean = lambda values: jnp.where(count > 0, add(weights * values) / jnp.where(count > 0, count, 1), jnp.nan)
    return CalibrationCurve(mean(prediction), mean(target), count)


def calibration_error(
    prediction: Shaped[ArrayLike, "*n"],
    target: Shaped[ArrayLike, "*n"],
    edges: Shaped[ArrayLike, " b1"],
    *,
    where: Bool[ArrayLike, "*n"] | None = None,
    weights: Shaped[ArrayLike, "*n"] | None = None,
) -> Float[Array, ""]:
    """The mean over the pairs of |mean prediction - mean target| of their bin, in the units of the ratings.

    sum_m weight(m) |prediction(m) - target(m)| / sum_m weight(m), the expected calibration error; for one bin 0 says
    that the predictions are right on average. More bins show more, and more noise: a bin of few pairs is off by chance.
    Arguments and errors as `calibration_curve`; NaN if there is nothing to average.

    Source: Naeini, Cooper and Hauskrecht 2015, Obtaining well calibrated probabilities using Bayesian binning.
    """
    curve = calibration_curve(prediction, target, edges, where=where, weights=weights)
    used = curve.weight > 0
    error = jnp.where(used, curve.weight * jnp.abs(curve.prediction - curve.target), 0)
    return jnp.sum(error) / jnp.sum(curve.weight)
