"""Posterior means and variances of predicted ratings: running over sweeps, pooled over chains.

With p(s) a rating's prediction in sweep s, of the S sweeps after burn-in, in each of C chains::

    mean = 1/S sum of clip(p(s))        center = 1/S sum of p(s)        variance = 1/S sum of (p(s) - center)^2
    pooled variance = mean of the C variances + variance of the C centers            by the law of total variance

Source: Welford 1962, Note on a method for calculating corrected sums of squares and products.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jaxrec.pytree import register_dataclass

__all__ = ["Posterior", "pool_chains", "update"]


@register_dataclass
@dataclass(frozen=True)
class Posterior:
    """Moments of n predicted ratings over the sweeps after burn-in, with a leading axis of chains.

    Attributes:
        count: [], number of sweeps.
        mean: [n], mean of the clipped predictions: the point prediction.
        center: [n], mean of the predictions without clipping.
        variance: [n], variance of the predictions without clipping: the uncertainty about the model's unknowns.
        noise_variance: [n], mean of 1 / (alpha τ(i) τ(j)), which more ratings do not reduce. A new rating has variance
            `variance + noise_variance`.

    For ordinal ratings, a sweep's prediction is the rating's mean given the unknowns, and its noise variance the
    rating's variance given the unknowns.
    """

    count: Array
    mean: Array
    center: Array
    variance: Array
    noise_variance: Array


def update(
    posterior: Posterior, prediction: Array, noise_variance: Array, scale: tuple[float | Array, float | Array] | None
) -> Posterior:
    """Adds one sweep: running means, and the variance by Welford's update, which does not cancel."""
    count = posterior.count + 1
    deviation = prediction - posterior.center
    center = posterior.center + deviation / count
    clipped = prediction if scale is None else jnp.clip(prediction, *scale)
    return Posterior(
        count,
        posterior.mean + (clipped - posterior.mean) / count,
        center,
        posterior.variance + (deviation * (prediction - center) - posterior.variance) / count,
        posterior.noise_variance + (noise_variance - posterior.noise_variance) / count,
    )


def pool_chains(posterior: Posterior) -> Posterior:
    """Pools the chains: averages their means, and adds the variance between chains to the variance within them."""
    mean = lambda a: jnp.mean(a, axis=0)
    variance = mean(posterior.variance) + jnp.var(posterior.center, axis=0)
    return Posterior(
        jnp.sum(posterior.count), mean(posterior.mean), mean(posterior.center), variance, mean(posterior.noise_variance)
    )
