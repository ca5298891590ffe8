"""What the draws of a sampler say of pairs: running means over sweeps, and over chains."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

__all__ = ["Posterior", "pool_chains", "update"]


@register_dataclass
@dataclass(frozen=True)
class Posterior:
    """What the sweeps after burn-in say of n pairs; each chain for itself, with a leading axis.

    Attributes:
        count: [], how many sweeps.
        mean: [n], the mean of clipped predictions: what to predict.
        center: [n], the mean of predictions as they are.
        variance: [n], their variance: how little is known.
        noise_variance: [n], the mean of 1 / (alpha τ τ), which no number of ratings reduces. A new rating has variance
            `variance + noise_variance`.

    Where ratings are levels a sweep's prediction is the rating's mean given the unknowns, and its noise the variance.
    """

    count: Array
    mean: Array
    center: Array
    variance: Array
    noise_variance: Array


def update(
    posterior: Posterior, prediction: Array, noise_variance: Array, scale: tuple[float | Array, float | Array] | None
) -> Posterior:
    """One sweep more: running means, and the variance by Welford's update, which does not cancel."""
    count = posterior.count + 1
    move = prediction - posterior.center
    center = posterior.center + move / count
    clipped = prediction if scale is None else jnp.clip(prediction, *scale)
    return Posterior(
        count,
        posterior.mean + (clipped - posterior.mean) / count,
        center,
        posterior.variance + (move * (prediction - center) - posterior.variance) / count,
        posterior.noise_variance + (noise_variance - posterior.noise_variance) / count,
    )


def pool_chains(posterior: Posterior) -> Posterior:
    """All chains as one: means over them, and to the spread within them that between them is added."""
    mean = lambda a: jnp.mean(a, axis=0)
    variance = mean(posterior.variance) + jnp.var(posterior.center, axis=0)
    return Posterior(
        jnp.sum(posterior.count), mean(posterior.mean), mean(posterior.center), variance, mean(posterior.noise_variance)
    )
