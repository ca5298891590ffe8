"""What the draws of a sampler say of pairs: running means over sweeps, and over chains."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.tree_util import register_dataclass

__all__ = ["Posterior", "pooled", "with_draw"]


@register_dataclass
@dataclass(frozen=True)
class Posterior:
    """What the sweeps after burn-in say of n pairs; each chain for itself, with a leading axis.

    Attributes:
        count: [], how many sweeps.
        mean: [n], the mean of clipped predictions: what to predict.
        center: [n], the mean of predictions as they are.
        spread: [n], their variance: how little is known.
        noise: [n], the mean of 1 / (alpha τ τ): what no rating would tell. A new rating has variance spread + noise.

    Where ratings are levels a sweep's prediction is the rating's mean given the unknowns, and its noise the variance.
    """

    count: Array
    mean: Array
    center: Array
    spread: Array
    noise: Array


def with_draw(
    posterior: Posterior, prediction: Array, noise: Array, scale: tuple[float | Array, float | Array] | None
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
        posterior.spread + (move * (prediction - center) - posterior.spread) / count,
        posterior.noise + (noise - posterior.noise) / count,
    )


def pooled(posterior: Posterior) -> Posterior:
    """All chains as one: means over them, and to the spread within them that between them is added."""
    mean = lambda a: jnp.mean(a, axis=0)
    spread = mean(posterior.spread) + jnp.var(posterior.center, axis=0)
    return Posterior(
        jnp.sum(posterior.count), mean(posterior.mean), mean(posterior.center), spread, mean(posterior.noise)
    )
