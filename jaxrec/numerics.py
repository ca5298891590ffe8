"""Functions whose values and gradients are finite, or infinite where they must be, but NaN only where the input is.

A NaN in one branch of a `where` reaches the gradient even where the other branch is taken (0 * NaN), so what would make
one is replaced before the arithmetic.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

__all__ = ["binary_cross_entropy", "log_softmax"]


def binary_cross_entropy(logit: Float[Array, "*n"], target: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-y log g(z) - (1 - y) log(1 - g(z)) = y softplus(-z) + (1 - y) softplus(z), with g(z) = 1 / (1 + e^-z).

    An infinite logit costs 0 on the right side and infinity on the wrong one. Its gradient is g(z) - y throughout.
    """

    def part(weight: Array, logit: Array) -> Array:  # where the weight is 0 an infinite logit is no matter
        idle = (weight == 0) & jnp.isinf(logit)
        return weight * jax.nn.softplus(jnp.where(idle, 0, logit))

    return part(target, -logit) + part(1 - target, logit)


def log_softmax(score: Float[Array, "*n c"], where: Bool[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Log-probabilities, score - log sum exp(score), over the last axis.

    Only entries where `where` is True count; the others get -inf. Scores of +inf share the whole probability equally,
    as equal finite scores would, and so do scores that are all -inf. Infinite scores have a gradient of 0. Where
    nothing is unmasked, all is -inf.
    """
    score = jnp.where(where, score, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    finite = jnp.isfinite(top) & (score > -jnp.inf)
    shifted = jnp.where(finite, score, 0) - jnp.where(jnp.isfinite(top), top, 0)
    infinite = jnp.where(where & jnp.isinf(top) & (score == top), 0, -jnp.inf)
    shifted = jnp.where(finite, shifted, jnp.where(jnp.isnan(top), top, infinite))
    some = shifted != -jnp.inf
    total = jnp.sum(jnp.where(some, jnp.exp(jnp.where(some, shifted, 0)), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total))
